"""What rivals got wrong: one test for each bug of theirs that could be ours.

The numbers are those of the issues: DeepRec, TFRA (TensorFlow Recommenders Addons), HierarchicalKV
and NVIDIA's recsys-examples, FBGEMM.
"""

import numpy as np
import pytest
from contract.tools import INT64, ids, live, meta, rows_of
from property.pair import exported
from reference.hashing import partition_of

import embstore as es


@pytest.mark.parametrize("low", [INT64.min, -5_000_000_000, -3000])
def test_negative_ids_do_not_hang(make_table, low):
    """DeepRec #1003: a lookup of negative ids never returned; #91: sentinels among them."""
    table = make_table()
    keys = low + np.arange(3000)
    table.find_or_insert(keys, step=0)
    assert table.contains(keys).all()
    assert not table.contains(keys + 3000)[: 3000 if low != -3000 else 0].any()
    assert table.erase(keys) == 3000
    assert live(table) == []


@pytest.mark.parametrize("key", [-1, -2, -3, 0, INT64.max, INT64.min])
def test_no_key_is_reserved(make_table, key):
    """HierarchicalKV keeps -1, -2 and -3 for itself; TFRA's GPU table INT64_MAX."""
    table = make_table(optimizer=es.SGD(1.0), admission=es.CounterAdmission(2))
    table.find_or_insert(ids(key), step=0)
    batch = table.find_or_insert(ids(key, 1, 1), step=0)
    assert table.apply_gradients(batch, rows_of(1, 1, 1), step=1) == (2, 0, 0, 0)
    assert table.find(ids(key, 1)).tolist() == [[0, 0], [-1, -1]]
    assert table.evict(es.StepEviction(0), step=9, pins=ids(1)).n_evicted == 1
    assert live(table) == [1]


def test_evicted_rows_are_the_right_ones(make_table):
    """HierarchicalKV #110, #78, #241: insert_and_evict returned wrong keys or values when full."""
    gone = []
    table = make_table(4, max_rows=100, on_full="evict", on_evict=gone.append)
    for step in range(50):
        keys = np.arange(step * 30, step * 30 + 30)
        table.assign(keys, np.repeat(keys[:, None], 4, axis=1).astype(np.float32), step=step)
    evicted = np.concatenate([rows.keys for rows in gone])
    values = np.concatenate([rows.values for rows in gone])
    steps = np.concatenate([rows.step for rows in gone])
    assert np.array_equal(values, np.repeat(evicted[:, None], 4, axis=1))
    assert np.array_equal(steps, evicted // 30)
    assert sorted([*evicted.tolist(), *live(table)]) == [*range(1500)]


def test_refused_keys_say_so(make_table):
    """HierarchicalKV PR #149: a failed insert was reported as done."""
    table = make_table(max_rows=1, on_full="refuse", default_row=5.0)
    batch = table.find_or_insert(ids(1, 2), step=0)
    assert batch.status.tolist() == [es.KeyStatus.INSERTED, es.KeyStatus.REFUSED]
    assert batch.rows.tolist() == [[1, 1], [5, 5]]
    assert table.contains(ids(1, 2)).tolist() == [True, False]


def test_rows_and_slots_move_together(make_table):
    """recsys-examples #468: rows were addressed by hash slot, optimizer state was another's."""
    table = make_table(3, optimizer=es.Adagrad(0.0))
    keys = np.arange(40_000)
    for part in np.split(keys, 8):  # the index grows between
        table.find_or_insert(part, step=0)
        grads = np.repeat(np.sqrt(part.astype(np.float32))[:, None], 3, axis=1)
        table.apply_gradients(part, grads, step=0)
    table.erase(keys[::3])
    table.find_or_insert(-keys[1:2000], step=0)
    rows = exported(table)
    expected = np.where(rows.keys < 0, 0, rows.keys)
    assert np.allclose(rows.slots, expected[:, None], rtol=1e-6)


def test_slots_of_a_freed_row_are_not_inherited(make_table):
    """DeepRec #532 read uninitialised rows; #1023 lost Adam's moments to garbage."""
    table = make_table(5, optimizer=es.Adam(0.1), initializer=es.Constant(0.0))
    keys = np.arange(3000)
    table.find_or_insert(keys, step=0)
    table.apply_gradients(keys, np.full((3000, 5), 1e30, np.float32), step=0)
    table.evict(es.StepEviction(0), step=1)
    table.find_or_insert(keys + 10_000, step=1)
    rows = exported(table)
    assert not rows.slots.any()
    assert not rows.values.any()


def test_every_exported_key_has_all_its_parts(make_table):
    """DeepRec #1023: three snapshots of values, m and v had three different sets of keys."""
    table = make_table(2, optimizer=es.Adam(0.1), admission=es.CounterAdmission(2))
    for step in range(20):
        table.find_or_insert(np.arange(step * 50, step * 50 + 100), step=step)
        for rows in table.export(batch_rows=64):
            assert len(rows.keys) == len(rows.values) == len(rows.slots) == len(rows.freq)
    assert sorted(exported(table).keys.tolist()) == [*range(50, 1000)]


def test_a_batch_of_one_key_a_million_times(make_table, size):
    """Frequencies, sums and dedup of one hot id."""
    table = make_table(1, optimizer=es.SGD(1.0), initializer=es.Constant(0.0))
    n = size(1_000_000)
    batch = table.find_or_insert(np.full(n, 7), step=0)
    assert (batch.n_unique, meta(table, 7)) == (1, [(n, 0)])
    table.apply_gradients(batch, np.ones((n, 1), np.float32), step=0)
    assert table.find(ids(7)).tolist() == [[-n]]  # left to right it would end at 2**24


def test_an_empty_batch_everywhere(make_table):
    """recsys-examples #292: an empty batch was an invalid launch; DeepRec #741: an empty save."""
    table = make_table(optimizer=es.Adam(0.1), eviction=es.StepEviction(1), track_changes=True)
    none = np.empty(0, np.int64)
    batch = table.find_or_insert(none, step=0)
    table.apply_gradients(batch, np.empty((0, 2), np.float32), step=0)
    table.evict(step=5)
    table.clear()
    assert sum(len(rows) for rows in table.export()) == 0
    assert table.changes().upserted.size == 0
    assert table.find(none, missing="raise").shape == (0, 2)
    for rows in table.export():
        table.import_(rows)


@pytest.mark.promise("S1", "patterns that break an unkeyed hash")
@pytest.mark.parametrize("shift", [0, 8, 16, 24, 32, 40, 48])
def test_innocent_patterns_of_ids(make_table, shift):
    """Identity hashes break on i << 32; a fixed one on ids that someone computed."""
    table = make_table(1)
    keys = np.arange(1 << min(15, 63 - shift)) << shift
    table.find_or_insert(keys, step=0)
    assert table.contains(keys).all()
    assert len(table) == len(keys)


@pytest.mark.promise("S1", "ids computed from the fixed hash")
def test_keys_of_one_partition(make_table):
    """Partitions and shards follow a fixed hash; the index must not suffer from them."""
    table = make_table(1)
    keys = np.arange(1_000_000)
    keys = keys[partition_of(keys) == 3]
    table.find_or_insert(keys, step=0)
    assert np.array_equal(exported(table).keys, np.sort(keys))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_bad_numbers_do_not_spread(make_table, bad):
    """One bad gradient is an error before any row is touched, or stays in its row."""
    values = np.array([1, bad, 1, 1, bad, 1], np.float32)[:, None].repeat(2, axis=1)
    keys = ids(1, 2, 3, 4, 2, 1)  # 3e38 + 3e38 overflows in the sum
    for on_nonfinite in ("raise", "skip"):
        table = make_table(optimizer=es.Adam(0.1), on_nonfinite=on_nonfinite)
        batch = table.find_or_insert(keys, step=0)
        if on_nonfinite == "raise":
            with pytest.raises(es.NonFiniteError):
                table.apply_gradients(batch, values, step=0)
            assert set(table.find(ids(1, 2, 3, 4)).ravel().tolist()) == {1.0}
        else:
            assert table.apply_gradients(batch, values, step=0) == (3, 0, 0, 1)
            assert table.find(ids(2)).tolist() == [[1, 1]]
            assert not exported(table).slots[exported(table).keys.tolist().index(2)].any()


@pytest.mark.parametrize("around", [2**31, 2**32, 2**40])
def test_steps_across_32_bits(make_table, around):
    """Eviction and admission where a 32-bit step would wrap."""
    table = make_table(
        eviction=es.StepEviction(3),
        evict_every=2,
        admission=es.CounterAdmission(2, candidate_ttl=4),
    )
    for step in range(around - 8, around + 8):
        table.find_or_insert(ids(step, step, -step), step=step)
    assert live(table) == [*range(around + 3, around + 8)]
    assert sorted(table.candidates().keys.tolist()) == [
        -s for s in range(around + 7, around + 2, -1)
    ]


def test_a_table_of_many_small_batches(make_table):
    """Growth, freeing and taking of single rows, one key at a time."""
    table = make_table(1)
    for key in range(3000):
        table.find_or_insert(ids(key), step=key)
        if key >= 10:
            assert table.erase(ids(key - 10)) == 1
    assert live(table) == [*range(2990, 3000)]
