"""The calls over many features: bit for bit what the tables give one by one, by one native call."""

import gc
import threading

import numpy as np
import pytest
from contract.tools import ids, live, meta, rows_of, snapshot

import embstore as es

OPTIMIZER = es.Adagrad(lr=0.1)

MODES = ("sum", "mean", "sqrtn")
FEATURES = {"a": "one", "b": "two", "c": "one", "none": "two", "d": "three", "e": "one"}
PARAMETERS = {
    "one": {"dim": 8, "optimizer": es.Adagrad(0.1)},
    "two": {"dim": 3, "optimizer": es.Adam(0.1), "dtype": "float16"},
    "three": {"dim": 20, "optimizer": es.SGD(0.1), "dtype": "bfloat16", "default_row": 0.5},
}
SIZES = {"a": 700, "b": 300, "c": 0, "none": 0, "d": 41, "e": 5000}


@pytest.fixture(params=[1, 2], ids="{} threads".format)
def threads(request):
    before = es.num_threads()
    es.set_num_threads(request.param)
    yield
    es.set_num_threads(before)


@pytest.fixture
def make_tables(make_table):
    """A function that makes three tables that admit at the second occurrence, by name."""

    def make():
        shared = {"initializer": es.Normal(), "admission": es.CounterAdmission(2), "hash_seed": 1}
        return {name: make_table(name=name, **shared, **own) for name, own in PARAMETERS.items()}

    return make


@pytest.fixture
def calls(monkeypatch, engine):
    """The names of the native calls over many tables, in their order."""
    from embstore.engines import cpu

    names = []

    class Counted:
        def __getattr__(self, name):
            function = getattr(core, name)
            if not name.endswith("_many"):
                return function

            def call(*args):
                names.append(name)
                return function(*args)

            return call

    core = cpu._core
    monkeypatch.setattr(cpu, "_core", Counted())
    return names


def drawn_keys(rng):
    return {feature: rng.integers(0, 400, n) for feature, n in SIZES.items()}


def of_table(name):
    return [feature for feature, table in FEATURES.items() if table == name]


def joined(parts, name):
    return np.concatenate([parts[feature] for feature in of_table(name)])


def split(rows, sizes, name):
    """Return the rows of each feature of a table."""
    features = of_table(name)
    ends = np.cumsum([sizes[f] for f in features])
    return {f: rows[end - sizes[f] : end] for f, end in zip(features, ends, strict=True)}


def drawn_bags(rng, n_keys):
    """Ragged offsets, with empty bags at both ends."""
    inner = np.sort(rng.integers(0, n_keys + 1, n_keys // 3))
    return np.concatenate([[0, 0], inner, [n_keys, n_keys]])


def grads_of(batches, rng):
    return {f: rng.standard_normal(b.rows.shape, np.float32) for f, b in batches.items()}


def test_rows_and_gradients_are_those_of_single_calls(make_tables, threads):
    rng = np.random.default_rng(0)
    alone = make_tables()
    store = es.Store(make_tables(), FEATURES)
    for step in range(4):
        keys = drawn_keys(rng)
        counts = {"e": rng.integers(0, 4, SIZES["e"]).astype(np.uint32)}
        batches = store.find_or_insert_many(keys, step, counts)
        grads = grads_of(batches, rng)
        reports = store.apply_gradients_many(batches, grads, step)
        for name, table in alone.items():
            all_counts = {f: counts.get(f, np.ones(n, np.uint32)) for f, n in SIZES.items()}
            batch = table.find_or_insert(joined(keys, name), step, joined(all_counts, name))
            for feature, rows in split(batch.rows, SIZES, name).items():
                assert batches[feature].rows.tobytes() == rows.tobytes(), feature
                assert np.array_equal(batches[feature].batch.keys, batch.keys)
            assert reports[name] == table.apply_gradients(batch, joined(grads, name), step)
        rows = store.find_many(keys)
        for feature, name in FEATURES.items():
            assert rows[feature].tobytes() == alone[name].find(keys[feature]).tobytes()
    for name, table in alone.items():
        assert snapshot(store[name])[:2] == snapshot(table)[:2]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", [None, 3])
def test_bags_and_gradients_are_those_of_single_calls(make_tables, threads, mode, padding):
    rng = np.random.default_rng(1)
    alone = make_tables()
    store = es.Store(make_tables(), FEATURES)
    for step in range(3):
        keys = drawn_keys(rng)
        offsets = {f: drawn_bags(rng, n) for f, n in SIZES.items()}
        n_bags = {f: len(o) - 1 for f, o in offsets.items()}
        weights = {f: rng.standard_normal(SIZES[f], np.float32) for f in ("a", "d")}
        options = {"mode": mode, "weights": weights, "padding": padding}
        batches = store.pooled_many(keys, offsets, step=step, **options)
        grads = grads_of(batches, rng)
        store.apply_gradients_many(batches, grads, step)
        for name, table in alone.items():
            starts = np.cumsum([0, *(SIZES[f] for f in of_table(name))])[:-1]
            bounds = [
                offsets[f][:-1] + start for f, start in zip(of_table(name), starts, strict=True)
            ]
            bounds = np.concatenate([*bounds, [sum(SIZES[f] for f in of_table(name))]])
            factors = {f: weights.get(f, np.ones(n, np.float32)) for f, n in SIZES.items()}
            batch = table.pooled(
                joined(keys, name), bounds, mode, joined(factors, name), step, padding
            )
            for feature, rows in split(batch.rows, n_bags, name).items():
                assert batches[feature].rows.tobytes() == rows.tobytes(), feature
            table.apply_gradients(batch, joined(grads, name), step)
        read = store.pooled_many(keys, offsets, **options)
        for f, name in FEATURES.items():
            own = alone[name].pooled(keys[f], offsets[f], mode, weights.get(f), None, padding)
            assert read[f].tobytes() == own.tobytes()
    for name, table in alone.items():
        assert snapshot(store[name])[:2] == snapshot(table)[:2]


def test_each_is_one_native_call(make_tables, calls, cpu_alone):
    store = es.Store(make_tables(), FEATURES)
    keys = drawn_keys(np.random.default_rng(2))
    offsets = {f: ids(0, n) for f, n in SIZES.items()}
    for table in store._tables.values():
        table._find_fast = table._engine.find_or_insert = table._engine.find = None
    store.find_many(keys)
    batches = store.find_or_insert_many(keys, step=0)
    store.apply_gradients_many(batches, grads_of(batches, np.random.default_rng(3)), step=0)
    store.pooled_many(keys, offsets)
    pooled = store.pooled_many(keys, offsets, step=0)
    store.apply_gradients_many(pooled, grads_of(pooled, np.random.default_rng(4)), step=0)
    store.apply_gradients_many({"a": ids(1)}, {"a": rows_of(1.0, dim=8)}, step=0)
    train = ["find_or_insert_many", "apply_many"]
    assert calls == ["find_many", *train, "find_many", *train, "apply_many"]
    for table in store._tables.values():
        calls.clear()
        table.pooled(ids(1, 2), ids(0, 2))
        batch = table.pooled(ids(1, 2), ids(0, 2), step=0)
        table.apply_gradients(batch, rows_of(1.0, dim=table.dim), step=0)
        assert calls == ["find_many", "find_or_insert_many", "apply_many"]


def test_no_features_are_nothing(make_tables):
    store = es.Store(make_tables(), FEATURES)
    assert store.find_many({}) == {}
    assert store.find_or_insert_many({}, step=0) == {}
    assert store.pooled_many({}, {}, step=0) == {}
    assert store.apply_gradients_many({}, {}, step=0) == {}


def test_arrays_of_any_layout(make_tables):
    store = es.Store(make_tables(), FEATURES)
    keys = np.arange(40, dtype=np.int64)
    other = {"a": keys.astype(np.uint32)[::2], "b": [*range(0, 40, 2)], "d": keys[::2]}
    offsets = {f: np.array([0, 9, 9, 5, 9, 20], np.int32)[[0, 3, 4, 5]] for f in other}
    batches = store.pooled_many(other, offsets, mode="mean", step=0)
    plain = {f: keys[::2].copy() for f in other}
    again = store.pooled_many(plain, {f: ids(0, 5, 9, 20) for f in other}, mode="mean", step=0)
    assert [*again["a"].batch.keys] == [*batches["a"].batch.keys]
    wide = {f: np.ones((3, 2 * b.rows.shape[1]), np.float16)[:, ::2] for f, b in again.items()}
    assert store.apply_gradients_many(again, wide, step=0)["one"].n_applied == 20


def test_the_joint_batch_takes_gradients_by_itself(make_tables):
    """Of pooled features, one after another: the rows of the batch are those of its features."""
    first, second = (es.Store(make_tables(), FEATURES) for _ in range(2))
    keys, offsets = {"a": ids(1, 1, 2), "e": ids(2, 2)}, {"a": ids(0, 2, 3), "e": ids(0, 2)}
    batches = first.pooled_many(keys, offsets, mode="mean", step=0)
    joint = batches["a"].batch
    assert joint.rows.tobytes() == b"".join(b.rows.tobytes() for b in batches.values())
    twins = second.pooled_many(keys, offsets, mode="mean", step=0)
    grads = {f: rows_of(*range(len(b.rows)), dim=8) for f, b in batches.items()}
    first["one"].apply_gradients(joint, np.concatenate([*grads.values()]), step=0)
    second.apply_gradients_many(dict(reversed(twins.items())), grads, step=0)
    assert snapshot(first["one"])[0] == snapshot(second["one"])[0]


def test_a_batch_given_twice_is_refused(make_tables):
    store = es.Store(make_tables(), FEATURES)
    batches = store.find_or_insert_many({"a": ids(1), "e": ids(2)}, step=0)
    twice = {"a": batches["a"], "e": batches["a"]}
    with pytest.raises(es.ArgumentError, match="not of one batch"):
        store.apply_gradients_many(twice, grads_of(twice, np.random.default_rng(0)), step=0)


BAD_FORWARD = {
    "dtype of keys": ({"d": np.ones(3)}, {}, {}),
    "shape of keys": ({"d": np.ones((3, 1), np.int64)}, {}, {}),
    "dtype of counts": ({}, {"d": np.ones(41, np.int64)}, {}),
    "length of counts": ({}, {"d": np.ones(40, np.uint32)}, {}),
    "offsets that end early": ({}, {}, {"d": ids(0, 40)}),
    "offsets that go down": ({}, {}, {"d": ids(0, 9, 8, 41)}),
    "unknown feature": ({"z": ids(1)}, {}, {"z": ids(0, 1)}),
}


@pytest.mark.parametrize("bad", BAD_FORWARD)
def test_a_bad_feature_inserts_nothing(make_tables, bad):
    store = es.Store(make_tables(), FEATURES)
    keys = drawn_keys(np.random.default_rng(5))
    store.find_or_insert_many(keys, step=0)
    before = [snapshot(store[name]) for name in store]
    offsets = {f: ids(0, len(k)) for f, k in keys.items()}
    more_keys, counts, more_offsets = BAD_FORWARD[bad]
    errors = (es.ArgumentError, es.ArgumentTypeError)
    if more_offsets:
        with pytest.raises(errors):
            store.pooled_many(keys | more_keys, offsets | more_offsets, step=1)
    else:
        with pytest.raises(errors):
            store.find_or_insert_many(keys | more_keys, 1, counts)
    assert [snapshot(store[name]) for name in store] == before


BAD_GRADIENTS = ("dtype", "shape", "lr", "closed batch", "other batch", "optimizer")


@pytest.mark.parametrize("bad", BAD_GRADIENTS)
def test_bad_gradients_of_one_feature_change_nothing(make_tables, make_table, bad):
    tables = make_tables() | {"bare": make_table(2, name="bare")}
    store = es.Store(tables, FEATURES | {"f": "bare"})
    keys = drawn_keys(np.random.default_rng(6))
    other = store.find_or_insert_many(keys, step=0)
    batches = store.find_or_insert_many(keys, step=0)
    grads = grads_of(batches, np.random.default_rng(7))
    lr = None
    if bad == "dtype":
        grads["d"] = grads["d"].astype(np.float64)
    elif bad == "shape":
        grads["d"] = grads["d"][:-1]
    elif bad == "lr":
        lr = -1.0
    elif bad == "closed batch":
        batches["d"].close()
    elif bad == "other batch":
        batches["e"] = other["e"]
    else:
        batches |= store.find_or_insert_many({"f": ids(1)}, step=0)
        grads["f"] = rows_of(1.0)
    before = [snapshot(store[name]) for name in store]
    with pytest.raises((es.ArgumentError, es.ArgumentTypeError, es.TicketError)):
        store.apply_gradients_many(batches, grads, step=1, lr=lr)
    assert [snapshot(store[name]) for name in store] == before


def tickets():
    gc.collect()
    return sum(type(thing).__name__ == "CoreTicket" for thing in gc.get_objects())


def test_a_table_that_is_full_does_not_keep_the_others_from_inserting(make_table):
    tables = [make_table(name=name, max_rows=2, on_full="raise") for name in "abc"]
    store = es.Store(tables)
    n_before = tickets()
    with pytest.raises(es.CapacityError, match="table 'b': 3 new rows do not fit"):
        store.find_or_insert_many({"a": ids(1), "b": ids(1, 2, 3), "c": ids(1)}, step=5)
    assert [live(table) for table in tables] == [[1], [], [1]]
    assert meta(tables[0], 1) == [(1, 5)]
    assert tickets() == n_before


def test_a_table_with_bad_sums_does_not_keep_the_others_from_updates(make_table):
    tables = [make_table(name=name, optimizer=es.SGD(1.0)) for name in "abc"]
    store = es.Store(tables)
    batches = store.find_or_insert_many({name: ids(1) for name in "abc"}, step=0)
    grads = {"a": rows_of(1.0), "b": rows_of(np.nan), "c": rows_of(1.0)}
    with pytest.raises(es.NonFiniteError, match="table 'b'"):
        store.apply_gradients_many(batches, grads, step=0)
    assert [table.find(ids(1))[0, 0] for table in tables] == [0, 1, 0]


def test_errors_name_their_table(make_tables):
    store = es.Store(make_tables(), FEATURES)
    with pytest.raises(es.MissingKeyError, match="table 'two': no row for key 7"):
        store.find_many({"a": ids(), "b": ids(7), "d": ids(8)}, missing="raise")
    batches = store.find_or_insert_many({"a": ids(1, 1), "b": ids(1, 1)}, step=0)
    store["two"].clear()
    with pytest.raises(es.TicketError, match="table 'two': the batch is of before"):
        store.apply_gradients_many(batches, grads_of(batches, np.random.default_rng(0)), step=0)
    store["two"].close()
    with pytest.raises(es.ClosedTableError, match="table 'two' is closed"):
        store.find_or_insert_many({"a": ids(5, 5), "b": ids(5)}, step=0)
    assert live(store["one"]) == [1]


def test_sinks_get_their_rows_when_all_tables_are_free(make_table):
    """What a sink raises comes out of the call, whose work is done, the other sinks' too."""
    given = []

    def sink_of(name):
        def sink(rows):
            writer = threading.Thread(target=lambda: [t.assign(ids(9), rows_of(9)) for t in tables])
            writer.start()
            writer.join(timeout=30)
            assert not writer.is_alive()
            given.append((name, rows.keys.tolist()))
            if name == "a":
                raise ValueError("a's sink")

        return sink

    eviction = {"eviction": es.StepEviction(1), "evict_every": 5}
    tables = [make_table(name=name, on_evict=sink_of(name), **eviction) for name in "ab"]
    store = es.Store(tables)
    store.find_or_insert_many({"a": ids(1), "b": ids(2)}, step=0)
    with pytest.raises(ValueError, match="a's sink"):
        store.find_or_insert_many({"a": ids(3), "b": ids(4)}, step=5)
    assert sorted(given) == [("a", [1]), ("b", [2])]
    assert [live(table) for table in tables] == [[3, 9], [4, 9]]


def test_of_tables_that_fail_the_first_is_named_and_the_others_are_served(make_table, threads):
    tables = [make_table(name=name, max_rows=2, on_full="raise") for name in "abcdef"]
    store = es.Store(tables)
    keys = {name: ids(1, 2, 3) if name in "be" else ids(1, 2) for name in "abcdef"}
    for _ in range(20):
        with pytest.raises(es.CapacityError, match="table 'b': 3 new rows do not fit"):
            store.find_or_insert_many(keys, step=5)
        assert [len(table) for table in tables] == [2, 0, 2, 2, 0, 2]


def test_threads_that_call_at_once_have_their_own_tables_served(make_table, threads):
    stores = [
        es.Store([make_table(name=f"{i}{j}", optimizer=OPTIMIZER) for j in range(8)])
        for i in range(3)
    ]
    keys = np.arange(500)

    def train(store):
        for step in range(10):
            batches = store.find_or_insert_many(dict.fromkeys(store, keys), step=step)
            grads = {name: np.ones_like(batch.rows) for name, batch in batches.items()}
            store.apply_gradients_many(batches, grads, step=step)

    together = [threading.Thread(target=train, args=(store,)) for store in stores]
    for each in together:
        each.start()
    for each in together:
        each.join()
    first = [stores[0][name].find(keys) for name in stores[0]]
    for store in stores[1:]:
        assert [len(store[name]) for name in store] == [500] * 8
    train_alone = es.Store([make_table(name=f"0{j}", optimizer=OPTIMIZER) for j in range(8)])
    train(train_alone)
    for name, rows in zip(train_alone, first, strict=True):
        assert np.array_equal(train_alone[name].find(keys), rows)
