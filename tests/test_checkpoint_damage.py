"""Damaged checkpoints: each flipped byte, truncation, foreign or swapped file is detected."""

import os
import random

import checkpoint_kit as kit
import numpy as np
import pytest

import embstore as es
from embstore import checkpoint
from embstore.checkpoint import fsio

pytestmark = pytest.mark.usefixtures("quick_disk")


@pytest.fixture
def saved(tmp_path):
    """A small checkpoint with a file of each kind but bloom."""
    table = kit.memory_table(n=12, n_pending=3)
    checkpoint.save_tables(tmp_path, {"t": table}, {"x": np.arange(3), "note": "a"})
    return tmp_path


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
    bloom = kit.first_file(tmp_path, "bloom")
    size = bloom.stat().st_size
    offsets = {*range(700), *range(700, size - 500, 61), *range(size - 500, size)}
    for _ in flips(bloom, sorted(offsets)):
        with pytest.raises(es.CorruptCheckpointError, match=bloom.name):
            checkpoint.verify(tmp_path)


def test_a_table_is_not_loaded_from_damage(tmp_path):
    with es.Table(2, optimizer=es.Adam(), name="t") as table:
        table.find_or_insert(np.arange(50), step=1)
        table.save(tmp_path)
    rows = kit.first_file(tmp_path)
    for _ in flips(rows, range(0, rows.stat().st_size, 37)):
        with pytest.raises(es.CorruptCheckpointError, match="offset"):
            es.Table.load(tmp_path)
    assert len(es.Table.load(tmp_path)) == 50


def test_each_truncation_is_detected(saved):
    for name, data in kit.files_of(saved).items():
        for n_bytes in reversed(range(len(data))):
            os.truncate(saved / name, n_bytes)
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
        os.truncate(kit.first_file(saved), 500)
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
    rows = kit.first_file(tmp_path)
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


@pytest.mark.promise("S4", "links and pipes are not followed")
@pytest.mark.parametrize("name", ["manifest.json", "data", "lock"])
def test_links_and_pipes_are_not_followed(name, saved):
    path = kit.first_file(saved) if name == "data" else saved / name
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
