"""CacheEviction on the device: who goes, and that nothing is lost, doubled or torn."""

import collections

import numpy as np
import pytest
from contract.test_snapshots import Reading
from emulator.kit_cache import (
    EDGE_KEYS,
    TwoBuckets,
    buckets_of,
    check_index,
    make_cache,
    zipf_keys,
)
from emulator.test_device_arrays import DIM, card, get, put, table_on  # noqa: F401
from emulator.test_graphs import STREAM, Step

import embstore as es

FOUND, INSERTED, PENDING, REFUSED = (int(status) for status in es.KeyStatus)
COLUMNS = ("keys", "values", "slots", "freq", "step")


@pytest.fixture(autouse=True)
def device(emulated_device):
    yield emulated_device
    assert emulated_device.violations == []


def keys_of(table):
    return {key for rows in table.export() for key in rows.keys.tolist()}


def content(table):
    """Complete rows by key, as bytes and numbers."""
    return {row[0]: row[1:] for rows in table.export() for row in listed(rows)}


def listed(rows):
    return [
        (int(k), v.tobytes(), s.tobytes(), int(f), int(t))
        for k, v, s, f, t in zip(*(getattr(rows, name) for name in COLUMNS), strict=True)
    ]


def train(table, batch, step):
    grads = np.ones(batch.rows.shape, np.float32)
    return table.apply_gradients(batch, grads, step=step)


# ---- who goes


@pytest.mark.parametrize("max_rows", [1, 9, 19, 60])
@pytest.mark.parametrize("by", ["step", "freq"])
def test_the_victim_is_the_least_of_two_buckets(by, max_rows):
    gone = []
    table = make_cache(max_rows, by, on_evict=lambda rows: gone.extend(rows.keys.tolist()))
    model, random = TwoBuckets(table), np.random.default_rng(max_rows)
    population = [*EDGE_KEYS, *range(10, 10 + 2 * max_rows)]
    for step in range(250):
        key = int(random.choice(population))
        gone.clear()
        batch = table.find_or_insert([key], step=step)
        if key in model.score:
            assert batch.status[0] == FOUND
            model.score[key] += by == "freq"
            assert gone == []
        else:
            expected = model.insert(key, step if by == "step" else 1)
            assert batch.status[0] == (REFUSED if expected == "refused" else INSERTED)
            assert gone == ([expected] if type(expected) is int else [])
        if random.random() < 0.3:
            train(table, batch, step)
            if by == "step" and key in model.score:
                model.score[key] = step
        if random.random() < 0.05 and model.score:
            victim = int(random.choice([*model.score]))
            assert table.erase([victim]) == 1
            model.remove(victim)
        assert len(table) == len(model.score)
    assert keys_of(table) == model.score.keys()
    check_index(table)


def test_pins_stay():
    table = make_cache(9)
    table.find_or_insert(np.arange(9), step=0)
    table.pin([3, 4, 77])
    for step in range(1, 30):
        table.find_or_insert([100 * step + i for i in range(4)], step=step)
    assert {3, 4} < keys_of(table)
    assert len(table) == 9
    check_index(table)


def test_a_batch_that_fills_both_buckets_is_refused():
    table = make_cache(9, default_row=7.0)
    batch = table.find_or_insert(np.arange(15), step=0)
    assert batch.status.tolist() == [INSERTED] * 9 + [REFUSED] * 6
    assert (batch.rows[9:] == 7.0).all()
    again = table.find_or_insert(np.arange(30), step=1)
    assert again.status.tolist() == [FOUND] * 9 + [REFUSED] * 21
    assert table.stats()["n_refused"] == 27
    assert train(table, again, 1).n_dropped == 21
    after = table.find_or_insert(np.arange(40, 60), step=2)
    assert collections.Counter(after.status.tolist()) == {INSERTED: 9, REFUSED: 11}
    assert len(keys_of(table) & set(range(40, 60))) == len(table) == 9
    assert table.stats()["n_evicted"] == 9
    check_index(table)


def test_no_hit_of_the_batch_is_a_victim():
    table = make_cache(19)
    table.find_or_insert(np.arange(19), step=0)
    held = sorted(keys_of(table))
    batch = table.find_or_insert([*range(1000, 1040), *held], step=1)
    assert batch.status[-len(held) :].tolist() == [FOUND] * len(held)
    assert set(held) <= keys_of(table)


# ---- batches, contended and in any order


@pytest.mark.parametrize("seed", range(1, 21))
def test_contended_buckets(device, seed):
    """New keys outnumber cells, in interleavings: every row is there once and whole, or went."""
    device.seed = seed
    random = np.random.default_rng(seed)
    by, max_rows = ("step", "freq")[seed % 2], (9, 19, 47, 95)[seed % 4]
    gone = []
    table = make_cache(
        max_rows, by, track_changes=True, on_evict=lambda rows: gone.append(listed(rows))
    )
    population = np.array([*EDGE_KEYS, *range(100, 100 + 2 * max_rows)])
    held, seen = {}, {}
    for step in range(8):
        keys = random.choice(population, random.integers(1, 80))
        before, gone[:] = set(held), []
        batch = table.find_or_insert(keys, step=step)
        evicted = [row for rows in gone for row in rows]
        assert {row[0]: row[1:] for row in evicted} == {row[0]: held[row[0]] for row in evicted}
        unique = batch.keys.tolist()
        assert not set(unique) & {row[0] for row in evicted}
        status = dict(zip(unique, batch.status.tolist(), strict=True))
        assert {key for key in unique if status[key] == FOUND} == before & set(unique)
        inserted = {key for key in unique if status[key] == INSERTED}
        for key, n in zip(*np.unique(keys, return_counts=True), strict=True):
            freq, at = seen.get(int(key), (0, step)) if key in before else (0, step)
            seen[int(key)] = (freq + int(n), at)
        held = content(table)
        assert all(row[2:] == seen[key] for key, row in held.items())
        assert held.keys() == (before - {row[0] for row in evicted}) | inserted
        check_index(table)
        train(table, batch, step)
        seen |= {key: (seen[key][0], step) for key in unique if key in held}
        held = content(table)
    stats = table.stats()
    assert stats["n_inserted"] - stats["n_evicted"] == len(table) == len(held)
    changes = table.changes()
    assert sorted(changes.upserted.tolist()) == sorted(held)
    assert not set(changes.deleted.tolist()) & set(held)


def test_a_batch_without_contention_does_not_depend_on_the_interleaving(device):
    found = []
    for seed in range(6):
        device.seed = 0
        table = make_cache(950, hash_seed=5)
        table.find_or_insert(np.arange(2000), step=0)
        keys, seen = [], set()
        for key in range(5000, 9000):
            lines = set(buckets_of(table, key))
            if not lines & seen:
                keys.append(key)
                seen |= lines
        device.seed = seed
        batch = table.find_or_insert(keys, step=1)
        assert (batch.status == INSERTED).all()
        found.append(keys_of(table))
    assert all(one == found[0] for one in found)


def test_a_ticket_knows_that_its_rows_went():
    table = make_cache(9)
    batch = table.find_or_insert(np.arange(9), step=0)
    table.find_or_insert(np.arange(20, 26), step=1)
    expected = content(table)
    stays = [key for key in range(9) if key in expected]
    assert len(stays) == 3
    assert train(table, batch, 2) == (3, 0, 6, 0)
    after = content(table)
    assert {key for key in after if after[key] != expected[key]} == set(stays)
    check_index(table)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_newborn_rows_are_those_of_any_table(dtype):
    cache = make_cache(30, dim=7, dtype=dtype)
    plain = es.Table(
        7, initializer=es.Normal(std=1.0), optimizer=es.Adagrad(lr=0.5), dtype=dtype, device="cuda"
    )
    for step in range(6):
        keys = np.arange(20 * step, 20 * step + 20)
        batch, other = (t.find_or_insert(keys, step=step) for t in (cache, plain))
        is_in = batch.status == INSERTED
        assert np.array_equal(batch.rows[is_in], other.rows[is_in])
    rows = content(plain)
    assert all(rows[key] == row for key, row in content(cache).items())


# ---- other verbs


def test_assign_reports_what_it_did():
    table = make_cache(9)
    assert table.assign(np.arange(12), np.ones((12, 3), np.float32)) == (0, 9, 3)
    assert table.assign([0, 50], np.full((2, 3), 2.0, np.float32)) == (1, 1, 0)
    assert (table.find([0, 50]) == 2.0).all()
    assert table.stats()["n_evicted"] == 1
    check_index(table)


def test_eviction_by_other_policies_makes_room():
    policy = es.StepEviction(5) | es.CacheEviction("freq")
    table = make_cache(47, eviction=policy, evict_every=10, hash_seed=1)
    for step in range(4):
        table.find_or_insert(np.arange(10 * step, 10 * step + 10), step=step)
    n = len(table)
    assert table.evict(step=7).n_evicted == 20
    assert len(table) == n - 20
    check_index(table)
    table.find_or_insert(np.arange(100, 130), step=20)
    assert keys_of(table) <= set(range(100, 130))
    check_index(table)
    table.clear()
    assert len(table) == 0
    table.find_or_insert(np.arange(60), step=21)
    assert 44 <= len(table) <= 47
    check_index(table)


def test_bloom_admission_comes_first():
    table = make_cache(19, admission=es.BloomAdmission(2, capacity=1000))
    assert (table.find_or_insert(np.arange(10), step=0).status == PENDING).all()
    assert (table.find_or_insert(np.arange(10), step=1).status == INSERTED).all()
    assert (table.find_or_insert(np.arange(100, 150), step=2).status == PENDING).all()
    assert table.stats()["n_refused"] == 0
    check_index(table)


def test_the_change_log_names_who_came_and_who_went():
    table = make_cache(47, track_changes=True)
    table.find_or_insert(np.arange(80), step=0)
    before = keys_of(table)
    table.reset_changes()
    for step in range(1, 5):
        table.find_or_insert(np.arange(100 * step, 100 * step + 30), step=step)
    after, changes = keys_of(table), table.changes()
    assert set(changes.upserted.tolist()) == after - before
    assert before - after <= set(changes.deleted.tolist())
    assert not after & set(changes.deleted.tolist())


@pytest.mark.parametrize("log_bytes", [1 << 12, 1 << 20])
def test_a_snapshot_does_not_see_later_inserts(tmp_path, log_bytes):
    table = make_cache(190, dim=5, track_changes=True)
    train(table, table.find_or_insert(np.arange(400), step=0), 0)
    expected = content(table)
    with open(tmp_path / "log", "w+b") as file:
        reading = Reading(table, log_bytes=log_bytes, file=file.fileno())
        step = 0
        while not reading.is_done():
            reading.read(20)
            step += 1
            keys = np.arange(90 * step, 90 * step + 120)
            train(table, table.find_or_insert(keys, step=step), step)
        rows = reading.found()["rows"]
        reading.snapshot.end(False)
    assert {row[0]: row[1:] for row in listed(es.Rows(*rows))} == expected
    changes = table.changes()
    assert set(changes.upserted.tolist()) == keys_of(table)
    check_index(table)


# ---- imports and checkpoints


@pytest.mark.parametrize("seed", [0, 3])
def test_a_full_cache_comes_back_from_a_checkpoint(tmp_path, device, seed):
    table = make_cache(950, "freq", track_changes=True, hash_seed=1)
    for step in range(6):
        table.find_or_insert(np.arange(300 * step, 300 * step + 300), step=step)
    assert 930 <= len(table) <= 950
    table.save(tmp_path / "saved")
    device.seed = seed
    loaded = es.Table.load(tmp_path / "saved", device="cuda")
    assert content(loaded) == content(table)
    assert loaded.config() == table.config()
    check_index(loaded)
    loaded.find_or_insert(np.arange(5000, 5400), step=7)
    assert len(table) <= len(loaded) <= 950
    check_index(loaded)
    with pytest.raises(es.ArgumentError, match='device="cpu" has no CacheEviction'):
        es.Table.load(tmp_path / "saved")
    on_cpu = es.Table.load(tmp_path / "saved", eviction=es.CapacityEviction("freq"))
    assert content(on_cpu) == content(table)


def test_import_into_a_full_cache_raises():
    table = make_cache(19)
    table.find_or_insert(np.arange(40), step=0)
    expected, index = content(table), [*table.export()]
    (rows,) = index
    with pytest.raises(es.CapacityError):
        table.import_(es.Rows(rows.keys + 1000, rows.values, rows.slots, rows.freq, rows.step))
    assert content(table) == expected
    table.import_(rows)
    assert content(table) == expected
    check_index(table)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_import_that_finds_no_cells_evicts(device, seed):
    device.seed = seed
    gone = []
    table = make_cache(19, track_changes=True, on_evict=lambda rows: gone.extend(listed(rows)))
    keys = [k for k in range(1000) if buckets_of(table, k) == (0, 0)][:13]
    given = es.Rows(
        np.array(keys),
        np.random.default_rng(1).random((13, 3), np.float32),
        np.ones((13, 3), np.float32),
        np.arange(1, 14, dtype=np.uint32),
        np.arange(13),
    )
    table.import_(given)
    assert len(table) == 10
    check_index(table)
    kept = content(table)
    assert {row[0]: row[1:] for row in gone} | kept == {row[0]: row[1:] for row in listed(given)}
    assert len(gone) == 3
    assert set(table.changes().upserted.tolist()) == kept.keys()
    assert table.stats()["n_evicted"] == 3
    table.find_or_insert(np.arange(2000, 2030), step=20)
    assert len(table) > 10
    check_index(table)


# ---- hit rates


def exact_hits(keys, n_rows, size):
    """The hits of LRU without approximation, batches of `size`."""
    held, n_hits = collections.OrderedDict(), 0
    for batch in np.split(keys, len(keys) // size):
        unique = dict.fromkeys(batch.tolist())
        n_hits += sum(key in held for key in batch.tolist())
        for key in unique:
            held[key] = None
            held.move_to_end(key)
        while len(held) > n_rows:
            held.popitem(last=False)
    return n_hits


@pytest.mark.slow
@pytest.mark.parametrize("exponent", [0.8, 1.05])
def test_the_hit_rate_is_that_of_exact_lru(exponent):
    n_rows, size, n = 1000, 50, 30_000
    keys = zipf_keys(exponent, 40 * n_rows, n, seed=1)
    table = make_cache(n_rows, dim=1, initializer=es.Constant(0.0), optimizer=es.SGD(0.1))
    n_hits = 0
    for step, batch in enumerate(np.split(keys, n // size)):
        inserted = table.find_or_insert(batch, step=step)
        n_hits += (inserted.status[inserted.inverse] == FOUND).sum()
        train(table, inserted, step)
    assert len(table) == n_rows
    assert abs(n_hits - exact_hits(keys, n_rows, size)) < 0.01 * n
    check_index(table)


# ---- on streams and in graphs


def lists_of_keys(n_steps):
    random = np.random.default_rng(3)
    return [random.integers(0, 1000, 200) for _ in range(n_steps)]


@pytest.mark.parametrize("track_changes", [False, True])
def test_nothing_waits(card, track_changes):  # noqa: F811
    table = table_on("cuda", max_rows=95, eviction=es.CacheEviction(), track_changes=track_changes)
    out = put(card, np.zeros((200, DIM), np.float32), STREAM)
    n_waits = 0
    for step, keys in enumerate(lists_of_keys(12)):
        given, before = put(card, keys, STREAM), card.n_waits
        table.find_or_insert(given, step=step, out=out, stream=STREAM)
        n_waits += card.n_waits - before
    assert n_waits <= 8 * track_changes  # while a log is small, it often has to grow
    card.finish()
    check_index(table)
    assert len(table) > 85


@pytest.mark.parametrize("by", ["step", "freq"])
def test_captured_inserts_evict(card, by):  # noqa: F811
    more = {"max_rows": 190, "eviction": es.CacheEviction(by), "track_changes": True}
    plain, captured = table_on("cuda", **more), table_on("cuda", **more)
    for table in (plain, captured):
        table.pin(np.arange(5))
    first = np.zeros(200, np.int64)
    train(plain, plain.find_or_insert(first, step=0), 0)
    graph = Step(card, captured)
    zero_grads = np.zeros((200, DIM), np.float32)
    for table in (plain, captured):
        table.clear()
        table.pin(np.arange(7))
    for step, keys in enumerate(lists_of_keys(8), 1):
        batch = plain.find_or_insert(keys, step=step)
        plain.apply_gradients(batch, zero_grads, step=step)
        graph.replay(step, keys, zero_grads)
        np.testing.assert_array_equal(get(card, graph.out), batch.rows)
        check_index(captured)
    assert content(captured) == content(plain)
    assert captured.stats()["n_evicted"] == plain.stats()["n_evicted"] > 0
    for name in ("upserted", "deleted"):
        ours, theirs = (getattr(table.changes(), name) for table in (captured, plain))
        np.testing.assert_array_equal(ours, theirs)


def test_a_captured_birth_has_the_step_of_its_replay(card):  # noqa: F811
    table = table_on("cuda", max_rows=19, eviction=es.CacheEviction())
    keys = put(card, np.zeros(8, np.int64), STREAM)
    out, queue = put(card, np.zeros((8, DIM), np.float32), STREAM), card.queue(STREAM)
    with table.capturing():
        table.find_or_insert(keys, step=0, out=out, stream=STREAM)
        queue.begin_capture()
        table.find_or_insert(keys, step=0, out=out, stream=STREAM)
        graph = queue.end_capture()
    for step in range(5, 12):
        queue.upload(keys.memory.address, np.arange(8 * step, 8 * step + 8))
        with table.replaying(step=step, stream=STREAM):
            graph()
    found = table.find(np.arange(88, 96), with_meta=True)
    assert found.found.all()
    assert (found.step == 11).all()
    assert (found.freq == 1).all()
    check_index(table)


def test_a_sink_cannot_be_captured(card):  # noqa: F811
    more = {"max_rows": 95, "eviction": es.CacheEviction(), "on_evict": lambda rows: None}
    with pytest.raises(es.ArgumentError, match="capturing: on_evict gets rows"):
        Step(card, table_on("cuda", **more))
