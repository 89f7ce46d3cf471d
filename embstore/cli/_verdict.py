"""What an eviction policy says of one row, condition by condition; docs/semantics.md, section 7."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from embstore.cli._checkpoint import policy_text
from embstore.cli._rows import json_number
from embstore.errors import DataError

COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Condition:
    """A quantity of the row beside a threshold: ``age 130 > 100``."""

    quantity: str
    value: Any
    sign: str
    threshold: Any

    @property
    def holds(self) -> bool:
        """Whether it is so."""
        return bool(COMPARE[self.sign](self.value, self.threshold))

    @property
    def distance(self) -> Any:
        """How far the quantity is from the threshold."""
        return abs(self.value - self.threshold)

    def __str__(self) -> str:
        form = ".6g" if self._is_float else ",.0f"
        words = "by" if self.holds else "is not so, by"
        return (
            f"{self.quantity} {self.value:{form}} {self.sign} {self.threshold:{form}} {words} "
            f"{self.distance:{form}}"
        )

    @property
    def _is_float(self) -> bool:
        return isinstance(self.value, float | np.floating)

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        plain: Callable[[Any], Any] = json_number if self._is_float else int
        return {
            "quantity": self.quantity,
            "value": plain(self.value),
            "sign": self.sign,
            "threshold": plain(self.threshold),
            "holds": self.holds,
            "distance": plain(self.distance),
        }


@dataclass(frozen=True)
class Verdict:
    """A policy, whether it selects the row, and its conditions or the policies it joins."""

    policy: str
    selects: bool
    conditions: tuple[Condition, ...] = ()
    parts: tuple["Verdict", ...] = field(default=())
    note: str = ""

    def lines(self, indent: str = "") -> list[str]:
        """Return it as lines of text."""
        found = [f"{indent}{'evicts' if self.selects else 'spares'}: {self.policy}"]
        found += [f"{indent}  {condition}" for condition in self.conditions]
        found += [f"{indent}  {self.note}"] if self.note else []
        for part in self.parts:
            found += part.lines(indent + "  ")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        document: dict[str, Any] = {"policy": self.policy, "selects": self.selects}
        if self.conditions:
            document["conditions"] = [condition.to_dict() for condition in self.conditions]
        if self.parts:
            document["parts"] = [part.to_dict() for part in self.parts]
        if self.note:
            document["note"] = self.note
        return document


def judge(config: Mapping[str, Any], age: int, freq: int, norm: np.float32) -> Verdict:
    """Return what the policy of `config`, as a checkpoint holds it, says of a row."""
    kind = config.get("kind")
    if kind in ("And", "Or"):
        sides = tuple(judge(config[side], age, freq, norm) for side in ("left", "right"))
        both = (side.selects for side in sides)
        name = "both of" if kind == "And" else "either of"
        return Verdict(name, all(both) if kind == "And" else any(both), parts=sides)
    text = policy_text(config)
    if kind in ("CapacityEviction", "CacheEviction"):
        note = "it acts when the table is full only, on the rows smallest by its score"
        return Verdict(text, False, note=note)
    conditions = _conditions(config, age, freq, norm)
    return Verdict(text, all(condition.holds for condition in conditions), conditions)


def _conditions(
    config: Mapping[str, Any], age: int, freq: int, norm: np.float32
) -> tuple[Condition, ...]:
    kind = config.get("kind")
    if kind == "StepEviction":
        return (Condition("age", age, ">", config["steps_to_live"]),)
    if kind not in ("L2Eviction", "FrequencyEviction"):
        raise DataError(f"the eviction policy {kind!r} is not known to this embstore")
    old = Condition("age", age, ">=", config["min_age"])
    if kind == "L2Eviction":
        return (Condition("norm", norm, "<", np.float32(config["threshold"])), old)
    return (Condition("freq", freq, "<", config["min_freq"]), old)
