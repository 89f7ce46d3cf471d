"""Whether the new keys of a batch fit, and who makes room or is refused; semantics, section 4.

The arrays are by the numbers of distinct keys, which are in order of first occurrence.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embstore.engines.cuda.storage import Counters, Storage

FOUND, INSERTED, PENDING, REFUSED = range(4)


@dataclass
class Needs:
    """What the absent keys of a batch need, and may be refused."""

    status: NDArray[np.uint8]
    has_cell: NDArray[np.bool_]
    has_counter: bool

    def __post_init__(self) -> None:
        self.missing = np.flatnonzero(self.status != FOUND)

    @property
    def needs_row(self) -> NDArray[np.bool_]:
        """Which of the missing keys are to be inserted."""
        return np.equal(self.status[self.missing], INSERTED)

    @property
    def needs_cell(self) -> NDArray[np.bool_]:
        """Which of the missing keys need a new cell of the index."""
        status = self.status[self.missing]
        wants = np.equal(status, INSERTED) | (np.equal(status, PENDING) & self.has_counter)
        return np.logical_and(wants, ~self.has_cell[self.missing])

    @property
    def n_rows(self) -> int:
        """Number of rows to be made."""
        return int(self.needs_row.sum())

    @property
    def n_cells(self) -> int:
        """Number of cells to be taken."""
        return int(self.needs_cell.sum())

    def refuse_rows_beyond(self, n: int) -> None:
        """Refuse all but the first n keys that are to be inserted."""
        self.status[self.missing[self.needs_row][n:]] = REFUSED

    def refuse_from(self, first: int) -> None:
        """Refuse what takes room among the missing keys, from number `first` on."""
        takes_room = self.needs_row | self.needs_cell
        takes_room[:first] = False
        self.status[self.missing[takes_room]] = REFUSED


class Budget:
    """The bytes that a table would hold with more rows and cells, against ``max_bytes``."""

    def __init__(self, storage: Storage, counters: Counters, max_bytes: int | None) -> None:
        self._storage = storage
        self._n_ids, self._n_free = counters.n_ids, counters.n_free
        self._n_cells = counters.n_live + counters.n_candidates
        self.max_bytes = max_bytes

    def bytes_with(self, n_rows: int, n_cells: int, n_victims: int = 0) -> int:
        """Return the bytes at the peak of a call, which removes so many rows first."""
        storage = self._storage
        n_more = max(0, n_rows - n_victims)
        n_ids = self._n_ids + max(0, n_more - self._n_free)
        index_bytes = storage.bytes_by_use()["nbytes_index"]
        growth = storage.index_growth_bytes(self._n_cells + n_cells)
        fixed = storage.own_bytes + storage.bloom_bytes
        return fixed + storage.rows_bytes_for(n_ids) + index_bytes + growth

    def fits(self, n_rows: int, n_cells: int, n_victims: int = 0) -> bool:
        """Return whether they fit; what needs nothing always does."""
        if self.max_bytes is None or (n_rows == 0 and n_cells == 0):
            return True
        return self.bytes_with(n_rows, n_cells, n_victims) <= self.max_bytes

    def fits_beside(self, n_bytes: int) -> bool:
        """Return whether so many bytes more fit for a moment."""
        return self.max_bytes is None or self.bytes_with(0, 0) + n_bytes <= self.max_bytes

    def fitting_prefix(self, needs: Needs, n_victims: int) -> int:
        """Return how many of the missing keys, from the first, can be served."""
        n = len(needs.missing)
        n_rows = np.concatenate(([0], np.cumsum(needs.needs_row))).tolist()
        n_cells = np.concatenate(([0], np.cumsum(needs.needs_cell))).tolist()
        fits, beyond = 0, n + 1
        while beyond - fits > 1:
            middle = (fits + beyond) // 2
            if self.fits(n_rows[middle], n_cells[middle], n_victims):
                fits = middle
            else:
                beyond = middle
        return fits


def rows_to_remain(max_rows: int, n_new: int) -> int:
    """Return what shall remain of `max_rows` when a batch of n_new rows is about to come."""
    return max(0, max_rows * 19 // 20 - n_new)
