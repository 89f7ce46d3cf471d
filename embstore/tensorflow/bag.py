"""EmbeddingBag: bags of ids to one row each, the place of ``tf.nn.embedding_lookup_sparse``."""

from typing import Any, Literal

import keras
import tensorflow as tf

from embstore import ArgumentError, ArgumentTypeError, Table
from embstore.tensorflow.inputs import Bags, bags_of, without_padding
from embstore.tensorflow.layer import TableLayer
from embstore.tensorflow.names import NamedTable

Mode = Literal["sum", "mean", "sqrtn"]
MODES = ("sum", "mean", "sqrtn")


@keras.saving.register_keras_serializable("embstore")
class EmbeddingBag(TableLayer):
    """Pooled rows of bags of ids, as Embedding with tf.nn.embedding_lookup_sparse's combiner.

    Parameters
    ----------
    table
        A `Table`, which other layers may use too; or None, and `parameters` make one.
    mode
        "sum" of row times weight; "mean" divides it by the number of ids in the bag, padding
        excepted, "sqrtn" by the square root of that.
    padding_id
        An id that fills up: it is neither looked up, counted nor trained.
    train_weights
        Give the weights of a call their gradient, by a slower way; without, weights are constants.
    fused, **parameters
        As for `Embedding`.

    Notes
    -----
    Called with ids, and weights of the same form or none: bags lie along the last axis of a tensor,
    (..., length) gives (..., dim); the rows of a ragged or sparse tensor (n_bags, None) are bags of
    any length. An empty bag is 0.

    Examples
    --------
    >>> import tensorflow as tf, embstore as es
    >>> from embstore.tensorflow import EmbeddingBag
    >>> tags = EmbeddingBag(dim=2, mode="mean", initializer=es.Constant(0.5), default_row=2.0)
    >>> tags(tf.ragged.constant([[7, 5], [], [7]], dtype=tf.int64)).numpy().tolist()
    [[2.0, 2.0], [0.0, 0.0], [2.0, 2.0]]
    """

    def __init__(
        self,
        table: Table | NamedTable | None = None,
        *,
        mode: Mode = "mean",
        padding_id: int | None = None,
        train_weights: bool = False,
        fused: bool = False,
        **parameters: Any,
    ) -> None:
        if mode not in MODES:
            error = ArgumentError if isinstance(mode, str) else ArgumentTypeError
            raise error(f"EmbeddingBag: mode must be one of {list(MODES)}, got {mode!r}")
        super().__init__(table, padding_id, fused, parameters)
        self.mode = mode
        self.train_weights = bool(train_weights)

    def call(self, ids: Any, weights: Any = None, training: Any = False) -> Any:
        """Return the pooled rows, (n_bags, dim) or (..., dim)."""
        is_training, where = self._is_training(training), type(self).__name__
        bags = bags_of(ids, weights, where)
        if self.padding_id is not None:
            bags = without_padding(bags, self.padding_id)
        if self.train_weights and bags.weights is not None and is_training:
            rows = self._weighted(bags)
        else:
            rows = self._pooled(bags, is_training)
        if bags.shape is not None and ids.shape.rank != 2:
            shape = tf.concat([bags.shape, [self.embedding_dim]], 0)
            rows = tf.reshape(rows, shape)
        if isinstance(ids, tf.SparseTensor | tf.RaggedTensor):
            return self._as_output(rows)
        return self._as_output(
            tf.ensure_shape(rows, ids.shape[:-1].concatenate(self.embedding_dim))
        )

    def _pooled(self, bags: Bags, is_training: bool) -> Any:
        named = self.named
        weights = tf.zeros((0,)) if bags.weights is None else tf.stop_gradient(bags.weights)
        given = bags.flat, bags.offsets, weights, self.mode
        if is_training:
            return named.ops.pooled_lookup(named, self.anchor.value, *given, self.fused)
        return named.ops.pooled(named, *given)

    def _weighted(self, bags: Bags) -> Any:
        """Pool in TensorFlow, for the gradient of the weights."""
        named = self.named
        rows = named.ops.lookup(named, self.anchor.value, bags.flat, self.fused)
        lengths = bags.offsets[1:] - bags.offsets[:-1]
        n_bags = tf.size(lengths)
        bag = tf.repeat(tf.range(n_bags), lengths)
        sums = tf.math.unsorted_segment_sum(rows * bags.weights[:, None], bag, n_bags)
        if self.mode == "sum":
            return sums
        n = tf.cast(tf.maximum(lengths, 1), tf.float32)[:, None]
        return sums / (n if self.mode == "mean" else tf.sqrt(n))

    def compute_output_spec(self, ids: Any, weights: Any = None, training: Any = False) -> Any:
        """Return the shape and dtype of the rows, for models that are being built."""
        return keras.KerasTensor((*ids.shape[:-1], self.embedding_dim), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Return what makes the layer again, the parameters of its table among it."""
        return {**super().get_config(), "mode": self.mode, "train_weights": self.train_weights}
