"""What goes in and out: the table to save, the table to restore into, rows and candidates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from embstore.checkpoint.layout import Slots


class RowsLike(Protocol):
    """Complete rows, sorted by (partition, key); values as stored, bfloat16 as uint16."""

    @property
    def keys(self) -> NDArray[np.int64]:
        """(n,) int64."""
        ...

    @property
    def values(self) -> NDArray[Any]:
        """(n, dim)."""
        ...

    @property
    def slots(self) -> NDArray[np.float32]:
        """(n, slot_floats) float32."""
        ...

    @property
    def freq(self) -> NDArray[np.uint32]:
        """(n,) uint32."""
        ...

    @property
    def step(self) -> NDArray[np.int64]:
        """(n,) int64."""
        ...


class CandidatesLike(Protocol):
    """Candidates of counter admission, sorted by (partition, key)."""

    @property
    def keys(self) -> NDArray[np.int64]:
        """(n,) int64."""
        ...

    @property
    def counts(self) -> NDArray[np.uint32]:
        """(n,) uint32."""
        ...

    @property
    def epochs(self) -> NDArray[np.int64]:
        """(n,) int64."""
        ...


class TableView(Protocol):
    """A table to save, as of one moment, whatever is written to it meanwhile.

    It is read once and in this order: candidates and filter, which a snapshot keeps in memory until
    then, and rows, each part of them after the one before. An export may run in another thread.
    """

    @property
    def config(self) -> Mapping[str, Any]:
        """The parameters, as JSON."""
        ...

    @property
    def dim(self) -> int:
        """Values of a row."""
        ...

    @property
    def dtype(self) -> str:
        """float32, float16 or bfloat16."""
        ...

    @property
    def slots(self) -> Slots:
        """Name and width of each slot."""
        ...

    @property
    def pins(self) -> NDArray[np.int64]:
        """Unique pinned keys in any order."""
        ...

    def get_state(self) -> Mapping[str, int | float]:
        """Return clocks and totals."""
        ...

    @property
    def bloom_bytes(self) -> int:
        """Bytes of a sub-filter; 0 without a filter."""
        ...

    def partition_counts(self, candidates: bool) -> NDArray[np.uint64]:
        """Return the rows (or candidates) of each partition, (256,)."""
        ...

    def export_rows(self, first: int, last: int, part: slice) -> RowsLike:
        """Return a part of the rows of partitions [first, last]."""
        ...

    def export_candidates(self, first: int, last: int) -> CandidatesLike:
        """Return the candidates of partitions [first, last]."""
        ...

    def bloom_read(self, partition: int) -> NDArray[np.uint8]:
        """Return a sub-filter."""
        ...


class DeltaView(TableView, Protocol):
    """What changed of a table since the layer before: its rows are those born or written since."""

    @property
    def deleted(self) -> NDArray[np.int64] | None:
        """Unique keys removed since, none of which has a row, in any order; None: all are rows."""
        ...

    @property
    def n_live(self) -> int:
        """Rows that the table has now."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class RowBlock:
    """Rows of one block: read-only arrays as `RowsLike` has them."""

    keys: NDArray[np.int64]
    values: NDArray[Any]
    slots: NDArray[np.float32]
    freq: NDArray[np.uint32]
    step: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, part: Any) -> "RowBlock":
        """Return a part of the rows, by a slice or an array of places."""
        if isinstance(part, slice) and part == slice(0, len(self)):
            return self
        return RowBlock(
            self.keys[part], self.values[part], self.slots[part], self.freq[part], self.step[part]
        )


@dataclass(frozen=True, slots=True, eq=False)
class CandidateBlock:
    """Candidates of one block: read-only arrays as `CandidatesLike` has them."""

    keys: NDArray[np.int64]
    counts: NDArray[np.uint32]
    epochs: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, part: Any) -> "CandidateBlock":
        """Return a part of the candidates, by a slice or an array of places."""
        return CandidateBlock(self.keys[part], self.counts[part], self.epochs[part])


@dataclass(frozen=True, slots=True, eq=False)
class KeyBlock:
    """The keys of a block alone."""

    keys: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, part: Any) -> "KeyBlock":
        """Return a part of the keys, by a slice or an array of places."""
        return KeyBlock(self.keys[part])


Block = TypeVar("Block", RowBlock, CandidateBlock, KeyBlock)


def joined(blocks: Sequence[Block]) -> Block:
    """Return one block of all that several have; there is at least one."""
    if len(blocks) == 1:
        return blocks[0]
    kind = type(blocks[0])
    return kind(*(np.concatenate([getattr(b, part.name) for b in blocks]) for part in fields(kind)))


class TableSink(Protocol):
    """An empty table to restore into: the part of an engine that imports."""

    def set_restoring(self, is_restoring: bool) -> None:
        """Say when the import begins, and when it is over."""
        ...

    def reserve(self, n_rows: int) -> None:
        """Make memory for rows to come."""
        ...

    def import_rows(self, rows: Any) -> None:
        """Create the rows of a `RowBlock`."""
        ...

    def import_candidates(self, candidates: Any) -> None:
        """Create the candidates of a `CandidateBlock`."""
        ...

    def bloom_read(self, partition: int) -> NDArray[np.uint8]:
        """Return a sub-filter; empty without a filter."""
        ...

    def bloom_write(self, partition: int, data: NDArray[np.uint8]) -> None:
        """Replace a sub-filter."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Set clocks and totals."""
        ...

    def reset_changes(self) -> None:
        """Begin a new change log."""
        ...
