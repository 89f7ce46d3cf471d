"""Store: features that share tables are one batch of them; its calls are Table's, joined."""

import numpy as np
import pytest

import embstore as es

FEATURES = {"user": "user", "shown": "item", "bought": "item"}
IDS = {"bought": [11, 12, 11], "user": [1], "shown": [10, 11]}


def tables():
    optimizer = es.SGD(lr=0.5)
    one = es.Constant(1.0)
    return [
        es.Table(dim=2, name="user", optimizer=optimizer, initializer=one),
        es.Table(dim=3, name="item", optimizer=optimizer, initializer=one),
    ]


@pytest.fixture
def store():
    with es.Store(tables(), features=FEATURES) as made:
        yield made


def ones_like(batches):
    return {feature: np.ones(batch.rows.shape, np.float32) for feature, batch in batches.items()}


def test_a_store_is_a_mapping_of_tables(store):
    assert store.names == tuple(store) == ("user", "item")
    assert len(store) == 2
    assert store["item"].dim == 3
    assert store.nbytes == store["user"].nbytes + store["item"].nbytes
    assert set(store.stats()) == {"user", "item"}
    assert repr(store) == "<embstore.Store of 2 tables: user, item>"
    with pytest.raises(es.ArgumentError, match=r"no table 'movie'; there are \['user', 'item'\]"):
        store["movie"]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: es.Store(3), es.ArgumentTypeError, "got 3"),
        (lambda: es.Store("ab"), es.ArgumentTypeError, "got 'ab'"),
        (lambda: es.Store([1]), es.ArgumentTypeError, "'': 1"),
        (lambda: es.Store({1: tables()[0]}), es.ArgumentTypeError, "1: an object of type Table"),
        (lambda: es.Store([*tables(), *tables()]), es.ArgumentError, "two tables have the name"),
        (lambda: es.Store(dict.fromkeys("ab", tables()[0])), es.ArgumentError, "is there twice"),
        (lambda: es.Store(tables(), {"f": "movie"}), es.ArgumentError, "of table 'movie'"),
    ],
)
def test_bad_tables_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_by_default_each_table_is_a_feature():
    with es.Store({"u": tables()[0]}) as store:
        assert store.features == {"u": "u"}


def test_features_of_a_table_are_one_batch(store):
    batches = store.find_or_insert_many(IDS, step=3)
    assert list(batches) == list(IDS)
    assert store.step == 3
    assert {name: len(store[name]) for name in store} == {"user": 1, "item": 3}
    joint = batches["bought"].batch
    assert batches["shown"].batch is joint
    assert joint.keys.tolist() == [11, 12, 10]  # in the order of the features given
    assert batches["bought"].inverse.tolist() == [0, 1, 0]
    assert batches["shown"].inverse.tolist() == [2, 0]
    assert batches["shown"].status.tolist() == [es.INSERTED] * 2
    assert (len(batches["shown"]), batches["shown"].n_keys) == (2, 2)
    assert np.shares_memory(batches["shown"].rows, joint.rows)
    rows = store.find_many(IDS)
    assert list(rows) == list(IDS)
    assert {f: r.shape for f, r in rows.items()} == {f: b.rows.shape for f, b in batches.items()}
    reports = store.apply_gradients_many(batches, ones_like(batches), step=4)
    assert reports == {"item": es.ApplyReport(3, 0, 0, 0), "user": es.ApplyReport(1, 0, 0, 0)}
    assert store["item"].find([10, 11, 12])[:, 0].tolist() == [0.5, -0.5, 0.5]
    batches["shown"].close()
    with pytest.raises(es.TicketError, match="closed"):
        store.apply_gradients_many(batches, ones_like(batches), step=4)


def test_gradients_by_keys_are_joined_too(store):
    batches = store.find_or_insert_many(IDS, step=0)
    reports = store.apply_gradients_many(IDS, ones_like(batches), step=0, lr=1.0)
    assert reports["item"].n_applied == 3
    assert store["item"].find([10, 11, 12])[:, 0].tolist() == [0.0, -2.0, 0.0]


def test_counts_are_joined(store):
    store.find_or_insert_many(IDS, step=0, counts={"shown": np.array([5, 7], np.uint32)})
    assert store["item"].find([10, 11, 12], with_meta=True).freq.tolist() == [5, 9, 1]
    assert store["user"].find([1], with_meta=True).freq.tolist() == [1]


def test_pooled_features_are_one_batch(store):
    keys = {"shown": [10, 0, 11], "user": [1, 1], "bought": [11]}
    offsets = {"shown": [0, 1, 3], "user": [0, 2], "bought": [0, 1]}
    weights = {"user": np.array([1, 3], np.float32)}
    options = {"mode": "mean", "weights": weights, "padding": 0}
    batches = store.pooled_many(keys, offsets, step=0, **options)
    assert {f: b.rows.tolist() for f, b in batches.items()} == {
        "shown": [[1.0] * 3] * 2,
        "user": [[2.0] * 2],
        "bought": [[1.0] * 3],
    }
    assert len(store["item"]) == 2
    read = store.pooled_many(keys, offsets, **options)
    assert all(np.array_equal(read[f], batches[f].rows) for f in keys)
    store.apply_gradients_many(batches, ones_like(batches), step=0)
    assert store["item"].find([10, 11])[:, 0].tolist() == [0.5, 0.0]
    assert store["user"].find([1])[0, 0] == 1 - 0.5 * (0.5 + 1.5)


def test_evict_runs_the_tables_policies():
    made = [*tables(), es.Table(dim=1, name="old", eviction=es.StepEviction(5))]
    with es.Store(made) as store:
        store.find_or_insert_many({"old": [1], "user": [1]}, step=0)
        store.find_or_insert_many({"user": [2]}, step=6)
        assert {n: r.n_evicted for n, r in store.evict().items()} == {"old": 1}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda s, b, g: s.find_many([1]), es.ArgumentTypeError, "keys must be a dict by feature"),
        (lambda s, b, g: s.find_many({"age": [1]}), es.ArgumentError, "unknown feature 'age'"),
        (lambda s, b, g: s.find_many({"user": [1.5]}), es.ArgumentTypeError, r"keys\['user'\]"),
        (
            lambda s, b, g: s.find_or_insert_many({"user": [5], "shown": 5}, 0),
            es.ArgumentTypeError,
            r"keys\['shown'\] must be",
        ),
        (
            lambda s, b, g: s.find_or_insert_many({"user": [5]}, 0, counts={"shown": None}),
            es.ArgumentError,
            r"counts has features that keys lack: \['shown'\]",
        ),
        (lambda s, b, g: s.find_or_insert_many(IDS, -1), es.ArgumentError, "step must be"),
        (
            lambda s, b, g: s.pooled_many({"user": [5]}, {}, step=0),
            es.ArgumentError,
            "offsets lack feature 'user'",
        ),
        (
            lambda s, b, g: s.apply_gradients_many(b, {"user": g["user"]}, 0),
            es.ArgumentError,
            "grads must have the features of batches",
        ),
        (
            lambda s, b, g: s.apply_gradients_many(b, g | {"shown": g["user"]}, 0),
            es.ArgumentError,
            r"'shown': grads must be float32 of shape \(2, 3\)",
        ),
        (
            lambda s, b, g: s.apply_gradients_many({"shown": b["shown"]}, {"shown": g["shown"]}, 0),
            es.ArgumentError,
            "'item' needs all features of its batch",
        ),
        (
            lambda s, b, g: s.apply_gradients_many(b | {"shown": [10, 11]}, g, 0),
            es.ArgumentError,
            "are not of one batch",
        ),
        (
            lambda s, b, g: s.apply_gradients_many(
                b | {"shown": s.find_or_insert_many({"shown": [10, 11]}, 0)["shown"]}, g, 0
            ),
            es.ArgumentError,
            "are not of one batch",
        ),
    ],
)
def test_a_bad_argument_changes_nothing(store, call, error, message):
    batches = store.find_or_insert_many(IDS, step=0)
    before = store.find_many(IDS)
    with pytest.raises(error, match=message):
        call(store, batches, ones_like(batches))
    assert {name: len(store[name]) for name in store} == {"user": 1, "item": 3}
    after = store.find_many(IDS)
    assert all(np.array_equal(before[f], after[f]) for f in IDS)
