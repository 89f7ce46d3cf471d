"""Embedding: ids of any shape to rows, the place of ``keras.layers.Embedding``."""

from typing import Any

import keras
import tensorflow as tf

from embstore import Table
from embstore.tensorflow.inputs import as_int64, bags_of_one, without_padding
from embstore.tensorflow.layer import TableLayer
from embstore.tensorflow.names import NamedTable


@keras.saving.register_keras_serializable("embstore")
class Embedding(TableLayer):
    r"""Rows of a dynamic table for ids, as ``keras.layers.Embedding`` without an input_dim.

    Parameters
    ----------
    table
        A `Table`, which other layers may use too; or None, and `parameters` make one.
    padding_id
        An id that fills up: its row is zeros, it is neither looked up, counted nor trained, and it
        is what the layer masks (as mask_zero does with 0).
    fused
        Train in backward, at once; by default gradients wait for `Optimizer`. Nothing can clip,
        scale or accumulate them then, and any Keras optimizer serves the dense part.
    **parameters
        ``name``, ``dtype`` and ``trainable`` of the layer; the others are of the `Table` to be
        made, ``dim=16, optimizer=es.Adagrad(lr=0.05), admission=...``, whose name is the layer's.

    Attributes
    ----------
    table : Table
    table_key : str
        The name of the table in graphs.
    step : int
        The step of the next training lookup.

    Notes
    -----
    Called with int64 ids, all 2**64 of them legal, it gives (\*shape, dim) for a tensor, a ragged
    tensor of rows for a ragged one, and for a sparse one that is filled from the left.
    It counts and inserts with ``training=True`` alone, which ``fit`` says and ``predict`` does not.

    Examples
    --------
    >>> import tensorflow as tf, embstore as es
    >>> from embstore.tensorflow import Embedding
    >>> user = Embedding(dim=4, optimizer=es.SGD(lr=1.0), fused=True, name="user")
    >>> with tf.GradientTape() as tape:
    ...     loss = tf.reduce_sum(user(tf.constant([[7, -5], [7, 2**62]]), training=True))
    >>> _ = tape.gradient(loss, user.trainable_variables)
    >>> len(user.table), user.step
    (3, 1)
    """

    def __init__(
        self,
        table: Table | NamedTable | None = None,
        *,
        padding_id: int | None = None,
        fused: bool = False,
        **parameters: Any,
    ) -> None:
        super().__init__(table, padding_id, fused, parameters)
        self.supports_masking = padding_id is not None

    def call(self, ids: Any, training: Any = False) -> Any:
        """Return the rows of ids, in the form of the ids."""
        is_training, where = self._is_training(training), type(self).__name__
        if isinstance(ids, tf.SparseTensor):
            ids = tf.RaggedTensor.from_sparse(ids)
        if isinstance(ids, tf.RaggedTensor):
            flat = as_int64(ids.flat_values, where)
            return ids.with_flat_values(self._as_output(self._rows(flat, is_training)))
        return self._as_output(self._rows(as_int64(ids, where), is_training))

    def _rows(self, ids: Any, is_training: bool) -> Any:
        named = self.named
        if self.padding_id is not None:
            return self._padded(ids, is_training)
        if is_training:
            return named.ops.lookup(named, self.anchor.value, ids, self.fused)
        return named.ops.find(named, ids)

    def _padded(self, ids: Any, is_training: bool) -> Any:
        """Return rows, zeros for padding: those of bags of one id or none."""
        named, shape = self.named, tf.shape(ids)
        assert self.padding_id is not None
        bags = without_padding(bags_of_one(tf.reshape(ids, [-1])), self.padding_id)
        given = bags.flat, bags.offsets, tf.zeros((0,)), "sum"
        if is_training:
            rows = named.ops.pooled_lookup(named, self.anchor.value, *given, self.fused)
        else:
            rows = named.ops.pooled(named, *given)
        return tf.ensure_shape(
            tf.reshape(rows, tf.concat([shape, [self.embedding_dim]], 0)),
            ids.shape.concatenate(self.embedding_dim),
        )

    def compute_mask(self, ids: Any, mask: Any = None) -> Any:
        """Return where ids are not padding, or None without a padding id."""
        if self.padding_id is None or isinstance(ids, tf.RaggedTensor | tf.SparseTensor):
            return None
        return tf.not_equal(as_int64(ids, "Embedding"), self.padding_id)

    def compute_output_spec(self, ids: Any, training: Any = False) -> Any:
        """Return the shape and dtype of the rows, for models that are being built."""
        shape = (*ids.shape, self.embedding_dim)
        is_ragged = bool(getattr(ids, "ragged", False) or getattr(ids, "sparse", False))
        form = {"ragged": True} if is_ragged else {}
        return keras.KerasTensor(shape, dtype=self.compute_dtype, **form)
