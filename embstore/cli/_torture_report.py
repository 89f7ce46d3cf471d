"""What a torture counts: for each promise its tests, how often they ran, and what failed."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from embstore.cli._report import count, table

MAX_FAILURES_SHOWN = 10

OnCase = Callable[["Tally"], None]


@dataclass
class Tally:
    """One test of one promise: cases that held, and what those that did not hold have to say."""

    promise: str
    test: str
    unit: str
    n_cases: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    deadline: float = float("inf")
    on_case: OnCase | None = None

    def passed(self, n: int = 1) -> None:
        """Count cases that held."""
        self.n_cases += n
        if self.on_case is not None:
            self.on_case(self)

    def failed(self, what: str) -> None:
        """Count a case that did not hold."""
        self.failures.append(what)
        self.passed()

    def judge(self, fault: str | None, what: str) -> None:
        """Count a case: `fault` says what was wrong, `what` which case it was."""
        if fault is None:
            self.passed()
        else:
            self.failed(f"{what}: {fault}")

    @property
    def is_due(self) -> bool:
        """Whether its time is over; not before the first case."""
        return self.n_cases > 0 and time.monotonic() >= self.deadline

    @contextmanager
    def timed(self) -> Iterator["Tally"]:
        """Add the time of the block; what escapes it is a failure."""
        begin = time.monotonic()
        try:
            yield self
        except Exception as error:
            self.failed(f"{type(error).__name__}: {error}")
        finally:
            self.seconds += time.monotonic() - begin

    def as_json(self) -> Mapping[str, Any]:
        """Return the numbers and the failures."""
        names = ("promise", "test", "n_cases", "unit", "failures", "seconds")
        return {name: getattr(self, name) for name in names}


def shown(tallies: list[Tally]) -> str:
    """Return the table of promises."""
    lines = [["promise", "test", "count", "failures", "seconds"]]
    for tally in tallies:
        cases = f"{count(tally.n_cases)} {tally.unit}"
        failures = count(len(tally.failures))
        lines.append([tally.promise, tally.test, cases, failures, f"{tally.seconds:.1f}"])
    return table(lines, is_text=True)


def failures_shown(tallies: list[Tally]) -> str:
    """Return what failed, a line each, the first few of each test."""
    lines = []
    for tally in tallies:
        lines += [f"FAILED: {tally.test}: {what}" for what in tally.failures[:MAX_FAILURES_SHOWN]]
        if len(tally.failures) > MAX_FAILURES_SHOWN:
            lines.append(f"FAILED: {tally.test}: {len(tally.failures)} in all")
    return "\n".join(lines)
