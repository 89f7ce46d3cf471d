"""Words of the command line to policies: ``counter:2``, ``step:300``, ``static:1.25x``."""

from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TypeVar

import embstore as es
from embstore.cli._tables import Eviction

BLOOM_CAPACITY = 1_000_000

T = TypeVar("T")
P = TypeVar("P", es.Optimizer, es.Initializer)


def integer(least: int) -> Callable[[str], int]:
    """Return a reader of integers that are at least `least`; ``1_000_000`` may be written so."""

    def read(text: str) -> int:
        value = int(text) if text.lstrip("-").replace("_", "").isdigit() else None
        if value is None or value < least:
            raise ArgumentTypeError(f"{text!r} is not an integer >= {least}")
        return value

    return read


def number(least: float) -> Callable[[str], float]:
    """Return a reader of finite numbers that are greater than `least`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least < value < float("inf"):
            raise ArgumentTypeError(f"{text!r} is not a number > {least:g}")
        return value

    return read


def admission(text: str) -> "es.CounterAdmission | es.BloomAdmission | None":
    """Read ``none``, ``counter:N[:TTL]`` or ``bloom:N[:CAPACITY]``."""
    kind, *words = text.split(":")
    if kind == "none" and not words:
        return None
    if kind == "counter" and 1 <= len(words) <= 2:
        numbers = [integer(1)(word) for word in words]
        return _built(text, lambda: es.CounterAdmission(*numbers))
    if kind == "bloom" and 1 <= len(words) <= 2:
        min_count, capacity = (integer(1)(word) for word in (*words, str(BLOOM_CAPACITY))[:2])
        return _built(text, lambda: es.BloomAdmission(min_count, capacity, fpr=0.01))
    raise ArgumentTypeError(f"{text!r} is not none, counter:N[:TTL] or bloom:N[:CAPACITY]")


def eviction(text: str) -> Eviction:
    """Read ``step:N``, ``l2:THRESHOLD:AGE`` or ``freq:N:AGE``, or several with commas."""
    return reduce(or_, (_eviction(part) for part in text.split(",")))


def _eviction(text: str) -> Eviction:
    kind, *words = text.split(":")
    if kind == "step" and len(words) == 1:
        return es.StepEviction(integer(0)(words[0]))
    if kind == "l2" and len(words) == 2:
        threshold, age = number(0)(words[0]), integer(0)(words[1])
        return _built(text, lambda: es.L2Eviction(threshold, min_age=age))
    if kind == "freq" and len(words) == 2:
        freq, age = integer(1)(words[0]), integer(0)(words[1])
        return _built(text, lambda: es.FrequencyEviction(freq, min_age=age))
    raise ArgumentTypeError(f"{text!r} is not step:N, l2:THRESHOLD:AGE or freq:N:AGE")


def optimizer(text: str) -> es.Optimizer | None:
    """Read ``none``, or ``adagrad:lr=0.05,eps=1e-8``; a pair is written 0.9/0.999."""
    kinds = (es.SGD, es.Adagrad, es.RowWiseAdagrad, es.Adam, es.AdamW, es.FTRL)
    return None if text == "none" else _policy(text, kinds)


def initializer(text: str) -> es.Initializer:
    """Read ``normal:std=0.01``, ``uniform:low=-0.05,high=0.05``, ``constant:value=0``."""
    return _policy(text, (es.Normal, es.Uniform, es.Constant, es.TruncatedNormal))


def _policy(text: str, kinds: tuple[type[P], ...]) -> P:
    """Read the name of a policy, in any case, and its parameters."""
    name, _, words = text.partition(":")
    by_name = {kind.__name__.lower(): kind for kind in kinds}
    kind = by_name.get(name.replace("_", "").replace("-", "").lower())
    if kind is None:
        raise ArgumentTypeError(f"{name!r} is not one of {', '.join(by_name)}")
    parameters = {}
    for word in filter(None, words.split(",")):
        parameter, _, value = word.partition("=")
        parameters[parameter.strip()] = _value(value.strip())
    return _built(text, lambda: kind.from_parameters(parameters))


def _value(text: str) -> bool | float | tuple[float, ...]:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        numbers = tuple(float(part) for part in text.split("/"))
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a number, true or false") from None
    return numbers if len(numbers) > 1 else numbers[0]


@dataclass(frozen=True)
class StaticRows:
    """The size of a static table: a number of rows, or a multiple of the dynamic table's peak."""

    n_rows: int = 0
    multiple: float = 0.0

    def resolve(self, n_peak_rows: int) -> int:
        """Return the rows, given the most rows that the dynamic table had."""
        return self.n_rows or round(self.multiple * n_peak_rows)


def baseline(text: str) -> StaticRows:
    """Read ``static:ROWS``, or ``static:1.25x`` for a multiple of the peak rows."""
    kind, _, size = text.partition(":")
    if kind != "static" or not size:
        raise ArgumentTypeError(f"{text!r} is not static:ROWS, such as static:100000 or static:1x")
    if size.endswith("x"):
        return StaticRows(multiple=number(0)(size[:-1]))
    return StaticRows(n_rows=integer(1)(size))


def names(text: str) -> list[str]:
    """Read names with commas; none of an empty text."""
    return [name.strip() for name in text.split(",") if name.strip()]


def shares(text: str) -> dict[str, float]:
    """Read ``shared``, or ``item=0.7,user*category=0.3`` for a share of the hashed rows each."""
    if text == "shared":
        return {}
    parts = [part.partition("=") for part in text.split(",")]
    return {name: number(0)(share) for name, _, share in parts}


def _built(text: str, build: Callable[[], T]) -> T:
    try:
        return build()
    except es.EmbstoreError as error:
        raise ArgumentTypeError(f"{text!r}: {error}") from None
