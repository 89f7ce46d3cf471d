"""Tables as graphs know them: by their names.

1. A graph holds the name of a table, never the table: layers give their tables names here, and
   `register` gives them to graphs of models that were exported.
2. The native ops find a table by the name under which it was published to the C ABI. What cannot
   be published (tables on a card, tables with on_evict) goes by `fallback`, as everything does
   where the ops cannot be built.
"""

import gc
import warnings
import weakref
from typing import Any

import numpy as np
import tensorflow as tf

from embstore import ArgumentError, ArgumentTypeError, DeviceError, EmbstoreWarning, Table
from embstore._adapters import rate_at
from embstore.tensorflow import fallback, native
from embstore.tensorflow.clock import Clock
from embstore.tensorflow.op_library import has_op

UNNAMED = "table"  # what a Table is called that nobody gave a name


class NamedTable:
    """A table, its name in graphs, its clock, and the ops that serve it; one for each table."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.key = free_name(table)
        self.clock = Clock(table)
        self.has_native = has_op() and _is_published(table, self.key)
        self.ops: Any = native if self.has_native else fallback
        self.waiting = fallback.Waitlist()  # gradients, where the fall-back keeps them
        self.batches: dict[int, Any] = {}  # lookups that they may be of
        self.hits = 0, 0  # unique keys of training lookups, and found ones
        OF_LAYERS[self.key] = self
        _OF_TABLES[id(table)] = self
        if self.has_native:
            _PUBLISHED[self.key] = table
            with tf.init_scope():  # gradients of who had the name before hold that one's memory
                native.clear(self)

    @classmethod
    def of(cls, table: Table) -> "NamedTable":
        """Return what a table has had or gets now."""
        known = _OF_TABLES.get(id(table))
        return known if known is not None and known.table is table else cls(table)

    def rate(self, step: Any) -> Any:
        """Return the learning rate at a step as a tensor; NaN is the rate that the table has."""
        lr = self.table.lr
        if self.has_native and not callable(lr):
            return tf.constant(float("nan"), tf.float64)
        return tf.numpy_function(self._rate_now, [step], tf.float64, stateful=True)

    def _rate_now(self, step: Any) -> Any:
        return np.float64(rate_at(self.table, int(step)))


def register(name: str, table: Table | None) -> None:
    """Give a table to the exported graphs of this process that read a table of this name.

    A model that was exported holds the names of its tables and not their rows. The process that
    loads it calls `load_op`, loads the tables, and registers them before the first prediction.

    Parameters
    ----------
    name
        As the graph has it: ``layer.table_key`` of the layer at the export, which is the name of
        its table but where several tables had the same.
    table
        A `Table` of the CPU. It is kept until the name is registered again or given up by None.

    Raises
    ------
    ArgumentError
        If a layer of this process has another table of this name, or the table has ``on_evict``.
    DeviceError
        If the table is on a card.

    Examples
    --------
    >>> import embstore as es
    >>> from embstore.tensorflow import register
    >>> table = es.Table(dim=2, name="kiosk")
    >>> register("kiosk", table)
    >>> register("kiosk", None)
    """
    if not isinstance(name, str):
        raise ArgumentTypeError(f"register: name must be a str, got {type(name).__name__}")
    if table is not None and not isinstance(table, Table):
        raise ArgumentTypeError(
            f"register: expected a Table for {name!r}, as embstore.Table.load(path) gives, got "
            f"{type(table).__name__}"
        )
    known = OF_LAYERS.get(name)
    if table is not None and known is not None and known.table is not table:
        raise ArgumentError(
            f"register: a layer of this process has another table of the name {name!r}"
        )
    before = _REGISTERED.get(name)
    if before is table:
        return
    if before is not None:
        _withdraw(before, name)
        del _REGISTERED[name]
    if table is not None:
        table.publish(name)
        _REGISTERED[name] = table


def named(key: str) -> NamedTable:
    """Return the table of a layer by the name that a graph has."""
    known = OF_LAYERS.get(key)
    if known is None:
        raise ArgumentError(
            f"no layer of this process has a table of the name {key!r}; there are "
            f"{sorted(OF_LAYERS)}"
        )
    return known


def free_name(table: Table) -> str:
    """Return a table's name, or with a number behind it if another one has it."""

    def is_taken(name: str) -> bool:
        given = _PUBLISHED.get(name, table), _REGISTERED.get(name, table)
        return name in OF_LAYERS or given != (table, table)

    if is_taken(table.name) and table.name != UNNAMED:
        gc.collect()  # layers refer to themselves: those of before may only wait for this
    free, n = table.name, 1
    while is_taken(free):
        n += 1
        free = f"{table.name}#{n}"
    return free


def _is_published(table: Table, key: str) -> bool:
    try:
        table.publish(key)
    except (ArgumentError, DeviceError) as error:
        warnings.warn(
            f"table {table.name!r} goes without native ops, by tf.numpy_function: {error}",
            EmbstoreWarning,
            stacklevel=4,
        )
        return False
    return True


def _withdraw(table: Table, name: str) -> None:
    if name not in OF_LAYERS:
        try:
            table.withdraw(name)
        except ValueError:  # it has been closed
            return


OF_LAYERS: weakref.WeakValueDictionary[str, NamedTable] = weakref.WeakValueDictionary()
_OF_TABLES: weakref.WeakValueDictionary[int, NamedTable] = weakref.WeakValueDictionary()
_PUBLISHED: weakref.WeakValueDictionary[str, Table] = weakref.WeakValueDictionary()
_REGISTERED: dict[str, Table] = {}
