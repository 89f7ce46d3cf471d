"""Eviction: which rows go. Policies join by ``&`` and ``|``; docs/semantics.md, section 7.

age = max(0, step - row.step), row.step being the last training of the row, or its birth.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from embstore.errors import ArgumentError, ArgumentTypeError
from embstore.policies._check import (
    INT64_MAX,
    UINT32_MAX,
    Policy,
    check_choice,
    check_float,
    check_int,
    check_optional_int,
    policy_from_config,
    shown,
)

MAX_OPERATIONS = 32  # ES_MAX_PREDICATES of embstore.h


class Operation(NamedTuple):
    """One operation of a predicate in postfix order, as embstore.h's ``es_predicate``."""

    op: Literal["step", "l2", "freq", "and", "or"]
    threshold: float = 0.0
    min_freq: int = 0
    steps: int = 0


class Eviction(Policy):
    """The base of the eviction policies; ``&`` and ``|`` join two of them.

    Examples
    --------
    >>> import embstore as es
    >>> es.StepEviction(100) | es.L2Eviction(1e-3, min_age=10)
    Or(left=StepEviction(steps_to_live=100), right=L2Eviction(threshold=0.001, min_age=10))
    """

    __slots__ = ()

    def __and__(self, other: "Eviction") -> "And":
        return And(self, other) if isinstance(other, Eviction) else NotImplemented

    def __or__(self, other: "Eviction") -> "Or":
        return Or(self, other) if isinstance(other, Eviction) else NotImplemented


@dataclass(frozen=True, slots=True)
class StepEviction(Eviction):
    """Evicts rows whose age is greater than `steps_to_live`.

    Examples
    --------
    >>> import embstore as es
    >>> table = es.Table(dim=2, eviction=es.StepEviction(steps_to_live=10))
    >>> _ = table.find_or_insert([1, 2], step=0), table.find_or_insert([3], step=5)
    >>> table.evict(step=11).n_evicted
    2
    """

    steps_to_live: int

    def __post_init__(self) -> None:
        value = check_int("StepEviction", "steps_to_live", self.steps_to_live, 0, INT64_MAX)
        self._set("steps_to_live", value)


@dataclass(frozen=True, slots=True)
class L2Eviction(Eviction):
    """Evicts rows whose values' Euclidean norm is less than `threshold` and age >= `min_age`.

    `min_age` has no default: a row just born is small too, and is not to go for that.

    Examples
    --------
    >>> import embstore as es
    >>> table = es.Table(dim=2, initializer=es.Constant(1e-4))
    >>> _ = table.find_or_insert([1, 2], step=0)
    >>> table.evict(es.L2Eviction(1e-3, min_age=100), step=100).n_evicted
    2
    """

    threshold: float
    min_age: int

    def __post_init__(self) -> None:
        self._set("threshold", check_float("L2Eviction", "threshold", self.threshold, above=0.0))
        self._set("min_age", check_int("L2Eviction", "min_age", self.min_age, 0, INT64_MAX))


@dataclass(frozen=True, slots=True)
class FrequencyEviction(Eviction):
    """Evicts rows with freq < `min_freq` and age >= `min_age`.

    Every `halve_every` steps the freq of all rows of the table is halved, so that it forgets.

    Examples
    --------
    >>> import embstore as es
    >>> table = es.Table(dim=2)
    >>> _ = table.find_or_insert([1, 1, 2], step=0)
    >>> table.evict(es.FrequencyEviction(min_freq=2, min_age=0), step=0).n_evicted
    1
    """

    min_freq: int
    min_age: int
    halve_every: int | None = None

    def __post_init__(self) -> None:
        where = "FrequencyEviction"
        self._set("min_freq", check_int(where, "min_freq", self.min_freq, 1, UINT32_MAX))
        self._set("min_age", check_int(where, "min_age", self.min_age, 0, INT64_MAX))
        halve_every = check_optional_int(where, "halve_every", self.halve_every, 1, INT64_MAX)
        self._set("halve_every", halve_every)


@dataclass(frozen=True, slots=True)
class CapacityEviction(Eviction):
    """Makes room in a full table (``on_full="evict"``): the rows smallest by (`by`, key) go.

    Examples
    --------
    >>> import embstore as es
    >>> table = es.Table(dim=2, max_rows=100, eviction=es.CapacityEviction(by="step"))
    >>> for step in range(3):
    ...     batch = table.find_or_insert(list(range(50 * step, 50 * step + 50)), step=step)
    >>> len(table)
    95
    """

    by: Literal["step", "freq"] = "step"

    def __post_init__(self) -> None:
        check_choice("CapacityEviction", "by", self.by, ("step", "freq"))


@dataclass(frozen=True, slots=True)
class CacheEviction(Eviction):
    """Makes a table on a card a cache of `max_rows`: a new key takes the place of an old one.

    ``by="step"`` is LRU, by the last training, and ``by="freq"`` LFU. It is approximate, and costs
    neither a scan of the table nor a wait: a key can lie in two buckets of ten cells, and the row
    that goes is the least by (`by`, key) among those, rows of the same call and pins excepted.
    Where there is none, the key is refused. Which row goes may depend on the order in which a card
    comes to two new keys of one call that have a bucket in common.

    Two buckets of ten cells serve nearly as well as an exact choice. Simulated on Zipf keys, 4
    million and a table of 100 thousand rows, the hit rate by step is .321 and .770 (exponents 0.8
    and 1.05), less than .001 below exact LRU; by freq it is .358 and .783.

    Tables on the CPU refuse it: `CapacityEviction` is exact, there and on cards. It needs
    `max_rows`, for which the table takes all memory at once, and goes with neither `max_bytes`
    nor `CounterAdmission`. Keys that `import_` or a load finds no cells for, in spite of moving
    others, are evicted; that is to be expected of tables of a few dozen rows alone.

    Examples
    --------
    >>> import embstore as es
    >>> es.StepEviction(1000) | es.CacheEviction(by="freq")
    Or(left=StepEviction(steps_to_live=1000), right=CacheEviction(by='freq'))
    >>> es.Table(dim=2, max_rows=100, eviction=es.CacheEviction())
    Traceback (most recent call last):
        ...
    embstore.errors.ArgumentError: Table: device="cpu" has no CacheEviction: use CapacityEviction...
    """

    by: Literal["step", "freq"] = "step"

    def __post_init__(self) -> None:
        check_choice("CacheEviction", "by", self.by, ("step", "freq"))


class _Joint(Eviction):
    """Two policies joined: the common part of `And` and `Or`."""

    __slots__ = ()
    left: Eviction
    right: Eviction

    def _check(self) -> None:
        for side in (self.left, self.right):
            if not isinstance(side, Eviction):
                raise ArgumentTypeError(
                    f"{type(self).__name__}: expected an eviction policy, got {shown(side)}"
                )
        freq_halve_every(self)
        capacity_by(self)
        if sum(1 for _ in _operations(self)) > MAX_OPERATIONS:
            raise ArgumentError(
                f"{type(self).__name__}: at most {MAX_OPERATIONS} operations (policies and joints)"
            )

    def to_config(self) -> dict[str, Any]:
        """Return the policy as a dict for JSON: ``kind``, ``left`` and ``right``."""
        return {
            "kind": type(self).__name__,
            "left": self.left.to_config(),
            "right": self.right.to_config(),
        }


@dataclass(frozen=True, slots=True)
class And(_Joint):
    """Evicts rows that both policies select; written ``left & right``."""

    left: Eviction
    right: Eviction

    def __post_init__(self) -> None:
        self._check()


@dataclass(frozen=True, slots=True)
class Or(_Joint):
    """Evicts rows that either policy selects; written ``left | right``."""

    left: Eviction
    right: Eviction

    def __post_init__(self) -> None:
        self._check()


def _leaves(policy: Eviction) -> Iterator[Eviction]:
    """Yield the policies that are joined in `policy`."""
    if isinstance(policy, _Joint):
        yield from _leaves(policy.left)
        yield from _leaves(policy.right)
    else:
        yield policy


def _operations(policy: Eviction | None) -> Iterator[Operation]:
    """Yield the postfix operations of `policy`, without what makes room."""
    if isinstance(policy, StepEviction):
        yield Operation("step", steps=policy.steps_to_live)
    elif isinstance(policy, L2Eviction):
        yield Operation("l2", threshold=policy.threshold, steps=policy.min_age)
    elif isinstance(policy, FrequencyEviction):
        yield Operation("freq", min_freq=policy.min_freq, steps=policy.min_age)
    elif isinstance(policy, _Joint):
        sides = [list(_operations(side)) for side in (policy.left, policy.right)]
        for side in sides:
            yield from side
        if all(sides):
            yield Operation("and" if isinstance(policy, And) else "or")


def program(policy: Eviction | None) -> tuple[Operation, ...]:
    """Return the predicate of `policy` in postfix order; empty if it selects no rows by itself."""
    return tuple(_operations(policy))


def _room_maker(policy: Eviction | None) -> CapacityEviction | CacheEviction | None:
    """Return the part of `policy` that makes room in a full table, or None if it has none.

    Raises
    ------
    ArgumentError
        If there are two, or one stands below an ``&``: it does not select rows one by one.
    """
    if policy is None:
        return None
    found = [p for p in _leaves(policy) if isinstance(p, CapacityEviction | CacheEviction)]
    names = " or ".join(sorted({type(leaf).__name__ for leaf in found}, reverse=True))
    if len(found) > 1:
        raise ArgumentError(f"eviction: one {names} at most, got {len(found)}")
    if found and not _is_joined_by_or(policy):
        raise ArgumentError(f"eviction: {names} joins other policies by | only, not by &")
    return found[0] if found else None


def capacity_by(policy: Eviction | None) -> Literal["step", "freq"] | None:
    """Return the score by which `policy` makes room, or None if it does not.

    Raises
    ------
    ArgumentError
        If two of its parts would, or one stands below an ``&``.
    """
    maker = _room_maker(policy)
    return maker.by if maker is not None else None


def is_cache(policy: Eviction | None) -> bool:
    """Return whether `policy` makes a table a cache: has a CacheEviction."""
    return isinstance(_room_maker(policy), CacheEviction)


def _is_joined_by_or(policy: Eviction) -> bool:
    """Whether what makes room in `policy` stands under ``|`` alone."""
    if isinstance(policy, Or):
        return any(_is_joined_by_or(side) for side in (policy.left, policy.right))
    return isinstance(policy, CapacityEviction | CacheEviction)


def freq_halve_every(policy: Eviction | None) -> int | None:
    """Return after how many steps `policy` halves frequencies, or None if never.

    Raises
    ------
    ArgumentError
        If two of its parts disagree: a table has one set of frequencies.
    """
    if policy is None:
        return None
    leaves = [leaf for leaf in _leaves(policy) if isinstance(leaf, FrequencyEviction)]
    periods = {leaf.halve_every for leaf in leaves if leaf.halve_every is not None}
    if len(periods) > 1:
        raise ArgumentError(f"eviction: halve_every must be one number, got {sorted(periods)}")
    return periods.pop() if periods else None


def from_config(config: Mapping[str, Any]) -> Eviction:
    """Return the eviction policy that `config`, made by ``to_config``, describes."""
    kinds: tuple[type[Eviction], ...] = (
        StepEviction,
        L2Eviction,
        FrequencyEviction,
        CapacityEviction,
        CacheEviction,
        And,
        Or,
    )
    if isinstance(config, Mapping) and config.get("kind") in ("And", "Or"):
        config = {k: from_config(v) if k in ("left", "right") else v for k, v in config.items()}
    return policy_from_config("Eviction", config, kinds)
