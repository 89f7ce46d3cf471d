"""Lookups and updates by the native ops (src/jax)."""

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from embstore import FTRL
from embstore._adapters import MODES
from embstore.jax.alone import is_traced
from embstore.jax.inputs import Bags

if TYPE_CHECKING:
    from embstore.jax.names import NamedTable

NUMBER = jax.ShapeDtypeStruct((), np.int64)


def find(table: "NamedTable", ids: Any, after: Any) -> Any:
    """Return the rows (*shape, dim) of ids in the table's dtype; the table is not changed."""
    results = rows_of(table, ids.shape)
    return _call("find", results, ids, after, reads=True, table=table.key)


def lookup(table: "NamedTable", ids: Any, step: Any, after: Any) -> Any:
    """Return the rows (*shape, dim) and the ticket of ids, which are counted and inserted."""
    results = (rows_of(table, ids.shape), NUMBER)
    return _call("lookup", results, ids, step, after, table=table.key)


def pooled(table: "NamedTable", bags: Bags, after: Any) -> Any:
    """Return the pooled rows (*bags, dim) float32; the table is not changed."""
    results, given = sums_of(table, bags), (*bags.arrays, after)
    return _call("pooled", results, *given, reads=True, **_layout(table, bags))


def pooled_lookup(table: "NamedTable", bags: Bags, step: Any, after: Any) -> Any:
    """Return the pooled rows (*bags, dim) float32 and the ticket of bags, whose ids are counted."""
    results, given = (sums_of(table, bags), NUMBER), (*bags.arrays, step, after)
    return _call("pooled_lookup", results, *given, **_layout(table, bags))


def update(table: "NamedTable", ticket: Any, grads: Any, step: Any, rate: Any) -> Any:
    """Train with the gradients of a lookup; return the next step, and a 0 that comes after it."""
    results = (NUMBER, jax.ShapeDtypeStruct((), np.float32))
    is_ftrl = isinstance(table.table.optimizer, FTRL)  # which divides by its rate
    operands = ticket, grads, step, rate
    return _call("update", results, *operands, table=table.key, rate_above_zero=is_ftrl)


def rows_of(table: "NamedTable", shape: tuple[int, ...]) -> Any:
    """Return what the rows of ids are."""
    return jax.ShapeDtypeStruct((*shape, table.table.dim), jnp.dtype(table.table.dtype))


def sums_of(table: "NamedTable", bags: Bags) -> Any:
    """Return what the pooled rows of bags are."""
    return jax.ShapeDtypeStruct((*bags.shape, table.table.dim), np.float32)


def _layout(table: "NamedTable", bags: Bags) -> dict[str, Any]:
    return {
        "table": table.key,
        "mode": np.int64(MODES.index(bags.mode)),
        "length": np.int64(bags.length),
        "has_padding": bags.padding_id is not None,
        "padding_id": np.int64(bags.padding_id or 0),
    }


def _call(name: str, results: Any, *operands: Any, reads: bool = False, **attributes: Any) -> Any:
    """Call an op. Those that only read may be merged or left out, and jit calls them faster."""
    if not is_traced(operands):
        return _compiled(name, results, tuple(attributes.items()), reads)(*operands)
    call = jax.ffi.ffi_call(f"embstore_{name}", results, has_side_effect=not reads)
    return call(*operands, **attributes)


@lru_cache(maxsize=256)
def _compiled(name: str, results: Any, attributes: Any, reads: bool) -> Any:
    """Return a call that is made at once, compiled, as JAX would do by a longer way each time."""
    call = jax.ffi.ffi_call(f"embstore_{name}", results, has_side_effect=not reads)
    return jax.jit(partial(call, **dict(attributes)))
