"""Many threads find while one writes: rows are whole, of their own key, and never lost.

Every row of key k holds k + n * N_KEYS in all columns, n being how often it was written, so that a
torn row, or that of another key, shows. Nothing here depends on how fast the threads are.
"""

import threading

import numpy as np
import pytest
from contract.tools import rows_of

import embstore as es

N_KEYS = 2048
DIM = 33
KEPT = np.arange(0, N_KEYS, 2)  # always present
FLEETING = np.arange(1, N_KEYS, 2)  # come and go
ABSENT = np.float32(-1.0)


def complaint(keys, rows, found):
    """Return what is wrong with rows that were found, or None."""
    if (rows != rows[:, :1]).any():
        return "a row is torn"
    if not found[keys % 2 == 0].all():
        return "a key that is always present was not found"
    if (rows[~found] != ABSENT).any():
        return "an absent key does not read the default row"
    if (rows[found, 0] % N_KEYS != keys[found]).any():
        return "a row is that of another key"
    return None


class Readers:
    """Threads that find random batches until told to stop; the first complaint is kept."""

    def __init__(self, table, n_threads=3):
        self.table, self.is_over, self.problems = table, threading.Event(), []
        self.n_batches = [0] * n_threads
        self.threads = [threading.Thread(target=self.run, args=(i,)) for i in range(n_threads)]

    def run(self, seed):
        rng = np.random.default_rng(seed)
        try:
            while not (self.is_over.is_set() and self.n_batches[seed]):
                keys = rng.integers(0, N_KEYS, rng.integers(1, 3000))
                rows, found = self.table.find(keys, return_found=True)
                self.n_batches[seed] += 1
                problem = complaint(keys, rows, found)
                if problem:
                    self.problems.append(problem)
        except Exception as error:
            self.problems.append(repr(error))

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exc):
        self.is_over.set()
        for thread in self.threads:
            thread.join()
        assert self.problems == []
        assert min(self.n_batches) > 0


def own(keys, n):
    """Return the rows of these keys when written n times."""
    return np.repeat((keys + n * N_KEYS).astype(np.float32)[:, None], DIM, axis=1)


@pytest.fixture
def table(make_table):
    """A table that holds all kept keys; a gradient of one adds N_KEYS to a row."""
    table = make_table(DIM, default_row=float(ABSENT), optimizer=es.SGD(float(N_KEYS)))
    table.assign(KEPT, own(KEPT, 0))
    return table


def train(table, keys, n):
    table.apply_gradients(keys, rows_of(*[-1.0] * len(keys), dim=DIM), step=n)


def test_find_while_rows_are_trained(table):
    with Readers(table):
        for n in range(300):
            train(table, KEPT, n)
    assert np.array_equal(table.find(KEPT), own(KEPT, 300))


def test_find_while_rows_are_assigned(table):
    with Readers(table):
        for n in range(1, 300):
            table.assign(KEPT, own(KEPT, n))


def test_find_while_keys_come_and_go(table):
    """Freed rows are given to other keys at once."""
    rng = np.random.default_rng(5)
    with Readers(table):
        for n in range(200):
            keys = rng.permutation(FLEETING)
            table.assign(keys, own(keys, n % 50))
            table.erase(keys[: len(keys) // 2])
            table.evict(es.StepEviction(0), step=n + 1, pins=KEPT)


def test_find_while_the_table_grows(table):
    start = 1 << 20
    with Readers(table):
        for n in range(60):
            others = np.arange(start + n * 4000, start + (n + 1) * 4000)
            table.find_or_insert(others, step=n)
            train(table, KEPT[:500], n)
    assert len(table) == len(KEPT) + 60 * 4000


def test_find_while_the_table_is_cleared(table):
    """A find sees the rows of before or of after; nothing else."""
    problems, is_over = [], threading.Event()

    def read():
        while not is_over.is_set():
            rows, found = table.find(KEPT, return_found=True)
            wrong = rows[found, 0] % N_KEYS != KEPT[found]
            if wrong.any() or (rows != rows[:, :1]).any() or (rows[~found] != ABSENT).any():
                problems.append("a row of neither before nor after")

    thread = threading.Thread(target=read)
    thread.start()
    for n in range(100):
        table.clear()
        table.assign(KEPT, own(KEPT, n % 50))
    is_over.set()
    thread.join()
    assert problems == []


def test_writers_queue(table):
    """Concurrent writers lose no update."""
    n_rounds, n_threads = 100, 4

    def write():
        for _ in range(n_rounds):
            batch = table.find_or_insert(KEPT, step=0)
            table.apply_gradients(batch, rows_of(*[-1.0] * len(KEPT), dim=DIM), step=0)

    threads = [threading.Thread(target=write) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.array_equal(table.find(KEPT), own(KEPT, n_rounds * n_threads))
    assert set(table.find(KEPT, with_meta=True).freq.tolist()) == {n_rounds * n_threads}


def test_export_gives_rows_of_one_moment(make_table):
    """Values, slots, freq and step of an exported row are from between two calls."""
    table = make_table(DIM, optimizer=es.Adagrad(0.0), admission=None)
    keys = np.arange(1000)
    table.find_or_insert(keys, step=0)
    ones = np.ones((len(keys), DIM), np.float32)
    problems, is_over = [], threading.Event()

    def export():
        while not is_over.is_set():
            for rows in table.export(batch_rows=100):
                if (rows.slots != rows.step[:, None]).any():
                    problems.append("slots and step are of two moments")

    thread = threading.Thread(target=export)
    thread.start()
    for step in range(1, 300):
        table.apply_gradients(keys, ones, step=step)
    is_over.set()
    thread.join()
    assert problems == []


def test_close_while_others_find(make_table):
    for _ in range(20):
        table = make_table(DIM)
        table.assign(KEPT, own(KEPT, 0))
        outcomes = []

        def read(table=table, outcomes=outcomes):
            try:
                while True:
                    table.find(KEPT)
            except es.ClosedTableError:
                outcomes.append("closed")

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        table.close()
        for thread in threads:
            thread.join()
        assert outcomes == ["closed"] * 3
