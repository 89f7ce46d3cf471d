"""Eviction: which rows each policy selects, how a call is bounded, when it happens by itself."""

import numpy as np
import pytest
from contract.tools import INSERTED, ids, live, meta, pending, rows_of

import embstore as es

STEP, L2, FREQ = es.StepEviction, es.L2Eviction, es.FrequencyEviction


@pytest.fixture
def aged(make_table):
    """Keys 1, 2, 3 born at steps 0, 10, 20, with values of norm 5, 10, 15 and freq 1, 2, 3."""
    table = make_table()
    for i in (1, 2, 3):
        table.find_or_insert(ids(*[i] * i), step=10 * (i - 1))
    table.import_(
        es.Rows(
            ids(1, 2, 3),
            np.array([[3, 4], [6, 8], [9, 12]], np.float32),
            np.empty((3, 0), np.float32),
            np.array([1, 2, 3], np.uint32),
            ids(0, 10, 20),
        )
    )
    return table


@pytest.mark.parametrize(
    ("policy", "step", "evicted"),
    [
        (STEP(10), 20, [1]),  # ages 20, 10, 0: more than 10
        (STEP(9), 20, [1, 2]),
        (STEP(0), 20, [1, 2]),
        (STEP(20), 20, []),
        (STEP(0), 5, [1]),  # a step that goes back: ages 5, 0, 0
        (L2(10.0, min_age=0), 20, [1]),  # norm < 10
        (L2(10.5, min_age=0), 20, [1, 2]),
        (L2(10.5, min_age=20), 20, [1]),  # age >= 20
        (L2(10.5, min_age=21), 20, []),
        (FREQ(3, min_age=0), 20, [1, 2]),
        (FREQ(3, min_age=11), 20, [1]),
        (STEP(5) & FREQ(2, 0), 20, [1]),
        (STEP(15) | L2(10.5, 0), 20, [1, 2]),
        (STEP(15) | L2(10.5, 0) & FREQ(2, 0), 20, [1]),
        ((STEP(0) | L2(99, 0)) & FREQ(9, 1), 20, [1, 2]),
        (STEP(0) & STEP(5) & STEP(9) & STEP(15), 20, [1]),
    ],
)
def test_what_a_policy_selects(aged, policy, step, evicted):
    report = aged.evict(policy, step=step)
    assert live(aged) == [key for key in (1, 2, 3) if key not in evicted]
    assert report == (3, len(evicted), len(evicted), True, None)


def test_age_counts_from_the_last_training(make_table):
    table = make_table(optimizer=es.SGD(0.1))
    table.find_or_insert(ids(1, 2, 3), step=0)
    table.find_or_insert(ids(1), step=9)  # counts, and makes nothing younger
    table.apply_gradients(ids(2), rows_of(0.0), step=9)
    table.apply_gradients(ids(2), rows_of(0.0), step=4)  # nor older
    assert meta(table, 1, 2, 3) == [(2, 0), (1, 9), (1, 0)]
    table.evict(STEP(5), step=10)
    assert live(table) == [2]


def test_the_step_is_that_of_the_table_unless_told(aged):
    assert aged.step == 20
    assert aged.evict(STEP(10)).n_evicted == 1


def test_the_policy_is_that_of_the_table_unless_told(make_table):
    table = make_table(eviction=STEP(3))
    table.find_or_insert(ids(1), step=0)
    table.find_or_insert(ids(2), step=5)
    assert table.evict().n_evicted == 1
    with pytest.raises(es.ArgumentError, match="where"):
        make_table().evict()


def test_max_rows_takes_the_oldest_by_step_and_signed_key(make_table):
    table = make_table()
    table.find_or_insert(ids(5, -5, 0), step=3)
    table.find_or_insert(ids(-9), step=4)
    report = table.evict(STEP(1), step=10, max_rows=2)
    assert report == (4, 4, 2, True, None)
    assert live(table) == [-9, 5]
    assert table.evict(STEP(1), step=10, max_rows=0).n_evicted == 0


def test_keep_at_least(aged):
    assert aged.evict(STEP(0), step=99, keep_at_least=2) == (3, 3, 1, True, None)
    assert live(aged) == [2, 3]
    assert aged.evict(STEP(0), step=99, keep_at_least=5).n_evicted == 0
    assert aged.evict(STEP(0), step=99, keep_at_least=1, max_rows=9).n_evicted == 1


def test_pins_are_not_selected(aged):
    aged.pin(ids(1, 77))
    assert aged.pinned.tolist() == [1, 77]
    assert aged.evict(STEP(0), step=99, pins=ids(3)) == (3, 1, 1, True, None)
    assert live(aged) == [1, 3]
    aged.unpin(ids(1, 5))
    assert aged.pinned.tolist() == [77]
    assert aged.evict(STEP(0), step=99).n_evicted == 2


def test_dry_run_changes_nothing(aged):
    report = aged.evict(STEP(0), step=99, dry_run=True, return_rows=True, max_rows=2)
    assert report[:4] == (3, 3, 0, True)
    assert report.rows.keys.tolist() == [1, 2]
    assert (live(aged), aged.step) == ([1, 2, 3], 20)


def test_return_rows_gives_complete_rows_by_key(make_table):
    table = make_table(optimizer=es.Adagrad(0.1))
    table.find_or_insert(ids(4, -4, 4), step=7)
    table.apply_gradients(ids(4), rows_of(2.0), step=8)
    rows = table.evict(STEP(0), step=9, return_rows=True).rows
    assert rows.keys.tolist() == [-4, 4]
    assert rows.slots.tolist() == [[0, 0], [4, 4]]
    assert (rows.freq.tolist(), rows.step.tolist()) == ([1, 2], [7, 8])
    assert rows.values[0].tolist() == [1, 1]
    assert len(table) == 0


def test_max_seconds_resumes_until_all_is_scanned(make_table):
    table = make_table(1)
    n = 20_000
    table.find_or_insert(np.arange(n), step=0)
    table.find_or_insert(np.arange(n, n + 100), step=9)
    assert table.evict(STEP(5), step=9, max_rows=1, max_seconds=3600.0).is_complete
    reports = []
    while not (reports and reports[-1].is_complete) and len(reports) < n:
        reports.append(table.evict(STEP(5), step=9, max_seconds=1e-9))
    assert sum(report.n_evicted for report in reports) == n - 1
    assert len(table) == 100


def test_an_evicted_row_is_born_afresh(make_table):
    table = make_table(optimizer=es.Adam(0.1), initializer=es.Normal(std=1.0), dim=4)
    born = table.find_or_insert(ids(1), step=0).rows.copy()
    table.apply_gradients(ids(1), rows_of(1.0, dim=4), step=1)
    table.evict(STEP(0), step=50)
    assert table.find_or_insert(ids(1), step=60).rows.tobytes() == born.tobytes()
    (row,) = [rows for rows in table.export() if len(rows)]
    assert row.slots.tolist() == [[0] * 8]
    assert meta(table, 1) == [(1, 60)]


def test_candidates_are_not_touched(make_table):
    table = make_table(admission=es.CounterAdmission(3))
    table.find_or_insert(ids(1, 2, 2, 2), step=0)
    table.evict(STEP(0), step=99)
    assert (len(table), pending(table)) == (0, {1: 1})


def test_automatic_eviction_comes_at_multiples_of_its_period(make_table):
    table = make_table(eviction=STEP(3), evict_every=10)
    table.find_or_insert(ids(1), step=0)
    table.find_or_insert(ids(), step=9)
    assert live(table) == [1]
    table.find_or_insert(ids(2), step=10)
    assert live(table) == [2]
    table.find_or_insert(ids(), step=19)
    assert live(table) == [2]
    table.find_or_insert(ids(3), step=45)  # over several periods at once: it runs once, at 45
    assert live(table) == [3]
    table.find_or_insert(ids(), step=49)
    assert live(table) == [3]
    table.find_or_insert(ids(), step=50)
    assert live(table) == []


def test_automatic_eviction_comes_before_the_batch_and_not_in_training(make_table):
    table = make_table(eviction=STEP(3), evict_every=10, optimizer=es.SGD(0.1))
    table.find_or_insert(ids(1, 2), step=0)
    table.apply_gradients(ids(2), rows_of(0.0), step=30)
    assert live(table) == [1, 2]
    assert table.find_or_insert(ids(1), step=30).status.tolist() == [INSERTED]
    assert meta(table, 1) == [(1, 30)]


def test_automatic_eviction_spares_pins(make_table):
    table = make_table(eviction=STEP(3), evict_every=10)
    table.pin(ids(1))
    table.find_or_insert(ids(1, 2), step=0)
    table.find_or_insert(ids(), step=10)
    assert live(table) == [1]


def test_frequencies_halve(make_table):
    table = make_table(eviction=FREQ(2, min_age=0, halve_every=10))
    table.find_or_insert(ids(1, 1, 1, 1, 1, 2), step=0)
    table.find_or_insert(ids(2), step=10)
    assert meta(table, 1, 2) == [(2, 0), (1, 0)]  # 1 >> 1 = 0, and once more
    table.find_or_insert(ids(), step=39)
    assert meta(table, 1, 2) == [(1, 0), (0, 0)]
    table.find_or_insert(ids(), step=40)
    assert meta(table, 1, 2) == [(0, 0), (0, 0)]


def test_frequencies_halve_before_the_automatic_eviction(make_table):
    table = make_table(eviction=FREQ(2, min_age=0, halve_every=10), evict_every=10)
    table.find_or_insert(ids(1, 1, 1, 2, 2, 2, 2), step=0)
    table.find_or_insert(ids(), step=10)  # 3 >> 1 = 1, 4 >> 1 = 2
    assert live(table) == [2]


def test_on_evict_gets_every_evicted_row(make_table):
    seen = []
    table = make_table(
        eviction=STEP(3), evict_every=10, max_rows=3, on_full="evict", on_evict=seen.append
    )
    table.find_or_insert(ids(1, 2), step=0)
    table.find_or_insert(ids(3), step=10)  # automatic: 1 and 2
    table.evict(STEP(0), step=11, dry_run=True)
    table.find_or_insert(ids(4, 5, 6), step=11)  # full: 3
    table.evict(STEP(0), step=12)  # by hand: the rest
    assert [rows.keys.tolist() for rows in seen] == [[1, 2], [3], [4, 5, 6]]
    assert seen[0].values.tolist() == [[1, 1], [1, 1]]
    assert table.stats()["n_evicted"] == 6


def test_erased_and_cleared_rows_are_not_evicted(make_table):
    seen = []
    table = make_table(on_evict=seen.append)
    table.pin(ids(1))
    table.find_or_insert(ids(1, 2), step=0)
    assert table.erase(ids(1)) == 1  # a pin spares from eviction alone
    table.clear()
    assert seen == []


def test_steps_that_jump_far(make_table):
    """Steps are kept in 32 bits relative to a base, which nobody notices but by old rows."""
    table = make_table()
    table.find_or_insert(ids(1), step=0)
    table.find_or_insert(ids(2), step=2**32 - 1)
    assert meta(table, 1, 2) == [(1, 0), (1, 2**32 - 1)]
    table.find_or_insert(ids(3), step=2**32)  # the base becomes 2**31
    assert meta(table, 1, 2, 3) == [(1, 2**31), (1, 2**32 - 1), (1, 2**32)]
    assert table.stats()["n_steps_clamped"] == 1
    table.find_or_insert(ids(4), step=5)  # before the base
    assert meta(table, 4) == [(1, 2**31)]
    assert table.stats()["n_steps_clamped"] == 2
    table.find_or_insert(ids(5), step=2**63 - 1)
    assert meta(table, 5) == [(1, 2**63 - 1)]
    assert table.evict(STEP(2**31 - 1), step=2**63 - 1).n_evicted == 4
