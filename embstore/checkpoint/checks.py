"""What must hold for the rows and candidates of a table; asked before writing and after reading."""

from dataclasses import dataclass, field

import numpy as np

from embstore import _core
from embstore.checkpoint.content import CandidateBlock, RowBlock
from embstore.checkpoint.entries import TableEntry
from embstore.checkpoint.partition import OrderCheck, order_fault

STEP_SPAN = 1 << 32  # steps that a table can tell apart at one time
DTYPE_CODES = {"float32": 0, "float16": 1, "uint16": 2}  # of es_dtype, for values as stored


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
        code = DTYPE_CODES.get(rows.values.dtype.name)
        if code is None or rows.keys.dtype != np.int64 or rows.slots.dtype != np.float32:
            return f"rows are of {rows.keys.dtype}, {rows.values.dtype} and {rows.slots.dtype}"
        keys, values, slots = map(np.ascontiguousarray, (rows.keys, rows.values, rows.slots))
        place, n_nonfinite = _core.check_rows(
            keys, first, last, self._last_key, values, code, slots
        )
        self.n_nonfinite += n_nonfinite
        if place < len(rows):
            before = rows.keys[place - 1] if place else self._last_key
            return order_fault(rows.keys[place], before, first, last)
        self._last_key = int(rows.keys[-1])
        return self._step_fault(rows)

    def _step_fault(self, rows: RowBlock) -> str | None:
        low = int(self.table.state["step_base"])
        high = min(int(self.table.state["step"]), low + STEP_SPAN - 1)
        if low <= rows.step.min() and rows.step.max() <= high:
            return None
        is_off = (rows.step < low) | (rows.step > high)
        at = int(is_off.argmax())
        return f"the row of key {rows.keys[at]} is of step {rows.step[at]}, not of {low}..{high}"


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
