"""JAX: lookups and updates of embstore tables as functions, under jit; its names need jax.

`lookup` gives rows and a ticket, `update` takes the rows' gradients and the ticket; `embed` hides
both in a function that is trained in backward. docs/jax.md is the guide.
"""

from typing import TYPE_CHECKING

from embstore._adapters import lazy_names

if TYPE_CHECKING:
    from embstore.jax.functions import find, first_step, lookup, pooled, update
    from embstore.jax.op_library import build_op
    from embstore.jax.training import embed, embed_bags

_HOMES = {
    "build_op": "embstore.jax.op_library",
    "embed": "embstore.jax.training",
    "embed_bags": "embstore.jax.training",
    "find": "embstore.jax.functions",
    "first_step": "embstore.jax.functions",
    "lookup": "embstore.jax.functions",
    "pooled": "embstore.jax.functions",
    "update": "embstore.jax.functions",
}

__all__ = [
    "build_op",
    "embed",
    "embed_bags",
    "find",
    "first_step",
    "lookup",
    "pooled",
    "update",
]

__getattr__, __dir__ = lazy_names(
    __name__, _HOMES, "jax", "JAX, 0.5 or newer: pip install 'embstore[jax]'"
)
