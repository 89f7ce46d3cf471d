"""Hot rows of the host's memory change places with cold rows of the card's; placement.h."""

from typing import NamedTuple

import numpy as np

from embstore.engines.cuda.core import CudaCore
from embstore.engines.cuda.evict import RankBy, Selection
from embstore.engines.cuda.launch import Launcher
from embstore.engines.cuda.row_bits import (
    DeviceTable,
    RowList,
    download_count,
    list_set,
    set_bytes,
)
from embstore.engines.types import PromoteReport

TILE = 8
SWAP_COUNTS = ("n_rising", "n_rising_tied", "n_falling_tied")  # SwapCounts


class Swaps(NamedTuple):
    """Rows that shall change places, pair by pair: of the host, and of the card."""

    rising: RowList
    falling: RowList

    @property
    def n(self) -> int:
        """Number of pairs."""
        return self.rising.n


def n_host_rows(launcher: Launcher, table: DeviceTable, n_card_rows: int) -> int:
    """Return how many live rows are in the host's memory; waits."""
    count = launcher.scratch("rows of the host", 8)
    launcher.queue.fill(count, 0, 8)
    fields = {"n_ids": table.n_ids, "n_card_rows": n_card_rows, "count": count}
    launcher.run("count_rows_of_host", table.n_ids, table=table.view, **fields)
    return download_count(launcher, count)


def choose(
    launcher: Launcher, table: DeviceTable, n_card_rows: int, n_host: int, most: int | None
) -> Swaps:
    """Return the hottest of the `n_host` rows of the host, and as many of the card's coldest.

    Each of the former is hotter by (freq, step) than some of the latter; at most `most` are chosen.
    They lie in scratch memory. Waits.
    """
    coldest = Selection(launcher, table)
    coldest.select_live()
    limit = coldest.keep_first(n_host, RankBy.COLDEST) >> 64
    n_bytes = set_bytes(table.n_ids)
    rising = launcher.scratch("rising set", n_bytes)
    falling = launcher.scratch("falling set", n_bytes)
    counts = launcher.scratch("swap counts", 8 * len(SWAP_COUNTS))
    launcher.queue.fill(counts, 0, 8 * len(SWAP_COUNTS))
    launcher.run(
        "find_rows_to_swap",
        table.n_ids,
        table=table.view,
        cold=coldest.bits,
        n_ids=table.n_ids,
        n_card_rows=n_card_rows,
        limit=limit,
        rising=rising,
        falling=falling,
        counts=counts,
    )
    out = np.empty(len(SWAP_COUNTS), np.uint64)
    launcher.queue.download(counts, out)
    n_rising, n_rising_tied, n_falling_tied = out.tolist()
    n = n_rising - min(n_rising_tied, n_falling_tied)
    n = n if most is None else min(n, most)
    if n == 0:
        return Swaps(RowList(rising, 0), RowList(falling, 0))
    if n < n_rising:
        Selection.of_set(launcher, table, rising).keep_first(n, RankBy.HOTTEST)
        Selection.of_set(launcher, table, falling).keep_first(n, RankBy.COLDEST)
    return Swaps(
        list_set(launcher, rising, 0, table.n_ids, "rising rows"),
        list_set(launcher, falling, 0, table.n_ids, "falling rows"),
    )


def swap(launcher: Launcher, table: DeviceTable, swaps: Swaps, taken: int) -> None:
    """Let rows change places, pair by pair.

    `taken` is the set of a change log that may come back; 0 is none.
    """
    fields: dict[str, int] = {}
    for name, rows in swaps._asdict().items():
        cells = launcher.scratch(f"cells of {name} rows", 8 * rows.n)
        fields |= {name: rows.address, f"{name}_cells": cells}
    for name, rows in swaps._asdict().items():
        if table.protect is not None:
            table.protect(rows)
        launcher.run(
            "find_cells_of_rows",
            TILE * rows.n,
            table=table.view,
            rows=rows.address,
            n=rows.n,
            cells=fields[f"{name}_cells"],
        )
    launcher.run(
        "swap_listed_rows", TILE * swaps.n, table=table.view, n=swaps.n, taken=taken, **fields
    )


class CudaPlacement(CudaCore):
    """promote."""

    def promote(self, max_rows: int | None) -> PromoteReport:
        """Let at most `max_rows` hot rows of the host change places with cold ones of the card."""
        with self._writing():
            table, n_live = self._table(), self._numbers.n_live
            n_card_ids = self._storage.chunks.n_card_rows
            if n_card_ids is None or table.n_ids <= n_card_ids:
                return PromoteReport(0, n_live, 0)
            n_host = n_host_rows(self._launcher, table, n_card_ids)
            report = PromoteReport(0, n_live - n_host, n_host)
            if n_host in (0, n_live):
                return report
            swaps = choose(self._launcher, table, n_card_ids, n_host, max_rows)
            if swaps.n > 0:
                swap(self._launcher, table, swaps, self._taken_dirty())
        return report._replace(n_promoted=swaps.n)

    def _taken_dirty(self) -> int:
        """Return the set of the change log that comes back if a snapshot is not saved."""
        cut = self._snapshot
        if cut is None or cut.is_detached or cut.taken is None:
            return 0
        return cut.taken.cover(self._launcher.queue, self._storage.side_rows)
