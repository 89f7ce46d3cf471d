"""Initial values: a pure function of seed, name, key and column, with the promised distribution."""

import math

import numpy as np
import pytest
from contract.tools import ids, rows_of

import embstore as es

KEYS = np.arange(-5000, 5000) * 1_000_003
KINDS = [
    es.Uniform(-1.0, 3.0),
    es.Normal(mean=2.0, std=0.5),
    es.TruncatedNormal(mean=-1.0, std=2.0),
]


def initial(make_table, initializer, dim=16, keys=KEYS, **parameters):
    table = make_table(dim, initializer=initializer, **parameters)
    return table.find(keys, missing="initial")


def test_constant(make_table):
    assert initial(make_table, es.Constant(-0.25), 3, ids(5)).tolist() == [[-0.25] * 3]


def test_uniform(make_table):
    x = initial(make_table, es.Uniform(-1.0, 3.0)).astype(np.float64)
    assert x.min() >= -1.0
    assert x.max() <= 3.0
    assert abs(x.mean() - 1.0) < 5 * 4 / math.sqrt(12 * x.size)
    assert abs(x.var() - 16 / 12) < 0.02


def test_normal(make_table):
    x = (initial(make_table, es.Normal(mean=2.0, std=0.5)).astype(np.float64) - 2) / 0.5
    assert abs(x.mean()) < 5 / math.sqrt(x.size)
    assert abs(x.std() - 1) < 5 / math.sqrt(x.size)
    assert abs((x**3).mean()) < 0.05
    assert abs((x**4).mean() - 3) < 0.1
    assert 3.5 < abs(x).max() < 6


def test_truncated_normal(make_table):
    x = (initial(make_table, es.TruncatedNormal(-1.0, 2.0)).astype(np.float64) + 1) / 2
    assert abs(x).max() <= 2
    assert abs(x.mean()) < 0.01
    assert abs(x.std() - 0.8796) < 0.01  # of the normal distribution cut at 2


@pytest.mark.parametrize("initializer", KINDS, ids=repr)
def test_columns_and_neighbours_are_independent(make_table, initializer):
    x = initial(make_table, initializer, keys=np.arange(10_000)).astype(np.float64)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    columns = x.T @ x / len(x) - np.eye(16)
    assert abs(columns).max() < 0.06
    assert abs((x[1:] * x[:-1]).mean()) < 0.02


@pytest.mark.parametrize("initializer", KINDS, ids=repr)
def test_neither_order_nor_company_matters(make_table, initializer):
    whole = initial(make_table, initializer)
    table = make_table(16, initializer=initializer)
    order = np.random.default_rng(0).permutation(len(KEYS))
    for part in np.array_split(KEYS[order], 7):
        table.find_or_insert(part, step=0)
    assert table.find(KEYS).tobytes() == whole.tobytes()


@pytest.mark.parametrize("initializer", KINDS, ids=repr)
def test_narrow_rows_are_the_beginning_of_wide_ones(make_table, initializer):
    wide = initial(make_table, initializer, 33)
    for dim in (1, 2, 3, 5, 32):
        narrow = initial(make_table, initializer, dim)
        assert narrow.tobytes() == np.ascontiguousarray(wide[:, :dim]).tobytes()


@pytest.mark.parametrize("initializer", KINDS, ids=repr)
def test_seed_and_name_choose_other_values(make_table, initializer):
    base = initial(make_table, initializer)
    assert initial(make_table, initializer, seed=0, name="table").tobytes() == base.tobytes()
    for other in ({"seed": 1}, {"seed": 2**64 - 1}, {"name": "item"}, {"name": ""}):
        assert (initial(make_table, initializer, **other) == base).mean() < 0.01


def test_hash_seed_and_admission_do_not_matter(make_table):
    base = initial(make_table, es.Normal())
    other = make_table(
        16, initializer=es.Normal(), hash_seed=12345, admission=es.CounterAdmission(2)
    )
    assert other.find_or_insert(KEYS, 0, admit="always").rows.tobytes() == base.tobytes()


def test_slots_at_birth(make_table):
    expected = {
        es.Adagrad(0.1, initial_accumulator=0.5): [0.5, 0.5],
        es.RowWiseAdagrad(0.1, initial_accumulator=0.25): [0.25],
        es.FTRL(0.1, initial_accumulator=0.75): [0.75, 0.75, 0, 0],
        es.FTRL(0.1): [np.float32(0.1)] * 2 + [0, 0],
        es.Adam(0.1): [0] * 4,
        es.SGD(0.1, momentum=0.9): [0, 0],
        es.SGD(0.1): [],
    }
    for optimizer, slots in expected.items():
        table = make_table(optimizer=optimizer)
        table.assign(ids(1), rows_of(3.0))
        table.find_or_insert(ids(2), step=0)
        for rows in table.export():
            assert rows.slots.tolist() == [slots] * len(rows), optimizer
