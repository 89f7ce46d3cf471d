"""The change log: live keys that were written, and keys removed and absent, since it began."""

import numpy as np
import pytest
from contract.tools import ids, rows_of

import embstore as es


@pytest.fixture
def table(make_table):
    """A tracked table that holds 1, 2 and 3, with an empty log."""
    table = make_table(track_changes=True, optimizer=es.SGD(1.0))
    table.find_or_insert(ids(1, 2, 3), step=0)
    table.reset_changes()
    return table


def changes(table):
    changed = table.changes()
    return sorted(changed.upserted.tolist()), sorted(changed.deleted.tolist())


def test_births(make_table):
    table = make_table(track_changes=True, admission=es.CounterAdmission(2))
    table.find_or_insert(ids(1, 1, 2), step=0)
    assert changes(table) == ([1], [])


def test_reading_is_no_change(table):
    table.find(ids(1, 9), missing="initial")
    table.contains(ids(1))
    table.pooled(ids(1), ids(0, 1))
    table.evict(es.StepEviction(0), step=9, dry_run=True)
    assert changes(table) == ([], [])


@pytest.mark.parametrize(
    ("write", "upserted", "deleted"),
    [
        (lambda t: t.find_or_insert(ids(2, 7), step=1), [2, 7], []),  # freq of 2 changed
        (lambda t: t.apply_gradients(ids(3, 9), rows_of(1, 1), step=1), [3], []),
        (lambda t: t.assign(ids(1, 8), rows_of(1, 1)), [1, 8], []),
        (lambda t: t.assign(ids(1), rows_of(1), mode="add"), [1], []),
        (lambda t: t.erase(ids(2, 9)), [], [2]),
        (lambda t: t.evict(es.StepEviction(0), step=9, pins=ids(1)), [], [2, 3]),
        (lambda t: t.clear(), [], [1, 2, 3]),
    ],
    ids=["hit", "train", "assign", "add", "erase", "evict", "clear"],
)
def test_writes(table, write, upserted, deleted):
    write(table)
    assert changes(table) == (upserted, deleted)
    assert changes(table) == (upserted, deleted)  # reading it does not end it
    table.reset_changes()
    assert changes(table) == ([], [])


def test_what_comes_back_is_upserted_again(table):
    table.erase(ids(1, 2))
    table.find_or_insert(ids(1), step=1)
    assert changes(table) == ([1], [2])
    table.erase(ids(1))
    assert changes(table) == ([], [1, 2])


def test_rows_evicted_for_room_and_by_themselves(make_table):
    table = make_table(
        track_changes=True, max_rows=2, on_full="evict", eviction=es.StepEviction(5), evict_every=10
    )
    table.find_or_insert(ids(1, 2), step=0)
    table.find_or_insert(ids(3), step=1)
    assert changes(table) == ([3], [1, 2])
    table.find_or_insert(ids(), step=10)
    assert changes(table) == ([], [1, 2, 3])


def test_skipped_gradients_are_no_change(make_table):
    table = make_table(track_changes=True, optimizer=es.SGD(1.0), on_nonfinite="skip")
    table.find_or_insert(ids(1, 2), step=0)
    table.reset_changes()
    table.apply_gradients(ids(1, 2), rows_of(np.nan, 1), step=0)
    assert changes(table) == ([2], [])


def test_halved_frequencies_change_every_row(make_table):
    table = make_table(track_changes=True, eviction=es.FrequencyEviction(1, 0, halve_every=10))
    table.find_or_insert(ids(1, 2), step=0)
    table.reset_changes()
    table.find_or_insert(ids(), step=10)
    assert changes(table) == ([1, 2], [])


def test_imported_rows(table, make_table):
    other = make_table(optimizer=es.SGD(1.0))
    other.assign(ids(1, 9), rows_of(1, 1))
    for rows in other.export():
        table.import_(rows)
    assert changes(table) == ([1, 9], [])


def test_keys_of_the_log_go_by_partition(make_table):
    table = make_table(track_changes=True)
    table.find_or_insert(np.arange(2000), step=0)
    exported = np.concatenate([rows.keys for rows in table.export()])
    assert np.array_equal(table.changes().upserted, exported)
    table.clear()
    assert np.array_equal(table.changes().deleted, exported)


def test_without_tracking(make_table):
    for call in (make_table().changes, make_table().reset_changes):
        with pytest.raises(es.ArgumentError, match="track_changes"):
            call()
