"""JAX: lookups and updates of embstore tables as functions, under jit; its names need jax.

`lookup` gives rows and a ticket, `update` takes the rows' gradients and the ticket; `embed` hides
both in a function that is trained in backward. docs/jax.md is the guide.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embstore.jax.functions import find, first_step, lookup, pooled, update
    from embstore.jax.op_library import build_op
    from embstore.jax.training import embed, embed_bags

_HOMES = {
    "build_op": "op_library",
    "embed": "training",
    "embed_bags": "training",
    "find": "functions",
    "first_step": "functions",
    "lookup": "functions",
    "pooled": "functions",
    "update": "functions",
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


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'embstore.jax' has no attribute {name!r}")
    try:
        import jax  # noqa: F401
    except ImportError:
        raise ImportError(f"embstore.jax.{name} needs JAX, 0.5 or newer: pip install jax") from None
    value = getattr(import_module(f"embstore.jax.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
