"""Lookups that are trained in backward: embed and embed_bags, for models that hide them."""

from typing import Any

import jax
import jax.numpy as jnp

from embstore import ArgumentError, ArgumentTypeError, Table
from embstore._adapters import Mode
from embstore.jax.functions import lookup, pooled, update_and_zero


def embed(table: Table, ids: Any, anchor: Any, step: Any, *, padding_id: int | None = None) -> Any:
    r"""Look up in training, and train the table in backward, at once.

    Parameters
    ----------
    table, ids, padding_id
        As for `lookup`.
    anchor
        A float scalar among the parameters of the model, ``jnp.zeros(())``: it makes JAX ask for
        the gradient of this lookup. Its own is 0, and is there after the update. The optimizer of
        the dense part takes it with the others: so the lookups of the next step come after the
        updates of this one.
    step
        The present step, an int or an integer scalar; under jit an argument.

    Returns
    -------
    jax.Array
        (\*shape, dim) in the table's dtype.

    Notes
    -----
    Nothing can clip or scale the gradient of the rows but what stands between them and the loss.
    A lookup counts with and without jax.grad: evaluate by `find`. JAX refuses jax.checkpoint, which
    would look up twice. Two lookups of one table in one loss have no order: join their ids.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, embstore as es
    >>> jax.config.update("jax_enable_x64", True)
    >>> from embstore.jax import embed
    >>> table = es.Table(dim=2, optimizer=es.SGD(lr=1.0), initializer=es.Constant(3.0), name="item")
    >>> params = {"anchor": jnp.zeros(())}
    >>> def loss(params, ids, step):
    ...     return embed(table, ids, params["anchor"], step).sum()
    >>> grads = jax.jit(jax.grad(loss))(params, jnp.array([7, 5, 7]), 0)
    >>> float(grads["anchor"]), table.find([7, 5]).tolist()
    (0.0, [[1.0, 1.0], [2.0, 2.0]])
    """

    def look(ids: Any, step: Any, anchor: Any) -> tuple[Any, Any]:
        return lookup(table, ids, step, padding_id=padding_id, after=anchor)

    return _trained(table, look, (ids,), anchor, step, "embed")


def embed_bags(
    table: Table,
    ids: Any,
    anchor: Any,
    step: Any,
    *,
    offsets: Any = None,
    weights: Any = None,
    mode: Mode = "mean",
    padding_id: int | None = None,
) -> Any:
    """Pool bags of ids in training, and train the table in backward, at once.

    Parameters
    ----------
    table, offsets, weights, mode, padding_id
        As for `pooled`.
    ids
        (..., length), bags along the last axis, or (n,) with offsets.
    anchor, step
        As for `embed`.

    Returns
    -------
    jax.Array
        (..., dim) or (n_bags, dim) float32.
    """

    def look(ids: Any, offsets: Any, weights: Any, step: Any, anchor: Any) -> tuple[Any, Any]:
        given = {"mode": mode, "padding_id": padding_id, "step": step, "after": anchor}
        rows, ticket = pooled(table, ids, offsets, weights, **given)
        return rows, ticket

    return _trained(table, look, (ids, offsets, weights), anchor, step, "embed_bags")


def _trained(
    table: Table, look: Any, given: tuple[Any, ...], anchor: Any, step: Any, where: str
) -> Any:
    """Return the rows of a lookup whose gradient trains the table."""
    anchor = _check_anchor(anchor, where)
    if isinstance(table, Table) and table.optimizer is None:
        raise ArgumentError(
            f"{where}: table {table.name!r} has no optimizer; read it by find, or make it with one"
        )

    @jax.custom_vjp
    def rows_of(anchor: Any, step: Any, given: Any) -> Any:
        return look(*given, step, anchor)[0]

    def forward(anchor: Any, step: Any, given: Any) -> tuple[Any, Any]:
        rows, ticket = look(*given, step, anchor)
        return rows, (ticket, step)

    def backward(kept: Any, grads: Any) -> tuple[Any, None, None]:
        _, zero = update_and_zero(table, kept[0], grads, kept[1], None, where)
        return zero.astype(anchor.dtype), None, None

    rows_of.defvjp(forward, backward)
    return rows_of(anchor, step, given)


def _check_anchor(anchor: Any, where: str) -> Any:
    given = jnp.asarray(anchor)
    if given.shape != () or not jnp.issubdtype(given.dtype, jnp.floating):
        raise ArgumentTypeError(
            f"{where}: anchor must be a float scalar among the model's parameters, jnp.zeros(()), "
            f"got {given.dtype} of shape {given.shape}"
        )
    return given
