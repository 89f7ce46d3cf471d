"""Tables as compiled functions know them: by their names.

1. A compiled function holds the name of a table, never the table: where that is gone, it raises.
   No name is given twice in a process.
2. The native ops find a table by the name under which it was published to the C ABI. What cannot
   be published (tables on a card, tables with on_evict) goes by `fallback`, as everything does
   where the ops cannot be built.
"""

import os
import threading
import warnings
import weakref
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from embstore import (
    ArgumentError,
    ArgumentTypeError,
    DeviceError,
    EmbstoreWarning,
    ForkError,
    Table,
)
from embstore._adapters import rate_at
from embstore.jax import fallback, native
from embstore.jax.inputs import rate_of
from embstore.jax.op_library import has_op, load_op


class NamedTable:
    """The name of a table, and the ops that serve it; one for each table, as long as it lives."""

    def __init__(self, table: Table) -> None:
        self._table = weakref.ref(table)
        self._process = os.getpid()
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
                f"{where}: expected an embstore.Table, got {type(table).__name__}; a function "
                f"under jit closes over its tables"
            )
        len(table)  # raises if it is closed
        with _NAMING:
            known = _OF_TABLES.get(id(table)) or cls(table)
        if known._process != os.getpid():
            raise ForkError(
                f"{where}: JAX computed with table {table.name!r} before a fork, and does not work "
                f"in the child; begin processes by 'spawn'"
            )
        return known

    @property
    def table(self) -> Table:
        """The table."""
        table = self._table()
        if table is None:
            raise ArgumentError(f"the table of the name {self.key!r} is gone")
        return table

    def rate(self, step: Any, lr: Any, where: str, is_traced: bool) -> Any:
        """Return (1,) float64, the learning rate of an update, or (0,): the table's by then."""
        if lr is not None:
            given = rate_of(lr, where)
        elif not callable(self.table.lr):
            return np.zeros(0, np.float64)
        elif is_traced:
            key, shape = self.key, jax.ShapeDtypeStruct((), jnp.float64)
            given = jax.pure_callback(lambda now: _rate_at(key, now), shape, step)
        else:
            given = rate_at(self.table, int(step))
        optimizer = self.table.optimizer
        if optimizer is not None and isinstance(given, float):
            given = optimizer.check_lr(given, where)
        return jnp.asarray(given, jnp.float64).reshape(1)


def named(key: str) -> NamedTable:
    """Return the table that a compiled function names."""
    known = OF_KEYS.get(key)
    if known is None:
        raise ArgumentError(f"no table is known by the name {key!r} in this process any more")
    return known


def _rate_at(key: str, step: Any) -> Any:
    return np.float64(rate_at(named(key).table, int(step)))


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


_NAMING = threading.Lock()
OF_KEYS: dict[str, NamedTable] = {}
_OF_TABLES: dict[int, NamedTable] = {}
_USED: set[str] = set()
