"""What differs between a table of one checkpoint and one of another, block by block."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore.checkpoint import CandidateBlock, LoadedTable, RowBlock
from embstore.cli._merge import side_by_side
from embstore.cli._progress import Bar
from embstore.cli._rows import json_number, widened

PARTS = ("values", "slots", "freq", "step")


@dataclass
class RowsDifference:
    """Counts, and the first keys, of rows that only one table has or that are not the same."""

    limit: int
    n_both: int = 0
    n_only: list[int] = field(default_factory=lambda: [0, 0])
    only: list[list[int]] = field(default_factory=lambda: [[], []])
    n_changed: int = 0
    n_changed_parts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    changed: list[dict[str, Any]] = field(default_factory=list)
    max_abs: float = 0.0
    square: float = 0.0

    def add_only(self, side: int, keys: NDArray[np.int64]) -> None:
        """Take keys that one table alone has."""
        self.n_only[side] += len(keys)
        self.only[side] += keys[: self.limit - len(self.only[side])].tolist()

    def add_both(self, one: RowBlock, other: RowBlock) -> None:
        """Take rows of the same keys."""
        self.n_both += len(one.keys)
        is_changed = {name: _differs(getattr(one, name), getattr(other, name)) for name in PARTS}
        for name in PARTS:
            self.n_changed_parts[name] += int(np.count_nonzero(is_changed[name]))
        distance = self._measure(one.values, other.values)
        changed = np.flatnonzero(np.logical_or.reduce(list(is_changed.values())))
        self.n_changed += len(changed)
        for at in changed[: self.limit - len(self.changed)].tolist():
            names = [name for name in PARTS if is_changed[name][at]]
            entry = {"key": int(one.keys[at]), "changed": names}
            self.changed.append({**entry, "max_abs_difference": json_number(distance[at])})

    def _measure(self, one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
        """Take the distances of values; return the greatest of each row, NaN as infinity."""
        if one.shape != other.shape:
            return np.full(len(one), np.nan)
        a, b = widened(one), widened(other)
        with np.errstate(invalid="ignore"):
            distance = np.abs(a.astype(np.float64) - b.astype(np.float64))
        distance[a.view(np.uint32) == b.view(np.uint32)] = 0.0
        distance[np.isnan(distance)] = np.inf
        self.max_abs = max(self.max_abs, float(distance.max(initial=0.0)))
        self.square += float(np.sum(distance * distance))
        greatest: NDArray[np.float64] = distance.max(axis=1)
        return greatest

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "n_both": self.n_both,
            "n_only_a": self.n_only[0],
            "n_only_b": self.n_only[1],
            "n_changed": self.n_changed,
            "n_changed_parts": self.n_changed_parts,
            "max_abs_difference": json_number(self.max_abs),
            "l2_difference": json_number(self.square**0.5),
            "only_a": self.only[0],
            "only_b": self.only[1],
            "changed": self.changed,
        }


def _differs(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which rows are not the same to the bit; values of two dtypes meet in float32."""
    if one.shape != other.shape:
        return np.ones(len(one), np.bool_)
    if one.dtype != other.dtype:
        one, other = widened(one), widened(other)
    differs: NDArray[np.bool_] = _bits(one) != _bits(other)
    return differs if differs.ndim == 1 else np.logical_or.reduce(differs, axis=1)


def _bits(numbers: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(numbers).view(f"u{numbers.dtype.itemsize}")


def compare_rows(one: LoadedTable, other: LoadedTable, limit: int) -> RowsDifference:
    """Return what differs between the rows of two tables."""
    found = RowsDifference(limit)
    with Bar("diff", one.n_rows + other.n_rows, "rows") as bar:
        for a, b in side_by_side(one.rows(), other.rows()):
            bar.update((0 if a is None else len(a)) + (0 if b is None else len(b)))
            if a is None or b is None:
                for side, block in enumerate((a, b)):
                    if block is not None:
                        found.add_only(side, block.keys)
                continue
            at_a, at_b = _shared(a.keys, b.keys)
            found.add_only(0, a.keys[~at_a])
            found.add_only(1, b.keys[~at_b])
            found.add_both(a[at_a], b[at_b])
    return found


def _shared(
    one: NDArray[np.int64], other: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which keys of each the other has too; both are in one order, so they then align."""
    return (
        np.isin(one, other, assume_unique=True),
        np.isin(other, one, assume_unique=True),
    )


def compare_candidates(one: LoadedTable, other: LoadedTable) -> dict[str, int]:
    """Return how many pending keys are in one table alone, or counted otherwise."""
    n_only, n_changed = [0, 0], 0
    for a, b in side_by_side(one.candidates(), other.candidates()):
        if a is None or b is None:
            n_only[0 if b is None else 1] += len(a or b or ())
            continue
        at_a, at_b = _shared(a.keys, b.keys)
        n_only[0] += int(np.count_nonzero(~at_a))
        n_only[1] += int(np.count_nonzero(~at_b))
        n_changed += _n_counted_otherwise(a, b, at_a, at_b)
    return {"n_only_a": n_only[0], "n_only_b": n_only[1], "n_changed": n_changed}


def _n_counted_otherwise(
    a: CandidateBlock, b: CandidateBlock, at_a: NDArray[np.bool_], at_b: NDArray[np.bool_]
) -> int:
    is_other = (a.counts[at_a] != b.counts[at_b]) | (a.epochs[at_a] != b.epochs[at_b])
    return int(np.count_nonzero(is_other))


def compare_filters(one: LoadedTable, other: LoadedTable) -> int:
    """Return how many bytes of the bloom filters differ; all where their sizes do."""
    n_differing = 0
    for a, b in zip_longest(one.bloom(), other.bloom()):
        if a is None or b is None or len(a) != len(b):
            n_differing += max(len(x) for x in (a, b) if x is not None)
        else:
            n_differing += int(np.count_nonzero(a != b))
    return n_differing


def compare_members(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the members of two dicts that differ, with both values."""
    names = [*one, *(name for name in other if name not in one)]
    return {
        name: [one.get(name), other.get(name)] for name in names if one.get(name) != other.get(name)
    }


def compare_tables(one: LoadedTable, other: LoadedTable, limit: int) -> dict[str, Any]:
    """Return what differs between two tables, as a dict for JSON; `is_equal` says whether any."""
    shapes = [
        {"dim": t.dim, "dtype": t.dtype, "slots": [list(slot) for slot in t.slots]}
        for t in (one, other)
    ]
    found: dict[str, Any] = {
        "a": one.name,
        "b": other.name,
        "shape": compare_members(*shapes),
        "config": compare_members(one.config, other.config),
        "state": compare_members(one.state, other.state),
        "rows": compare_rows(one, other, limit).to_dict(),
        "candidates": compare_candidates(one, other),
        "n_filter_bytes": compare_filters(one, other),
        "n_pins": len(np.setxor1d(one.pins, other.pins)),
    }
    rows = found["rows"]
    is_different = [
        *(found[name] for name in ("shape", "config", "state", "n_filter_bytes", "n_pins")),
        *(rows[name] for name in ("n_only_a", "n_only_b", "n_changed")),
        *found["candidates"].values(),
    ]
    return {"is_equal": not any(is_different), **found}
