"""Random programs in batches: a short form for every run, and ten million keys of torture."""

import pytest
from property.program import run_program

import embstore as es

N_TORTURE_SEEDS = 8
N_TORTURE_KEYS = 10_000_000
KEYS_PER_PROGRAM = 50_000


@pytest.fixture(params=[1, 2], ids="threads{}".format)
def threads(request):
    """The number of threads that a call may use."""
    before = es.num_threads()
    es.set_num_threads(request.param)
    yield request.param
    es.set_num_threads(before)


@pytest.mark.parametrize("seed", range(24))
def test_random_program(seed):
    run_program(seed, 12_000)


@pytest.mark.parametrize("seed", [100, 101])
def test_random_program_of_large_batches(seed, threads):
    free = {"max_rows": None, "eviction": None, "evict_every": None}
    run_program(seed, 80_000, batch_keys=8000, spread=20_000, **free)


@pytest.mark.torture
@pytest.mark.parametrize("seed", range(N_TORTURE_SEEDS))
def test_ten_million_key_operations(seed, record):
    tally = record("R7", "random programs of all verbs against the oracle", "key operations")
    n_programs = N_TORTURE_KEYS // N_TORTURE_SEEDS // KEYS_PER_PROGRAM
    for program in range(n_programs):
        run_program(1000 * (seed + 1) + program, KEYS_PER_PROGRAM)
        tally.passed(KEYS_PER_PROGRAM)
