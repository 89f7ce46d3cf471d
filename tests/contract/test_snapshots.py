"""Snapshots: what a table held at one moment, read piece by piece while every verb goes on."""

import os
import threading

import numpy as np
import pytest
from contract.tools import ids, write_number
from reference.hashing import partition_of

import embstore as es

N_KEYS = 3000
DIM = 5


def build(make_table, **more):
    given = {"dim": DIM, "optimizer": es.Adagrad(lr=0.5), "initializer": es.Normal(std=0.5)}
    return make_table(**{**given, **more})


def content(table):
    """All that a checkpoint holds of a table, copied."""
    rows = list(table.export())
    return {
        "rows": [np.concatenate([getattr(r, name) for r in rows]) for name in NAMES],
        "candidates": [a.copy() for a in vars_of(table.candidates())],
        "state": table._engine.get_state(),
        "bloom": [table._engine.bloom_read(p).copy() for p in range(256)],
    }


NAMES = ("keys", "values", "slots", "freq", "step")


def vars_of(candidates):
    return candidates.keys, candidates.counts, candidates.epochs


class Reading:
    """A snapshot that is read in pieces, filter and candidates first, as a save does."""

    def __init__(self, table, is_delta=False, log_bytes=1 << 20, file=-1):
        self.snapshot = table._engine.snapshot(is_delta, log_bytes, file)
        self.snapshot.prepare(1, True)
        self.n_rows = self.snapshot.stats()["n_rows"]
        self.parts, self.bloom, self.at = [], [], 0
        self.n_bloom = 256 if len(table._engine.bloom_read(0)) else 0

    def read(self, n):
        for _ in range(min(16, self.n_bloom - len(self.bloom))):
            self.bloom.append(self.snapshot.bloom(len(self.bloom)))
        n = min(n, self.n_rows - self.at)
        self.parts.append(self.snapshot.rows(self.at, n, 1))
        self.at += n

    def is_done(self):
        return self.at == self.n_rows and len(self.bloom) == self.n_bloom

    def found(self):
        n = self.snapshot.stats()["n_candidates"]
        return {
            "rows": [np.concatenate([p[i] for p in self.parts]) for i in range(5)],
            "candidates": self.snapshot.candidates(0, n),
            "state": self.snapshot.state(),
            "bloom": self.bloom or [np.empty(0, np.uint8)] * 256,
        }


def assert_same(found, expected):
    for name in ("rows", "candidates", "bloom"):
        for a, b in zip(found[name], expected[name], strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)
    assert found["state"] == expected["state"]


def random_write(table, rng, step):
    """One verb of those that write, on keys in and out of the table."""
    keys = rng.integers(0, N_KEYS * 5 // 4, int(rng.integers(1, 400))).astype(np.int64) * 7
    verb = rng.integers(0, 9)
    if verb <= 2:
        batch = table.find_or_insert(keys, step=step)
        table.apply_gradients(batch, np.ones((len(keys), DIM), np.float32), step=step)
    elif verb == 3:
        table.apply_gradients(keys, np.ones((len(keys), DIM), np.float32), step=step)
    elif verb == 4:
        table.assign(keys, np.full((len(keys), DIM), 0.5, np.float32), step=step)
    elif verb == 5:
        table.erase(keys)
    elif verb == 6:
        table.evict(es.StepEviction(3), step=step, max_rows=100)
    elif verb == 7:
        table.import_(next(table.export(batch_rows=300))[:200])
    else:
        table.find_or_insert(keys, step=step, admit="always")


def fill(table, rng):
    for step in range(4):
        keys = rng.integers(0, N_KEYS, N_KEYS).astype(np.int64) * 7
        batch = table.find_or_insert(keys, step=step)
        table.apply_gradients(batch, np.ones((len(keys), DIM), np.float32), step=step)


ADMISSIONS = {
    "all": None,
    "counter": es.CounterAdmission(2, candidate_ttl=64),
    "bloom": es.BloomAdmission(2, capacity=2000, halve_every=5),
}


@pytest.mark.parametrize("admission", ADMISSIONS)
@pytest.mark.parametrize("log", ["memory", "memory and file", "file"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_is_what_the_table_held_whatever_is_written_meanwhile(
    admission, log, dtype, make_table, tmp_path
):
    rng = np.random.default_rng(len(admission) + len(log))
    table = build(make_table, admission=ADMISSIONS[admission], dtype=dtype)
    fill(table, rng)
    log_bytes = {"memory": 1 << 20, "memory and file": 2_000, "file": 0}[log]
    with open(tmp_path / "log", "w+b") as file:
        for round_ in range(3):
            expected = content(table)
            descriptor = -1 if log == "memory" else file.fileno()
            reading = Reading(table, log_bytes=log_bytes, file=descriptor)
            step = 10 + 10 * round_
            while not reading.is_done():
                random_write(table, rng, step)
                reading.read(250)
                step += 1
            assert len(reading.parts) > 3
            found = reading.found()
            if dtype == "bfloat16":
                found["rows"][1] = (found["rows"][1].astype(np.uint32) << 16).view(np.float32)
            assert_same(found, expected)
            assert (reading.snapshot.stats()["n_in_file"] > 0) == (log != "memory")
            reading.snapshot.end(True)
    assert len(table) > 0


def test_rows_of_16_bits_come_as_they_are_stored(make_table):
    table = build(make_table, dtype="bfloat16")
    fill(table, np.random.default_rng(0))
    stored = table._engine.export_rows(0, 255)
    reading = Reading(table)
    table.assign(stored.keys[::2], np.zeros((len(stored.keys[::2]), DIM), np.float32))
    while not reading.is_done():
        reading.read(500)
    found = reading.found()["rows"]
    assert found[1].dtype == np.uint16
    for part, name in zip(found, NAMES, strict=True):
        np.testing.assert_array_equal(part, getattr(stored, name))
    reading.snapshot.end(True)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.clear(),
        lambda t: (t.clear(), t.find_or_insert(ids(*range(100)), step=9)),
        lambda t: t.find_or_insert(ids(1), step=2**32 + 50),  # moves every step
        lambda t: t.find_or_insert(ids(1), step=100),  # halves every frequency
        lambda t: t.erase(np.arange(N_KEYS) * 7),
        lambda t: (t.erase(np.arange(N_KEYS) * 7), t.find_or_insert(np.arange(5000), step=9)),
    ],
    ids=["clear", "clear and refill", "step base", "halve", "erase all", "reuse of rows"],
)
@pytest.mark.parametrize("n_before", [0, 900])
def test_what_changes_all_rows_changes_no_snapshot(change, n_before, make_table):
    eviction = es.FrequencyEviction(min_freq=1, min_age=10**6, halve_every=50)
    for admission in ADMISSIONS.values():
        table = build(make_table, eviction=eviction, admission=admission)
        fill(table, np.random.default_rng(1))
        table.find_or_insert(ids(3), step=1)
        expected = content(table)
        reading = Reading(table)
        reading.read(n_before)
        change(table)
        change(table)
        while not reading.is_done():
            reading.read(500)
        assert_same(reading.found(), expected)
        reading.snapshot.end(True)
        table.close()


def test_candidates_are_collected_while_they_change(make_table, size):
    """Range by range: some change before theirs is collected, some after, and the index grows."""
    rng = np.random.default_rng(6)
    for _ in range(4):
        table = build(make_table, admission=es.CounterAdmission(3, candidate_ttl=32))
        known = rng.integers(-(2**62), 2**62, size(300_000))
        table.find_or_insert(known, step=1)
        expected = vars_of(table.candidates())
        snapshot = table._engine.snapshot(False, 1 << 20, -1)
        collecting = threading.Thread(target=snapshot.prepare, args=(1, False))
        collecting.start()
        n_writes = 0
        while collecting.is_alive() or n_writes < 5:
            n_writes += 1
            new = rng.integers(-(2**62), 2**62, size(40_000) if n_writes < 8 else 10)
            table.find_or_insert(
                np.concatenate([known[rng.integers(0, len(known), 3000)], new]), step=2
            )
            table.erase(known[rng.integers(0, len(known), 500)])
        table.find_or_insert(ids(1), step=1000)  # all candidates expire
        collecting.join()
        n = snapshot.stats()["n_candidates"]
        for found, wanted in zip(snapshot.candidates(0, n), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
        snapshot.end(True)
        table.close()


def test_a_delta_is_what_the_change_log_names(make_table):
    table = build(make_table, track_changes=True)
    fill(table, np.random.default_rng(2))
    table.reset_changes()
    table.assign(ids(1, 2, 7), np.ones((3, DIM), np.float32))
    table.erase(ids(2, 14, 21))
    table.assign(ids(21), np.ones((1, DIM), np.float32))
    reading = Reading(table, is_delta=True)
    table.erase(ids(1))
    table.assign(ids(35), np.ones((1, DIM), np.float32))
    while not reading.is_done():
        reading.read(1)
    assert sorted(reading.found()["rows"][0].tolist()) == [1, 7, 21]
    assert sorted(reading.snapshot.deleted().tolist()) == [2, 14]
    reading.snapshot.end(True)
    changes = table.changes()
    assert (changes.upserted.tolist(), changes.deleted.tolist()) == ([35], [1])


def test_a_snapshot_that_was_not_saved_leaves_the_change_log_as_it_was(make_table):
    table = build(make_table, track_changes=True)
    fill(table, np.random.default_rng(2))
    table.reset_changes()
    table.assign(ids(1), np.ones((1, DIM), np.float32))
    table.erase(ids(14, 21))
    for end in (lambda s: s.end(False), lambda s: None):
        snapshot = table._engine.snapshot(True, 0, -1)
        assert table.changes().upserted.tolist() == []
        table.assign(ids(14), np.ones((1, DIM), np.float32))
        end(snapshot)
        del snapshot
        changes = table.changes()
        assert sorted(changes.upserted.tolist()) == [1, 14]
        assert changes.deleted.tolist() == [21]


def test_without_room_the_snapshot_is_lost_and_the_write_is_not(make_table):
    table = build(make_table)
    fill(table, np.random.default_rng(3))
    with open("/dev/full", "w+b", buffering=0) as full:
        for file, error in ((-1, "No space left"), (full.fileno(), "No space left")):
            reading = Reading(table, log_bytes=0, file=file)
            table.assign(ids(7, 14), np.full((2, DIM), 3, np.float32))
            assert (table.find(ids(7, 14)) == 3).all()
            with pytest.raises(es.CheckpointError, match=error) as raised:
                reading.read(10)
            assert raised.value.errno == 28
            table.assign(ids(21), np.full((1, DIM), 4, np.float32))
            reading.snapshot.end(False)
    assert (table.find(ids(21)) == 4).all()


def test_one_snapshot_at_a_time_and_none_of_a_closed_table(make_table):
    table = build(make_table)
    fill(table, np.random.default_rng(4))
    snapshot = table._engine.snapshot(False, 0, -1)
    with pytest.raises(es.ArgumentError, match="another snapshot"):
        table._engine.snapshot(False, 0, -1)
    table.close()  # the snapshot keeps what it needs
    snapshot.prepare(1, False)
    n = snapshot.stats()["n_rows"]
    assert len(snapshot.rows(0, n, 1)[0]) == n
    with pytest.raises(es.ArgumentError, match="fewer rows"):
        snapshot.rows(n, 1, 1)
    snapshot.end(True)
    with pytest.raises(es.ClosedTableError):
        snapshot.stats()
    with pytest.raises(es.ClosedTableError):
        table._engine.snapshot(False, 0, -1)


def test_the_log_takes_no_more_memory_than_all_rows_need(make_table):
    table = build(make_table)
    fill(table, np.random.default_rng(6))
    before = table.nbytes
    reading = Reading(table, log_bytes=1 << 44)
    assert table.nbytes - before < 2 * before
    expected = table.find(ids(7))
    table.assign(ids(7), np.full((1, DIM), 3, np.float32))
    reading.read(reading.n_rows)
    rows = reading.found()["rows"]
    np.testing.assert_array_equal(rows[1][rows[0] == 7], expected)
    reading.snapshot.end(False)


def test_a_filter_that_changes_for_long_is_kept_once(make_table):
    table = build(make_table, admission=es.BloomAdmission(min_count=9, capacity=5000))
    rng = np.random.default_rng(7)
    before = table.nbytes
    reading = Reading(table)
    expected = [table._engine.bloom_read(p).copy() for p in range(256)]
    for step in range(60):
        table.find_or_insert(rng.integers(0, 1 << 40, 2000), step=step)
    filter_bytes = sum(len(part) for part in expected)
    assert table.nbytes - before < 2 * filter_bytes + (2 << 20)
    while not reading.is_done():
        reading.read(0)
    for found, part in zip(reading.bloom, expected, strict=True):
        np.testing.assert_array_equal(found, part)
    reading.snapshot.end(False)


def test_a_snapshot_ends_after_the_call_that_reads_it(make_table, size):
    table = build(make_table)
    keys = np.arange(size(200_000))
    table.assign(keys, np.full((len(keys), DIM), 3, np.float32))
    for _ in range(10):
        snapshot = table._engine.snapshot(False, 0, -1)
        snapshot.prepare(1, False)
        found, begun = [], threading.Event()

        def read(snapshot=snapshot, found=found, begun=begun):
            begun.set()
            try:
                found.append(snapshot.rows(0, len(keys), 1))
            except es.ClosedTableError as error:  # it ended before
                found.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        begun.wait()
        snapshot.end(False)
        reader.join()
        (result,) = found
        if not isinstance(result, es.ClosedTableError):
            assert (result[1] == 3).all()


def test_the_order_is_that_of_files(make_table):
    table = build(make_table)
    fill(table, np.random.default_rng(5))
    reading = Reading(table)
    np.testing.assert_array_equal(
        reading.snapshot.counts(False), table._engine.partition_counts(False)
    )
    while not reading.is_done():
        reading.read(777)
    keys = reading.found()["rows"][0]
    order = np.lexsort((keys, partition_of(keys)))
    np.testing.assert_array_equal(order, np.arange(len(keys)))
    reading.snapshot.end(True)


@pytest.mark.parametrize("threads", [1, 2])
def test_beside_a_training_thread(threads, make_table, size):
    """Rows whose values and slots tell one number: a torn one would tell two."""
    table = build(make_table, dim=16, optimizer=es.Adagrad(lr=0.0), admission=None)
    keys = np.arange(size(20_000), dtype=np.int64) * 977
    es.set_num_threads(threads)
    stop = threading.Event()

    def train():
        k = 0
        while not stop.is_set():
            k += 1
            write_number(table, keys, k)

    write_number(table, keys, 0)
    trainer = threading.Thread(target=train)
    trainer.start()
    try:
        for _ in range(20):
            reading = Reading(table, log_bytes=4 << 20)
            while not reading.is_done():
                reading.read(size(320))
            _, values, slots, freq, _ = reading.found()["rows"]
            told = np.unique(np.concatenate([values.ravel(), slots.ravel(), freq]))
            assert len(told) == 1
            reading.snapshot.end(True)
    finally:
        stop.set()
        trainer.join()
        es.set_num_threads(len(os.sched_getaffinity(0)))
