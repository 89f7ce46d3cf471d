"""Serving: how soon a checkpoint answers, from a cold page cache, and what its finds take.

"open" is open, verify="lazy", and the find of one key that no call had before; the numpy side maps
arrays of the same sizes and reads one row of each by its place. Before each sample the kernel is
asked to drop the pages of all files. The checkpoint is written without a table, by a view that
makes up its rows. The arrays are files with holes, so that they need no disk, nor wait for one.

"find" compares two tables of a smaller checkpoint, verified whole: one searches the mapped files,
the other has its index in memory.
"""

import os
import tempfile
import time
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

import embstore as es
from bench import harness, targets
from bench.harness import Absolute, Case, Contender, Ratio, Scale, axes_of
from bench.worker import ROOT
from embstore import checkpoint, serving

SCALES = {
    "tiny": Scale(n_rows=3000, batch=64, rounds=2),
    "quick": Scale(n_rows=30_000, batch=64, rounds=5),
    "small": Scale(n_rows=1_000_000, batch=4096, rounds=11),
    "default": Scale(n_rows=36_250_000, batch=4096, rounds=11),  # 10 GB
}
FIND_ROWS = 4_000_000  # of the checkpoint that finds are timed on, at most
DIM = 64
N_PARTITIONS = 256
BATCHES = (1, 64, 4096)
OPEN, OPEN_NUMPY = "open, first row", "np.load(mmap_mode), first row"
SEARCH, INDEX = "find by search", "find by index"
MASK = 2**64 - 1


def keys_of(partition, n):
    """Return n keys of a partition in ascending order: the fixed hash, undone."""
    places = np.arange(n, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7)
    z = (places & np.uint64(2**56 - 1)) | np.uint64(partition << 56)
    for shift, factor in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9), (30, 1)):
        z ^= (z >> np.uint64(shift)) ^ (z >> np.uint64(2 * shift))
        z *= np.uint64(pow(factor, -1, MASK + 1))
    z -= np.uint64(0x9E3779B97F4A7C15)
    return np.sort(z.view(np.int64))


def values_of(keys, dim):
    """Return the rows of keys: each holds one number in all its values."""
    numbers = (keys & 0xFFFFFF).astype(np.float32) * np.float32(2.0**-24)
    return np.repeat(numbers[:, None], dim, axis=1)


class SyntheticTable:
    """A table to save (a `checkpoint.TableView`) whose rows are made up as they are read."""

    dtype = "float32"
    slots = ()
    bloom_bytes = 0
    pins = np.empty(0, np.int64)

    def __init__(self, n_rows, dim):
        self.dim = dim
        self.counts = np.diff(np.arange(N_PARTITIONS + 1) * n_rows // N_PARTITIONS)
        self._held = (-1, -1, None)
        with es.Table(dim, name="synthetic") as table:
            self.config = table.config()
            self._state = table._engine.get_state()

    def get_state(self):
        return self._state

    def partition_counts(self, candidates):
        return (0 if candidates else 1) * self.counts.astype(np.uint64)

    def export_rows(self, first, last, part):
        if self._held[:2] != (first, last):
            keys = [keys_of(p, int(self.counts[p])) for p in range(first, last + 1)]
            self._held = (first, last, np.concatenate(keys))
        keys = self._held[2][part]
        n = len(keys)
        none = np.empty((n, 0), np.float32)
        return es.Rows(
            keys, values_of(keys, self.dim), none, np.ones(n, np.uint32), np.zeros(n, np.int64)
        )

    def bloom_read(self, partition):
        return np.empty(0, np.uint8)


@dataclass(frozen=True)
class OpenSetup:
    """A checkpoint of so many rows in a temporary folder on the disk of the repository."""

    n_rows: int
    dim: int
    seed: int

    def build(self):
        return OpenWorkspace(self)


class OpenWorkspace:
    """The checkpoint, arrays of the same sizes, and tables that were opened for finds."""

    def __init__(self, setup):
        self.setup = setup
        self.notes = {}
        (ROOT / "build").mkdir(exist_ok=True)
        kept = tempfile.TemporaryDirectory(dir=ROOT / "build", prefix="serving-")
        weakref.finalize(self, kept.cleanup)
        self.folder = Path(kept.name)
        self.view = SyntheticTable(setup.n_rows, setup.dim)
        report = checkpoint.save_tables(self.folder / "table", {"synthetic": self.view})
        self.n_bytes = report.n_bytes
        self._rng = np.random.default_rng(setup.seed)

    @cached_property
    def arrays(self):
        """Files as np.save writes them, of what a row is made of; zeros that take no disk."""
        n, where = self.setup.n_rows, self.folder / "arrays"
        where.mkdir()
        shapes = {"keys": np.int64, "values": np.float32, "freq": np.uint32, "step": np.int64}
        for name, dtype in shapes.items():
            shape = (n, self.setup.dim) if name == "values" else (n,)
            np.lib.format.open_memmap(where / f"{name}.npy", "w+", dtype, shape)
        return [where / f"{name}.npy" for name in shapes]

    @cached_property
    def keys(self):
        """Keys to draw from: all, or of a large checkpoint those of some partitions."""
        counts = self.view.counts
        step = 1 if self.setup.n_rows <= FIND_ROWS else 16
        return np.concatenate([keys_of(p, int(counts[p])) for p in range(0, N_PARTITIONS, step)])

    def draw(self, n):
        """Return n keys of the checkpoint at random."""
        return self._rng.choice(self.keys, n)

    @cached_property
    def searched(self):
        """The table that searches its files, all of which were verified."""
        return serving.open(self.folder / "table", index="none", verify="full")

    @cached_property
    def indexed(self):
        """The table that has its index in memory."""
        table = serving.open(self.folder / "table")
        start = time.perf_counter()
        if not table.wait_indexed():
            raise AssertionError(f"there is no index: {table.index_error}")
        self.notes["index_s"] = round(time.perf_counter() - start, 2)
        return table


def drop_pages(folder):
    """Ask the kernel to drop what it has cached of the files in a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


class ColdCall:
    """A call that is timed with no page of the files cached; what it returns is closed untimed."""

    def __init__(self, folder, call):
        self._folder, self._call = folder, call

    def __call__(self, turn):
        self.sample_ns(turn)

    def sample_ns(self, turn):
        drop_pages(self._folder)
        start = time.perf_counter_ns()
        opened = self._call()
        taken = time.perf_counter_ns() - start
        if opened is not None:
            opened.close()
        return taken


def build_open(space, case):
    space.notes["checkpoint_mb"] = round(space.n_bytes / 1e6, 1)
    keys = iter(space.draw(1000).tolist())

    def open_and_find():
        key = np.array([next(keys)])
        table = serving.open(space.folder / "table", index="none")
        if not np.array_equal(table.find(key), values_of(key, space.setup.dim)):
            raise AssertionError(f"{case.name}: key {key[0]} has another row")
        space.notes["blocks_touched"] = table.stats()["n_blocks_touched"]
        return table

    return ColdCall(space.folder / "table", open_and_find)


def build_open_numpy(space, case):
    files = space.arrays
    rows = iter(np.random.default_rng(1).integers(0, space.setup.n_rows, 1000).tolist())

    def map_and_read():
        row = next(rows)
        for file in files:
            np.array(np.load(file, mmap_mode="r")[row])

    return ColdCall(space.folder / "arrays", map_and_read)


def build_find(of):
    def build(space, case):
        table = getattr(space, of)
        batches = [space.draw(case.axes["batch"]) for _ in range(64)]
        return lambda turn: table.find(batches[turn % len(batches)])

    return build


def check_found(space, case, calls):
    """Raise unless both give the rows that were saved."""
    keys = space.draw(case.axes["batch"])
    for table in (space.searched, space.indexed):
        if not np.array_equal(table.find(keys), values_of(keys, space.setup.dim)):
            raise AssertionError(f"{case.name}: there are other rows")


def cases(scale, seed=0):
    """Yield the cases of a name in SCALES."""
    size = SCALES[scale]
    common = {"n_warmups": 1, "rounds": size.rounds, "max_seconds": 60.0, "seed": seed}
    yield Case(
        name="open",
        axes=axes_of(n_rows=size.n_rows, dim=DIM, batch=1, threads=1),
        setup=OpenSetup(size.n_rows, DIM, seed),
        contenders=(
            Contender(OPEN, build_open, is_ours=True),
            Contender(OPEN_NUMPY, build_open_numpy),
        ),
        figures=(
            Absolute(OPEN, "s", 1e9, targets.OPEN_FIRST_ROW_S),
            Absolute(OPEN_NUMPY, "s", 1e9),
        ),
        **common,
    )
    n_rows = min(size.n_rows, FIND_ROWS)
    builders = {SEARCH: build_find("searched"), INDEX: build_find("indexed")}
    for batch in BATCHES:
        yield Case(
            name=f"find of {batch}",
            axes=axes_of(n_rows=n_rows, dim=DIM, batch=batch, threads=1),
            setup=OpenSetup(n_rows, DIM, seed),
            contenders=tuple(Contender(k, build, is_ours=True) for k, build in builders.items()),
            figures=(
                Absolute(SEARCH, "us", 1e3),
                Absolute(INDEX, "us", 1e3),
                Ratio(INDEX, SEARCH),
            ),
            check=check_found,
            **{**common, "rounds": 5 * size.rounds},
        )


def measure(scale, seed, report, twins=None):
    """Run the cases of a scale."""
    return harness.measure(cases(scale, seed), report, twins)
