"""Lookups and updates by ``tf.numpy_function``: what `native` does, where it cannot.

It serves tables that have no name in the C ABI, and TensorFlow where no compiler is. Its graphs
hold Python functions, so that exports of them are refused.
"""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from embstore import FOUND, INSERTED, ArgumentError, Batch, InternalError

if TYPE_CHECKING:
    from embstore.tensorflow.names import NamedTable

MOST_BATCHES = 256  # of lookups whose gradients may still come
MOST_WAITING = 4096


class _Lookup(NamedTuple):
    batch: Batch
    bags: tuple[Any, Any, str] | None  # offsets, weights or None, mode


class _Waiting(NamedTuple):
    lookup: _Lookup
    grads: NDArray[np.float32]
    slot: int
    was_passed_over: bool  # was here when `apply` took others


class Waitlist:
    """The gradients of a table that wait for `apply`, as src/tensorflow/lookups.h keeps them."""

    def __init__(self) -> None:
        self._all: list[_Waiting] = []
        self._n_added = 0

    def add(self, lookup: _Lookup, grads: NDArray[np.float32], n_slots: int) -> int:
        """Add an entry; return its slot, the next of so many."""
        slot = self._n_added % n_slots
        self._n_added += 1
        self._all.append(_Waiting(lookup, grads, slot, False))
        return slot

    def take(self, scales: NDArray[np.float32]) -> list[tuple[_Waiting, np.float32]]:
        """Take those whose slots have a scale; return them with their parts of it.

        The others stay, until another entry needs their slot.
        """
        is_taken_up = {one.slot for one in self._all if not one.was_passed_over}
        here = [w for w in self._all if not (w.was_passed_over and w.slot in is_taken_up)]
        n_in = np.bincount([one.slot for one in here], minlength=len(scales)).astype(np.float32)
        self._all = [w._replace(was_passed_over=True) for w in here if scales[w.slot] == 0]
        return [(w, scales[w.slot] / n_in[w.slot]) for w in here if scales[w.slot] != 0]

    def clear(self) -> int:
        """Forget all; return how many they were."""
        n, self._all = len(self._all), []
        return n

    def __len__(self) -> int:
        return len(self._all)


def find(table: "NamedTable", ids: Any) -> Any:
    """Return the rows (*shape, dim) of ids; the table is not changed."""

    def read(keys: NDArray[np.int64]) -> NDArray[np.float32]:
        return _rows(table.table.find(keys.reshape(-1)), keys.shape, table)

    _hold_in_this_process()
    return _shaped(tf.numpy_function(read, [ids], tf.float32, stateful=True), ids.shape, table)


def lookup(table: "NamedTable", anchor: Any, ids: Any, fused: bool) -> Any:
    """Return the rows (*shape, dim) of ids, which are counted, admitted and inserted."""

    def read(keys: NDArray[np.int64], step: Any) -> tuple[NDArray[np.float32], np.int64]:
        batch = table.table.find_or_insert(keys.reshape(-1), int(step))
        return _rows(batch.rows, keys.shape, table), _keep(table, _Lookup(batch, None))

    return _trained(table, anchor, read, [ids], ids.shape, fused)


def pooled(table: "NamedTable", ids: Any, offsets: Any, weights: Any, mode: Any) -> Any:
    """Return the pooled rows (n_bags, dim); the table is not changed."""

    def read(keys: Any, bounds: Any, factors: Any) -> NDArray[np.float32]:
        return np.asarray(table.table.pooled(keys, bounds, mode, _factors(keys, factors)))

    _hold_in_this_process()
    rows = tf.numpy_function(read, [ids, offsets, weights], tf.float32, stateful=True)
    return _shaped(rows, _bags_shape(offsets), table)


def pooled_lookup(
    table: "NamedTable", anchor: Any, ids: Any, offsets: Any, weights: Any, mode: Any, fused: bool
) -> Any:
    """Return the pooled rows (n_bags, dim) of ids, which are counted, admitted and inserted."""

    def read(keys: Any, bounds: Any, factors: Any, step: Any) -> tuple[Any, np.int64]:
        factors = _factors(keys, factors)
        batch = table.table.pooled(keys, bounds, mode, factors, step=int(step))
        return np.asarray(batch.rows), _keep(table, _Lookup(batch, (bounds, factors, mode)))

    return _trained(table, anchor, read, [ids, offsets, weights], _bags_shape(offsets), fused)


def apply(table: "NamedTable", scale: Any) -> Any:
    """Train with the gradients whose slots in `scale` are not 0, times that; return the report."""

    def train(step: Any, rate: Any, scale: Any) -> NDArray[np.int64]:
        taken = table.waiting.take(np.reshape(scale, -1))
        if not taken:
            return np.zeros(4, np.int64)
        lr = None if np.isnan(rate) else float(rate)
        if len(taken) == 1 and taken[0][1] == 1.0:
            only = taken[0][0]
            report = table.table.apply_gradients(only.lookup.batch, only.grads, int(step), lr)
        else:
            parts = [_by_key(waiting, factor) for waiting, factor in taken]
            keys, grads = (np.concatenate(part) for part in zip(*parts, strict=True))
            report = table.table.apply_gradients(keys, grads, int(step), lr)
        return np.array([*report], np.int64)

    step = table.clock.variable.read_value()
    counts = tf.numpy_function(train, [step, table.rate(step), scale], tf.int64, stateful=True)
    return tf.ensure_shape(counts, (4,))


def clear(table: "NamedTable") -> Any:
    """Forget the gradients that wait; return of how many lookups they were."""

    def forget() -> np.int64:
        return np.int64(table.waiting.clear())

    return tf.numpy_function(forget, [], tf.int64, stateful=True)


def hits(table: "NamedTable") -> tuple[int, int]:
    """Return (unique keys, found ones) of the training lookups since the last call."""
    found, table.hits = table.hits, (0, 0)
    return found


def _hold_in_this_process() -> None:
    """Make exporting the graph that is being traced an error, in which this resource is named.

    An exported graph knows a Python function by a number, which may be another's where it is
    loaded, and no export fails by that. Resources that are no part of the model do make it fail.
    """
    if not tf.executing_eagerly():
        tf.identity(_not_exportable())


@cache
def _not_exportable() -> Any:
    with tf.init_scope(), tf.device("CPU"):
        name = "embstore_models_without_native_ops_cannot_be_exported"
        return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[], shared_name=name)


def _trained(
    table: "NamedTable",
    anchor: Any,
    read: Callable[..., Any],
    inputs: list[Any],
    shape: Any,
    fused: bool,
) -> Any:
    """Return what `read` gives for inputs and the step, with the gradient that trains."""
    step = table.clock.variable.read_value()

    @tf.custom_gradient
    def rows_of(anchor: Any) -> tuple[Any, Callable[[Any], Any]]:
        kinds = [tf.float32, tf.int64]
        rows, number = tf.numpy_function(read, [*inputs, step], kinds, stateful=True)
        given = number, step, anchor.shape, fused
        return _shaped(rows, shape, table), lambda grads: _settle(table, grads, *given)

    return rows_of(tf.convert_to_tensor(anchor))


def _settle(
    table: "NamedTable", grads: Any, number: Any, step: Any, anchor: Any, fused: bool
) -> Any:
    """Return the anchor's gradient, after those of the rows were left with the table."""

    def settle(number: Any, grads: Any, step: Any, rate: Any) -> NDArray[np.float32]:
        lookup = table.batches.get(int(number))
        if lookup is None:
            raise InternalError(
                f"table {table.key!r}: more than {MOST_BATCHES} lookups came before this gradient"
            )
        if grads.shape[-1:] != (table.table.dim,):
            raise ArgumentError(
                f"gradients of shape {grads.shape} are not those of rows of dim {table.table.dim}"
            )
        flat = grads.reshape(-1, table.table.dim)
        settled = np.zeros(anchor, np.float32)
        if fused:
            lr = None if np.isnan(rate) else float(rate)
            table.table.apply_gradients(lookup.batch, flat, int(step), lr)
        elif len(table.waiting) >= MOST_WAITING:
            raise InternalError(f"table {table.key!r}: {MOST_WAITING} gradients wait for Optimizer")
        else:
            slot = table.waiting.add(lookup, flat.copy(), settled.size)
            settled.reshape(-1)[slot] = 1.0
        return settled

    rate = table.rate(step)
    grads = tf.convert_to_tensor(grads)
    settled = tf.numpy_function(settle, [number, grads, step, rate], tf.float32, stateful=True)
    if fused:
        with tf.control_dependencies([settled]):
            table.clock.go_behind(step)
    return tf.ensure_shape(settled, anchor)


def _keep(table: "NamedTable", lookup: _Lookup) -> np.int64:
    """Keep a lookup until its gradient comes; return its number."""
    batches = table.batches
    number = next(reversed(batches), 0) + 1
    batches[number] = lookup
    if len(batches) > MOST_BATCHES:
        del batches[next(iter(batches))]
    n_unique, n_found = table.hits
    table.hits = n_unique + lookup.batch.n_unique, n_found + lookup.batch.n_found
    return np.int64(number)


def _by_key(waiting: _Waiting, factor: Any) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the keys of a lookup that had rows, as they came, and their gradients."""
    batch, bags = waiting.lookup
    grads = waiting.grads
    if bags is not None:
        offsets, weights, mode = bags
        lengths = np.diff(offsets)
        power = {"sum": 0.0, "mean": -1.0, "sqrtn": -0.5}[mode]
        by = np.maximum(lengths, 1).astype(np.float32) ** np.float32(power)
        grads = np.repeat(grads * by[:, None], lengths, axis=0)
        grads = grads if weights is None else grads * weights[:, None]
    inverse = np.asarray(batch.inverse)
    has_row = np.isin(np.asarray(batch.status), (FOUND, INSERTED))[inverse]
    keys = np.asarray(batch.keys)[inverse[has_row]]
    return keys, np.asarray(grads[has_row] * factor, np.float32)


def _rows(rows: Any, shape: tuple[int, ...], table: "NamedTable") -> NDArray[np.float32]:
    return np.asarray(rows, np.float32).reshape(*shape, table.table.dim)


def _shaped(rows: Any, shape: Any, table: "NamedTable") -> Any:
    return tf.ensure_shape(rows, shape.concatenate(table.table.dim))


def _bags_shape(offsets: Any) -> Any:
    n = offsets.shape[0]
    return tf.TensorShape([None if n is None else n - 1])


def _factors(keys: Any, weights: Any) -> Any:
    return None if len(weights) == 0 and len(keys) else weights
