"""Where gradients lie, and the sums of those of each key, against the reference."""

import itertools

import numpy as np
import pytest
from emulator.kit import SEEDS, Card, HandTable, Shape, same_bits
from reference.floats import sum_duplicates
from reference.pooling import pool

from embstore import SGD
from embstore.engines.cuda import training
from embstore.engines.cuda.training import Part

DIMS = (1, 3, 8, 17, 64, 130)
MODES = {"sum": 0, "mean": 1, "sqrtn": 2}


@pytest.fixture(params=SEEDS)
def card(request):
    card = Card(seed=request.param)
    yield card
    card.check()


def keys_of_runs(lengths, seed=0):
    """Keys 0, 1, ..., each as often as said, shuffled."""
    keys = np.repeat(np.arange(len(lengths)), lengths)
    return np.random.default_rng(seed).permutation(keys)


def sums_of(card, keys, grads, dim, weights=None, wanted=None):
    """Return (sums (n_unique, dim), first positions) as the card finds them."""
    table = HandTable(card, Shape(dim, SGD(0.1)), [0])
    distinct, batch = table.batch(keys)
    runs = training.group(card.launcher, distinct)
    view = training.View(
        dim, base=card.put(grads), weights=card.put(weights) if weights is not None else 0
    )
    n_unique = len(batch.keys)
    targets = 0
    if wanted is not None:
        targets = card.put(np.where(wanted[batch.keys], 1, 0xFFFFFFFF), np.uint32)
    sums = training.add_up(card.launcher, view, runs, targets)
    starts = card.get(runs.starts, n_unique + 1, np.uint32)
    order = card.get(runs.order, len(keys), np.uint32)
    assert np.array_equal(order, np.argsort(batch.inverse, kind="stable"))
    summed = card.get(sums, (len(keys) // 2, dim), np.float32)
    weighted = grads if weights is None else grads * weights[:, None]
    out = np.zeros((n_unique, dim), np.float32)
    for u, (start, end) in enumerate(itertools.pairwise(starts.astype(int))):
        if wanted is None or wanted[batch.keys[u]]:
            out[u] = weighted[order[start]] if end - start == 1 else summed[start // 2]
    return out, batch


def some_grads(n, dim, seed=1):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


@pytest.mark.parametrize("dim", DIMS)
def test_sums_of_short_and_long_runs(card, dim):
    keys = keys_of_runs([1, 2, 31, 32, 33, 1, 40, 64, 65, 3, 33, 33, 1])
    grads = some_grads(len(keys), dim)
    sums, batch = sums_of(card, keys, grads, dim)
    assert same_bits(sums, sum_duplicates(grads, batch.inverse, len(batch.keys)))


@pytest.mark.parametrize("lengths", [[1024], [1025], [1, 1024, 1025, 33, 2], [2000, 1, 1056, 31]])
def test_sums_of_runs_of_many_blocks(lengths):
    keys = keys_of_runs(lengths)
    for dim in (1, 5):
        card = Card()
        grads = some_grads(len(keys), dim)
        sums, batch = sums_of(card, keys, grads, dim)
        assert same_bits(sums, sum_duplicates(grads, batch.inverse, len(batch.keys)))
        card.check()


def test_sums_of_a_run_of_four_levels():
    card = Card(max_blocks=16)
    keys = keys_of_runs([40000, 5, 33000, 1100])
    grads = some_grads(len(keys), 2)
    sums, batch = sums_of(card, keys, grads, 2)
    assert same_bits(sums, sum_duplicates(grads, batch.inverse, len(batch.keys)))
    card.check()


def test_partial_sums_of_runs_never_overlap():
    """Many runs just beyond each level's length, one after another, at all offsets."""
    random = np.random.default_rng(3)
    for trial in range(6):
        card = Card()
        lengths = random.choice([1, 2, 32, 33, 34, 63, 64, 65, 97, 1025, 1056, 1057], 30)
        keys = np.repeat(np.arange(len(lengths)), lengths)
        grads = some_grads(len(keys), 1, trial)
        sums, batch = sums_of(card, keys, grads, 1)
        assert same_bits(sums, sum_duplicates(grads, batch.inverse, len(batch.keys)))
        card.check()


@pytest.mark.parametrize("dim", [3, 16])
def test_sums_of_weighted_gradients(card, dim):
    keys = keys_of_runs([1, 1, 5, 70, 33])
    grads, weights = some_grads(len(keys), dim), some_grads(len(keys), 1)[:, 0]
    sums, batch = sums_of(card, keys, grads, dim, weights)
    expected = sum_duplicates(grads * weights[:, None], batch.inverse, len(batch.keys))
    assert same_bits(sums, expected)


def test_sums_of_wanted_keys_alone(card):
    keys = keys_of_runs([40, 2, 70, 1, 5])
    wanted = np.array([True, False, False, True, True])
    grads = some_grads(len(keys), 4)
    sums, batch = sums_of(card, keys, grads, 4, wanted=wanted)
    expected = sum_duplicates(grads, batch.inverse, len(batch.keys))
    assert same_bits(sums, np.where(wanted[batch.keys][:, None], expected, np.float32(0)))


def test_no_positions(card):
    sums, _ = sums_of(card, np.zeros(0, np.int64), some_grads(0, 4), 4)
    assert sums.shape == (0, 4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dim", [3, 40])
def test_view_of_parts(card, mode, dim):
    """A part of rows, two of bags (one weighted), one of no positions."""
    random = np.random.default_rng(9)
    sizes = [0, 3, 1, 0, 70, 2]
    offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    n = int(offsets[-1])
    rows, bags, others = (some_grads(k, dim, k) for k in (5, len(sizes), len(sizes)))
    weights = random.standard_normal(n).astype(np.float32)
    bag_fields = {"n_bags": len(sizes), "offsets": card.put(offsets), "mode": MODES[mode]}
    parts = [
        Part(5, card.put(rows)),
        Part(n, card.put(bags), **bag_fields, weights=card.put(weights)),
        Part(0, card.put(rows[:0])),
        Part(n, card.put(others), **bag_fields),
    ]
    view = training.gradient_view(card.launcher, parts, dim)
    divisor = pool(np.zeros((n, dim), np.float32), offsets, mode, None)[1].clip(1)
    spread = [np.repeat(b / divisor[:, None], sizes, axis=0) for b in (bags, others)]
    expected = np.concatenate((rows, spread[0] * weights[:, None], spread[1]))
    keys = np.arange(2 * n + 5)
    pointers = card.get(view.pointers, len(keys), np.uint64)
    by = card.get(view.weights, len(keys), np.float32)
    found = np.stack([card.get(int(at), dim, np.float32) for at in pointers]) * by[:, None]
    assert same_bits(found, expected)


def test_view_of_one_part_is_its_rows(card):
    rows = card.put(some_grads(5, 4))
    assert training.gradient_view(card.launcher, [Part(5, rows)], 4) == training.View(4, base=rows)
