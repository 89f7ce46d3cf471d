"""Checkpoints: saving and loading beside np.save and np.load, and training while a save runs.

All sides write the same arrays (keys, values, slots, freq, step) into files under build/ and wait
until they lie on the disk (fsync of files and folder); what is loaded was just written, so it lies
in the page cache. Loading a table verifies every checksum and builds the index.

While save_async runs, one thread trains in small batches: the figures are its longest stall, a
step's time beyond the median of those without a save (the call of save_async counts as one), and
how much it gets done until the save and the step in flight end, against what it does alone.
"""

import os
import tempfile
import time
import weakref
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

import embstore as es
from bench import harness, targets
from bench.harness import Case, Contender, Ratio, Scale, axes_of, figure_of, set_threads
from bench.keys import draw_batches, key_of
from bench.results import CaseResult, ContenderResult
from bench.worker import ROOT
from bench.workspace import Setup, Workspace, filled_table, gradients

SCALES = {
    "tiny": Scale(n_rows=2000, batch=256, rounds=2),
    "quick": Scale(n_rows=20_000, batch=1024, rounds=5),
    "small": Scale(n_rows=500_000, batch=4096, rounds=5),
    "default": Scale(n_rows=1_000_000, batch=4096, rounds=7),
}
DIM = 64
SAVE, SAVE_NUMPY = "embstore save", "np.save of the same arrays"
LOAD, LOAD_NUMPY = "embstore load", "np.load of the same arrays"
OURS = (SAVE, LOAD)
ALONE, SAVING = "train step alone", "train step while a save runs"
ALONE_SECONDS, N_SAVES = 1.0, 3
N_THREADS = 2  # of save and load; np.save and np.load have one


def new_folder():
    """Return a temporary folder on the disk of the repository."""
    (ROOT / "build").mkdir(exist_ok=True)
    return tempfile.TemporaryDirectory(dir=ROOT / "build", prefix="checkpoint-")


class FileSetup(Setup):
    """A setup whose table lies in files too."""

    def build(self):
        return FileWorkspace(self)


class FileWorkspace(Workspace):
    """The table, its arrays, and the folder both are written to."""

    def __init__(self, setup):
        super().__init__(setup)
        kept = new_folder()
        weakref.finalize(self, kept.cleanup)
        self.folder = Path(kept.name)

    @cached_property
    def arrays(self):
        """What a row is made of, as arrays of all rows."""
        shape = (self.setup.n_rows, self.setup.dim)
        values = np.random.default_rng(self.setup.seed).random(shape, np.float32)
        return {
            "keys": key_of(np.arange(len(values)), self.setup.seed),
            "values": values,
            "slots": np.ones_like(values),
            "freq": np.ones(len(values), np.uint32),
            "step": np.ones(len(values), np.int64),
        }


def save_arrays(arrays, where):
    """Write each array to a file by np.save, all of it on the disk when this returns."""
    where.mkdir(exist_ok=True)
    for name, array in arrays.items():
        with open(where / f"{name}.npy", "wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())
    descriptor = os.open(where, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def build_save(space, case):
    table, where = space.table, space.folder / "table"
    table.save(where)
    n_bytes = sum(file.stat().st_size for file in where.rglob("*") if file.is_file())
    space.notes["checkpoint_mb"] = round(n_bytes / 1e6, 1)
    space.notes["arrays_mb"] = round(sum(a.nbytes for a in space.arrays.values()) / 1e6, 1)
    return lambda turn: table.save(where)


def build_save_numpy(space, case):
    return lambda turn: save_arrays(space.arrays, space.folder / "arrays")


def build_load(space, case):
    space.table.save(space.folder / "table")
    return lambda turn: es.Table.load(space.folder / "table").close()


def build_load_numpy(space, case):
    save_arrays(space.arrays, space.folder / "arrays")
    files = [space.folder / "arrays" / f"{name}.npy" for name in space.arrays]
    return lambda turn: [np.load(file) for file in files]


def check_loaded(space, case, calls):
    """Raise unless the table that comes back holds every row."""
    keys = space.arrays["keys"]
    with es.Table.load(space.folder / "table") as table:
        if not np.array_equal(table.find(keys), space.table.find(keys)):
            raise AssertionError(f"{case.name}: the loaded table holds other rows")


def file_case(name, axes, size, seed, builders, figures, **more):
    return Case(
        name=name,
        axes=axes,
        setup=FileSetup(axes["n_rows"], axes["dim"], seed, is_trained=True),
        contenders=tuple(
            Contender(k, build, is_ours=k in OURS, threads=N_THREADS)
            for k, build in builders.items()
        ),
        figures=figures,
        n_warmups=1,
        rounds=size.rounds,
        max_seconds=30.0,
        seed=seed,
        **more,
    )


def cases(scale, seed=0):
    """Yield the cases of a name in SCALES."""
    size = SCALES[scale]
    axes = axes_of(n_rows=size.n_rows, dim=DIM, threads=N_THREADS)
    builders = {SAVE: build_save, SAVE_NUMPY: build_save_numpy}
    figures = (Ratio(SAVE, SAVE_NUMPY, targets.SAVE_NUMPY),)
    yield file_case("save", axes, size, seed, builders, figures)
    builders = {LOAD: build_load, LOAD_NUMPY: build_load_numpy}
    figures = (Ratio(LOAD, LOAD_NUMPY, targets.LOAD_NUMPY),)
    yield file_case("load", axes, size, seed, builders, figures, check=check_loaded)


class Trainer:
    """One thread's training: its steps take their batches from a few drawn beforehand."""

    def __init__(self, axes, seed):
        self.table = filled_table(Setup(axes["n_rows"], DIM, seed, is_trained=True))
        self._keys = draw_batches(axes, 64, seed).keys
        self._grads = gradients(axes["batch"], DIM, seed)
        self._n_steps = 0

    def train(self, is_over):
        """Train until `is_over()`; return the nanoseconds of each step."""
        times_ns = []
        while not is_over():
            self._n_steps += 1
            keys = self._keys[self._n_steps % len(self._keys)]
            start = time.perf_counter_ns()
            with self.table.find_or_insert(keys, step=self._n_steps) as batch:
                self.table.apply_gradients(batch, self._grads, step=self._n_steps)
            times_ns.append(time.perf_counter_ns() - start)
        return times_ns

    def train_alone(self, seconds):
        end = time.monotonic() + seconds
        return self.train(lambda: time.monotonic() > end)

    def train_while_saving(self, where):
        """Train as long as an asynchronous save takes; its call comes first among the times."""
        start = time.perf_counter_ns()
        handle = self.table.save_async(where)
        call_ns = time.perf_counter_ns() - start
        times_ns = self.train(handle.done)
        handle.wait()
        return [call_ns, *times_ns]


def saving_figures(axes, alone, saving):
    """Return the longest stall in ms and the speed against alone, a value for each save."""
    stalls_ms, speeds = [], []
    for before, during in zip(alone, saving, strict=True):
        stalls_ms.append((max(during) - float(np.median(before))) / 1e6)
        speeds.append(float(np.mean(before) / np.mean(during)))
    return [
        figure_of(
            "longest stall while a save runs", axes, stalls_ms, "ms", targets.SAVING_STALL_MS
        ),
        figure_of(
            "training while a save runs, against alone", axes, speeds, "x", targets.SAVING_SPEED
        ),
    ]


def train_while_saving(scale, seed):
    """Return the result and the figures of a few saves beside a training thread."""
    size = SCALES[scale]
    axes = axes_of(n_rows=size.n_rows, dim=DIM, batch=size.batch, distribution="uniform", threads=1)
    set_threads(1)
    trainer = Trainer(axes, seed)
    seconds = ALONE_SECONDS if size.n_rows >= 100_000 else ALONE_SECONDS / 10
    alone, saving = [], []
    with new_folder() as where:
        trainer.train_alone(seconds)
        trainer.train_while_saving(where)
        for _ in range(N_SAVES):
            alone.append(trainer.train_alone(seconds))
            saving.append(trainer.train_while_saving(where))
    found = {ALONE: chain.from_iterable(alone), SAVING: chain.from_iterable(saving)}
    contenders = [ContenderResult(name, 1, list(times)) for name, times in found.items()]
    notes = {"n_saves": N_SAVES, "save_s": [round(sum(times) / 1e9, 3) for times in saving]}
    result = CaseResult("training while a save runs", axes, N_SAVES, contenders, notes)
    return result, saving_figures(axes, alone, saving)


def measure(scale, seed, report, twins=None):
    """Run the cases of a scale, then train beside saves."""
    found, figures = harness.measure(cases(scale, seed), report, twins)
    result, more = train_while_saving(scale, seed)
    report(result, more)
    return [*found, result], [*figures, *more]
