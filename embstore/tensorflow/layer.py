"""What both layers share: the table, its anchor among the weights, and how models are saved."""

import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from embstore import ArgumentError, Table
from embstore._adapters import check_padding, table_of
from embstore.tensorflow.names import NamedTable

OF_LAYER = ("name", "dtype", "trainable")


class Guard:
    """Marks a variable as the anchor of a table; as its constraint, it refuses other optimizers.

    Keras calls the constraint of each variable that an optimizer has updated.
    """

    def __init__(self, table: NamedTable, is_fused: bool) -> None:
        self.table = table
        self.is_fused = is_fused

    def __call__(self, variable: Any) -> Any:
        """Raise, but for a table that is trained in backward."""
        if self.is_fused:
            return variable
        raise ArgumentError(
            f"table {self.table.table.name!r} is trained by no Keras optimizer: wrap the one that "
            f"you have, as in model.compile(optimizer=embstore.tensorflow.Optimizer('adam')), or "
            f"make the layer with fused=True"
        )


class TableLayer(keras.layers.Layer):
    """A layer whose rows live in a table.

    With ``training=True`` a lookup counts its ids, admits and inserts them; without, and where
    ``layer.trainable`` is False, it only reads.
    """

    def __init__(
        self,
        table: Table | NamedTable | None,
        padding_id: int | None,
        fused: bool,
        parameters: dict[str, Any],
    ) -> None:
        where = type(self).__name__
        if keras.backend.backend() != "tensorflow":
            raise ArgumentError(
                f"{where}: embstore.tensorflow needs Keras on TensorFlow; it runs on "
                f"{keras.backend.backend()} (KERAS_BACKEND)"
            )
        of_layer = {name: parameters.pop(name) for name in OF_LAYER if name in parameters}
        super().__init__(autocast=False, **of_layer)
        if table is None and "name" in of_layer:
            parameters["name"] = of_layer["name"]
        if not isinstance(table, NamedTable):
            table = NamedTable.of(table_of(table, parameters, where, "input_dim"))
        self.named = table
        self.padding_id = check_padding(padding_id, where)
        self.fused = bool(fused)
        self.embedding_dim = self.table.dim
        self.supports_jit = False
        if self.compute_dtype == "float16":
            raise ArgumentError(
                f"{where}: mixed_float16 scales the loss, and skips steps, which a table does not "
                f"see; use mixed_bfloat16, or dtype='float32' for this layer"
            )
        if self.fused and self.table.optimizer is None:
            raise ArgumentError(
                f"{where}: fused=True trains table {self.table.name!r} in backward, but it has no "
                f"optimizer"
            )
        self.anchor = self.add_weight(
            name="anchor",
            shape=(),
            dtype="float32",
            initializer="zeros",
            constraint=Guard(self.named, self.fused),
            autocast=False,
        )
        self._saved: tuple[int, int] | None = None  # (rows, step) of weights whose rows are missing
        self.built = True

    @property
    def table(self) -> Table:
        """The table that holds the rows."""
        return self.named.table

    @property
    def table_key(self) -> str:
        """The name of the table in graphs, for `register` where an exported model is loaded."""
        return self.named.key

    @property
    def step(self) -> int:
        """The step of the next training lookup; set it to go on from another."""
        return self.named.clock.now

    @step.setter
    def step(self, step: int) -> None:
        self.named.clock.set(step)

    def build(self, *shapes: Any) -> None:
        """Do nothing: there is no shape to wait for."""

    def _is_training(self, training: Any) -> bool:
        """Return whether a lookup trains; raise where this layer cannot work."""
        where = type(self).__name__
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            raise ArgumentError(
                f"{where}: a table is one process's, and tf.distribute makes "
                f"{tf.distribute.get_strategy().num_replicas_in_sync} replicas of the model; train "
                f"in one replica, or on many machines by the sharded modules of embstore.torch"
            )
        if self._saved is not None:
            self._check_rows_came()
        if not training or not self.trainable:
            return False
        if self.table.optimizer is None:
            raise ArgumentError(
                f"{where}: table {self.table.name!r} has no optimizer: make it with one, as in "
                f"Table(dim=..., optimizer=embstore.Adagrad(lr=0.05)), or set trainable=False"
            )
        return True

    def _as_output(self, rows: Any) -> Any:
        return rows if self.compute_dtype == "float32" else tf.cast(rows, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Return what makes the layer again, the parameters of its table among it."""
        # With its id, by which Keras knows shared objects again while it loads a model; it adds ids
        # itself only where both users are at one level.
        table = keras.saving.serialize_keras_object(self.named)
        own = {
            "table": {**table, "shared_object_id": id(self.named)},
            "padding_id": self.padding_id,
            "fused": self.fused,
        }
        config: dict[str, Any] = super().get_config()
        return {**config, **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Return a layer over a new table; layers that shared one share it again."""
        table = keras.saving.deserialize_keras_object(config["table"])
        return cls(**{**config, "table": table})

    def save_own_variables(self, store: Any) -> None:
        """Save the numbers of rows and steps: by them a loaded model knows that its rows came."""
        store["saved"] = np.array([len(self.table), self.table.step], np.int64)

    def load_own_variables(self, store: Any) -> None:
        """Take note of the rows that are to come."""
        rows, step = np.asarray(store["saved"]).tolist()
        self._saved = (rows, step)

    def save_assets(self, dir_path: str) -> None:
        """Save the table as a checkpoint inside of the .keras file."""
        self.table.save(os.path.join(dir_path, "table"))

    def load_assets(self, dir_path: str) -> None:
        """Restore the table, in place, from the checkpoint inside of the .keras file."""
        self.table.restore(os.path.join(dir_path, "table"))
        self.named.clock.set_behind(self.table)
        self._saved = None

    def _check_rows_came(self) -> None:
        """Raise if weights were loaded without rows, and the table does not have them."""
        saved, here = self._saved, (len(self.table), self.table.step)
        if saved != here:
            raise ArgumentError(
                f"{type(self).__name__}: the weights that were loaded are of table "
                f"{self.table.name!r} with {saved[0] if saved else 0} rows, and bring none of them "
                f"(it has {here[0]}): save whole models as .keras, or restore the table by "
                f"layer.table.restore(checkpoint)"
            )
        self._saved = None
        self.named.clock.set_behind(self.table)
