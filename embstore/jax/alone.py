"""What may not become of a call under JAX's transformations: several calls, or one for each device.

`alone` gives operands back as they are. Where jax.vmap would make a call for each example, or a
computation of several devices one for each device, it raises when that is traced or lowered, so
that nothing has run by then.
"""

from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from embstore import ArgumentError


def alone(*operands: Any) -> Any:
    """Return the operands of a call that is made once, by one device.

    Raises
    ------
    ArgumentError
        Under jax.vmap, or if several devices compute; under jit where the function is compiled.
    """
    if is_traced(operands):
        return _alone.bind(*operands)
    return _given(*operands)


def is_traced(operands: tuple[Any, ...]) -> bool:
    """Return whether a call is being traced, as under jit, rather than made at once."""
    return any(isinstance(operand, jax.core.Tracer) for operand in operands)


def _devices_of(operands: tuple[Any, ...]) -> int:
    arrays = [o for o in operands if isinstance(o, jax.Array)]
    return max((len(array.sharding.device_set) for array in arrays), default=1)


def _check_devices(n_devices: int) -> None:
    if n_devices > 1:
        raise ArgumentError(
            f"a table is one process's, and {n_devices} devices compute here, each of which would "
            f"make this call: look up and update on one device, and give its rows to what is "
            f"sharded (docs/jax.md)"
        )


def _given(*operands: Any) -> Any:
    _check_devices(_devices_of(operands))
    return list(operands)


def _batched(operands: Any, axes: Any) -> Any:
    raise ArgumentError(
        "lookups and updates are not for jax.vmap, which would make one call for each example: "
        "ids may have any shape; look up the whole batch outside of it"
    )


def _lowered(context: mlir.LoweringRuleContext, *operands: Any) -> Any:
    compiled_for = context.module_context.axis_context
    if isinstance(compiled_for, mlir.ShardingContext):
        _check_devices(compiled_for.num_devices)
    elif isinstance(compiled_for, mlir.SPMDAxisContext):
        _check_devices(compiled_for.mesh.size)
    else:
        _check_devices(compiled_for.axis_env.nreps)  # jax.pmap of older versions of JAX
    return operands


_alone = Primitive("embstore_alone")
_alone.multiple_results = True
_alone.def_impl(_given)
_alone.def_abstract_eval(lambda *operands: operands)
batching.primitive_batchers[_alone] = _batched
mlir.register_lowering(_alone, _lowered)
