"""Growth: how long each insert of 4096 new keys takes while a table grows from empty.

Two tables grow side by side, a batch each in turn: one has been given all its memory by reserve(),
the other takes it as it grows. The figures are tails over the median of the same table's inserts,
their range that of the repetitions; a round is one batch, and each repetition grows new tables.
"""

import time
from dataclasses import dataclass, field

import numpy as np

import embstore as es
from bench import harness, targets
from bench.harness import Case, Contender, Scale, axes_of
from bench.keys import key_of
from bench.results import Figure
from bench.stats import quantile

SCALES = {
    "tiny": Scale(n_rows=2000, batch=256),
    "quick": Scale(n_rows=40_960, batch=4096),
    "small": Scale(n_rows=5_000_000, batch=4096),
    "default": Scale(n_rows=20_000_000, batch=4096),
}
RESERVED, GROWING = "inserts, reserved", "inserts, growing"
TAILS = (("p99", 0.99), ("p99.9", 0.999), ("max", 1.0))
TARGETS = {(RESERVED, "p99.9"): targets.GROWTH_P999, (RESERVED, "max"): targets.GROWTH_MAX}


@dataclass(frozen=True)
class Setup:
    """The growth of one repetition."""

    n_rows: int
    dim: int
    seed: int

    def build(self):
        return Workspace(self)


@dataclass
class Workspace:
    """What the two tables share."""

    setup: Setup
    notes: dict[str, object] = field(default_factory=dict)

    def new_table(self):
        adagrad = es.Adagrad(lr=0.05)
        return es.Table(self.setup.dim, optimizer=adagrad, hash_seed=self.setup.seed)


def build_inserts(is_reserved):
    def build(space, case):
        batch = case.axes["batch"]
        out = np.ones((batch, space.setup.dim), np.float32)
        keys = key_of(np.arange(case.rounds * batch), space.setup.seed).reshape(case.rounds, batch)
        space.new_table().find_or_insert(keys[0], step=0, out=out)  # what any first call brings
        table = space.new_table()
        if is_reserved:
            start = time.perf_counter()
            table.reserve(case.rounds * batch)
            space.notes["reserve_s"] = round(time.perf_counter() - start, 3)
        return lambda turn: table.find_or_insert(keys[turn], step=turn, out=out).close()

    return build


def growth_case(axes, seed):
    return Case(
        name="growth",
        axes=axes,
        setup=Setup(axes["n_rows"], axes["dim"], seed + axes["repetition"]),
        contenders=(
            Contender(RESERVED, build_inserts(True), is_ours=True),
            Contender(GROWING, build_inserts(False), is_ours=True),
        ),
        n_warmups=0,
        rounds=-(-axes["n_rows"] // axes["batch"]),
        max_seconds=float("inf"),
        seed=seed,
    )


def cases(scale, seed=0):
    """Yield the repetitions of a name in SCALES."""
    size = SCALES[scale]
    common = {"n_rows": size.n_rows, "dim": 16, "batch": size.batch, "threads": 1}
    for repetition in range(3 if size.n_rows >= 1_000_000 else 1):
        axes = axes_of(**common, repetition=repetition)
        yield growth_case(axes, seed)


def tails(times_ns):
    """Return each tail of the times over their median."""
    median = float(np.median(times_ns))
    return {name: quantile(times_ns, q) / median for name, q in TAILS}


def figures_of(results):
    """Return the median of each contender, and its tails: median and range of the repetitions."""
    axes = {name: value for name, value in results[0].axes.items() if name != "repetition"}
    figures = []
    for i, contender in enumerate(results[0].contenders):
        times = [result.contenders[i].times_ns for result in results]
        medians_us = [float(np.median(t)) / 1e3 for t in times]
        figures.append(over_repetitions(f"{contender.name}: p50", axes, medians_us, "us"))
        for name, _ in TAILS:
            values = [tails(t)[name] for t in times]
            title = f"{contender.name}: {name} over the median"
            target = TARGETS.get((contender.name, name))
            figures.append(over_repetitions(title, axes, values, "x", target))
    return figures


def over_repetitions(name, axes, values, unit, target=None):
    """Return a figure whose range is that of the repetitions."""
    value = float(np.median(values))
    return Figure(name, axes, value, min(values), max(values), unit, target)


def measure(scale, seed, report, twins=None):
    """Run all repetitions; return their results, and the figures over all of them."""
    results, _ = harness.measure(cases(scale, seed), report, twins)
    return results, figures_of(results)
