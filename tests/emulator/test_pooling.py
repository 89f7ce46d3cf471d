"""Pooling on an emulated card, to the bit, against the reference."""

import numpy as np
import pytest
from emulator.kit import NO_ROW, SEEDS, Card, HandTable, Shape, same_bits
from reference.floats import narrow
from reference.pooling import pool as expected_pool

from embstore import SGD
from embstore.engines.cuda.pooling import pool

MODES = {"sum": 0, "mean": 1, "sqrtn": 2}


@pytest.fixture(params=SEEDS)
def card(request):
    card = Card(seed=request.param)
    yield card
    card.check()


def pooled(card, sizes, dim, dtype="float32", mode="sum", is_weighted=False, by_batch=True):
    """Pool bags of 30 keys, a third of which have no row; return (found, expected)."""
    random = np.random.default_rng(sum(sizes))
    default = random.standard_normal(dim).astype(np.float32)
    table = HandTable(card, Shape(dim, SGD(0.1), dtype), np.arange(20), default_row=default)
    offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    keys = random.integers(0, 30, int(offsets[-1]))
    weights = random.standard_normal(len(keys)).astype(np.float32) if is_weighted else None
    out = card.room((len(sizes), dim), np.float32)
    given = {"weights": card.put(weights) if is_weighted else 0}
    if by_batch:
        distinct, _ = table.batch(keys)
        rows, given["inverse"] = distinct.rows, distinct.inverse
    else:
        ids = np.where(keys < 20, table.row_of[np.minimum(keys, 19)], NO_ROW)
        rows = card.put(ids, np.uint32)
    where = (card.put(offsets), len(sizes), MODES[mode], out, dim)
    pool(card.launcher, table.view, rows, *where, **given)
    absent = narrow(default, dtype)
    values = np.where((keys < 20)[:, None], table.values[np.minimum(keys, 19)], absent)
    expected = expected_pool(values, offsets, mode, weights)[0]
    return card.get(out, expected.shape, np.float32), expected


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_pool(card, mode, dtype, is_weighted):
    for dim, by_batch in ((1, True), (3, False), (8, True), (17, False), (130, True)):
        sizes = (0, 1, 2, 5, 6, 31, 32, 33, 0, 70)
        found, expected = pooled(card, sizes, dim, dtype, mode, is_weighted, by_batch)
        assert same_bits(found, expected)


@pytest.mark.parametrize("size", [1024, 1025, 1056, 1057, 2000, 40000])
def test_long_bags(size):
    card = Card()
    for mode in MODES:
        assert same_bits(*pooled(card, (3, size), 5, mode=mode, is_weighted=True))
    card.check()


def test_no_bags_and_empty_bags(card):
    assert same_bits(*pooled(card, (), 4))
    found, expected = pooled(card, (0, 0), 4, mode="mean")
    assert same_bits(found, expected)
    assert not found.any()
