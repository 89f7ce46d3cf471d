"""reshard: a table cut into N checkpoints, N into M, and back to the same bytes."""

import tracemalloc

import checkpoint_kit as kit
import numpy as np
import pytest
from conversion_kit import program_on
from reference import hashing
from shard_kit import saved_shards, shard_paths, tables_of

import embstore as es
from embstore import checkpoint
from embstore.checkpoint import fsio, layout
from embstore.checkpoint.reshard import reshard

COUNTS = [1, 2, 3, 4, 8]
TOTALS = [name for name in kit.STATE if name.startswith("n_") and name != "n_train_steps"]


# N to M to 1.


@pytest.mark.parametrize("seed", range(3))
def test_n_to_m_to_1_gives_the_same_bytes(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(layout, "BLOCK_BYTES", 2000)
    monkeypatch.setattr("embstore.checkpoint.writer.BLOCK_BYTES", 2000)
    monkeypatch.setattr("embstore.checkpoint.writer.FILE_BYTES", 9000)
    extra = {"epoch": 3, "dense": np.arange(5.0)}
    checkpoint.save_tables(tmp_path / "one", tables_of(seed), extra, {"features": {}})
    expected = kit.files_of(tmp_path / "one")
    assert len(expected) > 10
    at, n_before = tmp_path / "one", 1
    for n in [*COUNTS, 2, 1]:
        sources = shard_paths(at, n_before)
        at = tmp_path / f"{n_before} to {n}"
        report = reshard(sources, (at, n))
        assert report.outputs == tuple(map(str, shard_paths(at, n)))
        assert len(report.rows_by_output) == n
        n_before = n
        back = tmp_path / f"{at.name}, and back"
        reshard(shard_paths(at, n), back)
        assert kit.files_of(back) == expected
    assert kit.files_of(at) == expected


def test_a_shard_has_its_keys_and_its_part_of_the_filter(tmp_path):
    table = tables_of(0)["filtered"]
    checkpoint.save_tables(tmp_path / "one", {"t": table})
    report = reshard(tmp_path / "one", (tmp_path / "many", 3))
    filters, totals = [], []
    for i, path in enumerate(report.outputs):
        with checkpoint.load_tables(path) as loaded:
            found = loaded.tables["t"]
            keys = np.concatenate([block.keys for block in found.rows()])
            assert len(keys) == report.rows_by_output[i]
            assert np.array_equal(keys, table.rows.keys[hashing.shard_of(table.rows.keys, 3) == i])
            assert np.array_equal(found.pins, table.pins[hashing.shard_of(table.pins, 3) == i])
            filters.append(np.stack([*found.bloom()]))
            totals.append([found.state[name] for name in TOTALS])
    assert np.sum(totals, axis=0).tolist() == [table.state[name] for name in TOTALS]
    for partition in range(256):
        owners = [i for i in range(3) if np.any(filters[i][partition])]
        assert owners == {85: [0, 1], 170: [1, 2]}.get(partition, [partition * 3 // 256])
        for i in owners:
            assert np.array_equal(filters[i][partition], table.bloom[partition])


@pytest.mark.filterwarnings("ignore:.*NaN or infinity")
@pytest.mark.parametrize("n", [2, 5])
def test_a_shard_is_loaded_as_reshard_cuts_it(tmp_path, n):
    admission = es.CounterAdmission(3, candidate_ttl=20)
    with program_on(4, optimizer=es.Adam(0.1), admission=admission, name="t") as program:
        whole = program.pair.table
        whole.pin(np.arange(30))
        whole.save(tmp_path / "one")
        report = reshard(tmp_path / "one", (tmp_path / "many", n))
        stats = []
        for i, path in enumerate(report.outputs):
            with es.Table.load(tmp_path / "one", shard=(i, n), allow_nonfinite=True) as table:
                stats.append(table.stats())
                table.save(tmp_path / f"{i}")
            assert kit.files_of(tmp_path / f"{i}") == kit.files_of(path)
        for name in ("n_live", "n_pending", "n_inserted", "n_evicted", "n_erased", "n_refused"):
            assert sum(each[name] for each in stats) == whole.stats()[name]


# What is refused.


def test_reshard_spares_what_is_there(tmp_path):
    _, (a, b) = saved_shards(tmp_path)
    reshard([a, b], tmp_path / "out")
    before = kit.files_of(tmp_path / "out")
    with pytest.raises(es.ArgumentError, match="out has a checkpoint; force=True"):
        reshard([a, b], [tmp_path / "new", tmp_path / "out"])
    assert not (tmp_path / "new").exists()
    assert kit.files_of(tmp_path / "out") == before
    for force in (False, True):
        with pytest.raises(es.ArgumentError, match="a is a source"):
            reshard([a, b], [tmp_path / "b" / ".." / "a", tmp_path / "c"], force=force)
    for paths, out in (([a, a], tmp_path / "c"), ([a, b], [tmp_path / "c", tmp_path / "c"])):
        with pytest.raises(es.ArgumentError, match="twice"):
            reshard(paths, out)
    with pytest.raises(es.ArgumentError, match="number of shards"):
        reshard([a, b], (tmp_path / "c", 0))
    assert not (tmp_path / "c").exists()
    n_rows = [reshard(p, tmp_path / f"of {p.name}").n_rows for p in (a, b)]
    assert reshard([a, b], tmp_path / "out", force=True).n_rows == sum(n_rows)


def test_a_set_of_shards_must_be_complete(tmp_path):
    table, paths = saved_shards(tmp_path)
    shards = reshard(paths, (tmp_path / "four", 4)).outputs
    message = "2 of 4 shards are not among the sources, the first of them shard-00000-of-00004"
    with pytest.raises(es.ArgumentError, match=message):
        reshard([*shards[1:2], *shards[3:]], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert reshard(shards[::-1], tmp_path / "out").n_rows == len(table.rows)


def test_a_full_disk_leaves_whole_outputs_alone(tmp_path, monkeypatch):
    table, paths = saved_shards(tmp_path)
    before = [kit.files_of(path) for path in paths]
    create = fsio.Directory.create

    def create_until_full(directory, name):
        if directory.path.endswith("shard-00002-of-00003") and "rows" in name:
            raise es.CheckpointError(28, "no space left")
        return create(directory, name)

    with monkeypatch.context() as patch:
        patch.setattr(fsio.Directory, "create", create_until_full)
        with pytest.raises(es.CheckpointError, match="no space left"):
            reshard(paths, (tmp_path / "out", 3))
    done, _, failed = shard_paths(tmp_path / "out", 3)
    assert checkpoint.verify(done).n_rows > 0
    assert kit.files_of(failed) == {}
    assert [kit.files_of(path) for path in paths] == before
    assert reshard(paths, (tmp_path / "out", 3), force=True).n_rows == len(table.rows)


@pytest.mark.parametrize("kind", ["rows", "candidates", "pins"])
def test_nothing_is_made_of_a_damaged_source(tmp_path, kind):
    _, paths = saved_shards(tmp_path)
    path = kit.first_file(paths[1], kind)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(es.CorruptCheckpointError, match=path.name):
        reshard(paths, (tmp_path / "out", 4))
    assert not (tmp_path / "out").exists()


def test_a_damaged_filter_is_noticed(tmp_path):
    checkpoint.save_tables(tmp_path / "one", {"t": tables_of(2)["filtered"]})
    path = kit.first_file(tmp_path / "one", "bloom")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(es.CorruptCheckpointError, match=path.name):
        reshard(tmp_path / "one", (tmp_path / "out", 2))
    assert not (tmp_path / "out").exists()


# Around it.


def test_more_rows_than_max_rows_are_resharded_with_a_warning(tmp_path):
    for i in range(2):
        with es.Table(2, max_rows=5) as table:
            table.find_or_insert(np.arange(4) + 10 * i, step=0)
            table.save(tmp_path / f"{i}")
    paths = [tmp_path / "0", tmp_path / "1"]
    with pytest.raises(es.CheckpointMismatchError, match="8 rows do not fit into max_rows=5"):
        es.Table.load(paths)
    with pytest.warns(es.EmbstoreWarning, match="8 rows, more than max_rows=5"):
        reshard(paths, tmp_path / "both")
    with es.Table.load(tmp_path / "both", max_rows=8) as table:
        assert len(table) == 8
    n_first = int((hashing.shard_of(np.array([0, 1, 2, 3, 10, 11, 12, 13]), 2) == 0).sum())
    with es.Table.load(tmp_path / "both", shard=(0, 2)) as table:
        assert len(table) == n_first <= 5


def test_progress_counts_each_row_read_and_written(tmp_path):
    table, paths = saved_shards(tmp_path)
    steps = []
    report = reshard(paths, (tmp_path / "out", 3), on_rows=steps.append)
    assert report.n_rows == len(table.rows)
    assert sum(steps) == 2 * len(table.rows)
    assert report.seconds >= 0


def test_memory_does_not_grow_with_the_table(tmp_path):
    n = 150_000
    rows = kit.memory_table(n, 0, dim=16, slots=())
    checkpoint.save_tables(tmp_path / "one", {"t": rows})
    n_bytes = n * (64 + 20)
    del rows
    reshard(tmp_path / "one", (tmp_path / "warm", 1))
    tracemalloc.start()
    try:
        reshard(tmp_path / "one", (tmp_path / "three", 3))
        reshard(shard_paths(tmp_path / "three", 3), tmp_path / "again")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.6 * n_bytes
    assert kit.files_of(tmp_path / "again") == kit.files_of(tmp_path / "one")


def test_no_file_stays_open(tmp_path):
    _, paths = saved_shards(tmp_path)
    n_before = kit.n_open_files()
    reshard(paths, (tmp_path / "out", 3))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(es.CheckpointError, match="holds no checkpoint"):
        reshard([*paths, tmp_path / "nothing"], tmp_path / "other")
    assert kit.n_open_files() == n_before
