"""What the layers compute on TensorFlow, of tensors, ragged and sparse ones."""

from typing import Any

import keras
import tensorflow as tf

from embstore import ArgumentError, Table
from embstore.tensorflow.inputs import Bags, as_int64, bags_of, bags_of_one, without_padding
from embstore.tensorflow.names import NamedTable

SUPPORTS_JIT = False


def check(where: str) -> None:
    """Raise where Keras is not on TensorFlow."""
    if keras.backend.backend() != "tensorflow":
        raise ArgumentError(
            f"{where}: embstore.tensorflow needs Keras on TensorFlow; it runs on "
            f"{keras.backend.backend()} (KERAS_BACKEND), where embstore.keras has the layers"
        )


def check_fused(layer: Any) -> None:
    """Raise where a layer could not be trained in backward."""
    if layer.fused and layer.named.table.optimizer is None:
        raise ArgumentError(
            f"{type(layer).__name__}: fused=True trains table {layer.named.table.name!r} in "
            f"backward, but it has no optimizer"
        )


def name_of(table: Table) -> NamedTable:
    """Return the table as graphs know it."""
    return NamedTable.of(table)


def state_of(named: NamedTable) -> list[Any]:
    """Return nothing: TensorFlow carries variables by itself."""
    return []


def rows(layer: Any, ids: Any, is_training: bool) -> Any:
    """Return the rows of ids, in the form of the ids."""
    where = _check_replicas(layer)
    if isinstance(ids, tf.SparseTensor):
        ids = tf.RaggedTensor.from_sparse(ids)
    if isinstance(ids, tf.RaggedTensor):
        flat = as_int64(ids.flat_values, where)
        return ids.with_flat_values(_as_output(layer, _rows(layer, flat, is_training)))
    ids = as_int64(tf.convert_to_tensor(ids), where)
    return _as_output(layer, _rows(layer, ids, is_training))


def bags(layer: Any, ids: Any, weights: Any, is_training: bool) -> Any:
    """Return the pooled rows of bags, (n_bags, dim) or (..., dim)."""
    where = _check_replicas(layer)
    is_tensor = not isinstance(ids, tf.SparseTensor | tf.RaggedTensor)
    if is_tensor:
        ids = tf.convert_to_tensor(ids)
    given = bags_of(ids, weights, where)
    if layer.padding_id is not None:
        given = without_padding(given, layer.padding_id)
    if is_training and given.weights is not None and getattr(layer, "train_weights", False):
        pooled = _weighted(layer, given)
    else:
        pooled = _pooled(layer, given, is_training)
    if given.shape is not None and ids.shape.rank != 2:
        pooled = tf.reshape(pooled, tf.concat([given.shape, [layer.embedding_dim]], 0))
    if is_tensor:
        pooled = tf.ensure_shape(pooled, ids.shape[:-1].concatenate(layer.embedding_dim))
    return _as_output(layer, pooled)


def mask(layer: Any, ids: Any) -> Any:
    """Return where ids are not padding; None for ragged and sparse ones."""
    if isinstance(ids, tf.RaggedTensor | tf.SparseTensor):
        return None
    ids = as_int64(tf.convert_to_tensor(ids), type(layer).__name__)
    return tf.not_equal(ids, layer.padding_id)


def _check_replicas(layer: Any) -> str:
    """Return the name of the layer; raise where tf.distribute would train it apart."""
    where, strategy = type(layer).__name__, tf.distribute.get_strategy()
    if isinstance(strategy, tf.distribute.ParameterServerStrategy):
        raise ArgumentError(
            f"{where}: a table is one process's, and ParameterServerStrategy trains in others; "
            f"train in one process, or on many machines by the sharded modules of embstore.torch"
        )
    if strategy.num_replicas_in_sync > 1:
        raise ArgumentError(
            f"{where}: a table is one process's, and tf.distribute makes "
            f"{strategy.num_replicas_in_sync} replicas of the model; train in one replica, or on "
            f"many machines by the sharded modules of embstore.torch"
        )
    return where


def _rows(layer: Any, ids: Any, is_training: bool) -> Any:
    named = layer.named
    if layer.padding_id is not None:
        return _padded(layer, ids, is_training)
    if is_training:
        return named.ops.lookup(named, layer.anchor.value, ids, layer.fused)
    return named.ops.find(named, ids)


def _padded(layer: Any, ids: Any, is_training: bool) -> Any:
    """Return rows, zeros for padding: those of bags of one id or none."""
    shape = tf.shape(ids)
    given = without_padding(bags_of_one(tf.reshape(ids, [-1])), layer.padding_id)
    found = _pooled(layer, given, is_training, "sum")
    return tf.ensure_shape(
        tf.reshape(found, tf.concat([shape, [layer.embedding_dim]], 0)),
        ids.shape.concatenate(layer.embedding_dim),
    )


def _pooled(layer: Any, given: Bags, is_training: bool, mode: str | None = None) -> Any:
    named, mode = layer.named, mode or layer.mode
    weights = tf.zeros((0,)) if given.weights is None else tf.stop_gradient(given.weights)
    asked = given.flat, given.offsets, weights, mode
    if is_training:
        return named.ops.pooled_lookup(named, layer.anchor.value, *asked, layer.fused)
    return named.ops.pooled(named, *asked)


def _weighted(layer: Any, given: Bags) -> Any:
    """Pool in TensorFlow, for the gradient of the weights."""
    named = layer.named
    found = named.ops.lookup(named, layer.anchor.value, given.flat, layer.fused)
    lengths = given.offsets[1:] - given.offsets[:-1]
    n_bags = tf.size(lengths)
    bag = tf.repeat(tf.range(n_bags), lengths)
    sums = tf.math.unsorted_segment_sum(found * given.weights[:, None], bag, n_bags)
    if layer.mode == "sum":
        return sums
    n = tf.cast(tf.maximum(lengths, 1), tf.float32)[:, None]
    return sums / (n if layer.mode == "mean" else tf.sqrt(n))


def _as_output(layer: Any, rows: Any) -> Any:
    return rows if layer.compute_dtype == "float32" else tf.cast(rows, layer.compute_dtype)
