"""find: reading rows by key, beside static tables read by row id and the raw gather, the limit.

Every contender copies the same number of rows of the same content; before the clock starts their
outputs for one batch are compared. Contenders that end in "out=" write into one and the same
aligned buffer, the others into fresh memory.
"""

import os
from dataclasses import dataclass
from functools import cached_property

import numpy as np

import embstore as es
from bench import harness, targets
from bench.harness import Absolute, Case, Contender, Ratio, Scale, product
from bench.keys import draw_batches, key_of
from bench.machine import has_module
from bench.raw_gather import RawGather, compiler, huge_empty, huge_share

FILL_ROWS = 1 << 18  # rows of one call while a table is filled
SCALES = {
    "tiny": Scale(n_rows=2000, batch=256, rounds=2),
    "quick": Scale(n_rows=20_000, batch=4096, rounds=5),
    "default": Scale(n_rows=1_000_000, batch=131_072, rounds=31),
    "full": Scale(n_rows=10_000_000, batch=131_072, rounds=31),
}
LOAD_RESERVED = 0.5  # reserve(n) makes an index in which n rows have this load

OURS, OURS_FRESH = "embstore find out=", "embstore find"
TORCH, TORCH_FRESH = "torch.index_select out=", "torch.index_select"
TORCH_HUGE, TORCH_EMBEDDING = "torch.index_select out=, huge pages", "torch functional.embedding"
TAKE, RAW, RAW_STREAM = "np.take out=", "raw gather", "raw gather, streaming stores"
OURS_2, RAW_2 = "embstore find out=, 2 threads", "raw gather, 2 threads"
DICT = "dict of rows, copied"


@dataclass(frozen=True)
class Setup:
    """The tables of some cases: all hold the same rows, row i holding the number i."""

    n_rows: int
    dim: int
    load: float
    seed: int

    def build(self):
        return Workspace(self)


class Workspace:
    """Tables, tensors and buffers, each made when the first contender asks for it."""

    def __init__(self, setup):
        self.setup = setup
        self.notes = {}
        self._batches = (None, None)
        self._out = {}

    def batches(self, case):
        """Return the batches of a case; those of one case at a time are kept."""
        asked = (tuple(sorted(case.axes.items())), case.n_batches)
        if self._batches[0] != asked:
            self._batches = (asked, draw_batches(case.axes, case.n_batches, self.setup.seed))
        return self._batches[1]

    def out(self, batch):
        """Return the (batch, dim) float32 buffer that all contenders write into."""
        if batch not in self._out:
            self._out = {batch: aligned_empty((batch, self.setup.dim))}
        return self._out[batch]

    def fill(self, rows):
        """Write the number of each row into all its values; return `rows`."""
        for start in range(0, len(rows), FILL_ROWS):
            rows[start : start + FILL_ROWS] = row_numbers(start, len(rows))[:, None]
        return rows

    @cached_property
    def table(self):
        """The table under test, its index at the load of the setup, without optimizer state."""
        setup = self.setup
        table = es.Table(setup.dim, hash_seed=setup.seed, seed=setup.seed)
        table.reserve(int(np.ceil(setup.n_rows * LOAD_RESERVED / setup.load)))
        for start in range(0, setup.n_rows, FILL_ROWS):
            numbers = row_numbers(start, setup.n_rows)
            rows = np.repeat(numbers[:, None], setup.dim, axis=1)
            table.assign(key_of(np.arange(start, start + len(rows)), setup.seed), rows)
        return table

    @cached_property
    def static(self):
        """A torch tensor in the memory that torch itself allocates."""
        import torch

        tensor = torch.empty(self.setup.n_rows, self.setup.dim)
        self.fill(tensor.numpy())
        return tensor

    @cached_property
    def huge(self):
        """The same rows as an array on huge pages."""
        return self.fill(huge_empty((self.setup.n_rows, self.setup.dim)))


def row_numbers(start, n_rows):
    """Return the numbers of the rows from `start` that one fill takes, float32: exact to 2**24."""
    return (np.arange(start, min(start + FILL_ROWS, n_rows)) % (1 << 24)).astype(np.float32)


def aligned_empty(shape, alignment=64):
    """Return a float32 array that begins at a cache line."""
    n_bytes = int(np.prod(shape)) * 4
    memory = np.empty(n_bytes + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + n_bytes].view(np.float32).reshape(shape)


def build_ours(is_fresh):
    def build(space, case):
        table, keys = space.table, list(space.batches(case).keys)
        space.notes["load_measured"] = round(table.stats()["load_factor"], 4)
        if is_fresh:
            return lambda turn: table.find(keys[turn % len(keys)])
        out = space.out(case.axes["batch"])
        return lambda turn: table.find(keys[turn % len(keys)], out=out)

    return build


def build_torch(source, is_fresh=False):
    """Return a builder of index_select over the workspace's `source`: "static" or "huge"."""

    def build(space, case):
        import torch

        tensor = torch.as_tensor(getattr(space, source))
        row_ids = [torch.from_numpy(ids) for ids in space.batches(case).row_ids]
        if is_fresh:
            return lambda turn: torch.index_select(tensor, 0, row_ids[turn % len(row_ids)])
        out = torch.from_numpy(space.out(case.axes["batch"]))
        return lambda turn: torch.index_select(tensor, 0, row_ids[turn % len(row_ids)], out=out)

    return build


def build_embedding(space, case):
    import torch

    tensor = space.static
    row_ids = [torch.from_numpy(ids) for ids in space.batches(case).row_ids]
    return lambda turn: torch.nn.functional.embedding(row_ids[turn % len(row_ids)], tensor)


def build_take(space, case):
    """Return np.take in the mode that needs no second buffer."""
    row_ids, out = list(space.batches(case).row_ids), space.out(case.axes["batch"])
    rows = space.huge if compiler() else space.static.numpy()
    return lambda turn: np.take(rows, row_ids[turn % len(row_ids)], axis=0, out=out, mode="clip")


def build_raw(n_threads=1, is_streaming=False):
    def build(space, case):
        row_ids, out = list(space.batches(case).row_ids), space.out(case.axes["batch"])
        gather = RawGather(space.huge, n_threads, is_streaming)
        kind = f"{'streaming, ' if is_streaming else ''}{n_threads} threads"
        space.notes[f"raw_distance, {kind}"] = gather.tune(row_ids, out)
        space.notes["huge_page_share"] = huge_share(space.huge)

        def call(turn):
            gather(row_ids[turn % len(row_ids)], out)
            return out

        return call

    return build


def check_same_rows(space, case, calls):
    """Raise unless every contender gives, for one batch, the row that each key was given."""
    batches = space.batches(case)
    row_ids, keys = batches.row_ids[0], batches.keys[0]
    has_row = keys == key_of(row_ids, space.setup.seed)
    wanted = (row_ids % (1 << 24)).astype(np.float32)[:, None]
    for name, call in calls.items():
        result = call(0)
        if result is None:  # a contender in another process
            continue
        rows = np.asarray(result)
        is_ours = name.startswith("embstore")
        expected = np.where(has_row[:, None], wanted, 0.0) if is_ours else wanted
        if not np.array_equal(rows, np.broadcast_to(expected, rows.shape)):
            raise AssertionError(f"{case.name}: {name} does not give the rows of its keys")


def contenders():
    """Return those who read into one buffer and those who give fresh memory, as far as there."""
    into = [Contender(OURS, build_ours(False), is_ours=True)]
    fresh = [Contender(OURS_FRESH, build_ours(True), is_ours=True)]
    if has_module("torch"):
        into.append(Contender(TORCH, build_torch("static")))
        fresh.append(Contender(TORCH_FRESH, build_torch("static", is_fresh=True)))
        fresh.append(Contender(TORCH_EMBEDDING, build_embedding))
    if compiler():
        if has_module("torch"):
            into.append(Contender(TORCH_HUGE, build_torch("huge")))
        into.append(Contender(RAW, build_raw()))
        into.append(Contender(RAW_STREAM, build_raw(is_streaming=True)))
    if compiler() or has_module("torch"):
        into.append(Contender(TAKE, build_take))
    return into, fresh


def find_case(axes, seed, rounds, name="find"):
    dim = axes["dim"]
    into, _ = contenders()
    has_target = axes["hit_rate"] == 1.0 and axes["distribution"] == "uniform"
    ratios = (
        Ratio(OURS, TORCH, targets.FIND_TORCH.get(dim) if has_target else None),
        Ratio(OURS, TORCH_HUGE),
        Ratio(OURS, RAW, targets.FIND_RAW.get(dim) if has_target else None),
        Ratio(OURS, RAW_STREAM),
        Ratio(OURS, TAKE),
    )
    return Case(
        name=name,
        axes=axes,
        setup=Setup(axes["n_rows"], dim, axes["load"], seed),
        contenders=tuple(into),
        figures=ratios,
        check=check_same_rows,
        n_batches=64,
        rounds=rounds,
        seed=seed,
    )


def fresh_case(axes, seed, rounds):
    """Return the case of outputs in fresh memory, which page faults dominate."""
    into, fresh = contenders()
    target = targets.FIND_FRESH.get(axes["dim"])
    return Case(
        name="find fresh",
        axes=axes,
        setup=Setup(axes["n_rows"], axes["dim"], axes["load"], seed),
        contenders=(*fresh, into[0]),
        figures=(
            Ratio(OURS_FRESH, TORCH_FRESH, target),
            Ratio(OURS_FRESH, TORCH_EMBEDDING),
            Ratio(OURS, TORCH_FRESH),
        ),
        check=check_same_rows,
        n_batches=64,
        rounds=rounds,
        seed=seed,
    )


def threads_case(axes, seed, rounds):
    """Return the case of two threads, beside the scaling of the raw gather itself."""
    into, _ = contenders()
    two = [Contender(OURS_2, build_ours(False), threads=2, is_ours=True)]
    if compiler():
        two += [c for c in into if c.name == RAW]
        two.append(Contender(RAW_2, build_raw(n_threads=2), threads=2))
    return Case(
        name="find, 2 threads",
        axes=axes,
        setup=Setup(axes["n_rows"], axes["dim"], axes["load"], seed),
        contenders=(into[0], *two),
        figures=(Ratio(OURS_2, OURS, targets.FIND_THREADS), Ratio(RAW_2, RAW)),
        check=check_same_rows,
        n_batches=64,
        rounds=rounds,
        seed=seed,
    )


ONE_KEY_CALLS = 1000


def build_one(make):
    """Return a builder of a loop over one-key calls; `make` gives the call of a workspace."""

    def build(space, case):
        call, items = make(space, space.batches(case), space.out(1))

        def loop(turn):
            first = turn * ONE_KEY_CALLS % (len(items) - ONE_KEY_CALLS + 1)
            for item in items[first : first + ONE_KEY_CALLS]:
                call(item)

        return loop

    return build


def one_find(space, batches, out):
    find = space.table.find
    return lambda key: find(key, out), list(batches.keys)


def one_find_fresh(space, batches, out):
    return space.table.find, list(batches.keys)


def one_select(space, batches, out):
    import torch

    rows, select, into = space.static, torch.index_select, torch.from_numpy(out)
    row_ids = [torch.from_numpy(ids) for ids in batches.row_ids]
    return lambda row_id: select(rows, 0, row_id, out=into), row_ids


def one_dict(space, batches, out):
    """Return the copy of a row out of a dict: what a program without a library would do."""
    keys = key_of(np.arange(space.setup.n_rows), space.setup.seed).tolist()
    rows = dict(zip(keys, np.zeros((space.setup.n_rows, space.setup.dim), np.float32), strict=True))
    asked = batches.keys[:, 0].tolist()

    def copy(key):
        out[0] = rows[key]

    return copy, asked


def one_key_case(axes, seed, rounds):
    """Return the case of the latency of a call with one key."""
    found = [
        Contender(OURS, build_one(one_find), n_calls=ONE_KEY_CALLS, is_ours=True),
        Contender(OURS_FRESH, build_one(one_find_fresh), n_calls=ONE_KEY_CALLS, is_ours=True),
        Contender(DICT, build_one(one_dict), n_calls=ONE_KEY_CALLS),
    ]
    if has_module("torch"):
        found.append(Contender(TORCH, build_one(one_select), n_calls=ONE_KEY_CALLS))
    return Case(
        name="find one key",
        axes=axes,
        setup=Setup(axes["n_rows"], axes["dim"], axes["load"], seed),
        contenders=tuple(found),
        figures=(Absolute(OURS, "us", 1e3, targets.FIND_ONE_US), Ratio(OURS, TORCH)),
        n_batches=ONE_KEY_CALLS * 64,
        rounds=rounds,
        seed=seed,
    )


def cases(scale, seed=0):
    """Yield the cases of a name in SCALES."""
    size = SCALES[scale]
    common = {"n_rows": size.n_rows, "batch": size.batch, "load": 0.7, "hit_rate": 1.0}
    for dim in (64, 16):
        for axes in product(dim=dim, distribution=("uniform", "zipf"), threads=1, **common):
            yield find_case(axes, seed, size.rounds)
        (axes,) = product(dim=dim, distribution="uniform", threads=1, **common)
        if scale == "full":
            yield find_case(axes | {"hit_rate": 0.5}, seed, size.rounds)
        yield fresh_case(axes, seed, size.rounds)
        if len(os.sched_getaffinity(0)) > 1:
            yield threads_case(axes | {"threads": 2}, seed, size.rounds)
    one = common | {"n_rows": min(size.n_rows, 1_000_000), "batch": 1}
    (axes,) = product(dim=16, distribution="uniform", threads=1, **one)
    yield one_key_case(axes, seed, size.rounds)


def measure(scale, seed, report, peers=None):
    """Run the cases of a scale; return their results and figures."""
    return harness.measure(cases(scale, seed), report, peers)
