"""Closing a table, other threads, and forked children."""

import os
import threading
import time
import warnings

import numpy as np
import pytest

import embstore as es

IDS = np.array([7, 5, 7, -1])


@pytest.fixture
def table():
    with es.Table(dim=4, optimizer=es.SGD(lr=0.5), initializer=es.Constant(1.0)) as made:
        yield made


def ones(*shape):
    return np.ones(shape, np.float32)


def test_each_call_of_a_closed_table_says_so(table):
    batch = table.find_or_insert([1], step=0)
    table.close()
    table.close()
    calls = [
        lambda: table.find(IDS),
        lambda: table.find([1], return_found=True),
        lambda: table.find_or_insert(IDS, step=0),
        lambda: table.apply_gradients(batch, ones(1, 4), step=0),
        lambda: table.apply_gradients([1], ones(1, 4), step=0),
        lambda: table.pooled([1], [0, 1]),
        lambda: table.pooled([1], [0, 1], step=0),
        lambda: table.evict(es.StepEviction(1), step=0),
        lambda: table.assign([1], ones(1, 4)),
        lambda: table.erase([1]),
        lambda: table.contains([1]),
        table.clear,
        table.export,
        table.candidates,
        lambda: table.import_(
            es.Rows(
                *[np.empty(0, np.int64)],
                ones(0, 4),
                ones(0, 0),
                np.empty(0, np.uint32),
                np.empty(0, np.int64),
            )
        ),
        lambda: table.reserve(10),
        lambda: table.pin([1]),
        table.stats,
        lambda: table.nbytes,
        lambda: table.step,
        lambda: len(table),
    ]
    for call in calls:
        with pytest.raises(es.ClosedTableError):
            call()


def test_close_waits_for_nobody_and_breaks_nobody():
    keys, grads = np.arange(20_000), ones(20_000, 16)
    for _ in range(20):
        table = es.Table(dim=16, optimizer=es.SGD(0.1))
        table.find_or_insert(keys, step=0)
        n_closed, started = [0], threading.Barrier(4)

        def work(call, n_closed=n_closed, started=started):
            started.wait()
            try:
                while True:
                    call()
            except es.ClosedTableError:
                n_closed[0] += 1

        calls = [
            lambda t=table: t.find(keys),
            lambda t=table: t.find_or_insert(keys, step=1),
            lambda t=table: t.apply_gradients(keys, grads, step=1),
        ]
        threads = [threading.Thread(target=work, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        started.wait()
        time.sleep(0.005)
        table.close()
        for thread in threads:
            thread.join()
        assert n_closed == [3]


def test_an_export_runs_beside_writers():
    with es.Table(dim=2) as table:
        table.find_or_insert(np.arange(1000), step=0)
        is_done = threading.Event()

        def write():
            for start in range(1000, 100_000, 1000):
                table.find_or_insert(np.arange(start, start + 1000), step=1)
            is_done.set()

        writer = threading.Thread(target=write)
        writer.start()
        while not is_done.is_set():
            exported = np.concatenate([rows.keys for rows in table.export(batch_rows=100)])
            assert len(np.unique(exported)) == len(exported) >= 1000
            assert set(range(1000)) <= set(exported.tolist())
        writer.join()


def test_a_forked_child_reads_and_cannot_write(table):
    table.find_or_insert(IDS, step=0)
    assert table._lock.acquire()  # as if a writer of another thread were at work
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        is_right = table.find([7]).tolist() == [[1.0] * 4]
        try:
            table.find_or_insert([8], step=0)
            is_right = False
        except es.ForkError:
            pass
        os._exit(0 if is_right else 1)
    table._lock.release()
    assert os.waitpid(child, 0)[1] == 0
    table.find_or_insert([8], step=0)
