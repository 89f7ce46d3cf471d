"""The emulated device that tables of the tests live on, and memory in which all of it grows."""

import gc

import pytest

from embstore.engines.cuda import evict, order, snapshot, storage, transfer


@pytest.fixture
def device(emulated_device):
    """The emulated device, which must have seen nothing wrong at the end."""
    yield emulated_device
    gc.collect()
    emulated_device.allocations.release()
    assert emulated_device.violations == []


@pytest.fixture
def small_memory(monkeypatch):
    """Let everything begin so small that it grows, and come in many pieces."""
    monkeypatch.setattr(storage, "CHUNK_BYTES", 1)  # chunks of 32 rows
    monkeypatch.setattr(storage, "FIRST_CHUNKS", 1)
    monkeypatch.setattr(storage, "FIRST_ROWS", 1)
    monkeypatch.setattr(storage, "FIRST_LINES", 1)
    monkeypatch.setattr(evict, "BLOCK_ROWS", 32)
    monkeypatch.setattr(transfer, "PIECE_BYTES", 1000)
    monkeypatch.setattr(snapshot, "LEAST_IMAGES", 16)
    monkeypatch.setattr(order, "ITEMS_PER_SEGMENT", 32)
    monkeypatch.setattr(order, "MAX_SEGMENTS", 12)
