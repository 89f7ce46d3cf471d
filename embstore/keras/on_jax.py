"""What the layers compute on JAX: the functions of embstore.jax, trained in backward."""

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import jax
import keras

from embstore import ArgumentError, EmbstoreWarning, Table
from embstore._adapters import check_step, step_behind
from embstore.jax import embed, embed_bags, find, pooled
from embstore.jax.inputs import check_x64, keys_of

SUPPORTS_JIT = True


class Clock:
    """The step of a table: a variable of Keras, since compiled functions carry all state."""

    def __init__(self, table: Table) -> None:
        behind, self._of = step_behind(table), table.name  # of whom errors speak
        self.variable = keras.Variable(
            lambda shape, dtype: keras.ops.full(shape, behind, dtype),
            shape=(),
            dtype="int64",
            trainable=False,
            name="step",
        )
        self._last: tuple[Any, Any] = (None, None)  # a step, and the variable behind it

    @property
    def is_lost(self) -> bool:
        """Whether Keras took the variable for a run of fit that did not end."""
        try:
            value_of(self.variable, self._of)
        except ArgumentError:
            return True
        return False

    @property
    def now(self) -> int:
        """The step of the next training lookup."""
        return int(value_of(self.variable, self._of))

    def set(self, now: int) -> None:
        """Set the step."""
        self.variable.assign(check_step(now))

    def at_lookup(self) -> Any:
        """Return the step of a training lookup, and move the clock to the next.

        Lookups that are traced into one function are of one step.
        """
        now, (last, next_step) = value_of(self.variable, self._of), self._last
        if isinstance(now, jax.core.Tracer) and now is next_step:
            return last
        self.variable.assign(now + 1)
        self._last = (now, self.variable.value)
        if not isinstance(now, jax.core.Tracer):
            self._check_nothing_leaked(now)
        return now

    def _check_nothing_leaked(self, before: Any) -> None:
        """Raise if a function under jit, which carries no variables, would leave a tracer here."""
        with keras.StatelessScope():  # without the values of scopes around it
            is_leaked = not self.is_lost and isinstance(self.variable.value, jax.core.Tracer)
        if is_leaked:
            self.variable.assign(before)
            raise ArgumentError(
                f"table {self._of!r}: a training lookup moves the step, a variable of Keras, which "
                f"a function under jit has to carry: call model.stateless_call within it"
            )


class Named:
    """A table and its step; one for each table, as long as it is used."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.key = table.name
        self.clock = Clock(table)


def check(where: str) -> None:
    """Raise where JAX would cut ids to 32 bits."""
    check_x64(where)


def name_of(table: Table) -> Named:
    """Return what a table has had or gets now."""
    known = _NAMED.get(id(table))
    if known is None or known.clock.is_lost:
        known = _NAMED[id(table)] = Named(table)
    return known


def state_of(named: Named) -> list[Any]:
    """Return the variable of the step."""
    return [named.clock.variable]


def value_of(variable: Any, table: str) -> Any:
    """Return the value of a variable that layers of a table have; raise if Keras took it."""
    try:
        return variable.value
    except (TypeError, AttributeError):  # it is empty, and Keras asks an initializer that is None
        raise ArgumentError(
            f"Keras has the variables of the layers of table {table!r}: within fit and predict, "
            f"until tables_of(model) is called; after an error in them for good, so that the model "
            f"has to be loaded, or made again of layers like Embedding(layer.table)"
        ) from None


def rows(layer: Any, ids: Any, is_training: bool) -> Any:
    """Return the rows (*shape, dim) of ids."""
    named, anchor = layer.named, value_of(layer.anchor, layer.named.key)
    asked = {"padding_id": layer.padding_id}
    if is_training:
        found = embed(named.table, ids, anchor, named.clock.at_lookup(), **asked)
    else:
        found = _read(layer, anchor, lambda after: find(named.table, ids, after=after, **asked))
    return found.astype(layer.compute_dtype)


def bags(layer: Any, ids: Any, weights: Any, is_training: bool) -> Any:
    """Return the pooled rows (..., dim) of bags along the last axis."""
    named, anchor = layer.named, value_of(layer.anchor, layer.named.key)
    asked = {"weights": weights, "mode": layer.mode, "padding_id": layer.padding_id}
    if is_training:
        found = embed_bags(named.table, ids, anchor, named.clock.at_lookup(), **asked)
    else:
        found = _read(layer, anchor, lambda after: pooled(named.table, ids, after=after, **asked))
    return found.astype(layer.compute_dtype)


def mask(layer: Any, ids: Any) -> Any:
    """Return where ids are not padding."""
    return keys_of(ids, type(layer).__name__) != layer.padding_id


def _read(layer: Any, anchor: Any, look: Callable[[Any], Any]) -> Any:
    """Return what a lookup reads; tell where a model is trained through it, which trains no table.

    On the other backends Keras tells of a variable that has no gradient.
    """

    @jax.custom_vjp
    def found(anchor: Any) -> Any:
        return look(anchor)

    def forward(anchor: Any) -> tuple[Any, Any]:
        warnings.warn(
            f"table {layer.named.table.name!r} is read and not trained by a model that is: the "
            f"call of layer {layer.name!r} has to get training=True, or the layer trainable=False",
            EmbstoreWarning,
            stacklevel=2,
        )
        return look(anchor), anchor

    found.defvjp(forward, lambda anchor, grads: (anchor * 0,))
    return found(anchor)


# By id, which is nobody else's: a Named holds its table.
_NAMED: weakref.WeakValueDictionary[int, Named] = weakref.WeakValueDictionary()
