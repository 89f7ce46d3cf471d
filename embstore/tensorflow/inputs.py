"""What users call ids, as flat int64 tensors and bags: tensors, ragged and sparse tensors."""

from typing import Any, NamedTuple

import tensorflow as tf

from embstore import ArgumentError, ArgumentTypeError

WIDENED = (tf.int32, tf.uint32)


class Bags(NamedTuple):
    """Flat ids, where each bag of them begins and the last one ends, and a weight for each or none.

    `shape` is that of the bags, as a tensor; None where they are in one row.
    """

    flat: Any
    offsets: Any
    weights: Any
    shape: Any = None


def as_int64(ids: Any, where: str) -> Any:
    """Return ids of any integer dtype that means keys as int64: uint64 by its bits."""
    if ids.dtype == tf.int64:
        return ids
    if ids.dtype == tf.uint64:
        return tf.bitcast(ids, tf.int64)
    if ids.dtype in WIDENED:
        return tf.cast(ids, tf.int64)
    raise ArgumentTypeError(
        f"{where}: ids must be an integer tensor (int64, or int32 and uint64), got "
        f"{ids.dtype.name} of shape {ids.shape}"
    )


def bags_of(ids: Any, weights: Any, where: str) -> Bags:
    """Return the bags of ids: along the last axis, the rows of ragged and of sparse tensors."""
    if isinstance(ids, tf.RaggedTensor):
        _check_rank(ids, ids.shape.rank == 2 and ids.ragged_rank == 1, where)
        if isinstance(weights, tf.RaggedTensor):
            _check_same(weights.row_splits, ids.row_splits, where)
            weights = weights.flat_values
        flat = as_int64(ids.flat_values, where)
        return Bags(flat, tf.cast(ids.row_splits, tf.int64), _flat(weights, flat, where))
    if isinstance(ids, tf.SparseTensor):
        _check_rank(ids, ids.shape.rank == 2, where)
        if isinstance(weights, tf.SparseTensor):
            _check_same(weights.indices, ids.indices, where)
            weights = weights.values
        flat, in_bag = as_int64(ids.values, where), ids.indices[:, 0]
        tf.debugging.assert_non_negative(
            in_bag[1:] - in_bag[:-1],
            f"{where}: the indices of a SparseTensor must be in order, as tf.sparse.reorder makes",
        )
        places = tf.range(ids.dense_shape[0] + 1)
        offsets = tf.searchsorted(in_bag, places, out_type=tf.int64)
        return Bags(flat, offsets, _flat(weights, flat, where))
    _check_rank(ids, ids.shape.rank is None or ids.shape.rank >= 2, where)
    if weights is not None:
        weights = tf.convert_to_tensor(weights)
        if not weights.shape.is_compatible_with(ids.shape):
            raise ArgumentError(
                f"{where}: weights must be one for each id, {ids.shape}, got {weights.shape}"
            )
    flat = tf.reshape(as_int64(ids, where), [-1])
    shape = tf.shape(ids, out_type=tf.int64)
    offsets = tf.range(tf.reduce_prod(shape[:-1]) + 1) * shape[-1]
    return Bags(flat, offsets, _flat(weights, flat, where), shape[:-1])


def without_padding(bags: Bags, padding_id: int) -> Bags:
    """Return bags without the ids that fill up."""
    is_id = tf.not_equal(bags.flat, tf.constant(padding_id, tf.int64))
    n_before = tf.concat([[0], tf.cumsum(tf.cast(is_id, tf.int64))], 0)
    weights = bags.weights
    if weights is not None:
        weights = tf.boolean_mask(weights, is_id)
    flat, offsets = tf.boolean_mask(bags.flat, is_id), tf.gather(n_before, bags.offsets)
    return bags._replace(flat=flat, offsets=offsets, weights=weights)


def bags_of_one(flat: Any) -> Bags:
    """Return a bag for each id: where one of them fills up, its bag gets empty, and its row 0."""
    return Bags(flat, tf.range(tf.size(flat, out_type=tf.int64) + 1), None)


def _flat(weights: Any, flat: Any, where: str) -> Any:
    if weights is None:
        return None
    weights = tf.reshape(tf.cast(tf.convert_to_tensor(weights), tf.float32), [-1])
    n, wanted = weights.shape[0], flat.shape[0]
    if n is not None and wanted is not None and n != wanted:
        raise ArgumentError(f"{where}: weights must be one for each id, {wanted}, got {n}")
    if n is None or wanted is None:  # no weights at all would mean none to the ops
        message = f"{where}: weights must be one for each id"
        tf.debugging.assert_equal(tf.size(weights), tf.size(flat), message)
    return weights


def _check_same(places: Any, of_ids: Any, where: str) -> None:
    """Raise if weights lie elsewhere than the ids, in a graph when it runs."""
    if places is not of_ids:
        message = f"{where}: weights must lie where the ids do"
        tf.debugging.assert_equal(tf.shape(places), tf.shape(of_ids), message)
        tf.debugging.assert_equal(places, tf.cast(of_ids, places.dtype), message)


def _check_rank(ids: Any, is_right: bool, where: str) -> None:
    if not is_right:
        raise ArgumentError(
            f"{where}: ids must be bags: a tensor of shape (..., length), or a ragged or sparse "
            f"tensor of shape (n_bags, None); got {type(ids).__name__} of shape {ids.shape}"
        )
