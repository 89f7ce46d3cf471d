"""Random programs of all verbs on the CUDA engine, fast and interleaved, against the oracle."""

import numpy as np
import pytest
from hypothesis import settings
from property.pair import Pair
from property.program import run_program
from property.test_state_machine import TableMachine
from reference.hashing import partition_of

import embstore as es

N_TORTURE_SEEDS = 200
PLAIN = {"dim": 2, "optimizer": None, "on_nonfinite": "raise", "hash_seed": 0}


@pytest.mark.parametrize("seed", range(24))
def test_program(device, seed):
    run_program(seed, 10_000, engine="cuda")


@pytest.mark.parametrize("seed", range(200, 208))
def test_program_in_small_memory(device, small_memory, seed):
    run_program(seed, 3000, engine="cuda")


def run_interleaved(device, seed):
    """Run a short program of few ids, each of its launches an interleaving of its own."""
    device.seed = seed
    run_program(seed, 600, batch_keys=120, spread=150, engine="cuda")


@pytest.mark.parametrize("seed", range(1, 13))
def test_interleaved_program(device, small_memory, seed):
    run_interleaved(device, seed)


@pytest.mark.torture
def test_interleaved_programs(device, small_memory, record):
    tally = record("R7", "random programs on the emulated CUDA engine, interleaved", "programs")
    for seed in range(1000, 1000 + N_TORTURE_SEEDS):
        run_interleaved(device, seed)
        tally.passed()


def test_a_filter_that_is_too_small_saturates(device):
    """All keys go to one block of the filter, whose cells then hold the most they can."""
    keys = np.arange(60_000)
    keys = keys[partition_of(keys) == 7]
    for min_count in (2, 4, 15):
        config = {**PLAIN, "admission": es.BloomAdmission(min_count, capacity=1)}
        pair = Pair("cuda", **config)
        for seed in range(8):
            device.seed = seed
            pair.find_or_insert(keys, seed, counts=np.full(len(keys), seed % 3, np.uint32))
            pair.check_bloom()
        pair.check()
        pair.close()


def test_a_key_that_is_seen_again_is_logged(device):
    keys = np.arange(100)
    pair = Pair("cuda", **PLAIN, track_changes=True)
    for seed in range(4):
        device.seed = seed
        pair.both("reset_changes")
        pair.find_or_insert(keys[seed:], seed)
        pair.check()
        pair.both("reset_changes")
        pair.find(keys)
        pair.check()
    pair.close()


class CudaTableMachine(TableMachine):
    engine = "cuda"


TestCudaTableMachine = CudaTableMachine.TestCase
TestCudaTableMachine.settings = settings(max_examples=15, stateful_step_count=20)
TestCudaTableMachine = pytest.mark.usefixtures("device")(TestCudaTableMachine)
