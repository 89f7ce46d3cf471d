"""Export, import, candidates and the change log on the device, against numpy and the reference."""

import numpy as np
import pytest
from emulator.kit import SEEDS, Card
from emulator.kit_rows import DTYPES, EDGE_KEYS, Shape, candidate_word, random_table
from reference.hashing import partition_of
from reference.rows import in_order

from embstore.engines.cuda import transfer
from embstore.engines.cuda.row_bits import RowList
from embstore.engines.cuda.transfer import (
    CandidateOrder,
    ExportOrder,
    RowColumns,
    RowReader,
    RowWriter,
)
from embstore.engines.types import Candidates


@pytest.fixture(params=SEEDS)
def card(request):
    card = Card(seed=request.param)
    yield card
    card.check()


def columns_of(shape):
    return RowColumns(shape.dim, shape.stored, shape.n_slots)


def list_of(card, rows):
    return RowList(card.put(rows, np.uint32), len(rows))


def same_rows(table, rows, ids):
    """Whether `rows` are those of the table, whose ids these are, bit for bit."""
    metas = table.metas()[ids]
    assert np.array_equal(rows.keys, metas["key"].view(np.int64))
    assert rows.values.tobytes() == table.values()[ids].tobytes()
    assert rows.slots.tobytes() == table.slots()[ids].tobytes()
    assert np.array_equal(rows.freq, metas["freq"])
    assert np.array_equal(rows.step, table.base + metas["step"].astype(np.int64))
    assert rows.values.shape == (len(ids), table.shape.dim)
    assert rows.slots.shape == (len(ids), table.shape.n_slots)
    return True


def by_file(table):
    """The ids of live rows in the order of files."""
    live = table.set_of("live")
    keys = table.metas()["key"][live].view(np.int64)
    return live[np.lexsort((keys, partition_of(keys)))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 3, 8, 17, 64])
@pytest.mark.parametrize("n_slots", [0, 1, 8])
def test_read(dim, dtype, n_slots):
    for seed in (0, 7):
        card = Card(seed=seed)
        shape = Shape(dim=dim, dtype=dtype, n_slots=n_slots)
        table = random_table(card, shape, 75, 90, seed=dim, base=2**33)
        ids = np.random.default_rng(0).permutation(table.set_of("live"))
        reader = RowReader(card.launcher, columns_of(shape))
        assert same_rows(table, reader.read(table.device_table, list_of(card, ids)), ids)
        assert len(reader.read(table.device_table, RowList(0, 0))) == 0
        card.check()


def test_rows_move_in_pieces(card, monkeypatch):
    shape = Shape(dim=3, dtype="float16", n_slots=2)
    monkeypatch.setattr(transfer, "PIECE_BYTES", 7 * columns_of(shape).row_bytes)
    table = random_table(card, shape, 75, 90)
    ids = table.set_of("live")
    reader = RowReader(card.launcher, columns_of(shape))
    rows = reader.read(table.device_table, list_of(card, ids))
    assert same_rows(table, rows, ids)
    assert card.device.launches["gather_complete_rows"] == 11
    data = {"values": rows.values, "slots": rows.slots, "freq": rows.freq, "step": rows.step}
    turned = ids[::-1].copy()
    writer = RowWriter(card.launcher, columns_of(shape))
    writer.write(table.device_table, list_of(card, turned), data, 0)
    metas = table.metas()
    assert table.values()[turned].tobytes() == rows.values.tobytes()
    assert table.slots()[turned].tobytes() == rows.slots.tobytes()
    assert np.array_equal(metas["freq"][turned], rows.freq)
    assert np.array_equal(metas["step"][turned], rows.step)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 3, 8, 17, 64])
@pytest.mark.parametrize("given", [("slots", "freq", "step"), ("freq",), ()])
def test_write(dim, dtype, given):
    card = Card(seed=dim % 3)
    base, n = 10**10, 60
    shape = Shape(dim=dim, dtype=dtype, n_slots=dim + 1, n_accumulators=dim)
    table = random_table(card, shape, 75, 90, seed=dim, base=base)
    random = np.random.default_rng(dim)
    ids = random.permutation(table.set_of("live"))[:n]
    others = np.setdiff1d(np.arange(90), ids)
    untouched = table.row_bytes()[others], table.metas()[others]
    keys = table.metas()["key"][ids]
    values = np.frombuffer(random.bytes(n * dim * shape.stored.itemsize), shape.stored)
    data = {"values": values.reshape(n, dim)}
    data["slots"] = np.frombuffer(random.bytes(4 * n * (dim + 1)), np.float32).reshape(n, -1)
    data["freq"] = random.integers(0, 2**32, n).astype(np.uint32)
    data["step"] = random.integers(base - 20, base + 100, n)
    data["step"][:3] = 0, base - 1, base + 2**32 - 1
    data = {name: array for name, array in data.items() if name in ("values", *given)}
    writer = RowWriter(card.launcher, columns_of(shape))
    writer.write(table.device_table, list_of(card, ids), data, base + 17)
    born = np.zeros((n, dim + 1), np.float32)
    born[:, :dim] = 0.5
    metas = table.metas()
    assert table.values()[ids].tobytes() == data["values"].tobytes()
    assert table.slots()[ids].tobytes() == data.get("slots", born).tobytes()
    assert np.array_equal(metas["key"][ids], keys)
    assert np.array_equal(metas["freq"][ids], data.get("freq", np.zeros(n)))
    steps = data.get("step", np.full(n, base + 17))
    assert np.array_equal(metas["step"][ids], np.maximum(steps - base, 0))
    assert table.counters()["n_steps_clamped"] == (steps < base).sum()
    assert np.array_equal(table.set_of("dirty"), np.sort(ids))
    assert table.row_bytes()[others].tobytes() == untouched[0].tobytes()
    assert table.metas()[others].tobytes() == untouched[1].tobytes()
    card.check()


@pytest.mark.parametrize("n_live", [0, 1, 6, 400])
def test_rows_in_the_order_of_files(card, n_live):
    table = random_table(card, Shape(dim=2), n_live, n_live + 50, seed=3)
    ids = by_file(table)
    partitions = partition_of(table.metas()["key"][ids].view(np.int64))
    order = ExportOrder()
    order.prepare(card.launcher, table.device_table, write_count=5)
    assert np.array_equal(order.counts(), np.bincount(partitions, minlength=256))
    reader = RowReader(card.launcher, columns_of(table.shape))
    for first, last in ((0, 255), (0, 0), (100, 180), (255, 255)):
        listed = order.rows(first, last)
        expected = ids[(partitions >= first) & (partitions <= last)]
        assert same_rows(table, reader.read(table.device_table, listed), expected)


def test_an_order_is_kept_until_the_table_is_written_to():
    card = Card()
    table = random_table(card, Shape(), 20, 25)
    order = ExportOrder()
    assert order.n_bytes == 0
    order.prepare(card.launcher, table.device_table, write_count=1)
    order.prepare(card.launcher, table.device_table, write_count=1)
    assert card.device.launches["put_rows_in_order"] == 1
    assert order.n_bytes >= 4 * 20
    table.put_set("live", table.set_of("live")[:9])
    order.prepare(card.launcher, table.device_table, write_count=2)
    assert order.rows(0, 255).n == 9
    order.drop()
    assert order.n_bytes == 0
    order.prepare(card.launcher, table.device_table, write_count=2)
    assert order.rows(0, 255).n == 9
    card.check()


@pytest.mark.parametrize("n", [0, 1, 300])
def test_candidates(card, n):
    latest = 2**18 + 40
    table = random_table(card, Shape(), 30, seed=1, n_lines=60)
    rows = table.words()
    random = np.random.default_rng(n)
    keys = random.integers(-(2**63), 2**63, n, np.int64)
    counts = random.integers(0, 4095, n).astype(np.uint32)
    epochs = random.integers(latest - 2**18 + 1, latest + 1, n)
    table.set_view(candidate_epoch=latest)
    given = Candidates(keys, counts, epochs)
    transfer.insert_candidates(card.launcher, table.device_table, given)
    assert table.counters()["n_candidates"] == n
    table.check_index()
    words = {
        k: candidate_word(c, e)
        for k, c, e in zip(keys.tolist(), counts.tolist(), epochs.tolist(), strict=True)
    }
    assert table.words() == rows | words
    order = CandidateOrder()
    order.prepare(card.launcher, table.device_table, write_count=0)
    order.prepare(card.launcher, table.device_table, write_count=0)
    at = np.lexsort((keys, partition_of(keys)))
    partitions = partition_of(keys[at]) if n else np.zeros(0, np.int64)
    assert np.array_equal(order.counts(), np.bincount(partitions, minlength=256))
    for first, last in ((0, 255), (3, 100), (255, 255)):
        here = at[(partitions >= first) & (partitions <= last)]
        found = order.read(card.launcher, table.device_table, first, last)
        assert np.array_equal(found.keys, keys[here])
        assert np.array_equal(found.counts, counts[here])
        assert np.array_equal(found.epochs, epochs[here])


def test_candidates_of_the_edge_keys_spill(card):
    table = random_table(card, Shape(), 0, n_lines=1)
    given = Candidates(
        np.array(EDGE_KEYS, np.int64), np.arange(6, dtype=np.uint32), np.zeros(6, np.int64)
    )
    transfer.insert_candidates(card.launcher, table.device_table, given)
    assert table.words() == {key: candidate_word(i, 0) for i, key in enumerate(EDGE_KEYS)}


def test_changes(card):
    table = random_table(card, Shape(), 150, 180, seed=4)
    live, keys = table.set_of("live"), table.metas()["key"].view(np.int64)
    dead = np.setdiff1d(np.arange(180), live)
    table.put_set("dirty", [*live[::2], *dead])
    gone = [1001, -1002, 1003, -(2**62), 1001, 1001, -1002]
    back = keys[live[:20]].tolist()
    removed = np.array([*gone, *back, *back[:5], 1003], np.int64)
    table.place(-1002, candidate_word(1, 0))  # a candidate is no row
    card.queue.upload(table.at["lines"], table.lines)
    card.queue.upload(table.at["removed_keys"], removed)
    done = transfer.changes(
        card.launcher, table.device_table, table.at["dirty"], table.at["removed_keys"], len(removed)
    )
    assert np.array_equal(done.upserted, in_order(keys[live[::2]]))
    assert np.array_equal(done.deleted, in_order(np.unique(gone)))


def test_no_changes(card):
    table = random_table(card, Shape(), 0)
    done = transfer.changes(
        card.launcher, table.device_table, table.at["dirty"], table.at["removed_keys"], 0
    )
    assert (len(done.upserted), len(done.deleted)) == (0, 0)


@pytest.mark.parametrize("has_log", [False, True])
def test_clear(card, has_log):
    table = random_table(card, Shape(has_log=has_log), 40, 50)
    table.counters(n_log=2, n_free=10, n_candidates=3, n_erased=5, n_bloom_added=1, n_removals=7)
    keys = table.metas()["key"][table.set_of("live")].view(np.int64)
    transfer.clear(card.launcher, table.device_table, has_log)
    counters = table.counters()
    for name in ("n_live", "n_ids", "n_free", "n_candidates", "n_bloom_added"):
        assert counters[name] == 0
    assert (counters["n_erased"], counters["n_removals"]) == (45, 7)
    assert counters["n_log"] == (42 if has_log else 2)
    if has_log:
        log = card.get(table.at["removed_keys"], 50, np.int64)
        assert np.array_equal(log[2:42], keys)
        assert (log[[0, 1, *range(42, 50)]] == 99).all()
