"""Tables as compiled functions know them: by their names.

1. A compiled function holds the name of a table, never the table: where that is gone, it raises.
   No name is given twice in a process.
2. The native ops find a table by the name under which it was published to the C ABI. What cannot
   be published (tables on a card, tables with on_evict) goes by `fallback`, as everything does
   where the ops cannot be built.
"""

import warnings
import weakref
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from embstore import ArgumentError, ArgumentTypeError, DeviceError, EmbstoreWarning, Table
from embstore.jax import fallback, native
from embstore.jax.op_library import has_op, load_op


class NamedTable:
    """The name of a table, and the ops that serve it; one for each table, as long as it lives."""

    def __init__(self, table: Table) -> None:
        self._table = weakref.ref(table)
        self.key = _publish(table) if has_op() else ""
        self.has_native = bool(self.key)
        self.key = self.key or next(_free_names(table.name))
        self.ops: Any = native if self.has_native else fallback
        self.kept: dict[int, Any] = {}  # lookups whose gradients may come, of the fall-back
        OF_KEYS[self.key] = _OF_TABLES[id(table)] = self
        weakref.finalize(table, _forget, self.key, id(table), self.has_native).atexit = False

    @classmethod
    def of(cls, table: Any, where: str) -> "NamedTable":
        """Return what a table has had or gets now."""
        if not isinstance(table, Table):
            raise ArgumentTypeError(
                f"{where}: expected an embstore.Table, got {type(table).__name__}"
            )
        known = _OF_TABLES.get(id(table))
        return known if known is not None else cls(table)

    @property
    def table(self) -> Table:
        """The table."""
        table = self._table()
        if table is None:
            raise ArgumentError(f"the table of the name {self.key!r} is gone")
        return table

    def rate(self, step: Any, lr: Any) -> Any:
        """Return the learning rate of an update; NaN is the number that the table has by then."""
        if lr is not None:
            return jnp.asarray(lr, jnp.float64)
        if not callable(self.table.lr):
            return jnp.asarray(jnp.nan, jnp.float64)
        key = self.key
        shape = jax.ShapeDtypeStruct((), jnp.float64)
        return jax.pure_callback(lambda now: _rate_at(key, int(now)), shape, step)


def named(key: str) -> NamedTable:
    """Return the table that a compiled function names."""
    known = OF_KEYS.get(key)
    if known is None:
        raise ArgumentError(f"no table is known by the name {key!r} in this process any more")
    return known


def _rate_at(key: str, step: int) -> Any:
    lr = named(key).table.lr
    if lr is None:
        return np.float64(np.nan)
    return np.float64(lr(step) if callable(lr) else lr)


def _free_names(name: str) -> Any:
    """Yield names that nobody has had here."""
    for n in count(1):
        free = f"jax:{name}" if n == 1 else f"jax:{name}#{n}"
        if free not in _USED:
            _USED.add(free)
            yield free


def _publish(table: Table) -> str:
    """Return the name under which the ops find a table, or "" where they cannot serve it."""
    try:
        return table.publish(next(_free_names(table.name)))
    except (ArgumentError, DeviceError) as error:
        warnings.warn(
            f"table {table.name!r} goes without native ops, by jax.experimental.io_callback: "
            f"{error}",
            EmbstoreWarning,
            stacklevel=5,
        )
        return ""


def _forget(key: str, table: int, has_native: bool) -> None:
    OF_KEYS.pop(key, None)
    _OF_TABLES.pop(table, None)
    if has_native:
        load_op().embstore_forget(key.encode())


OF_KEYS: dict[str, NamedTable] = {}
_OF_TABLES: dict[int, NamedTable] = {}
_USED: set[str] = set()
