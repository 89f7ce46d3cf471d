"""What keeping each row's freq and step costs a training step.

`make bench-accounting` builds the library a second time with EMB_BENCH_NO_ACCOUNTING, which leaves
that bookkeeping out. Both builds run in processes of their own and take turns.
"""

from dataclasses import replace

from bench import machine, targets
from bench.bench_train import SCALES, step_case
from bench.harness import Ratio, product
from bench.twins import measure_builds
from bench.worker import this_build

WITH, WITHOUT = "step with accounting", "step without"


def cases(scale, seed=0):
    """Yield the training steps that both processes run."""
    size = SCALES[scale]
    for axes in product(
        dim=(64, 16),
        distribution=("uniform", "zipf"),
        n_rows=size.n_rows,
        batch=size.batch,
        threads=1,
    ):
        case = step_case(axes, size, seed)
        yield replace(case, name="accounting", rounds=2 * case.rounds)


def measure(scale, seed, report, twins=None):
    """Run both builds where the second one is there; say so where it is not."""
    if why := machine.why_no_accounting():
        print(f"SKIPPED: accounting: {why}")
        return [], []
    builds = {WITH: this_build(), WITHOUT: machine.WITHOUT_ACCOUNTING}
    figures = (Ratio(WITHOUT, WITH, targets.ACCOUNTING),)
    return measure_builds(builds, __name__, scale, seed, report, figures)
