"""Older generations: how many stay, that each of them loads, and what is never removed."""

import os
import shutil
import warnings

import checkpoint_kit as kit
import numpy as np
import pytest

import embstore as es
from embstore import checkpoint
from embstore.checkpoint import commit

pytestmark = pytest.mark.usefixtures("quick_disk")


def save(path, seed, keep_last):
    return checkpoint.save_tables(path, {"t": kit.memory_table(seed=seed)}, keep_last=keep_last)


def content(seed):
    return {"t": kit.content_of_table(kit.memory_table(seed=seed))}


def test_the_newest_generations_stay(tmp_path):
    for seed in range(1, 6):
        before = kit.files_of(tmp_path) if seed > 1 else {}
        report = save(tmp_path, seed, 3)
        assert report.generation == seed
        assert checkpoint.generations(tmp_path) == list(range(max(1, seed - 2), seed + 1))
        assert set(kit.files_of(tmp_path)) == kit.names_due(tmp_path)
        for generation in checkpoint.generations(tmp_path):
            assert kit.content_of(tmp_path, generation=generation) == content(generation)
            checkpoint.verify(tmp_path, generation=generation)
        if seed > 1:
            kept = kit.files_of(tmp_path)[commit.kept_name(seed - 1)]
            assert kept == before["manifest.json"]
    save(tmp_path, 6, 2)
    assert checkpoint.generations(tmp_path) == [5, 6]
    save(tmp_path, 7, 1)
    assert checkpoint.generations(tmp_path) == [7]
    assert set(kit.files_of(tmp_path)) == kit.names_due(tmp_path)


def test_generations_of_a_chain_share_their_files(tmp_path):
    rng = np.random.default_rng(0)
    tables = [kit.memory_table(300)]
    report = checkpoint.save_tables(tmp_path, {"t": tables[0]}, keep_last=2)
    for _ in range(2):
        table, changes = kit.changed_table(tables[-1], 9, 9, rng)
        tables.append(table)
        report = kit.save_delta(tmp_path, {"t": changes}, report.digest, keep_last=2)
    names = sorted(name for name in kit.files_of(tmp_path) if "rows" in name)
    assert [name[:9] for name in names] == ["g00000001", "g00000002", "g00000003"]
    checkpoint.save_tables(tmp_path, {"t": tables[0]}, keep_last=2)
    assert checkpoint.generations(tmp_path) == [3, 4]
    assert kit.content_of(tmp_path, generation=3) == {"t": kit.content_of_table(tables[2])}
    assert set(kit.files_of(tmp_path)) == kit.names_due(tmp_path)


def test_a_generation_that_is_not_there(tmp_path):
    with pytest.raises(es.CheckpointError, match=r"has no generation 1; there are \[\]"):
        checkpoint.load_tables(tmp_path, generation=1)
    assert checkpoint.generations(tmp_path) == []
    for seed in (1, 2, 3):
        save(tmp_path, seed, 2)
    for call in (checkpoint.load_tables, checkpoint.inspect, checkpoint.verify):
        with pytest.raises(es.CheckpointError, match=r"no generation 1; there are \[2, 3\]"):
            call(tmp_path, generation=1)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(es.CheckpointError, match=r"no checkpoint.*generations \[2\] were kept"):
        checkpoint.load_tables(tmp_path)
    with pytest.raises(es.CheckpointError, match="No such file"):
        checkpoint.generations(tmp_path / "none")


def test_an_older_generation_loads_when_the_newest_is_damaged(tmp_path):
    save(tmp_path, 1, 2)
    save(tmp_path, 2, 2)
    (tmp_path / "manifest.json").write_text("{}")
    assert checkpoint.generations(tmp_path) == [1]
    assert kit.content_of(tmp_path, generation=1) == content(1)
    with pytest.raises(es.CorruptCheckpointError):
        checkpoint.load_tables(tmp_path)
    with pytest.raises(es.CorruptCheckpointError, match="nothing was saved"):
        save(tmp_path, 3, 2)


@pytest.mark.parametrize("how", [shutil.copyfile, os.rename])
def test_going_back_is_giving_the_kept_manifest_its_name_again(how, tmp_path):
    for seed in (1, 2):
        report = save(tmp_path, seed, 2)
    how(tmp_path / commit.kept_name(1), tmp_path / "manifest.json")
    assert checkpoint.generations(tmp_path) == [1]
    assert kit.content_of(tmp_path) == kit.content_of(tmp_path, generation=1) == content(1)
    report = save(tmp_path, 3, 2)
    assert report.generation == 2
    assert checkpoint.generations(tmp_path) == [1, 2]
    assert kit.content_of(tmp_path, generation=1) == content(1)
    assert set(kit.files_of(tmp_path)) == kit.names_due(tmp_path)


def test_a_kept_manifest_of_a_save_that_died_is_replaced(tmp_path):
    save(tmp_path, 1, 2)
    for text in (b"", (tmp_path / "manifest.json").read_bytes()[:100]):
        newest = checkpoint.generations(tmp_path)[-1]
        (tmp_path / commit.kept_name(newest)).write_bytes(text)
        assert kit.content_of(tmp_path, generation=newest) == content(newest)
        save(tmp_path, newest + 1, 2)
        assert kit.content_of(tmp_path, generation=newest) == content(newest)
    newest = checkpoint.generations(tmp_path)[-1]
    (tmp_path / commit.kept_name(newest)).write_bytes(b"left over")
    save(tmp_path, 9, 1)
    assert set(kit.files_of(tmp_path)) == kit.names_due(tmp_path)


@pytest.mark.parametrize("how", ["damaged", "later version", "of another generation", "link"])
def test_what_an_unreadable_kept_manifest_may_name_is_left(how, tmp_path):
    for seed in (1, 2, 3):
        save(tmp_path, seed, 9)
    kept = tmp_path / commit.kept_name(2)
    if how == "damaged":
        kept.write_bytes(kept.read_bytes().replace(b'"step":40', b'"step":41', 1))
    if how == "later version":
        document = kit.read_manifest(tmp_path, kept.name) | {"min_reader_version": 2}
        newest = (tmp_path / "manifest.json").read_bytes()
        kit.write_manifest(tmp_path, document)
        os.rename(tmp_path / "manifest.json", kept)
        (tmp_path / "manifest.json").write_bytes(newest)
    if how == "of another generation":
        shutil.copyfile(tmp_path / commit.kept_name(1), kept)
    if how == "link":
        os.rename(kept, tmp_path / "elsewhere")
        kept.symlink_to(tmp_path / "elsewhere")
    before = kit.files_of(tmp_path)
    with pytest.warns(es.EmbstoreWarning, match="generation 2 cannot be read; it is left"):
        report = save(tmp_path, 4, 1)
    assert report.generation == 4
    assert checkpoint.generations(tmp_path) == [4]
    after = kit.files_of(tmp_path)
    spared = {n for n in before if n.startswith(("g00000001", "g00000002")) and n[-6:] == ".arrow"}
    assert len(spared) == 6
    assert spared | {kept.name} <= set(after)
    assert not [name for name in after if name.startswith("g00000003")]
    with pytest.raises(es.CheckpointError):
        checkpoint.load_tables(tmp_path, generation=2)
    kept.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(tmp_path, 5, 1)
    assert set(kit.files_of(tmp_path)) - {"elsewhere"} == kit.names_due(tmp_path)


def test_numbers_go_on_behind_the_greatest_there(tmp_path):
    for seed in (1, 2):
        save(tmp_path, seed, 2)
    os.rename(tmp_path / "manifest.json", tmp_path / commit.kept_name(2))
    assert save(tmp_path, 3, 9).generation == 3
    assert checkpoint.generations(tmp_path) == [1, 2, 3]
    assert kit.content_of(tmp_path, generation=2) == content(2)


def test_files_of_other_names_are_left_alone(tmp_path):
    names = ["g1-manifest.json", "g000000001-manifest.json", "g00000001-manifest.json.bak"]
    for name in names:
        (tmp_path / name).write_text("mine")
    save(tmp_path, 1, 2)
    save(tmp_path, 2, 1)
    assert set(names) <= set(kit.files_of(tmp_path))
    assert checkpoint.generations(tmp_path) == [2]


def test_an_old_generation_that_is_removed_while_it_is_read_is_told(tmp_path):
    for seed in (1, 2):
        save(tmp_path, seed, 2)
    with checkpoint.load_tables(tmp_path, generation=1) as loaded:
        save(tmp_path, 3, 2)
        with pytest.raises(es.CheckpointError, match="replaced by another save") as error:
            kit.restore(loaded.path, loaded.tables["t"], kit.Sink())
    assert not isinstance(error.value, es.CorruptCheckpointError)


def test_no_file_descriptor_is_left_open(tmp_path):
    rng = np.random.default_rng(0)
    before = kit.n_open_files()
    for _ in range(5):
        table = kit.memory_table(300, bloom_blocks=1)
        report = checkpoint.save_tables(tmp_path, {"t": table}, keep_last=2)
        for _ in range(2):
            table, changes = kit.changed_table(table, 9, 9, rng)
            report = kit.save_delta(tmp_path, {"t": changes}, report.digest, keep_last=2)
        with checkpoint.load_tables(tmp_path) as loaded:
            next(loaded.tables["t"].rows(3, 9), None)
        checkpoint.compact(tmp_path)
        checkpoint.generations(tmp_path)
    assert kit.n_open_files() <= before
