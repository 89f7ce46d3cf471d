"""What a checkpoint reads of a table as of one moment."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embstore.engines.spec import N_PARTITIONS
from embstore.engines.types import Candidates, Rows
from embstore.table.base import TableBase

if TYPE_CHECKING:
    from embstore.engines.engine import Snapshot


class SnapshotView:
    """What a checkpoint reads of a snapshot: the rows once, part after part."""

    def __init__(self, table: TableBase, snapshot: "Snapshot", is_delta: bool) -> None:
        self._snapshot = snapshot
        self.config: dict[str, Any] = table._spec.to_config()
        self.dim: int = table.dim
        self.dtype: str = table.dtype
        self.slots = table.slots
        self.pins: NDArray[np.int64] = table._pins
        self.bloom_bytes: int = table._spec.bloom_bytes
        self._is_delta = is_delta
        self._firsts: dict[bool, NDArray[np.uint64]] = {}

    def prepare(self, n_threads: int, is_beside_training: bool) -> None:
        """Put the rows in order, on so many threads.

        Beside training the log will be used: its memory is taken now, not as writers come to it.
        """
        self._snapshot.prepare(n_threads, is_beside_training)

    @property
    def deleted(self) -> NDArray[np.int64] | None:
        """Keys that a delta removes; None of a whole table."""
        return self._snapshot.deleted() if self._is_delta else None

    @property
    def n_live(self) -> int:
        """Rows that the table had."""
        return self._snapshot.stats()["n_live"]

    def get_state(self) -> dict[str, Any]:
        """Return the clocks and totals."""
        return self._snapshot.state()

    def partition_counts(self, candidates: bool) -> NDArray[np.uint64]:
        """Return the rows (or candidates) of each partition."""
        return self._snapshot.counts(candidates)

    def _places(self, candidates: bool, first: int, last: int) -> tuple[int, int]:
        """Return where partitions [first, last] begin, and how much they hold."""
        if candidates not in self._firsts:
            sums = np.zeros(N_PARTITIONS + 1, np.uint64)
            np.cumsum(self._snapshot.counts(candidates), out=sums[1:])
            self._firsts[candidates] = sums
        sums = self._firsts[candidates]
        return int(sums[first]), int(sums[last + 1] - sums[first])

    def export_rows(self, first: int, last: int, part: slice) -> Rows:
        """Return a part of the rows of partitions [first, last], values as stored."""
        begin, _ = self._places(False, first, last)
        n = part.stop - part.start
        return Rows(*self._snapshot.rows(begin + part.start, n, 1))

    def export_candidates(self, first: int, last: int) -> Candidates:
        """Return the candidates of partitions [first, last]."""
        return Candidates(*self._snapshot.candidates(*self._places(True, first, last)))

    def bloom_read(self, partition: int) -> NDArray[np.uint8]:
        """Return the bytes of one sub-filter."""
        return self._snapshot.bloom(partition)
