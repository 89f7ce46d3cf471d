"""Random programs of all verbs on the CUDA engine, fast and interleaved, against the oracle."""

import pytest
from hypothesis import settings
from property.program import run_program
from property.test_state_machine import TableMachine

N_TORTURE_SEEDS = 200


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


class CudaTableMachine(TableMachine):
    engine = "cuda"


TestCudaTableMachine = CudaTableMachine.TestCase
TestCudaTableMachine.settings = settings(max_examples=15, stateful_step_count=20)
TestCudaTableMachine = pytest.mark.usefixtures("device")(TestCudaTableMachine)
