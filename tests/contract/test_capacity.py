"""Full tables: who is refused, who goes to make room, and what a call that raises leaves."""

import numpy as np
import pytest
from contract.tools import FOUND, INSERTED, REFUSED, ids, live, meta, pending, rows_of, snapshot

import embstore as es


def statuses(table, *keys, step=0):
    return table.find_or_insert(ids(*keys), step=step).status.tolist()


def test_raise_is_the_default_and_changes_nothing(make_table):
    table = make_table(max_rows=3, admission=es.CounterAdmission(2))
    statuses(table, 1, 1, 2, 2, 5)
    before = snapshot(table)
    with pytest.raises(es.CapacityError, match="3") as error:
        table.find_or_insert(ids(1, 3, 3, 4, 4, 6), step=1)
    assert isinstance(error.value, MemoryError)
    assert snapshot(table) == before
    assert statuses(table, 3, 3, 4) == [INSERTED, es.KeyStatus.PENDING]


def test_refuse_serves_keys_in_order_of_first_occurrence(make_table):
    table = make_table(max_rows=3, on_full="refuse", default_row=9.0)
    statuses(table, 1)
    batch = table.find_or_insert(ids(5, 1, 4, 5, 3, 2), step=0)
    assert batch.keys.tolist() == [5, 1, 4, 3, 2]
    assert batch.status.tolist() == [INSERTED, FOUND, INSERTED, REFUSED, REFUSED]
    assert batch.rows[:, 0].tolist() == [1, 1, 1, 1, 9, 9]
    assert batch.n_refused == 2
    assert table.stats()["n_refused"] == 2
    table.erase(ids(1))
    assert statuses(table, 2, 3) == [INSERTED, REFUSED]


def test_a_refused_key_is_not_counted(make_table):
    table = make_table(max_rows=1, on_full="refuse", admission=es.CounterAdmission(2))
    statuses(table, 1, 1, 2)
    assert statuses(table, 2, 3, 3) == [REFUSED, REFUSED]
    assert pending(table) == {2: 1}
    table.erase(ids(1))
    assert statuses(table, 2) == [INSERTED]
    assert meta(table, 2) == [(2, 0)]


@pytest.mark.parametrize(("by", "gone"), [("step", [10, 11, 12]), ("freq", [20, 21, 22])])
def test_evict_makes_room_by_the_smallest_score(make_table, by, gone):
    table = make_table(max_rows=20, eviction=es.CapacityEviction(by))
    keys = [*range(10, 15), *range(20, 35)]
    for step, key in enumerate(keys):
        n = 2 if key < 20 else 1
        statuses(table, *[key] * n, step=step)
    # 19 of 20 less the 2 new ones: 17 remain, and 19 in the end
    assert statuses(table, 1, 2, step=50) == [INSERTED, INSERTED]
    assert live(table) == sorted({1, 2, *keys} - set(gone))
    assert table.stats()["n_evicted"] == 3


def test_equal_scores_go_by_signed_key(make_table):
    table = make_table(max_rows=4, on_full="evict")
    statuses(table, 3, -1, 0, -(2**63))
    statuses(table, 9)  # 3 less 1: two go
    assert live(table) == [0, 3, 9]


def test_keys_of_the_call_and_pins_are_never_victims(make_table):
    table = make_table(max_rows=4, on_full="evict")
    table.pin(ids(1))
    statuses(table, 1, 2, 3, 4)
    assert statuses(table, 2, 5, step=1) == [FOUND, INSERTED]
    assert live(table) == [1, 2, 5]
    table.pin(ids(2, 5))
    assert statuses(table, 6, 7, 8) == [INSERTED, REFUSED, REFUSED]
    assert live(table) == [1, 2, 5, 6]


def test_a_batch_larger_than_the_table(make_table):
    table = make_table(max_rows=3, on_full="evict")
    statuses(table, 1, 2, 3)
    assert statuses(table, 3, 4, 5, 6, 7) == [FOUND, INSERTED, INSERTED, REFUSED, REFUSED]
    assert live(table) == [3, 4, 5]


def test_room_that_suffices_evicts_nobody(make_table):
    table = make_table(max_rows=4, on_full="evict")
    statuses(table, 1, 2)
    assert statuses(table, 3, 4) == [INSERTED, INSERTED]
    assert statuses(table, 1, 2, 3, 4) == [FOUND] * 4
    assert live(table) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("on_full", "report", "left"),
    [("refuse", (1, 1, 1), [1, 2, 9]), ("evict", (1, 2, 0), [1, 8, 9])],
)
def test_assign_into_a_full_table(make_table, on_full, report, left):
    table = make_table(max_rows=3, on_full=on_full)
    statuses(table, 1, 2)
    assert table.assign(ids(9, 1, 8), rows_of(9, 7, 8)) == report
    assert live(table) == left
    assert table.find(ids(1, 9))[:, 0].tolist() == [7, 9]


def test_assign_raises_as_well(make_table):
    table = make_table(max_rows=2)
    statuses(table, 1)
    before = snapshot(table)
    with pytest.raises(es.CapacityError):
        table.assign(ids(1, 2, 3), rows_of(7, 8, 9))
    assert snapshot(table) == before


@pytest.mark.promise("R11", "max_bytes while ten times as much is inserted")
@pytest.mark.parametrize("on_full", ["refuse", "evict", "raise"])
def test_max_bytes_is_kept(make_table, on_full):
    limit = 4 * 2**20
    table = make_table(
        16, max_bytes=limit, on_full=on_full, optimizer=es.Adagrad(0.1), admission=None
    )
    most, refused = 0, 0
    for step in range(100):
        keys = np.arange(step * 1000, (step + 1) * 1000)
        try:
            batch = table.find_or_insert(keys, step=step)
        except es.CapacityError:
            refused += 1
            continue
        refused += batch.n_refused > 0
        stats = table.stats()
        most = max(most, stats["nbytes"] - stats["nbytes_other"])  # without the scratch of calls
    assert most <= limit
    assert most > limit / 4
    assert len(table) > 5000
    assert (stats["n_evicted"] > 0) == (on_full == "evict")
    assert on_full == "evict" or refused > 0


def test_max_bytes_refuses_candidates(make_table):
    limit = 2**20
    table = make_table(max_bytes=limit, on_full="refuse", admission=es.CounterAdmission(2))
    n_refused = sum(
        table.find_or_insert(np.arange(start, start + 5000), step=0).n_refused
        for start in range(0, 200_000, 5000)
    )
    assert table.nbytes <= limit
    assert n_refused > 0
    assert table.stats()["n_pending"] + n_refused == 200_000


def test_plan_tells_the_bytes(make_table, engine):
    parameters = {"optimizer": es.Adam(0.1), "initializer": es.Constant(0.0)}
    plan = es.Table.plan(200_000, dim=16, device=engine, **parameters)
    table = make_table(16, **parameters)
    most = 0
    for start in range(0, 200_000, 10_000):
        table.find_or_insert(np.arange(start, start + 10_000), step=0)
        most = max(most, table.nbytes)
    assert table.nbytes == pytest.approx(plan.resting_bytes, rel=0.25)
    assert most <= plan.peak_bytes * 1.05
    assert table.plan(200_000) == plan


def test_candidates_and_filter_are_in_nbytes(make_table):
    table = make_table(admission=es.CounterAdmission(2))
    empty = table.nbytes
    table.find_or_insert(np.arange(50_000), step=0)
    assert table.nbytes - empty > 50_000 * 12
    policy = es.BloomAdmission(2, capacity=1_000_000)
    assert make_table(admission=policy).nbytes >= policy.nbytes
