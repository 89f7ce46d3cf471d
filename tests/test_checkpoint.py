"""Checkpoints of sound disks: what goes in comes out, in one commit, as the same bytes."""

import json
import os
import subprocess
import sys
import threading
import tracemalloc
from dataclasses import replace
from pathlib import Path

import checkpoint_kit as kit
import independent_reader
import numpy as np
import pyarrow as pa
import pytest
from golden import make_checkpoint
from hypothesis import given
from hypothesis import strategies as st

import embstore as es
from embstore import checkpoint
from embstore.checkpoint import fsio, layout, partition, writer
from embstore.engines.types import Candidates, Rows

pytestmark = pytest.mark.usefixtures("quick_disk")


LIMITS = np.array([0, 1, -1, -2, -(2**63), 2**63 - 1, 2**32, 42])


def train(table, first, last, n=300):
    """Train steps [first, last); what is done in a step depends on the step alone."""
    for step in range(first, last):
        rng = np.random.default_rng(step)
        keys = rng.zipf(1.2, n).astype(np.int64) % 3000 * 2**40 - 2**50
        keys[: len(LIMITS)] = LIMITS
        batch = table.find_or_insert(keys, step=step)
        grads = rng.normal(size=(n, table.dim)).astype(np.float32)
        if table.optimizer is not None:
            table.apply_gradients(batch, grads, step=step)


def exported(table):
    """Return everything that a user can see of a table."""
    rows = list(table.export(pending=True))
    stats = table.stats()
    # Bytes held depend on the way there; the next-times and totals do not.
    for name in [*(n for n in stats if n.startswith("nbytes")), "n_cells", "n_tombstones"]:
        del stats[name]
    del stats["load_factor"]
    return {
        "rows": kit.joined(rows, kit.ROW_NAMES) if rows else [],
        "stats": stats,
        "pins": table.pinned.tolist(),
        "config": table.config(),
    }


TABLES = {
    "plain": {},
    "adam": {"optimizer": es.Adam(0.01), "admission": es.CounterAdmission(2, candidate_ttl=8)},
    "adamw": {"optimizer": es.AdamW(0.01), "dtype": "float16", "rounding": "stochastic"},
    "rowwise": {"optimizer": es.RowWiseAdagrad(0.1), "dtype": "bfloat16"},
    "ftrl": {"optimizer": es.FTRL(0.1, l1=0.01), "admission": es.BloomAdmission(2, 5000)},
    "momentum": {
        "optimizer": es.SGD(0.1, momentum=0.9),
        "admission": es.BloomAdmission(5, 5000, halve_every=7),
        "eviction": es.StepEviction(9) | es.FrequencyEviction(2, min_age=4, halve_every=6),
        "evict_every": 3,
    },
    "full": {
        "optimizer": es.Adagrad(0.1),
        "max_rows": 400,
        "eviction": es.CapacityEviction(by="freq"),
        "initializer": es.TruncatedNormal(std=0.1),
        "default_row": (1.0, 2.0, 3.0),
        "track_changes": True,
        "seed": 2**64 - 1,
        "name": "ż/../\0\n",
    },
}


@pytest.mark.parametrize("parameters", TABLES.values(), ids=TABLES)
def test_a_table_comes_back_whole_and_trains_on_as_if_never_stopped(parameters, tmp_path):
    with es.Table(3, **parameters) as table:
        train(table, 0, 20)
        table.pin([42, 43])
        table.save(tmp_path / "a")
        with es.Table.load(tmp_path / "a") as loaded:
            assert exported(loaded) == exported(table)
            loaded.save(tmp_path / "b")
            assert kit.files_of(tmp_path / "a") == kit.files_of(tmp_path / "b")
            train(table, 20, 40)
            train(loaded, 20, 40)
            assert exported(loaded) == exported(table)
            probe = np.arange(-5, 5)
            for missing in ("default", "initial"):
                np.testing.assert_array_equal(
                    table.find(probe, missing=missing), loaded.find(probe, missing=missing)
                )


RESUME = """
import sys
from golden import make_checkpoint
import embstore as es
store = es.Store.load(sys.argv[1])
make_checkpoint.train(store, 9, 30)
store.save(sys.argv[2], extra=store.extra)
"""


def test_a_new_process_resumes_to_the_bit(tmp_path):
    store = make_checkpoint.make_store()
    make_checkpoint.train(store, 0, 9)
    store.save(tmp_path / "stopped", extra=make_checkpoint.EXTRA)
    make_checkpoint.train(store, 9, 30)
    store.save(tmp_path / "never", extra=make_checkpoint.EXTRA)
    command = [sys.executable, "-c", RESUME, tmp_path / "stopped", tmp_path / "resumed"]
    subprocess.run(command, check=True, env=kit.environment())
    assert kit.files_of(tmp_path / "resumed") == kit.files_of(tmp_path / "never")


def test_bytes_depend_neither_on_hash_seed_nor_on_threads(tmp_path):
    n_threads = es.num_threads()
    try:
        for i, (hash_seed, threads) in enumerate([(0, 1), (2**128 - 1, 2), (None, 2)]):
            es.set_num_threads(threads)
            with make_checkpoint.make_store(hash_seed) as store:
                make_checkpoint.train(store, 0, 12)
                store.save(tmp_path / str(i))
    finally:
        es.set_num_threads(n_threads)
    first, *others = (kit.files_of(tmp_path / str(i)) for i in range(3))
    assert all(other == first for other in others)


def test_saving_and_loading_begin_a_new_change_log(tmp_path):
    with es.Table(2, track_changes=True) as table:
        table.find_or_insert([1, 2], step=0)
        assert table.changes().upserted.tolist() != []
        table.save(tmp_path)
        assert table.changes().upserted.tolist() == []
    with es.Table.load(tmp_path) as loaded:
        changes = loaded.changes()
        assert (len(changes.upserted), len(changes.deleted)) == (0, 0)


def test_a_schedule_is_not_saved_and_is_asked_for(tmp_path):
    def schedule(step):
        return 0.5 / (1 + step)

    with es.Table(2, optimizer=es.SGD(lr=schedule)) as table:
        table.find_or_insert([1], step=0)
        table.save(tmp_path)
    with es.Table.load(tmp_path) as loaded:
        assert loaded.lr is None
    with es.Table.load(tmp_path, optimizer=es.SGD(lr=schedule)) as loaded:
        assert loaded.lr is schedule
    with pytest.raises(es.CheckpointMismatchError, match="optimizer"):
        es.Table.load(tmp_path, optimizer=es.Adagrad())


# ---- what the room itself promises, on tables in memory


@pytest.mark.promise("R2", "all kinds of tables, saved and loaded")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("n", "n_pending", "slots", "bloom_blocks"),
    [(0, 0, (), 0), (1, 0, (("a", 1), ("b", 3)), 2), (700, 300, None, 1), (0, 9, (), 1)],
)
def test_content_is_the_same_after_save_and_load(
    dtype, n, n_pending, slots, bloom_blocks, tmp_path
):
    tables = {
        name: kit.memory_table(n, n_pending, 3, dtype, slots, bloom_blocks, seed)
        for seed, name in enumerate(["a", "", "ż"])
    }
    checkpoint.save_tables(tmp_path, tables)
    assert kit.content_of(tmp_path) == {n: kit.content_of_table(t) for n, t in tables.items()}
    report = checkpoint.verify(tmp_path)
    assert (report.n_rows, report.n_candidates) == (3 * n, 3 * n_pending)


@pytest.mark.parametrize(
    ("block_bytes", "file_bytes"), [(1, 1 << 20), (100, 1), (100, 4000), (3000, 4000)]
)
def test_content_does_not_depend_on_the_cut_into_files_and_blocks(
    block_bytes, file_bytes, tmp_path, monkeypatch
):
    monkeypatch.setattr(writer, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(writer, "FILE_BYTES", file_bytes)
    table = kit.memory_table(n=120, n_pending=200, bloom_blocks=2)
    extra = {"w": np.arange(333.0), "empty": np.empty((0, 3), np.int8)}
    checkpoint.save_tables(tmp_path, {"t": table}, extra)
    assert kit.content_of(tmp_path) == {"t": kit.content_of_table(table)}
    document = kit.read_manifest(tmp_path)
    rows = [file for file in document["files"] if file["kind"] == "rows"]
    assert (len(rows) == 1) == (file_bytes == 1 << 20)
    assert checkpoint.verify(tmp_path).n_blocks == sum(
        len(file["sections"]) - 2 for file in document["files"]
    )
    with checkpoint.load_tables(tmp_path) as loaded:
        np.testing.assert_array_equal(loaded.extra["w"], extra["w"])
        assert loaded.extra["empty"].shape == (0, 3)


@given(st.lists(st.integers(0, 50), min_size=256, max_size=256), st.integers(1, 200))
def test_runs_hold_every_row_once_in_whole_partitions(counts, max_rows):
    runs = list(layout.plan_runs(np.array(counts), max_rows))
    assert [run.first for run in runs] == [0, *(run.last + 1 for run in runs[:-1])]
    assert runs[-1].last == 255
    for run in runs:
        assert run.n_rows == sum(counts[run.first : run.last + 1])
        assert run.n_rows <= max_rows or sum(c > 0 for c in counts[run.first : run.last + 1]) == 1
        parts = list(layout.plan_blocks(run.n_rows, max_rows))
        assert sum(part.stop - part.start for part in parts) == run.n_rows
        assert all(0 < part.stop - part.start <= max_rows for part in parts)
    files = list(layout.plan_files(runs, max_rows * 3))
    assert [run for file in files for run in file] == runs
    assert len(files) == 1 or all(any(run.n_rows for run in file) for file in files)


def test_the_partition_is_the_one_of_the_engine():
    from embstore import _core

    keys = np.concatenate([LIMITS, np.random.default_rng(0).integers(-(2**63), 2**63, 10_000)])
    expected = _core.fixed_hash(keys) >> np.uint64(56)
    np.testing.assert_array_equal(partition.partition_of(keys), expected)


def test_every_file_is_an_arrow_file_tiled_by_its_sections(tmp_path):
    checkpoint.save_tables(tmp_path, {"t": kit.memory_table(bloom_blocks=1)}, {"x": np.arange(3)})
    files = kit.read_manifest(tmp_path)["files"]
    assert [file["kind"] for file in files] == ["rows", "candidates", "bloom", "pins", "extra"]
    for file in files:
        data = (tmp_path / file["name"]).read_bytes()
        assert len(data) == file["bytes"] == sum(section[0] for section in file["sections"])
        reader = pa.ipc.open_file(pa.py_buffer(data))
        rows = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
        assert [0, *rows, 0] == [section[1] for section in file["sections"]]
        reader.read_all().validate(full=True)
    assert {os.stat(p).st_mode & 0o777 for p in tmp_path.iterdir()} == {0o600}


def test_a_reader_made_from_the_document_alone_reads_it_all(tmp_path):
    table = kit.memory_table(n=300, n_pending=50, bloom_blocks=1)
    empty = kit.memory_table(0, 0, dtype="float16", slots=())
    arrays = {"x": np.arange(6, dtype=np.int16).reshape(2, 3), "flag": np.array([True, False])}
    checkpoint.save_tables(tmp_path, {"t": table, "e": empty}, {"n": [1, None], **arrays}, {"f": 1})
    found = independent_reader.read(tmp_path)
    rows = found["tables"]["t"]["rows"]
    for name, column in zip(kit.ROW_NAMES, rows.values(), strict=True):
        np.testing.assert_array_equal(np.array(column), getattr(table.rows, name))
    pending = found["tables"]["t"]["candidates"]
    for name, column in zip(kit.CANDIDATE_NAMES, pending.values(), strict=True):
        np.testing.assert_array_equal(np.array(column), getattr(table.pending, name))
    bloom = np.array(found["tables"]["t"]["bloom"]["block"], np.uint8)
    assert bloom.tobytes() == table.bloom.tobytes()
    assert sorted(found["tables"]["t"]["pins"]["key"]) == table.pins.tolist()
    assert set(found["tables"]["e"]) == {"about", "pins"} - (
        {"pins"} if not len(empty.pins) else set()
    )
    powers = found["tables"]["t"]["about"]["state"]
    assert float.fromhex(powers["beta1_power"]) == kit.STATE["beta1_power"]
    assert found["store"] == {"f": 1}
    assert found["extra"]["values"] == {"n": [1, None]}
    assert found["extra"]["arrays"]["x"] == ("int16", [2, 3], [0, 1, 2, 3, 4, 5])
    assert found["extra"]["arrays"]["flag"] == ("bool", [2], [1, 0])


def test_the_independent_reader_is_short():
    text = Path(independent_reader.__file__).read_text()
    assert len(text.splitlines()) <= 100
    assert "embstore." not in text


# ---- replacing


def test_a_second_save_replaces_the_first_and_leaves_other_files_alone(tmp_path):
    first, second = (kit.memory_table(seed=seed) for seed in (1, 2))
    checkpoint.save_tables(tmp_path, {"a": first, "b": first})
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "g00000009-t000-rows-00-ff.arrow").write_text("of a save that was killed")
    (tmp_path / "manifest.json.tmp").write_text("too")
    checkpoint.save_tables(tmp_path, {"a": second})
    assert kit.content_of(tmp_path) == {"a": kit.content_of_table(second)}
    listed = {file["name"] for file in kit.read_manifest(tmp_path)["files"]}
    assert {p.name for p in tmp_path.iterdir()} == listed | {"lock", "manifest.json", "notes.txt"}
    assert kit.read_manifest(tmp_path)["generation"] == 2


@pytest.mark.parametrize("text", ["{}", "", "not json", '{"name": "a web app"}'])
def test_a_manifest_that_is_not_ours_is_not_overwritten(text, tmp_path):
    (tmp_path / "manifest.json").write_text(text)
    (tmp_path / "g00000001-t000-rows-00-ff.arrow").write_text("perhaps still wanted")
    with pytest.raises(es.CorruptCheckpointError, match="nothing was saved"):
        checkpoint.save_tables(tmp_path, {"a": kit.memory_table()})
    assert (tmp_path / "manifest.json").read_text() == text
    assert (tmp_path / "g00000001-t000-rows-00-ff.arrow").exists()


def test_a_copied_checkpoint_is_one(tmp_path):
    table = kit.memory_table()
    checkpoint.save_tables(tmp_path / "a", {"t": table})
    (tmp_path / "b").mkdir()
    for name, data in kit.files_of(tmp_path / "a").items():
        (tmp_path / "b" / name).write_bytes(data)
    assert kit.content_of(tmp_path / "b") == {"t": kit.content_of_table(table)}


@pytest.mark.promise("S4", "a second writer is refused")
def test_two_saves_to_one_directory_at_a_time_are_one_too_many(tmp_path):
    class Slow(kit.MemoryTable):
        def partition_counts(self, candidates):
            begun.set()
            go_on.wait(30)
            return super().partition_counts(candidates)

    begun, go_on = threading.Event(), threading.Event()
    table = kit.memory_table()
    slow = Slow(**vars(table))
    thread = threading.Thread(target=checkpoint.save_tables, args=(tmp_path, {"slow": slow}))
    thread.start()
    begun.wait(30)
    with pytest.raises(es.CheckpointError, match="another save to this directory is running"):
        checkpoint.save_tables(tmp_path, {"quick": table})
    go_on.set()
    thread.join()
    assert list(kit.content_of(tmp_path)) == ["slow"]
    checkpoint.save_tables(tmp_path, {"quick": table})
    assert list(kit.content_of(tmp_path)) == ["quick"]


def test_a_save_that_comes_between_is_told(tmp_path):
    table = kit.memory_table()
    checkpoint.save_tables(tmp_path, {"t": table})
    with checkpoint.load_tables(tmp_path) as loaded:
        checkpoint.save_tables(tmp_path, {"t": table})
        with pytest.raises(es.CheckpointError, match="replaced by another save") as error:
            kit.restore(loaded.path, loaded.tables["t"], kit.Sink())
    assert not isinstance(error.value, es.CorruptCheckpointError)


def test_directories_on_the_way_are_made(tmp_path):
    checkpoint.save_tables(str(tmp_path / "a" / "b" / "c"), {"t": kit.memory_table()})
    assert list(kit.content_of(tmp_path / "a" / "b" / "c")) == ["t"]


# ---- asking


def test_some_tables_are_loaded_alone(tmp_path):
    tables = {name: kit.memory_table(seed=i) for i, name in enumerate("abc")}
    checkpoint.save_tables(tmp_path, tables)
    assert list(kit.content_of(tmp_path, ["c", "a"])) == ["c", "a"]
    with pytest.raises(es.CheckpointMismatchError, match="no table 'd'; it has"):
        checkpoint.load_tables(tmp_path, ["d"])


def test_inspect_tells_what_is_there(tmp_path):
    table = kit.memory_table()
    checkpoint.save_tables(tmp_path, {"t": table}, {"x": np.arange(3), "a": 1}, {"features": {}})
    found = json.loads(json.dumps(checkpoint.inspect(tmp_path)))
    assert found["step"] == kit.STATE["step"]
    assert found["extra"] == ["a", "x"]
    assert found["tables"][0]["rows"] == len(table.rows)
    assert found["tables"][0]["candidates"] == len(table.pending)
    assert found["tables"][0]["config"] == table.config
    assert found["bytes"] == sum(file["bytes"] for file in found["files"])
    assert found["files"][0]["kind"] == "rows"


def test_verify_lazy_is_not_offered(tmp_path):
    with pytest.raises(es.ArgumentError, match='verify must be "full"'):
        checkpoint.load_tables(tmp_path, verify="lazy")


@pytest.mark.parametrize(
    ("path", "error"),
    [(7, es.ArgumentTypeError), (b"x", es.ArgumentTypeError), ("", es.ArgumentError)],
)
def test_paths_that_are_none(path, error):
    for call in (checkpoint.inspect, checkpoint.verify, checkpoint.load_tables):
        with pytest.raises(error, match="path must"):
            call(path)
    with pytest.raises(error, match="path must"):
        checkpoint.save_tables(path, {})


def test_where_no_checkpoint_is(tmp_path):
    (tmp_path / "file").write_text("x")
    for path, message in (
        (tmp_path, "holds no checkpoint"),
        (tmp_path / "none", "No such file"),
        (tmp_path / "file", "Not a directory"),
    ):
        with pytest.raises(es.CheckpointError, match=message):
            checkpoint.load_tables(path)
    with pytest.raises(es.CheckpointError):
        checkpoint.save_tables(tmp_path / "file" / "in", {})


def test_nonfinite_rows_are_told_and_refused_unless_allowed(tmp_path):
    table = kit.memory_table()
    values = table.rows.values.copy()
    values[3, 1] = np.nan
    slots = table.rows.slots.copy()
    slots[3, 0] = slots[9, 0] = np.inf
    table = kit.with_rows(table, values=values, slots=slots)
    with pytest.warns(es.EmbstoreWarning, match="2 of the saved rows"):
        checkpoint.save_tables(tmp_path, {"t": table})
    with pytest.raises(es.CheckpointMismatchError, match="2 rows of table 't' have NaN"):
        kit.content_of(tmp_path)
    expected = {"t": kit.content_of_table(table)}
    assert kit.content_of(tmp_path, allow_nonfinite=True) == expected
    table = replace(table, config={**table.config, "on_nonfinite": "allow"})
    with pytest.warns(es.EmbstoreWarning, match="2 of the saved rows"):
        checkpoint.save_tables(tmp_path, {"t": table})
    assert kit.content_of(tmp_path) == {"t": kit.content_of_table(table)}


@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0])
def test_nonfinite_bfloat16_is_seen(bits, tmp_path):
    table = kit.memory_table(dtype="bfloat16")
    values = table.rows.values.copy()
    values[0, 0] = bits
    with pytest.warns(es.EmbstoreWarning, match="1 of the saved rows"):
        checkpoint.save_tables(tmp_path, {"t": kit.with_rows(table, values=values)})


@pytest.mark.parametrize("wrong", ["order", "count", "dtype", "partition", "step"])
def test_an_engine_that_exports_nonsense_is_caught(wrong, tmp_path):
    class Wrong(kit.MemoryTable):
        def export_rows(self, first, last, part):
            rows = super().export_rows(first, last, part)
            if wrong == "order":
                return rows[::-1]
            if wrong == "count":
                return rows[:-1]
            if wrong == "dtype":
                return Rows(rows.keys, rows.values.astype(float), rows.slots, rows.freq, rows.step)
            if wrong == "step":
                return Rows(rows.keys, rows.values, rows.slots, rows.freq, rows.step + 100)
            return Rows(rows.keys[::-1] + 1, rows.values, rows.slots, rows.freq, rows.step)

    checkpoint.save_tables(tmp_path, {"good": kit.memory_table()})
    before = kit.files_of(tmp_path)
    with pytest.raises(es.InternalError):
        checkpoint.save_tables(tmp_path, {"t": Wrong(**vars(kit.memory_table()))})
    assert kit.files_of(tmp_path) == before


@pytest.mark.unsanitized
def test_memory_is_that_of_a_few_blocks(tmp_path):
    n = 60_000
    rng = np.random.default_rng(0)
    keys = kit.in_order(rng.choice(2**40, n, replace=False))
    rows = Rows(
        keys, np.ones((n, 32), np.float32), np.ones((n, 32), np.float32),
        np.ones(n, np.uint32), np.ones(n, np.int64),
    )  # fmt: skip
    none = np.empty(0, np.int64)
    table = replace(
        kit.memory_table(1, 0, 32),
        rows=rows,
        pending=Candidates(none, none.astype(np.uint32), none),
    )
    checkpoint.save_tables(tmp_path, {"t": table})
    tracemalloc.start()
    checkpoint.verify(tmp_path)
    peak_load = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    held = tracemalloc.get_traced_memory()[0]
    checkpoint.save_tables(tmp_path, {"t": table})
    peak_save = tracemalloc.get_traced_memory()[1] - held
    tracemalloc.stop()
    assert checkpoint.inspect(tmp_path)["bytes"] > 16e6
    assert peak_load < 6e6
    assert peak_save < 8e6


AUDIT = """
import sys
import embstore as es
from embstore import checkpoint

def read(path):
    checkpoint.inspect(path)
    checkpoint.verify(path)
    with checkpoint.load_tables(path) as loaded:
        for table in loaded.tables.values():
            sum(len(rows) for rows in table.rows())
    if loaded.store is not None:
        es.Store.load(path)

for path in sys.argv[1:]:
    read(path)
seen = []
banned = ("exec", "compile", "import", "subprocess", "socket", "os.system", "os.exec", "os.fork",
          "os.posix_spawn", "pickle", "marshal", "ctypes", "code.", "urllib", "webbrowser")
sys.addaudithook(lambda name, args: seen.append(name) if name.startswith(banned) else None)
for path in sys.argv[1:]:
    read(path)
n_seen = len(seen)
compile("1", "is the hook there", "eval")
sys.exit(f"{seen[:n_seen]}" if n_seen else int(seen != ["compile"]))
"""


@pytest.mark.promise("S3", "no import, exec, process or socket while checkpoints are read")
def test_loading_runs_no_code(tmp_path):
    make_checkpoint.main(tmp_path / "store")
    table = kit.memory_table(bloom_blocks=1)
    report = checkpoint.save_tables(tmp_path / "chain", {"t": table}, {"x": np.arange(3)})
    _, changes = kit.changed_table(table, 6, 4, np.random.default_rng(0))
    kit.save_delta(tmp_path / "chain", {"t": changes}, report.digest)
    paths = [tmp_path / "store", tmp_path / "chain"]
    subprocess.run([sys.executable, "-c", AUDIT, *paths], check=True, env=kit.environment())


def test_no_file_descriptor_is_left_open(tmp_path):
    table = kit.memory_table(bloom_blocks=1)
    checkpoint.save_tables(tmp_path, {"t": table}, {"x": np.arange(9)})
    before = kit.n_open_files()
    for _ in range(20):
        checkpoint.save_tables(tmp_path, {"t": table}, {"x": np.arange(9)})
        kit.content_of(tmp_path)
        checkpoint.inspect(tmp_path)
    assert kit.n_open_files() <= before
    assert fsio.LOCK_NAME in os.listdir(tmp_path)


# ---- golden


def test_todays_writer_gives_the_golden_bytes(tmp_path):
    make_checkpoint.main(tmp_path)
    assert kit.files_of(tmp_path) == kit.files_of(make_checkpoint.PATH)


@pytest.mark.promise("R2", "checkpoints of earlier versions load")
def test_the_golden_checkpoint_loads(tmp_path):
    with es.Store.load(make_checkpoint.PATH) as store, make_checkpoint.make_store() as fresh:
        make_checkpoint.train(fresh, 0, 9)
        for name in fresh:
            assert exported(store[name]) == exported(fresh[name])
        assert store.features == fresh.features
        assert store.extra["note"] == make_checkpoint.EXTRA["note"]
        for name in ("weights", "mask", "scalar"):
            np.testing.assert_array_equal(store.extra[name], make_checkpoint.EXTRA[name])
    independent_reader.read(make_checkpoint.PATH)
