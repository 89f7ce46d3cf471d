"""Prefix sums and stable sorts of the device, against numpy."""

import numpy as np
import pytest
from emulator.kit import SEEDS, Card
from reference.hashing import partition_of

from embstore.engines.cuda.order import SortBy, scan, sort

N_INTERLEAVINGS = 30
SIZES = (0, 1, 31, 32, 33, 255, 256, 257, 1000, 5000)


@pytest.fixture(params=SEEDS)
def card(request):
    card = Card(seed=request.param)
    yield card
    card.check()


@pytest.mark.parametrize("n", SIZES)
def test_scan(card, n):
    counts = np.random.default_rng(n).integers(0, 1000, n).astype(np.uint32)
    out, total = card.room(n, np.uint32), card.room(1, np.uint64)
    scan(card.launcher, card.put(counts), n, out, total)
    assert card.get(total, 1, np.uint64)[0] == counts.sum()
    assert np.array_equal(card.get(out, n, np.uint32), np.cumsum(counts) - counts)


def test_scan_in_place_of_as_many_as_the_device_says(card):
    counts = np.arange(700, dtype=np.uint32)
    at, n_at = card.put(counts), card.put([600], np.uint64)
    scan(card.launcher, at, 700, at, n_at=n_at)
    expected = np.concatenate((np.cumsum(counts[:600]) - counts[:600], counts[600:]))
    assert np.array_equal(card.get(at, 700, np.uint32), expected)


def test_scans_of_many_rounds_in_any_interleaving():
    counts = np.random.default_rng(1).integers(0, 1000, 2000).astype(np.uint32)
    for seed in range(1, 1 + N_INTERLEAVINGS):
        card = Card(seed=seed, max_blocks=1)
        at = card.put(counts)
        scan(card.launcher, at, len(counts), at)
        found = card.get(at, len(counts), np.uint32)
        assert np.array_equal(found, np.cumsum(counts) - counts)


def sorted_by_card(card, keys, kind, n_at=None, **options):
    out = card.put(np.full(len(keys), 77), np.uint32)
    at = 0 if n_at is None else card.put([n_at], np.uint64)
    sort(card.launcher, card.put(keys), kind, len(keys), out, n_at=at, **options)
    return card.get(out, len(keys), np.uint32)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("n_bits", [1, 8, 9, 20, 32])
def test_sort_of_words(card, n, n_bits):
    if card.device.seed and n > 1000:
        pytest.skip("in order alone")
    words = np.random.default_rng(n).integers(0, 1 << n_bits, n).astype(np.uint32)
    order = sorted_by_card(card, words, SortBy.WORD, n_bits=n_bits)
    assert np.array_equal(order, np.argsort(words, kind="stable"))


def test_sort_of_more_items_than_segments_take_at_once(monkeypatch):
    monkeypatch.setattr("embstore.engines.cuda.order.MAX_SEGMENTS", 5)
    card = Card()
    words = np.random.default_rng(5).integers(0, 300, 20011).astype(np.uint32)
    order = sorted_by_card(card, words, SortBy.WORD, n_bits=9)
    assert np.array_equal(order, np.argsort(words, kind="stable"))
    card.check()


def test_sorts_of_many_segments_in_any_interleaving(monkeypatch):
    monkeypatch.setattr("embstore.engines.cuda.order.ITEMS_PER_SEGMENT", 32)
    words = np.random.default_rng(5).integers(0, 9, 1000).astype(np.uint32)
    for seed in range(1, 1 + N_INTERLEAVINGS):
        card = Card(seed=seed, max_blocks=1)
        order = sorted_by_card(card, words, SortBy.WORD, n_bits=8)
        assert np.array_equal(order, np.argsort(words, kind="stable"))


def test_sort_keeps_equal_words_as_they_come(card):
    for word in (0, 255, 256):
        words = np.full(300, word, np.uint32)
        assert np.array_equal(sorted_by_card(card, words, SortBy.WORD), np.arange(300))


def some_keys(n):
    random = np.random.default_rng(n)
    keys = random.integers(-(2**63), 2**63, n, np.int64)
    keys[::3] = random.integers(-5, 5, len(keys[::3]))
    keys[:2] = -(2**63), 2**63 - 1
    return keys


def test_sort_of_keys_is_signed(card):
    keys = some_keys(400)
    order = sorted_by_card(card, keys, SortBy.KEY)
    assert np.array_equal(order, np.argsort(keys, kind="stable"))


def test_sort_by_partition(card):
    keys = some_keys(400)
    order = sorted_by_card(card, keys, SortBy.PARTITION)
    assert np.array_equal(order, np.argsort(partition_of(keys), kind="stable"))
    order = sorted_by_card(card, keys, SortBy.PARTITION_AND_KEY)
    assert np.array_equal(order, np.lexsort((keys, partition_of(keys))))


@pytest.mark.parametrize("n", [0, 1, 299, 400])
def test_sort_of_as_many_as_the_device_says(card, n):
    keys = some_keys(400)
    order = sorted_by_card(card, keys, SortBy.KEY, n_at=n)
    assert np.array_equal(order[:n], np.argsort(keys[:n], kind="stable"))
    assert (order[n:] == 77).all()
