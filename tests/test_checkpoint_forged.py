"""Forged checkpoints, whose checksums are right: what cannot be is refused, without harm."""

import hashlib
import os
import random
from dataclasses import replace

import checkpoint_kit as kit
import numpy as np
import pyarrow as pa
import pytest

import embstore as es
from embstore import checkpoint
from embstore.checkpoint import blocks, layout
from embstore.engines.types import Candidates

pytestmark = pytest.mark.usefixtures("quick_disk")


@pytest.fixture
def saved(tmp_path):
    """A small checkpoint with a file of each kind but bloom."""
    table = kit.memory_table(n=12, n_pending=3)
    checkpoint.save_tables(tmp_path, {"t": table}, {"x": np.arange(3), "note": "a"})
    return tmp_path


# ---- forged manifests: the SHA-256 is right


def at(*names):
    """Return a function that sets a member of a manifest; the last argument is the value."""
    *path, last, value = names

    def change(document):
        for name in path:
            document = document[name]
        document[last] = value

    return change


def without(*names):
    """Return a function that removes a member of a manifest."""
    *path, last = names

    def change(document):
        for name in path:
            document = document[name]
        del document[last]

    return change


FORGED = {
    "format": (at("format", "tar"), "format is 'tar'"),
    "version": (at("min_reader_version", 2), "needs a reader of version 2"),
    "no version": (without("min_reader_version"), "min_reader_version is None"),
    "features": (at("required_features", ["moon"]), r"does not know: \['moon'\]"),
    "features of none": (at("required_features", ["deltas"]), "has 'deltas' without layers"),
    "features type": (at("required_features", "x"), "required_features is 'x'"),
    "features items": (at("required_features", [[1]]), "does not know"),
    "byte order": (at("byte_order", "big"), "byte_order is 'big'"),
    "generation": (at("generation", 0), "generation is 0"),
    "generation type": (at("generation", True), "generation is True"),
    "step": (at("step", 41), "step is not the greatest"),
    "tables": (at("tables", {}), "tables is {}"),
    "tables item": (at("tables", [7]), "a table is 7"),
    "no files": (without("files"), "files is None"),
    "store": (at("store", 3), "store is 3"),
    "extra": (at("extra", []), "extra is"),
    "extra values": (at("extra", "values", []), "extra's values"),
    "extra twice": (at("extra", "values", {"x": 1}), "'x' is listed twice"),
    "extra dtype": (at("extra", "arrays", [["x", "object", [3]]]), "dtype is 'object'"),
    "extra shape": (at("extra", "arrays", [["x", "int64", [-3]]]), "size is -3"),
    "extra huge": (at("extra", "arrays", [["x", "int64", [2**62, 8]]]), "the arrays of extra take"),
    "extra hole": (at("extra", "arrays", [["x", "int64", [2]]]), "the arrays of extra take 16"),
    "dim": (at("tables", 0, "dim", 4097), "dim is 4097"),
    "dim smaller": (at("tables", 0, "dim", 1), r"the columns are .* expected"),
    "dtype": (at("tables", 0, "dtype", "float64"), "dtype is 'float64'"),
    "dtype other": (at("tables", 0, "dtype", "float16"), r"the columns are .* expected"),
    "slots": (at("tables", 0, "slots", [["a"]]), "a slot is"),
    "slots width": (at("tables", 0, "slots", [["a", 0]]), "width is 0"),
    "slots other": (at("tables", 0, "slots", []), r"the columns are .* expected"),
    "name": (at("tables", 0, "name", None), "name is None"),
    "config": (at("tables", 0, "config", None), "config is None"),
    "rows": (at("tables", 0, "rows", 13), "rows is not the sum"),
    "rows huge": (at("tables", 0, "rows", 2**64), "rows is 1844"),
    "candidates": (at("tables", 0, "candidates", 2), "candidates is not the sum"),
    "nonfinite": (at("tables", 0, "nonfinite_rows", 1), "1 rows of table 't' have NaN"),
    "bloom": (at("tables", 0, "bloom_blocks", 1), "do not hold 256 bloom blocks"),
    "bloom huge": (at("tables", 0, "bloom_blocks", 2**62), "bloom blocks"),
    "state": (at("tables", 0, "state", []), "state is"),
    "state missing": (without("tables", 0, "state", "next_evict"), "next_evict is None"),
    "state unknown": (at("tables", 0, "state", "moon", 1), r"unknown members \['moon'\]"),
    "state float": (at("tables", 0, "state", "n_train_steps", 1.0), "n_train_steps is 1.0"),
    "state negative": (at("tables", 0, "state", "last_train_step", -2), "last_train_step is -2"),
    "state huge": (at("tables", 0, "state", "n_evicted", 2**64), "n_evicted is"),
    "state order": (at("tables", 0, "state", "step_base", 41), "less than its step_base"),
    "state base": (at("tables", 0, "state", "step_base", 40), r"not of 40\.\.40"),
    "power": (at("tables", 0, "state", "beta1_power", "0x1.8p+0"), "beta1_power is"),
    "power decimal": (at("tables", 0, "state", "beta1_power", "0.5"), "beta1_power is"),
    "power number": (at("tables", 0, "state", "beta1_power", 0.5), "beta1_power is 0.5"),
    "power nan": (at("tables", 0, "state", "beta2_power", "nan"), "beta2_power is 'nan'"),
    "file": (at("files", 0, 3), "a file is 3"),
    "file path": (at("files", 0, "name", "../x.arrow"), "the file name"),
    "file absolute": (at("files", 0, "name", "/etc/passwd"), "the file name"),
    "file hidden": (at("files", 0, "name", ".x.arrow"), "the file name"),
    "file newline": (at("files", 0, "name", "x.arrow\n"), "the file name"),
    "file other": (at("files", 0, "name", "manifest.json"), "the file name"),
    "file gone": (at("files", 0, "name", "x.arrow"), r"x\.arrow, which .* is missing"),
    "file kind": (at("files", 0, "kind", "deletes"), "kind is 'deletes'"),
    "file of no table": (at("files", -1, "table", 2**63), "its table must be null"),
    "file table": (at("files", 0, "table", 1), "table is 1"),
    "file table negative": (at("files", 0, "table", -1), "table is -1"),
    "file partitions": (at("files", 0, "partitions", [0, 256]), "last is 256"),
    "file backwards": (at("files", 0, "partitions", [9, 8]), "last is 8"),
    "file narrower": (at("files", 0, "partitions", [0, 3]), r"not of 0\.\.3"),
    "file one number": (at("files", 0, "partitions", [1]), "partitions is"),
    "file rows": (at("files", 0, "rows", 11), "rows is not the sum over its sections"),
    "file bytes": (at("files", 0, "bytes", 2**63), "bytes is 922"),
    "file bytes sum": (at("files", 0, "bytes", 9), "bytes is not the sum over its sections"),
    "sections": (at("files", 0, "sections", []), "rows is not the sum"),
    "section": (at("files", 0, "sections", 1, [1, 2]), "a section is"),
    "section huge": (at("files", 0, "sections", 1, [2**40, 12, "00000000"]), "bytes is 1099"),
    "section rows": (at("files", 0, "sections", 1, [800, 2**40, "00000000"]), "rows is 1099"),
    "section crc": (at("files", 0, "sections", 1, 2, "0000000G"), "the checksum '0000000G'"),
    "section crc sign": (at("files", 0, "sections", 1, 2, "-0000001"), "the checksum"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), FORGED.values(), ids=FORGED)
def test_forged_manifests_are_refused(change, message, saved):
    kit.forge_manifest(saved, change)
    with pytest.raises(es.CheckpointError, match=message) as error:
        kit.content_of(saved)
    assert isinstance(error.value, es.CorruptCheckpointError | es.CheckpointMismatchError)
    assert str(saved) in str(error.value)


@pytest.mark.parametrize("twice", ["tables", "files"])
def test_what_is_listed_twice_is_refused(twice, saved):
    kit.forge_manifest(saved, lambda document: document[twice].append(document[twice][0]))
    with pytest.raises(es.CorruptCheckpointError, match="is listed twice"):
        checkpoint.verify(saved)


def test_files_whose_partitions_overlap_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("embstore.checkpoint.writer.FILE_BYTES", 200)
    monkeypatch.setattr("embstore.checkpoint.writer.BLOCK_BYTES", 100)
    checkpoint.save_tables(tmp_path, {"t": kit.memory_table(n=30)})
    first = kit.read_manifest(tmp_path)["files"][0]["partitions"]

    kit.forge_manifest(tmp_path, at("files", 1, "partitions", [first[1], 255]))
    with pytest.raises(es.CorruptCheckpointError, match="partitions overlap"):
        checkpoint.verify(tmp_path)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 50_000, "[]", "3", "{}", '"', "\0", '{"generation": NaN}', ""]
)
def test_manifests_that_are_no_manifests(text, saved):
    body = text.encode()
    digest = hashlib.sha256(body).hexdigest().encode()
    (saved / "manifest.json").write_bytes(body + b',\n"sha256":"' + digest + b'"\n}\n')
    with pytest.raises(es.CorruptCheckpointError):
        checkpoint.verify(saved)


def test_a_manifest_of_any_size_is_not_read(saved):
    os.truncate(saved / "manifest.json", 2**40)
    with pytest.raises(es.CorruptCheckpointError, match="a manifest has at most"):
        checkpoint.verify(saved)


def test_a_table_of_parameters_nobody_knows_is_refused(tmp_path):
    with es.Table(2, name="t") as table:
        table.save(tmp_path)
    kit.forge_manifest(tmp_path, at("tables", 0, "config", "admission", {"kind": "Oracle"}))
    with pytest.raises(es.CheckpointMismatchError, match="Oracle"):
        es.Table.load(tmp_path)
    kit.forge_manifest(tmp_path, at("tables", 0, "config", {"dim": 3}))
    with pytest.raises(es.CheckpointMismatchError, match="dim 2"):
        es.Table.load(tmp_path)


# ---- forged data: every checksum is right


def forge_rows(path, **arrays):
    """Replace arrays of the rows of a checkpoint of `memory_table(12, 3)`."""
    rows = kit.with_rows(kit.memory_table(n=12, n_pending=3), **arrays).rows
    kit.forge_file(path, "rows", [kit.row_arrays(rows)])


ROWS = kit.memory_table(n=12, n_pending=3).rows


def changed(array, place, value):
    """Return a copy of `array` with one item replaced."""
    array = array.copy()
    array[place] = value
    return array


FORGED_ROWS = {
    "unsorted": ({"keys": ROWS.keys[::-1].copy()}, "out of order"),
    "twice": ({"keys": changed(ROWS.keys, 5, ROWS.keys[4])}, "comes twice"),
    "nan": ({"values": changed(ROWS.values, (3, 1), np.nan)}, "1 rows so far have NaN"),
    "inf": ({"slots": changed(ROWS.slots, (3, 1), -np.inf)}, "1 rows so far have NaN"),
    "step": ({"step": changed(ROWS.step, 3, 41)}, r"is of step 41, not of 0\.\.40"),
    "negative step": ({"step": changed(ROWS.step, 3, -1)}, "is of step -1"),
}


@pytest.mark.parametrize(("arrays", "message"), FORGED_ROWS.values(), ids=FORGED_ROWS)
def test_rows_that_cannot_be_are_refused(arrays, message, saved):
    forge_rows(saved, **arrays)
    with pytest.raises(es.CorruptCheckpointError, match=message) as error:
        kit.content_of(saved)
    assert f"{kit.first_file(saved).name}, offset" in str(error.value)


def test_a_key_of_another_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("embstore.checkpoint.writer.FILE_BYTES", 200)
    monkeypatch.setattr("embstore.checkpoint.writer.BLOCK_BYTES", 100)
    checkpoint.save_tables(tmp_path, {"t": kit.memory_table(n=12, n_pending=3)})
    kit.forge_file(tmp_path, "rows", [kit.row_arrays(ROWS)])
    with pytest.raises(es.CorruptCheckpointError, match="is of partition"):
        kit.content_of(tmp_path)


def test_blocks_out_of_order_are_refused(saved):
    kit.forge_file(saved, "rows", [kit.row_arrays(ROWS[6:]), kit.row_arrays(ROWS[:6])])
    with pytest.raises(es.CorruptCheckpointError, match="out of order"):
        kit.content_of(saved)
    kit.forge_file(saved, "rows", [kit.row_arrays(ROWS[:6]), kit.row_arrays(ROWS[5:])])
    with pytest.raises(es.CorruptCheckpointError, match="comes twice"):
        kit.content_of(saved)
    kit.forge_file(saved, "rows", [kit.row_arrays(ROWS[:6]), kit.row_arrays(ROWS[6:])])
    kit.content_of(saved)


def test_candidates_and_pins_that_cannot_be_are_refused(saved):
    keys, counts = ROWS.keys[:3], np.ones(3, np.uint32)
    kit.forge_file(saved, "candidates", [[keys, counts, np.zeros(3, np.int64)]])
    with pytest.raises(es.CorruptCheckpointError, match="has a row and is a candidate"):
        checkpoint.verify(saved)
    kit.forge_file(saved, "candidates", [[keys[::-1].copy(), counts, np.zeros(3, np.int64)]])
    with pytest.raises(es.CorruptCheckpointError, match="out of order"):
        kit.content_of(saved)
    kit.forge_file(saved, "candidates", [[keys, counts, np.full(3, 10)]])
    with pytest.raises(es.CorruptCheckpointError, match=r"is of epoch 10, not of 0\.\.9"):
        kit.content_of(saved)
    kit.forge_file(saved, "pins", [[keys[::-1].copy()]])
    with pytest.raises(es.CorruptCheckpointError, match="out of order"):
        checkpoint.load_tables(saved)


def test_engines_refuse_candidates_that_have_rows(tmp_path):
    with es.Table(2, name="t", admission=es.CounterAdmission(3)) as table:
        table.find_or_insert([1, 1, 1, 2, 3], step=0)
        table.save(tmp_path)
    kit.forge_file(
        tmp_path, "candidates", [[np.array([1]), np.ones(1, np.uint32), np.zeros(1, np.int64)]]
    )
    with pytest.raises(es.CorruptCheckpointError, match="key 1 has a row and is a candidate"):
        es.Table.load(tmp_path)
    kit.forge_file(
        tmp_path, "candidates", [[np.array([2]), np.full(1, 3, np.uint32), np.zeros(1, np.int64)]]
    )
    with pytest.raises(es.CorruptCheckpointError, match="a count reaches min_count"):
        es.Table.load(tmp_path)


@pytest.mark.parametrize("n_blocks", [0, 2])
def test_a_filter_of_another_size_is_refused(n_blocks, tmp_path):
    with es.Table(2, name="t", admission=es.BloomAdmission(2, 10)) as table:
        table.save(tmp_path)
        config = table.config()
    forged = replace(kit.memory_table(n=0, n_pending=0, bloom_blocks=n_blocks), slots=())
    checkpoint.save_tables(tmp_path, {"t": replace(forged, config=config)})
    with pytest.raises(es.CheckpointMismatchError, match=f"sub-filters of {64 * n_blocks} bytes"):
        es.Table.load(tmp_path)


def test_bools_of_other_bytes_are_refused(tmp_path):
    checkpoint.save_tables(tmp_path, {}, {"flag": np.array([True, False])})
    kit.forge_file(tmp_path, "extra", [[np.array([1, 2], np.uint8)]], layout.EXTRA_COLUMNS)
    with pytest.raises(es.CorruptCheckpointError, match="is of bool"):
        checkpoint.load_tables(tmp_path)


class Strange(blocks.BlockWriter):
    """Writes files that Arrow reads, and that are not of the format."""

    how = ""

    def __init__(self, name, columns, file):
        super().__init__(name, columns, file)
        if self.how == "compressed":
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            self._writer = pa.ipc.new_file(self, self._schema, options=options)
        if self.how == "old metadata":
            options = pa.ipc.IpcWriteOptions(use_legacy_format=True)
            self._writer = pa.ipc.new_file(self, self._schema, options=options)
        if self.how == "schema metadata":
            self._schema = self._schema.with_metadata({"a": "b"})
            self._header_bytes = 8 + self._schema.serialize().size
            self._writer = pa.ipc.new_file(self, self._schema)

    def _arrow_array(self, i, array):
        made = super()._arrow_array(i, array)
        if self.how == "nulls" and i == 3:
            bits = pa.py_buffer(bytes([0b11111110, 0xFF]))
            return pa.Array.from_buffers(made.type, len(made), [bits, made.buffers()[1]], 1)
        return made


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("compressed", "compressed|bytes of its rows"),
        ("nulls", "has nulls|bytes of its rows"),
        ("schema metadata", "the columns are"),
        ("old metadata", "does not begin with a message"),
    ],
)
def test_arrow_files_that_are_not_of_the_format_are_refused(how, message, saved, monkeypatch):
    monkeypatch.setattr(Strange, "how", how)
    monkeypatch.setattr(kit, "BlockWriter", Strange)
    forge_rows(saved)
    with pytest.raises(es.CorruptCheckpointError, match=message):
        kit.content_of(saved)


def test_rows_that_a_block_does_not_have_are_refused(saved):
    document = kit.read_manifest(saved)
    entry = document["files"][0]
    sections = [blocks.Section(b, r and r + 1, int(c, 16)) for b, r, c in entry["sections"]]
    kit.list_sections(saved, entry, sections)
    with pytest.raises(es.CorruptCheckpointError, match=r"has not the .* of its rows|the 13 rows"):
        kit.content_of(saved)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_sections_with_right_checksums_never_do_harm(seed, saved):
    """Each ends in a typed error or in rows of the right shape; nothing else, and quickly."""
    rng = random.Random(seed)
    entry = kit.read_manifest(saved)["files"][0]
    data = kit.first_file(saved).read_bytes()
    outcomes = {"loaded": 0, "refused": 0}
    for _ in range(150):
        mutated = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(data))
            value = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
            width = rng.choice([1, 1, 2, 4, 8])
            mutated[place : place + width] = bytes([value]) * min(width, len(data) - place)
        kit.first_file(saved).write_bytes(mutated)
        sections, offset = [], 0
        for n_bytes, n_rows, _ in entry["sections"]:
            seed_crc = blocks.section_seed(entry["name"], offset)
            crc = blocks.zlib.crc32(mutated[offset : offset + n_bytes], seed_crc)
            sections.append(blocks.Section(n_bytes, n_rows, crc))
            offset += n_bytes
        kit.list_sections(saved, entry, sections)
        try:
            found = kit.content_of(saved)
        except es.CorruptCheckpointError:
            outcomes["refused"] += 1
        else:
            outcomes["loaded"] += 1
            assert [array[1] for array in found["t"]["rows"]] == [
                (12,),
                (12, 2),
                (12, 2),
                (12,),
                (12,),
            ]
    assert outcomes["refused"] > 20


def test_a_candidate_of_the_engine_with_a_row_is_caught_by_verify_at_any_partition(tmp_path):
    table = kit.memory_table(n=500, n_pending=60)
    for i in (0, 250, 499):
        key = table.rows.keys[i : i + 1]
        keys = kit.in_order(np.concatenate([table.pending.keys, key]))
        n = len(keys)
        pending = Candidates(keys, np.ones(n, np.uint32), np.zeros(n, np.int64))
        checkpoint.save_tables(tmp_path, {"t": replace(table, pending=pending)})
        with pytest.raises(es.CorruptCheckpointError, match=f"key {key[0]} has a row"):
            checkpoint.verify(tmp_path)
