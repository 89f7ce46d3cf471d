"""What must hold for the rows and candidates of a table; asked before writing and after reading."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from embstore import _core
from embstore.checkpoint.content import CandidateBlock, RowBlock
from embstore.checkpoint.entries import TableEntry
from embstore.checkpoint.partition import N_PARTITIONS, OrderCheck, is_before, order_fault

STEP_SPAN = 1 << 32  # steps that a table can tell apart at one time
DTYPE_CODES = {"float32": 0, "float16": 1, "uint16": 2}  # of es_dtype, for values as stored


class RowsSeen(NamedTuple):
    """What can be said of a block of rows without those before it."""

    fault: str | None
    n_nonfinite: int = 0
    first_key: int = 0
    last_key: int = 0


def look_at_rows(table: TableEntry, rows: RowBlock, first: int, last: int) -> RowsSeen:
    """Return what is wrong with a block of rows of partitions [first, last], and what is not."""
    code = DTYPE_CODES.get(rows.values.dtype.name)
    if code is None or rows.keys.dtype != np.int64 or rows.slots.dtype != np.float32:
        return RowsSeen(f"rows are of {rows.keys.dtype}, {rows.values.dtype}, {rows.slots.dtype}")
    keys, values, slots = map(np.ascontiguousarray, (rows.keys, rows.values, rows.slots))
    place, n_nonfinite = _core.check_rows(keys, first, last, None, values, code, slots)
    if place < len(rows):
        fault: str | None = order_fault(
            keys[place], keys[place - 1] if place else None, first, last
        )
    else:
        fault = _step_fault(table, rows)
    return RowsSeen(fault, n_nonfinite, int(keys[0]), int(keys[-1]))


def _step_fault(table: TableEntry, rows: RowBlock) -> str | None:
    low = int(table.state["step_base"])
    high = min(int(table.state["step"]), low + STEP_SPAN - 1)
    if low <= rows.step.min() and rows.step.max() <= high:
        return None
    is_off = (rows.step < low) | (rows.step > high)
    at = int(is_off.argmax())
    return f"the row of key {rows.keys[at]} is of step {rows.step[at]}, not of {low}..{high}"


@dataclass(slots=True)
class RowCheck:
    """Follows the rows of one table through its files, and counts those with NaN or infinity."""

    table: TableEntry
    n_nonfinite: int = 0
    _last_key: int | None = None

    def fault(self, rows: RowBlock, first: int, last: int) -> str | None:
        """Return what is wrong with the next block, of partitions [first, last]."""
        if not len(rows):
            return None
        return self.fault_seen(look_at_rows(self.table, rows, first, last))

    def fault_seen(self, seen: RowsSeen) -> str | None:
        """Return what is wrong with the next block, which was looked at before."""
        self.n_nonfinite += seen.n_nonfinite
        before, self._last_key = self._last_key, seen.last_key
        if seen.fault is not None or before is None or is_before(before, seen.first_key):
            return seen.fault
        return order_fault(seen.first_key, before, 0, N_PARTITIONS - 1)


@dataclass(slots=True)
class CandidateCheck:
    """Follows the candidates of one table through its files."""

    table: TableEntry
    _order: OrderCheck = field(default_factory=OrderCheck)

    def fault(self, candidates: CandidateBlock, first: int, last: int) -> str | None:
        """Return what is wrong with the next block, of partitions [first, last]."""
        high = int(self.table.state["candidate_epoch"])
        is_off = (candidates.epochs < 0) | (candidates.epochs > high)
        if is_off.any():
            at = int(is_off.argmax())
            key, epoch = candidates.keys[at], candidates.epochs[at]
            return f"the candidate {key} is of epoch {epoch}, not of 0..{high}"
        return self._order.fault(candidates.keys, first, last)
