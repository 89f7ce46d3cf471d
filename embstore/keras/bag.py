"""EmbeddingBag: bags of ids to one row each."""

from typing import Any

import keras

from embstore import Table
from embstore._adapters import Mode
from embstore._keras.layer import BagsLayer
from embstore._keras.shared import SharedTable
from embstore.keras.backend import lookups_of_backend


@keras.saving.register_keras_serializable("embstore.keras")
class EmbeddingBag(BagsLayer):
    """Pooled rows of bags of ids: features that hold any number of ids.

    Parameters
    ----------
    table
        A `Table`, which other layers may use too; or None, and `parameters` make one.
    mode
        "sum" of row times weight; "mean" divides it by the number of ids in the bag, padding
        excepted, "sqrtn" by the square root of that.
    padding_id
        An id that fills up: it is neither looked up, counted nor trained.
    **parameters
        As for `Embedding`.

    Notes
    -----
    Called with ids (..., length), and weights of the same shape or none, it gives (..., dim): bags
    lie along the last axis. Weights are constants. A bag of nothing but padding is 0.

    Examples
    --------
    >>> import numpy as np, embstore as es
    >>> from embstore.keras import EmbeddingBag
    >>> table = es.Table(dim=2, optimizer=es.SGD(lr=0.1), default_row=2.0)
    >>> tags = EmbeddingBag(table, mode="sum", padding_id=0)
    >>> [[float(x) for x in bag] for bag in tags(np.array([[7, 5, 0], [0, 0, 0]]))]
    [[4.0, 4.0], [0.0, 0.0]]
    """

    def __init__(
        self,
        table: Table | SharedTable | None = None,
        *,
        mode: Mode = "mean",
        padding_id: int | None = None,
        **parameters: Any,
    ) -> None:
        self.lookups = lookups_of_backend()
        super().__init__(table, mode, padding_id, True, parameters)
