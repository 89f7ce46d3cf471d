"""Checkpoints opened for serving: what is verified when, and what damage does to whom."""

import warnings

import checkpoint_kit as kit
import numpy as np
import pytest
from reference.hashing import partition_of
from serving_kit import (
    asked_of,
    blocks_of,
    filled,
    flip,
    same,
    searched,
    together,
)

import embstore as es
from embstore import checkpoint, serving
from embstore.checkpoint import fsio, lazy
from embstore.engines.types import Rows

pytestmark = pytest.mark.usefixtures("quick_disk")


@pytest.fixture
def n_checks(monkeypatch):
    """How often each section was compared with its checksum, by file and offset."""
    counts, check = {}, lazy.check_sum

    def counted(data, crc, name, offset):
        counts[name, offset] = counts.get((name, offset), 0) + 1
        check(data, crc, name, offset)

    monkeypatch.setattr(lazy, "check_sum", counted)
    return counts


def test_only_touched_blocks_are_verified_each_once(tmp_path, small_blocks, n_checks):
    with filled(600) as table:
        table.save(tmp_path)
        n_sections = sum(len(f["sections"]) for f in kit.read_manifest(tmp_path)["files"])
        with searched(tmp_path) as served:
            assert n_checks == {}
            served.find([])
            assert n_checks == {}
            served.find([0])
            assert 3 <= len(n_checks) <= 10 < n_sections
            stats = served.stats()
            assert stats["n_blocks_touched"] == len(n_checks) - 2  # and header and footer
            assert 0 < stats["bytes_verified"] < stats["nbytes_mapped"]
            for key in asked_of(table).tolist():
                served.find([key])
            assert set(n_checks.values()) == {1}
            assert len(n_checks) <= n_sections
        with searched(tmp_path, verify="full") as served:
            assert served.stats()["bytes_verified"] == served.stats()["nbytes_mapped"]
            n_before = sum(n_checks.values())
            served.find(asked_of(table))
            assert sum(n_checks.values()) == n_before


@pytest.mark.parametrize("which", [0, 1, 4, 7, -1, "all of a file"])
def test_a_damaged_block_fails_the_finds_that_need_it(tmp_path, small_blocks, which):
    with filled(600) as table:
        table.save(tmp_path)
        blocks = blocks_of(tmp_path)
        files = sorted({name for name, _, _ in blocks})
        own = [block for block in blocks if block[0] == files[1]]
        assert len(own) > 8
        damaged = own if which == "all of a file" else [own[which]]
        for name, offset, _ in damaged:
            flip(tmp_path, name, offset + 150)
        lost = np.concatenate([keys for _, _, keys in damaged])
        (rows,) = table.export(batch_rows=10**6)
        whole = np.setdiff1d(rows.keys, lost)
        served = searched(tmp_path)
        for key in lost.tolist():  # also as the first find of all
            with pytest.raises(es.CorruptCheckpointError, match=rf"{files[1]}, offset \d+: .*sum"):
                served.find([key])
        for _ in range(2):
            same(served.find(whole), table.find(whole))
            with pytest.raises(es.CorruptCheckpointError, match=f"offset {damaged[0][1]}:"):
                served.find(np.concatenate([whole, damaged[0][2]]))
        for key in whole[:20].tolist():
            with searched(tmp_path) as fresh:
                same(fresh.find([key]), table.find([key]))
        absent = np.setdiff1d(asked_of(table), rows.keys)
        listed = kit.read_manifest(tmp_path)["files"]
        first, last = next(f["partitions"] for f in listed if f["name"] == files[1])
        for key in absent.tolist():
            try:
                same(served.find([key], missing="initial"), table.find([key], missing="initial"))
            except es.CorruptCheckpointError:
                assert first <= partition_of(np.array([key]))[0] <= last  # it may be in the block
        with pytest.raises(es.CorruptCheckpointError, match=files[1]):
            searched(tmp_path, verify="full")
        served.close()


@pytest.mark.parametrize("section", [0, -1])
def test_header_and_footer_are_checked_with_the_first_block(tmp_path, small_blocks, section):
    with filled(600) as table:
        table.save(tmp_path)
        (rows,) = table.export(batch_rows=10**6)
        file = kit.read_manifest(tmp_path)["files"][1]
        assert file["kind"] == "rows"
        at = 0 if section == 0 else file["bytes"] - file["sections"][-1][0]
        flip(tmp_path, file["name"], at + 20)
        first, last = file["partitions"]
        partitions = partition_of(rows.keys)
        is_hit = (partitions >= first) & (partitions <= last)
        with searched(tmp_path) as served:
            same(served.find(rows.keys[~is_hit]), table.find(rows.keys[~is_hit]))
            for _ in range(2):
                with pytest.raises(es.CorruptCheckpointError, match=f"{file['name']}, offset {at}"):
                    served.find(rows.keys[is_hit][:1])


def test_damage_that_open_sees(tmp_path):
    with filled(100) as table:
        table.save(tmp_path)
    data = kit.first_file(tmp_path)
    whole = data.read_bytes()
    for content in (whole[:-1], whole + b"\0", b""):
        data.write_bytes(content)
        with pytest.raises(es.CorruptCheckpointError, match=r"bytes; the manifest says"):
            serving.open(tmp_path)
    data.unlink()
    with pytest.raises(es.CorruptCheckpointError, match="is missing"):
        serving.open(tmp_path)
    data.symlink_to("elsewhere")
    with pytest.raises(es.CorruptCheckpointError, match="is a link"):
        serving.open(tmp_path)
    data.unlink()
    data.write_bytes(whole)
    manifest = tmp_path / "manifest.json"
    for offset in range(0, manifest.stat().st_size, 97):
        text = manifest.read_bytes()
        flip(tmp_path, manifest.name, offset)
        with pytest.raises(es.CorruptCheckpointError, match=r"manifest\.json"):
            serving.open(tmp_path)
        manifest.write_bytes(text)
    serving.open(tmp_path).close()
    with pytest.raises(es.CheckpointError, match="holds no checkpoint"):
        serving.open(tmp_path.parent)


def test_a_file_that_cannot_be_mapped_is_an_error(tmp_path, monkeypatch):
    with filled(10) as table:
        table.save(tmp_path)

    def refuse(*_):
        raise OSError(12, "no memory")

    n_open = kit.n_open_files()
    monkeypatch.setattr(fsio.calls, "map_file", refuse)
    with pytest.raises(es.CheckpointError, match=r"cannot map .*arrow: no memory"):
        serving.open(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(fsio.calls, "reserve", refuse)
    with pytest.raises(es.CheckpointError, match=r"cannot map .*: no addresses for \d+ bytes"):
        serving.open(tmp_path)
    assert kit.n_open_files() == n_open


def forged(path, change, n=40, block_rows=10):
    """Save a MemoryTable in blocks that `change` has made wrong; all checksums are right."""
    table = kit.memory_table(n, 0)
    table.config = {"dim": 2, "name": "t", "initializer": {"kind": "Constant", "value": 0.0}}
    checkpoint.save_tables(path, {"t": table})
    parts = [table.rows[i : i + block_rows] for i in range(0, n, block_rows)]
    kit.forge_file(path, "rows", [kit.row_arrays(part) for part in change(parts)])
    return table.rows


def test_order_is_checked_in_blocks_and_between_them(tmp_path):
    def swap(parts):
        return [parts[0], parts[2], parts[1], parts[3]]

    rows = forged(tmp_path / "a", swap)
    with searched(tmp_path / "a") as served:
        with pytest.raises(es.CorruptCheckpointError, match=r"offset \d+: key .*out of order"):
            served.find(rows.keys)
        for key in rows.keys[:20].tolist():  # which of the blocks is wrong is not known
            with pytest.raises(es.CorruptCheckpointError, match="out of order"):
                served.find([key])

    def reverse(parts):
        columns = [column[::-1] for column in kit.row_arrays(parts[1])]
        return [parts[0], Rows(*columns), *parts[2:]]

    rows = forged(tmp_path / "b", reverse)
    with searched(tmp_path / "b") as served:
        with pytest.raises(es.CorruptCheckpointError, match=r"offset \d+: key .*out of order"):
            served.find(rows.keys[10:20])
        same(served.find(rows.keys[:10]), rows.values[:10])

    def misplace(parts):
        steps = np.full(10, 41)
        return [parts[0], Rows(*kit.row_arrays(parts[1])[:-1], steps), *parts[2:]]

    rows = forged(tmp_path / "c", misplace)
    with searched(tmp_path / "c") as served:
        with pytest.raises(es.CorruptCheckpointError, match=r"is of step 41, not of 0\.\.40"):
            served.find(rows.keys[10:11])

    def spoil(parts):
        values = np.full_like(parts[1].values, np.nan)
        columns = kit.row_arrays(parts[1])
        return [parts[0], Rows(columns[0], values, *columns[2:]), *parts[2:]]

    rows = forged(tmp_path / "d", spoil)
    with searched(tmp_path / "d") as served:
        with pytest.raises(es.CorruptCheckpointError, match="10 rows have NaN or infinity; 0 were"):
            served.find(rows.keys[10:11])


def test_a_config_that_is_none_is_refused(tmp_path):
    for change, fault in (
        ({"dim": 3}, "has dim 2; its config says 3"),
        ({"dtype": "float16"}, "has dtype float32; its config says float16"),
        ({"initializer": {"kind": "Other"}}, "Other"),
    ):
        table = kit.memory_table(5, 0)
        table.config = {"dim": 2} | change
        checkpoint.save_tables(tmp_path, {"t": table})
        with pytest.raises(es.CheckpointMismatchError, match=fault):
            serving.open(tmp_path)


def test_rows_that_are_not_finite_are_told_at_open(tmp_path):
    with es.Table(dim=2) as table:
        values = np.array([[np.nan, 1], [2, 3]], np.float32)
        none = np.empty((2, 0), np.float32)
        rows = Rows(np.array([1, 2]), values, none, np.ones(2, np.uint32), np.zeros(2, np.int64))
        table.import_(rows)
        with pytest.warns(es.EmbstoreWarning, match="NaN or infinity"):
            table.save(tmp_path)
        with pytest.raises(es.CheckpointMismatchError, match=r"1 rows .* NaN or infinity"):
            serving.open(tmp_path)
        with serving.open(tmp_path, allow_nonfinite=True) as served:
            same(served.find([1, 2]), table.find([1, 2]))
            assert served.wait_indexed(60)
            same(served.find([1, 2]), table.find([1, 2]))
        searched(tmp_path, allow_nonfinite=True, verify="full").close()


def test_threads_touch_the_same_blocks(tmp_path, small_blocks, n_checks):
    with filled(1000) as table:
        table.save(tmp_path)
        keys = asked_of(table)
        expected = table.find(keys)
        damaged = blocks_of(tmp_path)[5]
        for index in ("none", "background"):
            n_checks.clear()
            with serving.open(tmp_path, index=index) as served:
                for rows in together(8, lambda i, served=served: served.find(keys)):
                    same(rows, expected)
                served.wait_indexed(60)
                n_sections = sum(len(f["sections"]) for f in kit.read_manifest(tmp_path)["files"])
                assert set(n_checks.values()) == {1}
                assert len(n_checks) <= n_sections
        flip(tmp_path, damaged[0], damaged[1] + 100)
        with searched(tmp_path) as served:
            errors = together(8, lambda i: served.find(damaged[2]))
            assert {type(error) for error in errors} == {es.CorruptCheckpointError}
            assert len({str(error) for error in errors}) == 1


def test_damage_that_the_index_meets_is_kept(tmp_path, small_blocks):
    with filled(600) as table:
        table.save(tmp_path)
        (rows,) = table.export(batch_rows=10**6)
        name, offset, lost = blocks_of(tmp_path)[-1]
        flip(tmp_path, name, offset + 100)
        served = serving.open(tmp_path)
        with pytest.warns(es.EmbstoreWarning, match=f"no index can be built.*{name}"):
            assert not served.wait_indexed(60)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it is told once
            assert not served.wait_indexed(60)
            whole = np.setdiff1d(rows.keys, lost)
            same(served.find(whole), table.find(whole))
        assert isinstance(served.index_error, es.CorruptCheckpointError)
        assert not served.is_indexed
        with pytest.raises(es.CorruptCheckpointError, match=f"offset {offset}"):
            served.find(lost)
        served.close()
