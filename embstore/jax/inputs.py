"""What users call ids and steps, as int64 arrays, and the bags of a call."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from embstore import ArgumentError, ArgumentTypeError
from embstore._adapters import check_mode, check_padding

INTEGERS = (int, np.integer)  # that a padding id may be
WIDENED = (jnp.int32, jnp.uint32)


class Bags(NamedTuple):
    """Ids, how their bags lie, and how they are pooled.

    Bags are `length` ids each along the last axis, or (-1) those that `offsets` bound. `weights`
    are empty where there are none.
    """

    ids: Any
    offsets: Any
    weights: Any
    mode: str
    length: int
    padding_id: int | None
    shape: tuple[int, ...]  # of the bags

    @property
    def arrays(self) -> tuple[Any, Any, Any]:
        """What is computed: ids, offsets and weights."""
        return self.ids, self.offsets, self.weights

    def of(self, ids: Any, offsets: Any, weights: Any) -> "Bags":
        """Return bags that lie as these, of other arrays."""
        return self._replace(ids=ids, offsets=offsets, weights=weights)


def check_x64(where: str) -> None:
    """Raise where JAX would cut ids to 32 bits."""
    if jax.dtypes.canonicalize_dtype(np.int64) != np.int64:
        raise ArgumentError(
            f"{where}: ids have 64 bits, and JAX cuts them to 32: call "
            f"jax.config.update('jax_enable_x64', True) before anything else"
        )


def keys_of(ids: Any, where: str) -> Any:
    """Return ids of any integer dtype that means keys as int64: uint64 by its bits."""
    check_x64(where)
    if not isinstance(ids, jax.Array | np.ndarray):
        ids = np.asarray(ids)
        ids = ids if ids.size else ids.astype(np.int64)  # numpy makes floats of []
    if ids.dtype == jnp.int64:
        return ids
    if ids.dtype == jnp.uint64:
        return jax.lax.bitcast_convert_type(jnp.asarray(ids), jnp.int64)
    if ids.dtype in WIDENED:
        return jnp.asarray(ids).astype(jnp.int64)
    raise ArgumentTypeError(
        f"{where}: ids must be an integer array (int64, or int32 and uint64), got {ids.dtype} of "
        f"shape {ids.shape}"
    )


def step_of(step: Any, where: str) -> Any:
    """Return a step as an int64 scalar."""
    check_x64(where)
    given = step if isinstance(step, jax.Array) else np.asarray(step)
    if given.shape != () or not jnp.issubdtype(given.dtype, jnp.integer):
        raise ArgumentTypeError(
            f"{where}: step must be an int or an integer scalar, got {given.dtype} of shape "
            f"{given.shape}"
        )
    return given if given.dtype == jnp.int64 else given.astype(jnp.int64)


def ticket_of(ticket: Any, where: str) -> Any:
    """Return a ticket as the int64 scalar that a lookup gave."""
    given = ticket if isinstance(ticket, jax.Array) else np.asarray(ticket)
    if given.shape != () or not jnp.issubdtype(given.dtype, jnp.integer):
        raise ArgumentTypeError(
            f"{where}: ticket must be the integer scalar that the lookup gave beside the rows, got "
            f"{given.dtype} of shape {given.shape}"
        )
    return jnp.asarray(given, jnp.int64)


def grads_of(grads: Any, dim: int, where: str) -> Any:
    """Return the gradients of rows of some dim as float32."""
    given = grads if isinstance(grads, jax.Array) else np.asarray(grads)
    if not jnp.issubdtype(given.dtype, jnp.floating):
        raise ArgumentTypeError(f"{where}: gradients must be floats, got {given.dtype}")
    if given.shape[-1:] != (dim,):
        raise ArgumentError(
            f"{where}: gradients of shape {given.shape} are not those of rows of dim {dim}"
        )
    return jnp.asarray(given, jnp.float32)


def rate_of(lr: Any, where: str) -> Any:
    """Return a learning rate as a float64 scalar, of Python or, under jit, of JAX."""
    given = lr if isinstance(lr, jax.Array) else np.asarray(lr)
    kinds = (jnp.floating, jnp.integer)
    if given.shape != () or not any(jnp.issubdtype(given.dtype, kind) for kind in kinds):
        raise ArgumentTypeError(
            f"{where}: lr must be a number or a scalar, as an optax schedule gives it for a step; "
            f"got {type(lr).__name__}, {given.dtype} of shape {given.shape}"
        )
    is_traced = isinstance(given, jax.core.Tracer)
    return given.astype(jnp.float64) if is_traced else float(given)


def bags_of(
    ids: Any, offsets: Any, weights: Any, mode: Any, padding_id: int | None, where: str
) -> Bags:
    """Return the bags of ids: by offsets, or along the last axis."""
    keys = keys_of(ids, where)
    mode = check_mode(mode, where)
    if weights is not None:
        weights = jax.lax.stop_gradient(jnp.asarray(weights, jnp.float32))
        if weights.shape != keys.shape:
            raise ArgumentError(
                f"{where}: weights must be one for each id, {keys.shape}, got {weights.shape}"
            )
    factors = np.zeros(0, np.float32) if weights is None else weights
    padding_id = check_padding(padding_id, where, INTEGERS)
    if offsets is None:
        if keys.ndim < 2:
            raise ArgumentError(
                f"{where}: ids must be (..., length), or (n,) with offsets; got {keys.shape}"
            )
        none = np.zeros(0, np.int64)
        shape = keys.shape[:-1]
        return Bags(keys, none, factors, mode, keys.shape[-1], padding_id, shape)
    bounds = keys_of(offsets, f"{where}: offsets")
    if keys.ndim != 1 or bounds.ndim != 1 or len(bounds) == 0:
        raise ArgumentError(
            f"{where}: ids must be (n,) and offsets (n_bags + 1,); got {keys.shape} and "
            f"{bounds.shape}"
        )
    return Bags(keys, bounds, factors, mode, -1, padding_id, (len(bounds) - 1,))


def bags_of_one(keys: Any, padding_id: int) -> Bags:
    """Return a bag for each id: where one of them fills up, the bag is empty, and its row 0."""
    offsets, weights = np.zeros(0, np.int64), np.zeros(0, np.float32)
    return Bags(keys, offsets, weights, "sum", 1, padding_id, keys.shape)
