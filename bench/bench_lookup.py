"""find: reading rows by key, beside static tables read by row id and the raw gather, the limit.

Every contender copies the same number of rows of the same content; before the clock starts their
outputs for one batch are compared. Contenders that end in "out=" write into one and the same
aligned buffer, the others into fresh memory.
"""

import os

import numpy as np

from bench import harness, targets
from bench.harness import Absolute, Case, Contender, Ratio, Scale, axes_of, product
from bench.keys import key_of
from bench.machine import has_module
from bench.raw_gather import RawGather, compiler, huge_share
from bench.workspace import Setup, row_numbers

SCALES = {
    "tiny": Scale(n_rows=2000, batch=256, rounds=2),
    "quick": Scale(n_rows=20_000, batch=4096, rounds=5),
    "small": Scale(n_rows=1_000_000, batch=131_072, rounds=31),
    "default": Scale(n_rows=10_000_000, batch=131_072, rounds=31),
}
LOADS_ROWS = 2_000_000  # of the tables of several loads
ONE_KEY_ROWS = 1_000_000

OURS, OURS_FRESH = "embstore find out=", "embstore find"
TORCH, TORCH_FRESH = "torch.index_select out=", "torch.index_select"
TORCH_HUGE, TORCH_EMBEDDING = "torch.index_select out=, huge pages", "torch functional.embedding"
TAKE, RAW, RAW_STREAM = "np.take out=", "raw gather", "raw gather, streaming stores"
OURS_2, RAW_2 = "embstore find out=, 2 threads", "raw gather, 2 threads"
DICT = "dict of rows, copied"


def build_ours(is_fresh):
    def build(space, case):
        table, keys = space.table, list(space.batches(case).keys)
        space.note_load()
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
    wanted = row_numbers(row_ids)[:, None]
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


def lookup_case(name, axes, size, contenders, figures, **more):
    """Return a case over the rows that its axes name."""
    return Case(
        name=name,
        axes=axes,
        setup=Setup(axes["n_rows"], axes["dim"], more.get("seed", 0), axes["load"]),
        contenders=tuple(contenders),
        figures=figures,
        rounds=size.rounds,
        **{"check": check_same_rows, "n_batches": 64} | more,
    )


def find_case(axes, size, seed):
    """Return the case of reads into one buffer."""
    dim, into = axes["dim"], contenders()[0]
    has_target = axes["distribution"] == "uniform"
    figures = (
        Ratio(OURS, TORCH, targets.FIND_TORCH.get(dim) if has_target else None),
        Ratio(OURS, TORCH_HUGE),
        Ratio(OURS, RAW, targets.FIND_RAW.get(dim) if has_target else None),
        Ratio(OURS, RAW_STREAM),
        Ratio(OURS, TAKE),
    )
    return lookup_case("find", axes, size, into, figures, seed=seed)


def find_by_case(what, axes, size, seed):
    """Return the case of reads at a setting of one axis, against torch and the limit."""
    found = [c for c in contenders()[0] if c.name in (OURS, TORCH, RAW)]
    figures = (Ratio(OURS, TORCH), Ratio(OURS, RAW))
    return lookup_case(f"find by {what}", axes, size, found, figures, seed=seed)


def fresh_case(axes, size, seed):
    """Return the case of outputs in fresh memory, which page faults dominate."""
    into, fresh = contenders()
    figures = (
        Ratio(OURS_FRESH, TORCH_FRESH, targets.FIND_FRESH.get(axes["dim"])),
        Ratio(OURS_FRESH, TORCH_EMBEDDING),
        Ratio(OURS, TORCH_FRESH),
    )
    return lookup_case("find fresh", axes, size, (*fresh, into[0]), figures, seed=seed)


def threads_case(axes, size, seed):
    """Return the case of two threads, beside the scaling of the raw gather itself."""
    into = contenders()[0]
    two = [Contender(OURS_2, build_ours(False), threads=2, is_ours=True)]
    if compiler():
        two += [c for c in into if c.name == RAW]
        two.append(Contender(RAW_2, build_raw(n_threads=2), threads=2))
    figures = (Ratio(OURS_2, OURS, targets.FIND_THREADS), Ratio(RAW_2, RAW))
    return lookup_case("find, 2 threads", axes, size, (into[0], *two), figures, seed=seed)


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


def one_key_case(axes, size, seed):
    """Return the case of the latency of a call with one key."""
    makers = {OURS: one_find, OURS_FRESH: one_find_fresh, DICT: one_dict}
    if has_module("torch"):
        makers[TORCH] = one_select
    found = [
        Contender(name, build_one(make), n_calls=ONE_KEY_CALLS, is_ours=name in (OURS, OURS_FRESH))
        for name, make in makers.items()
    ]
    figures = (
        Absolute(OURS, "us", 1e3, targets.FIND_ONE_US),
        Ratio(OURS, TORCH),
        Ratio(OURS, DICT),
    )
    more = {"check": None, "n_batches": ONE_KEY_CALLS * 64, "seed": seed}
    return lookup_case("find one key", axes, size, found, figures, **more)


def cases(scale, seed=0):
    """Yield the cases of a name in SCALES."""
    size = SCALES[scale]
    common = {"batch": size.batch, "load": 0.7, "hit_rate": 1.0}
    common |= {"n_rows": size.n_rows, "threads": 1, "distribution": "uniform"}
    for dim in (64, 16):
        axes = axes_of(dim=dim, **common)
        yield find_case(axes, size, seed)
        yield find_case(axes | {"distribution": "zipf"}, size, seed)
        for hit_rate in (1.0, 0.5, 0.0):
            yield find_by_case("hit rate", axes | {"hit_rate": hit_rate}, size, seed)
        yield fresh_case(axes, size, seed)
        if len(os.sched_getaffinity(0)) > 1:
            yield threads_case(axes | {"threads": 2}, size, seed)
    fewer = {"n_rows": min(size.n_rows, LOADS_ROWS)}
    for axes in product(**common | {"dim": 16, "load": (0.35, 0.5, 0.7)} | fewer):
        yield find_by_case("load", axes, size, seed)
    one = {"dim": 16, "batch": 1, "n_rows": min(size.n_rows, ONE_KEY_ROWS)}
    yield one_key_case(axes_of(**common | one), size, seed)


def measure(scale, seed, report, twins=None):
    """Run the cases of a scale; return their results and figures."""
    return harness.measure(cases(scale, seed), report, twins)
