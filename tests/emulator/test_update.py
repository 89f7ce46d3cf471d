"""Training and assigning on an emulated card, to the bit, against the reference."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from emulator.kit import SEEDS, Card, HandTable, Shape, same_bits
from reference import hashing
from reference.floats import narrow, narrow_stochastic, sum_duplicates
from reference.initial import initial_values
from reference.optimizers import Scalars, update

from embstore import FTRL, SGD, Adagrad, Adam, AdamW, RowWiseAdagrad
from embstore.engines.cuda import training
from embstore.engines.cuda.training import Part, Step
from embstore.engines.native import ON_NONFINITE
from embstore.policies import Uniform

DIMS = (1, 3, 8, 17, 64, 130)
DTYPES = ("float32", "float16", "bfloat16")
OPTIMIZERS = {
    "sgd": SGD(0.1),
    "momentum": SGD(0.1, momentum=0.9),
    "nesterov": SGD(0.1, momentum=0.9, nesterov=True),
    "adagrad": Adagrad(0.1),
    "rowwise": RowWiseAdagrad(0.1),
    "adam": Adam(0.1),
    "adamw": AdamW(0.1, weight_decay=0.02),
    "ftrl": FTRL(0.1, l1=0.3, l2=0.1, beta=0.5),
}
CONDITIONS = {
    "plain": {},
    "value": {"clip_value": 0.5},
    "norm": {"clip_norm": 1.5},
    "all": {"clip_value": 0.8, "clip_norm": 1.5, "weight_decay": 0.01},
}
LR, T, STEP = 0.0123456789, 12, 5
POWERS = (0.3, 0.9)


@pytest.fixture(params=SEEDS)
def card(request):
    card = Card(seed=request.param)
    yield card
    card.check()


def some_grads(n, dim, seed=1):
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def has_row_sums(optimizer):
    return isinstance(optimizer, RowWiseAdagrad) or optimizer.clip_norm is not None


def step_with(optimizer, on_nonfinite="raise"):
    mode = ON_NONFINITE[on_nonfinite]
    return Step(LR, *POWERS, T, STEP, has_row_sums(optimizer), mode)


def apply(table, distinct, parts, on_nonfinite="raise"):
    launcher, shape = table.card.launcher, table.shape
    how = step_with(shape.optimizer, on_nonfinite)
    sums = training.sum_up(launcher, table.view, distinct, parts, shape.dim, how.on_nonfinite)
    training.update(launcher, table.view, distinct, sums, shape.dim, how)
    return SimpleNamespace(**training.counted(launcher, sums.counts))


def expected_rows(table, places, g):
    """Return (values, slots, steps, written) of all keys, after those at `places` got g."""
    shape = table.shape
    values, slots = table.values.copy(), table.slots.copy()
    steps = table.meta["step"][table.row_of].copy()
    scalars = Scalars(LR, *POWERS)
    w, s = update(shape.optimizer, scalars, values[places], slots[places], g)
    if shape.rounding == "stochastic" and shape.dtype != "float32":
        keys = table.keys[places]
        words = hashing.words(table.STREAM, keys, hashing.ROUNDING, shape.dim, T)
        values[places] = narrow_stochastic(w, hashing.uniform(words[:, : shape.dim]), shape.dtype)
    else:
        values[places] = narrow(w, shape.dtype)
    slots[places] = s
    steps[places] = np.maximum(steps[places], STEP)
    return values, slots, steps, np.isin(np.arange(len(values)), places)


def assert_rows(table, expected):
    values, slots, steps = table.rows()
    assert same_bits(values, expected[0])
    assert same_bits(slots, expected[1])
    assert np.array_equal(steps, expected[2])
    assert np.array_equal(table.written(), expected[3])


def train_and_compare(card, shape, seed=3):
    table = HandTable(card, shape, np.arange(-9, 11) * 1000003)
    random = np.random.default_rng(seed)
    keys = random.choice(np.concatenate((table.keys, [4, 5])), 30)
    distinct, batch = table.batch(keys)
    grads = some_grads(len(keys), shape.dim, seed)
    counts = apply(table, distinct, [Part(len(keys), card.put(grads))])
    has = batch.places >= 0
    g = sum_duplicates(grads, batch.inverse, len(batch.keys))[has]
    assert_rows(table, expected_rows(table, batch.places[has], g))
    assert (counts.n_wanted, counts.n_dropped, counts.n_stale) == (has.sum(), (~has).sum(), 0)
    assert (counts.n_nonfinite, counts.first_bad) == (0, 2**64 - 1)
    assert table.read_counters()["n_grads_dropped"] == (~has).sum()


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer(name, dtype, condition):
    parameters = CONDITIONS[condition].copy()
    if name == "adamw":
        parameters.pop("weight_decay", None)
    optimizer = dataclasses.replace(OPTIMIZERS[name], **parameters)
    for dim in DIMS:
        card = Card()
        train_and_compare(card, Shape(dim, optimizer, dtype))
        card.check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["momentum", "rowwise"])
def test_stochastic_rounding(name, dtype):
    for dim in DIMS:
        card = Card()
        train_and_compare(card, Shape(dim, OPTIMIZERS[name], dtype, "stochastic"))
        card.check()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_in_any_interleaving(card, name):
    optimizer = dataclasses.replace(OPTIMIZERS[name], **CONDITIONS["norm"])
    for chosen in (OPTIMIZERS[name], optimizer):
        train_and_compare(card, Shape(17, chosen, "bfloat16", "stochastic", chunk_shift=2))


def test_rowwise_with_coupled_decay(card):
    optimizer = RowWiseAdagrad(0.1, weight_decay=0.3, clip_norm=2.0)
    train_and_compare(card, Shape(21, optimizer))


def test_hot_keys(card):
    table = HandTable(card, Shape(3, Adagrad(0.1)), np.arange(5))
    keys = np.concatenate((np.zeros(1100), np.ones(33), np.full(32, 2), [3], np.full(65, 4)))
    keys = np.random.default_rng(0).permutation(keys.astype(np.int64))
    grads = some_grads(len(keys), 3)
    distinct, batch = table.batch(keys)
    apply(table, distinct, [Part(len(keys), card.put(grads))])
    g = sum_duplicates(grads, batch.inverse, 5)
    assert_rows(table, expected_rows(table, batch.places, g))


def test_one_key_alone():
    card = Card(max_blocks=16)
    table = HandTable(card, Shape(2, SGD(0.1)), [7])
    grads = some_grads(40000, 2)
    distinct, batch = table.batch(np.full(40000, 7))
    apply(table, distinct, [Part(40000, card.put(grads))])
    assert_rows(table, expected_rows(table, [0], sum_duplicates(grads, batch.inverse, 1)))
    card.check()


def test_weighted_bags(card):
    shape = Shape(6, Adam(0.1))
    table = HandTable(card, shape, np.arange(8))
    keys = np.array([3, 1, 3, 3, 2, 7, 1, 0])
    offsets, weights = np.array([0, 3, 3, 8]), some_grads(8, 1)[:, 0]
    grads = some_grads(3, 6)
    distinct, batch = table.batch(keys)
    bags = {"n_bags": 3, "offsets": card.put(offsets, np.int64), "mode": 2}
    apply(table, distinct, [Part(8, card.put(grads), **bags, weights=card.put(weights))])
    sizes = np.diff(offsets)
    divided = grads / np.sqrt(sizes.astype(np.float32))[:, None].clip(1)
    each = np.repeat(divided, sizes, axis=0) * weights[:, None]
    g = sum_duplicates(each, batch.inverse, len(batch.keys))
    assert_rows(table, expected_rows(table, batch.places, g))


def test_an_empty_batch(card):
    table = HandTable(card, Shape(4, SGD(0.1)), np.arange(3))
    distinct, _ = table.batch([])
    counts = apply(table, distinct, [Part(0, card.put(some_grads(0, 4)))])
    assert counts.n_wanted == counts.n_dropped == counts.n_stale == 0
    assert_rows(table, expected_rows(table, np.zeros(0, np.int64), some_grads(0, 4)))


# ---- which rows


def test_rows_that_moved_or_went_are_found_anew_or_stale(card):
    """Wrong row ids of a ticket: of another key, dead, beyond all, none; and keys that are gone."""
    table = HandTable(card, Shape(4, SGD(0.1)), np.arange(60))
    keys = np.arange(2, 66)  # those from 60 on are gone
    distinct, batch = table.batch(keys, status=np.zeros(64))
    rows = batch.rows.copy()
    rows[0], rows[1], rows[2], rows[3] = table.row_of[0], table.n_ids, 0xFFFFFFFF, 0xFFFFFFF0
    dead = np.setdiff1d(np.arange(table.n_ids), table.row_of)[0]
    rows[4] = rows[58:] = dead
    table.set_key(dead, 60)  # as a row that was removed leaves it
    card.queue.upload(distinct.rows, rows)
    status = np.array([0, 1] * 32)
    status[10:14] = 2, 3, 2, 3
    card.queue.upload(distinct.status, status.astype(np.uint8))
    grads = some_grads(64, 4)
    counts = apply(table, distinct, [Part(64, card.put(grads))])
    had = ~np.isin(np.arange(64), np.arange(10, 14))
    has = had & (keys < 60)
    assert (counts.n_wanted, counts.n_dropped, counts.n_stale) == (has.sum(), 4, 6)
    assert_rows(table, expected_rows(table, keys[has], grads[has]))
    found = np.where(has, table.row_of[np.minimum(keys, 59)], 0xFFFFFFFF)
    assert np.array_equal(card.get(distinct.rows, 64, np.uint32), found)
    totals = table.read_counters()
    assert (totals["n_grads_dropped"], totals["n_grads_stale"]) == (4, 6)


# ---- sums that are not finite


def bad_batch(card, optimizer):
    """A batch of which keys 3 and 5 have sums that are not finite, and 99 no row."""
    table = HandTable(card, Shape(10, optimizer), np.arange(8))
    keys = np.array([99, 1, 5, 3, 2, 3, 5, 1] + [6] * 40)
    grads = some_grads(len(keys), 10)
    grads[0, 0], grads[5, 9], grads[6] = np.nan, np.inf, np.nan  # the last in all columns
    distinct, batch = table.batch(keys)
    g = sum_duplicates(grads, batch.inverse, len(batch.keys))
    return table, distinct, batch, g, [Part(len(keys), card.put(grads))]


BOTH_KERNELS = pytest.mark.parametrize("optimizer", [SGD(0.1), SGD(0.1, clip_norm=1.0)])


@BOTH_KERNELS
def test_nonfinite_sums_refuse_all(card, optimizer):
    table, distinct, _, _, parts = bad_batch(card, optimizer)
    counts = apply(table, distinct, parts, "raise")
    assert (counts.n_nonfinite, counts.first_bad) == (2, 2)
    assert_rows(table, expected_rows(table, np.zeros(0, np.int64), some_grads(0, 10)))
    totals = table.read_counters()
    assert totals["n_nonfinite"] == totals["n_grads_dropped"] == 0


@BOTH_KERNELS
def test_nonfinite_sums_are_skipped(card, optimizer):
    table, distinct, batch, g, parts = bad_batch(card, optimizer)
    counts = apply(table, distinct, parts, "skip")
    kept = np.isin(batch.keys, [1, 2, 6])
    assert_rows(table, expected_rows(table, batch.places[kept], g[kept]))
    assert (counts.n_wanted, counts.n_nonfinite) == (5, 2)
    totals = table.read_counters()
    assert (totals["n_nonfinite"], totals["n_grads_dropped"]) == (2, 1)


@BOTH_KERNELS
def test_nonfinite_sums_are_allowed(card, optimizer):
    table, distinct, batch, g, parts = bad_batch(card, optimizer)
    with np.errstate(invalid="ignore"):
        has = batch.places >= 0
        expected = expected_rows(table, batch.places[has], g[has])
    counts = apply(table, distinct, parts, "allow")
    values, _, steps = table.rows()
    assert np.array_equal(values, expected[0], equal_nan=True)
    assert np.array_equal(steps, expected[2])
    assert counts.n_nonfinite == table.read_counters()["n_nonfinite"] == 0


# ---- assigning


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 7, 16])
def test_assign_the_last_values(card, dtype, dim):
    table = HandTable(card, Shape(dim, Adagrad(0.1), dtype), np.arange(20))
    keys = np.random.default_rng(4).integers(0, 25, 60)
    distinct, batch = table.batch(keys)
    values = some_grads(60, dim)
    launcher = card.launcher
    vectors = training.last_values(launcher, distinct, card.put(values))
    bad = training.check(launcher, distinct, vectors, dim)
    assert card.get(bad, 1, np.uint64)[0] == 0
    training.assign(launcher, table.view, distinct, vectors, dim, STEP)
    last = {int(key): values[i] for i, key in enumerate(keys)}
    assert_assigned(table, batch, np.stack([last[int(key)] for key in batch.keys]))


def assert_assigned(table, batch, results):
    has = batch.places >= 0
    at = batch.places[has]
    expected = table.values.copy()
    expected[at] = narrow(results[has], table.shape.dtype)
    steps = table.meta["step"][table.row_of].copy()
    steps[at] = np.maximum(steps[at], STEP)
    written = np.isin(np.arange(len(expected)), at)
    assert_rows(table, (expected, table.slots, steps, written))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 7, 16])
def test_assign_sums(card, dtype, dim):
    table = HandTable(card, Shape(dim, Adagrad(0.1), dtype), np.arange(20))
    keys = np.concatenate((np.random.default_rng(4).integers(0, 25, 60), np.full(70, 3)))
    distinct, batch = table.batch(keys)
    values = some_grads(len(keys), dim)
    launcher = card.launcher
    vectors = training.added_values(launcher, table.view, distinct, card.put(values), dim)
    born = narrow(initial_values(Uniform(-0.5, 0.5), table.STREAM, batch.keys, dim), dtype)
    present = np.where((batch.places < 0)[:, None], born, table.values[batch.places])
    results = present + sum_duplicates(values, batch.inverse, len(batch.keys))
    assert same_bits(card.get(vectors.base, results.shape, np.float32), results)
    training.assign(launcher, table.view, distinct, vectors, dim, STEP)
    assert_assigned(table, batch, results)


@pytest.mark.parametrize("mode", ["last", "added"])
def test_vectors_that_are_not_finite_are_seen(card, mode):
    table = HandTable(card, Shape(9, SGD(0.1)), np.arange(4))
    distinct, _ = table.batch([1, 2, 1])
    for value, at, is_seen in ((np.inf, 2, True), (np.nan, 1, True), (np.inf, 0, mode == "added")):
        values = some_grads(3, 9)
        values[at, 8] = value
        put = card.put(values)
        if mode == "last":
            vectors = training.last_values(card.launcher, distinct, put)
        else:
            vectors = training.added_values(card.launcher, table.view, distinct, put, 9)
        bad = training.check(card.launcher, distinct, vectors, 9)
        assert card.get(bad, 1, np.uint64)[0] == is_seen
