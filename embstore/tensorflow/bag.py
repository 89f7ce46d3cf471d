"""EmbeddingBag: bags of ids to one row each, the place of ``tf.nn.embedding_lookup_sparse``."""

from typing import Any

import keras

from embstore import Table
from embstore._adapters import Mode
from embstore._keras.layer import BagsLayer
from embstore._keras.shared import SharedTable
from embstore.tensorflow import lookups


@keras.saving.register_keras_serializable("embstore")
class EmbeddingBag(BagsLayer):
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

    lookups = lookups

    def __init__(
        self,
        table: Table | SharedTable | None = None,
        *,
        mode: Mode = "mean",
        padding_id: int | None = None,
        train_weights: bool = False,
        fused: bool = False,
        **parameters: Any,
    ) -> None:
        super().__init__(table, mode, padding_id, fused, parameters)
        lookups.check_fused(self)
        self.train_weights = bool(train_weights)

    def get_config(self) -> dict[str, Any]:
        """Return what makes the layer again, the parameters of its table among it."""
        own = {"train_weights": self.train_weights, "fused": self.fused}
        return {**super().get_config(), **own}
