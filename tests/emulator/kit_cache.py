"""A cache looked at from inside, and the rule of two buckets as Python has it."""

import numpy as np

import embstore as es

from .kit import LINE, META
from .kit_rows import MASK, fold, mix

CELLS = 10
FIRST_ROW = 3
EDGE_KEYS = (0, -1, -(2**63), 2**63 - 1, 1, -2)


def make_cache(max_rows, by="step", dim=3, **more):
    given = {"initializer": es.Normal(std=1.0), "optimizer": es.Adagrad(lr=0.5)}
    eviction = more.pop("eviction", es.CacheEviction(by))
    return es.Table(dim, max_rows=max_rows, eviction=eviction, device="cuda", **given | more)


def downloaded(table, address, shape, dtype):
    out = np.empty(shape, dtype)
    if out.nbytes:
        table._engine._launcher.queue.download(address, out)
    return out


def buckets_of(table, key):
    """The numbers of the two buckets that a key may lie in."""
    keys, n_lines = table._engine._storage.hash_fields, table._engine._storage.n_lines
    hashed = fold(
        fold((key & MASK) ^ keys["hash_first"], keys["hash_first_multiplier"])
        ^ keys["hash_second"],
        keys["hash_second_multiplier"],
    )
    return hashed * n_lines >> 64, mix(hashed) * n_lines >> 64


def lines_of(table):
    storage = table._engine._storage
    return downloaded(table, storage._lines.address, storage.n_lines, LINE)


def check_index(table):
    """Every key once, every row once, where a search finds it; nothing is left claimed."""
    storage, counters = table._engine._storage, table._engine._counters()
    lines = lines_of(table)
    assert not lines["reserved"].any()  # the locks
    n_ids, n_live = counters.n_ids, counters.n_live
    assert n_live <= table._spec.max_rows
    assert n_ids <= table._spec.max_rows
    metas = np.concatenate(
        [
            downloaded(table, memory.address, n, META)
            for memory, n in ((chunk.metas, chunk.n_rows) for chunk in storage.chunks._held)
        ]
    )
    live = downloaded(table, storage.live_address, storage._side_rows // 8, np.uint8)
    live = np.flatnonzero(np.unpackbits(live, bitorder="little"))
    where = np.argwhere(lines["word"] != 0)
    words = lines["word"][tuple(where.T)]
    assert (words >= FIRST_ROW).all()
    rows = words - FIRST_ROW
    assert np.array_equal(np.sort(rows), live)
    assert len(live) == n_live == len(table)
    keys = lines["key"][tuple(where.T)]
    assert np.array_equal(keys, metas["key"][rows])
    assert len(np.unique(keys)) == len(keys)
    for key, line in zip(keys.tolist(), where[:, 0].tolist(), strict=True):
        first, second = buckets_of(table, key)
        assert line == first or (line == second and lines["spilled"][first] == 1)
    free = downloaded(table, storage._side["free_rows"].address, counters.n_free, np.uint32)
    assert sorted([*free.tolist(), *live.tolist()]) == list(range(n_ids))


class TwoBuckets:
    """The rule for batches of one new key: which keys a cache holds, and their (score, key)."""

    def __init__(self, table):
        self.table = table
        self.max_rows = table._spec.max_rows
        self.cells = [[None] * CELLS for _ in range(table._engine._storage.n_lines)]
        self.score = {}

    def insert(self, key, score, pins=()):
        """Insert a key that is absent; return the one that goes, None, or "refused"."""
        first, second = buckets_of(self.table, key)
        places = [(line, i) for line in (first, second) for i in range(CELLS)]
        free = [p for p in places if self.cells[p[0]][p[1]] is None]
        held = {self.cells[line][i]: (line, i) for line, i in places}
        held = {k: p for k, p in held.items() if k is not None and k not in pins}
        gone = None
        if free and len(self.score) < self.max_rows:
            line, i = free[0]
        elif held:
            gone = min(held, key=lambda k: (self.score[k], k))
            line, i = held[gone]
            del self.score[gone]
        else:
            return "refused"
        self.cells[line][i] = key
        self.score[key] = score
        return gone

    def remove(self, key):
        del self.score[key]
        for line in self.cells:
            if key in line:
                line[line.index(key)] = None


def zipf_keys(exponent, n_keys, n, seed):
    """Return n keys, key number i with weight (i + 1) ** -exponent; numbers are scattered."""
    random = np.random.default_rng(seed)
    upto = np.cumsum(np.arange(1, n_keys + 1) ** -exponent)
    ranks = np.searchsorted(upto, random.random(n) * upto[-1])
    return (ranks.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)).view(np.int64)
