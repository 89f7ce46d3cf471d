"""Scans of the whole table: eviction by age and by norm, export, and finds beside an eviction.

An eviction is timed as a dry run, which reads what an eviction reads; what stands beside it copies
as many bytes by np.copyto, in as many threads. Rows come out in the order of their keys, which is
none in memory: beside export stands np.take of rows at random too. Finds are timed on one thread
while another evicts in slices or is idle; the keys asked for stay, and the figures are tails over
those of idle times, their range that of the repetitions.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

import embstore as es
from bench import harness, targets
from bench.harness import Case, Contender, Ratio, Scale, axes_of, product
from bench.keys import key_of
from bench.results import CaseResult, ContenderResult, Figure
from bench.stats import quantile
from bench.workspace import aligned_empty

SCALES = {
    "tiny": Scale(n_rows=2000, batch=256, rounds=2),
    "quick": Scale(n_rows=50_000, batch=4096, rounds=5),
    "small": Scale(n_rows=1_000_000, batch=4096, rounds=11),
    "default": Scale(n_rows=4_000_000, batch=4096, rounds=11),
}
DIM = 16
FILL_ROWS = 1 << 16  # rows of one call while a table is filled
OLD, YOUNG = 0, 100  # steps of births
META_BYTES, VALUE_BYTES = 16, 4 * DIM
ROW_BYTES = 8 + 4 + 8 + 2 * VALUE_BYTES  # key, freq, step, values and slots

BY_AGE, BY_NORM, EXPORT = "evict by age", "evict by norm", "export"
COPY, TAKE = "np.copyto of as many bytes", "np.take of values and slots"
SLICES_MS = (1, 5)
FINDS = 2000  # while nobody evicts
REPETITIONS = 5


def evict_all(table, policy):
    """Select, and remove nothing: no row has such an age, or so small a norm."""
    assert table.evict(policy, step=YOUNG, dry_run=True).n_selected == 0


def export_all(table):
    """Read every row."""
    assert sum(len(rows) for rows in table.export()) == len(table)


SCANS = {  # bytes that are read of a row, and what reads them
    BY_AGE: (META_BYTES, partial(evict_all, policy=es.StepEviction(10**6))),
    BY_NORM: (META_BYTES + VALUE_BYTES, partial(evict_all, policy=es.L2Eviction(1e-9, min_age=0))),
    EXPORT: (ROW_BYTES, export_all),
}


@dataclass(frozen=True)
class Setup:
    """A table of n_rows, half of them old."""

    n_rows: int
    seed: int

    def build(self):
        return Workspace(self)


class Workspace:
    """A table in whose memory old and young rows take turns by the call."""

    def __init__(self, setup):
        self.notes = {}
        keys = key_of(np.arange(setup.n_rows), setup.seed)
        self.old, self.young = keys[0::2], keys[1::2]
        self.table = es.Table(
            DIM,
            optimizer=es.Adagrad(lr=0.05),
            initializer=es.Normal(std=0.1),
            hash_seed=setup.seed,
        )
        self.table.reserve(setup.n_rows)
        for start in range(0, len(self.old), FILL_ROWS):
            self._insert(self.old[start : start + FILL_ROWS], OLD)
            self._insert(self.young[start : start + FILL_ROWS], YOUNG)

    def _insert(self, keys, step):
        self.table.find_or_insert(keys, step=step).close()

    def restore(self):
        """Bring back the rows that were evicted."""
        for start in range(0, len(self.old), FILL_ROWS):
            self._insert(self.old[start : start + FILL_ROWS], OLD)


def build_scan(name, space, case):
    return lambda turn: SCANS[name][1](space.table)


def build_copy(name, space, case):
    n_bytes = SCANS[name][0] * case.axes["n_rows"]
    source, target = aligned_empty((2, n_bytes // 4))
    source[:] = 1.0
    return in_threads(np.copyto, case.axes["threads"], target, source)


def build_take(space, case):
    n_rows = case.axes["n_rows"]
    rows = aligned_empty((2, n_rows, DIM))
    rows[:] = 1.0
    out = aligned_empty((n_rows, 2, DIM))
    order = np.random.default_rng(case.seed).permutation(n_rows)

    def take(out, order):
        for i in (0, 1):
            out[:, i] = rows[i].take(order, axis=0)

    return in_threads(take, case.axes["threads"], out, order)


def in_threads(work, n_threads, *arrays):
    """Return a call that does the work on as many parts of the arrays at once."""
    parts = [*zip(*(np.array_split(array, n_threads) for array in arrays), strict=True)]
    pool = ThreadPoolExecutor(n_threads)
    return lambda turn: [*pool.map(lambda part: work(*part), parts)]


def scan_case(name, axes, size, seed):
    threads = axes["threads"]
    contenders = [
        Contender(name, partial(build_scan, name), threads=threads, is_ours=True),
        Contender(COPY, partial(build_copy, name), threads=threads),
    ]
    figures = [Ratio(name, COPY, targets.SCAN_COPY.get(name))]
    if name == EXPORT:
        contenders.append(Contender(TAKE, build_take, threads=threads))
        figures.append(Ratio(name, TAKE, targets.EXPORT_TAKE))
    return Case(
        name=name,
        axes=axes,
        setup=Setup(axes["n_rows"], seed),
        contenders=tuple(contenders),
        figures=tuple(figures),
        rounds=size.rounds,
        seed=seed,
    )


def cases(scale, seed=0):
    """Yield the scans of a name in SCALES."""
    size = SCALES[scale]
    for name in SCANS:
        for axes in product(n_rows=size.n_rows, dim=DIM, threads=(1, 2)):
            yield scan_case(name, axes, size, seed)


def speed_figures(results):
    """Return the bytes of each scan and of what stands beside it over their times."""
    figures = []
    for result in results:
        n_bytes = SCANS[result.contenders[0].name][0] * result.axes["n_rows"]
        for contender in result.contenders:
            values = [n_bytes / t for t in contender.times_ns]
            name = f"{result.name}: {contender.name}"
            figures.append(harness.figure_of(name, result.axes, values, "GB/s"))
    return figures


def time_finds(table, batches, is_over):
    """Return the time of each find, one after another until is_over(number of finds)."""
    out = np.ones((len(batches[0]), DIM), np.float32)
    times_ns = []
    while not is_over(len(times_ns)):
        start = time.perf_counter_ns()
        table.find(batches[len(times_ns) % len(batches)], out=out)
        times_ns.append(time.perf_counter_ns() - start)
    return times_ns


def evict_in_slices(table, seconds, slices_ns, done):
    """Evict all old rows, in slices of at most `seconds` with pauses as long."""
    is_complete = False
    while not is_complete:
        start = time.perf_counter_ns()
        is_complete = table.evict(es.StepEviction(50), step=YOUNG, max_seconds=seconds).is_complete
        slices_ns.append(time.perf_counter_ns() - start)
        time.sleep(seconds)
    done.set()


def find_beside(space, batches, slice_ms):
    """Return the times of finds while the old rows go, and those of the slices."""
    slices_ns, done = [], threading.Event()
    arguments = (space.table, slice_ms / 1000, slices_ns, done)
    evictor = threading.Thread(target=evict_in_slices, args=arguments)
    evictor.start()
    times_ns = time_finds(space.table, batches, lambda n: n > 0 and done.is_set())
    evictor.join()
    space.restore()
    return times_ns, slices_ns


def concurrent_cases(space, size, seed, n_repetitions):
    """Yield (slice in ms, times alone, times beside, times of slices) of each repetition."""
    rng = np.random.default_rng(seed)
    batches = [rng.choice(space.young, size.batch) for _ in range(64)]
    harness.set_threads(1)
    time_finds(space.table, batches, lambda n: n >= len(batches))
    for _ in range(n_repetitions):
        for slice_ms in SLICES_MS:
            alone = time_finds(space.table, batches, lambda n: n >= FINDS)
            yield slice_ms, alone, *find_beside(space, batches, slice_ms)


def measure_concurrent(scale, seed, report):
    """Return the results and figures of finds beside an eviction in slices."""
    size = SCALES[scale]
    n_repetitions = REPETITIONS if size.n_rows >= 1_000_000 else 1
    space = Setup(size.n_rows, seed).build()
    found = [*concurrent_cases(space, size, seed, n_repetitions)]
    results, figures = [], []
    for slice_ms in SLICES_MS:
        axes = axes_of(n_rows=size.n_rows, dim=DIM, batch=size.batch, threads=1)
        mine = [times for ms, *times in found if ms == slice_ms]
        columns = [[t for times in column for t in times] for column in zip(*mine, strict=True)]
        names = ("find alone", "find beside slices", "slices")
        contenders = [ContenderResult(n, 1, c) for n, c in zip(names, columns, strict=True)]
        result = CaseResult(f"slices of {slice_ms} ms", axes, n_repetitions, contenders)
        report(result, [])
        results.append(result)
        figures += concurrent_figures(slice_ms, axes, mine)
    return results, figures


def concurrent_figures(slice_ms, axes, repetitions):
    """Return the tails of finds over those alone, and of slices over their bound."""
    slice_ns = slice_ms * 1e6
    samples = {
        f"find beside slices of {slice_ms} ms: p50 over alone": [
            quantile(beside, 0.5) / quantile(alone, 0.5) for alone, beside, _ in repetitions
        ],
        f"find beside slices of {slice_ms} ms: p99 over alone": [
            quantile(beside, 0.99) / quantile(alone, 0.99) for alone, beside, _ in repetitions
        ],
        f"slices of {slice_ms} ms: p50 over the bound": [
            quantile(slices, 0.5) / slice_ns for *_, slices in repetitions
        ],
    }
    return [
        Figure(
            name=name,
            axes=axes,
            value=float(np.median(values)),
            low=min(values),
            high=max(values),
            unit="x",
            target=targets.FIND_BESIDE_EVICTION if "p99" in name else None,
        )
        for name, values in samples.items()
    ]


def measure(scale, seed, report, twins=None):
    """Run the scans, then the finds beside an eviction; return their results and figures."""
    results, figures = harness.measure(cases(scale, seed), report, twins)
    more_results, more_figures = measure_concurrent(scale, seed, report)
    return results + more_results, figures + speed_figures(results) + more_figures
