"""The device of CuPy: on a card where there is one, and over a stand-in for CuPy everywhere."""

import gc
import sys
import threading
import weakref
from pathlib import Path

import fake_cupy
import numpy as np
import pytest

import embstore as es
from embstore.engines import kernels
from embstore.engines.cuda import cupy_device
from embstore.engines.kernel_sources import Sources

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = Sources(ROOT / "include", ROOT / "tests" / "cpp" / "device")


def array_at(address, dtype, n):
    """An array over memory of the stand-in."""
    dtype = np.dtype(dtype)
    return np.ctypeslib.as_array(
        (fake_cupy.ctypes.c_uint8 * (n * dtype.itemsize)).from_address(address)
    ).view(dtype)


def scale(n_blocks, args):
    """What the sample's kernel of this name does."""
    x, out, n, by = *map(int, args[:3]), args[3:].view(np.float64)[0]
    array_at(out, np.float32, n)[:] = array_at(x, np.float32, n) * np.float32(by) + np.float32(1)


def blocks(n_blocks, args):
    """What the sample's kernel of this name does."""
    array_at(int(args[0]), np.uint64, 2)[:] = n_blocks, args[1]


@pytest.fixture
def fake(monkeypatch):
    """A stand-in for CuPy, of 1 GiB."""
    fake = fake_cupy.FakeCupy()
    fake.kernels = {"sample_scale": scale, "sample_blocks": blocks}
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(kernels, "cubins", lambda arch, sources: {"sample": b"\x7fELF"})
    return fake


@pytest.fixture(params=["stand-in", "card"])
def device(request):
    """A device."""
    if request.param == "stand-in":
        request.getfixturevalue("fake")
        return cupy_device.CupyDevice(1, SAMPLE)
    found = es.cuda_status()
    if not found.is_available:
        pytest.skip(f"the device of CuPy was not tried on a card: {found.message}")
    return cupy_device.CupyDevice(0, SAMPLE)


def downloaded(queue, address, dtype, n):
    out = np.empty(n, dtype)
    queue.download(address, out)
    return out


def test_what_is_uploaded_can_be_changed_at_once_and_comes_back(device):
    queue = device.queue()
    for n in (0, 1, 1000, (cupy_device.PIECE_BYTES // 4) * 20 + 3):
        data = np.arange(n, dtype=np.int32)
        memory = queue.alloc(data.nbytes)
        assert memory.address % 256 == 0
        assert memory.n_bytes == data.nbytes
        queue.upload(memory.address, data)
        data.fill(-1)
        assert np.array_equal(downloaded(queue, memory.address, np.int32, n), np.arange(n))


def test_bytes_are_copied_and_filled(device):
    queue = device.queue()
    first, second = queue.alloc(1000), queue.alloc(1000)
    queue.fill(first.address, 7, 1000)
    queue.fill(first.address + 10, 255, 5)
    queue.copy(second.address + 1, first.address, 999)
    queue.copy(second.address, first.address, 0)
    out = downloaded(queue, second.address + 1, np.uint8, 999)
    assert (out[10:15] == 255).all()
    assert (np.delete(out, range(10, 15)) == 7).all()


def test_pinned_memory_is_zeroed_and_seen_by_both_sides(device):
    queue = device.queue()
    pinned = device.alloc_pinned(4096)
    assert pinned.address % 256 == 0
    assert pinned.n_bytes == 4096
    assert (pinned.array == np.zeros(4096, np.uint8)).all()
    args = np.array([pinned.address, 2**64 - 5], np.uint64)
    queue.launch("sample_blocks", 1000, args)
    queue.synchronize()
    assert pinned.array[:16].view(np.int64).tolist() == [4, -5]
    memory = queue.alloc(16)
    queue.copy(memory.address, pinned.address, 16)
    assert downloaded(queue, memory.address, np.int64, 2).tolist() == [4, -5]
    assert device.alloc_pinned(0).array.size == 0


def test_a_kernel_gets_its_struct_by_value(device):
    queue, n = device.queue(), 100_000
    x = np.linspace(-1, 1, n, dtype=np.float32)
    x[:3] = np.float32(1e-40), np.float32(np.inf), np.float32(np.nan)  # a subnormal is not flushed
    memory, out = queue.alloc(x.nbytes), queue.alloc(x.nbytes)
    queue.upload(memory.address, x)
    args = np.array([memory.address, out.address, n, 0], np.uint64)
    args[3:] = np.array([0.3]).view(np.uint64)
    queue.launch("sample_scale", n, args)
    args.fill(0)
    found = downloaded(queue, out.address, np.float32, n)
    expected = x * np.float32(0.3) + np.float32(1)
    assert np.array_equal(found.view(np.uint32)[:2], expected.view(np.uint32)[:2])
    assert np.array_equal(found.view(np.uint32)[3:], expected.view(np.uint32)[3:])


@pytest.mark.parametrize("n_threads", [0, 1, 256, 257, 10**12])
def test_the_grid_is_bounded_and_never_empty(device, n_threads):
    queue = device.queue()
    memory = queue.alloc(16)
    queue.launch("sample_blocks", n_threads, np.array([memory.address, 1], np.uint64))
    expected = min(max(1, -(-n_threads // 256)), device.max_blocks)
    assert downloaded(queue, memory.address, np.uint64, 2).tolist() == [expected, 1]


def test_wrong_arguments_are_refused_before_the_card_reads_them(device):
    queue = device.queue()
    for args in (np.zeros(1, np.uint64), np.zeros(3, np.uint64), np.zeros(2, np.int32)):
        with pytest.raises(es.InternalError, match="kernel sample_blocks takes 2 arguments"):
            queue.launch("sample_blocks", 1, args)
    with pytest.raises(es.InternalError, match="no kernel named 'nothing'"):
        queue.launch("nothing", 1, np.zeros(2, np.uint64))
    with pytest.raises(es.InternalError, match="not contiguous"):
        queue.upload(0, np.zeros((4, 4))[:, 1])


def test_events_order_queues(device):
    first, second = device.queue(0), device.queue(None)
    memory = first.alloc(1 << 20)
    first.fill(memory.address, 3, 1 << 20)
    event = first.record()
    second.wait_for(event)
    assert (downloaded(second, memory.address, np.uint8, 1 << 20) == 3).all()
    event.wait()
    assert event.is_done()
    with pytest.raises(es.InternalError, match="of another device"):
        first.wait_for(object())


def test_arrays_are_made_on_the_queue(device):
    queue = device.queue()
    array = device.new_array((3, 4), np.dtype(np.float32), queue)
    assert array.shape == (3, 4)
    assert array.dtype == np.float32
    assert hasattr(array, "__cuda_array_interface__") or isinstance(array, np.ndarray)


def test_too_much_memory_is_a_clear_error(device):
    queue, much = device.queue(), 1 << 50
    message = f"{much} bytes of the device were asked for; of the device's [0-9]+ bytes"
    with pytest.raises(es.OutOfMemoryError, match=message):
        queue.alloc(much)
    with pytest.raises(es.OutOfMemoryError, match=message):
        device.new_array((much // 4,), np.dtype(np.float32), queue)
    with pytest.raises(es.OutOfMemoryError, match=f"{much} bytes of the host, pinned"):
        device.alloc_pinned(much)
    queue.alloc(1000)


def test_queues_have_the_numbers_of_their_streams(fake):
    device = cupy_device.CupyDevice(1, SAMPLE)
    assert (device.name, device.arch, device.max_blocks) == ("cuda:1", 90, 32)
    queue = device.queue(77)
    assert (queue.handle, device.queue().handle) == (77, 0)
    memory = queue.alloc(16)
    queue.fill(memory.address, 0, 16)
    queue.launch("sample_blocks", 1, np.array([memory.address, 1], np.uint64))
    queue.wait_for(queue.record())
    queue.synchronize()
    device.new_array((2,), np.dtype(np.float32), queue)
    calls = [call for call in fake.log if call[0] not in ("load", "launch", "wait_event")]
    assert {call[1:3] for call in calls} == {(1, 77)}
    assert ("launch", 1, "sample_blocks", (1,), (256,), 77) in fake.log
    assert fake.stack() == []


def test_uploads_hold_a_bounded_amount_of_pinned_memory(fake):
    device = cupy_device.CupyDevice(0, SAMPLE)
    queue = device.queue()
    n_bytes = cupy_device.STAGED_BYTES + 3 * cupy_device.PIECE_BYTES
    memory = queue.alloc(n_bytes)
    fake.pending = set(range(1, 10**6))  # nothing is done until it is waited for
    queue.upload(memory.address, np.zeros(n_bytes, np.uint8))
    waited = [call for call in fake.log if call[0] == "synchronize event"]
    assert len(waited) == 3
    fake.pending.clear()
    queue.upload(memory.address, np.zeros(1, np.uint8))
    assert len(device.staging._held) == 0


def test_pinned_memory_lives_as_long_as_its_array(fake):
    device = cupy_device.CupyDevice(1, SAMPLE)
    pinned = device.alloc_pinned(100)
    view, before = pinned.array[5:10], fake.used
    del pinned
    gc.collect()
    assert fake.used == before
    assert view.tolist() == [0] * 5
    del view
    gc.collect()
    assert fake.used == before - 100
    assert fake.log[-2:] == [("deviceSynchronize", 1), ("free", 0)]


def test_an_event_of_failed_work_raises(fake):
    queue = cupy_device.CupyDevice(0, SAMPLE).queue()
    event = queue.record()
    fake.pending.add(event.event.ptr)
    assert not event.is_done()
    fake.failed.add(event.event.ptr)
    with pytest.raises(fake_cupy.CudaError, match="700"):
        event.is_done()


def test_kernels_are_loaded_once_by_many_threads(fake):
    device = cupy_device.CupyDevice(0, SAMPLE)
    memory = device.queue().alloc(16)
    args = np.array([memory.address, 1], np.uint64)
    barrier = threading.Barrier(8)

    def run():
        barrier.wait()
        device.queue().launch("sample_blocks", 1, args)

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [call[0] for call in fake.log].count("load") == 1
    assert [call[0] for call in fake.log].count("launch") == 8


def test_the_device_of_a_number_is_the_same_one(fake):
    cupy_device.open_cupy_device.cache_clear()
    try:
        assert cupy_device.open_cupy_device(1) is cupy_device.open_cupy_device(1)
        assert cupy_device.open_cupy_device(0).name == "cuda:0"
    finally:
        cupy_device.open_cupy_device.cache_clear()


# What the installed CuPy does that this relies on; none of it needs a card.


@pytest.fixture
def cupy():
    """CuPy itself."""
    return pytest.importorskip("cupy", reason="CuPy is not installed: its own part is not tried")


def test_cupy_passes_one_element_of_bytes_by_value(cupy):
    """It refuses longer arrays before it asks for a context, which is what fails without a card."""
    function = cupy.cuda.Function.__new__(cupy.cuda.Function)
    fields = np.arange(4, dtype=np.uint64)
    null = cupy.cuda.Stream.null
    with pytest.raises(TypeError, match="of size one"):
        function((1,), (1,), (fields,), stream=null)
    if not cupy.cuda.is_available():
        struct = fields.view(np.dtype((np.void, fields.nbytes)))
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
            function((1,), (1,), (struct,), stream=null)


def test_cupy_makes_buffers_of_any_block_and_keeps_it(cupy):
    class Block:
        memory = np.zeros(64, np.uint8)
        ptr, size = memory.ctypes.data, 64

    block = Block()
    alive = weakref.ref(block)
    array = np.frombuffer(cupy.cuda.PinnedMemoryPointer(block, 0), np.uint8, 64)[:10]
    array.fill(3)
    del block
    gc.collect()
    assert alive() is not None
    assert Block.memory[8:12].tolist() == [3, 3, 0, 0]
    del array
    gc.collect()
    assert alive() is None


def test_cupy_takes_the_number_of_a_stream(cupy):
    stream = cupy.cuda.Stream.from_external(cupy_device.Handle(77))
    assert stream.ptr == 77
    del stream  # is not destroyed, for it is not CuPy's


def test_cupy_has_what_the_device_calls(cupy):
    fake = fake_cupy.FakeCupy()
    for name in vars(fake.cuda.runtime):
        assert hasattr(cupy.cuda.runtime, name), name
    for name in vars(fake.cuda):
        assert hasattr(cupy.cuda, name), name
    assert hasattr(cupy.get_default_memory_pool(), "free_bytes")
