"""The step that tables of one model share: what age, eviction and schedules count in."""

from embstore import Table
from embstore._adapters import check_step, step_behind


class Clock:
    """Now, in steps: what training lookups and updates of some tables happen at.

    `TableOptimizer.step` moves it by one. Where tables are trained in backward (``fused=True``),
    the first training lookup after an update does.
    """

    __slots__ = ("_is_past", "_now")

    def __init__(self, now: int) -> None:
        self._now = now
        self._is_past = False  # an update was made at it

    @classmethod
    def of(cls, table: Table) -> "Clock":
        """Return the clock with which a table goes on: behind its last training step."""
        return cls(step_behind(table))

    @property
    def now(self) -> int:
        """The step."""
        return self._now

    @property
    def next(self) -> int:
        """The step of the next training lookup."""
        return self._now + self._is_past

    def set(self, now: int) -> None:
        """Set the step."""
        self._now = check_step(now)
        self._is_past = False

    def at_lookup(self) -> int:
        """Return the step of a training lookup."""
        if self._is_past:
            self.advance()
        return self._now

    def note_update(self) -> None:
        """Take note of an update in backward: the next training lookup is of the next step."""
        self._is_past = True

    def advance(self) -> None:
        """Go to the next step."""
        self._now += 1
        self._is_past = False
