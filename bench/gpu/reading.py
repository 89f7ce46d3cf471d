"""Rows by key on a table without slots: find, find_or_insert, bags, graphs, and the peers beside.

One table for each dim is filled step by step, so that its index goes through the loads; what else
reads such a table is measured while it stands at load 0.75.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

import embstore as es
from bench.gpu import ceilings, graphs, model, scans, targets
from bench.gpu.adapter import Kernels, NotMeasured, forced_load, n_cells_of
from bench.gpu.peers import torch_gather, torch_pooled
from bench.gpu.session import N_BATCHES, Lane
from bench.harness import Ratio, axes_of

LOADS = (0.5, 0.75, 0.9)
INSERT_LOAD = 0.65  # before keys are inserted, which bring the table to about 0.75
NORMAL_LOAD = 0.75
FRESH_SHARE = 0.13  # of the cells, which new keys may take in all
N_UNTIMED = 2  # calls of a contender before the rounds
FIRST_FRESH = 1 << 40  # numbers of rows that no table was filled with
FRESH = (0.0, 0.01, 0.5, 1.0)
BAGS = (1, 10, 50)
FIND, FIND_KERNEL, HKV = "Table.find, out=", "find kernel", "HierarchicalKV"
RAW = "line and row, no table"
SHARED_DIM = 64  # at which bags, scans and graphs are measured


@dataclass
class Filled:
    """A table and how many rows it has been given: those of 0, 1, 2, ..."""

    session: Any
    table: Any
    n_cells: int
    n_rows: int = 0
    n_drawn: int = 0  # of numbers for keys that are new, from FIRST_FRESH on
    batches: list = field(default_factory=list)

    def fill_to(self, load):
        """Give rows to the following keys until the index has a load."""
        session = self.session
        n_wanted = int(self.n_cells * load) - (len(self.table) - self.n_rows)
        out = None
        if "find_or_insert" not in session.crossing.missing:
            out = session.clock.empty((session.scale.batch, self.table.dim), np.float32)
        while self.n_rows < n_wanted:
            session.require_time()
            n = min(session.scale.batch, n_wanted - self.n_rows)
            keys = session.data.following(self.n_rows, n)
            session.crossing.insert(self.table, keys, out if n == session.scale.batch else None)
            self.n_rows += n

    def axes(self, load, **more):
        """Return the axes of a case on this table; its rows are those that are meant at 0.75."""
        n_rows = round(self.n_cells * NORMAL_LOAD)
        axes = {"n_rows": n_rows, "dim": self.table.dim, "batch": self.session.scale.batch}
        return axes_of(**axes | {"load": load} | more)

    def draw(self):
        """Draw batches of rows that are there."""
        n = self.session.scale.batch
        self.batches = [
            self.session.data.uniform(n, self.n_rows, turn) for turn in range(N_BATCHES)
        ]


def new_table(session, dim, n_rows, **options):
    """Return a table on the device, and the cells of an index in which n_rows have load 0.75."""
    table = es.Table(
        dim, seed=session.seed, hash_seed=session.seed, device=session.clock.name, **options
    )
    table.reserve(int(n_rows / NORMAL_LOAD * 0.5))
    return Filled(session, table, n_cells_of(table))


def measure(session, hkv):
    """Measure a table of each dim; `hkv(dim, n_rows, load)` opens the peer, or raises."""
    for dim in session.scale.dims:
        with session.guarded("find", {"dim": dim}):
            measure_dim(session, dim, hkv)
        session.clock.release()


def measure_dim(session, dim, hkv):
    """Measure all that is read from a table of one dim."""
    room = 1.22 + 0.3 * (dim <= 64)  # what the loads go up to, and what stands beside
    n_rows = int(session.rows_that_fit(4 * dim, int(session.scale.n_rows * room)) / room)
    filled = new_table(session, dim, n_rows)
    peer = None
    try:
        with forced_load(max(LOADS)):
            filled.fill_to(0.5)
            find_case(session, filled, 0.5)
            session.clock.release()
            filled.fill_to(INSERT_LOAD)
            session.clock.release()
            peer = opened(session, hkv, dim, filled)
            insert_cases(session, filled, peer)
            filled.fill_to(NORMAL_LOAD)
            find_case(session, filled, NORMAL_LOAD, peer)
            session.clock.release()
            if peer is not None:
                peer.close()
                peer = None
            if dim == session.scale.dims[-1] or dim == SHARED_DIM:
                pooled_cases(session, filled)
            if dim == SHARED_DIM:
                graphs.of_kernels(session, filled)
            if dim in (16, SHARED_DIM):
                scans.measure(session, filled)
            filled.fill_to(0.9)
            find_case(session, filled, 0.9)
    finally:
        if peer is not None:
            peer.close()
        filled.table.close()


def opened(session, hkv, dim, filled):
    """Return the peer with as many rows as the table, None where it cannot be had."""
    if dim not in targets.FIND_HKV:
        return None
    try:
        return hkv(dim, filled.n_rows, filled.n_cells)
    except NotMeasured as error:
        session.lacks["hkv"] = str(error)
        session.skip(HKV, filled.axes(NORMAL_LOAD), str(error))
    return None


# ---- find


def check(session, filled):
    """Raise unless the table has the keys that are asked for, and both ways read the same rows."""
    keys = session.data.uniform(min(256, session.scale.batch), filled.n_rows, 50).keys
    on_host, rows = (
        session.clock.host(keys),
        session.clock.empty((256, filled.table.dim), np.float32),
    )
    assert filled.table.contains(on_host).all(), "a key that was put in is not there"
    expected = filled.table.find(on_host)
    Kernels(filled.table).find(keys, len(on_host), rows)
    assert np.array_equal(session.clock.host(rows)[: len(on_host)], expected), "other rows"
    assert len(filled.table) == filled.n_rows or filled.n_drawn, "other keys"


def find_lanes(session, filled, target=None):
    """Return the contenders of ours: by the verb, and by the kernel alone."""
    n, dim, crossing = session.scale.batch, filled.table.dim, session.crossing
    filled.draw()
    keys = [crossing.crossing("find", batch.keys) for batch in filled.batches]
    out, rows = crossing.out("find", (n, dim)), session.clock.empty((n, dim), np.float32)
    under = Kernels(filled.table)

    def by_verb(number):
        filled.table.find(keys[number % N_BATCHES], out=out)

    def by_kernel(number):
        under.find(filled.batches[number % N_BATCHES].keys, n, rows)

    each = model.find_bytes(dim)
    n_calls = 1 if crossing.place("find") == "host" else session.scale.n_calls
    return [
        Lane(FIND, by_verb, n, "keys", each, rate=target, n_calls=n_calls),
        Lane(FIND_KERNEL, by_kernel, n, "keys", each, n_calls=session.scale.n_calls),
    ]


def find_case(session, filled, load, peer=None):
    """Measure find, at the load that is meant beside what reads without a table and the peers."""
    check(session, filled)
    dim, axes = filled.table.dim, filled.axes(load, rows_in=session.crossing.place("find"))
    is_normal = load == NORMAL_LOAD
    lanes = find_lanes(session, filled, targets.FIND.get(dim) if is_normal else None)
    ratios, notes = [], {"load_measured": round(filled.table.stats()["load_factor"], 3)}
    if is_normal:
        n_static, static = static_rows(session, filled)
        notes["rows of what has no table"] = n_static
        lanes.append(raw_lane(session, filled, n_static, static))
        ratios += [Ratio(FIND, RAW), Ratio(FIND_KERNEL, RAW)]
        try:
            lane = torch_gather(session, static, n_static, dim)
            lanes.append(lane)
            ratios += [Ratio(FIND, lane.name), Ratio(FIND_KERNEL, lane.name)]
        except NotMeasured as error:
            notes["torch.index_select not measured"] = str(error)
    if peer is not None:
        lanes.append(peer.lane("find", model.find_bytes(dim)))
        target = targets.FIND_HKV.get(dim) if is_normal else None
        ratios += [Ratio(FIND, HKV, target), Ratio(FIND_KERNEL, HKV)]
        notes["HierarchicalKV capacity, rows when filled"] = peer.shape
    session.measure("find", axes, lanes, ratios, **notes)


def static_rows(session, filled):
    """Return rows without a table, as many as there is room for, and their number."""
    dim = filled.table.dim
    fitting = int(session.clock.free_bytes() * 0.7 / (4 * dim + 17))
    n = max(1, min(filled.n_rows, fitting))
    return n, session.clock.filled((n, dim), np.float32)


def raw_lane(session, filled, n_static, static):
    """Return what reads as many lines and rows as find does, but looks for nothing."""
    clock, n, dim = session.clock, session.scale.batch, filled.table.dim
    n_lines = max(1, n_static * 4 // 3 // 10)
    lines = clock.filled((n_lines * model.LINE,), np.uint8)
    out, to = clock.filled((1,), np.uint64), clock.empty((n, dim), np.float32)
    fields = {"lines": lines, "n_lines": n_lines, "rows": static, "n_rows": n_static, "out": out}
    fields |= {"row_bytes": 4 * dim, "n": n, "never": ceilings.NEVER}
    each = model.find_bytes(dim) - model.KEY - model.ROW_ID
    call = ceilings.behind(clock, n, fields, to)
    return Lane(RAW, call, n, "keys", each, n_calls=session.scale.n_calls)


# ---- find_or_insert


def insert_cases(session, filled, peer):
    """Measure find_or_insert with each share of new keys; the table grows by them."""
    for fresh in FRESH:
        insert_case(session, filled, fresh, peer)


def insert_case(session, filled, fresh, peer):
    """Measure find_or_insert with one share of new keys, beside find of keys that are there."""
    n, dim, crossing = session.scale.batch, filled.table.dim, session.crossing
    axes = filled.axes(NORMAL_LOAD, fresh=fresh, rows_in=crossing.place("find_or_insert"))
    out, step, given = crossing.out("find_or_insert", (n, dim)), [0], []

    n_calls = 1 if fresh or crossing.place("find_or_insert") == "host" else session.scale.n_calls

    def prepare(number):
        given.clear()
        for at in range(number, number + n_calls):
            first = FIRST_FRESH + filled.n_drawn
            batch = session.data.uniform(n, filled.n_rows, 100 + at, fresh, first)
            filled.n_drawn += n if fresh else 0
            given.append(crossing.crossing("find_or_insert", batch.keys))

    def call(number):
        step[0] += 1
        filled.table.find_or_insert(given[number % n_calls], step=step[0], out=out)

    each = model.mixed_bytes(dim, 0, fresh)
    name = "Table.find_or_insert"
    lanes = [Lane(name, call, n, "keys", each, prepare=prepare, n_calls=n_calls)]
    ratios = []
    if fresh == 0.0:
        lanes.append(find_lanes(session, filled)[0])
        ratios.append(Ratio(name, FIND, targets.HITS_FIND.get(dim)))
    if peer is not None:
        lanes.append(peer.lane(f"find_or_insert {fresh}", each))
        ratios.append(Ratio(name, HKV, targets.INSERT_HKV.get(dim) if fresh == 1.0 else None))
    rounds = int(FRESH_SHARE * filled.n_cells / (sum(FRESH) * n)) - N_UNTIMED
    rounds = max(1, min(session.scale.rounds, rounds))
    session.measure("find_or_insert", axes, lanes, ratios, rounds=rounds)


# ---- bags


def pooled_cases(session, filled):
    """Measure the reading of bags of each size."""
    n, dim, crossing = session.scale.batch, filled.table.dim, session.crossing
    under = Kernels(filled.table)
    for bag in BAGS:
        n_bags = max(1, n // bag)
        n_ids = n_bags * bag
        batches = [session.data.uniform(n_ids, filled.n_rows, turn) for turn in range(N_BATCHES)]
        offsets = session.data.offsets(n_bags, bag)
        keys = [crossing.crossing("pooled", batch.keys) for batch in batches]
        given = crossing.crossing("pooled", offsets)
        out = crossing.out("pooled", (n_bags, dim))
        rows = session.clock.empty((n_bags, dim), np.float32)

        def by_verb(number, keys=keys, given=given, out=out):
            filled.table.pooled(keys[number % N_BATCHES], given, out=out)

        def by_kernel(number, at=(batches, n_ids, offsets, n_bags, rows)):
            batches, n_ids, offsets, n_bags, rows = at
            under.pooled(batches[number % N_BATCHES].keys, n_ids, offsets, n_bags, rows)

        each = model.pooled_bytes(dim, bag)
        more = {"n_calls": session.scale.n_calls}
        here = {} if crossing.place("pooled") == "host" else more
        lanes = [
            Lane("Table.pooled", by_verb, n_ids, "ids", each, **here),
            Lane("pooled kernels", by_kernel, n_ids, "ids", each, **more),
        ]
        notes = {}
        try:
            lanes.append(torch_pooled(session, filled, n_ids, offsets, each))
        except NotMeasured as error:
            notes["torch embedding_bag not measured"] = str(error)
        ratios = [Ratio("pooled kernels", lane.name) for lane in lanes[2:]]
        axes = filled.axes(NORMAL_LOAD, bag=bag, rows_in=crossing.place("pooled"))
        session.measure("pooled", axes, lanes, ratios, **notes)
        session.clock.release()
