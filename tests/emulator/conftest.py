"""The emulated device that tables of the tests live on, and memory in which all of it grows."""

import garbage
import pytest
from emulator.streams import LazyDevice

from embstore.engines.cuda import chunks, evict, order, snapshot, status, storage, transfer


@pytest.fixture
def device(emulated_device):
    """The emulated device, which must have seen nothing wrong at the end."""
    with garbage.of_its_own():
        yield emulated_device
    emulated_device.allocations.release()
    assert emulated_device.violations == []


@pytest.fixture
def small_memory(monkeypatch):
    """Let everything begin so small that it grows, and come in many pieces."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1)  # chunks of 32 rows
    monkeypatch.setattr(chunks, "FIRST_CHUNKS", 1)
    monkeypatch.setattr(chunks, "FIRST_ROWS", 1)
    monkeypatch.setattr(storage, "FIRST_LINES", 1)
    monkeypatch.setattr(storage, "MOST_LOAD", 1.0)  # the index is full, and searches walk
    monkeypatch.setattr(storage, "GROWN_LOAD", 0.9)
    monkeypatch.setattr(evict, "BLOCK_ROWS", 32)
    monkeypatch.setattr(transfer, "PIECE_BYTES", 1000)
    monkeypatch.setattr(snapshot, "LEAST_IMAGES", 16)
    monkeypatch.setattr(order, "ITEMS_PER_SEGMENT", 32)
    monkeypatch.setattr(order, "MAX_SEGMENTS", 12)


@pytest.fixture(params=range(4), ids="order{}".format)
def card(request, monkeypatch):
    """A device whose streams run in an order of their own."""
    device = LazyDevice(order=request.param)
    monkeypatch.setattr(status, "PROVIDER", lambda name: device)
    with garbage.of_its_own():
        yield device
    device.finish()
    device.allocations.release()
    assert device.violations == []
