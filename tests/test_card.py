"""What only a card can show: memory beyond 32 bits, many streams, an empty home.

Most compare a sample of the keys with the CPU engine: rows are functions of their keys.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path

import card_kit
import numpy as np
import pytest
from contract import digest
from property.program import run_program

import embstore as es

pytestmark = [pytest.mark.card, pytest.mark.slow]

ROOT = Path(__file__).resolve().parent.parent
N_PIECE = 1 << 20
SHRUNK = 20_000  # times as small on an emulated device
N_SAMPLE = 4096 if card_kit.is_real() else 128
PARAMETERS = {"initializer": es.Uniform(-1.0, 1.0), "seed": 5, "hash_seed": 9}


@pytest.fixture(autouse=True)
def device():
    """The device under test."""
    with card_kit.device_under_test() as device:
        yield device


@pytest.fixture
def say(capsys):
    """A function that prints past pytest's capture."""

    def printed(text):
        with capsys.disabled():
            print(f"\n{text}", flush=True)

    return printed


def scaled(n):
    """Return n, or far fewer on an emulated device."""
    return n if card_kit.is_real() else max(256, n // SHRUNK)


def free_bytes(device):
    """Return the memory that can be had."""
    if not card_kit.is_real():
        return 1 << 30
    with device.current():
        return int(device.runtime.memGetInfo()[0])


def keys_between(first, end):
    """Return distinct keys, spread over all 64 bits, by their numbers."""
    numbers = np.arange(first, end, dtype=np.uint64)
    return (numbers * np.uint64(0x9E3779B97F4A7C15) + np.uint64(77)).view(np.int64)


def fill(table, n, step=0):
    """Give rows to keys 0 .. n - 1 without looking at the rows."""
    for first in range(0, n, N_PIECE):
        keys = keys_between(first, min(n, first + N_PIECE))
        table._engine.find_or_insert(keys, step, None, True, None)


def sample_of(n):
    """Return the numbers of some keys: the first, the last, and others between them."""
    ends = np.arange(min(n, 64))
    drawn = np.random.default_rng(1).integers(0, n, N_SAMPLE)
    return np.unique(np.concatenate([ends, n - 1 - ends, drawn]))


def assert_like_the_cpu(table, n, optimizer):
    """Compare rows of a sample with a small table of the CPU engine, and again after a step."""
    numbers = sample_of(n)
    keys = np.concatenate([keys_between(i, i + 1) for i in numbers.tolist()])
    with es.Table(table.dim, optimizer=optimizer, **PARAMETERS) as twin:
        batches = [t.find_or_insert(keys, step=1) for t in (table, twin)]
        assert np.array_equal(batches[0].rows, batches[1].rows)
        assert (batches[0].status == es.KeyStatus.FOUND).all()
        if optimizer is not None:
            grads = np.random.default_rng(2).standard_normal((len(keys), table.dim), np.float32)
            for t, batch in zip((table, twin), batches, strict=True):
                t.apply_gradients(batch, grads, step=2)
        assert np.array_equal(table.find(keys), twin.find(keys))
    absent = keys_between(n, n + 100)
    assert not table.contains(absent).any()
    assert len(table) == n


@pytest.mark.parametrize("optimizer", [None, es.Adagrad(lr=0.1)], ids=["plain", "adagrad"])
def test_values_beyond_two_to_the_31(optimizer):
    n = scaled(3_000_000)
    with es.Table(1024, optimizer=optimizer, device="cuda", **PARAMETERS) as table:
        fill(table, n)
        assert n * 1024 > 2**31 or not card_kit.is_real()
        assert_like_the_cpu(table, n, optimizer)


def test_an_index_beyond_two_to_the_31_bytes():
    n = scaled(150_000_000)
    with es.Table(1, device="cuda", **PARAMETERS) as table:
        table.reserve(n)
        fill(table, n)
        assert table.stats()["nbytes_index"] > 2**31 or not card_kit.is_real()
        assert_like_the_cpu(table, n, None)
        gone = keys_between(0, n // 100)
        assert table.erase(gone) == len(gone)
        assert not table.contains(gone).any()
        assert table.contains(keys_between(n // 100, n // 50)).all()


def test_an_index_grows_beyond_two_to_the_31_bytes():
    n = scaled(140_000_000)
    with es.Table(1, device="cuda", **PARAMETERS) as table:
        fill(table, n)
        assert table.stats()["nbytes_index"] > 2**31 or not card_kit.is_real()
        assert_like_the_cpu(table, n, None)


def test_a_table_of_a_hundred_gigabytes(device, say):
    row_bytes, wanted = 3 * 128 * 4 + 16 + 26, scaled(100_000_000_000)
    room = int(free_bytes(device) * 0.88)
    n = min(wanted, room) // row_bytes
    if room < wanted:
        say(f"SCALED DOWN: a table of {room / 1e9:.0f} GB, not 100: the card has no more free")
    optimizer = es.Adam(lr=0.01)
    with es.Table(128, optimizer=optimizer, device="cuda", **PARAMETERS) as table:
        fill(table, n)
        report = table.evict(es.StepEviction(10), step=5, dry_run=True)
        assert report[:2] == (n, 0)
        assert_like_the_cpu(table, n, optimizer)
        n_touched = len(sample_of(n))
        report = table.evict(es.StepEviction(10), step=11, dry_run=True)
        assert report[:2] == (n, n - n_touched)


def test_finds_of_many_threads_and_streams_beside_a_writer(device):
    n_stable, n_threads = scaled(1_000_000), 6
    stable = keys_between(0, n_stable)
    is_over, faults = threading.Event(), []
    with es.Table(16, optimizer=es.Adagrad(lr=0.1), device="cuda", **PARAMETERS) as table:
        expected = table.find_or_insert(stable, step=0).rows.copy()

        def read(number):
            rng = np.random.default_rng(number)
            with own_stream(device):
                while not is_over.is_set():
                    at = rng.integers(0, n_stable, min(n_stable, 10_000))
                    if not np.array_equal(table.find(stable[at]), expected[at]):
                        faults.append(number)
                        return

        readers = [threading.Thread(target=read, args=(i,)) for i in range(n_threads)]
        for reader in readers:
            reader.start()
        try:
            n_new = n_stable // 4
            for step in range(1, 9 if card_kit.is_real() else 3):
                keys = keys_between(n_stable + step * n_new, n_stable + (step + 1) * n_new)
                with table.find_or_insert(keys, step=step) as batch:
                    table.apply_gradients(batch, np.ones((len(keys), 16), np.float32), step=step)
                table.erase(keys[::2])
        finally:
            is_over.set()
            for reader in readers:
                reader.join()
        assert faults == []
        assert np.array_equal(table.find(stable), expected)


def own_stream(device):
    """Return a stream of this thread's own; an emulated device has none."""
    if not card_kit.is_real():
        return threading.Lock()
    with device.current():
        return device.cupy.cuda.Stream(non_blocking=True)


FROM_EMPTY_HOME = """
import sys
import numpy as np
import embstore as es
with es.Table(4, optimizer=es.Adam(), device=sys.argv[1]) as table:
    batch = table.find_or_insert(np.arange(1000), step=0)
    table.apply_gradients(batch, np.ones((1000, 4), np.float32), step=0)
    assert len(table) == 1000
"""


def test_kernels_are_compiled_into_an_empty_home_once(tmp_path):
    if not card_kit.is_real():
        pytest.skip("an emulated device compiles nothing for a card")
    hidden = ("EMBSTORE_CACHE", "XDG_CACHE_HOME")
    environment = {k: v for k, v in os.environ.items() if k not in hidden} | {"HOME": str(tmp_path)}

    def kept():
        command = [sys.executable, "-c", FROM_EMPTY_HOME, card_kit.asked_for()]
        subprocess.run(command, env=environment, cwd=ROOT, check=True, timeout=300)
        folder = tmp_path / ".cache" / "embstore" / "cubin"
        return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}

    first = kept()
    assert first
    assert kept() == first


def test_the_digest_is_that_of_the_cpu_at_full_size():
    n_keys = digest.N_KEYS if card_kit.is_real() else 500
    assert digest.digest_of("cuda", 1, n_keys) == digest.digest_of("cpu", 1, n_keys)


@pytest.mark.parametrize("seed", range(8))
def test_a_random_program_is_the_oracles(seed):
    run_program(seed, 12_000 if card_kit.is_real() else 600, engine="cuda")


@pytest.mark.parametrize("seed", [100, 101])
def test_a_random_program_of_large_batches_is_the_oracles(seed):
    free = {"max_rows": None, "eviction": None, "evict_every": None}
    n, batch_keys = (80_000, 8000) if card_kit.is_real() else (1200, 300)
    run_program(seed, n, batch_keys=batch_keys, spread=20_000, engine="cuda", **free)
