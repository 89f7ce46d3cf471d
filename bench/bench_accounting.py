"""What keeping each row's freq and step costs a training step.

`make bench-accounting` builds the library a second time with EMB_BENCH_NO_ACCOUNTING, which leaves
that bookkeeping out. Both builds run in processes of their own and take turns.
"""

from contextlib import ExitStack

from bench import harness, machine, targets
from bench.bench_train import OURS, SCALES, step_case
from bench.harness import Case, Contender, Ratio, product
from bench.twins import NOTHING, build_remote
from bench.worker import Worker, this_build

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
        yield step_case(axes, size, seed)


def paired(scale, seed, workers):
    """Yield each step as a case of two processes: `workers` has one for each name."""
    for i_case, case in enumerate(cases(scale, seed)):
        found = [
            Contender(name, build_remote(worker, __name__, scale, seed, i_case, OURS))
            for name, worker in workers.items()
        ]
        yield Case(
            name="accounting",
            axes=case.axes,
            setup=NOTHING,
            contenders=tuple(found),
            figures=(Ratio(WITHOUT, WITH, targets.ACCOUNTING),),
            n_batches=case.n_batches,
            rounds=2 * case.rounds,
            seed=seed,
        )


def measure(scale, seed, report, twins=None):
    """Run both builds where the second one is there; say so where it is not."""
    if why := machine.why_no_accounting():
        print(f"SKIPPED: accounting: {why}")
        return [], []
    builds = {WITH: this_build(), WITHOUT: machine.WITHOUT_ACCOUNTING}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(build)) for name, build in builds.items()}
        return harness.measure(paired(scale, seed, workers), report)
