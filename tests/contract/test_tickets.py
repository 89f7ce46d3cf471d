"""Tickets: which gradients find their row, though the table changed since forward."""

import gc

import numpy as np
import pytest
from contract.tools import PENDING, ids, meta, pending, rows_of

import embstore as es


@pytest.fixture
def table(make_table):
    """A table whose rows begin at 1 and lose their gradient."""
    return make_table(optimizer=es.SGD(lr=1.0))


def values(table, *keys):
    return table.find(ids(*keys))[:, 0].tolist()


def test_gradients_of_duplicates_are_summed(table):
    batch = table.find_or_insert(ids(5, 6, 5), step=0)
    report = table.apply_gradients(batch, rows_of(1, 2, 4), step=0)
    assert report == (2, 0, 0, 0)
    assert values(table, 5, 6) == [-4, -1]


def test_batch_tells_what_it_did(table):
    table.find_or_insert(ids(6), step=0)
    batch = table.find_or_insert(ids(5, 6, 5), step=0)
    assert (batch.keys.tolist(), batch.inverse.tolist()) == ([5, 6], [0, 1, 0])
    assert batch.status.tolist() == [es.KeyStatus.INSERTED, es.KeyStatus.FOUND]
    assert (batch.n_unique, batch.n_found, batch.n_inserted) == (2, 1, 1)
    assert (batch.n_pending, batch.n_refused, len(batch)) == (0, 0, 3)


def test_a_batch_may_be_applied_several_times(table):
    batch = table.find_or_insert(ids(5), step=0)
    for step in (0, 0, 1):
        assert table.apply_gradients(batch, rows_of(1), step=step).n_applied == 1
    assert values(table, 5) == [-2]
    assert table.stats()["n_train_steps"] == 2


def test_by_keys_absent_ones_are_dropped(table):
    table.find_or_insert(ids(5), step=0)
    assert table.apply_gradients(ids(5, 7, 5), rows_of(1, 9, 1), step=0) == (1, 1, 0, 0)
    assert values(table, 5, 7) == [-1, 0]
    assert table.stats()["n_grads_dropped"] == 1


def test_pending_gradients_are_dropped_even_if_admitted_since(make_table):
    table = make_table(optimizer=es.SGD(1.0), admission=es.CounterAdmission(2))
    early = table.find_or_insert(ids(5), step=0)
    assert early.status.tolist() == [PENDING]
    late = table.find_or_insert(ids(5), step=0)
    assert table.apply_gradients(early, rows_of(1), step=0) == (0, 1, 0, 0)
    assert table.apply_gradients(late, rows_of(1), step=0) == (1, 0, 0, 0)
    assert values(table, 5) == [0]


def test_refused_gradients_are_dropped(make_table):
    table = make_table(optimizer=es.SGD(1.0), max_rows=1, on_full="refuse")
    batch = table.find_or_insert(ids(1, 2), step=0)
    assert table.apply_gradients(batch, rows_of(1, 1), step=0) == (1, 1, 0, 0)


@pytest.mark.parametrize("remove", ["evict", "erase"])
def test_gradients_of_removed_rows_are_stale(table, remove):
    batch = table.find_or_insert(ids(5, 6), step=0)
    if remove == "erase":
        table.erase(ids(5))
    else:
        table.evict(es.StepEviction(0), step=9, pins=ids(6))
    assert table.apply_gradients(batch, rows_of(1, 1), step=9) == (1, 0, 1, 0)
    assert values(table, 5, 6) == [0, 0]
    assert table.stats()["n_grads_stale"] == 1
    assert not table.contains(ids(5))[0]


def test_a_freed_row_given_to_another_key_is_not_touched(table):
    batch = table.find_or_insert(ids(5), step=0)
    table.erase(ids(5))
    table.find_or_insert(ids(6), step=0)  # takes the row of 5
    assert table.apply_gradients(batch, rows_of(1), step=0) == (0, 0, 1, 0)
    assert values(table, 6) == [1]


def test_a_reborn_row_takes_the_gradient(table):
    batch = table.find_or_insert(ids(5), step=0)
    table.erase(ids(5))
    table.find_or_insert(ids(6, 5), step=3)
    assert table.apply_gradients(batch, rows_of(1), step=4) == (1, 0, 0, 0)
    assert (values(table, 5), meta(table, 5)) == ([0], [(1, 4)])


def test_a_reborn_candidate_is_stale(make_table):
    table = make_table(optimizer=es.SGD(1.0), admission=es.CounterAdmission(2))
    batch = table.find_or_insert(ids(5, 5), step=0)
    table.erase(ids(5))
    table.find_or_insert(ids(5), step=0)
    assert table.apply_gradients(batch, rows_of(1, 1), step=0) == (0, 0, 1, 0)
    assert pending(table) == {5: 1}


def test_tickets_survive_growth(table):
    batch = table.find_or_insert(np.arange(100), step=0)
    for start in range(0, 50_000, 5000):
        table.find_or_insert(np.arange(start, start + 5000), step=0)
        report = table.apply_gradients(batch, np.ones((100, 2), np.float32), step=0)
        assert report == (100, 0, 0, 0)
    assert values(table, 0, 99, 100) == [-9, -9, 1]


def test_a_closed_batch(table):
    batch = table.find_or_insert(ids(5), step=0)
    with batch:
        pass
    for use in (
        lambda: batch.keys,
        lambda: batch.status,
        lambda: batch.n_found,
        lambda: table.apply_gradients(batch, rows_of(1), step=0),
    ):
        with pytest.raises(es.TicketError, match="closed"):
            use()
    batch.close()
    assert batch.rows.tolist() == [[1, 1]]
    assert values(table, 5) == [1]


def test_a_batch_of_before_a_clear(table):
    batch = table.find_or_insert(ids(5), step=0)
    table.clear()
    table.find_or_insert(ids(5), step=0)
    with pytest.raises(es.TicketError, match="clear"):
        table.apply_gradients(batch, rows_of(1), step=1)
    assert values(table, 5) == [1]
    assert table.stats()["n_train_steps"] == 0


def test_a_batch_of_another_table(table, make_table):
    other = make_table(optimizer=es.SGD(1.0), name="other")
    batch = other.find_or_insert(ids(5), step=0)
    with pytest.raises(es.TicketError, match="other"):
        table.apply_gradients(batch, rows_of(1), step=0)


def test_arrays_of_a_batch_outlive_it(table):
    batch = table.find_or_insert(ids(5, 6, 5), step=0)
    keys, status, inverse = batch.keys, batch.status, batch.inverse
    batch.close()
    del batch
    gc.collect()
    table.find_or_insert(np.arange(10_000), step=0)
    assert (keys.tolist(), status.tolist(), inverse.tolist()) == ([5, 6], [1, 1], [0, 1, 0])
    assert not keys.flags.writeable


def test_training_steps_are_counted_once_each(table):
    batch = table.find_or_insert(ids(5), step=7)
    for step, t in [(7, 1), (7, 1), (6, 1), (8, 2), (100, 3), (99, 3)]:
        table.apply_gradients(batch, rows_of(0), step=step)
        assert table.stats()["n_train_steps"] == t
    table.apply_gradients(ids(), np.empty((0, 2), np.float32), step=101)
    assert table.stats()["n_train_steps"] == 4
    assert table.step == 101


def test_step_of_a_row_never_goes_back(table):
    table.find_or_insert(ids(5), step=7)
    table.apply_gradients(ids(5), rows_of(0), step=3)
    assert meta(table, 5) == [(1, 7)]


def test_nonfinite_raise_changes_nothing(table):
    batch = table.find_or_insert(ids(5, 6, 7), step=0)
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(es.NonFiniteError, match="6"):
            table.apply_gradients(batch, rows_of(1, bad, 1), step=5)
    with pytest.raises(es.NonFiniteError):  # the sum overflows
        table.apply_gradients(ids(5, 5), rows_of(3e38, 3e38), step=5)
    assert values(table, 5, 6, 7) == [1, 1, 1]
    assert (table.step, table.stats()["n_train_steps"]) == (0, 0)
    table.erase(ids(6))
    assert table.apply_gradients(batch, rows_of(1, np.nan, 1), step=5) == (2, 0, 1, 0)


def test_nonfinite_skip_leaves_the_key_alone(make_table):
    table = make_table(optimizer=es.SGD(1.0), on_nonfinite="skip")
    batch = table.find_or_insert(ids(5, 6), step=0)
    assert table.apply_gradients(batch, rows_of(1, np.inf), step=5) == (1, 0, 0, 1)
    assert values(table, 5, 6) == [0, 1]
    assert meta(table, 5, 6) == [(1, 5), (1, 0)]
    assert table.stats()["n_nonfinite"] == 1


def test_nonfinite_allow(make_table):
    table = make_table(optimizer=es.SGD(1.0), on_nonfinite="allow")
    batch = table.find_or_insert(ids(5, 6), step=0)
    assert table.apply_gradients(batch, rows_of(1, np.inf), step=5) == (2, 0, 0, 0)
    assert values(table, 5, 6) == [0, -np.inf]
