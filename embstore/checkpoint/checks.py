"""What must hold for the rows and candidates of a table; asked before writing and after reading."""

from dataclasses import dataclass, field

from embstore.checkpoint.content import CandidateBlock, RowBlock, n_nonfinite_rows
from embstore.checkpoint.entries import TableEntry
from embstore.checkpoint.partition import OrderCheck

STEP_SPAN = 1 << 32  # steps that a table can tell apart at one time


@dataclass(slots=True)
class RowCheck:
    """Follows the rows of one table through its files, and counts those with NaN or infinity."""

    table: TableEntry
    n_nonfinite: int = 0
    _order: OrderCheck = field(default_factory=OrderCheck)

    def fault(self, rows: RowBlock, first: int, last: int) -> str | None:
        """Return what is wrong with the next block, of partitions [first, last]."""
        self.n_nonfinite += n_nonfinite_rows(rows.values, rows.slots)
        return self._order.fault(rows.keys, first, last) or self._step_fault(rows)

    def _step_fault(self, rows: RowBlock) -> str | None:
        low = int(self.table.state["step_base"])
        high = min(int(self.table.state["step"]), low + STEP_SPAN - 1)
        is_off = (rows.step < low) | (rows.step > high)
        if not is_off.any():
            return None
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
