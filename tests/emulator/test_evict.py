"""Eviction, erasure and upkeep on the device, against numpy and the reference."""

import numpy as np
import pytest
from emulator.kit import SEEDS, Card
from emulator.kit_rows import (
    EDGE_KEYS,
    FIRST_CANDIDATE,
    Shape,
    candidate_word,
    random_table,
)
from reference.eviction import is_evictable
from reference.floats import from_bits16

from embstore.engines.cuda import evict, upkeep
from embstore.engines.cuda.evict import Deadline, EvictCall, Keys, RankBy, Selection
from embstore.engines.cuda.row_bits import RowList, list_set
from embstore.engines.cuda.transfer import RowColumns, RowReader
from embstore.engines.native import native_predicates
from embstore.errors import InternalError
from embstore.policies import FrequencyEviction, L2Eviction, StepEviction
from embstore.policies.eviction import program

NOW = 650
ONES = Shape(dim=1)
POLICIES = (
    StepEviction(300),
    StepEviction(0),
    StepEviction(2**63 - 1),
    FrequencyEviction(3, 200),
    FrequencyEviction(2**32 - 1, 0),
    L2Eviction(0.9, 0),
    L2Eviction(1e-20, 300),
    L2Eviction(0.9, 100) & StepEviction(200),
    FrequencyEviction(2, 0) | L2Eviction(0.8, 400),
    (StepEviction(500) | L2Eviction(1.1, 50)) & (FrequencyEviction(4, 0) | L2Eviction(0.3, 0)),
    StepEviction(700) | (FrequencyEviction(3, 0) & (StepEviction(100) | StepEviction(600))),
)


@pytest.fixture(params=SEEDS)
def card(request):
    card = Card(seed=request.param)
    yield card
    card.check()


def widened(table):
    values = table.values()
    return from_bits16(values, "bfloat16") if values.dtype == np.uint16 else values.astype("f4")


def expected_rows(table, policy, step):
    """The rows that the reference selects."""
    rows, metas = table.set_of("live"), table.metas()
    age = np.maximum(0, step - (table.base + metas["step"][rows].astype(np.int64)))
    with np.errstate(all="ignore"):
        chosen = is_evictable(policy, age, metas["freq"][rows], widened(table)[rows])
    return rows[chosen]


def program_of(table, policy):
    return evict.upload_program(table.card.launcher, native_predicates(program(policy)))


def keys_of(card, keys):
    return Keys(card.put(keys, np.int64), len(keys))


def selected_rows(card, selection):
    rows = selection.rows(selection.first_row, selection.end_row)
    return card.get(rows.address, rows.n, np.uint32)


def scanned(table, policy, step=NOW, first=0):
    selection = Selection(table.card.launcher, table.device_table, first)
    selection.extend(program_of(table, policy), step, table.n_ids)
    return selection


@pytest.mark.parametrize("policy", POLICIES, ids=range(len(POLICIES)))
def test_select(card, policy):
    table = random_table(card, Shape(dim=8, chunk_shift=6), 300, 420, seed=3)
    selection = scanned(table, policy)
    rows = expected_rows(table, policy, NOW)
    assert np.array_equal(selected_rows(card, selection), rows)
    assert selection.counts() == (300, len(rows))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dim", [1, 3, 8, 17, 64])
def test_norms_are_the_same_bits(dim, dtype):
    card = Card()
    table = random_table(card, Shape(dim=dim, dtype=dtype, n_slots=1), 150, seed=dim)
    from reference.floats import row_norm

    with np.errstate(all="ignore"):
        norms = row_norm(widened(table))[table.set_of("live")]
    for norm in norms[np.isfinite(norms) & (norms > 0)][:20]:
        for threshold in (norm, np.nextafter(norm, np.float32(np.inf))):
            policy = L2Eviction(float(threshold), 0)
            rows = expected_rows(table, policy, NOW)
            assert np.array_equal(selected_rows(card, scanned(table, policy)), rows)
    card.check()


def test_select_by_ranges_and_by_steps_beyond_32_bits(card):
    table = random_table(card, Shape(), 200, 333, base=2**40, seed=5)
    policy = StepEviction(300) | L2Eviction(0.5, 0)
    for step in (0, 2**40 + NOW, 2**63 - 1):
        rows = expected_rows(table, policy, step)
        selection = Selection(card.launcher, table.device_table, 64)
        for end in (96, 224, 333):
            selection.extend(program_of(table, policy), step, end)
        assert np.array_equal(selected_rows(card, selection), rows[rows >= 64])
        live = table.set_of("live")
        assert selection.counts() == ((live >= 64).sum(), (rows >= 64).sum())
    with pytest.raises(InternalError, match="row 33"):
        Selection(card.launcher, table.device_table, 33)


def test_a_predicate_of_32_operations(card):
    table = random_table(card, Shape(dim=3), 100, seed=9)
    policy = StepEviction(1000)
    for i in range(15):
        policy = policy | StepEviction(10 * i + 400) if i % 2 else FrequencyEviction(3, i) & policy
    assert len(program(policy)) == 31
    rows = expected_rows(table, policy, NOW)
    assert np.array_equal(selected_rows(card, scanned(table, policy)), rows)


def test_an_empty_table(card):
    table = random_table(card, Shape(), 0)
    selection = scanned(table, StepEviction(0))
    assert selection.counts() == (0, 0)
    assert selected_rows(card, selection).tolist() == []
    done = evict.evict(
        card.launcher,
        table.device_table,
        EvictCall(program_of(table, StepEviction(0)), NOW),
        n_live=0,
        cursor=0,
        reserve=pytest.fail,
        reader=None,
    )
    assert done == (0, 0, 0, True, 0, [])


def test_pinned_keys_and_rows_of_a_batch_are_spared(card):
    table = random_table(card, Shape(), 250, 300, seed=2, n_lines=26)
    metas, live = table.metas(), table.set_of("live")
    selection = Selection(card.launcher, table.device_table)
    selection.select_live()
    assert selection.counts() == (250, 250)
    batch = np.array([*live[:40], 0xFFFFFFFF, *live[30:50], 0xFFFFFFFF], np.uint32)
    n_at = card.put([50], np.uint64)
    selection.spare_rows(RowList(card.put(batch), len(batch)), n_at)
    kept = np.setdiff1d(live, live[:39].tolist() + batch[41:50].tolist() + [live[39]])
    assert selection.counts().n_selected == len(kept)
    pinned = live[20:80]
    keys = [
        *metas["key"][pinned].view(np.int64),
        123456789,
        *metas["key"][pinned[:5]].view(np.int64),
    ]
    selection.spare_keys(keys_of(card, keys))
    kept = np.setdiff1d(kept, pinned)
    assert np.array_equal(selected_rows(card, selection), kept)
    assert selection.counts() == (250, len(kept))
    selection.spare_keys(Keys(0, 0))


def test_pins_beyond_the_range_count_for_nothing(card):
    table = random_table(card, Shape(), 200, seed=2)
    keys = table.metas()["key"].view(np.int64)[:200]
    selection = Selection(card.launcher, table.device_table, 64)
    selection.extend(program_of(table, StepEviction(0)), 2**40, 128)
    selection.spare_keys(keys_of(card, [*keys[:64], *keys[128:], keys[70]]))
    assert selection.counts() == (64, 63)


@pytest.mark.parametrize("is_by_freq", [False, True])
@pytest.mark.parametrize("n", [0, 1, 2, 99, 200, 249, 250])
def test_keep_first(card, n, is_by_freq):
    table = random_table(card, Shape(dim=1), 250, 290, seed=7, n_steps=3)
    metas, live = table.metas(), table.set_of("live")
    selection = Selection(card.launcher, table.device_table)
    selection.select_live()
    selection.keep_first(n, RankBy(is_by_freq))
    score = metas["freq" if is_by_freq else "step"][live]
    order = np.lexsort((metas["key"][live].view(np.int64), score))
    assert np.array_equal(selected_rows(card, selection), np.sort(live[order[:n]]))


def test_keep_first_of_keys_that_differ_in_their_last_byte(card):
    table = random_table(card, ONES, 6, seed=1, n_steps=1)
    for key_of_row in (lambda i: -3 + i, lambda i: 2**63 - 1 - i, lambda i: -(2**63) + 5 - i):
        metas = table.metas()
        metas["freq"] = 1
        metas["key"][:6] = np.array([key_of_row(i) for i in range(6)], np.int64).view(np.uint64)
        card.queue.upload(table._metas[0], metas)
        for n in range(7):
            selection = Selection(card.launcher, table.device_table)
            selection.select_live()
            selection.keep_first(n, RankBy.FREQ)
            order = np.argsort(metas["key"][:6].view(np.int64))
            assert np.array_equal(selected_rows(card, selection), np.sort(order[:n]))


def test_more_than_there_are_is_an_error():
    table = random_table(Card(), ONES, 6)
    selection = Selection(table.card.launcher, table.device_table)
    selection.select_live()
    with pytest.raises(InternalError, match="7 rows were to be chosen of 6"):
        selection.keep_first(7, RankBy.STEP)


@pytest.mark.parametrize("n", [0, 3, 30, 1000])
def test_room_for_new_rows(card, n):
    table = random_table(card, ONES, 60, 70, seed=4)
    metas, live = table.metas(), table.set_of("live")
    keys = metas["key"].view(np.int64)
    batch = card.put([live[0], 0xFFFFFFFF, live[9]], np.uint32)
    pins = keys_of(card, [5, keys[live[20]]])
    selection, n_victims = evict.select_for_room(
        card.launcher, table.device_table, pins, RowList(batch, 3), n, is_by_freq=True
    )
    eligible = np.setdiff1d(live, live[[0, 9, 20]])
    order = np.lexsort((keys[eligible], metas["freq"][eligible]))[:n]
    assert n_victims == len(order)
    assert np.array_equal(selected_rows(card, selection), np.sort(eligible[order]))


@pytest.mark.parametrize("has_log", [False, True])
@pytest.mark.parametrize("is_erasure", [False, True])
def test_remove(card, has_log, is_erasure):
    shape = Shape(dim=3, chunk_shift=5, has_log=has_log)
    table = random_table(card, shape, 140, 170, seed=11, n_lines=17)  # so full that many spill
    table.place(-77, candidate_word(3, 0))
    card.queue.upload(table.at["lines"], table.lines)
    table.counters(n_free=3, n_log=5, n_evicted=10, n_erased=20)
    live, metas = table.set_of("live"), table.metas()
    if has_log:
        table.put_set("dirty", live)
    gone = np.random.default_rng(1).permutation(live)[:90].astype(np.uint32)
    rows = RowList(card.put(gone), len(gone))
    evict.remove(card.launcher, table.device_table, rows, is_erasure)
    evict.remove(card.launcher, table.device_table, RowList(0, 0), is_erasure)
    left = np.setdiff1d(live, gone)
    assert np.array_equal(table.set_of("live"), left)
    table.check_index()
    assert table.words()[-77] == candidate_word(3, 0)
    counters = table.counters()
    assert (counters["n_live"], counters["n_free"], counters["n_removals"]) == (50, 93, 90)
    assert (counters["n_evicted"], counters["n_erased"]) == ((10, 110) if is_erasure else (100, 20))
    free = card.get(table.at["free_rows"], 100, np.uint32)
    assert np.array_equal(free[3:93], gone)
    assert (free[[0, 1, 2, *range(93, 100)]] == 0xDEAD).all()
    assert counters["n_log"] == (95 if has_log else 5)
    if has_log:
        assert np.array_equal(table.set_of("dirty"), left)
        log = card.get(table.at["removed_keys"], 100, np.int64)
        assert np.array_equal(log[5:95], metas["key"][gone].view(np.int64))
        assert (log[[*range(5), *range(95, 100)]] == 99).all()


def test_erase_takes_rows_and_candidates_once(card):
    table = random_table(card, Shape(), 100, 120, seed=6, n_lines=14)
    for key in (-501, 502, 503):
        table.place(key, candidate_word(2, 1))
    card.queue.upload(table.at["lines"], table.lines)
    table.counters(n_candidates=3)
    live, metas = table.set_of("live"), table.metas()
    gone = live[::3]
    keys = [
        *metas["key"][gone].view(np.int64),
        -501,
        502,
        -501,
        999,
        metas["key"][gone[0]].view(np.int64),
    ]
    reserved = []
    n = evict.erase(card.launcher, table.device_table, keys_of(card, keys), reserved.append)
    assert n == len(gone)
    assert reserved == [n]
    assert np.array_equal(table.set_of("live"), np.setdiff1d(live, gone))
    table.check_index()
    assert {k: w for k, w in table.words().items() if w >= FIRST_CANDIDATE} == {
        503: candidate_word(2, 1)
    }
    counters = table.counters()
    assert (counters["n_candidates"], counters["n_erased"], counters["n_evicted"]) == (1, n, 0)
    assert evict.erase(card.launcher, table.device_table, Keys(0, 0), pytest.fail) == 0


def test_erase_without_room_changes_nothing():
    table = random_table(Card(), Shape(), 50)
    before = table.words(), table.counters()

    def no_room(n):
        raise MemoryError(n)

    with pytest.raises(MemoryError):
        evict.erase(
            table.card.launcher, table.device_table, keys_of(table.card, EDGE_KEYS), no_room
        )
    assert (table.words(), table.counters()) == before


@pytest.mark.parametrize(
    "bounds", [{}, {"max_rows": 7}, {"keep_at_least": 195}, {"keep_at_least": 500}]
)
@pytest.mark.parametrize("is_dry_run", [False, True])
def test_evict(card, bounds, is_dry_run):
    table = random_table(card, Shape(dim=3, n_slots=2), 200, 250, seed=8)
    live, metas, keys = table.set_of("live"), table.metas(), table.metas()["key"].view(np.int64)
    policy = StepEviction(250) | L2Eviction(0.4, 0)
    pinned = live[::10]
    selected = np.setdiff1d(expected_rows(table, policy, NOW), pinned)
    bound = min(bounds.get("max_rows", 999), max(0, 200 - bounds.get("keep_at_least", 0)))
    order = np.lexsort((keys[selected], metas["step"][selected]))[:bound]
    gone = np.sort(selected[order])
    pins = keys_of(card, keys[pinned[:7]]), keys_of(card, [*keys[pinned[5:]], 4711])
    call = EvictCall(program_of(table, policy), NOW, pins=pins, is_dry_run=is_dry_run, **bounds)
    reader = RowReader(card.launcher, RowColumns(3, np.dtype(np.float32), 2))
    reserved = []
    values, slots = table.values(), table.slots()
    done = evict.evict(card.launcher, table.device_table, call, 200, 0, reserved.append, reader)
    n_gone = 0 if is_dry_run else len(gone)
    assert done[:5] == (200, len(selected), n_gone, True, 0)
    assert reserved == ([n_gone] if n_gone else [])
    assert np.array_equal(table.set_of("live"), np.setdiff1d(live, [] if is_dry_run else gone))
    table.check_index()
    assert len(done.rows) == (len(gone) > 0)
    for rows in done.rows:
        assert np.array_equal(rows.keys, keys[gone])
        assert rows.values.tobytes() == values[gone].tobytes()
        assert rows.slots.tobytes() == slots[gone].tobytes()
        assert np.array_equal(rows.freq, metas["freq"][gone])
        assert np.array_equal(rows.step, metas["step"][gone])


def test_a_bounded_call_does_a_block_and_is_resumed(monkeypatch):
    monkeypatch.setattr(evict, "BLOCK_ROWS", 64)
    card = Card()
    table = random_table(card, ONES, 250, seed=10)
    live = table.set_of("live")
    policy = StepEviction(100)
    selected = expected_rows(table, policy, NOW)
    cursor, found = 0, []
    for _ in range(3):
        call = EvictCall(program_of(table, policy), NOW, max_seconds=1e-9)
        done = evict.evict(
            card.launcher, table.device_table, call, len(live), cursor, lambda n: None, None
        )
        n_block = np.sum((selected >= cursor) & (selected < cursor + 64))
        assert done[1:5] == (n_block, n_block, False, cursor + 64)
        found.append(n_block)
        cursor = done.cursor
    call = EvictCall(program_of(table, policy), NOW, max_seconds=1e9)
    done = evict.evict(card.launcher, table.device_table, call, 250, cursor, lambda n: None, None)
    assert (done.n_evicted, done.is_complete, done.cursor) == (len(selected) - sum(found), True, 0)
    assert np.array_equal(table.set_of("live"), np.setdiff1d(live, selected))
    table.check_index()
    card.check()


def test_a_bounded_call_scans_all_where_there_is_time(monkeypatch):
    monkeypatch.setattr(evict, "BLOCK_ROWS", 32)
    table = random_table(Card(), ONES, 250, seed=10)
    call = EvictCall(program_of(table, StepEviction(100)), NOW, max_seconds=1e9, is_dry_run=True)
    done = evict.evict(table.card.launcher, table.device_table, call, 250, 32, pytest.fail, None)
    assert (done.n_scanned, done.is_complete, done.cursor) == (218, True, 32)


def test_deadline():
    assert not Deadline(None).is_too_near(1e9)
    assert not Deadline(0).is_bounded
    assert Deadline(1e-9).is_too_near()
    assert not Deadline(1e6).is_too_near(1)
    assert Deadline(1e6).is_too_near(2e6)


# ---- upkeep


@pytest.mark.parametrize("ttl", [1, 15, 160])
def test_candidates_expire(card, ttl):
    table = random_table(card, Shape(), 20, seed=1, n_lines=30)
    grain = max(1, ttl // 16)
    random = np.random.default_rng(ttl)
    latest, now = 2**18 + 5, 2**18 + 9
    some = random.integers(latest - 30, latest + 1, 150)
    some[:3] = now - 2**18, latest - 2**18 + 1, latest  # 18 bits are kept of an epoch
    epochs = dict(enumerate(some.tolist(), 1000))
    for key, epoch in epochs.items():
        table.place(key, candidate_word(key % 7, epoch))
    card.queue.upload(table.at["lines"], table.lines)
    table.set_view(candidate_epoch=latest)
    table.counters(n_candidates=150)
    upkeep.expire_candidates(card.launcher, table.device_table, now, ttl)
    kept = {k for k, epoch in epochs.items() if (now - epoch) * grain <= ttl}
    words = table.words()
    assert {k for k, w in words.items() if w >= FIRST_CANDIDATE} == kept
    counters = table.counters()
    assert (counters["n_candidates"], counters["n_candidates_expired"]) == (
        len(kept),
        150 - len(kept),
    )
    table.check_index()


@pytest.mark.parametrize("has_log", [False, True])
def test_frequencies_halve(card, has_log):
    table = random_table(card, Shape(has_log=has_log), 130, 150, seed=2)
    live, before = table.set_of("live"), table.metas()
    upkeep.halve_frequencies(card.launcher, table.device_table)
    before["freq"][live] >>= 1
    assert np.array_equal(table.metas(), before)
    if has_log:
        assert np.array_equal(table.set_of("dirty"), live)


@pytest.mark.parametrize("by", [0, 1, 300, 2**32 - 1, 2**32, 2**50])
def test_base_advances(card, by):
    table = random_table(card, Shape(), 130, 150, seed=2)
    live, before = table.set_of("live"), table.metas()
    table.put_set("dirty", live[:3])
    upkeep.advance_base(card.launcher, table.device_table, by)
    old = before["step"][live].astype(np.int64)
    before["step"][live] = np.maximum(0, old - by)
    assert np.array_equal(table.metas(), before)
    assert table.counters()["n_steps_clamped"] == (old < by).sum()
    assert np.array_equal(table.set_of("dirty"), np.union1d(live[:3], live[old < by]))


@pytest.mark.parametrize("cell_bits", [1, 2, 4])
def test_the_filter_halves_and_is_counted(card, cell_bits):
    table = random_table(card, Shape(), 5)
    random = np.random.default_rng(cell_bits)
    data = random.integers(0, 256, 64 * 40, np.uint8) * random.integers(0, 2, 64 * 40, np.uint8)
    table.set_view(bloom=card.put(data), bloom_cell_bits=cell_bits)
    table.counters(n_bloom_added=9)
    cells = [(data >> at) & ((1 << cell_bits) - 1) for at in range(0, 8, cell_bits)]
    used = upkeep.bloom_cells_used(card.launcher, table.device_table, len(data))
    assert used == sum(np.count_nonzero(c) for c in cells)
    upkeep.halve_bloom(card.launcher, table.device_table, len(data))
    halved = sum((c >> 1) << at for c, at in zip(cells, range(0, 8, cell_bits), strict=True))
    at = table.shape.fields["bloom"]
    assert np.array_equal(card.get(at, len(data), np.uint8), halved.astype(np.uint8))
    assert table.counters()["n_bloom_added"] == 0


def test_lists_of_sets(card):
    random = np.random.default_rng(0)
    for n_rows, share in ((0, 0), (1, 1), (32, 1), (33, 0.5), (5000, 0.01), (3000, 0.9)):
        words = np.packbits(random.random(-(-n_rows // 32) * 32) < share, bitorder="little")
        at = card.put(words)
        rows = np.flatnonzero(np.unpackbits(words, bitorder="little"))
        for first, end in ((0, n_rows), (32, n_rows), (64, n_rows - 5)):
            listed = list_set(card.launcher, at, first, end)
            expected = rows[(rows >= first) & (rows < end)]
            assert np.array_equal(card.get(listed.address, listed.n, np.uint32), expected)
