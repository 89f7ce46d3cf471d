"""Embedding: ids of any shape to rows, the place of ``keras.layers.Embedding``."""

from typing import Any

import keras

from embstore import Table
from embstore._keras.layer import RowsLayer
from embstore._keras.shared import SharedTable
from embstore.keras.backend import lookups_of_backend


@keras.saving.register_keras_serializable("embstore.keras")
class Embedding(RowsLayer):
    r"""Rows of a dynamic table for ids, as ``keras.layers.Embedding`` without an input_dim.

    Parameters
    ----------
    table
        A `Table`, which other layers may use too; or None, and `parameters` make one.
    padding_id
        An id that fills up: its row is zeros, it is neither looked up, counted nor trained, and it
        is what the layer masks (as mask_zero does with 0).
    **parameters
        ``name``, ``dtype`` and ``trainable`` of the layer; the others are of the `Table` to be
        made, ``dim=16, optimizer=es.Adagrad(lr=0.05), admission=...``, whose name is the layer's.

    Attributes
    ----------
    table : Table
        After the updates that were begun.
    step : int
        The step of the next training lookup.

    Notes
    -----
    Called with int64 ids, all 2\*\*64 of them legal, it gives (\*shape, dim).
    It counts and inserts with ``training=True`` alone, which ``fit`` says and ``predict`` does not.
    The table is trained in backward by its own optimizer; what a model is compiled with trains the
    dense part.

    Examples
    --------
    >>> import keras, numpy as np, embstore as es
    >>> from embstore.keras import Embedding
    >>> user = Embedding(dim=4, optimizer=es.Adagrad(lr=0.1), name="user")
    >>> ids = keras.Input((), dtype="int64")
    >>> model = keras.Model(ids, keras.layers.Dense(1)(user(ids)))
    >>> model.compile(optimizer="adam", loss="mse")
    >>> _ = model.fit(np.array([7, -5, 2**62, 7]), np.ones((4, 1)), batch_size=2, verbose=0)
    >>> len(user.table), user.step
    (3, 2)
    """

    def __init__(
        self,
        table: Table | SharedTable | None = None,
        *,
        padding_id: int | None = None,
        **parameters: Any,
    ) -> None:
        self.lookups = lookups_of_backend()
        super().__init__(table, padding_id, True, parameters)
