"""How far ahead find and the training step prefetch, and how many keys find probes at a time.

`make bench-distances` builds the library with other distances, each a macro of the sources. All
builds run in processes of their own and take turns.
"""

from dataclasses import replace

from bench import bench_lookup, bench_train, machine
from bench.harness import Ratio, Scale, axes_of, product
from bench.twins import measure_builds
from bench.worker import this_build

SCALES = {
    "tiny": Scale(n_rows=2000, batch=256, rounds=2),
    "quick": Scale(n_rows=20_000, batch=4096, rounds=5),
    "small": Scale(n_rows=500_000, batch=131_072, rounds=15),
    "default": Scale(n_rows=2_000_000, batch=131_072, rounds=31),
}
AS_IT_IS = "as it is"


def cases(scale, seed=0):
    """Yield the lookups and training steps that all builds run."""
    size = SCALES[scale]
    axes = axes_of(n_rows=size.n_rows, batch=size.batch, distribution="uniform", threads=1)
    for dim in (64, 16):
        lookup = {"dim": dim, "load": 0.7, "hit_rate": 1.0}
        found = [bench_lookup.find_case(axes | lookup, size, seed)]
        for more in product(dim=dim, distribution=("uniform", "zipf")):
            found.append(bench_train.step_case(axes | more, size, seed))
        for case in found:
            yield replace(case, max_seconds=2 * case.max_seconds)


def measure(scale, seed, report, twins=None):
    """Run all builds that are there; say so where there are none."""
    if why := machine.why_no_distances():
        print(f"SKIPPED: distances: {why}")
        return [], []
    builds = {AS_IT_IS: this_build()} | {f.name: f for f in machine.distances()}
    figures = tuple(Ratio(name, AS_IT_IS) for name in builds if name != AS_IT_IS)
    return measure_builds(builds, __name__, scale, seed, report, figures)
