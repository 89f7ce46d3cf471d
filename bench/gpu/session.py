"""One run of the GPU benchmark: its clock, sizes, time, and what it has found so far."""

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from bench import harness
from bench.gpu.adapter import Crossing, NotMeasured
from bench.gpu.clock import Timed
from bench.gpu.data import Data
from bench.gpu.model import NORMAL_BYTES_PER_S
from bench.gpu.targets import scaled
from bench.report import aligned, shown_axes, shown_ns, shown_target
from bench.results import CaseResult
from bench.stats import Target

N_BATCHES = 8
SPARE = 0.88  # of the free memory: what tables may take


@dataclass(frozen=True)
class Scale:
    """How large a run is; `n_rows` are those of a table at load 0.75, if the card has the room."""

    n_rows: int
    batch: int
    rounds: int
    n_calls: int
    dims: tuple[int, ...]
    line_gb: tuple[float, ...]
    copy_bytes: int
    export_rows: int
    seconds: float  # after which what is left is not measured
    case_seconds: float = 8.0


SCALES = {
    "default": Scale(
        n_rows=100_000_000,
        batch=1 << 20,
        rounds=9,
        n_calls=4,
        dims=(8, 16, 32, 64, 128),
        line_gb=(1, 16, 64, 120),
        copy_bytes=4 << 30,
        export_rows=4_000_000,
        seconds=480,
    ),
    "quick": Scale(
        n_rows=40_000_000,
        batch=1 << 20,
        rounds=3,
        n_calls=2,
        dims=(8, 64),
        line_gb=(1, 16),
        copy_bytes=1 << 30,
        export_rows=500_000,
        seconds=50,
        case_seconds=2.0,
    ),
    "emulated": Scale(
        n_rows=900,
        batch=32,
        rounds=1,
        n_calls=1,
        dims=(8, 64),
        line_gb=(1e-5,),
        copy_bytes=1 << 12,
        export_rows=64,
        seconds=600,
    ),
}


@dataclass(frozen=True)
class Lane:
    """A contender: what it calls, and what one call of it is worth.

    `n` things (`what`) a call, of `bytes_each` by the model of model.py; `rate` and `of_floor` are
    the targets of the figures that follow from them, `time_ms` that of the call.
    """

    name: str
    call: Callable[[int], object]
    n: int
    what: str = "keys"
    bytes_each: float | None = None
    rate: Target | None = None
    of_floor: Target | None = None
    time_ms: Target | None = None
    n_calls: int = 1
    prepare: Callable[[int], object] | None = None
    stream: Any = None
    times_itself: bool = False


class Session:
    """A run: sections call `measure` for what they have, and `skip` for what they cannot have."""

    def __init__(self, clock, scale, seed=0, say=print, is_strict=False):
        self._begin = time.monotonic()
        self.clock, self.scale, self.seed, self.say = clock, scale, seed, say
        self.is_strict = is_strict  # whether what fails is an error of the program
        self.data = Data(clock, seed)
        self.crossing = Crossing(clock, say)
        self.bytes_per_s = NORMAL_BYTES_PER_S  # of a copy, once it is measured
        self.cases, self.figures = [], []
        self.n_failed = 0
        self.lacks = {}  # by what a target needs: why there is none

    @property
    def seconds(self):
        """Seconds since the beginning."""
        return time.monotonic() - self._begin

    @property
    def _out_of_time(self):
        return f"out of time: {self.scale.seconds:.0f} s were given"

    def require_time(self):
        """Raise when the time is over."""
        if self.seconds > self.scale.seconds:
            raise NotMeasured(self._out_of_time)

    def rows_that_fit(self, row_bytes, n_rows=None, spare=SPARE):
        """Return the rows of so many bytes, with records and index, that the card has room for."""
        fitting = int(self.clock.free_bytes() * spare / (row_bytes + 16 + 24))
        return min(n_rows or self.scale.n_rows, fitting)

    # ---- measuring

    def measure(self, name, axes, lanes, ratios=(), rounds=None, **notes):
        """Let the lanes take turns, and print and keep their figures."""
        if self.seconds > self.scale.seconds:
            self.skip(name, axes, self._out_of_time)
            return None
        alive, missed = [], {}
        for lane in lanes:
            try:
                call = self._timed(lane)
                call(-3)
                alive.append((lane, call))
            except NotMeasured as error:
                missed[lane.name] = str(error)
            except Exception as error:
                if self.is_strict:
                    raise
                self.n_failed += 1
                missed[lane.name] = failure_of(error)
        if not alive:
            self.skip(name, axes, *missed.values())
            return None
        with self.guarded(name, axes):
            case = self._case(name, axes, alive, ratios, rounds)
            return self._run(case, alive, notes | self._shown(missed))

    @staticmethod
    def _shown(missed):
        return {f"{name} not measured": why for name, why in missed.items()}

    def _timed(self, lane):
        if lane.times_itself:
            return lane.call
        return Timed(self.clock, lane.call, lane.n_calls, lane.prepare, lane.stream)

    def _case(self, name, axes, alive, ratios, rounds):
        contenders = [
            harness.Contender(lane.name, lambda space, case, call=call: call, n_calls=lane.n_calls)
            for lane, call in alive
        ]
        return harness.Case(
            name=name,
            axes=harness.axes_of(**axes),
            setup=None,
            contenders=tuple(contenders),
            figures=tuple(ratios),
            n_batches=N_BATCHES,
            n_warmups=1,
            rounds=rounds or self.scale.rounds,
            max_seconds=self.scale.case_seconds,
            seed=self.seed,
        )

    def _run(self, case, alive, notes):
        result = harness.run_case(case, SimpleNamespace())
        result = replace(result, notes=notes | self._queued(alive))
        figures = [*self._rates(result, [lane for lane, _ in alive])]
        figures += harness.figures_of(case, result)
        self.cases.append(result)
        self.figures += figures
        self.say("\n".join(self._lines(result, [lane for lane, _ in alive], figures)))
        return result

    @staticmethod
    def _queued(alive):
        """Return how long the host took to queue a call of each contender that a clock timed."""
        timed = {lane.name: getattr(call, "host_ns", None) for lane, call in alive}
        shown = {name: round(float(np.median(t)) / 1e3, 1) for name, t in timed.items() if t}
        return {"us of the host a call": shown} if shown else {}

    def _rates(self, result, lanes):
        """Yield the figures of each lane: things and GB a second, share of the floor, time."""
        for lane, found in zip(lanes, result.contenders, strict=True):
            seconds = [t / found.n_calls / 1e9 for t in found.times_ns]
            where = f"{result.name}: {lane.name}"
            rates = [lane.n / s / 1e9 for s in seconds]
            target = scaled(lane.rate, self.bytes_per_s)
            yield harness.figure_of(where, result.axes, rates, f"B {lane.what}/s", target)
            if lane.time_ms is not None:
                target = scaled(lane.time_ms, self.bytes_per_s)
                times = [1e3 * s for s in seconds]
                yield harness.figure_of(f"{where}, time", result.axes, times, "ms", target)
            if lane.bytes_each is None:
                continue
            moved = [lane.n * lane.bytes_each / s for s in seconds]
            speeds = [b / 1e9 for b in moved]
            yield harness.figure_of(f"{where}, moved", result.axes, speeds, "GB/s")
            shares = [b / self.bytes_per_s for b in moved]
            name = f"{where}, of the floor"
            yield harness.figure_of(name, result.axes, shares, "x", lane.of_floor)

    def _lines(self, result, lanes, figures):
        """Yield the lines of a case: who took how long, how much that is, and what was wanted."""
        yield f"{result.name}: {shown_axes(result.axes)}, {result.rounds} rounds"
        by_name = {figure.name: figure for figure in figures}
        rows = [("", "a call", "B/s", "p10 .. p90", "GB/s", "of floor", "target", "verdict")]
        for lane, found in zip(lanes, result.contenders, strict=True):
            where = f"{result.name}: {lane.name}"
            names = (where, f"{where}, moved", f"{where}, of the floor", f"{where}, time")
            rate, moved, share, took = (by_name.get(name) for name in names)
            judged = [f for f in (rate, share, took) if f is not None and f.target is not None]
            rows.append(
                (
                    f"{lane.name} ({lane.what})",
                    shown_ns(found.summary_ns().median),
                    f"{rate.value:.4g}",
                    f"{rate.low:.3g} .. {rate.high:.3g}",
                    "" if moved is None else f"{moved.value:.0f}",
                    "" if share is None else f"{share.value:.2f}",
                    ", ".join(shown_target(f.target, f.unit) for f in judged),
                    ", ".join(f.verdict() for f in judged),
                )
            )
        yield from (f"  {line}" for line in aligned(rows))
        for figure in figures:
            if " against " in figure.name:
                bound = "" if figure.target is None else f", target {figure.target.bound}x"
                spread = f"({figure.low:.2f} .. {figure.high:.2f})"
                words = [f"{figure.value:.2f}x", f"{spread}{bound}", figure.verdict()]
                yield "  " + " ".join([figure.name.rpartition(": ")[2], *words]).rstrip()
        for name, note in result.notes.items():
            yield f"  {name}: {note}"

    # ---- what is not there

    def skip(self, name, axes, *reasons):
        """Say, and keep, why something has no figure."""
        why = "; ".join(dict.fromkeys(reasons))
        self.say(f"{name}: {shown_axes(axes)}: not measured: {why}")
        notes = {"not measured": why}
        self.cases.append(CaseResult(name, harness.axes_of(**axes), 0, [], notes))

    @contextmanager
    def guarded(self, name, axes):
        """Let one section fail without the others."""
        try:
            yield
        except NotMeasured as error:
            self.skip(name, axes, str(error))
        except Exception as error:
            if self.is_strict:
                raise
            self.n_failed += 1
            self.skip(name, axes, failure_of(error))


def failure_of(error):
    """Return what went wrong, on one line."""
    return "FAILED: " + " ".join(f"{type(error).__name__}: {error}".split())[:300]
