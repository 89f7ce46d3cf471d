"""Optimizer: the tables of a model, trained beside what a Keras optimizer trains."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from embstore import ArgumentError, ArgumentTypeError, EmbstoreWarning
from embstore._keras.layer import guard_of, named_tables_of
from embstore.tensorflow.names import NamedTable

REFUSED = ("global_clipnorm", "gradient_accumulation_steps", "loss_scale_factor")


@keras.saving.register_keras_serializable("embstore")
class Optimizer(keras.optimizers.Optimizer):
    """Trains the tables of a model by their own optimizers, and the dense part by Keras's.

    It goes where an optimizer goes: ``model.compile(optimizer=Optimizer("adam"))``, or
    ``optimizer.apply_gradients(zip(grads, model.trainable_variables))``. Each application is a step
    of all tables that it was built with.

    Parameters
    ----------
    inner
        A Keras optimizer, or its name. Its learning rate, schedule, weight decay, moving averages
        and clipping are of the dense part; tables have their own: ``es.Adam(lr=0.01,
        clip_norm=1.0)``. Clipping by the global norm, accumulation of gradients and loss scaling,
        which would have to see both, are refused.

    Notes
    -----
    The gradients of a table wait, from backward on, with the table. What stands for them among the
    gradients of TensorFlow is 1 for each lookup: a loop that scales all of a step's gradients by a
    factor scales the tables' too, and norms that it takes do not contain them.

    Examples
    --------
    >>> import tensorflow as tf, keras, embstore as es
    >>> from embstore.tensorflow import Embedding, Optimizer
    >>> item = Embedding(dim=4, optimizer=es.Adagrad(lr=0.1), name="item")
    >>> ids = keras.Input((2,), dtype="int64")
    >>> model = keras.Sequential([ids, item, keras.layers.Flatten(), keras.layers.Dense(1)])
    >>> model.compile(optimizer=Optimizer("sgd"), loss="mse")
    >>> _ = model.fit(tf.constant([[1, 2], [2, 3]]), tf.constant([[1.0], [0.0]]), verbose=0)
    >>> len(item.table), item.step
    (3, 1)
    """

    def __init__(self, inner: Any, name: str | None = None) -> None:
        super().__init__(learning_rate=0.0, name=name)
        inner = keras.optimizers.get(inner)
        is_scaled = isinstance(inner, keras.optimizers.LossScaleOptimizer)
        if isinstance(inner, Optimizer) or is_scaled:
            raise ArgumentTypeError(f"Optimizer: {type(inner).__name__} cannot be the inner one")
        for option in REFUSED:
            if getattr(inner, option) is not None:
                raise ArgumentError(
                    f"Optimizer: {option} of {type(inner).__name__} would have to see the "
                    f"gradients of the tables, which it does not"
                )
        self.inner = inner

    @property
    def loss_scale_factor(self) -> float:
        """1: a loss is not scaled for tables."""
        return 1.0  # not None, the value by which LossScaleOptimizer claims an optimizer

    @loss_scale_factor.setter
    def loss_scale_factor(self, factor: Any) -> None:
        if "inner" in self.__dict__:
            raise ArgumentError(
                "Optimizer: a scaled loss, as of LossScaleOptimizer and of mixed_float16, skips "
                "steps, which tables do not see; use mixed_bfloat16"
            )

    @property
    def variables(self) -> list[Any]:
        """The variables of this optimizer and of the inner one."""
        return [*self._variables, *self.inner.variables]

    @property
    def learning_rate(self) -> Any:
        """The learning rate of the inner optimizer; that of a table is ``table.lr``."""
        return self.inner.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.inner.learning_rate = learning_rate

    @property
    def iterations(self) -> Any:
        """How many times gradients were applied."""
        return self.inner.iterations

    def build(self, variables: Sequence[Any]) -> None:
        """Take the variables of a model: anchors of tables here, the others to the inner one."""
        dense = [v for v in variables if guard_of(v) is None]
        if dense:
            self.inner.build(dense)
        super().build(variables)

    def apply(self, grads: Sequence[Any], trainable_variables: Iterable[Any] | None = None) -> None:
        """Train the tables with the gradients that wait, and the dense part with `grads`.

        Raises
        ------
        NonFiniteError
            If a key's gradient has NaN or infinity (tables with ``on_nonfinite="raise"``), outside
            of graphs; in graphs ``tf.errors.InvalidArgumentError``. The gradients are given up.

        Warns
        -----
        EmbstoreWarning
            If a table has no gradient, as where a model was called without ``training=True``.
        """
        variables = self._trainable_variables
        if trainable_variables is not None:
            variables = list(trainable_variables)
            if not self.built:
                with tf.init_scope():
                    self.build(variables)
        self._check_variables_are_known(variables)
        _warn_of_untrained(grads, variables)
        scales: dict[str, list[Any]] = {}
        tables: dict[str, NamedTable] = {}
        dense = []
        for grad, variable in zip(grads, variables, strict=True):
            guard = guard_of(variable)
            if guard is None:
                dense.append((grad, variable))
            elif not guard.is_fused:
                tables[guard.named.key] = guard.named
                if grad is not None:
                    scales.setdefault(guard.named.key, []).append(grad)
        applied = [tables[k].ops.apply(tables[k], tf.add_n(parts)) for k, parts in scales.items()]
        with tf.control_dependencies(applied):  # a step that a table refuses is nobody's
            for table in tables.values():
                table.clock.advance()
            if dense:
                self.inner.apply(*zip(*dense, strict=True))
            else:
                self.inner.iterations.assign_add(1)

    def scale_loss(self, loss: Any) -> Any:
        """Return the loss as it is."""
        return loss

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Let the inner optimizer set its variables to their averages, if it has any."""
        self.inner.finalize_variable_values([v for v in var_list if guard_of(v) is None])

    def get_config(self) -> dict[str, Any]:
        """Return what makes the optimizer again."""
        return {"name": self.name, "inner": keras.saving.serialize_keras_object(self.inner)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "Optimizer":
        """Return an optimizer like the one of a config."""
        inner = keras.saving.deserialize_keras_object(config["inner"], custom_objects)
        return cls(inner, config["name"])


def _warn_of_untrained(grads: Sequence[Any], variables: Sequence[Any]) -> None:
    """Tell which tables have no part in a step."""
    has_grad: dict[str, bool] = {}
    for grad, variable in zip(grads, variables, strict=True):
        guard = guard_of(variable)
        if guard is not None:
            key = guard.named.key
            has_grad[key] = has_grad.get(key, False) or grad is not None
    idle = sorted(key for key, is_trained in has_grad.items() if not is_trained)
    if idle:
        warnings.warn(
            f"Optimizer: the loss does not depend on tables {idle}, which are not trained; call "
            f"the model with training=True",
            EmbstoreWarning,
            stacklevel=3,
        )


def clear_gradients(model: Any) -> None:
    """Forget the gradients of a model's tables that wait for `Optimizer`."""
    for named in named_tables_of(model):
        named.ops.clear(named)
