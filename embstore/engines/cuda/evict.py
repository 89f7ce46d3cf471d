"""Eviction and erasure on the device; docs/semantics.md, sections 4 (point 5), 7 and 8."""

import time
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from embstore.engines.cuda.launch import Launcher
from embstore.engines.cuda.row_bits import (
    WORD_ROWS,
    DeviceTable,
    RowList,
    list_set,
    set_bytes,
)
from embstore.engines.cuda.transfer import RowReader
from embstore.engines.native import PREDICATE_OPS, NativePredicate
from embstore.engines.types import Rows
from embstore.errors import InternalError

TILE = 8
PREDICATE = np.dtype(
    {
        "names": ["op", "threshold", "min_freq", "steps"],
        "formats": ["<i4", "<f4", "<u4", "<i8"],
        "offsets": [0, 4, 8, 16],
        "itemsize": 24,
    }
)
RANK_BYTES = 16  # of a row's score, then of its key
BLOCK_ROWS = 4096  # a bounded call does that much at least
MOST_BLOCK_ROWS = 1 << 22  # between two looks at the clock
REMOVAL_S = 5e-9  # of one row, about


class RankBy(IntEnum):
    """By what rows are ordered, and then by key; heat is freq, then step."""

    STEP = 0
    FREQ = 1
    COLDEST = 2
    HOTTEST = 3

    @property
    def first_byte(self) -> int:
        """The first byte of a rank that may differ: scores by step or freq have the low four."""
        return 4 if self in (RankBy.STEP, RankBy.FREQ) else 0


class Program(NamedTuple):
    """A predicate in postfix order, on the device."""

    address: int
    n: int
    asks_norm: bool


class Keys(NamedTuple):
    """Keys on the device: the address of (n,) int64."""

    address: int
    n: int


class Counts(NamedTuple):
    """Live rows that were looked at, and those of them that are selected."""

    n_scanned: int
    n_selected: int


def upload_program(launcher: Launcher, predicates: Sequence[NativePredicate]) -> Program:
    """Put a predicate into scratch memory."""
    program = np.zeros(len(predicates), PREDICATE)
    for place, predicate in enumerate(predicates):
        program[place] = predicate
    address = launcher.scratch("program", program.nbytes)
    launcher.queue.upload(address, program.view(np.uint8))
    asks_norm = any(op == PREDICATE_OPS["l2"] for op, *_ in predicates)
    return Program(address, len(predicates), asks_norm)


class Deadline:
    """When a bounded call must end; None or 0 seconds bound nothing."""

    def __init__(self, seconds: float | None) -> None:
        self.is_bounded = bool(seconds)
        self._end = time.monotonic() + (seconds or 0.0)

    def is_too_near(self, seconds: float = 0.0) -> bool:
        """Return whether work of so many seconds would end too late."""
        return self.is_bounded and time.monotonic() + seconds >= self._end


class Selection:
    """Rows of a table that are to go: those of a range of ids, a bit each.

    One at a time: it lies in scratch memory.
    """

    def __init__(self, launcher: Launcher, table: DeviceTable, first_row: int = 0) -> None:
        if first_row % WORD_ROWS != 0:
            raise InternalError(f"a selection begins at a multiple of 32, not at row {first_row}")
        self._launcher = launcher
        self._table = table
        self.first_row = first_row
        self.end_row = first_row
        self._bits = launcher.scratch("selected rows", set_bytes(table.n_ids))
        self._counts = launcher.scratch("selection counts", 16)
        launcher.queue.fill(self._counts, 0, 16)

    @classmethod
    def of_set(cls, launcher: Launcher, table: DeviceTable, bits: int) -> "Selection":
        """Return a selection of all ids that lies in a set of the caller's."""
        selection = cls(launcher, table)
        selection._bits, selection.end_row = bits, table.n_ids
        return selection

    @property
    def bits(self) -> int:
        """Address of the set."""
        return self._bits

    def _range(self) -> dict[str, int]:
        return {"first_row": self.first_row, "end_row": self.end_row}

    def extend(self, program: Program, step: int, end_row: int) -> None:
        """Add the rows of the ids up to `end_row` for which the predicate holds.

        `end_row` is a multiple of 32, or the end of all ids.
        """
        kernel = "select_rows_by_norms" if program.asks_norm else "select_rows_by_records"
        self._launcher.run(
            kernel,
            end_row - self.end_row,
            table=self._table.view,
            program=program.address,
            n_predicates=program.n,
            step=step,
            first_row=self.end_row,
            end_row=end_row,
            selected=self._bits,
            counts=self._counts,
        )
        self.end_row = end_row

    def select_live(self) -> None:
        """Make it all live rows."""
        self.end_row = self._table.n_ids
        self._launcher.run(
            "select_rows_of_set",
            self.end_row,
            set=self._table.live,
            other=0,
            end_row=self.end_row,
            selected=self._bits,
            counts=self._counts,
        )

    def spare_keys(self, keys: Keys) -> None:
        """Take the rows of these keys out."""
        if keys.n > 0:
            self._launcher.run(
                "spare_selected_keys",
                TILE * keys.n,
                table=self._table.view,
                keys=keys.address,
                n=keys.n,
                **self._range(),
                selected=self._bits,
                counts=self._counts,
            )

    def spare_rows(self, rows: RowList, n_at: int = 0) -> None:
        """Take these rows out, of a selection of all ids; 0xFFFFFFFF is none.

        `n_at` is where the device keeps their number, at most ``rows.n``; 0 is nowhere.
        """
        self._launcher.run(
            "spare_selected_rows",
            rows.n,
            rows=rows.address,
            n=rows.n,
            n_at=n_at,
            selected=self._bits,
            counts=self._counts,
        )

    def counts(self) -> Counts:
        """Return how many rows there are; waits for the device."""
        out = np.empty(2, np.uint64)
        self._launcher.queue.download(self._counts, out)
        return Counts(int(out[0]), int(out[1]))

    def keep_first(self, n: int, by: RankBy) -> int:
        """Keep the n rows that come first by their rank, n of at least as many.

        Return a number of 16 bytes, score and key: the ranks of those n are not beyond it.
        """
        if n == 0:
            at = self._bits + self.first_row // WORD_ROWS * 4
            self._launcher.queue.fill(at, 0, set_bytes(self.end_row - self.first_row))
            return 0
        limit = self._nth_rank(n, by)
        score, key = divmod(limit, 1 << 64)
        self._launcher.run(
            "keep_first_selected",
            self.end_row - self.first_row,
            table=self._table.view,
            **self._range(),
            by=by,
            score=score,
            key=key,
            selected=self._bits,
        )
        return limit

    def _nth_rank(self, n: int, by: RankBy) -> int:
        """Return a number of 16 bytes; the ranks of n rows are not beyond it."""
        known, left = 0, n
        for place in range(by.first_byte, RANK_BYTES):
            counts = self._count_ranks(known, place, by)
            upto = np.cumsum(counts)
            byte = int(np.searchsorted(upto, left))
            if byte == len(counts):
                raise InternalError(f"{n} rows were to be chosen of {int(upto[-1])}")
            n_bits = 8 * (RANK_BYTES - 1 - place)
            known |= byte << n_bits
            left -= int(upto[byte] - counts[byte])
            if left == counts[byte]:  # all that begin so
                return known | (1 << n_bits) - 1
        return known

    def _count_ranks(
        self, known: int, n_known: int, by: RankBy
    ) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return how many rows have each value of the byte after the known ones."""
        counts = self._launcher.scratch("rank counts", 8 * 256)
        self._launcher.queue.fill(counts, 0, 8 * 256)
        self._launcher.run(
            "count_selected_ranks",
            self.end_row - self.first_row,
            table=self._table.view,
            selected=self._bits,
            **self._range(),
            by=by,
            score=known >> 64,
            key=known & 0xFFFFFFFFFFFFFFFF,
            n_known=n_known,
            counts=counts,
        )
        out = np.empty(256, np.int64)
        self._launcher.queue.download(counts, out)
        return out

    def rows(self, first_row: int, end_row: int) -> RowList:
        """Return the rows of a part of its range, ascending; waits for their number."""
        return list_set(self._launcher, self._bits, first_row, end_row, "victims")


def select_for_room(
    launcher: Launcher,
    table: DeviceTable,
    pins: Keys,
    batch: RowList,
    n: int,
    is_by_freq: bool,
    n_at: int = 0,
) -> tuple[Selection, int]:
    """Return the n rows that make room, fewer where no more are eligible, and their number.

    They are the first by (score, key) that are neither pinned nor rows of the batch, among which
    0xFFFFFFFF is none; `n_at` is where the device keeps their number, 0 is nowhere.
    """
    selection = Selection(launcher, table)
    selection.select_live()
    selection.spare_rows(batch, n_at)
    selection.spare_keys(pins)
    n_selected = selection.counts().n_selected
    if n < n_selected:
        selection.keep_first(n, RankBy.FREQ if is_by_freq else RankBy.STEP)
    return selection, min(n, n_selected)


def remove(launcher: Launcher, table: DeviceTable, rows: RowList, is_erasure: bool = False) -> None:
    """Remove a list of distinct live rows, and count them as evicted or erased.

    The host has seen to room in free_rows and, with a change log, in removed_keys.
    """
    if rows.n == 0:
        return
    if table.protect is not None:
        table.protect(rows)
    cells = launcher.scratch("cells of rows", 8 * rows.n)
    fields = {"table": table.view, "rows": rows.address, "n": rows.n, "cells": cells}
    launcher.run("find_cells_of_rows", TILE * rows.n, **fields)
    launcher.run("remove_listed_rows", rows.n, **fields)
    launcher.run("settle_removal_of_rows", 1, table=table.view, n=rows.n, is_erasure=is_erasure)


def erase(
    launcher: Launcher, table: DeviceTable, keys: Keys, reserve: Callable[[int], None]
) -> int:
    """Remove the rows and candidates of keys, which may come twice; return how many rows.

    `reserve(n)` sees to room for n more removals, before anything changes.
    """
    if keys.n == 0:
        return 0
    bits = launcher.scratch("selected rows", set_bytes(table.n_ids))
    cells = launcher.scratch("cells of candidates", 8 * keys.n)
    launcher.queue.fill(bits, 0, set_bytes(table.n_ids))
    fields = {"table": table.view, "n": keys.n, "cells": cells}
    launcher.run("mark_erased_keys", TILE * keys.n, **fields, keys=keys.address, rows=bits)
    rows = list_set(launcher, bits, 0, table.n_ids, "victims")
    launcher.scratch("cells of rows", 8 * rows.n)
    reserve(rows.n)
    launcher.run("drop_candidate_cells", keys.n, **fields)
    remove(launcher, table, rows, is_erasure=True)
    return rows.n


class EvictCall(NamedTuple):
    """What evict() was asked for; see `embstore.engines.engine.Engine.evict`.

    `pins` are the keys that no eviction takes, and those of this call.
    """

    program: Program
    step: int
    max_rows: int | None = None
    keep_at_least: int = 0
    pins: tuple[Keys, ...] = ()
    max_seconds: float | None = None
    is_dry_run: bool = False


class Evicted(NamedTuple):
    """What an eviction did; `rows` are piece by piece what was to be read of them.

    `cursor` is where the next bounded call begins.
    """

    n_scanned: int
    n_selected: int
    n_evicted: int
    is_complete: bool
    cursor: int
    rows: list[Rows]


def evict(
    launcher: Launcher,
    table: DeviceTable,
    call: EvictCall,
    n_live: int,
    cursor: int,
    reserve: Callable[[int], None],
    reader: RowReader | None,
) -> Evicted:
    """Remove the rows for which a predicate holds.

    Parameters
    ----------
    launcher, table, call
        Where, and what is asked for.
    n_live
        Rows of the table.
    cursor
        Of the last eviction.
    reserve
        ``reserve(n)`` sees to room for n more removals, before anything changes.
    reader
        Reads the rows that go, if given.
    """
    deadline = Deadline(call.max_seconds)
    is_resumed = deadline.is_bounded and cursor < table.n_ids
    selection = Selection(launcher, table, cursor if is_resumed else 0)
    _scan(selection, call, deadline, table.n_ids)
    n_scanned = selection.counts().n_scanned
    for pins in call.pins:
        selection.spare_keys(pins)
    n_selected = selection.counts().n_selected
    n_spare = max(0, n_live - call.keep_at_least)
    n_most = n_spare if call.max_rows is None else min(call.max_rows, n_spare)
    n_victims = min(n_most, n_selected)
    if n_victims < n_selected:
        selection.keep_first(n_victims, RankBy.STEP)
    if n_victims == 0 or (call.is_dry_run and reader is None):
        n_evicted, next_row, rows = 0, selection.end_row, []
    else:
        launcher.scratch("victims", 4 * n_victims)
        launcher.scratch("cells of rows", 8 * n_victims)
        if reader is not None:
            reader.reserve(n_victims)
        if not call.is_dry_run:
            reserve(n_victims)
        removal = _Removal(launcher, table, call.is_dry_run, reader)
        next_row = removal.run(selection, deadline)
        n_evicted, rows = removal.n_evicted, removal.rows
    end = next_row if deadline.is_bounded and not call.is_dry_run else selection.end_row
    is_complete = end >= table.n_ids
    if deadline.is_bounded and not call.is_dry_run:
        cursor = 0 if is_complete else next_row // WORD_ROWS * WORD_ROWS
    return Evicted(n_scanned, n_selected, n_evicted, is_complete, cursor, rows)


def _scan(selection: Selection, call: EvictCall, deadline: Deadline, n_ids: int) -> None:
    """Select block by block, one at least, while there is time to remove what is selected."""
    n_rows = BLOCK_ROWS if deadline.is_bounded else n_ids
    while selection.end_row < n_ids:
        end_row = min(n_ids, selection.end_row + n_rows)
        selection.extend(call.program, call.step, end_row)
        if deadline.is_bounded:
            if deadline.is_too_near(REMOVAL_S * selection.counts().n_selected):
                return
        n_rows = min(2 * n_rows, MOST_BLOCK_ROWS)


class _Removal:
    """The removal of a selection in the order of row ids, and what is read of it beforehand."""

    def __init__(
        self,
        launcher: Launcher,
        table: DeviceTable,
        is_dry_run: bool,
        reader: RowReader | None,
    ) -> None:
        self._launcher = launcher
        self._table = table
        self._is_dry_run = is_dry_run
        self._reader = reader
        self.n_evicted = 0
        self.rows: list[Rows] = []

    def run(self, selection: Selection, deadline: Deadline) -> int:
        """Remove block by block, one at least, while there is time; return where that ended."""
        at, end = selection.first_row, selection.end_row
        n_rows = BLOCK_ROWS if deadline.is_bounded else end - at
        while at < end and (at == selection.first_row or not deadline.is_too_near()):
            next_row = min(end, at + n_rows)
            self._take(selection.rows(at, next_row))
            at = next_row
            n_rows = min(2 * n_rows, MOST_BLOCK_ROWS)
        return at

    def _take(self, rows: RowList) -> None:
        if self._reader is not None and rows.n > 0:
            self.rows.append(self._reader.read(self._table, rows))
        if not self._is_dry_run:
            remove(self._launcher, self._table, rows)
            self.n_evicted += rows.n
