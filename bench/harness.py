"""The harness: cases with named axes, whose contenders take turns in one process.

A round runs every contender once, in an order drawn anew, so that what the machine does beside it
meets all alike; a figure is the median of the ratios of each round. Within a round contenders
read different batches of the same distribution, so that none finds rows that another has just
brought into the cache. Seeds are fixed: two runs do the same work.
"""

import gc
import itertools
import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import embstore as es
from bench.results import CaseResult, ContenderResult, Figure
from bench.stats import Target, paired_ratios, quantile, summarize

AXES = {
    "n_rows": "live rows of the table",
    "dim": "values of a row, float32",
    "batch": "keys of a call",
    "samples": "of a training step, whose keys are those of all its features",
    "distribution": "of the keys of a batch over the rows: uniform, or zipf of exponent 1.05",
    "threads": "threads of the library under test",
    "load": "keys per cell of the index",
    "hit_rate": "share of the keys that have a row",
    "bag": "ids of a bag, drawn uniformly from this range",
    "pooling": "how the rows of a bag become one: sum or mean",
    "features": "features of a call, which share its keys",
    "fresh": "share of the keys that have no row yet",
    "exponent": "of a zipf distribution",
    "optimizer": "of the table under test",
    "tables": "of a step, which share its keys",
    "row_bytes": "of a row, where rows are bytes alone",
    "table_gb": "gigabytes that reads at random are spread over",
    "host_share": "share of the rows that lie in the memory of the host",
    "rows_in": "where a verb reads keys and writes rows: host or device",
    "ranks": "processes, each with a part of the rows",
    "sent_bytes": "of an exchange, by each rank to others",
    "repetition": "number of a run that cannot be repeated on the same table",
}
LEAST_ROUNDS = 5


def axes_of(**axes):
    """Return the axes of a case in the order of AXES; an unknown name is a ValueError."""
    unknown = sorted(set(axes) - set(AXES))
    if unknown:
        raise ValueError(f"unknown axes {unknown}; the known ones are {sorted(AXES)}")
    return {name: axes[name] for name in AXES if name in axes}


def product(**choices):
    """Yield axes for every combination of the choices; what is not a tuple is one choice."""
    lists = [values if isinstance(values, tuple) else (values,) for values in choices.values()]
    for combination in itertools.product(*lists):
        yield axes_of(**dict(zip(choices, combination, strict=True)))


@dataclass(frozen=True)
class Scale:
    """How large a run is; `rounds` is 0 where the benchmark itself knows."""

    n_rows: int
    batch: int
    rounds: int = 0


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a case.

    `build(workspace, case)` allocates what it needs and returns a function of the turn, an integer
    that says which batch to take; one call of it does `n_calls` calls of what is measured.
    """

    name: str
    build: Callable[[Any, "Case"], Callable[[int], object]]
    threads: int = 1
    n_calls: int = 1
    is_ours: bool = False
    twin: str = ""  # of a contender of another build: the name of the same one of this build


@dataclass(frozen=True)
class Ratio:
    """A figure: how many times as fast `of` is as `over`, both names of contenders."""

    of: str
    over: str
    target: Target | None = None


@dataclass(frozen=True)
class Absolute:
    """A figure: the time of a call of one contender, in units of `unit_ns`."""

    of: str
    unit: str
    unit_ns: float
    target: Target | None = None


@dataclass(frozen=True)
class Case:
    """One setting of the axes, and who competes at it.

    `setup` compares by value and has `build()`, which makes the workspace: tables, tensors,
    buffers. Neighbouring cases with an equal setup share it. What contenders put into
    `workspace.notes` while they are built goes into the result. `check(workspace, case, calls)`
    raises where the contenders, called on the same batch, do not do the same work.
    """

    name: str
    axes: Mapping[str, object]
    setup: Any
    contenders: tuple[Contender, ...]
    figures: tuple[Ratio | Absolute, ...] = ()
    check: Callable[[Any, "Case", dict[str, Callable]], None] | None = None
    n_batches: int = 0
    n_warmups: int = 2
    rounds: int = 21
    max_seconds: float = 40.0
    seed: int = 0


@dataclass
class Lane:
    """A contender at work: its function, the batches it begins at, and its samples."""

    contender: Contender
    call: Callable[[int], object]
    offset: int
    times_ns: list[int] = field(default_factory=list)

    def sample_ns(self, turn):
        """Time one call; after a change of the number of threads one more comes first, untimed."""
        remote = getattr(self.call, "sample_ns", None)
        if remote is not None:
            return remote(self.offset + turn)
        if set_threads(self.contender.threads):
            self.call(self.offset + turn - 1)
        start = time.perf_counter_ns()
        self.call(self.offset + turn)
        return time.perf_counter_ns() - start


_threads: list[tuple[int, bool]] = []  # the number that set_threads has set, and whether for torch


def set_threads(n_threads):
    """Set the number of threads of embstore and torch; return whether it was another."""
    has_torch = "torch" in sys.modules
    if _threads == [(n_threads, has_torch)]:
        return False
    es.set_num_threads(n_threads)
    if has_torch:
        sys.modules["torch"].set_num_threads(n_threads)
    _threads[:] = [(n_threads, has_torch)]
    return True


def run_case(case, workspace, twins=()):
    """Run a case and return its `CaseResult`; `twins` are contenders beside its own."""
    contenders = (*case.contenders, *twins)
    stride = case.n_batches // len(contenders)
    lanes = []
    workspace.notes = {}
    for i, contender in enumerate(contenders):
        lane = Lane(contender, contender.build(workspace, case), i * stride)
        set_threads(contender.threads)
        for turn in range(-case.n_warmups, 0):
            lane.call(lane.offset + turn)
        lanes.append(lane)
    if case.check is not None:
        case.check(workspace, case, {lane.contender.name: lane.call for lane in lanes})
    run_rounds(case, lanes)
    return CaseResult(
        name=case.name,
        axes=dict(case.axes),
        rounds=len(lanes[0].times_ns),
        contenders=[
            ContenderResult(lane.contender.name, lane.contender.n_calls, lane.times_ns)
            for lane in lanes
        ],
        notes=workspace.notes,
    )


def run_rounds(case, lanes):
    """Let the lanes take turns: every lane once a round, until the rounds or the time are over."""
    order, rng = list(lanes), random.Random(case.seed)
    end = time.monotonic() + case.max_seconds
    gc.collect()
    gc.disable()
    try:
        for turn in range(case.rounds):
            if turn >= LEAST_ROUNDS and time.monotonic() > end:
                break
            rng.shuffle(order)
            for lane in order:
                lane.times_ns.append(lane.sample_ns(turn))
    finally:
        gc.enable()


def figures_of(case, result, twins=()):
    """Return the figures that a case asks for, and those of each twin against its contender."""
    samples = {c.name: [t / c.n_calls for t in c.times_ns] for c in result.contenders}
    figures = []
    for asked in (*case.figures, *(Ratio(twin.name, twin.twin) for twin in twins)):
        if asked.of not in samples or getattr(asked, "over", asked.of) not in samples:
            continue
        if isinstance(asked, Ratio):
            values = paired_ratios(samples[asked.over], samples[asked.of])
            name, unit = f"{asked.of} against {asked.over}", "x"
        else:
            values = [t / asked.unit_ns for t in samples[asked.of]]
            name, unit = asked.of, asked.unit
        figures.append(figure_of(f"{case.name}: {name}", case.axes, values, unit, asked.target))
    return figures


def figure_of(name, axes, values, unit, target=None):
    """Return the `Figure` of some values: their median, with p10 and p90 as its range."""
    return Figure(
        name=name,
        axes=dict(axes),
        value=summarize(values).median,
        low=quantile(values, 0.1),
        high=quantile(values, 0.9),
        unit=unit,
        target=target,
    )


def measure(cases, report, twins=None):
    """Run cases in their order; return their results and figures.

    `report(result, figures)` is told of each case as it ends. `twins(case, index)` may give more
    contenders for a case.
    """
    setup, workspace = None, None
    results, figures = [], []
    for i, case in enumerate(cases):
        if workspace is None or case.setup != setup:
            workspace = None
            gc.collect()
            setup, workspace = case.setup, case.setup.build()
        extra = twins(case, i) if twins else ()
        result = run_case(case, workspace, extra)
        found = figures_of(case, result, extra)
        results.append(result)
        figures.extend(found)
        report(result, found)
    return results, figures
