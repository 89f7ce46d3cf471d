"""Tables to read from: as they were saved, or as other sources before them are changed.

A source is read as often as one likes; what it yields is by (partition, key), each key once.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from embstore.checkpoint.checks import STEP_SPAN
from embstore.checkpoint.content import Block, CandidateBlock, RowBlock
from embstore.checkpoint.layout import Slots
from embstore.checkpoint.partition import N_PARTITIONS
from embstore.checkpoint.reader import LoadedTable
from embstore.policies import admission as admissions

LAST = N_PARTITIONS - 1

State = dict[str, int | float]


class TableSource(Protocol):
    """A table that can be read: what `LoadedTable` offers, and where it comes from.

    `shards` are the checkpoints that it is read from, and `n_rows` and `n_candidates` the most
    that there may be. Rows may be older than the
    state's step_base, and candidates older than their policy lets them be, where clocks of
    several tables became one: who takes them applies `clamp_steps` and `drop_expired`.
    """

    name: str
    place: str
    shards: Sequence["SavedTable"]
    dim: int
    dtype: str
    slots: Slots
    config: dict[str, Any]
    state: State
    pins: NDArray[np.int64]
    n_rows: int
    n_candidates: int
    bloom_bytes: int

    @property
    def dropped(self) -> str | None:
        """What was left out while it was read, in words."""
        ...

    def rows(self, first: int = 0, last: int = LAST) -> Iterator[RowBlock]:
        """Yield the rows of partitions [first, last]."""
        ...

    def candidates(self, first: int = 0, last: int = LAST) -> Iterator[CandidateBlock]:
        """Yield the candidates of partitions [first, last]."""
        ...

    def bloom(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the 256 sub-filters; nothing without a filter."""
        ...

    def check_finite(self, allow_nonfinite: bool) -> None:
        """Raise CheckpointMismatchError if there is NaN or infinity and that is not allowed."""
        ...


class SavedTable:
    """A table of one checkpoint, as a source."""

    dropped: str | None = None

    def __init__(self, path: str, table: LoadedTable) -> None:
        self._table = table
        self.name = table.name
        self.path = path
        self.digest = table.digest
        self.place = f"{path}: table {table.name!r}"
        self.shards: Sequence[SavedTable] = [self]
        self.dim = table.dim
        self.dtype = table.dtype
        self.slots = table.slots
        self.config = table.config
        self.state: State = dict(table.state)
        self.pins = table.pins
        self.n_rows = table.n_rows
        self.n_candidates = table.n_candidates
        self.bloom_bytes = table.bloom_bytes

    def rows(self, first: int = 0, last: int = LAST) -> Iterator[RowBlock]:
        """Yield the rows of partitions [first, last]."""
        return self._table.rows(first, last)

    def candidates(self, first: int = 0, last: int = LAST) -> Iterator[CandidateBlock]:
        """Yield the candidates of partitions [first, last]."""
        return self._table.candidates(first, last)

    def bloom(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the 256 sub-filters; nothing without a filter."""
        return self._table.bloom()

    def check_finite(self, allow_nonfinite: bool) -> None:
        """Raise CheckpointMismatchError if there is NaN or infinity and that is not allowed."""
        self._table.check_finite(allow_nonfinite)


def kept(block: Block, mask: NDArray[np.bool_]) -> Iterator[Block]:
    """Yield what a mask keeps of a block, if that is anything."""
    if mask.all():
        if len(block):
            yield block
    elif mask.any():
        yield block[mask]


def highest_step(state: Mapping[str, int | float]) -> int:
    """Return the greatest step that a row of a table in this state can have."""
    return min(int(state["step"]), int(state["step_base"]) + STEP_SPAN - 1)


def clamp_steps(rows: RowBlock, state: Mapping[str, int | float]) -> tuple[RowBlock, int]:
    """Return the rows with no step before the base, and how many were."""
    base = int(state["step_base"])
    n_older = int(np.count_nonzero(rows.step < base))
    if n_older:
        step = np.maximum(rows.step, base)
        rows = RowBlock(rows.keys, rows.values, rows.slots, rows.freq, step)
    return rows, n_older


def drop_expired(
    candidates: CandidateBlock, config: Mapping[str, Any], state: Mapping[str, int | float]
) -> tuple[CandidateBlock, int]:
    """Return the candidates that are not too old at the state's epoch, and how many were."""
    admission = config.get("admission")
    ttl = admission.get("candidate_ttl") if isinstance(admission, Mapping) else None
    if not isinstance(ttl, int) or ttl < 1:
        return candidates, 0
    age = int(state["candidate_epoch"]) - candidates.epochs
    is_young = age <= admissions.candidate_epochs(ttl)
    n_older = int(np.count_nonzero(~is_young))
    return (candidates[is_young] if n_older else candidates), n_older


def settled_state(state: State, n_clamped: int, n_expired: int) -> State:
    """Return a state that counts the rows clamped, and the candidates dropped, on the way."""
    counts = {
        "n_steps_clamped": state["n_steps_clamped"] + n_clamped,
        "n_candidates_expired": state["n_candidates_expired"] + n_expired,
    }
    return {**state, **counts}
