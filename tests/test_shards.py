"""Shards: which keys they own; several read as one table; what is no shard of what."""

from itertools import pairwise

import checkpoint_kit as kit
import numpy as np
import pytest
from conversion_kit import go_on, program_on
from hypothesis import given
from hypothesis import strategies as st
from property.program import keys_of
from reference import hashing
from shard_kit import saved_shards, shard_paths, tables_of

import embstore as es
from embstore import checkpoint
from embstore.checkpoint import CandidateBlock
from embstore.checkpoint.reshard import reshard
from embstore.checkpoint.shards import partitions_of_shard, shard_of
from embstore.checkpoint.union import greatest_cells, merged, merged_state

# Which shard owns a key.


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 100, 256, 1000, 65536])
def test_the_high_part_of_hash_times_n_is_the_shard(n):
    keys = keys_of(np.random.default_rng(n), 3000, 10**6)
    owners = shard_of(keys, n)
    assert np.array_equal(owners, hashing.shard_of(keys, n))
    partitions = hashing.partition_of(keys)
    for i in np.unique(owners):
        first, last = partitions_of_shard(int(i), n)
        mine = partitions[owners == i]
        assert first <= mine.min() <= mine.max() <= last
    assert partitions_of_shard(0, n)[0] == 0
    assert partitions_of_shard(n - 1, n)[1] == 255


@pytest.mark.parametrize("n", [2, 3, 7, 300])
def test_shards_share_partitions_only_at_their_ends(n):
    ranges = [partitions_of_shard(i, n) for i in range(n)]
    for (_, last), (first, _) in pairwise(ranges):
        assert first - last in (0, 1)


# Shards that are trained.


ADMISSIONS = [es.CounterAdmission(3), es.BloomAdmission(3, 400), None]


@pytest.mark.filterwarnings("ignore:.*NaN or infinity")
@pytest.mark.parametrize("admission", ADMISSIONS)
@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_training_goes_on_from_shards_like_the_model(tmp_path, n, admission):
    with program_on(9, optimizer=es.AdamW(0.05), admission=admission) as program:
        pair = program.pair
        pair.table.save(tmp_path / "one")
        reshard(tmp_path / "one", (tmp_path / "many", n))
        loaded = es.Table.load(
            shard_paths(tmp_path / "many", n), on_evict=pair.sinks[0], allow_nonfinite=True
        )
        pair.table.close()
        pair.table, pair.batches = loaded, []
        pair.model.reset_changes()
        go_on(program)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shards_that_train_apart_are_the_table_that_trains_whole(tmp_path, dtype):
    """Three workers, each with the keys of its shard, and one that sees all keys."""
    optimizer, admission = es.Adam(0.1), es.CounterAdmission(2, candidate_ttl=32)
    parameters = {"optimizer": optimizer, "admission": admission, "dtype": dtype, "seed": 3}
    rng = np.random.default_rng(0)
    whole = es.Table(4, **parameters)
    workers = [es.Table(4, **parameters) for _ in range(3)]
    for step in range(12):
        keys = keys_of(rng, 200, 400)
        grads = rng.normal(size=(200, 4)).astype(np.float32)
        owners = hashing.shard_of(keys, 3)
        for table, mine in [
            (whole, owners >= 0),
            *((w, owners == i) for i, w in enumerate(workers)),
        ]:
            batch = table.find_or_insert(keys[mine], step=step)
            table.apply_gradients(batch, grads[mine], step=step)
    whole.save(tmp_path / "whole")
    for i, worker in enumerate(workers):
        worker.pin(np.arange(10 * i, 10 * i + 3))
        worker.save(tmp_path / f"{i}")
    whole.pin(np.concatenate([np.arange(10 * i, 10 * i + 3) for i in range(3)]))
    whole.save(tmp_path / "whole")
    paths = [tmp_path / f"{i}" for i in range(3)]
    with es.Table.load(paths, dtype="float16") as half, es.Table.load(paths) as table:
        assert (half.dtype, len(half)) == ("float16", len(whole))
        table.save(tmp_path / "merged")
    assert kit.content_of(tmp_path / "merged") == kit.content_of(tmp_path / "whole")
    for table in (whole, *workers):
        table.close()


def test_no_estimate_of_merged_filters_is_below_a_count(tmp_path):
    """Shards share the partitions at their ends; both go on counting there, apart."""
    admission = es.BloomAdmission(16, capacity=60, fpr=0.3)
    with es.Table(1, admission=admission) as table:
        table.save(tmp_path / "one")
    keys = np.arange(400)
    counts = np.random.default_rng(0).integers(0, 16, 400).astype(np.uint32)
    for i in range(3):
        with es.Table.load(tmp_path / "one", shard=(i, 3)) as worker:
            mine = hashing.shard_of(keys, 3) == i
            worker.find_or_insert(keys[mine], step=0, counts=counts[mine])
            worker.save(tmp_path / f"{i}")
    with es.Table.load([tmp_path / f"{i}" for i in range(3)]) as table:
        status = table.find_or_insert(keys, step=1, counts=np.uint32(16) - counts).status
        assert (status == es.INSERTED).all()


# Streams, filters and clocks.


def blocks_of(keys, cuts):
    """Sorted keys as blocks, cut at places."""
    keys = kit.in_order(keys)
    for part in np.split(keys, sorted(min(cut, len(keys)) for cut in cuts)):
        yield CandidateBlock(part, part.astype(np.uint32), part // 2)


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=60),
    st.lists(st.integers(0, 3), min_size=60, max_size=60),
    st.lists(st.lists(st.integers(0, 60), max_size=4), min_size=4, max_size=4),
)
def test_merged_streams_are_one_sorted_stream(keys, owners, cuts):
    keys, owners = np.array(keys, np.int64), np.array(owners[: len(keys)])
    streams = [blocks_of(keys[owners == i], cuts[i]) for i in range(4)]
    found = [*merged(streams, lambda *twice: pytest.fail(str(twice)))]
    together = np.concatenate([block.keys for block in found] or [keys])
    assert np.array_equal(together, kit.in_order(keys))
    for block in found:
        assert np.array_equal(block.epochs, block.keys // 2)


@pytest.mark.parametrize("cell_bits", [1, 2, 4])
def test_filters_are_merged_cell_by_cell(cell_bits):
    rng = np.random.default_rng(cell_bits)
    one, other = rng.integers(0, 256, (2, 640)).astype(np.uint8)

    def cells(data):
        bits = np.unpackbits(data, bitorder="little").reshape(-1, cell_bits)
        return bits @ (1 << np.arange(cell_bits))

    both = greatest_cells(one, other, cell_bits)
    assert np.array_equal(cells(both), np.maximum(cells(one), cells(other)))


def test_clocks_of_shards_become_one():
    one = {**kit.STATE, "step": 40, "n_train_steps": 7, "beta1_power": 0.5, "next_evict": 60}
    one |= {"n_inserted": 2**64 - 1, "candidate_epoch": 2}
    other = {**kit.STATE, "step": 90, "step_base": 10, "n_train_steps": 9, "last_train_step": 30}
    other |= {"beta1_power": 0.25, "candidate_epoch": 9, "next_evict": 50}
    state = merged_state([one, other])
    assert (state["step"], state["step_base"], state["candidate_epoch"]) == (90, 0, 9)
    assert (state["n_train_steps"], state["last_train_step"], state["beta1_power"]) == (9, 30, 0.25)
    assert state["next_evict"] == 50
    assert state["n_inserted"] == 2**64 - 1  # saturated
    assert state["n_evicted"] == 2
    far = {**other, "step": 2**33, "step_base": 2**33 - 5}
    assert merged_state([one, far])["step_base"] == 2**33 - 5
    assert merged_state([one, {**far, "step_base": 10, "step": 2**60}])["step_base"] == 10


@pytest.mark.parametrize("is_resharded", [False, True])
def test_rows_too_old_for_the_merged_clock_are_clamped(tmp_path, is_resharded):
    """One shard stopped long before the other: 32 bits do not hold both."""
    admission, far = es.CounterAdmission(2, candidate_ttl=32), 2**33
    keys = np.arange(100)
    owners = hashing.shard_of(keys, 2)
    for i, step in ((0, 50), (1, far)):
        with es.Table(1, name="t", admission=admission) as table:
            table.find_or_insert(keys[owners == i], step=step, admit="always")
            table.find_or_insert(keys[owners == i] + 10**6, step=step)
            table.save(tmp_path / f"{i}")
            n_pending = table.stats()["n_pending"]
    paths = [tmp_path / "0", tmp_path / "1"]
    if is_resharded:
        reshard(paths, tmp_path / "both")
        paths = tmp_path / "both"
    with es.Table.load(paths) as table:
        base = far - 2**31
        result = table.find(keys, with_meta=True)
        assert np.array_equal(result.step, np.where(owners == 0, base, far))
        stats = table.stats()
        assert stats["n_steps_clamped"] == (owners == 0).sum()
        assert stats["n_candidates_expired"] == (owners == 0).sum()
        assert stats["n_pending"] == n_pending


# What is refused.


def config_with(**changes):
    return {**tables_of(1)["counted"].config, **changes}


UNLIKE = {
    "config": (config_with(seed=9), "its seed is 9, there it is None"),
    "admission": (config_with(admission=None), "its admission is None"),
    "optimizer": (config_with(optimizer={"kind": "Adagrad", "eps": 1}), "its optimizer is"),
    "no optimizer": (config_with(optimizer=None), "its optimizer is None"),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_shards_of_other_parameters_are_refused(tmp_path, name):
    config, message = UNLIKE[name]
    _, paths = saved_shards(tmp_path, config=config)
    with pytest.raises(es.CheckpointMismatchError, match=message):
        reshard(paths, tmp_path / "out")
    with pytest.raises(es.CheckpointMismatchError, match="is no shard of the one in"):
        es.Table.load(paths)
    assert not (tmp_path / "out").exists()


def test_the_learning_rate_may_differ(tmp_path):
    _, paths = saved_shards(tmp_path, config=config_with(optimizer={"kind": "Adagrad", "lr": 0.5}))
    assert reshard(paths, tmp_path / "out").n_candidates == 70
    with checkpoint.load_tables(tmp_path / "out") as loaded:
        assert loaded.tables["t"].config["optimizer"]["lr"] == 0.1


OTHERS = {
    "dim": {"t": {"dim": 3}},
    "dtype": {"t": {"dim": 2, "dtype": "float16"}},
    "slots": {"t": {"dim": 2, "optimizer": es.Adagrad()}},
    "filter": {"t": {"dim": 2, "admission": es.BloomAdmission(2, 10)}},
    "name": {"u": {"dim": 2}},
    "one more": {"t": {"dim": 2}, "u": {"dim": 2}},
    "none": {},
}


@pytest.mark.parametrize("other", OTHERS)
def test_shards_of_another_table_are_refused(tmp_path, other):
    for folder, tables in (("a", {"t": {"dim": 2}}), ("b", OTHERS[other])):
        made = {name: es.Table(**parameters) for name, parameters in tables.items()}
        with es.Store(made, features={}) as store:
            store.save(tmp_path / folder)
    paths = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(es.CheckpointMismatchError, match="no shard of"):
        es.Store.load(paths)
    with pytest.raises(es.CheckpointMismatchError, match="no shard of"):
        reshard(paths, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shards_of_stores_with_other_features_are_refused(tmp_path):
    es.Store([es.Table(2)]).save(tmp_path / "a")
    es.Store([es.Table(2)], features={"f": "table"}).save(tmp_path / "b")
    with pytest.raises(es.CheckpointMismatchError, match="its store are"):
        es.Store.load([tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize("what", ["row and row", "row and candidate", "candidate and candidate"])
def test_a_key_in_two_shards_is_an_error_that_names_it(tmp_path, what):
    admission = es.CounterAdmission(3)
    for i, of in enumerate(what.split(" and ")):
        with es.Table(1, name="t", admission=admission) as table:
            table.find_or_insert(np.arange(1000 * i, 1000 * i + 500), step=0, admit="always")
            table.find_or_insert([77], step=0, admit="always" if of == "row" else "policy")
            if of == "candidate":
                table.erase([77])
                table.find_or_insert([77], step=0)
            table.save(tmp_path / f"{i}")
    paths = [tmp_path / "0", tmp_path / "1"]
    message = f"key 77 of table 't' is in {tmp_path / '0'} and in {tmp_path / '1'}"
    with pytest.raises(es.CorruptCheckpointError, match=message):
        es.Table.load(paths)
    with pytest.raises(es.CorruptCheckpointError, match=message):
        reshard(paths, (tmp_path / "out", 2))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("admission", [None, {"kind": "Sieve"}])
def test_filters_without_their_policy_are_refused(tmp_path, admission):
    table = kit.memory_table(0, 0, bloom_blocks=1)
    table.config["admission"] = admission
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        checkpoint.save_tables(path, {"t": table})
    with pytest.raises(es.CheckpointMismatchError, match=r"with a 'kind'|kind must be"):
        reshard(paths, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Around it.


def test_a_shard_reads_only_files_that_may_hold_its_keys(tmp_path, monkeypatch):
    monkeypatch.setattr("embstore.checkpoint.writer.FILE_BYTES", 5000)
    monkeypatch.setattr("embstore.checkpoint.writer.BLOCK_BYTES", 1000)
    with es.Table(4, name="t", admission=es.CounterAdmission(2)) as table:
        table.find_or_insert(np.arange(3000), step=0, admit="always")
        table.save(tmp_path)
    files = [f for f in kit.read_manifest(tmp_path)["files"] if f["kind"] == "rows"]
    assert len(files) > 8
    path = tmp_path / files[-1]["name"]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    for i in range(3):
        with es.Table.load(tmp_path, shard=(i, 4)) as table:
            assert len(table) == (hashing.shard_of(np.arange(3000), 4) == i).sum()
    with pytest.raises(es.CorruptCheckpointError, match=path.name):
        es.Table.load(tmp_path, shard=(3, 4))


@pytest.mark.parametrize("n_rows", [0, 1])
def test_shards_may_be_empty(tmp_path, n_rows):
    with es.Table(2, name="t", admission=es.BloomAdmission(2, 10)) as table:
        table.find_or_insert(np.arange(n_rows), step=0, admit="always")
        table.save(tmp_path / "one")
    report = reshard(tmp_path / "one", (tmp_path / "many", 8))
    assert sorted(report.rows_by_output) == [0] * 7 + [n_rows]
    for path, n in zip(report.outputs, report.rows_by_output, strict=True):
        with es.Table.load(path) as table:
            assert len(table) == n
    with es.Table.load(report.outputs) as table:
        table.save(tmp_path / "back")
    assert kit.files_of(tmp_path / "back") == kit.files_of(tmp_path / "one")


def test_a_store_is_resharded_and_loaded_by_shards(tmp_path):
    tables = [es.Table(2, name="user", optimizer=es.Adagrad()), es.Table(3, name="item")]
    with es.Store(tables, {"u": "user", "seen": "item", "bought": "item"}) as store:
        ids = {"u": np.arange(300), "seen": np.arange(80), "bought": np.arange(60, 160)}
        store.find_or_insert_many(ids, step=4)
        store.save(tmp_path / "one", extra={"epoch": 2})
        reshard(tmp_path / "one", (tmp_path / "two", 2))
        halves = shard_paths(tmp_path / "two", 2)
        with es.Store.load(halves) as again:
            assert again.features == store.features
            assert again.extra == {"epoch": 2}
            for name in store:
                assert np.array_equal(
                    again[name].find(np.arange(300)), store[name].find(np.arange(300))
                )
        with es.Store.load(halves, shard=(1, 3), tables=["item"]) as third:
            mine = hashing.shard_of(np.arange(160), 3) == 1
            assert len(third["item"]) == mine.sum()


def test_shards_of_other_extra_are_merged_with_a_warning(tmp_path):
    for i in range(2):
        with es.Table(2) as table:
            table.find_or_insert([i], step=0)
            table.save(tmp_path / f"{i}", extra={"rank": i, "dense": np.zeros(3)})
    paths = [tmp_path / "0", tmp_path / "1"]
    es.Table.load(paths).close()
    with pytest.warns(es.EmbstoreWarning, match="extra of .*0 is taken; that of .*1 is another"):
        with es.Store.load(paths) as store:
            assert store.extra["rank"] == 0
    with pytest.warns(es.EmbstoreWarning, match="is another"):
        reshard(paths, tmp_path / "both")
