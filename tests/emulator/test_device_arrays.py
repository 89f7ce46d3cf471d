"""Arrays of a card go in and out without copies, on streams, and nothing waits."""

import numpy as np
import pytest
from emulator.card_kit import DIM, STREAMS, get, put, table_on
from property.pair import assert_same_rows, exported

import embstore as es


def steps(n_steps=6, n=300, n_keys=2000):
    """Yield (step, keys, grads) of a training."""
    rng = np.random.default_rng(0)
    for step in range(n_steps):
        yield step, rng.integers(0, n_keys, n), rng.standard_normal((n, DIM), np.float32)


ADMISSIONS = [None, es.CounterAdmission(2), es.BloomAdmission(2, capacity=2000)]


@pytest.mark.parametrize("admission", ADMISSIONS, ids=["all", "counter", "bloom"])
def test_training_on_the_card_is_what_it_is_on_the_host(card, admission):
    here = table_on("cpu", admission=admission)
    there = table_on("cuda", admission=admission, track_changes=True)
    for step, keys, grads in steps():
        stream = STREAMS[step % 3]
        expected = here.find_or_insert(keys, step=step)
        batch = there.find_or_insert(put(card, keys, stream), step=step)
        report = there.apply_gradients(batch, put(card, grads, STREAMS[(step + 1) % 3]), step=step)
        assert report == here.apply_gradients(expected, grads, step=step)
        np.testing.assert_array_equal(get(card, batch.rows), expected.rows)
        np.testing.assert_array_equal(batch.status, expected.status)
        np.testing.assert_array_equal(batch.inverse, expected.inverse)
    assert_same_rows(exported(there), exported(here), "rows")


def test_nothing_waits(card):
    here, there = table_on("cpu"), table_on("cuda")
    there.reserve(20_000)
    given = [(s, k, g, put(card, k), put(card, g)) for s, k, g in steps(20)]
    there.find_or_insert(given[0][3], step=0)
    waits, reports, found = card.n_waits, [], []
    for step, _, _, keys, grads in given:
        batch = there.find_or_insert(keys, step=step)
        reports.append(there.apply_gradients(batch, grads, step=step))
        found.append(there.find(keys))
        there.find(keys, return_found=True)
        there.contains(keys)
    assert card.n_waits == waits
    here.find_or_insert(given[0][1], step=0)
    for (step, keys, grads, _, _), rows, report in zip(given, found, reports, strict=True):
        batch = here.find_or_insert(keys, step=step)
        assert report == here.apply_gradients(batch, grads, step=step)
        np.testing.assert_array_equal(get(card, rows), here.find(keys))
    assert_same_rows(exported(there), exported(here), "rows")


def test_it_waits_where_it_must(card):
    """Growth, and a table that may be full, are seen to in time."""
    for limits in (
        {},
        {"max_rows": 700, "on_full": "refuse"},
        {"max_rows": 700, "on_full": "evict"},
    ):
        here, there = table_on("cpu", **limits), table_on("cuda", **limits)
        for step, keys, grads in steps(12):
            expected = here.find_or_insert(keys, step=step)
            batch = there.find_or_insert(put(card, keys), step=step)
            np.testing.assert_array_equal(batch.status, expected.status)
            here.apply_gradients(expected, grads, step=step)
            there.apply_gradients(batch, put(card, grads), step=step)
        assert_same_rows(exported(there), exported(here), "rows")


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int32, np.uint32])
def test_keys_are_widened_on_the_card(card, dtype):
    info = np.iinfo(dtype)
    keys = np.array([0, 1, info.max, info.min, 77], dtype)
    here, there = table_on("cpu"), table_on("cuda")
    here.find_or_insert(keys, step=0)
    there.find_or_insert(put(card, keys), step=0)
    assert_same_rows(exported(there), exported(here), "rows")
    assert get(card, there.contains(put(card, keys))).all()
    rows, found = there.find(put(card, keys[:3]), return_found=True)
    assert get(card, found).all()
    np.testing.assert_array_equal(get(card, rows), here.find(keys[:3]))


def test_half_precision_gradients(card):
    here, there = table_on("cpu"), table_on("cuda")
    keys, grads = np.arange(50), np.linspace(-3, 3, 400).reshape(50, DIM).astype(np.float16)
    here.apply_gradients(here.find_or_insert(keys, step=0), grads, step=0)
    batch = there.find_or_insert(put(card, keys), step=0)
    there.apply_gradients(batch, put(card, grads), step=0)
    assert_same_rows(exported(there), exported(here), "rows")


def test_bags_on_the_card(card):
    here, there = table_on("cpu"), table_on("cuda")
    rng = np.random.default_rng(1)
    keys, offsets = rng.integers(0, 500, 900), np.r_[0, np.sort(rng.integers(0, 900, 99)), 900]
    weights = rng.random(900, np.float32)
    for step, padding in enumerate([None, 7]):
        options = {"mode": "mean", "step": step, "padding": padding}
        expected = here.pooled(keys, offsets, weights=weights, **options)
        pooled = there.pooled(put(card, keys), offsets, weights=put(card, weights), **options)
        got = pooled.rows if padding is not None else get(card, pooled.rows)
        np.testing.assert_array_equal(got, expected.rows)
        grads = rng.standard_normal(expected.rows.shape, np.float32)
        report = there.apply_gradients(pooled, put(card, grads), step=step)
        assert report == here.apply_gradients(expected, grads, step=step)
    read = there.pooled(put(card, keys), put(card, offsets), weights=put(card, weights))
    np.testing.assert_array_equal(get(card, read), here.pooled(keys, offsets, weights=weights))
    assert_same_rows(exported(there), exported(here), "rows")


def test_a_store_of_tables_here_and_there(card):
    features = {"user": "a", "shown": "b", "bought": "b"}
    keys = {"user": np.arange(40), "shown": np.arange(30, 90), "bought": np.arange(60, 70)}
    made = []
    for device in ("cpu", "cuda"):
        tables = {name: table_on(device, name=name) for name in ("a", "b")}
        store = es.Store(tables, features)
        given = keys if device == "cpu" else {f: put(card, k) for f, k in keys.items()}
        batches = store.find_or_insert_many(given, step=0)
        grads = {f: np.full((len(k), DIM), 0.5, np.float32) for f, k in keys.items()}
        if device == "cuda":
            grads = {f: put(card, g) for f, g in grads.items()}
        reports = store.apply_gradients_many(batches, grads, step=0)
        rows = store.find_many(given)
        if device == "cuda":
            rows = {f: get(card, r) for f, r in rows.items()}
        made.append((rows, reports, [exported(store[name]) for name in "ab"]))
    for feature in features:
        np.testing.assert_array_equal(made[0][0][feature], made[1][0][feature])
    assert made[0][1] == made[1][1]
    for here, there in zip(made[0][2], made[1][2], strict=True):
        assert_same_rows(there, here, "rows")
    mixed = es.Store({"a": table_on("cpu", name="a"), "b": table_on("cuda", name="b")}, features)
    batches = mixed.find_or_insert_many(keys, step=0)
    grads = {f: np.full((len(k), DIM), 0.5, np.float32) for f, k in keys.items()}
    assert mixed.apply_gradients_many(batches, grads, step=0) == made[0][1]


def test_reads_on_many_streams_beside_a_writer(card):
    here, there = table_on("cpu"), table_on("cuda")
    expected, found = [], []
    keys = np.arange(400)
    streams = {stream: put(card, keys, stream) for stream in STREAMS[:5]}
    for step, more, grads in steps(8, n_keys=600):
        batch = here.find_or_insert(more, step=step)
        here.apply_gradients(batch, grads, step=step)
        expected += [here.find(keys)] * 5
        writer, other = STREAMS[6:8]
        batch = there.find_or_insert(put(card, more, writer), step=step, stream=writer)
        there.apply_gradients(batch, put(card, grads, other), step=step, stream=other)
        found += [there.find(given, stream=stream) for stream, given in streams.items()]
    for rows, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(get(card, rows), wanted)


def test_what_went_wrong_is_raised_in_the_end(card):
    table = table_on("cuda", optimizer=es.SGD(1.0))
    keys, grads = np.arange(10) - 5, np.zeros((10, DIM), np.float32)
    batch = table.find_or_insert(put(card, keys), step=0)
    before = exported(table)
    grads[3] = np.nan
    report = table.apply_gradients(batch, put(card, grads), step=0)
    with pytest.raises(es.NonFiniteError, match="key -2"):
        table.check()
    table.check()
    assert report.n_applied == 0
    assert_same_rows(exported(table), before, "rows")
    table.apply_gradients(batch, put(card, grads), step=0)
    with pytest.raises(es.NonFiniteError, match="key -2"):
        table.stats()
    table.strict = True
    with pytest.raises(es.NonFiniteError, match="key -2"):
        table.apply_gradients(batch, put(card, grads), step=0)
    table.check()


def test_a_key_that_is_missing_is_named(card):
    table = table_on("cuda")
    with pytest.raises(es.MissingKeyError, match="-77"):
        table.find(put(card, np.array([-77, 3])), missing="raise")


def test_outputs_given(card):
    table = table_on("cuda")
    keys = np.arange(6)
    out = put(card, np.zeros((6, DIM), np.float32))
    assert table.find(put(card, keys), out=out, missing="initial") is out
    host = table.find(keys, missing="initial")
    np.testing.assert_array_equal(get(card, out), host)
    here = np.zeros((6, DIM), np.float32)
    assert table.find(put(card, keys), out=here, missing="initial") is here
    np.testing.assert_array_equal(here, host)


def test_bad_arrays_are_refused(card):
    table = table_on("cuda")
    with pytest.raises(es.ArgumentTypeError, match="float32 of shape"):
        table.find(put(card, np.zeros(3, np.float32)))
    with pytest.raises(es.ArgumentError, match="shape"):
        table.find(put(card, np.zeros((3, 1), np.int64)))
    with pytest.raises(es.ArgumentError, match="out must be"):
        table.find(put(card, np.zeros(3, np.int64)), out=put(card, np.zeros((3, 1), np.float32)))
    batch = table.find_or_insert(put(card, np.arange(3)), step=0)
    with pytest.raises(es.ArgumentTypeError, match="grads must be float32"):
        table.apply_gradients(batch, put(card, np.zeros((3, DIM))), step=0)
    with pytest.raises(es.ArgumentTypeError, match="stream must be"):
        table.find(put(card, np.arange(3)), stream="main")
    with pytest.raises(es.ArgumentError, match="on the cpu"):
        table_on("cpu").find(np.arange(3), stream=0)
    with pytest.raises(es.ArgumentTypeError):
        table_on("cpu").find(put(card, np.arange(3)))


class Strided:
    """An array that is not contiguous."""

    @property
    def __cuda_array_interface__(self):
        data = (256, False)
        return {"version": 3, "shape": (3,), "typestr": "<i8", "data": data, "strides": (16,)}


def test_strided_arrays_are_refused(card):
    with pytest.raises(es.ArgumentError, match="not C-contiguous"):
        table_on("cuda").find(Strided())
