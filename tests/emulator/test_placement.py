"""Where rows lie: budgets, growth from home to home, promotion; no result depends on it."""

import gc

import numpy as np
import pytest
from contract.tools import ids, snapshot
from emulator.device import EmulatedDevice
from emulator.split import SplitEngine, tiny_chunks
from property.pair import assert_same_rows, exported
from property.program import run_program

import embstore as es
from embstore.engines.cuda import status
from embstore.engines.cuda.chunks import RowShape, chunk_shift_for, list_bytes_for
from embstore.engines.cuda.storage import Counters

DIM = 4
ROW_BYTES = 32  # of DIM with Adagrad
CHUNK_ROWS = 8
MIB = 1 << 20
COLUMNS = ("keys", "values", "slots", "freq", "step")


@pytest.fixture
def open_on(monkeypatch):
    """A function that puts an emulated device behind ``device="cuda"``, with chunks of 8 rows."""
    devices = []

    def put(**parameters):
        devices.append(EmulatedDevice(**parameters))
        monkeypatch.setattr(status, "PROVIDER", lambda name: devices[-1])
        return devices[-1]

    tiny_chunks(monkeypatch, shift=3)
    yield put
    gc.collect()
    for device in devices:
        device.allocations.release()
        assert device.violations == []


def table_of(device="cuda", **parameters):
    return es.Table(DIM, optimizer=es.Adagrad(0.1), seed=3, device=device, **parameters)


def train(table, keys, step, counts=None):
    batch = table.find_or_insert(keys, step=step, counts=counts)
    grads = np.arange(len(keys) * DIM, dtype=np.float32).reshape(-1, DIM) + step
    table.apply_gradients(batch, grads, step=step)


def places(table):
    """Return the keys on the card and those in the host's memory, each with (freq, step)."""
    engine = table._engine
    storage, queue = engine._storage, engine._launcher.queue
    n_ids = engine._counters().n_ids
    bits = np.empty(-(-n_ids // 32) * 4, np.uint8)
    queue.download(storage.live_address, bits)
    live = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
    metas = []
    for chunk in storage.chunks._held:
        meta = np.empty(chunk.n_rows * 16, np.uint8)
        queue.download(chunk.metas.address, meta)
        metas.append(meta.view([("key", "<i8"), ("step", "<u4"), ("freq", "<u4")]))
    meta = np.concatenate(metas)
    found = {}, {}
    for row in live.tolist():
        key, step, freq = meta[row].tolist()
        found[row >= storage.chunks.n_card_rows][key] = freq, step
    return found


def hottest_first(rows):
    return sorted(rows, key=lambda key: (*rows[key], key), reverse=True)


def random_tables(n=60, seed=0, **parameters):
    """Return a table on the card and one on the CPU: n keys, of some freq and step each."""
    random = np.random.default_rng(seed)
    keys = random.permutation(np.arange(-n // 2, n - n // 2))
    tables = table_of(**parameters), table_of("cpu")
    for step in range(4):
        chosen = keys if step == 0 else random.choice(keys, n)
        counts = random.integers(1, 4, n).astype(np.uint32)
        for table in tables:
            train(table, chosen, step, counts)
    return tables


# ---- homes


@pytest.mark.parametrize(
    ("hbm_bytes", "n_card"),
    [
        (None, 104),
        (0, 0),
        (ROW_BYTES * CHUNK_ROWS - 1, 0),
        (ROW_BYTES * CHUNK_ROWS, 8),
        (ROW_BYTES * 27, 24),
        (2**63 - 1, 104),
    ],
)
def test_rows_are_on_the_card_until_the_budget_is_spent(open_on, hbm_bytes, n_card):
    device = open_on()
    table = table_of(hbm_bytes=hbm_bytes)
    train(table, np.arange(100), 1)
    stats = table.stats()
    n_host_bytes = (104 - n_card) * ROW_BYTES
    assert table.hbm_bytes == hbm_bytes
    n_pinned = device.allocations.bytes_of(True) - 8 * len(Counters.NAMES)
    assert stats["nbytes_host"] == n_pinned == n_host_bytes
    assert stats["nbytes"] == table.nbytes
    assert stats["nbytes_values"] + stats["nbytes_slots"] == 104 * ROW_BYTES
    plan = table.plan(100)
    assert plan.host_bytes == n_host_bytes
    assert plan == es.Table.plan(
        100, dim=DIM, optimizer=es.Adagrad(), device="cuda", hbm_bytes=hbm_bytes
    )


def test_tables_on_the_cpu_have_one_home():
    table = table_of("cpu")
    train(table, np.arange(5), 1)
    assert table.stats()["nbytes_host"] == 0
    assert table.hbm_bytes is None
    assert table.plan(5).host_bytes == 0
    assert table.promote() == es.PromoteReport(0, 0, 5)


@pytest.mark.parametrize("hbm_bytes", [0, 3 * CHUNK_ROWS * ROW_BYTES])
def test_growth_from_home_to_home_keeps_rows(open_on, hbm_bytes):
    open_on(seed=5)
    table, twin = table_of(hbm_bytes=hbm_bytes), table_of("cpu")
    for step, n in enumerate((1, 3, 7, 20, 23, 24, 60, 200)):
        for each in (table, twin):
            train(each, np.arange(n), step)
        assert_same_rows(exported(table), exported(twin), f"{n} rows")
    assert table.stats()["nbytes_host"] == 200 * ROW_BYTES - hbm_bytes


def test_chunks_fit_budgets():
    for row_bytes in (16, 48, 160, 8208):
        for hbm_bytes in (1, 10**5, 3 * MIB, 5 * MIB, 40 * MIB, 10**9, 10**12):
            shape = RowShape(0, row_bytes, chunk_shift_for(row_bytes, hbm_bytes))
            chunk_bytes = shape.chunk_rows * row_bytes
            assert chunk_bytes <= max(32 * row_bytes, 64 * MIB)
            rounded_off = hbm_bytes - shape.card_rows_for(hbm_bytes) * row_bytes
            assert 0 <= rounded_off < max(chunk_bytes, 1)
            if hbm_bytes >= 32 * MIB:
                assert rounded_off <= hbm_bytes / 8
    assert chunk_shift_for(64, None) == chunk_shift_for(64, 0) == 20
    assert [list_bytes_for(n) for n in (1, 16, 17, 1000)] == [256, 256, 512, 16384]


def test_many_chunks_at_once(open_on):
    """The list of addresses grows as far as needed, not just once."""
    open_on()
    table = table_of(hbm_bytes=80 * ROW_BYTES)
    train(table, np.arange(10), 1)
    before = exported(table)
    table.reserve(3000)
    assert_same_rows(exported(table), before, "after reserve")
    assert table.stats()["nbytes_host"] == (3000 - 80) * ROW_BYTES


def test_clear_beside_a_save_keeps_the_budget(open_on):
    open_on()
    table = table_of(hbm_bytes=2 * CHUNK_ROWS * ROW_BYTES)
    train(table, np.arange(40), 1)
    saved = table._engine.snapshot(False, 1 << 20, -1)
    table.clear()
    train(table, np.arange(40), 2)
    assert table.stats()["nbytes_host"] == 24 * ROW_BYTES
    saved.end(True)


@pytest.mark.parametrize("where", ["load", "from_config", "Store.load", "serving.open"])
def test_a_budget_is_of_the_process(open_on, tmp_path, where):
    open_on()
    with table_of("cpu") as table:
        train(table, np.arange(40), 1)
        rows, config = exported(table), table.config()
        assert not {"hbm_bytes", "device"} & set(config)
        table.save(tmp_path / "saved")
    place = {"device": "cuda", "hbm_bytes": CHUNK_ROWS * ROW_BYTES}
    if where == "from_config":
        made = es.Table.from_config(config, **place)
        made.import_(rows)
    elif where == "load":
        made = es.Table.load(tmp_path / "saved", **place)
    elif where == "Store.load":
        made = es.Store.load(tmp_path / "saved", **place)["table"]
    else:
        from embstore import serving

        served = serving.open(tmp_path / "saved", **place)
        assert served.wait_indexed(60)
        made = served._job.table
    with made:
        shape = made._engine._storage.shape  # served rows have no slots
        assert made.stats()["nbytes_host"] == 40 * shape.row_bytes - CHUNK_ROWS * ROW_BYTES
        assert np.array_equal(made.find(rows.keys), rows.values)


# ---- promotion


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("max_rows", [None, 0, 1, 3, 1000])
def test_the_hottest_rows_are_promoted(open_on, seed, max_rows):
    open_on(seed=seed)
    table, twin = random_tables(seed=seed, hbm_bytes=2 * CHUNK_ROWS * ROW_BYTES)
    before = places(table)
    everything = before[0] | before[1]
    best = hottest_first(everything)[:16]
    gaining = [key for key in best if key in before[1]]
    expected = set(before[0])
    n_promoted = 0
    for key in gaining if max_rows is None else gaining[:max_rows]:
        coldest = hottest_first({k: everything[k] for k in expected})[-1]
        if everything[key] <= everything[coldest]:
            break
        expected = expected - {coldest} | {key}
        n_promoted += 1
    assert table.promote(max_rows) == es.PromoteReport(n_promoted, 16, 44)
    assert n_promoted > 0 or max_rows == 0
    after = places(table)
    assert set(after[0]) == expected
    assert after[0] | after[1] == everything
    assert_same_rows(exported(table), exported(twin), "rows")
    if max_rows is None:
        assert table.promote().n_promoted == 0


def test_rows_that_are_as_hot_stay(open_on):
    open_on()
    table = table_of(hbm_bytes=2 * CHUNK_ROWS * ROW_BYTES)
    train(table, np.arange(50), 1)
    assert table.promote() == es.PromoteReport(0, 16, 34)
    train(table, ids(49), 1)
    assert table.promote() == es.PromoteReport(1, 16, 34)
    assert 49 in places(table)[0]


@pytest.mark.parametrize("hbm_bytes", [None, 0, 10**6])
def test_rows_of_one_home_stay(open_on, hbm_bytes):
    open_on()
    table = table_of(hbm_bytes=hbm_bytes)
    assert table.promote() == es.PromoteReport(0, 0, 0)
    train(table, np.arange(50), 1)
    n_host = 50 if hbm_bytes == 0 else 0
    assert table.promote() == es.PromoteReport(0, 50 - n_host, n_host)


def test_removed_rows_stay_where_they_were(open_on):
    open_on()
    table, twin = random_tables(hbm_bytes=2 * CHUNK_ROWS * ROW_BYTES)
    on_card, on_host = places(table)
    gone = np.array([*list(on_card)[:10], *list(on_host)[:10]])
    for each in (table, twin):
        each.erase(gone)
    report = table.promote()
    assert (report.n_card_rows, report.n_host_rows) == (6, 34)
    for each in (table, twin):
        train(each, gone, 9)
    table.promote()
    assert_same_rows(exported(table), exported(twin), "rows")
    table.erase(np.array(list(places(table)[0])))
    assert table.promote() == es.PromoteReport(0, 0, 44)


def test_tickets_and_changes_survive(open_on):
    open_on(seed=4)
    parameters = {"track_changes": True}
    table = table_of(hbm_bytes=2 * CHUNK_ROWS * ROW_BYTES, **parameters)
    twin = table_of("cpu", **parameters)
    keys = np.arange(40)
    for each in (table, twin):
        train(each, keys, 1)
        each.reset_changes()
        batch = each.find_or_insert(keys[30:], step=2)
        if each is table:
            assert table.promote().n_promoted == 10
        each.apply_gradients(batch, np.ones((10, DIM), np.float32), step=3)
        each.erase(keys[:3])
    for name in ("upserted", "deleted"):
        assert getattr(table.changes(), name).tolist() == getattr(twin.changes(), name).tolist()
    assert_same_rows(exported(table), exported(twin), "rows")


@pytest.mark.parametrize("is_saved", [False, True])
@pytest.mark.parametrize("n_more", [0, 3000])
def test_a_snapshot_holds_what_was_there(open_on, is_saved, n_more):
    """Rows that move while it is read, and the change log if it is not saved."""
    open_on()
    parameters = {"track_changes": True}
    table = table_of(hbm_bytes=2 * CHUNK_ROWS * ROW_BYTES, **parameters)
    twin = table_of("cpu", **parameters)
    keys = np.arange(40)
    for each in (table, twin):
        train(each, keys, 1)
        each.reset_changes()
        train(each, keys[20:], 2)
        before = exported(each)
        snap = each._engine.snapshot(False, 1 << 20, -1)
        snap.prepare(1, False)
        first = snap.rows(0, 15, 1)
        if n_more:
            each.find_or_insert(np.arange(100, 100 + n_more), step=3)
        if each is table:
            assert table.promote().n_promoted == 16
        second = snap.rows(15, 25, 1)
        for name, a, b in zip(COLUMNS, first, second, strict=True):
            assert np.array_equal(np.concatenate([a, b]), getattr(before, name)), name
        snap.end(is_saved)
    assert table.changes().upserted.tolist() == twin.changes().upserted.tolist()
    assert len(twin.changes().upserted) == n_more + (0 if is_saved else 20)


@pytest.mark.parametrize("seed", [0, 10, 20, 30])
def test_random_programs_do_not_see_promotion(emulated_device, split_tables, seed):
    emulated_device.seed = seed
    before = SplitEngine.n_promoted
    for program in (seed, seed + 1, seed + 2):
        run_program(program, 1000, batch_keys=40, spread=120, engine="cuda", admission=None)
    assert SplitEngine.n_promoted > before
    gc.collect()
    emulated_device.allocations.release()
    assert emulated_device.violations == []


# ---- without memory


def insert_rows(table, keys):
    table.find_or_insert(keys, step=2)


def insert_pooled(table, keys):
    weights = np.ones(len(keys), np.float32)
    table.pooled(keys, np.arange(len(keys) + 1), mode="sum", weights=weights, step=2)


@pytest.mark.parametrize("insert", [insert_rows, insert_pooled])
@pytest.mark.parametrize("bound", ["memory_bytes", "pinned_bytes"])
def test_without_memory_nothing_changes(open_on, bound, insert):
    device = open_on()
    table = table_of(hbm_bytes=2 * CHUNK_ROWS * ROW_BYTES)
    train(table, np.arange(20), 1)
    before = snapshot(table)
    is_pinned = bound == "pinned_bytes"
    held = device.allocations.bytes_of(is_pinned)
    n_failed = 0
    for n_spare in range(0, 200_000, 5000 if bound == "memory_bytes" else 50_000):
        setattr(device, bound, held + n_spare)
        try:
            insert(table, np.arange(1000, 4000))
        except es.OutOfMemoryError:
            n_failed += 1
            setattr(device, bound, None)
            assert snapshot(table) == before
            gc.collect()
            held = max(held, device.allocations.bytes_of(is_pinned))
        else:
            break
    assert n_failed > 1
    setattr(device, bound, None)
    insert(table, np.arange(1000, 4000))
    assert len(table) == 3020


def test_promotion_without_memory_changes_nothing(open_on):
    device = open_on()
    table, twin = random_tables(hbm_bytes=2 * CHUNK_ROWS * ROW_BYTES)
    device.memory_bytes = device.allocations.bytes_of(False)
    with pytest.raises(es.OutOfMemoryError):
        table.promote()
    device.memory_bytes = None
    assert_same_rows(exported(table), exported(twin), "rows")
    assert table.promote().n_promoted > 0


# ---- device="auto"


@pytest.mark.parametrize("is_available", [False, True])
def test_auto_is_the_card_where_there_is_one(open_on, monkeypatch, is_available):
    found = es.CudaStatus(is_available, "" if is_available else "no-cupy", "")
    monkeypatch.setattr(status, "cuda_status", lambda: found)
    monkeypatch.setattr(status, "PROVIDER", None)
    if is_available:
        monkeypatch.setattr(status, "open_device", lambda name: EmulatedDevice())
    with table_of("auto") as table:
        assert table.device == ("cuda" if is_available else "cpu")
        train(table, np.arange(5), 1)
    if not is_available:
        with pytest.raises(es.ArgumentError, match="device='auto', which is \"cpu\" here"):
            table_of("auto", hbm_bytes=0)
    plan = es.Table.plan(1000, dim=DIM, device="auto")
    assert plan == es.Table.plan(1000, dim=DIM, device="cuda" if is_available else "cpu")
