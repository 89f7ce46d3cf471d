"""Store: several tables by feature; features that share a table are one batch of it."""

import numpy as np
import pytest
from contract.tools import FOUND, INSERTED, PENDING, ids, live, meta, rows_of

import embstore as es

FEATURES = {"who": "user", "shown": "item", "bought": "item"}


@pytest.fixture
def store(make_table):
    """Users of dim 2 that count from 1 on, items of dim 3 admitted at the second occurrence."""
    user = make_table(2, name="user", optimizer=es.SGD(1.0))
    item = make_table(3, name="item", optimizer=es.SGD(1.0), admission=es.CounterAdmission(2))
    return es.Store([user, item], FEATURES)


def test_it_is_a_collection_of_tables(store):
    assert [*store] == ["user", "item"] == [*store.names]
    assert len(store) == 2
    assert store["item"].dim == 3
    assert store.features == FEATURES
    assert store.nbytes == store["user"].nbytes + store["item"].nbytes
    assert [*store.stats()] == ["user", "item"]
    assert store.stats()["item"]["n_live"] == 0


def test_tables_are_features_by_default(make_table):
    store = es.Store({"a": make_table(2), "b": make_table(3)})
    rows = store.find_many({"b": ids(1), "a": ids(1, 2)})
    assert {name: row.shape for name, row in rows.items()} == {"b": (1, 3), "a": (2, 2)}
    assert [*rows] == ["b", "a"]


def test_features_of_a_table_are_one_batch(store):
    batches = store.find_or_insert_many(
        {"bought": ids(5), "who": ids(1, 2), "shown": ids(6, 5)}, step=3
    )
    assert [*batches] == ["bought", "who", "shown"]
    assert {name: batch.rows.shape for name, batch in batches.items()} == {
        "bought": (1, 3),
        "who": (2, 2),
        "shown": (2, 3),
    }
    assert batches["bought"].batch is batches["shown"].batch
    assert batches["bought"].batch.keys.tolist() == [5, 6]  # in the order of the features given
    assert batches["bought"].status.tolist() == [INSERTED]  # counted twice in the call
    assert batches["shown"].status.tolist() == [PENDING, INSERTED]
    assert batches["shown"].inverse.tolist() == [1, 0]
    assert meta(store["item"], 5) == [(2, 3)]
    assert store.step == 3


def test_gradients_of_features_are_summed(store):
    for _ in range(2):
        batches = store.find_or_insert_many({"shown": ids(5, 6), "bought": ids(5)}, step=0)
    before = store["item"].find(ids(5, 6))
    reports = store.apply_gradients_many(
        batches, {"shown": rows_of(1, 2, dim=3), "bought": rows_of(4, dim=3)}, step=1
    )
    assert reports == {"item": (2, 0, 0, 0)}
    assert (before - store["item"].find(ids(5, 6))).tolist() == [[5] * 3, [2] * 3]
    assert store["item"].stats()["n_train_steps"] == 1


def test_gradients_by_keys(store):
    store.find_or_insert_many({"who": ids(1), "shown": ids(5, 5)}, step=0)
    keys = {"who": ids(1, 9), "shown": ids(5), "bought": ids(5)}
    grads = {"who": rows_of(1, 1), "shown": rows_of(1, dim=3), "bought": rows_of(2, dim=3)}
    reports = store.apply_gradients_many(keys, grads, step=0, lr=0.5)
    assert reports == {"user": (1, 1, 0, 0), "item": (1, 0, 0, 0)}
    assert store["item"].find(ids(5)).tolist() == [[-0.5] * 3]


def test_counts_and_admit(store):
    counts = {"shown": np.array([2], np.uint32)}
    batches = store.find_or_insert_many({"shown": ids(5), "bought": ids(6)}, step=0, counts=counts)
    assert batches["shown"].status.tolist() == [INSERTED]
    assert batches["bought"].status.tolist() == [PENDING]
    batches = store.find_or_insert_many({"bought": ids(6, 7, 5)}, step=0, admit="always")
    assert batches["bought"].status.tolist() == [INSERTED, INSERTED, FOUND]


def test_find_many_reads(store):
    store["user"].assign(ids(1), rows_of(7))
    rows = store.find_many({"who": ids(1, 2), "shown": ids(3), "bought": ids()})
    assert rows["who"].tolist() == [[7, 7], [0, 0]]
    assert (rows["shown"].shape, rows["bought"].shape) == ((1, 3), (0, 3))
    assert store.find_many({"who": ids(2)}, missing="initial")["who"].tolist() == [[1, 1]]
    with pytest.raises(es.MissingKeyError):
        store.find_many({"who": ids(2)}, missing="raise")


def test_pooled_many(store):
    keys = {"who": ids(1, 2, 0), "shown": ids(5, 5), "bought": ids(5)}
    offsets = {"who": ids(0, 2, 3), "shown": ids(0, 2), "bought": ids(0, 0, 1)}
    weights = {"who": np.array([2, 4, 8], np.float32)}
    bags = store.pooled_many(keys, offsets, mode="mean", weights=weights, padding=0)
    assert {name: bag.tolist() for name, bag in bags.items()} == {
        "who": [[0, 0], [0, 0]],
        "shown": [[0] * 3],
        "bought": [[0] * 3, [0] * 3],
    }
    batches = store.pooled_many(keys, offsets, mode="mean", weights=weights, padding=0, step=0)
    assert batches["who"].rows.tolist() == [[3, 3], [0, 0]]
    assert batches["bought"].rows.tolist() == [[0] * 3, [1] * 3]
    grads = {name: np.ones_like(batch.rows) for name, batch in batches.items()}
    assert store.apply_gradients_many(batches, grads, step=0)["item"].n_applied == 1
    assert store["user"].find(ids(1, 2)).tolist() == [[0, 0], [-1, -1]]
    assert store["item"].find(ids(5)).tolist() == [[1 - 0.5 - 0.5 - 1] * 3]


def test_evict_runs_each_tables_policy(make_table):
    first = make_table(name="first", eviction=es.StepEviction(5))
    second = make_table(name="second")
    store = es.Store([first, second])
    store.find_or_insert_many({"first": ids(1), "second": ids(1)}, step=0)
    store.find_or_insert_many({"second": ids(2)}, step=9)
    assert {name: report.n_evicted for name, report in store.evict().items()} == {"first": 1}
    assert (live(first), live(second)) == ([], [1, 2])


def test_close(store):
    with store:
        pass
    with pytest.raises(es.ClosedTableError):
        store["user"].find(ids(1))


def test_the_same_as_the_tables_one_by_one(make_table):
    """A store of two tables against two tables, over random calls."""
    rng = np.random.default_rng(0)
    parameters = [
        {"name": "a", "dim": 4, "optimizer": es.Adam(0.1), "initializer": es.Normal()},
        {"name": "b", "dim": 5, "optimizer": es.Adagrad(0.1), "initializer": es.Normal()},
    ]
    joint = es.Store([make_table(**p) for p in parameters])
    alone = {p["name"]: make_table(**p) for p in parameters}
    for step in range(10):
        keys = {name: rng.integers(0, 50, 30) for name in alone}
        batches = joint.find_or_insert_many(keys, step)
        grads = {name: rng.standard_normal(b.rows.shape, np.float32) for name, b in batches.items()}
        joint.apply_gradients_many(batches, grads, step)
        for name, table in alone.items():
            table.apply_gradients(table.find_or_insert(keys[name], step), grads[name], step)
    for name, table in alone.items():
        assert joint[name].find(np.arange(50)).tobytes() == table.find(np.arange(50)).tobytes()
