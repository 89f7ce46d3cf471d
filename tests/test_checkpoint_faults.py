"""Checkpoints and bad luck, or bad will: damaged, forged and foreign files, failing disks, kills."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import checkpoint_kit as kit
import numpy as np
import pyarrow as pa
import pytest

import embstore as es
from embstore import checkpoint
from embstore.checkpoint import blocks, commit, fsio, layout
from embstore.engines.types import Candidates


@pytest.fixture
def saved(tmp_path):
    """A small checkpoint with a file of each kind but bloom."""
    table = kit.memory_table(n=12, n_pending=3)
    checkpoint.save_tables(tmp_path, {"t": table}, {"x": np.arange(3), "note": "a"})
    return tmp_path


def first_file(path, kind="rows"):
    """Return the path of the first file of a kind."""
    names = [f["name"] for f in kit.read_manifest(path)["files"] if f["kind"] == kind]
    return Path(path) / names[0]


# ---- damage


def flips(path, offsets, seed=0):
    """Flip bits of one byte at a time and yield the offset; the file is whole again at the end."""
    rng = random.Random(seed)
    with open(path, "r+b", buffering=0) as file:
        for offset in offsets:
            byte = os.pread(file.fileno(), 1, offset)[0]
            os.pwrite(file.fileno(), bytes([byte ^ rng.randint(1, 255)]), offset)
            yield offset
            os.pwrite(file.fileno(), bytes([byte]), offset)


def test_each_flipped_byte_is_detected(saved):
    checkpoint.verify(saved)
    n_flips = 0
    for name, data in kit.files_of(saved).items():
        for offset in flips(saved / name, range(len(data))):
            with pytest.raises(es.CorruptCheckpointError) as error:
                checkpoint.verify(saved)
            assert name in str(error.value), (name, offset)
            n_flips += 1
    assert n_flips == sum(map(len, kit.files_of(saved).values())) > 5000
    checkpoint.verify(saved)


def test_flipped_bytes_of_a_filter_are_detected(tmp_path):
    checkpoint.save_tables(tmp_path, {"t": kit.memory_table(1, 0, bloom_blocks=1)})
    bloom = first_file(tmp_path, "bloom")
    size = bloom.stat().st_size
    offsets = {*range(700), *range(700, size - 500, 61), *range(size - 500, size)}
    for _ in flips(bloom, sorted(offsets)):
        with pytest.raises(es.CorruptCheckpointError, match=bloom.name):
            checkpoint.verify(tmp_path)


def test_a_table_is_not_loaded_from_damage(tmp_path):
    with es.Table(2, optimizer=es.Adam(), name="t") as table:
        table.find_or_insert(np.arange(50), step=1)
        table.save(tmp_path)
    rows = first_file(tmp_path)
    for _ in flips(rows, range(0, rows.stat().st_size, 37)):
        with pytest.raises(es.CorruptCheckpointError, match="offset"):
            es.Table.load(tmp_path)
    assert len(es.Table.load(tmp_path)) == 50


def test_each_truncation_is_detected(saved):
    for name, data in kit.files_of(saved).items():
        for n_bytes in range(len(data)):
            (saved / name).write_bytes(data[:n_bytes])
            with pytest.raises(es.CorruptCheckpointError, match=name):
                checkpoint.verify(saved)
        for more in (b"\0", data):
            (saved / name).write_bytes(data + more)
            with pytest.raises(es.CorruptCheckpointError, match=name):
                checkpoint.verify(saved)
        (saved / name).write_bytes(data)
    checkpoint.verify(saved)


def test_a_file_that_ends_while_it_is_read_is_told(saved):
    with checkpoint.load_tables(saved) as loaded:
        rows = loaded.tables["t"].rows()
        os.truncate(first_file(saved), 500)
        with pytest.raises(es.CorruptCheckpointError, match="has 500 bytes"):
            next(rows)
    with fsio.Directory(str(saved)) as directory, directory.open("manifest.json") as file:
        with pytest.raises(es.CorruptCheckpointError, match="ends at offset"):
            file.read(10, 10**6)


def test_missing_swapped_foreign_and_older_files_are_detected(saved, tmp_path_factory):
    files = kit.files_of(saved)
    data_names = sorted(set(files) - {"manifest.json"})
    other = tmp_path_factory.mktemp("other")
    checkpoint.save_tables(other, {"t": kit.memory_table(12, 3, seed=9)}, {"x": np.arange(3) + 1})
    foreign = kit.files_of(other)
    assert sorted(foreign) == sorted(files)
    for name in data_names:
        (saved / name).unlink()
        with pytest.raises(es.CorruptCheckpointError, match=f"{name}, which.* is missing"):
            checkpoint.verify(saved)
        for wrong in (foreign[name], *(files[n] for n in data_names if n != name)):
            (saved / name).write_bytes(wrong)
            with pytest.raises(es.CorruptCheckpointError, match=name):
                checkpoint.verify(saved)
        (saved / name).write_bytes(files[name])
    (saved / "manifest.json").unlink()
    with pytest.raises(es.CheckpointError, match="holds no checkpoint"):
        checkpoint.verify(saved)


def test_swapped_and_repeated_blocks_are_detected(tmp_path, monkeypatch):
    monkeypatch.setattr("embstore.checkpoint.writer.BLOCK_BYTES", 300)
    checkpoint.save_tables(tmp_path, {"t": kit.memory_table(n=60)})
    rows = first_file(tmp_path)
    document = kit.read_manifest(tmp_path)
    sizes = [section[0] for section in document["files"][0]["sections"]]
    twins = [i for i in range(1, len(sizes) - 2) if sizes[i] == sizes[i + 1]]
    assert twins
    data = rows.read_bytes()
    begin = sum(sizes[: twins[0]])
    middle, end = begin + sizes[twins[0]], begin + 2 * sizes[twins[0]]
    one, two = data[begin:middle], data[middle:end]
    for pair in (two + one, one + one, two + two):
        rows.write_bytes(data[:begin] + pair + data[end:])
        with pytest.raises(es.CorruptCheckpointError, match=rf"{rows.name}, offset \d+"):
            checkpoint.verify(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "data", "lock"])
def test_links_and_pipes_are_not_followed(name, saved):
    path = first_file(saved) if name == "data" else saved / name
    path.rename(saved / "elsewhere")
    path.symlink_to(saved / "elsewhere")
    if name == "lock":
        with pytest.raises(es.CheckpointError, match="lock"):
            checkpoint.save_tables(saved, {})
        return
    with pytest.raises(es.CorruptCheckpointError, match="is a link"):
        checkpoint.verify(saved)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(es.CorruptCheckpointError, match="not a regular file"):
        checkpoint.verify(saved)


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
    "features": (at("required_features", ["deltas"]), r"does not know: \['deltas'\]"),
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
    "extra empty": (
        at("extra", "arrays", [["x", "int64", [3]], ["y", "int8", [2**62, 0]]]),
        "extra: ",
    ),
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
        checkpoint.verify(saved)
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
    import hashlib

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
    assert f"{first_file(saved).name}, offset" in str(error.value)


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
    with pytest.raises(es.CorruptCheckpointError, match="key is in the table already"):
        es.Table.load(tmp_path)
    kit.forge_file(
        tmp_path, "candidates", [[np.array([2]), np.full(1, 3, np.uint32), np.zeros(1, np.int64)]]
    )
    with pytest.raises(es.CorruptCheckpointError, match="a count reaches min_count"):
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
        ("nulls", "has nulls"),
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
    with pytest.raises(es.CorruptCheckpointError, match="has not the .* of its rows|the 13 rows"):
        kit.content_of(saved)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_sections_with_right_checksums_never_do_harm(seed, saved):
    """Each ends in a typed error or in rows of the right shape; nothing else, and quickly."""
    rng = random.Random(seed)
    entry = kit.read_manifest(saved)["files"][0]
    data = first_file(saved).read_bytes()
    outcomes = {"loaded": 0, "refused": 0}
    for _ in range(150):
        mutated = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(data))
            value = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
            width = rng.choice([1, 1, 2, 4, 8])
            mutated[place : place + width] = bytes([value]) * min(width, len(data) - place)
        first_file(saved).write_bytes(mutated)
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


# ---- failing disks


class Crash(BaseException):
    """The process is gone: nothing that comes after it happens."""


class Disk:
    """Stands for the system's calls; the n-th fails, or kills."""

    def __init__(self, monkeypatch, nth=None, error=None, is_sticky=False, kinds=None):
        self.n_calls = 0
        self.nth, self.error, self.is_sticky, self.kinds = nth, error, is_sticky, kinds
        self.log = []
        self.real = fsio.calls
        calls = {name: self.wrapped(name, call) for name, call in vars(self.real).items()}
        monkeypatch.setattr(fsio, "calls", SimpleNamespace(**calls))

    def wrapped(self, name, call):
        def wrapper(*args, **kwargs):
            is_counted = self.kinds is None or name in self.kinds
            self.n_calls += is_counted
            is_hit = (
                self.nth is not None
                and is_counted
                and (self.n_calls == self.nth or (self.is_sticky and self.n_calls > self.nth))
            )
            if is_hit or (self.error is Crash and self.nth and self.n_calls >= self.nth):
                self.log.append(name)
                if name == "close":
                    call(*args, **kwargs)
                raise Crash if self.error is Crash else OSError(self.error, os.strerror(self.error))
            return self.done(name, call, args, kwargs)

        return wrapper

    def done(self, name, call, args, kwargs):
        return None if name == "fsync" else call(*args, **kwargs)


def save(path, table, k):
    checkpoint.save_tables(path, {"t": table}, {"k": k, "x": np.full(3, k)})


def calls_of_a_save(path, table, kinds=None):
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, kinds=kinds)
        save(path, table, 0)
    return disk.n_calls


def generation_of(path):
    with checkpoint.load_tables(path) as loaded:
        return loaded.generation


@pytest.mark.parametrize(
    ("error", "is_sticky"), [(errno.ENOSPC, False), (errno.EIO, False), (errno.EIO, True)]
)
def test_the_nth_call_that_fails_is_an_error_and_no_loss(error, is_sticky, tmp_path):
    old, new = kit.memory_table(seed=1), kit.memory_table(seed=2, bloom_blocks=1)
    save(tmp_path, old, 1)
    expected = [{"t": kit.content_of_table(table)} for table in (old, new)]
    n_calls = calls_of_a_save(tmp_path, old)
    n_fds = len(os.listdir("/proc/self/fd"))
    assert n_calls > 50
    n_raised = 0
    for nth in range(1, n_calls + 20):
        before = generation_of(tmp_path)
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            disk = Disk(patch, nth, error, is_sticky)
            try:
                save(tmp_path, new, 2)
            except es.CheckpointError as raised:
                assert raised.errno == error, (nth, disk.log)
                n_raised += 1
                is_after_commit = {"rename", "close"} & set(disk.log) or generation_of(
                    tmp_path
                ) > before
                if not is_after_commit or generation_of(tmp_path) == before:
                    assert kit.content_of(tmp_path) == expected[0], (nth, disk.log)
                else:
                    assert kit.content_of(tmp_path) == expected[1], (nth, disk.log)
            else:
                assert told or not disk.log, (nth, disk.log)
                assert kit.content_of(tmp_path) == expected[1]
        save(tmp_path, old, 1)
        assert kit.content_of(tmp_path) == expected[0]
        listed = {file["name"] for file in kit.read_manifest(tmp_path)["files"]}
        assert set(kit.files_of(tmp_path)) == listed | {"manifest.json"}, (nth, disk.log)
    assert n_raised > 50
    assert len(os.listdir("/proc/self/fd")) == n_fds


@pytest.mark.parametrize("error", [errno.EIO, errno.EMFILE])
def test_the_nth_call_that_fails_while_loading_is_an_error(error, saved):
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        checkpoint.verify(saved)
    for nth in range(1, disk.n_calls + 1):
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, nth, error)
            with pytest.raises(es.CheckpointError) as raised:
                checkpoint.verify(saved)
        assert raised.value.errno == error
        assert not isinstance(raised.value, es.CorruptCheckpointError)
    checkpoint.verify(saved)


def test_bytes_written_short_are_written_on(tmp_path, monkeypatch):
    real = fsio.calls.write
    monkeypatch.setattr(
        fsio.calls, "write", lambda fd, data: real(fd, data[: max(1, len(data) // 2)])
    )
    real_read = fsio.calls.pread
    monkeypatch.setattr(fsio.calls, "pread", lambda fd, n, at: real_read(fd, max(1, n // 2), at))
    table = kit.memory_table()
    save(tmp_path, table, 1)
    assert kit.content_of(tmp_path) == {"t": kit.content_of_table(table)}


def test_a_disk_that_writes_nothing_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(fsio.calls, "write", lambda fd, data: 0)
    with pytest.raises(es.CheckpointError, match="wrote 0 of"):
        save(tmp_path, kit.memory_table(), 1)


def test_a_full_table_stays_usable_after_a_failed_save(tmp_path, monkeypatch):
    with es.Table(2, name="t", optimizer=es.Adagrad()) as table:
        table.find_or_insert([1, 2, 3], step=0)
        Disk(monkeypatch, 3, errno.ENOSPC, is_sticky=True, kinds=("write",))
        with pytest.raises(es.CheckpointError, match="No space left") as raised:
            table.save(tmp_path)
        assert raised.value.errno == errno.ENOSPC
        assert os.listdir(tmp_path) == ["lock"]
        table.find_or_insert([4], step=1)
        assert len(table) == 4


# ---- crashes


class PowerLoss(Disk):
    """Crashes at the n-th call; what was not fsynced by then is undone, all or at random."""

    def __init__(self, monkeypatch, folder, nth, rng):
        self.folder, self.rng = Path(folder), rng
        self.names, self.dirty, self.pending = {}, set(), []
        super().__init__(monkeypatch, nth, Crash)

    def done(self, name, call, args, kwargs):
        kept = None
        if name in ("rename", "unlink"):
            target = self.folder / args[-1]
            kept = target.read_bytes() if target.exists() else None
        result = None if name == "fsync" else call(*args, **kwargs)
        if name == "open":
            is_new = args[1] & os.O_EXCL
            self.names[result] = args[0] if is_new else None
            if is_new:
                self.pending.append((args[0], None))
        elif name == "write":
            self.dirty.add(self.names[args[0]])
        elif name == "fsync":
            self.dirty.discard(self.names.get(args[0]))
            if self.names.get(args[0]) is None:  # the directory
                self.pending.clear()
        elif name in ("rename", "unlink"):
            self.pending.append((args[-1], kept))
        return result

    def lose(self):
        """Leave the folder as the disk may have it after the power comes back."""
        for name in self.dirty:
            if (self.folder / name).exists():
                data = (self.folder / name).read_bytes()
                (self.folder / name).write_bytes(data[: self.rng.randint(0, len(data) // 2)])
        for name, before in reversed(self.pending):
            if self.rng.random() < 0.5:
                continue
            if before is None:
                (self.folder / name).unlink(missing_ok=True)
            else:
                (self.folder / name).write_bytes(before)


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_a_crash_at_any_call_leaves_a_whole_checkpoint(seed, tmp_path):
    """Without a seed the process dies; with one, the power fails and what was not synced goes."""
    tables = [kit.memory_table(seed=s) for s in (1, 2)]
    save(tmp_path, tables[0], 0)
    n_calls = calls_of_a_save(tmp_path, tables[0])
    rng = random.Random(seed)
    seen = set()
    for nth in range(1, n_calls + 1):
        save(tmp_path, tables[0], 0)
        with pytest.MonkeyPatch.context() as patch:
            disk = PowerLoss(patch, tmp_path, nth, rng)
            with pytest.raises(Crash):
                save(tmp_path, tables[1], 1)
        if seed is not None:
            disk.lose()
        with checkpoint.load_tables(tmp_path) as loaded:
            k = loaded.extra["k"]
            assert loaded.extra["x"].tolist() == [k] * 3
        assert kit.content_of(tmp_path) == {"t": kit.content_of_table(tables[k])}, nth
        seen.add(k)
    assert seen == {0, 1}
    save(tmp_path, tables[1], 1)
    listed = {file["name"] for file in kit.read_manifest(tmp_path)["files"]}
    assert set(kit.files_of(tmp_path)) == listed | {"manifest.json"}


CHILD = """
import sys
import numpy as np
import embstore as es
k = int(sys.argv[2])
with es.Table(8, name="t", optimizer=es.SGD(1.0, momentum=0.5)) as table:
    keys = np.arange(20_000) * 977
    while True:
        table.assign(keys, np.full((len(keys), 8), k, np.float32), step=k)
        table.save(sys.argv[1], extra={"k": k, "bulk": np.full(100_000, k)})
        print(k, flush=True)
        k += 1
"""


def kill_loop(path, n_kills, seed):
    """Kill a saving process at random times; what is there afterwards is always one whole save."""
    rng = random.Random(seed)
    done = -1
    for _ in range(n_kills):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, path, str(done + 1)], stdout=subprocess.PIPE, text=True
        )
        with child:
            for _ in range(rng.randint(1, 4)):  # saves before the killed one
                done = int(child.stdout.readline())
            time.sleep(rng.random() * 0.05)
            child.send_signal(signal.SIGKILL)
            done = max([done, *(int(line) for line in child.stdout)])
        checkpoint.verify(path)
        with es.Store.load(path) as store:
            k = store.extra["k"]
            assert done <= k <= done + 1
            done = k
            assert (store.extra["bulk"] == k).all()
            assert store["t"].step == k
            rows = store["t"].find(np.arange(20_000) * 977, with_meta=True)
            assert (rows.rows == k).all()
            assert (rows.step == k).all()


def test_a_process_killed_while_saving_leaves_the_last_whole_checkpoint(tmp_path):
    kill_loop(tmp_path, 5, seed=0)


@pytest.mark.torture
def test_many_kills(tmp_path):
    kill_loop(tmp_path, 300, seed=1)


def test_names_of_ours_are_told_from_others():
    assert commit.OWN_NAME.fullmatch(commit.data_name(1, "t000-rows-00-ff"))
    assert commit.OWN_NAME.fullmatch(commit.data_name(2**62, "extra"))
    for name in ("x.arrow", "g1-x.arrow", "g00000001-x.arrow.bak", "G00000001-x.arrow"):
        assert not commit.OWN_NAME.fullmatch(name)


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
