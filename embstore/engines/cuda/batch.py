"""The distinct keys of a batch on the device, and the ticket that remembers them for backward."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from embstore.engines.cuda.device import Memory
from embstore.engines.cuda.launch import Launcher
from embstore.engines.cuda.order import scan

if TYPE_CHECKING:
    from embstore.engines.cuda.core import CudaCore

MOST_KEYS = 2**32 - 2  # of a batch: positions are numbered in 32 bits, and one number means none


def slots_for(n: int) -> int:
    """Return the slots of the hash table of a batch, a power of two at least twice n."""
    return 1 << max(1, 2 * n - 1).bit_length()


class Distinct:
    """Distinct keys by first occurrence, and what is known of each; addresses in the device.

    `keys` (n_unique,) uint64, `inverse` (n,) uint32, `status` (n_unique,) uint8, `rows`
    (n_unique,) uint32 and the word `n_unique` last as long as this object. `occurrences`, `before`,
    `cells` and `ranks`, by the numbers of distinct keys, lie in the scratch of the call.
    """

    def __init__(self, launcher: Launcher, n: int) -> None:
        self.n = n
        self._memory: Memory = launcher.alloc(8 + 17 * n)
        self.n_unique = self._memory.address
        self.keys = self.n_unique + 8
        self.inverse = self.keys + 8 * n
        self.rows = self.inverse + 4 * n
        self.status = self.rows + 4 * n
        self.occurrences = self.before = self.cells = self.ranks = 0

    @property
    def n_bytes(self) -> int:
        """Bytes that it holds."""
        return self._memory.n_bytes

    def find(
        self, launcher: Launcher, keys: int, counts: int | None, hash_fields: dict[str, int]
    ) -> None:
        """Find the distinct ones of `keys` (n,).

        Their occurrences are the sums of `counts` (n,) uint32, of ones where that is 0; nobody asks
        for them if it is None.
        """
        n, n_slots = self.n, slots_for(self.n)
        slots = launcher.scratch("dedup_slots", 4 * n_slots)
        slot_of = launcher.scratch("dedup_slot_of", 4 * n)
        numbers = launcher.scratch("dedup_numbers", 4 * n)
        if counts is not None:
            self.occurrences = launcher.scratch("occurrences", 8 * n)
            launcher.queue.fill(self.occurrences, 0, 8 * n)
        launcher.queue.fill(slots, 0xFF, 4 * n_slots)
        launcher.run(
            "dedup_claim",
            n,
            keys=keys,
            n=n,
            slots=slots,
            mask=n_slots - 1,
            slot_of=slot_of,
            **hash_fields,
        )
        launcher.run("dedup_flag", n, n=n, slots=slots, slot_of=slot_of, is_first=numbers)
        scan(launcher, numbers, n, numbers, total=self.n_unique)
        launcher.run(
            "dedup_write",
            n,
            keys=keys,
            n=n,
            counts=counts or 0,
            slots=slots,
            slot_of=slot_of,
            numbers=numbers,
            unique_keys=self.keys,
            inverse=self.inverse,
            occurrences=self.occurrences,
        )

    def look_up(self, launcher: Launcher, view: int, admits: int) -> None:
        """Find rows and candidates of the keys, and decide what becomes of the absent ones."""
        n = self.n
        self.before = launcher.scratch("before", 4 * n)
        self.cells = launcher.scratch("cells", 8 * n)
        self.ranks = launcher.scratch("ranks", 4 * n)
        launcher.run(
            "look_up",
            8 * n,
            table=view,
            keys=self.keys,
            n_unique=self.n_unique,
            occurrences=self.occurrences,
            admits=admits,
            status=self.status,
            rows=self.rows,
            before=self.before,
            cells=self.cells,
            is_new=self.ranks,
        )

    def tally(self, launcher: Launcher, view: int, tally: int, n_bytes: int) -> None:
        """Add up what is to become of the keys, and rank those that are to be inserted."""
        scan(launcher, self.ranks, self.n, self.ranks, n_at=self.n_unique)
        launcher.queue.fill(tally, 0, n_bytes)
        launcher.run(
            "tally_keys",
            self.n,
            table=view,
            n_unique=self.n_unique,
            status=self.status,
            before=self.before,
            cells=self.cells,
            tally=tally,
        )

    def rank_again(self, launcher: Launcher) -> None:
        """Flag the keys that are to be inserted anew, after some were refused."""
        launcher.run(
            "flag_status",
            self.n,
            n_unique=self.n_unique,
            status=self.status,
            wanted=1,
            flags=self.ranks,
        )

    def find_cells_again(self, launcher: Launcher, view: int) -> None:
        """Find the cells of the keys anew, after the index has moved."""
        launcher.run(
            "find_cells",
            8 * self.n,
            table=view,
            keys=self.keys,
            n_unique=self.n_unique,
            cells=self.cells,
        )


class CudaTicket:
    """What find_or_insert remembers of a batch; see `embstore.engines.engine.Ticket`."""

    def __init__(self, engine: "CudaCore", distinct: Distinct, n_clears: int) -> None:
        self.engine = engine
        self.distinct = distinct
        self.n_clears = n_clears
        self._arrays: tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint32]] | None = None

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint32]]:
        """Return (keys, status, inverse): unique keys by first occurrence, status, places."""
        if self._arrays is None:
            self._arrays = self.engine.download_ticket(self.distinct)
        return self._arrays

    def n(self) -> int:
        """Return the number of keys."""
        return self.distinct.n

    def n_unique(self) -> int:
        """Return the number of unique keys."""
        return len(self.arrays()[0])
