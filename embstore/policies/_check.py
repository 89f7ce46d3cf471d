"""Checks of plain arguments, and the base of the policies; every message names place and value."""

import math
import operator
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self, TypeVar

from embstore.errors import ArgumentError, ArgumentTypeError

FLOAT32_MAX = 3.4028234663852886e38
INT64_MAX = 2**63 - 1
UINT32_MAX = 2**32 - 1
UINT64_MAX = 2**64 - 1

ChoiceT = TypeVar("ChoiceT", bound=str)


def shown(value: object) -> str:
    """Return `value` for a message: its repr, cut to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check_int(where: str, name: str, value: object, low: int, high: int) -> int:
    """Return `value` as an int in [low, high]; bools and floats are not integers here."""
    if isinstance(value, bool) or not hasattr(type(value), "__index__"):
        raise ArgumentTypeError(
            f"{where}: {name} must be an integer, got {shown(value)} of type {type(value).__name__}"
        )
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ArgumentTypeError(
            f"{where}: {name} must be an integer, got one of type {type(value).__name__}"
        ) from None
    if not low <= number <= high:
        raise ArgumentError(
            f"{where}: {name} must be an integer from {low} to {_power(high)}, got {shown(number)}"
        )
    return number


def _power(value: int) -> str:
    """Return `value` for a message, the greatest numbers of a width by their name."""
    names = {INT64_MAX: "2**63 - 1", UINT64_MAX: "2**64 - 1", 2**128 - 1: "2**128 - 1"}
    return names.get(value, str(value))


def check_optional_int(
    where: str, name: str, value: object | None, low: int, high: int
) -> int | None:
    """Return None, or `value` as an int in [low, high]."""
    return None if value is None else check_int(where, name, value, low, high)


def check_float(
    where: str,
    name: str,
    value: object,
    low: float = -FLOAT32_MAX,
    high: float = FLOAT32_MAX,
    above: float = -math.inf,
) -> float:
    """Return `value` as a finite float in [low, high] and greater than `above`.

    Python floats, ints and numpy's real scalars are numbers; bools, strings and arrays are not.
    """
    if isinstance(value, bool | str | bytes) or not (
        hasattr(type(value), "__float__") or hasattr(type(value), "__index__")
    ):
        raise ArgumentTypeError(
            f"{where}: {name} must be a number, got {shown(value)} of type {type(value).__name__}"
        )
    if getattr(value, "shape", ()) != ():
        raise ArgumentTypeError(f"{where}: {name} must be a number, got an array")
    try:
        number = float(value)  # type: ignore[arg-type]
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):
        raise ArgumentTypeError(
            f"{where}: {name} must be a number, got one of type {type(value).__name__}"
        ) from None
    if not (low <= number <= high and number > above):
        raise ArgumentError(
            f"{where}: {name} must be {_float_range(low, high, above)}, got {shown(value)}"
        )
    return number


def _float_range(low: float, high: float, above: float) -> str:
    """Say in words which floats are allowed."""
    lower = ""
    if above > -math.inf:
        lower = f" greater than {above:g}"
    elif low > -FLOAT32_MAX:
        lower = f" at least {low:g}"
    upper = f" at most {high:g}" if high < FLOAT32_MAX else ""
    joint = " and" if lower and upper else ""
    return f"a finite number{lower}{joint}{upper}"


def check_choice(where: str, name: str, value: object, choices: tuple[ChoiceT, ...]) -> ChoiceT:
    """Return `value`, which must be one of `choices`."""
    for choice in choices:
        if isinstance(value, str) and value == choice:
            return choice
    error = ArgumentError if isinstance(value, str) else ArgumentTypeError
    expected = " or ".join(repr(choice) for choice in choices)
    raise error(f"{where}: {name} must be {expected}, got {shown(value)}")


def check_step(where: str, step: object, name: str = "step") -> int:
    """Return a step: an integer from 0 to 2**63 - 1."""
    if type(step) is int and 0 <= step <= INT64_MAX:
        return step
    return check_int(where, name, step, 0, INT64_MAX)


class Policy:
    """The base of the policies: frozen dataclasses that can be written as plain dicts."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def _set(self, name: str, value: object) -> None:
        """Store the checked form of a field, in ``__post_init__`` only."""
        object.__setattr__(self, name, value)

    def to_config(self) -> dict[str, Any]:
        """Return the policy as a dict for JSON: ``kind`` and its parameters."""
        config: dict[str, Any] = {"kind": type(self).__name__}
        for field in fields(self):
            value = getattr(self, field.name)
            config[field.name] = list(value) if isinstance(value, tuple) else value
        return config

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> Self:
        """Return the policy with `parameters`, as `to_config` gives them beside ``kind``."""
        given, known = set(parameters), {field.name for field in fields(cls)}
        if given - known:
            raise ArgumentError(
                f"{cls.__name__}: unknown parameters {sorted(given - known)}; "
                f"known: {sorted(known)}"
            )
        try:
            return cls(**parameters)
        except TypeError as error:
            if isinstance(error, ArgumentTypeError):
                raise
            raise ArgumentError(f"{cls.__name__}: {error}") from None


PolicyT = TypeVar("PolicyT", bound=Policy)


def policy_from_config(
    role: str, config: Mapping[str, Any], kinds: tuple[type[PolicyT], ...]
) -> PolicyT:
    """Return the policy that `config`, made by `Policy.to_config`, describes."""
    if not isinstance(config, Mapping) or "kind" not in config:
        raise ArgumentTypeError(
            f"{role}.from_config: expected a dict with a 'kind', got {shown(config)}"
        )
    by_name = {kind.__name__: kind for kind in kinds}
    kind = check_choice(f"{role}.from_config", "kind", config["kind"], tuple(by_name))
    return by_name[kind].from_parameters({k: v for k, v in config.items() if k != "kind"})
