"""save and save_async: whole and delta, beside training, their handles, failures and options."""

import errno
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref

import checkpoint_kit as kit
import numpy as np
import pytest
from contract.tools import write_number

import embstore as es
from embstore import checkpoint
from embstore.checkpoint import fsio


def make(track_changes=True, **more):
    return es.Table(
        **{
            "dim": 4,
            "name": "t",
            "optimizer": es.Adagrad(lr=0.1),
            "initializer": es.Normal(std=0.1),
            "track_changes": track_changes,
            **more,
        }
    )


def train(table, keys, step):
    keys = np.asarray(keys, np.int64)
    batch = table.find_or_insert(keys, step=step)
    table.apply_gradients(batch, np.ones((len(keys), table.dim), np.float32), step=step)


def content(table):
    """Everything that a save keeps, as bytes."""
    rows = table._engine.export_rows(0, 255)
    pending = table._engine.export_candidates(0, 255)
    parts = [rows.keys, rows.values, rows.slots, rows.freq, rows.step]
    parts += [pending.keys, pending.counts, pending.epochs, np.sort(table._pins)]
    parts += [table._engine.bloom_read(p) for p in range(256)]
    return [part.tobytes() for part in parts], table._engine.get_state()


def assert_loads_as(path, expected, **options):
    with es.Table.load(path, **options) as loaded:
        assert content(loaded) == expected


class Gate:
    """Holds a save up when it has written its first file, until it is opened."""

    def __init__(self, monkeypatch):
        self.reached, self.opened = threading.Event(), threading.Event()
        real = fsio.calls.fsync

        def fsync(fd):
            self.reached.set()
            assert self.opened.wait(30)
            return real(fd)

        monkeypatch.setattr(fsio.calls, "fsync", fsync)


# ---- beside training


def test_an_asynchronous_save_holds_the_moment_of_its_call(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    (tmp_path / "ck").mkdir()
    with make(admission=es.CounterAdmission(2)) as table:
        train(table, [1, 1, 2, 2, 3], step=1)
        expected = content(table)
        handle = table.save_async(tmp_path / "ck")
        assert gate.reached.wait(30)
        assert not handle.done()
        with pytest.raises(TimeoutError, match=r"goes on after 0\.0 s"):
            handle.wait(0.0)
        train(table, [1, 2, 3, 4, 4], step=2)
        table.erase([1])
        assert not handle.done()
        gate.opened.set()
        report = handle.wait()
        assert handle.done()
        assert handle.exception() is None
        assert "done" in repr(handle)
        assert (report.kind, report.n_rows) == ("full", 2)
        assert handle.progress.fraction == 1.0
        assert_loads_as(tmp_path / "ck", expected)
        assert not table.contains([1])[0]


@pytest.mark.parametrize("threads", [1, 2])
def test_saves_beside_training_are_each_of_one_moment(threads, tmp_path):
    """Values, slots, freq and step of every row tell one number; all rows the same."""
    es.set_num_threads(threads)
    keys = np.arange(3000, dtype=np.int64) * 977
    stop = threading.Event()

    def go_on():
        k = 1
        while not stop.is_set():
            k += 1
            write_number(table, keys, k)

    with make() as table:
        write_number(table, keys, 1)
        trainer = threading.Thread(target=go_on)
        trainer.start()
        try:
            seen = set()
            for i in range(6):
                if i % 2:
                    table.save(tmp_path, delta=True)
                else:
                    table.save_async(tmp_path, delta=i > 2, snapshot_bytes=10_000).wait()
                with es.Table.load(tmp_path) as loaded:
                    (rows,) = loaded.export()
                    parts = [rows.values.ravel(), rows.slots.ravel(), rows.freq, rows.step]
                    told = np.unique(np.concatenate(parts))
                    assert len(told) == 1
                    assert len(rows) == len(keys)
                    seen.add(int(told[0]))
            assert len(seen) > 1
        finally:
            stop.set()
            trainer.join()
            es.set_num_threads(len(os.sched_getaffinity(0)))


def test_a_store_is_cut_as_a_whole(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    tables = [make(name=name) for name in ("a", "b")]
    with es.Store(tables) as store:
        for table in tables:
            train(table, [1, 2], step=1)
        expected = [content(table) for table in tables]
        handle = store.save_async(tmp_path, {"epoch": 3})
        for table in tables:
            train(table, [2, 3], step=2)
        gate.opened.set()
        handle.wait()
        with es.Store.load(tmp_path) as loaded:
            assert [content(loaded[name]) for name in "ab"] == expected
            assert loaded.extra == {"epoch": 3}
        assert store.save(tmp_path, delta=True).kind == "delta"


def test_a_second_save_waits_for_the_first(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    with make() as table:
        train(table, [1], step=1)
        first = table.save_async(tmp_path)
        assert gate.reached.wait(30)
        reports = []
        second = threading.Thread(target=lambda: reports.append(table.save(tmp_path, delta=True)))
        second.start()
        time.sleep(0.05)
        assert not reports
        gate.opened.set()
        second.join()
        assert (first.wait().generation, reports[0].generation) == (1, 2)
        assert reports[0].kind == "delta"


def test_a_closed_table_is_saved_to_the_end(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    table = make()
    train(table, [1, 2], step=1)
    expected = content(table)
    handle = table.save_async(tmp_path)
    table.close()
    gate.opened.set()
    handle.wait()
    assert_loads_as(tmp_path, expected)


def test_extra_is_as_of_the_call(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    with make() as table:
        dense = {"w": np.zeros(5, np.float32), "layers": [1, 2]}
        handle = table.save_async(tmp_path, dense)
        dense["w"][:] = 7
        dense["layers"].append(3)
        gate.opened.set()
        handle.wait()
    loaded = es.Store.load(tmp_path).extra
    assert loaded["w"].tolist() == [0] * 5
    assert loaded["layers"] == [1, 2]


def test_a_child_that_was_forked_meanwhile_does_not_hold_the_directory(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    with make() as table:
        train(table, range(50), step=1)
        handle = table.save_async(tmp_path)
        assert gate.reached.wait(30)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)  # until the parent closes its end
            os._exit(0)
        os.close(reading)
        try:
            gate.opened.set()
            handle.wait()
            assert table.save(tmp_path).n_rows == 50
        finally:
            os.close(writing)
            os.waitpid(child, 0)


def test_tables_know_of_a_save_whose_warning_is_an_error(tmp_path):
    with make(on_nonfinite="allow") as table, warnings.catch_warnings():
        table.assign([1, 2], np.full((2, 4), np.nan, np.float32))
        warnings.simplefilter("error")
        with pytest.raises(es.EmbstoreWarning, match="NaN"):
            table.save(tmp_path, delta=True)
        table.assign([3], np.ones((1, 4), np.float32))
        assert table.save(tmp_path, delta=True)[:2] == ("delta", "")


LAST_SAVES = {
    "at exit": """
        atexit.register(lambda: print(table.save(path).n_rows))
    """,
    "when the main thread has ended": """
        def late():
            threading.main_thread().join()
            print(table.save_async(path).wait().n_rows)
        threading.Thread(target=late).start()
    """,
    "and it is loaded": """
        table.save_async(path, on_done=lambda handle: print(len(es.Table.load(path))))
    """,
}


@pytest.mark.parametrize("how", LAST_SAVES)
def test_the_last_save_of_a_process(how, tmp_path):
    program = f"""
        import atexit, sys, threading, numpy as np, embstore as es
        path = sys.argv[1]
        table = es.Table(dim=2)
        table.find_or_insert(np.arange(1000), step=0)
    {LAST_SAVES[how]}"""
    command = [sys.executable, "-c", textwrap.dedent(program), os.fspath(tmp_path)]
    found = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (found.stdout, found.stderr) == ("1000\n", "")


# ---- deltas


def test_deltas_add_up_to_what_a_full_save_holds(tmp_path):
    rng = np.random.default_rng(0)
    with make(admission=es.CounterAdmission(2), eviction=es.StepEviction(6)) as table:
        kinds = []
        for step in range(12):
            train(table, rng.integers(0, 60, 40), step)
            if step % 3 == 1:
                table.erase(rng.integers(0, 60, 5))
            if step % 4 == 2:
                table.evict(step=step)
            kinds.append(table.save(tmp_path / "chain", delta=True, max_deltas=4).kind)
            assert_loads_as(tmp_path / "chain", content(table))
        assert kinds.count("full") < 6
        assert kinds[0] == "full"
        table.save(tmp_path / "full")
        checkpoint.compact(tmp_path / "chain")
        whole, compacted = (
            [(f["kind"], f["rows"], f["partitions"]) for f in kit.read_manifest(p)["files"]]
            for p in (tmp_path / "full", tmp_path / "chain")
        )
        assert whole == compacted
        assert_loads_as(tmp_path / "chain", content(table))


def test_a_delta_holds_what_changed_alone(tmp_path):
    with make() as table:
        train(table, range(1000), step=1)
        full = table.save(tmp_path, delta=True)
        train(table, [3, 2000], step=2)
        table.erase([4])
        delta = table.save(tmp_path, delta=True)
        nothing = table.save(tmp_path, delta=True)
        assert (full.kind, full.n_rows, full.reason) == (
            "full",
            1000,
            "the directory has no checkpoint",
        )
        assert (delta.kind, delta.n_rows, delta.n_deleted) == ("delta", 2, 1)
        assert delta.n_bytes < full.n_bytes / 5
        assert (nothing.kind, nothing.n_rows, nothing.n_deltas) == ("delta", 0, 2)
        assert_loads_as(tmp_path, content(table))


def test_deltas_go_on_after_a_load(tmp_path):
    with make() as table:
        train(table, range(100), step=1)
        table.save(tmp_path)
    with es.Table.load(tmp_path) as table:
        train(table, [5], step=2)
        report = table.save(tmp_path, delta=True)
        assert (report.kind, report.n_rows) == ("delta", 1)
        assert_loads_as(tmp_path, content(table))
    with es.Table.load(tmp_path, dtype="bfloat16") as other:  # is not what lies there
        assert other.save(tmp_path, delta=True).kind == "full"


@pytest.mark.parametrize(
    "between",
    [
        lambda t, d: t.reset_changes(),
        lambda t, d: t.save(d / "elsewhere"),
        lambda t, d: make().save(d / "ck"),
        lambda t, d: checkpoint.compact(d / "ck"),
    ],
    ids=["log begun anew", "saved elsewhere", "replaced by another", "compacted"],
)
def test_what_is_no_base_is_not_built_on(between, tmp_path):
    with make() as table:
        train(table, range(10), step=1)
        table.save(tmp_path / "ck")
        train(table, range(5), step=2)
        table.save(tmp_path / "ck", delta=True)
        train(table, range(3), step=3)
        between(table, tmp_path)
        report = table.save(tmp_path / "ck", delta=True)
        assert (report.kind, report.n_rows) == ("full", 10)
        assert report.reason == "the directory's checkpoint is not the base"
        assert_loads_as(tmp_path / "ck", content(table))


def test_a_log_begun_anew_while_a_save_runs_is_no_base(tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    with make() as table:
        train(table, range(10), step=1)
        handle = table.save_async(tmp_path)
        train(table, [1], step=2)
        table.reset_changes()
        gate.opened.set()
        handle.wait()
        assert table.save(tmp_path, delta=True).kind == "full"


def test_a_save_that_fails_leaves_the_change_log_as_it_was(tmp_path, monkeypatch):
    with make() as table:
        train(table, range(10), step=1)
        table.save(tmp_path)
        train(table, [1, 2], step=2)
        table.erase([3])
        with monkeypatch.context() as patch:
            patch.setattr(fsio.calls, "fsync", fail(errno.EIO))
            with pytest.raises(es.CheckpointError, match="Input/output error"):
                table.save(tmp_path, delta=True)
        train(table, [4], step=3)
        report = table.save(tmp_path, delta=True)
        assert (report.kind, report.n_rows, report.n_deleted) == ("delta", 3, 1)
        assert_loads_as(tmp_path, content(table))


def test_older_saves_are_kept_and_loaded(tmp_path):
    with make() as table:
        contents = {}
        for step in range(1, 6):
            train(table, range(step * 3), step)
            contents[table.save(tmp_path, delta=True, keep_last=3).generation] = content(table)
        assert checkpoint.generations(tmp_path) == [3, 4, 5]
        for generation in (3, 4, 5):
            assert_loads_as(tmp_path, contents[generation], generation=generation)
        with pytest.raises(es.CheckpointError, match=r"no generation 2; there are \[3, 4, 5\]"):
            es.Table.load(tmp_path, generation=2)
        with es.Table.load(tmp_path, generation=4) as older:  # builds on nothing newer
            assert older.save(tmp_path, delta=True).kind == "full"


# ---- failures and options


def fail(number):
    def call(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return call


def test_an_error_is_delivered_once_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(fsio.calls, "write", fail(errno.ENOSPC))
    with make() as table:
        train(table, [1], step=1)
        told = []
        handle = table.save_async(tmp_path, on_done=told.append)
        assert isinstance(handle.exception(), es.CheckpointError)
        with pytest.raises(es.CheckpointError, match="No space left") as raised:
            handle.wait()
        assert raised.value.errno == errno.ENOSPC
        handle._thread.join()
        assert told == [handle]
        assert "failed" in repr(handle)


def test_an_error_that_nobody_asks_for_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(fsio.calls, "write", fail(errno.ENOSPC))
    with make() as table:
        handle = table.save_async(tmp_path)
        handle._thread.join()
        del handle
        with pytest.warns(es.EmbstoreWarning, match="failed and nobody asked: .*No space left"):
            gc.collect()  # the error's traceback holds the handle


def test_a_save_that_cannot_begin_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with make() as table, pytest.raises(es.CheckpointError, match="file"):
        table.save_async(tmp_path / "file").wait()


def test_a_cancelled_save_replaces_nothing(tmp_path, monkeypatch):
    with make() as table:
        train(table, range(50), step=1)
        table.save(tmp_path)
        before, names = content(table), kit.files_of(tmp_path)
        train(table, range(100), step=2)
        with monkeypatch.context() as patch:
            gate = Gate(patch)
            patch.setattr(fsio.calls, "open", gated(fsio.calls.open, gate))
            handle = table.save_async(tmp_path)
            handle.cancel()
            gate.opened.set()
            with pytest.raises(es.CancelledError, match="nothing was replaced"):
                handle.wait()
        assert kit.files_of(tmp_path) == names
        assert_loads_as(tmp_path, before)
        assert table.save(tmp_path, delta=True).kind == "delta"
        assert_loads_as(tmp_path, content(table))


def test_a_save_is_cancelled_while_it_rests(tmp_path):
    with make() as table:
        train(table, range(50), step=1)
        handle = table.save_async(tmp_path, io_share=1e-300)  # after its first block, for ever
        while handle.progress.n_bytes == 0:
            time.sleep(0.001)
        handle.cancel()
        assert isinstance(handle.exception(60.0), es.CancelledError)


def test_a_cancelled_save_is_no_failure_that_nobody_asked_for(tmp_path, recwarn):
    with make() as table:
        train(table, range(50), step=1)
        handle = table.save_async(tmp_path, io_share=1e-300)
        handle.cancel()
        handle._thread.join()
        del handle
        gc.collect()
    assert [str(w.message) for w in recwarn] == []


def test_a_handle_does_not_keep_what_was_saved(tmp_path):
    table, extra = make(), np.ones(3)
    handle = table.save_async(tmp_path, {"w": extra})
    handle.wait()
    gone = [weakref.ref(table), weakref.ref(extra)]
    del table, extra
    gc.collect()
    assert [each() for each in gone] == [None, None]


def gated(call, gate):
    """Wait at the gate before a data file is made."""

    def wait_and_call(name, flags, *args, **kwargs):
        if str(name).endswith(".arrow"):
            assert gate.opened.wait(30)
        return call(name, flags, *args, **kwargs)

    return wait_and_call


def test_the_share_of_the_time_is_kept_to(tmp_path, monkeypatch):
    rests = []
    wait = threading.Event.wait

    def wait_or_count(event, timeout=None):
        return wait(event) if timeout is None else rests.append(timeout)

    monkeypatch.setattr(threading.Event, "wait", wait_or_count)
    ticks = iter(range(10**6))
    monkeypatch.setattr("embstore.table.save.time.perf_counter", lambda: float(next(ticks)))
    with make(dim=256) as table:
        table.assign(np.arange(5000), np.ones((5000, 256), np.float32))
        table.save(tmp_path, io_share=0.25)
        assert len(rests) > 5
        assert set(rests) == {3.0}  # a second of work, three of rest
        rests.clear()
        table.save(tmp_path)
        assert rests == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"io_share": 0}, r"io_share must be in \(0, 1\], got 0"),
        ({"io_share": 1.5}, r"io_share must be in \(0, 1\], got 1.5"),
        ({"keep_last": 0}, "keep_last must be an integer from 1"),
        ({"max_deltas": -1}, "max_deltas must be an integer from 0"),
        ({"snapshot_bytes": -1}, "snapshot_bytes must be"),
        ({"delta": 1}, "delta must be True or False, got 1"),
        ({"detla": True}, r"unknown arguments \['detla'\]"),
    ],
)
def test_options_are_checked_before_anything_is_done(options, message, tmp_path):
    with make() as table:
        for save in (table.save, table.save_async):
            with pytest.raises((ValueError, TypeError), match=message) as raised:
                save(tmp_path / "ck", **options)
            assert isinstance(raised.value, es.EmbstoreError)
    assert os.listdir(tmp_path) == []


def test_a_delta_needs_a_change_log(tmp_path):
    with make(track_changes=False) as table:
        with pytest.raises(es.ArgumentError, match=r"made with track_changes=True; .* \['t'\]"):
            table.save(tmp_path / "ck", delta=True)
        with es.Store([table]) as store, pytest.raises(es.ArgumentError, match="track_changes"):
            store.save_async(tmp_path / "ck", delta=True)
    assert os.listdir(tmp_path) == []


def test_nothing_of_a_save_stays_open(tmp_path):
    with make() as table:
        train(table, range(100), step=1)
        table.save(tmp_path)
        n_files = kit.n_open_files()
        for step in range(5):
            table.save_async(tmp_path, delta=step % 2 == 0, snapshot_bytes=0).wait()
        assert kit.n_open_files() == n_files
        assert {n for n in os.listdir(tmp_path) if not n.endswith(".arrow")} == {
            "lock",
            "manifest.json",
        }
