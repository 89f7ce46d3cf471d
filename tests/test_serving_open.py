"""Checkpoints opened for serving: the bits of Table.find, from the first moment to the close."""

import os
import shutil
import signal
import threading
import time

import checkpoint_kit as kit
import numpy as np
import pytest
from serving_kit import (
    EXTREMES,
    asked_of,
    check_equal,
    error_of,
    filled,
    flip,
    index_threads,
    n_maps,
    same,
    searched,
    together,
)

import embstore as es
from embstore import checkpoint, serving
from embstore.checkpoint import fsio, mapped

pytestmark = pytest.mark.usefixtures("quick_disk")


PARAMETERS = [
    {},
    {"dtype": "float16", "dim": 1, "optimizer": None},
    {"dtype": "bfloat16", "dim": 5, "default_row": 0.3, "rounding": "stochastic"},
    {"admission": es.CounterAdmission(2), "default_row": [1.0, -2.0, 0.5], "seed": 9},
    {"admission": es.BloomAdmission(2, 1000), "optimizer": es.Adam(lr=0.1), "dtype": "float16"},
    {"eviction": es.StepEviction(1), "evict_every": 2, "max_rows": 1000, "name": "üser"},
]


@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
@pytest.mark.parametrize("block_bytes", [400, 2000, 1 << 20])
def test_rows_are_those_of_the_table(tmp_path, monkeypatch, parameters, block_bytes):
    monkeypatch.setattr("embstore.checkpoint.writer.BLOCK_BYTES", block_bytes)
    monkeypatch.setattr("embstore.checkpoint.writer.FILE_BYTES", 10 * block_bytes)
    with filled(**parameters) as table:
        table.save(tmp_path)
        keys = asked_of(table)
        with serving.open(tmp_path) as served, searched(tmp_path, verify="full") as other:
            check_equal(other, table, keys)
            assert not other.is_indexed
            assert not other.wait_indexed()
            assert served.wait_indexed(60)
            check_equal(served, table, keys)
            for one in (served, other):
                assert len(one) == len(table)
                own = (one.name, one.dim, one.dtype, one.step, one.generation)
                assert own == (table.name, table.dim, table.dtype, table.step, 1)
                one.find([])
            assert served.stats()["n_keys_search"] == other.stats()["n_keys_index"] == 0
            assert served.stats()["n_keys_index"] == other.stats()["n_keys_search"]
            assert served.stats()["nbytes_index"] > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_newest_layer_of_a_chain_decides(tmp_path, small_blocks, dtype):
    with filled(1500, track_changes=True, dtype=dtype) as table:
        table.save(tmp_path)
        rng = np.random.default_rng(3)
        every = asked_of(table)
        for step in range(4, 8):
            (rows,) = table.export(batch_rows=10**6)
            gone = rng.choice(rows.keys, 40, replace=False)
            table.erase(gone)
            table.find_or_insert(rng.integers(0, 2**62, 20), step=step)
            table.find_or_insert(gone[:10], step=step)  # removed, and born anew
            hit = rng.choice(rows.keys, 60)
            table.apply_gradients(hit, np.ones((60, 3), np.float32), step=step)
            assert table.save(tmp_path, delta=True).kind == "delta"
            every = np.concatenate([every, asked_of(table, step)])
        table.erase(rng.choice(every, 30))
        assert table.save(tmp_path, delta=True).n_rows == 0  # removed keys alone
        with serving.open(tmp_path) as served, searched(tmp_path) as other:
            check_equal(other, table, every)
            assert served.wait_indexed(60)
            check_equal(served, table, every)
            assert len(served) == len(table)
        searched(tmp_path, verify="full").close()


@pytest.mark.parametrize("seed", range(6))
def test_random_chains_give_the_rows_that_merging_gives(tmp_path, monkeypatch, seed):
    rng = np.random.default_rng(seed)
    monkeypatch.setattr("embstore.checkpoint.writer.BLOCK_BYTES", int(rng.integers(200, 2000)))
    monkeypatch.setattr("embstore.checkpoint.writer.FILE_BYTES", int(rng.integers(2000, 20000)))
    dtype, slots = [("float32", ()), ("float16", (("a", 3),)), ("bfloat16", (("a", 1),))][seed % 3]
    n_rows = 800 if seed else 1
    table = kit.memory_table(n_rows, 3, 1 + seed, dtype, slots, seed=seed)
    base = checkpoint.save_tables(tmp_path, {"t": table}).digest
    keys = [table.rows.keys, np.array(EXTREMES), rng.integers(-(2**62), 2**62, 50)]
    for _ in range(seed):
        table, changes = kit.changed_table(table, int(rng.integers(1, 50)), 20, rng)
        keys += [changes.rows.keys, changes.deleted]
        base = kit.save_delta(tmp_path, {"t": changes}, base, max_deltas=9).digest
    asked = rng.permutation(np.concatenate(keys))
    found = checkpoint.map_tables(tmp_path).tables["t"].find(asked, with_meta=True)
    assert set(asked[found.keys].tolist()) == set(table.rows.keys.tolist())
    assert len(np.unique(found.keys)) == np.isin(asked, table.rows.keys).sum()
    own = [table.rows.keys.tolist().index(key) for key in asked[found.keys].tolist()]
    for name in ("values", "freq", "step"):
        same(getattr(found, name), getattr(table.rows, name)[own])


def test_an_empty_table_answers(tmp_path):
    with es.Table(dim=2, name="none", default_row=2.0) as table:
        table.save(tmp_path)
        with serving.open(tmp_path) as served, searched(tmp_path, verify="full") as other:
            check_equal(other, table, np.array(EXTREMES))
            assert served.wait_indexed(60)
            check_equal(served, table, np.array(EXTREMES))
            assert len(served) == other.stats()["n_blocks"] == 0


def test_keys_are_taken_as_by_a_table(tmp_path):
    with filled(50) as table:
        table.save(tmp_path)
        with searched(tmp_path) as served:
            keys = asked_of(table)
            for given in (
                keys.view(np.uint64),
                np.repeat(keys, 3)[::3],
                keys[::-1],
                keys.astype(">i8"),
                keys.tolist(),
                tuple(keys[:5].tolist()),
                np.array(EXTREMES[:3], np.int32),
                np.array([0, 2**32 - 1], np.uint32),
            ):
                same(served.find(given), table.find(given))
                same(served.contains(given), table.contains(given))


@pytest.mark.parametrize("index", ["none", "background"])
def test_errors_are_those_of_a_table(tmp_path, index):
    with filled(50, dtype="bfloat16") as table:
        table.save(tmp_path)
        with serving.open(tmp_path, index=index) as served:
            assert served.wait_indexed(60) == (index == "background")
            shape = (2, 3)
            wrong = [
                ([1.5], {}),
                ([2**63], {}),
                (np.zeros(2), {}),
                (np.zeros((2, 2), np.int64), {}),
                ("ab", {}),
                ([1], {"missing": "none"}),
                ([1], {"missing": None}),
                ([1, 2], {"out": np.zeros(shape)}),
                ([1, 2], {"out": np.zeros((3, 3), np.float32)}),
                ([1, 2], {"out": np.zeros(shape, np.float32), "raw": True}),
                ([0, 77, -1, 78], {"missing": "raise"}),
                ([0, 77], {"missing": "raise", "with_meta": True}),
            ]
            for keys, options in wrong:
                mine = error_of(lambda keys=keys, o=options: served.find(keys, **o))
                assert mine == error_of(lambda keys=keys, o=options: table.find(keys, **o))
            assert error_of(lambda: served.contains([1.5])) == error_of(
                lambda: table.contains([1.5])
            )
        for call in (served.find, served.contains):
            with pytest.raises(es.ClosedTableError):
                call([1])
        with pytest.raises(es.ClosedTableError):
            served.stats()
        assert "closed" in repr(served)
        served.close()


def test_close_ends_the_index(tmp_path, monkeypatch):
    with filled(100) as table:
        table.save(tmp_path)
        rows_of = mapped.MappedTable.rows
        n_rounds = []

        def endless(self, first=0, last=255):
            while True:
                n_rounds.append(1)
                yield from rows_of(self, first, last)

        monkeypatch.setattr(mapped.MappedTable, "rows", endless)
        served = serving.open(tmp_path)
        while len(n_rounds) < 3:
            time.sleep(0.001)
        assert not served.wait_indexed(0.01)
        same(served.find([0]), table.find([0]))
        assert len(index_threads()) == 1
        served.close()
        assert index_threads() == []
        assert served.index_error is None
        assert not served.is_indexed
        served = serving.open(tmp_path)
        del served  # who forgets to close
        assert index_threads() == []


def test_close_beside_finds(tmp_path):
    with filled(600) as table:
        table.save(tmp_path)
        keys = asked_of(table)
        expected = table.find(keys)
        for index in ("none", "background"):
            served, are_finding = serving.open(tmp_path, index=index), threading.Semaphore(0)

            def find_until_closed(i, served=served, are_finding=are_finding):
                if i == 0:
                    for _ in range(6):
                        are_finding.acquire()
                    return served.close()
                while True:
                    same(served.find(keys), expected)
                    are_finding.release()

            given = together(4, find_until_closed)
            assert [type(each) for each in given] == [type(None), *[es.ClosedTableError] * 3]
        assert n_maps(tmp_path) == 0


def test_a_table_is_made_from_a_source(tmp_path):
    with filled(200) as table:
        table.pin([0])
        table.save(tmp_path)
        with checkpoint.OpenShards(tmp_path) as opened:
            with es.Table.from_source(opened.tables["table"]) as again:
                check_equal(again, table, asked_of(table))
                assert (again.pinned.tolist(), again.config()) == ([0], table.config())

            def fail():
                raise es.CancelledError("enough")

            source = checkpoint.ReadOnlySource(
                checkpoint.map_tables(tmp_path).tables["table"], fail
            )
            with pytest.raises(es.CancelledError, match="enough"):
                es.Table.from_source(source)


def test_a_later_save_changes_nothing_that_is_open(tmp_path, small_blocks):
    with filled(600, seed=1) as table, filled(600, seed=2) as later:
        table.save(tmp_path)
        keys = np.concatenate([asked_of(table), asked_of(later)])
        with searched(tmp_path) as served:
            served.find(keys[:1])
            names = {file["name"] for file in kit.read_manifest(tmp_path)["files"]}
            later.save(tmp_path)
            assert not names & {path.name for path in tmp_path.iterdir()}
            same(served.find(keys), table.find(keys))
            with serving.open(tmp_path) as fresh:
                assert fresh.wait_indexed(60)
                same(fresh.find(keys), later.find(keys))
                assert (served.generation, fresh.generation) == (1, 2)
            shutil.rmtree(tmp_path)
            same(served.find(keys), table.find(keys))


def test_an_older_generation_is_opened(tmp_path):
    with filled(50, seed=1) as table, filled(50, seed=2) as later:
        table.save(tmp_path)
        later.save(tmp_path, keep_last=2)
        keys = asked_of(table)
        with searched(tmp_path, generation=1) as served:
            same(served.find(keys), table.find(keys))
        with pytest.raises(es.CheckpointError, match="no generation 3"):
            searched(tmp_path, generation=3)


def test_nothing_is_written(tmp_path):
    with filled(50) as table:
        table.save(tmp_path)
        (tmp_path / fsio.LOCK_NAME).unlink()
        os.utime(tmp_path, ns=(1, 1))
        keys = asked_of(table)
        with serving.open(tmp_path, verify="full") as served:
            same(served.find(keys), table.find(keys))
            assert served.wait_indexed(60)
        assert os.stat(tmp_path).st_mtime_ns == 1
        assert not (tmp_path / fsio.LOCK_NAME).exists()


def test_a_read_only_directory_is_enough(tmp_path):
    with filled(50) as table:
        table.save(tmp_path)
        os.chmod(tmp_path, 0o500)
        try:
            if os.access(tmp_path, os.W_OK):
                pytest.skip("permissions do not bind this user")
            with serving.open(tmp_path) as served:
                same(served.find(EXTREMES), table.find(EXTREMES))
                assert served.wait_indexed(60)
        finally:
            os.chmod(tmp_path, 0o700)


def test_files_and_memory_are_given_back(tmp_path, small_blocks):
    with filled(600) as table:
        table.save(tmp_path)
        keys = asked_of(table)
        n_open = kit.n_open_files()
        served = searched(tmp_path)
        rows = served.find(keys)
        assert n_maps(tmp_path) > 3
        assert kit.n_open_files() == n_open  # however many files there are
        served.close()
        assert n_maps(tmp_path) == 0
        same(rows, table.find(keys))
        for _ in range(3):
            with serving.open(tmp_path) as served:
                served.find(keys)
                served.wait_indexed(60)
            served = serving.open(tmp_path)
            del served
        flip(tmp_path, kit.first_file(tmp_path).name, 10)
        with pytest.raises(es.CorruptCheckpointError):
            serving.open(tmp_path, verify="full")
        assert (kit.n_open_files(), n_maps(tmp_path)) == (n_open, 0)


def test_a_forked_child_reads(tmp_path):
    with filled(50) as table:
        table.save(tmp_path)
        with searched(tmp_path) as served:
            (blocks,) = served._mapped._rows
            with blocks._lock:
                child = os.fork()
                if child == 0:
                    signal.alarm(60)  # if it waits for the lock
                    is_same = np.array_equal(served.find([0, -1]), table.find([0, -1]))
                    os._exit(0 if is_same else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_arguments_are_checked(tmp_path):
    with filled(5, name="a") as a, filled(5, name="b") as b, es.Store([a, b]) as store:
        store.save(tmp_path)
        with pytest.raises(es.ArgumentError, match=r"name is needed.*\['a', 'b'\]"):
            serving.open(tmp_path)
        with pytest.raises(es.CheckpointMismatchError, match=r"no table 'c'; it has \['a', 'b'\]"):
            serving.open(tmp_path, name="c")
        for option in ("verify", "index"):
            with pytest.raises(es.ArgumentError, match=f"{option} must be one of .* got 'no'"):
                serving.open(tmp_path, name="a", **{option: "no"})
        for open_one in (serving.open, serving.open_store):
            name = {"name": "a"} if open_one is serving.open else {}
            with pytest.raises(es.ArgumentError, match=r"device must be .* got 'tpu'"):
                open_one(tmp_path, **name, device="tpu")
            with pytest.raises(es.ArgumentError, match="hbm_bytes=7 is for"):
                open_one(tmp_path, **name, hbm_bytes=7)
        if not es.cuda_status().is_available:
            with pytest.raises(es.DeviceError):
                serving.open(tmp_path, name="a", device="cuda")
        with searched(tmp_path, name="b") as served:
            same(served.find(EXTREMES), b.find(EXTREMES))


@pytest.mark.parametrize("index", ["none", "background"])
def test_a_store_is_read_by_feature(tmp_path, small_blocks, index):
    tables = [filled(300, name="user"), filled(200, seed=4, name="item", dtype="bfloat16", dim=2)]
    with es.Store(tables, {"u": "user", "shown": "item", "bought": "item"}) as store:
        store.save(tmp_path, extra={"epoch": 1})
        keys = {"bought": asked_of(tables[1]), "u": asked_of(tables[0]).tolist(), "shown": []}
        with serving.open_store(tmp_path, index=index) as served:
            assert served.wait_indexed(60) == served.is_indexed == (index == "background")
            for missing in ("default", "initial"):
                mine, theirs = (s.find_many(keys, missing) for s in (served, store))
                assert list(mine) == list(theirs)
                for feature in mine:
                    same(mine[feature], theirs[feature])
            for wrong, missing in (
                ({"x": [1]}, "default"),
                ({"u": [1.5]}, "default"),
                ([1], "default"),
                ({"u": [1]}, "no"),
            ):
                mine = error_of(lambda w=wrong, m=missing: served.find_many(w, m))
                assert mine == error_of(lambda w=wrong, m=missing: store.find_many(w, m))
            with pytest.raises(es.MissingKeyError, match="77"):
                served.find_many({"u": [0, 77]}, "raise")
            assert served.find_many({}) == {}
            assert (served.names, served.step, len(served)) == (("user", "item"), store.step, 2)
            assert served.features == store.features
            assert [*served] == [*served.stats()] == ["user", "item"]
            same(served["item"].find([0]), store["item"].find([0]))
            with pytest.raises(es.ArgumentError, match="no table 'x'"):
                served["x"]
        assert index_threads() == []
        with serving.open_store(tmp_path, tables=["item"], index=index) as served:
            assert served.features == {"shown": "item", "bought": "item"}


def test_features_of_no_table_are_refused(tmp_path):
    with filled(5) as table:
        table.save(tmp_path)
    kit.forge_manifest(tmp_path, lambda document: document.update(store={"features": {"u": "x"}}))
    with pytest.raises(es.CheckpointMismatchError, match="'u' is of table 'x'"):
        serving.open_store(tmp_path)
    assert index_threads() == []
