"""Embedding: ids of any shape to rows, the place of ``keras.layers.Embedding``."""

from typing import Any

import keras

from embstore import Table
from embstore._keras.layer import RowsLayer
from embstore._keras.shared import SharedTable
from embstore.tensorflow import lookups


@keras.saving.register_keras_serializable("embstore")
class Embedding(RowsLayer):
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

    lookups = lookups

    def __init__(
        self,
        table: Table | SharedTable | None = None,
        *,
        padding_id: int | None = None,
        fused: bool = False,
        **parameters: Any,
    ) -> None:
        super().__init__(table, padding_id, fused, parameters)
        lookups.check_fused(self)

    def get_config(self) -> dict[str, Any]:
        """Return what makes the layer again, the parameters of its table among it."""
        return {**super().get_config(), "fused": self.fused}
