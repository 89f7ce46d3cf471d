"""Layers whose rows live in a table: what Keras asks of them, on whatever framework it runs.

A subclass names by `lookups` a module of its framework, which looks up:

- ``check(where)`` raises where Keras runs on another framework, or this one cannot hold ids;
- ``name_of(table)`` gives the one `Named` of a table;
- ``rows(layer, ids, is_training)``, ``bags(layer, ids, weights, is_training)`` and ``mask(layer,
  ids)`` are what the layers compute;
- ``state_of(named)`` lists the variables of a table that Keras has to carry from step to step;
- ``SUPPORTS_JIT`` says whether Keras may compile models with the layers by XLA.
"""

import os
import warnings
from typing import Any, Protocol

import keras
import numpy as np

from embstore import ArgumentError, ArgumentTypeError, EmbstoreWarning, Table
from embstore._adapters import Mode, check_mode, check_padding, step_behind, table_of
from embstore._keras.shared import SharedTable

N_SLOTS = 16  # of backward passes whose gradients may wait for an optimizer, and be told apart
OF_LAYER = ("name", "dtype", "trainable")


class Clock(Protocol):
    """The step that a table is trained at."""

    @property
    def now(self) -> int:
        """The step of the next training lookup."""

    def set(self, now: int) -> None:
        """Set the step."""


class Named(Protocol):
    """A table as a framework knows it."""

    @property
    def table(self) -> Table:
        """The table."""

    @property
    def key(self) -> str:
        """The name of the table in graphs."""

    @property
    def clock(self) -> Clock:
        """The step that it is trained at."""


class Guard(keras.constraints.Constraint):
    """Marks a variable as the anchor of a table; as its constraint, it refuses other optimizers.

    Keras calls the constraint of each variable that an optimizer has updated.
    """

    def __init__(self, named: Any, is_fused: bool) -> None:
        self.named = named
        self.is_fused = is_fused

    def __call__(self, variable: Any) -> Any:
        """Raise, but for a table that is trained in backward."""
        if self.is_fused:
            return variable
        raise ArgumentError(
            f"table {self.named.table.name!r} is trained by no Keras optimizer: wrap the one that "
            f"you have, as in model.compile(optimizer=embstore.tensorflow.Optimizer('adam')), or "
            f"make the layer with fused=True"
        )


class Anchor(keras.Variable):
    """The variable of a layer that makes Keras ask for the gradients of its table."""

    def assign(self, value: Any) -> Any:
        """Assign a value; those of saved weights bring no rows, and a warning says so."""
        if isinstance(value, np.ndarray | np.generic):
            guard = guard_of(self)
            name = None if guard is None else guard.named.table.name
            warnings.warn(
                f"weights that are set, as by EarlyStopping(restore_best_weights=True) and from "
                f".h5 files, bring no rows: table {name!r} keeps those that it has; restore it by "
                f"layer.table.restore(checkpoint)",
                EmbstoreWarning,
                stacklevel=3,
            )
        return super().assign(value)


def guard_of(variable: Any) -> Guard | None:
    """Return what marks a variable as the anchor of a table; None for others."""
    guard = getattr(variable, "constraint", None)
    return guard if isinstance(guard, Guard) else None


def named_tables_of(model: Any) -> list[Any]:
    """Return the tables of a model or layer as their framework knows them, each once."""
    guards = [guard for v in model.variables if (guard := guard_of(v)) is not None]
    return [*dict.fromkeys(guard.named for guard in guards)]


def tables_of(model: Any) -> list[Table]:
    """Return the tables of a model or layer, each once, after the updates that were begun.

    Examples
    --------
    >>> import keras, embstore as es
    >>> from embstore.keras import Embedding, tables_of
    >>> page = Embedding(dim=4, optimizer=es.SGD(lr=0.1), name="page")
    >>> [table.name for table in tables_of(keras.Sequential([page, keras.layers.Dense(1)]))]
    ['page']
    """
    return [named.table for named in settled_tables_of(model)]


def settled_tables_of(model: Any) -> list[Any]:
    """Return the tables as `named_tables_of`, after the updates that were begun."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()  # within fit, the trainer has the values of the variables
    for variable in model.variables:
        if guard_of(variable) is not None:
            wait_for(variable)
    return named_tables_of(model)


def wait_for(anchor: Any) -> None:
    """Return when the updates behind the value of an anchor are in the table: JAX queues them."""
    value: Any = getattr(anchor, "_value", None)  # None within fit, whose trainer has it
    if hasattr(value, "block_until_ready") and not value.is_deleted():
        value.block_until_ready()


def outermost_of_call(layer: Any) -> Any:
    """Return the outermost layer of a call that a layer is in: the model, where there is one.

    On JAX fit shows it while it builds the model, and not while it trains.
    """
    try:  # Keras has no public name for it
        outermost = layer._get_call_context().entry_layer
        layer._maybe_reset_call_context()  # to ask begins a call where there is none
    except AttributeError:
        return None
    return outermost


class TableLayer(keras.layers.Layer):
    """A layer whose rows live in a table.

    With ``training=True`` a lookup counts its ids, admits and inserts them; without, and where
    ``layer.trainable`` is False, it only reads.
    """

    lookups: Any

    def __init__(
        self,
        table: Table | SharedTable | None,
        padding_id: int | None,
        fused: bool,
        parameters: dict[str, Any],
    ) -> None:
        where = type(self).__name__
        self.lookups.check(where)
        of_layer = {name: parameters.pop(name) for name in OF_LAYER if name in parameters}
        super().__init__(autocast=False, **of_layer)
        if table is None and "name" in of_layer:
            parameters["name"] = of_layer["name"]
        if isinstance(table, SharedTable):
            table = table.table
        self.named: Named = self.lookups.name_of(table_of(table, parameters, where, "input_dim"))
        self.padding_id = check_padding(padding_id, where)
        self.fused = bool(fused)
        self.embedding_dim = self.named.table.dim
        self.supports_jit = self.lookups.SUPPORTS_JIT
        self._check(where)
        with keras.name_scope(self.name):
            self.anchor = Anchor(
                "zeros", () if self.fused else (N_SLOTS,), "float32", name="anchor", autocast=False
            )
        self.anchor.constraint = Guard(self.named, self.fused)
        self.state = self.lookups.state_of(self.named)
        self._saved: tuple[int, int] | None = None  # (rows, step) of weights whose rows are missing
        self.built = True

    @property
    def table(self) -> Table:
        """The table that holds the rows."""
        wait_for(self.anchor)
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

    def _check(self, where: str) -> None:
        """Raise where this layer could not be trained as it says."""
        if self.compute_dtype == "float16":
            raise ArgumentError(
                f"{where}: mixed_float16 scales the loss, and skips steps, which a table does not "
                f"see; use mixed_bfloat16"
            )
        if not keras.backend.is_float_dtype(self.compute_dtype):
            raise ArgumentError(
                f"{where}: dtype is that of the rows which the layer gives, a float; got "
                f"{self.compute_dtype} (that of ids stands in keras.Input)"
            )

    def _check_loss(self) -> None:
        """Raise if the optimizer of the model that is called scales the loss."""
        optimizer = getattr(outermost_of_call(self), "optimizer", None)
        factor = getattr(optimizer, "loss_scale_factor", None)
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) or factor not in (None, 1):
            raise ArgumentError(
                f"{type(self).__name__}: {type(optimizer).__name__} scales the loss, and with it "
                f"the gradients of table {self.named.table.name!r}, which nobody scales back: "
                f"compile without loss_scale_factor, and under mixed_float16 with "
                f"auto_scale_loss=False"
            )

    def _check_ids(self, ids: Any) -> None:
        """Raise for floats; the lookups refuse what else is no id."""
        dtype = getattr(ids, "dtype", None)
        if dtype is not None and keras.backend.is_float_dtype(dtype):
            raise ArgumentTypeError(
                f"{type(self).__name__}: ids must be integers (int64, or int32 and uint64), got "
                f"{keras.backend.standardize_dtype(dtype)} of shape {ids.shape}; models cast what "
                f"has no keras.Input(..., dtype='int64')"
            )

    def _is_training(self, training: Any) -> bool:
        """Return whether a lookup trains; raise where this layer cannot work."""
        self._check_rows_came()
        if not self.trainable:
            return False
        self._check_loss()
        if not training:
            return False
        if self.named.table.optimizer is None:
            raise ArgumentError(
                f"{type(self).__name__}: table {self.named.table.name!r} has no optimizer: make it "
                f"with one, as in Table(dim=..., optimizer=embstore.Adagrad(lr=0.05)), or set "
                f"trainable=False"
            )
        return True

    def get_config(self) -> dict[str, Any]:
        """Return what makes the layer again, the parameters of its table among it."""
        # With its id, by which Keras knows shared objects again while it loads a model; it adds ids
        # itself only where both users are at one level.
        table = self.named.table
        shared = keras.saving.serialize_keras_object(SharedTable(table))
        own = {
            "table": {**shared, "shared_object_id": id(table)},
            "padding_id": self.padding_id,
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
        if len(self.table) or self.table.step:  # graphs may hold it, which ask nobody
            self._check_rows_came()

    def save_assets(self, dir_path: str) -> None:
        """Save the table as a checkpoint inside of the .keras file."""
        self.table.save(os.path.join(dir_path, "table"))

    def load_assets(self, dir_path: str) -> None:
        """Restore the table, in place, from the checkpoint inside of the .keras file."""
        self.table.restore(os.path.join(dir_path, "table"))
        self._go_on_behind()

    def _check_rows_came(self) -> None:
        """Raise if weights were loaded without rows, and the table does not have them."""
        if self._saved is None:
            return
        saved, here = self._saved, (len(self.table), self.table.step)
        if saved != here:
            raise ArgumentError(
                f"{type(self).__name__}: the weights that were loaded are of table "
                f"{self.table.name!r} with {saved[0]} rows at step {saved[1]}, and bring none of "
                f"them (it has {here[0]}, at step {here[1]}): save whole models as .keras, or "
                f"restore the table by layer.table.restore(checkpoint)"
            )
        self._go_on_behind()

    def _go_on_behind(self) -> None:
        """Go on at the step behind the table's last, with the rows that it has."""
        self._saved = None
        self.named.clock.set(step_behind(self.named.table))


class RowsLayer(TableLayer):
    """Ids of any shape to rows."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.supports_masking = self.padding_id is not None

    def call(self, ids: Any, training: Any = False) -> Any:
        """Return the rows of ids, in the form of the ids."""
        self._check_ids(ids)
        return self.lookups.rows(self, ids, self._is_training(training))

    def compute_mask(self, ids: Any, mask: Any = None) -> Any:
        """Return where ids are not padding, or None without a padding id."""
        if self.padding_id is None:
            return None
        if isinstance(ids, keras.KerasTensor):
            return keras.ops.not_equal(ids, self.padding_id)
        return self.lookups.mask(self, ids)

    def compute_output_shape(self, shape: Any) -> tuple[Any, ...]:
        """Return the shape of the rows, for layers around this one, as TimeDistributed."""
        return (*shape, self.embedding_dim)

    def compute_output_spec(self, ids: Any, training: Any = False) -> Any:
        """Return the shape and dtype of the rows, for models that are being built."""
        shape = self.compute_output_shape(ids.shape)
        is_ragged = bool(getattr(ids, "ragged", False) or getattr(ids, "sparse", False))
        form = {"ragged": True} if is_ragged else {}
        return keras.KerasTensor(shape, dtype=self.compute_dtype, **form)


class BagsLayer(TableLayer):
    """Bags of ids to one row each."""

    def __init__(
        self,
        table: Table | SharedTable | None,
        mode: Mode,
        padding_id: int | None,
        fused: bool,
        parameters: dict[str, Any],
    ) -> None:
        mode = check_mode(mode, type(self).__name__)
        super().__init__(table, padding_id, fused, parameters)
        self.mode = mode

    def call(self, ids: Any, weights: Any = None, training: Any = False) -> Any:
        """Return the pooled rows, (n_bags, dim) or (..., dim)."""
        self._check_ids(ids)
        return self.lookups.bags(self, ids, weights, self._is_training(training))

    def compute_output_shape(self, shape: Any, weights_shape: Any = None) -> tuple[Any, ...]:
        """Return the shape of the pooled rows, for layers around this one, as TimeDistributed."""
        return (*shape[:-1], self.embedding_dim)

    def compute_output_spec(self, ids: Any, weights: Any = None, training: Any = False) -> Any:
        """Return the shape and dtype of the rows, for models that are being built."""
        return keras.KerasTensor(self.compute_output_shape(ids.shape), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Return what makes the layer again, the parameters of its table among it."""
        return {**super().get_config(), "mode": self.mode}
