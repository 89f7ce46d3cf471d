"""The emulator itself: right kernels give right results, wrong ones are seen to be wrong."""

import gc
import subprocess
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from emulator.build import library
from emulator.device import BLOCK_THREADS, EmulatedDevice, Emulator

from embstore.errors import OutOfMemoryError

HERE = Path(__file__).resolve().parent
SOURCES = (HERE / "sample_kernels.cu",)
SEEDS = range(50)
RNG = np.random.default_rng(7)


@pytest.fixture(scope="module")
def emulator():
    return Emulator(library(sources=SOURCES, with_engine=False))


@pytest.fixture
def device(emulator):
    device = EmulatedDevice(emulator=emulator)
    yield device
    gc.collect()
    device.allocations.release()
    assert device.violations == []


class Words:
    """Arrays of uint64 on a device, and a kernel that is told of the first two and a number."""

    def __init__(self, device, *arrays, n):
        self.device = device
        self.arrays = [device.array_of(np.asarray(a, dtype=np.uint64)) for a in arrays]
        self.n = n

    def launch(self, kernel, n_threads=1024):
        args = [*(a.memory.address for a in self.arrays[:2]), self.n]
        self.device.queue().launch(kernel, n_threads, np.array(args, dtype=np.uint64))
        return [a.numpy() for a in self.arrays]


def scan(device, kernel):
    values = RNG.integers(0, 1000, 1500, dtype=np.uint64)
    expected = np.concatenate([np.cumsum(values[i : i + 256]) for i in range(0, 1500, 256)])
    _, out = Words(device, values, np.zeros(1500), n=1500).launch(kernel)
    return np.array_equal(out, expected)


def claim(device, kernel, n_cells=7):
    cells, n_claims = Words(device, np.zeros(n_cells), np.zeros(n_cells), n=n_cells).launch(kernel)
    assert (cells > 0).all()
    return np.array_equal(n_claims, np.ones(n_cells))


def test_a_scan_with_barriers_is_right_under_all_seeds(device):
    for device.seed in SEEDS:
        assert scan(device, "sample_scan")


def test_a_missing_barrier_is_seen(device):
    n_wrong = 0
    for device.seed in SEEDS[1:]:
        n_wrong += not scan(device, "sample_scan_without_barrier")
    assert n_wrong > 40


@pytest.mark.parametrize("n_lanes", [1, 2, 4, 8, 16, 32])
def test_tiles_reduce(device, n_lanes):
    values = RNG.integers(0, 1000, 200 * n_lanes, dtype=np.uint64)
    tiles = values.reshape(200, n_lanes)
    expected = tiles.sum(axis=1) * 64 + (tiles & 1).sum(axis=1)
    for device.seed in SEEDS:
        _, out = Words(device, values, np.zeros(200), n=200).launch(f"sample_reduce_{n_lanes}")
        np.testing.assert_array_equal(out, expected)


def test_claims_by_compare_swap_are_single(device):
    for device.seed in SEEDS:
        assert claim(device, "sample_claim")


def test_a_missing_compare_swap_is_seen(device):
    n_wrong = 0
    for device.seed in SEEDS[1:]:
        n_wrong += not claim(device, "sample_claim_without_swap", n_cells=50)
    assert n_wrong > 40


@pytest.mark.parametrize("n_bits", [32, 64])
def test_the_operations_on_words(device, n_bits):
    old, x, limit = 0xF0F0_1234 << (n_bits - 32), 0x00FF_00FF << (n_bits - 32), 1 << n_bits
    _, out = Words(device, [old, x], np.zeros(32), n=0).launch(f"sample_words_{n_bits}")
    assert out[:8].tolist() == [old] * 8
    left = [x, old, (old + x) % limit, old | x, old & x, min(old, x), max(old, x), x, old + 2]
    assert out[16:25].tolist() == left


def test_shuffles_wrap_around_the_tile(device):
    _, out = Words(device, [0], np.zeros(32), n=32).launch("sample_shfl")
    lane = (np.arange(32) + 1) % 16
    np.testing.assert_array_equal(out, (2 * lane + 1) * 100 + 3)


def test_what_was_published_is_seen(device):
    for device.seed in SEEDS:
        _, out = Words(device, [0], [0, 0], n=1).launch("sample_publish")
        assert out.tolist() == [42, 0]


def test_threads_that_wait_for_others_let_them_run(device):
    for device.seed in SEEDS[:10]:
        _, out = Words(device, np.zeros(4), [0], n=4).launch("sample_wait_by_ballot")
        assert out[0] == 4 * 31
        cells, out = Words(device, [0], [0], n=1).launch("sample_lock")
        assert (cells[0], out[0]) == (0, 4 * BLOCK_THREADS // 8)


def test_shared_memory_is_poisoned_in_each_block(device):
    for device.seed in SEEDS[:5]:
        _, out = Words(device, [0], np.zeros(1024), n=1024).launch("sample_read_poison")
        assert (out == 0xCDCD_CDCD_CDCD_CDCD).all()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("kernel", "text"),
    [
        ("early_exit", r"deadlock: .*b0t0@ballot b0t1@ballot b0t2@ballot b0t3 has ended"),
        (
            "two_collectives",
            r"lanes of one tile meet at (ballot and sync|sync and ballot): .*@sync",
        ),
        ("spin", r"livelock: no thread ends: .*b0t\d+ runs"),
        ("lock_over_barrier", r"livelock: .*b0t\d+@barrier"),
        ("store16", r"misaligned: load16 by b0t0"),
    ],
)
def test_an_error_says_who_waits_where(device, seed, kernel, text):
    device.seed = seed
    device.emulator.set_limit(1_000_000)
    words = Words(device, np.zeros(4), np.zeros(4), n=0)
    words.arrays[0].memory.address += 8 * (kernel == "store16")
    try:
        with pytest.raises(RuntimeError, match=f"sample_{kernel}: {text}"):
            words.launch(f"sample_{kernel}", 256)
    finally:
        device.emulator.set_limit()
        words.arrays[0].memory.address -= 8 * (kernel == "store16")
    assert scan(device, "sample_scan")  # what was abandoned leaves nothing behind


def test_a_launch_that_cannot_be_is_refused(device):
    words = Words(device, [0], [0], n=0)
    with pytest.raises(RuntimeError, match="no kernel is named sample_nothing"):
        words.launch("sample_nothing")
    with pytest.raises(RuntimeError, match="takes 24 bytes of arguments; 16 were given"):
        device.queue().launch("sample_scan", 1, np.zeros(2, dtype=np.uint64))
    assert device.emulator.kernels()["sample_scan"] == 24


def test_a_seed_repeats(device):
    def winners():
        device.seed = 5
        return Words(device, np.zeros(7), np.zeros(7), n=7).launch("sample_claim")[0].tolist()

    first = winners()
    assert winners() == first
    device.seed = 6
    assert Words(device, np.zeros(7), np.zeros(7), n=7).launch("sample_claim")[0].tolist() != first


def test_many_threads_of_the_host_may_launch(emulator):
    results = []

    def work(seed):
        device = EmulatedDevice(seed=seed, emulator=emulator)
        results.extend(claim(device, "sample_claim") for _ in range(20))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 80


def test_a_write_into_a_red_zone_is_noticed(emulator):
    device = EmulatedDevice(emulator=emulator)
    words = Words(device, [0], np.zeros(10), n=10)
    words.launch("sample_write_beyond")
    with pytest.raises(AssertionError, match="80 bytes was written at byte 80 to 87"):
        words.arrays[1].memory.check()
    del words
    gc.collect()
    assert device.violations == ["an allocation of 80 bytes was written at byte 80 to 87"]


def test_a_write_to_freed_memory_is_noticed(emulator):
    device = EmulatedDevice(emulator=emulator)
    words = Words(device, [0], np.zeros(10), n=3)
    kept = words.arrays[1].numpy()[2:4]
    address = words.arrays[0].memory.address
    del words
    args = np.array([0, address, 0], dtype=np.uint64)
    device.queue().launch("sample_write_beyond", 1, args)
    assert kept.tolist() == [0, 0]  # a view keeps its memory
    device.allocations.release()
    assert device.violations == ["776 bytes were written after they were freed"]


def test_copies_stay_within_an_allocation(emulator):
    device = EmulatedDevice(emulator=emulator)
    queue = device.queue()
    memory = queue.alloc(100)
    with pytest.raises(AssertionError, match=r"101 bytes at .* are not in one allocation"):
        queue.fill(memory.address, 0, 101)
    with pytest.raises(AssertionError, match="not in one allocation"):
        queue.download(memory.address + 100, np.zeros(1, dtype=np.uint8))
    assert len(device.violations) == 2


def test_memory_is_aligned_and_holds_garbage(device):
    queue = device.queue()
    memories = [queue.alloc(n) for n in (0, 1, 255, 256, 10_000)]
    assert [m.address % 256 for m in memories] == [0] * 5
    out = np.zeros(10_000, dtype=np.uint8)
    queue.download(memories[-1].address, out)
    assert (out == 0xA5).all()
    pinned = device.alloc_pinned(1000)
    assert pinned.address % 256 == 0
    assert not pinned.array.any()


def test_copies(device):
    queue = device.queue()
    data = RNG.integers(0, 256, 1000, dtype=np.uint8)
    a, b, out = queue.alloc(1000), queue.alloc(1000), np.zeros(1000, dtype=np.uint8)
    queue.upload(a.address, data)
    queue.copy(b.address, a.address, 1000)
    queue.fill(b.address + 10, 7, 5)
    queue.download(b.address, out)
    data[10:15] = 7
    np.testing.assert_array_equal(out, data)
    event = queue.record()
    queue.wait_for(event)
    event.wait()
    queue.synchronize()
    assert event.is_done()


def test_memory_runs_out(emulator):
    device = EmulatedDevice(memory_bytes=1000, emulator=emulator)
    memory = device.queue().alloc(900)
    with pytest.raises(OutOfMemoryError, match="101 bytes: the device has 1000"):
        device.queue().alloc(101)
    del memory
    device.queue().alloc(1000)


def test_arrays_have_the_interface_of_cuda(device):
    queue = device.queue(17)
    assert (queue.handle, device.queue().handle) == (17, 0)
    array = device.new_array((3, 4), np.dtype(np.float32), queue)
    address = array.memory.address
    assert array.__cuda_array_interface__ == {
        "version": 3,
        "shape": (3, 4),
        "typestr": "<f4",
        "data": (address, False),
        "strides": None,
        "stream": 17,
    }
    array.numpy()[...] = 3
    out = np.zeros((3, 4), dtype=np.float32)
    queue.download(address, out)
    assert (out == 3).all()
    half = device.array_of(np.ones(5, dtype=ml_dtypes.bfloat16))
    assert half.numpy().dtype == ml_dtypes.bfloat16
    assert device.new_array((0, 4), np.dtype(np.uint64), queue).numpy().shape == (0, 4)


def test_launches_are_counted_and_bounded(device):
    words = Words(device, np.zeros(1), np.zeros(4096), n=4096)
    for n_threads in (0, 1, 256, 257, 10_000):
        words.launch("sample_read_poison", n_threads)
    assert device.launches == {"sample_read_poison": 5}
    n_written = np.count_nonzero(words.arrays[1].numpy())
    assert n_written == 4 * BLOCK_THREADS


def run_sanitized(sanitize, kernel, n_blocks, n, **options):
    main = HERE / "sanitized_main.cpp"
    program = library(sanitize, sources=SOURCES, with_engine=False, main=main, **options)
    command = [program, kernel, str(n_blocks), str(n), "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.unsanitized
@pytest.mark.parametrize("sanitize", ["thread", "address,undefined"])
@pytest.mark.parametrize(
    ("kernel", "n_blocks", "n"),
    [
        *(("sample_scan", 3, 1000), ("sample_reduce_8", 3, 512), ("sample_reverse", 3, 1)),
        *(("sample_claim", 3, 7), ("sample_publish", 3, 1), ("sample_lock", 3, 1)),
        ("sample_publish_by_tile", 3, 1),
    ],
)
def test_sanitizers_find_nothing_in_right_kernels(sanitize, kernel, n_blocks, n):
    assert run_sanitized(sanitize, kernel, n_blocks, n) == (0, "")


@pytest.mark.slow
@pytest.mark.unsanitized
@pytest.mark.parametrize(
    ("sanitize", "kernel", "n", "text"),
    [
        ("thread", "sample_reverse_without_barrier", 1, "data race"),
        ("thread", "sample_publish_without_release", 1, "data race"),
        ("thread", "sample_publish_by_tile_without_sync", 1, "data race"),
        ("address,undefined", "sample_write_beyond", 8192, "heap-buffer-overflow"),
    ],
)
def test_sanitizers_name_the_line(sanitize, kernel, n, text):
    status, report = run_sanitized(sanitize, kernel, 2, n)
    assert status != 0
    assert text in report
    assert "sample_kernels.cu:" in report


@pytest.mark.slow
@pytest.mark.unsanitized
def test_an_abandoned_launch_is_clean_under_sanitizers():
    for sanitize in ("thread", "address,undefined"):
        status, report = run_sanitized(sanitize, "sample_early_exit", 1, 1)
        assert status == 1
        assert "Sanitizer" not in report
        assert report.count("deadlock") == 4


@pytest.mark.slow
@pytest.mark.unsanitized
@pytest.mark.parametrize("only_sync_orders", [False, True])
def test_whether_a_ballot_orders_memory_can_be_chosen(only_sync_orders):
    kernel = "sample_publish_by_tile_with_ballot"
    status, report = run_sanitized("thread", kernel, 2, 1, only_sync_orders=only_sync_orders)
    assert (status != 0) == only_sync_orders
    assert ("data race" in report) == only_sync_orders
    right = run_sanitized("thread", "sample_publish_by_tile", 2, 1, only_sync_orders=True)
    assert right == (0, "")
