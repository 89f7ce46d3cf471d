"""Keys come and go for long: searches do not get slower, and nothing grows."""

import numpy as np
import pytest
from property.pair import assert_same_rows, exported

import embstore as es

LINE = np.dtype([("key", "u8", 10), ("word", "u4", 10), ("lock", "u4"), ("has_spilled", "u4")])


def spilled_share(table):
    """The part of the index's buckets that a search goes on from."""
    storage, queue = table._engine._storage, table._engine._launcher.queue
    lines = np.empty(storage.n_lines, LINE)
    queue.download(storage._lines.address, lines.view(np.uint8))
    return float((lines["has_spilled"] != 0).mean())


@pytest.mark.parametrize("verb", ["erase", "evict"])
def test_marks_of_keys_that_left_are_cleared(device, verb):
    table = es.Table(2, device="cuda", hash_seed=3)
    n, shares = 3000, []
    table.find_or_insert(np.arange(n), step=0)
    n_bytes = table.stats()["nbytes_index"]
    for turn in range(1, 25):
        if verb == "erase":
            table.erase(np.arange((turn - 1) * n, turn * n))
        else:
            table.evict(es.StepEviction(0), step=turn)
        table.find_or_insert(np.arange(turn * n, (turn + 1) * n), step=turn)
        shares.append(spilled_share(table))
    assert max(shares) < 0.3
    assert table.stats()["nbytes_index"] == n_bytes
    assert len(table) == n


def test_a_renewed_index_holds_what_it_held(device):
    tables = [
        es.Table(4, device=d, hash_seed=3, admission=es.CounterAdmission(2))
        for d in ("cpu", "cuda")
    ]
    rng = np.random.default_rng(1)
    for step in range(40):
        keys = rng.integers(step * 300, step * 300 + 600, 700)
        for table in tables:
            table.find_or_insert(keys, step=step)
            table.evict(es.StepEviction(1), step=step)
    assert_same_rows(exported(tables[1]), exported(tables[0]), "rows")
    for name in ("keys", "counts"):
        ours, theirs = (getattr(table.candidates(), name) for table in tables)
        np.testing.assert_array_equal(ours, theirs)
