"""assign, erase, contains, clear, export, import_, reserve: content without training."""

import numpy as np
import pytest
from contract.tools import PENDING, ids, live, meta, pending, rows_of, snapshot
from property.pair import assert_same_rows, exported
from reference import ReferenceTable
from reference.hashing import partition_of

import embstore as es


def test_assign_replaces_and_creates(make_table):
    table = make_table(optimizer=es.Adagrad(0.1))
    table.find_or_insert(ids(1, 1), step=3)
    table.apply_gradients(ids(1), rows_of(2.0), step=3)
    assert table.assign(ids(1, 2), rows_of(5, 6), step=9) == (1, 1, 0)
    assert table.find(ids(1, 2)).tolist() == [[5, 5], [6, 6]]
    assert meta(table, 1, 2) == [(2, 9), (0, 9)]  # freq stays; a new row was never seen
    rows = exported(table)
    slots = dict(zip(rows.keys.tolist(), rows.slots.tolist(), strict=True))
    assert slots == {1: [4, 4], 2: [0, 0]}  # slots stay


def test_assign_takes_the_last_occurrence(make_table):
    table = make_table()
    assert table.assign(ids(1, 2, 1), rows_of(5, 6, 7)) == (0, 2, 0)
    assert table.find(ids(1, 2)).tolist() == [[7, 7], [6, 6]]


def test_assign_adds_the_sum_of_the_occurrences(make_table):
    table = make_table(initializer=es.Constant(100.0))
    table.assign(ids(1), rows_of(5))
    assert table.assign(ids(1, 2, 1), rows_of(1, 2, 3), mode="add") == (1, 1, 0)
    assert table.find(ids(1, 2)).tolist() == [[9, 9], [102, 102]]


def test_assign_step(make_table):
    table = make_table()
    table.find_or_insert(ids(1), step=7)
    table.assign(ids(1, 2), rows_of(0, 0))  # the table's step
    table.assign(ids(1), rows_of(0), step=3)  # never back
    assert meta(table, 1, 2) == [(1, 7), (0, 7)]
    table.assign(ids(2), rows_of(0), step=20)
    assert (meta(table, 2), table.step) == ([(0, 20)], 20)


def test_assign_refuses_what_is_not_finite(make_table):
    table = make_table()
    table.assign(ids(1), rows_of(3e38))
    before = snapshot(table)
    for keys, value, mode in [(1, np.nan, "replace"), (2, np.inf, "replace"), (1, 3e38, "add")]:
        with pytest.raises(es.NonFiniteError, match="finite"):
            table.assign(ids(9, keys), rows_of(1, value), mode=mode)
    assert snapshot(table) == before
    free = make_table(on_nonfinite="allow")
    free.assign(ids(1), rows_of(np.inf))
    assert free.find(ids(1)).tolist() == [[np.inf, np.inf]]


def test_erase(make_table):
    table = make_table()
    table.find_or_insert(ids(1, 2, 3), step=0)
    assert table.erase(ids(2, 2, 9)) == 1
    assert (live(table), table.stats()["n_erased"]) == ([1, 3], 1)
    assert table.contains(ids(1, 2)).tolist() == [True, False]
    assert table.find_or_insert(ids(2), step=5).status.tolist() == [es.KeyStatus.INSERTED]
    assert meta(table, 2) == [(1, 5)]


def test_clear(make_table):
    table = make_table(optimizer=es.Adam(0.1), admission=es.CounterAdmission(2), track_changes=True)
    table.find_or_insert(ids(1, 1, 2), step=8)
    table.apply_gradients(ids(1), rows_of(1), step=8)
    table.clear()
    stats = table.stats()
    assert (len(table), live(table), pending(table)) == (0, [], {})
    assert (stats["step"], stats["n_train_steps"]) == (8, 1)
    assert table.changes().deleted.tolist() == [1]
    assert table.find_or_insert(ids(2), step=9).status.tolist() == [PENDING]
    bloom = make_table(admission=es.BloomAdmission(2, capacity=100))
    bloom.find_or_insert(ids(1), step=0)
    bloom.clear()
    assert bloom.find_or_insert(ids(1), step=0).status.tolist() == [PENDING]


def test_export_goes_by_partition_and_key(make_table):
    table = make_table()
    keys = np.arange(-3000, 3000) * 977
    table.assign(keys, np.repeat(keys[:, None], 2, axis=1).astype(np.float32))
    order = np.lexsort((keys, partition_of(keys)))
    whole = exported(table)
    assert np.array_equal(whole.keys, keys[order])
    assert np.array_equal(whole.values[:, 1], keys[order].astype(np.float32))
    parts = [*table.export(batch_rows=100)]
    assert max(map(len, parts)) <= 100
    assert_same_rows(exported(table, batch_rows=100), whole, "in batches of 100")


def test_export_of_pending_keys(make_table):
    table = make_table(admission=es.CounterAdmission(3), default_row=0.5)
    table.find_or_insert(ids(1, 1, 1, 2, 2), step=4)
    waiting = [rows for rows in table.export(pending=True) if len(rows)][-1]
    assert (waiting.keys.tolist(), waiting.freq.tolist()) == ([2], [2])
    assert (waiting.step.tolist(), waiting.values.tolist()) == ([-1], [[0.5, 0.5]])
    assert live(table) == [1]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_import_gives_the_same_table(make_table, dtype):
    parameters = {"optimizer": es.Adam(0.1), "initializer": es.Normal(std=1.0), "dtype": dtype}
    table, copy = make_table(3, **parameters), make_table(3, **parameters)
    keys = np.arange(-500, 500)
    table.find_or_insert(keys, step=5)
    table.apply_gradients(keys[::3], np.ones((334, 3), np.float32), step=6)
    copy.find_or_insert(ids(1, 7000), step=0)
    for rows in table.export(batch_rows=64):
        copy.import_(rows)
    copy.erase(ids(7000))
    assert_same_rows(exported(copy), exported(table), "imported")
    assert copy.step == 6


def test_import_bypasses_admission(make_table):
    table = make_table(admission=es.CounterAdmission(3))
    table.find_or_insert(ids(1), step=0)
    rows = es.Rows(
        ids(1), rows_of(5), np.empty((1, 0), np.float32), np.array([9], np.uint32), ids(4)
    )
    table.import_(rows)
    assert (meta(table, 1), pending(table)) == ([(9, 4)], {})


def test_import_into_a_full_table_raises(make_table):
    table = make_table(max_rows=2, on_full="evict")
    table.assign(ids(1), rows_of(1))
    other = make_table()
    other.assign(ids(1, 2, 3), rows_of(1, 2, 3))
    before = snapshot(table)
    with pytest.raises(es.CapacityError, match="do not fit"):
        table.import_(exported(other))
    assert snapshot(table) == before


def test_reserve_changes_nothing_that_can_be_seen(make_table):
    table = make_table(admission=es.CounterAdmission(2))
    table.find_or_insert(ids(1, 1, 2), step=0)
    before = snapshot(table)
    nbytes = table.nbytes
    table.reserve(100_000)
    assert snapshot(table) == before
    assert table.nbytes > nbytes + 100_000 * 8
    held = table.nbytes
    for start in range(0, 90_000, 1000):
        table.find_or_insert(np.arange(start, start + 1000), step=0, admit="always")
    assert table.nbytes <= held * 1.05  # what is more is the scratch of a batch


def test_the_model_agrees_on_a_long_assign(make_table):
    """Many occurrences of few keys: sums in blocks of 32, in the order of the batch."""
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 20, 20_000)
    values = rng.standard_normal((20_000, 2)).astype(np.float32)
    table, model = make_table(), ReferenceTable(2, initializer=es.Constant(1.0))
    for side in (table, model):
        side.assign(keys, values, mode="add")
    assert_same_rows(exported(table), model.export(), "assigned")
