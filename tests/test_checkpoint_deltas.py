"""Chains of deltas on sound disks: merged they are, bit for bit, what a full save would be."""

import tempfile
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import checkpoint_kit as kit
import independent_reader
import numpy as np
import pytest
from golden import make_deltas
from hypothesis import given, settings
from hypothesis import strategies as st

import embstore as es
from embstore import checkpoint
from embstore.checkpoint import fsio, writer
from embstore.engines.types import Candidates, Rows

pytestmark = pytest.mark.usefixtures("quick_disk")


def chain(path, n_deltas=2, n=300, seed=0, keep_last=1, **shape):
    """Save a full checkpoint and deltas on it; return the tables of each save and the reports."""
    rng = np.random.default_rng(seed)
    tables = [kit.memory_table(n, 9, **shape)]
    reports = [checkpoint.save_tables(path, {"t": tables[0]}, keep_last=keep_last)]
    for _ in range(n_deltas):
        table, changes = kit.changed_table(tables[-1], 20, 7, rng)
        tables.append(table)
        base = reports[-1].digest
        reports.append(kit.save_delta(path, {"t": changes}, base, keep_last=keep_last))
    return tables, reports


def keys_of(blocks):
    """Return the keys of all blocks."""
    return [key for block in blocks for key in block.keys.tolist()]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("slots", "bloom_blocks"), [((), 1), (None, 0), ((("a", 1), ("b", 3)), 2)])
def test_a_chain_is_the_table_at_each_save(dtype, slots, bloom_blocks, tmp_path):
    shape = {"dim": 3, "dtype": dtype, "slots": slots, "bloom_blocks": bloom_blocks}
    tables, reports = chain(tmp_path, 3, keep_last=9, **shape)
    assert [report.kind for report in reports] == ["full", "delta", "delta", "delta"]
    assert [report.n_deltas for report in reports] == [0, 1, 2, 3]
    assert [report.generation for report in reports] == checkpoint.generations(tmp_path)
    for table, report in zip(tables, reports, strict=True):
        with checkpoint.load_tables(tmp_path, generation=report.generation) as loaded:
            assert loaded.digest == report.digest
            assert loaded.tables["t"].n_deltas == report.n_deltas
            assert loaded.tables["t"].layers[-1].n_rows == report.n_rows
            assert loaded.tables["t"].layers[-1].n_deleted == report.n_deleted
        found = kit.content_of(tmp_path, generation=report.generation)
        assert found == {"t": kit.content_of_table(table)}
        verified = checkpoint.verify(tmp_path, generation=report.generation)
        assert (verified.n_rows, verified.n_candidates) == (len(table.rows), len(table.pending))


@pytest.mark.parametrize(("block_bytes", "file_bytes"), [(1, 500), (100, 1), (200, 900)])
def test_a_chain_does_not_depend_on_the_cut_into_files_and_blocks(
    block_bytes, file_bytes, tmp_path, monkeypatch
):
    monkeypatch.setattr(writer, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(writer, "FILE_BYTES", file_bytes)
    tables, _ = chain(tmp_path, 3, bloom_blocks=1)
    assert kit.content_of(tmp_path) == {"t": kit.content_of_table(tables[-1])}
    files = kit.read_manifest(tmp_path)["files"]
    assert {file["kind"] for file in files if file.get("layer", 0)} == {"rows", "deleted"}
    checkpoint.compact(tmp_path)
    assert kit.content_of(tmp_path) == {"t": kit.content_of_table(tables[-1])}


@pytest.mark.parametrize("n_deltas", [0, 3])
def test_rows_of_some_partitions_come_from_the_files_that_may_hold_them(
    n_deltas, tmp_path, monkeypatch
):
    monkeypatch.setattr(writer, "BLOCK_BYTES", 300)
    monkeypatch.setattr(writer, "FILE_BYTES", 600)
    (*_, table), _ = chain(tmp_path, n_deltas)
    partitions = kit.partition_of(table.rows.keys)
    opened = []
    real = fsio.calls.open
    with checkpoint.load_tables(tmp_path) as loaded:
        monkeypatch.setattr(
            fsio.calls, "open", lambda name, *a, **k: opened.append(name) or real(name, *a, **k)
        )
        for first, last in ((0, 255), (0, 0), (255, 255), (17, 99)):
            opened.clear()
            is_in = (partitions >= first) & (partitions <= last)
            rows = loaded.tables["t"].rows(first, last)
            assert keys_of(rows) == table.rows.keys[is_in].tolist()
            files = [f for f in loaded.manifest.files if f.kind in ("rows", "deleted")]
            due = [f.name for f in files if f.first <= last and f.last >= first]
            assert sorted(opened) == sorted(due)
        pending = table.pending.keys
        found = keys_of(loaded.tables["t"].candidates(64, 255))
        assert found == pending[kit.partition_of(pending) >= 64].tolist()
        for bounds in ((-1, 3), (4, 3), (0, 256)):
            with pytest.raises(es.ArgumentError, match="partitions must be from 0 to 255"):
                loaded.tables["t"].rows(*bounds)


OPERATIONS = st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=25)
PROGRAMS = st.lists(
    st.tuples(OPERATIONS, st.sampled_from(["delta", "delta", "delta", "full", "compact"])),
    min_size=1,
    max_size=6,
)


class Model:
    """A table of few keys as a dict, and which of them were written or removed since a save."""

    def __init__(self):
        self.rows, self.written, self.removed, self.n_writes = {}, set(), set(), 0
        self.keys = kit.memory_table(31, 0).rows.keys.tolist()

    def run(self, operations):
        for place, is_put in operations:
            key = self.keys[place]
            self.n_writes += 1
            if is_put:
                self.rows[key] = self.n_writes
                self.written.add(key)
            else:  # perhaps of a key that is not there
                self.rows.pop(key, None)
                self.removed.add(key)

    def table(self):
        keys = kit.in_order(list(self.rows))
        numbers = np.array([self.rows[key] for key in keys.tolist()], np.int64)
        pairs = np.stack([numbers, -numbers], axis=1).astype(np.float32).reshape(-1, 2)
        rows = Rows(keys, pairs, pairs + 0.5, numbers.astype(np.uint32), numbers % 41)
        empty = kit.memory_table(0, 0)
        state = {**kit.STATE, "n_train_steps": self.n_writes}
        return replace(empty, rows=rows, pins=keys[::3], state=state)

    def saved(self):
        self.written, self.removed = set(), set()


def without_generation(path):
    """Return the data files by name without its generation, and the tables of the manifest."""
    files = {name[9:]: data for name, data in kit.files_of(path).items() if name[0] == "g"}
    return files, kit.read_manifest(path)["tables"]


def run_program(program, block_bytes):
    """Run a program; after each save the chain is the table, and compacted a full save of it."""
    model, digest = Model(), None
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "BLOCK_BYTES", block_bytes)
        chained, whole = Path(folder, "chained"), Path(folder, "whole")
        for operations, kind in program:
            model.run(operations)
            table = model.table()

            def cut(is_delta, table=table):
                if not is_delta:
                    return {"t": table}
                return {"t": kit.changes_of(table, list(model.written), list(model.removed))}

            base = None if kind == "full" else digest
            digest = checkpoint.save_tables(chained, cut, base=base).digest
            model.saved()
            if kind == "compact":
                digest = checkpoint.compact(chained).digest
            assert kit.content_of(chained) == {"t": kit.content_of_table(table)}
        independent = independent_reader.read(chained)["tables"]["t"]
        assert [*independent.get("rows", {"key": []})["key"]] == table.rows.keys.tolist()
        checkpoint.compact(chained)
        checkpoint.save_tables(whole, {"t": table})
        assert without_generation(chained) == without_generation(whole)


@given(PROGRAMS, st.sampled_from([40, 1 << 20]))
@settings(max_examples=60)
def test_random_programs_of_writes_and_saves(program, block_bytes):
    run_program(program, block_bytes)


@pytest.mark.torture
@given(PROGRAMS, st.sampled_from([1, 40, 1 << 20]))
@settings(max_examples=2000)
def test_many_random_programs_of_writes_and_saves(program, block_bytes):
    run_program(program, block_bytes)


# ---- full or delta


def test_why_a_save_is_full(tmp_path):
    asked = []
    table = kit.memory_table(40)

    def cut(is_delta):
        asked.append(is_delta)
        return {"t": kit.changes_of(table, table.rows.keys[:30], [1]) if is_delta else table}

    def reason(path, **options):
        report = checkpoint.save_tables(path, cut, **options)
        assert report.kind == ("delta" if asked[-1] else "full")
        reasons.append(report.reason)
        return report.digest

    reasons = []
    digest = reason(tmp_path / "a")
    other = reason(tmp_path / "b", base=digest)
    assert other == digest, "generations and bytes are the same"
    reason(tmp_path / "a", base="0" * 64)
    digest = reason(tmp_path / "a", base=reason(tmp_path / "a"))
    digest = reason(tmp_path / "a", base=digest, max_deltas=1)
    digest = reason(tmp_path / "a", base=digest, max_deltas=0)
    for _ in range(2):
        digest = reason(tmp_path / "a", base=digest)
    assert reasons == [
        *(
            "",
            "the directory has no checkpoint",
            "the directory's checkpoint is not the base",
            "",
            "",
        ),
        *("1 deltas already", "0 deltas already", "", "deltas outgrew their base"),
    ]
    assert len(asked) == len(reasons)
    empty = checkpoint.save_tables(tmp_path / "c", {})
    again = checkpoint.save_tables(tmp_path / "c", lambda is_delta: {}, base=empty.digest)
    assert (again.kind, again.reason) == ("full", "the base has no tables")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_last": 0}, "keep_last must be an integer of at least 1, got 0"),
        ({"keep_last": True}, "keep_last must be an integer"),
        ({"max_deltas": -1}, "max_deltas must be an integer of at least 0, got -1"),
        ({"base": "0"}, "base is given"),
    ],
)
def test_options_that_cannot_be(options, message, tmp_path):
    with pytest.raises(es.ArgumentError, match=message):
        checkpoint.save_tables(tmp_path / "a", {}, **options)
    assert not (tmp_path / "a").exists()
    with pytest.raises(es.ArgumentError, match="keep_last must"):
        checkpoint.compact(tmp_path, keep_last="2")


@pytest.mark.parametrize(
    "change",
    [{"dim": 3}, {"dtype": "float16"}, {"slots": (("other", 2),)}, {"name": "u"}, {"more": True}],
)
def test_a_delta_of_other_tables_is_refused_and_writes_nothing(change, tmp_path):
    report = checkpoint.save_tables(tmp_path, {"t": kit.memory_table()})
    before = kit.files_of(tmp_path)
    shape = {name: value for name, value in change.items() if name not in ("name", "more")}
    table = kit.memory_table(**shape)
    tables = {change.get("name", "t"): kit.changes_of(table, [], [])}
    if "more" in change:
        tables["u"] = tables["t"]
    with pytest.raises(es.CheckpointMismatchError, match=r"a delta must be of the tables .* got"):
        kit.save_delta(tmp_path, tables, report.digest)
    assert kit.files_of(tmp_path) == before


def test_a_cut_that_fails_leaves_all_as_it_was(tmp_path):
    report = checkpoint.save_tables(tmp_path, {"t": kit.memory_table()})
    before = kit.files_of(tmp_path)

    def cut(is_delta):
        raise es.OutOfMemoryError("no memory for a snapshot")

    with pytest.raises(es.OutOfMemoryError, match="for a snapshot"):
        checkpoint.save_tables(tmp_path, cut, base=report.digest)
    assert kit.files_of(tmp_path) == before


WRONG = {
    "whole": (lambda view: replace(view, deleted=None), "a view of a whole table was given"),
    "both": (
        lambda view: replace(view, deleted=view.rows.keys[3:4]),
        "was both written and removed",
    ),
    "twice": (lambda view: replace(view, deleted=np.array([1, 1])), "key 1 comes twice"),
    "too few": (lambda view: replace(view, n_live=3), "3 live rows, not 5 to 25"),
    "too many": (lambda view: replace(view, n_live=26), "26 live rows, not 5 to 25"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_engine_that_tells_nonsense_of_changes_is_caught(wrong, tmp_path):
    change, message = WRONG[wrong]
    table = kit.memory_table(20)
    report = checkpoint.save_tables(tmp_path, {"t": table})
    before = kit.files_of(tmp_path)
    view = change(kit.changes_of(table, table.rows.keys[:5], []))
    with pytest.raises(es.InternalError, match=message):
        kit.save_delta(tmp_path, {"t": view}, report.digest)
    assert kit.files_of(tmp_path) == before


def test_changes_are_not_taken_for_a_whole_table(tmp_path):
    view = kit.changes_of(kit.memory_table(20), [], [])
    with pytest.raises(es.InternalError, match="a view of changes was given for a full checkpoint"):
        checkpoint.save_tables(tmp_path, {"t": view})
    assert kit.files_of(tmp_path) == {}


def test_a_number_of_live_rows_that_is_wrong_is_seen_when_it_is_read(tmp_path):
    table = kit.memory_table(20)
    report = checkpoint.save_tables(tmp_path, {"t": table})
    for n_live, message in ((19, "more rows after|20 rows after"), (21, "20 rows after merging")):
        view = replace(kit.changes_of(table, table.rows.keys[:5], []), n_live=n_live)
        report = kit.save_delta(tmp_path, {"t": view}, report.digest)
        with pytest.raises(es.CorruptCheckpointError, match=message):
            checkpoint.verify(tmp_path)


def test_what_a_snapshot_holds_in_memory_is_written_before_the_rows(tmp_path):
    asked = []

    class Watched(kit.MemoryTable):
        def export_rows(self, first, last, part):
            asked.append("rows")
            return super().export_rows(first, last, part)

        def export_candidates(self, first, last):
            asked.append("candidates")
            return super().export_candidates(first, last)

        def bloom_read(self, partition):
            asked.append("bloom")
            return super().bloom_read(partition)

    table = Watched(**vars(kit.memory_table(bloom_blocks=1)))
    checkpoint.save_tables(tmp_path, {"t": table, "u": table})
    assert asked == [*["candidates", *["bloom"] * 256] * 2, "rows", "rows"]
    kinds = [file["kind"] for file in kit.read_manifest(tmp_path)["files"]]
    assert kinds == ["rows", "candidates", "bloom", "pins"] * 2


# ---- what rows mean over time


def test_nonfinite_rows_of_a_chain_are_an_upper_bound(tmp_path):
    table = kit.memory_table(20)
    values = table.rows.values.copy()
    values[3:5, 0] = np.nan
    spoiled = kit.with_rows(table, values=values)
    with pytest.warns(es.EmbstoreWarning, match="2 of the saved rows"):
        report = checkpoint.save_tables(tmp_path, {"t": spoiled})
    changes = kit.changes_of(table, table.rows.keys[2:6], [])
    kit.save_delta(tmp_path, {"t": changes}, report.digest)  # warns of nothing: its own are finite
    with pytest.raises(es.CheckpointMismatchError, match="up to 2 rows of table 't' have NaN"):
        kit.content_of(tmp_path)
    expected = {"t": kit.content_of_table(table)}
    assert kit.content_of(tmp_path, allow_nonfinite=True) == expected
    assert checkpoint.inspect(tmp_path)["tables"][0]["nonfinite_rows"] == 2
    checkpoint.compact(tmp_path)
    assert checkpoint.inspect(tmp_path)["tables"][0]["nonfinite_rows"] == 0
    assert kit.content_of(tmp_path) == expected


def test_rows_are_checked_by_the_clocks_of_their_layer(tmp_path):
    table = kit.memory_table(20)
    report = checkpoint.save_tables(tmp_path, {"t": table})
    state = {**table.state, "step_base": 30, "step": 90}
    raised = replace(kit.with_rows(table, step=np.maximum(table.rows.step, 30)), state=state)
    old = table.rows.keys[table.rows.step < 30]
    report = kit.save_delta(tmp_path, {"t": kit.changes_of(raised, old, [])}, report.digest)
    assert kit.content_of(tmp_path) == {"t": kit.content_of_table(raised)}
    assert [layer["step_base"] for layer in kit.read_manifest(tmp_path)["tables"][0]["layers"]] == [
        0,
        30,
    ]
    kit.save_delta(tmp_path, {"t": kit.changes_of(raised, [], [])}, report.digest)
    assert kit.content_of(tmp_path) == {"t": kit.content_of_table(raised)}


def test_a_row_below_the_newest_step_base_is_refused(tmp_path):
    table = kit.memory_table(20)
    report = checkpoint.save_tables(tmp_path, {"t": table})
    late = replace(table, state={**table.state, "step_base": 30})
    kit.save_delta(tmp_path, {"t": kit.changes_of(late, [], [])}, report.digest)
    with pytest.raises(es.CorruptCheckpointError, match=r"of step \d+, not of 30\.\.40"):
        checkpoint.verify(tmp_path)


def test_a_candidate_that_a_delta_gave_a_row_is_caught_by_verify(tmp_path):
    tables, reports = chain(tmp_path)
    keys = tables[-1].pending.keys[2:3]
    rows = kit.random_rows(tables[-1], keys, np.random.default_rng(1))
    born = replace(kit.changes_of(tables[-1], [], []), rows=rows, n_live=len(tables[-1].rows) + 1)
    kit.save_delta(tmp_path, {"t": born}, reports[-1].digest)
    with pytest.raises(es.CorruptCheckpointError, match=f"key {keys[0]} has a row and is"):
        checkpoint.verify(tmp_path)


# ---- compact


def test_a_compacted_chain_is_what_a_full_save_would_have_written(tmp_path):
    extra = {"note": [1, None], "x": np.arange(6).reshape(2, 3), "flag": np.array([True, False])}
    tables = {n: kit.memory_table(300, 40, seed=i, bloom_blocks=i) for i, n in enumerate("ab")}
    rng = np.random.default_rng(0)
    report = checkpoint.save_tables(tmp_path / "a", tables)
    for _ in range(3):
        later = {name: kit.changed_table(table, 20, 20, rng) for name, table in tables.items()}
        tables = {name: table for name, (table, _) in later.items()}
        changes = {name: changes for name, (_, changes) in later.items()}
        report = kit.save_delta(
            tmp_path / "a", changes, report.digest, extra=extra, store={"features": {}}
        )
    compacted = checkpoint.compact(tmp_path / "a")
    full = checkpoint.save_tables(tmp_path / "b", tables, extra, {"features": {}})
    assert without_generation(tmp_path / "a") == without_generation(tmp_path / "b")
    assert compacted[:3] == ("full", "", 5)
    assert compacted[4:8] == full[4:8]
    manifests = [kit.read_manifest(tmp_path / name) for name in "ab"]
    for member in ("required_features", "step", "store", "extra"):
        assert manifests[0][member] == manifests[1][member]


def test_a_full_checkpoint_is_not_compacted(tmp_path):
    report = checkpoint.save_tables(tmp_path, {"t": kit.memory_table()})
    before = kit.files_of(tmp_path)
    done = checkpoint.compact(tmp_path)
    assert (done.kind, done.reason) == ("full", "nothing to compact")
    assert (done.generation, done.digest, done.n_bytes) == (1, report.digest, 0)
    assert kit.files_of(tmp_path) == before
    with pytest.raises(es.CheckpointError, match="holds no checkpoint"):
        checkpoint.compact(tmp_path.parent / tmp_path.name / "..")


def test_a_delta_to_what_was_compacted_is_a_full_save(tmp_path):
    tables, reports = chain(tmp_path, keep_last=2)
    checkpoint.compact(tmp_path, keep_last=2)
    assert checkpoint.generations(tmp_path) == [3, 4]
    cut = {True: None, False: {"t": tables[-1]}}.__getitem__
    report = checkpoint.save_tables(tmp_path, cut, base=reports[-1].digest)
    assert report.reason == "the directory's checkpoint is not the base"


@pytest.mark.unsanitized
def test_merging_takes_the_memory_of_a_few_blocks(tmp_path):
    n = 60_000
    rng = np.random.default_rng(0)
    keys = kit.in_order(rng.choice(2**40, n, replace=False))
    none = np.empty(0, np.int64)

    def table_of(keys, value):
        rows = Rows(
            keys,
            np.full((len(keys), 32), value, np.float32),
            np.ones((len(keys), 32), np.float32),
            np.ones(len(keys), np.uint32),
            np.ones(len(keys), np.int64),
        )
        pending = Candidates(none, none.astype(np.uint32), none)
        return replace(kit.memory_table(1, 0, 32), rows=rows, pending=pending)

    report = checkpoint.save_tables(tmp_path, {"t": table_of(keys, 1)})
    for i in (1, 2):
        changes = kit.changes_of(table_of(keys, i), keys[i::3], rng.integers(0, 2**40, n))
        report = kit.save_delta(tmp_path, {"t": changes}, report.digest)
    tracemalloc.start()
    checkpoint.verify(tmp_path)
    peak_verify = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    held = tracemalloc.get_traced_memory()[0]
    checkpoint.compact(tmp_path)
    peak_compact = tracemalloc.get_traced_memory()[1] - held
    tracemalloc.stop()
    assert checkpoint.inspect(tmp_path)["bytes"] > 16e6
    assert peak_verify < 12e6
    assert peak_compact < 14e6


def test_inspect_tells_of_layers_and_generations(tmp_path):
    chain(tmp_path, keep_last=2)
    found = checkpoint.inspect(tmp_path)
    assert (found["generation"], found["generations"], found["deltas"]) == (3, [2, 3], 2)
    (table,) = found["tables"]
    assert [layer["generation"] for layer in table["layers"]] == [1, 2, 3]
    assert [layer["deleted"] for layer in table["layers"]] == [0, 7, 7]
    sizes = [0, 0, 0]
    for file in found["files"]:
        if file["kind"] in ("rows", "deleted"):
            sizes[file["layer"]] += file["bytes"]
    assert [layer["bytes"] for layer in table["layers"]] == sizes
    older = checkpoint.inspect(tmp_path, generation=2)
    assert (older["generation"], older["deltas"]) == (2, 1)
    full = SimpleNamespace(**checkpoint.inspect(tmp_path, 2)["tables"][0]["layers"][0])
    assert (full.rows, full.deleted) == (300, 0)


def test_a_reader_made_from_the_document_alone_reads_chains(tmp_path):
    tables, _ = chain(tmp_path, 4, bloom_blocks=1)
    found = independent_reader.read(tmp_path)["tables"]["t"]
    for name, column in zip(kit.ROW_NAMES, found["rows"].values(), strict=True):
        np.testing.assert_array_equal(np.array(column), getattr(tables[-1].rows, name))
    assert found["candidates"]["key"] == tables[-1].pending.keys.tolist()


# ---- golden


def test_todays_writer_gives_the_bytes_of_the_golden_chain(tmp_path):
    tables, reports = make_deltas.main(tmp_path)
    assert [report.kind for report in reports] == ["full", "delta", "delta"]
    assert kit.files_of(tmp_path) == kit.files_of(make_deltas.PATH)
    for table in tables.values():
        table.close()


def test_the_golden_chain_loads(tmp_path):
    assert checkpoint.generations(make_deltas.PATH) == [2, 3]
    checkpoint.verify(make_deltas.PATH, generation=2)
    for member in ("layers", "rows", "candidates", "pins", "bloom_blocks"):
        assert any(table[member] for table in kit.read_manifest(make_deltas.PATH)["tables"])
    found = independent_reader.read(make_deltas.PATH)
    tables, _ = make_deltas.main(tmp_path, first_save=2)  # a full checkpoint of the same moment
    assert kit.read_manifest(tmp_path)["required_features"] == []
    assert kit.content_of(make_deltas.PATH) == kit.content_of(tmp_path)
    whole = independent_reader.read(tmp_path)
    for name, table in tables.items():
        with es.Table.load(make_deltas.PATH, name=name) as loaded:
            assert len(loaded) == len(table)
        deleted = found["tables"][name].pop("deleted", None)
        assert deleted is not None
        del found["tables"][name]["about"], whole["tables"][name]["about"]
        table.close()
    assert found == whole
