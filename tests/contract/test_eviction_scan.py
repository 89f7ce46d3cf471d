"""Eviction from tables of many blocks: what is selected on all paths, and bounded calls."""

import numpy as np
import pytest
from contract import selection
from contract.test_determinism import run_in_child
from contract.tools import meta
from property.pair import assert_same_rows, exported

import embstore as es

STEP = es.StepEviction


def test_rows_are_selected_as_the_oracle_says(engine):
    selection.check_all(engine)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("n_threads", ["1", "2"])
def test_rows_are_selected_alike_on_all_paths(engine, cpu_alone, path, n_threads):
    program = selection.__file__
    result = run_in_child(program, engine, EMBSTORE_NUM_THREADS=n_threads, EMBSTORE_CPU=path)
    assert result == [path, n_threads]


def old_and_young(make_table, n_old, n_young=1000, **parameters):
    """Return a table whose rows of keys [0, n_old) are of steps 0 to 7, and the rest of step 9."""
    table = make_table(1, **parameters)
    keys = np.arange(n_old)
    for step in range(8):
        table.find_or_insert(keys[step::8], step=step)
    table.find_or_insert(np.arange(n_old, n_old + n_young), step=9)
    return table


@pytest.mark.parametrize("limits", [{}, {"max_rows": 70_001}, {"keep_at_least": 40_000}])
def test_threads_change_nothing(make_table, cpu_alone, threads, limits):
    left, gone = [], []
    for n_threads in (1, 2, 3):
        threads(n_threads)
        table = old_and_young(make_table, 100_000, optimizer=es.Adagrad(0.1))
        table.pin(np.arange(0, 100_000, 1000))
        report = table.evict(STEP(2), step=9, pins=np.arange(50), return_rows=True, **limits)
        assert report[:4] == (101_000, report.n_selected, len(report.rows), True)
        left.append(exported(table))
        gone.append(report.rows)
    for other in (1, 2):
        assert_same_rows(left[other], left[0], "left")
        assert_same_rows(gone[other], gone[0], "gone")


def test_max_rows_takes_the_oldest_of_many_blocks(make_table):
    table = old_and_young(make_table, 40_000)
    table.evict(STEP(0), step=20, max_rows=12_345)
    keys, steps = np.arange(40_000), np.arange(40_000) % 8
    order = np.lexsort((keys, steps))
    assert len(table) == 41_000 - 12_345
    assert not table.contains(order[:12_345]).any()
    assert table.contains(order[12_345:]).all()


def test_a_bounded_call_ends_in_time_with_its_removal(make_table, size):
    """A million victims take much longer than a millisecond to remove."""
    n = size(1_000_000)
    table = old_and_young(make_table, n)
    report = table.evict(STEP(0), step=9, max_seconds=0.001)
    assert not report.is_complete
    assert 0 < report.n_evicted < n // 2
    assert len(table) == n + 1000 - report.n_evicted
    while not report.is_complete:
        report = table.evict(STEP(0), step=9, max_seconds=0.001)
    assert np.array_equal(np.sort(exported(table).keys), np.arange(n, n + 1000))


def test_a_bounded_dry_run_leaves_the_cursor(make_table):
    table = old_and_young(make_table, 20_000)
    first = table.evict(STEP(0), step=9, max_seconds=1e-9)
    again = table.evict(STEP(0), step=9, max_seconds=1e-9, dry_run=True, return_rows=True)
    second = table.evict(STEP(0), step=9, max_seconds=1e-9, return_rows=True)
    assert 0 < first.n_evicted < 20_000
    assert np.intersect1d(again.rows.keys, second.rows.keys).size > 0
    assert len(table) == 21_000 - first.n_evicted - second.n_evicted


def test_bounded_calls_collect_what_they_remove(make_table):
    table = old_and_young(make_table, 20_000)
    gone, is_complete = [], False
    while not is_complete:
        report = table.evict(STEP(3), step=9, max_seconds=1e-9, return_rows=True)
        assert len(report.rows) == report.n_evicted
        gone.append(report.rows.keys)
        is_complete = report.is_complete
    assert np.array_equal(np.sort(np.concatenate(gone)), np.flatnonzero(np.arange(20_000) % 8 < 6))


def test_ids_freed_by_bounded_calls_are_given_out_again(make_table, size):
    n = size(100_000)
    table = old_and_young(make_table, n)
    n_bytes = table.stats()["nbytes_values"]
    for generation in range(1, 4):
        n_evicted, is_complete = 0, False
        while not is_complete:
            report = table.evict(STEP(0), step=9 + generation, max_seconds=1e-4, keep_at_least=1000)
            n_evicted += report.n_evicted
            is_complete = report.is_complete
        assert n_evicted == n
        keys = np.arange(n) + generation * 1_000_000
        table.find_or_insert(keys, step=9 + generation)
        assert table.stats()["nbytes_values"] == n_bytes
        assert len(table) == n + 1000
        assert meta(table, *keys[-2:].tolist()) == [(1, 9 + generation)] * 2
        assert np.array_equal(table.find(keys), np.ones((n, 1), np.float32))
