"""Initial values: pure functions of (seed, table name, key, column), the same on every engine.

The formulas stand in docs/semantics.md, section 2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from embstore.errors import ArgumentError
from embstore.policies._check import Policy, check_float, policy_from_config


class Initializer(Policy):
    """The base of the initializers; `from_config` of its module reads what `to_config` wrote.

    Examples
    --------
    >>> import embstore as es
    >>> isinstance(es.Normal(), es.Initializer)
    True
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Constant(Initializer):
    """Every value of a new row is `value`.

    Examples
    --------
    >>> import embstore as es
    >>> table = es.Table(dim=2, initializer=es.Constant(0.5))
    >>> table.find_or_insert([7], step=0).rows
    array([[0.5, 0.5]], dtype=float32)
    """

    value: float = 0.0

    def __post_init__(self) -> None:
        self._set("value", check_float("Constant", "value", self.value))


@dataclass(frozen=True, slots=True)
class Uniform(Initializer):
    """Values are uniform in [low, high).

    Examples
    --------
    >>> import embstore as es
    >>> table = es.Table(dim=64, initializer=es.Uniform(-1.0, 1.0))
    >>> rows = table.find_or_insert([7], step=0).rows
    >>> bool((-1 <= rows).all() and (rows <= 1).all())
    True
    """

    low: float = -0.05
    high: float = 0.05

    def __post_init__(self) -> None:
        self._set("low", check_float("Uniform", "low", self.low))
        self._set("high", check_float("Uniform", "high", self.high))
        if self.low > self.high:
            raise ArgumentError(
                f"Uniform: low must not exceed high, got low={self.low} and high={self.high}"
            )
        check_float("Uniform", "high - low", self.high - self.low)


@dataclass(frozen=True, slots=True)
class Normal(Initializer):
    """Values are normal with `mean` and standard deviation `std` (Box-Muller).

    Examples
    --------
    >>> import embstore as es
    >>> table = es.Table(dim=4, initializer=es.Normal(std=0.01), seed=7)
    >>> row = table.find_or_insert([7], step=0).rows
    >>> same = es.Table(dim=4, initializer=es.Normal(std=0.01), seed=7)
    >>> bool((same.find([7], missing="initial") == row).all())  # a pure function of the key
    True
    """

    mean: float = 0.0
    std: float = 0.01

    def __post_init__(self) -> None:
        self._set("mean", check_float(type(self).__name__, "mean", self.mean))
        self._set("std", check_float(type(self).__name__, "std", self.std, low=0.0))


@dataclass(frozen=True, slots=True)
class TruncatedNormal(Initializer):
    """Values are normal, redrawn until they lie within two standard deviations of the mean.

    Examples
    --------
    >>> import embstore as es
    >>> table = es.Table(dim=64, initializer=es.TruncatedNormal(std=1.0))
    >>> bool((abs(table.find_or_insert([7], step=0).rows) <= 2).all())
    True
    """

    mean: float = 0.0
    std: float = 0.01

    def __post_init__(self) -> None:
        self._set("mean", check_float(type(self).__name__, "mean", self.mean))
        self._set("std", check_float(type(self).__name__, "std", self.std, low=0.0))


def from_config(config: Mapping[str, Any]) -> Initializer:
    """Return the initializer that `config`, made by ``to_config``, describes."""
    kinds: tuple[type[Initializer], ...] = (Constant, Uniform, Normal, TruncatedNormal)
    return policy_from_config("Initializer", config, kinds)
