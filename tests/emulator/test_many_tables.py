"""A call over many tables is one launch a stage, and does what calls table by table do."""

import numpy as np
import pytest
from property.pair import assert_same_rows, exported

import embstore as es

N_TABLES = 6
DIMS = [4, 8, 16, 5, 8, 32]
OPTIMIZERS = [
    es.Adagrad(0.1),
    es.Adam(0.1),
    es.SGD(0.1),
    es.RowWiseAdagrad(0.1),
    None,
    es.FTRL(0.1),
]
OPTIMIZERS[4] = es.AdamW(0.1)


def make(device, count=N_TABLES, admission=None):
    return es.Store(
        [
            es.Table(
                DIMS[i],
                name=f"t{i}",
                optimizer=OPTIMIZERS[i],
                admission=admission,
                device=device,
                initializer=es.Normal(std=0.5),
            )
            for i in range(count)
        ]
    )


def steps(count=N_TABLES, n=60):
    rng = np.random.default_rng(3)
    for step in range(n):
        yield (
            step,
            {f"t{i}": rng.integers(0, 900, rng.integers(0, 90)) for i in range(count)},
        )


def train(store, step, keys):
    batches = store.find_or_insert_many(keys, step=step)
    grads = {f: np.full(b.rows.shape, 0.25, np.float32) for f, b in batches.items()}
    return batches, store.apply_gradients_many(batches, grads, step=step)


@pytest.mark.parametrize("admission", [None, es.CounterAdmission(2), es.BloomAdmission(2, 900)])
def test_many_tables_train_as_on_the_cpu(device, admission):
    here, there = make("cpu", admission=admission), make("cuda", admission=admission)
    for step, keys in steps(n=30):
        expected, wanted = train(here, step, keys)
        batches, reports = train(there, step, keys)
        assert reports == wanted
        for feature, batch in batches.items():
            np.testing.assert_array_equal(batch.rows, expected[feature].rows)
            np.testing.assert_array_equal(batch.status, expected[feature].status)
        found = there.find_many(keys)
        for feature, rows in here.find_many(keys).items():
            np.testing.assert_array_equal(found[feature], rows)
        offsets = {f: np.array([0, len(k) // 2, len(k)]) for f, k in keys.items()}
        pooled = there.pooled_many(keys, offsets)
        for feature, rows in here.pooled_many(keys, offsets).items():
            np.testing.assert_array_equal(pooled[feature], rows)
    for name in here:
        assert_same_rows(exported(there[name]), exported(here[name]), name)


def launches_of(device, count):
    """Count the launches of one training step of so many tables, once they have room."""
    store = make("cuda", count)
    for name in store:
        store[name].reserve(3000)
    keys = {f"t{i}": np.arange(50) for i in range(count)}
    train(store, 0, keys)
    device.launches.clear()
    train(store, 1, keys)
    store.find_many(keys)
    n_launches = dict(device.launches)
    store.close()
    return n_launches


def test_a_stage_is_one_launch(device):
    one, many = launches_of(device, 1), launches_of(device, 3)
    for kernel in ("dedup_claim", "look_up", "commit_keys", "gather_batch", "sum_gradients"):
        assert one[kernel] == 1
        assert many[kernel] == 1, kernel
    n_finds = [n["find_plain_rows"] + n.get("find_rows", 0) for n in (one, many)]
    assert n_finds == [1, 1]
    assert sum(many.values()) < 2 * sum(one.values())


def test_a_table_that_fails_does_not_keep_the_others_from_their_work(device):
    store = es.Store(
        [
            es.Table(4, name="a", optimizer=es.SGD(1.0), device="cuda"),
            es.Table(4, name="b", optimizer=es.SGD(1.0), device="cuda", max_rows=3),
            es.Table(4, name="c", optimizer=es.SGD(1.0), device="cuda"),
        ]
    )
    with pytest.raises(es.CapacityError, match="table 'b'"):
        store.find_or_insert_many({name: np.arange(5) for name in "abc"}, step=0)
    assert [len(store[name]) for name in "abc"] == [5, 0, 5]
    batches = store.find_or_insert_many({name: np.arange(3) for name in "abc"}, step=0)
    before = {name: store[name].find(np.arange(3)) for name in "abc"}
    grads = {name: np.ones((3, 4), np.float32) for name in "abc"}
    grads["b"][1] = np.nan
    with pytest.raises(es.NonFiniteError, match="table 'b'"):
        store.apply_gradients_many(batches, grads, step=0)
    changed = [not np.array_equal(store[name].find(np.arange(3)), before[name]) for name in "abc"]
    assert changed == [True, False, True]
