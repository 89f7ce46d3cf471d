"""What an adapter's lookups give, and what they leave behind."""

import numpy as np
import pytest
from contract.tools import INT64, live, meta, pending, snapshot

import embstore as es

HOSTILE = np.array([0, -1, INT64.min, INT64.max, 2**32, -(2**32), 0, INT64.min], np.int64)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 0), (3,), (2, 3), (2, 1, 2, 3)])
def test_rows_come_in_the_shape_of_the_ids(make, shape):
    embedding = make(dim=3)
    ids = np.arange(100, 100 + int(np.prod(shape))).reshape(shape)
    rows = embedding.lookup(ids)
    assert rows.shape == (*shape, 3)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows.reshape(-1, 3), embedding.table.find(ids.reshape(-1)))
    assert len(embedding.table) == ids.size
    read = embedding.read(ids)
    assert read.shape == (*shape, 3)
    np.testing.assert_array_equal(read, rows)


def test_all_ids_are_legal(make):
    embedding = make()
    rows = embedding.lookup(HOSTILE)
    assert live(embedding.table) == sorted({*HOSTILE.tolist()})
    np.testing.assert_array_equal(rows, embedding.table.find(HOSTILE))
    assert len(np.unique(rows, axis=0)) == 6
    assert meta(embedding.table, 0, INT64.min, -1) == [(2, 0), (2, 0), (1, 0)]


def test_rows_are_born_as_the_table_says(make):
    embedding = make(dim=5, name="user", seed=9, initializer=es.Normal(std=0.1))
    ids = np.array([3, 1, 3])
    with es.Table(5, name="user", seed=9, initializer=es.Normal(std=0.1)) as table:
        expected = table.find(ids, missing="initial")
    np.testing.assert_array_equal(embedding.lookup(ids), expected)
    assert expected.any()


def test_ids_that_wait_for_admission_give_the_default_row(make):
    default = np.array([0.25, -4.0], np.float32)
    embedding = make(
        admission=es.CounterAdmission(min_count=3),
        initializer=es.Constant(7.0),
        default_row=default,
    )
    rows = embedding.lookup(np.array([[1, 2], [1, 1]]))
    np.testing.assert_array_equal(rows, [[[7, 7], default], [[7, 7], [7, 7]]])
    assert (live(embedding.table), pending(embedding.table)) == ([1], {2: 1})
    np.testing.assert_array_equal(embedding.read(np.array([2, 99])), [default, default])
    assert pending(embedding.table) == {2: 1}
    embedding.lookup(np.array([2, 2]))
    assert live(embedding.table) == [1, 2]


def test_padding_is_zero_and_leaves_no_trace(make):
    embedding = make(padding_id=-1, initializer=es.Constant(3.0))
    rows = embedding.lookup(np.array([[5, -1], [-1, -1], [-1, 5]]))
    zero, row = [0.0, 0.0], [3.0, 3.0]
    np.testing.assert_array_equal(rows, [[row, zero], [zero, zero], [zero, row]])
    np.testing.assert_array_equal(embedding.read(np.array([-1, 5])), [zero, row])
    assert live(embedding.table) == [5]
    assert meta(embedding.table, 5) == [(2, 0)]


@pytest.mark.parametrize("padding_id", [0, INT64.min, INT64.max])
def test_any_id_may_be_padding_and_it_alone_is(make, padding_id):
    embedding = make(padding_id=padding_id, initializer=es.Constant(1.0))
    rows = embedding.lookup(HOSTILE)
    np.testing.assert_array_equal(rows[:, 0], padding_id != HOSTILE)
    assert live(embedding.table) == sorted({*HOSTILE.tolist()} - {padding_id})


def test_padding_that_has_a_row_is_zero_all_the_same_and_is_not_trained(make):
    embedding = make(padding_id=0, initializer=es.Constant(1.0))
    embedding.table.assign([0], np.full((1, 2), 5, np.float32))
    before = snapshot(embedding.table)
    embedding.train(np.zeros(3, np.int64), np.ones((3, 2), np.float32))
    assert snapshot(embedding.table)[:2] == before[:2]
    np.testing.assert_array_equal(embedding.read(np.zeros(1, np.int64)), [[0, 0]])


def test_reading_changes_nothing(make):
    embedding = make(admission=es.CounterAdmission(min_count=2))
    embedding.train(np.array([1, 1, 2]), np.ones((3, 2), np.float32))
    before = snapshot(embedding.table)
    ids = np.array([1, 2, 3, 3, 3])
    embedding.read(ids)
    embedding.read_bags(ids, np.array([0, 5]), "sum")
    if embedding.has_no_grad:
        np.testing.assert_array_equal(embedding.read_without_gradients(ids), embedding.read(ids))
    assert snapshot(embedding.table) == before
    assert embedding.step == 1


def test_a_lookup_alone_counts_and_trains_nothing(make):
    embedding = make(initializer=es.Constant(1.0))
    embedding.lookup(np.array([4, 4]))
    embedding.lookup(np.array([4]))
    assert meta(embedding.table, 4) == [(3, 0)]
    assert embedding.table.stats()["n_train_steps"] == 0


@pytest.mark.parametrize(
    "ids", [np.array([1.0]), np.array([True]), np.array([1], np.int16), np.array([1j])]
)
def test_other_dtypes_are_refused_and_leave_the_table_as_it_was(make, ids):
    embedding = make(padding_id=None)
    embedding.lookup(np.array([1]))
    before = snapshot(embedding.table)
    for call in (embedding.lookup, embedding.read):
        with pytest.raises(TypeError, match=r"int64.*got.*(float64|bool|int16|complex128)"):
            call(ids)
    assert snapshot(embedding.table) == before


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.uint64])
def test_other_integers_mean_the_same_ids(make, dtype):
    embedding = make()
    ids = np.array([7, 2**31 - 1, 0])
    expected = embedding.lookup(ids)
    np.testing.assert_array_equal(embedding.lookup(ids.astype(dtype)), expected)
    assert len(embedding.table) == 3


def test_uint64_ids_are_their_bits(make):
    embedding = make()
    embedding.lookup(np.array([2**64 - 1, 2**63], np.uint64))
    assert live(embedding.table) == [INT64.min, -1]


def test_a_full_table_raises_and_is_as_it_was(make):
    embedding = make(max_rows=2)
    embedding.lookup(np.array([1, 2]))
    before = snapshot(embedding.table)
    with pytest.raises(es.CapacityError):
        embedding.lookup(np.array([3]))
    assert snapshot(embedding.table) == before


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
def test_bags_are_pooled_as_the_table_does(make, mode):
    embedding = make(dim=3)
    ids, offsets = np.array([1, 2, 1, 3, 9]), np.array([0, 2, 2, 5])
    weights = np.array([0.5, -1.0, 2.0, 0.25, 8.0], np.float32)
    embedding.lookup(ids)
    for given in (None, weights):
        pooled = embedding.read_bags(ids, offsets, mode, given)
        expected = embedding.table.pooled(ids, offsets, mode, given)
        np.testing.assert_array_equal(pooled, expected)
        assert not pooled[1].any()
