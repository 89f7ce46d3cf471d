"""Lookups and updates by ``io_callback``: what `native` does, where it cannot.

It serves tables that have no name in the C ABI, JAX on other devices than the CPU, and JAX where no
compiler is.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from numpy.typing import NDArray

from embstore import ArgumentError, Batch, TicketError
from embstore.jax.inputs import Bags
from embstore.jax.native import NUMBER, rows_of, sums_of

if TYPE_CHECKING:
    from embstore.jax.names import NamedTable

MOST_KEPT = 64  # lookups of a table whose gradients may still come


def find(table: "NamedTable", ids: Any, after: Any) -> Any:
    """Return the rows (*shape, dim) of ids in the table's dtype; the table is not changed."""
    result, key = rows_of(table, ids.shape), table.key

    def read(ids: Any, _: Any) -> Any:
        return _shaped(_table(key).table.find(_keys(ids)), result)

    return _call(read, result, ids, after)


def lookup(table: "NamedTable", ids: Any, step: Any, after: Any) -> Any:
    """Return the rows (*shape, dim) and the ticket of ids, which are counted and inserted."""
    result, key = rows_of(table, ids.shape), table.key

    def read(ids: Any, step: Any, _: Any) -> Any:
        named = _table(key)
        batch = named.table.find_or_insert(_keys(ids), int(step))
        return _shaped(batch.rows, result), _keep(named, batch)

    return _call(read, (result, NUMBER), ids, step, after)


def pooled(table: "NamedTable", bags: Bags, after: Any) -> Any:
    """Return the pooled rows (*bags, dim) float32; the table is not changed."""
    result, key = sums_of(table, bags), table.key

    def read(ids: Any, offsets: Any, weights: Any, _: Any) -> Any:
        given = _without_padding(ids, offsets, weights, bags)
        return _shaped(_table(key).table.pooled(*given), result)

    return _call(read, result, bags.ids, bags.offsets, bags.weights, after)


def pooled_lookup(table: "NamedTable", bags: Bags, step: Any, after: Any) -> Any:
    """Return the pooled rows (*bags, dim) float32 and the ticket of bags, whose ids are counted."""
    result, key = sums_of(table, bags), table.key

    def read(ids: Any, offsets: Any, weights: Any, step: Any, _: Any) -> Any:
        named = _table(key)
        given = _without_padding(ids, offsets, weights, bags)
        batch = named.table.pooled(*given, step=int(step))
        return _shaped(batch.rows, result), _keep(named, batch)

    results = (result, NUMBER)
    return _call(read, results, bags.ids, bags.offsets, bags.weights, step, after)


def update(table: "NamedTable", ticket: Any, grads: Any, step: Any, rate: Any) -> Any:
    """Train with the gradients of a lookup; return the next step, and a 0 that comes after it."""
    key = table.key

    def train(ticket: Any, grads: Any, step: Any, rate: Any) -> Any:
        named = _table(key)
        batch = named.kept.pop(int(ticket), None)
        if batch is None:
            raise TicketError(
                f"table {key!r} has no lookup of this ticket: it was updated already, or "
                f"{MOST_KEPT} later lookups came, or it is another table's"
            )
        lr = float(rate[0]) if len(rate) else None
        flat = np.asarray(grads).reshape(-1, named.table.dim)
        named.table.apply_gradients(batch, flat, int(step), lr)
        return np.int64(int(step) + 1), np.float32(0)

    results = (NUMBER, jax.ShapeDtypeStruct((), np.float32))
    return _call(train, results, ticket, grads, step, rate)


def _call(function: Callable[..., Any], results: Any, *operands: Any) -> Any:
    """Call a function of numpy arrays; outside of jit at once, so that nothing is compiled."""
    if any(isinstance(operand, jax.core.Tracer) for operand in operands):
        return io_callback(function, results, *operands)
    return jax.tree.map(jnp.asarray, function(*map(np.asarray, operands)))


def _table(key: str) -> "NamedTable":
    from embstore.jax.names import named

    return named(key)


def _keys(ids: Any) -> NDArray[np.int64]:
    return np.ascontiguousarray(ids).reshape(-1)


def _shaped(rows: Any, result: Any) -> Any:
    return np.asarray(rows).reshape(result.shape).astype(result.dtype)


def _without_padding(ids: Any, offsets: Any, weights: Any, bags: Bags) -> tuple[Any, ...]:
    """Return keys, offsets, mode and weights as ``Table.pooled`` takes them."""
    keys, bounds = _keys(ids), np.asarray(offsets)
    if bags.length >= 0:
        bounds = np.arange(int(np.prod(bags.shape)) + 1) * bags.length
    factors = np.asarray(weights).reshape(-1) if np.size(weights) else None
    if bags.padding_id is not None:
        if bounds[0] != 0 or bounds[-1] != len(keys) or (np.diff(bounds) < 0).any():
            raise ArgumentError(f"offsets must go up, from 0 to the number of ids, {len(keys)}")
        is_id = keys != bags.padding_id
        bounds = np.concatenate([[0], np.cumsum(is_id)])[bounds]
        keys, factors = keys[is_id], None if factors is None else factors[is_id]
    return keys, bounds, bags.mode, factors


def _keep(table: "NamedTable", batch: Batch) -> np.int64:
    """Keep a lookup until its gradient comes; return its number."""
    global _last  # noqa: PLW0603
    _last += 1
    table.kept[_last] = batch
    if len(table.kept) > MOST_KEPT:
        del table.kept[next(iter(table.kept))]
    return np.int64(_last)


_last = 0
