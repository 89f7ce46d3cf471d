"""Lookups and updates as functions of JAX: find, lookup, pooled and update, under jit or not."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from embstore import ArgumentError, Table
from embstore._adapters import ERROR_OF_STATUS, Mode, check_padding, step_behind
from embstore.jax import fallback
from embstore.jax.alone import alone, is_traced
from embstore.jax.inputs import (
    INTEGERS,
    Bags,
    bags_of,
    bags_of_one,
    check_x64,
    grads_of,
    keys_of,
    step_of,
    ticket_of,
)
from embstore.jax.names import NamedTable

NO_LINK = np.zeros((), np.int64)
NATIVE_ERROR = re.compile(r"\[embstore (\d+)\] (.*)", re.DOTALL)


def find(table: Table, ids: Any, *, padding_id: int | None = None, after: Any = None) -> Any:
    r"""Return the rows of ids, and change nothing: evaluation and inference.

    Parameters
    ----------
    table
        A `Table`. Under jit it is a constant: close over it.
    ids
        int64 of any shape, all 2\*\*64 of them legal; uint64 by its bits, int32 and uint32 widened.
    padding_id
        An id that fills up: its row is zeros.
    after
        What this call waits for, any array: the step that the last `update` gave. Calls that no
        array links have no order under jit.

    Returns
    -------
    jax.Array
        (\*shape, dim) in the table's dtype. An id without a row gives the default row.

    Raises
    ------
    ArgumentError
        If x64 is off in JAX.
    ArgumentTypeError
        If ids have another dtype.

    Examples
    --------
    >>> import jax, embstore as es
    >>> jax.config.update("jax_enable_x64", True)
    >>> from embstore.jax import find
    >>> table = es.Table(dim=2, default_row=0.5, name="store")
    >>> find(table, [7, 2**62]).tolist(), len(table)
    ([[0.5, 0.5], [0.5, 0.5]], 0)
    """
    named, keys = NamedTable.of(table, "find"), keys_of(ids, "find")
    padding_id, link = check_padding(padding_id, "find", INTEGERS), _link(after)
    if padding_id is None:
        return _run(lambda *given: _reads(named, given).find(named, *given), keys, link)
    return _read_bags(named, bags_of_one(keys, padding_id), link).astype(table.dtype)


def lookup(
    table: Table, ids: Any, step: Any, *, padding_id: int | None = None, after: Any = None
) -> tuple[Any, Any]:
    r"""Look up in training: ids are counted, admitted and inserted.

    Parameters
    ----------
    table, ids, padding_id
        As for `find`; what fills up is not counted and not trained.
    step
        The present step, an int or an integer scalar. Under jit, pass the one that the last
        `update` gave as an argument: it makes this lookup come after that update, and nothing is
        compiled again.
    after
        Something else that this call waits for: the ticket of another lookup of the table in the
        same step, so that their order is certain.

    Returns
    -------
    rows : jax.Array
        (\*shape, dim) in the table's dtype; differentiate with respect to them.
    ticket : jax.Array
        An int64 scalar: what `update` asks for, once. The 64 latest of a table are kept.

    Raises
    ------
    EmbstoreError
        As `Table.find_or_insert`, outside of jit; a compiled function raises
        ``jax.errors.JaxRuntimeError`` with the same words.

    Examples
    --------
    >>> import jax, embstore as es
    >>> jax.config.update("jax_enable_x64", True)
    >>> from embstore.jax import first_step, lookup, update
    >>> table = es.Table(dim=4, optimizer=es.Adagrad(lr=0.1), name="user")
    >>> @jax.jit
    ... def train(ids, step):
    ...     rows, ticket = lookup(table, ids, step)
    ...     loss, grads = jax.value_and_grad(lambda rows: (rows**2).sum())(rows)
    ...     return loss, update(table, ticket, grads, step)
    >>> loss, step = train(jax.numpy.array([[7, -5], [7, 2**62]]), first_step(table))
    >>> len(table), int(step)
    (3, 1)
    """
    named, keys = NamedTable.of(table, "lookup"), keys_of(ids, "lookup")
    padding_id, now = check_padding(padding_id, "lookup", INTEGERS), step_of(step, "lookup")
    link = now if after is None else _link(after)
    if padding_id is None:
        rows, ticket = _run(lambda *given: named.ops.lookup(named, *given), keys, now, link)
        return rows, ticket
    rows, ticket = _look_up_bags(named, bags_of_one(keys, padding_id), now, link)
    return rows.astype(table.dtype), ticket


def pooled(
    table: Table,
    ids: Any,
    offsets: Any = None,
    weights: Any = None,
    *,
    mode: Mode = "mean",
    padding_id: int | None = None,
    step: Any = None,
    after: Any = None,
) -> Any:
    """Pool the rows of bags of ids: read only, or with a step in training.

    Parameters
    ----------
    table, padding_id, after
        As for `lookup`.
    ids
        (..., length), bags along the last axis, or (n,) with offsets.
    offsets : (n_bags + 1,) int64
        Where each bag begins, and the number of ids. An empty bag is 0.
    weights
        Of the shape of ids, float32: constants, no gradient comes to them.
    mode
        "sum" of row times weight; "mean" divides it by the number of ids in the bag, padding
        excepted, "sqrtn" by the square root of that.
    step
        None reads; a step counts, admits and inserts as `lookup`.

    Returns
    -------
    rows : jax.Array
        (..., dim) or (n_bags, dim) float32.
    ticket : jax.Array
        With a step alone: for `update`, with the gradients of the pooled rows.

    Examples
    --------
    >>> import jax, embstore as es
    >>> jax.config.update("jax_enable_x64", True)
    >>> from embstore.jax import pooled
    >>> table = es.Table(dim=2, default_row=0.5, name="tags")
    >>> pooled(table, [[7, 5, 0], [0, 0, 0]], mode="sum", padding_id=0).tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """
    named = NamedTable.of(table, "pooled")
    bags = bags_of(ids, offsets, weights, mode, padding_id, "pooled")
    if step is None:
        return _read_bags(named, bags, _link(after))
    now = step_of(step, "pooled")
    return _look_up_bags(named, bags, now, now if after is None else _link(after))


def update(table: Table, ticket: Any, grads: Any, step: Any, lr: Any = None) -> Any:
    """Train a table with the gradients of the rows of a lookup.

    Parameters
    ----------
    table
        The table that was looked up.
    ticket
        What the lookup gave beside the rows; each is good for one update, be it one that fails.
    grads
        Of the shape of the rows, any float dtype. Gradients of one key are summed, and its
        optimizer runs once.
    step
        The present step, as at the lookup.
    lr
        The learning rate of this update, a number or a scalar, as an optax schedule gives it; by
        default the table's.

    Returns
    -------
    jax.Array
        step + 1, after the update: give it to the next lookup.

    Raises
    ------
    ArgumentError
        If the table has no optimizer, or lr is negative or not finite.
    EmbstoreError
        As `Table.apply_gradients`, and as `lookup` for what a compiled function raises.
    """
    next_step, _ = update_and_zero(table, ticket, grads, step, lr, "update")
    return next_step


def update_and_zero(
    table: Table, ticket: Any, grads: Any, step: Any, lr: Any, where: str
) -> tuple[Any, Any]:
    """Train as `update`; return the next step, and a float32 0 that is there after the update."""
    named, now = NamedTable.of(table, where), step_of(step, where)
    if table.optimizer is None:
        raise ArgumentError(
            f"{where}: table {table.name!r} has no optimizer: make it with one, as in "
            f"Table(dim=..., optimizer=embstore.Adagrad(lr=0.05))"
        )
    given = ticket_of(ticket, where), grads_of(grads, table.dim, where), now
    rate = named.rate(now, lr, where, is_traced(given))
    next_step, zero = _run(lambda *given: named.ops.update(named, *given), *given, rate)
    return next_step, zero


def first_step(table: Table) -> Any:
    """Return the step with which a table goes on, behind its last: an int64 scalar.

    Ask outside of jit, when the updates before are done (``jax.block_until_ready(step)``).
    """
    check_x64("first_step")
    return jnp.asarray(step_behind(table), jnp.int64)


def _link(after: Any) -> Any:
    if after is None:
        return NO_LINK
    return jax.lax.stop_gradient(after) if isinstance(after, jax.core.Tracer) else after


def _reads(named: NamedTable, given: tuple[Any, ...]) -> Any:
    """Return the ops that read: outside of jit a call of Python, which costs less than JAX's."""
    return named.ops if is_traced(given) else fallback


def _read_bags(named: NamedTable, bags: Bags, link: Any) -> Any:
    def read(ids: Any, offsets: Any, weights: Any, link: Any) -> Any:
        given = ids, offsets, weights, link
        return _reads(named, given).pooled(named, bags.of(ids, offsets, weights), link)

    return _run(read, *bags.arrays, link)


def _look_up_bags(named: NamedTable, bags: Bags, now: Any, link: Any) -> tuple[Any, Any]:
    def look(ids: Any, offsets: Any, weights: Any, now: Any, link: Any) -> Any:
        return named.ops.pooled_lookup(named, bags.of(ids, offsets, weights), now, link)

    rows, ticket = _run(look, *bags.arrays, now, link)
    return rows, ticket


def _run(call: Callable[..., Any], *operands: Any) -> Any:
    """Run a call; outside of jit it is waited for, and its errors are embstore's."""
    try:
        results = call(*alone(*operands))
        return results if is_traced(operands) else jax.block_until_ready(results)
    except jax.errors.JaxRuntimeError as error:
        native = NATIVE_ERROR.search(str(error))
        if native is not None:
            raise ERROR_OF_STATUS[int(native[1])](native[2].strip()) from None
        raise
