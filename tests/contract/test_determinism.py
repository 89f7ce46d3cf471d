"""Results depend neither on threads, nor on the instruction set, nor on the seed of the index."""

import os
import subprocess
import sys
from functools import cache

import pytest
from contract import digest

import embstore as es


@pytest.fixture(scope="module")
def expected():
    """The hash that this process computes, each once."""
    return cache(digest.digest_of)


def run_in_child(program, engine, **environment):
    """Return the words that a program prints in a process of its own."""
    child = subprocess.run(
        [sys.executable, program, engine],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if "that this processor has" in child.stderr:
        pytest.skip(f"this processor lacks what {environment} asks for: it was not compared")
    assert child.returncode == 0, child.stderr
    return child.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("threads", "path"),
    [("1", "baseline"), ("2", "baseline"), ("1", "avx2"), ("5", "avx2"), ("2", "avx512")],
)
def test_neither_threads_nor_the_instruction_set_matter(engine, cpu_alone, expected, threads, path):
    program = digest.__file__
    result = run_in_child(program, engine, EMBSTORE_NUM_THREADS=threads, EMBSTORE_CPU=path)
    assert result == [path, threads, expected(engine)]


@pytest.mark.slow
@pytest.mark.parametrize("hash_seed", [0, 2**128 - 1, None])
def test_the_seed_of_the_index_does_not_matter(engine, size, expected, hash_seed):
    """Nor does the engine: all compute what the CPU does."""
    n_keys = size(digest.N_KEYS)
    assert digest.digest_of(engine, hash_seed, n_keys) == expected("cpu", 1, n_keys)


@pytest.mark.slow
def test_threads_set_in_the_process_do_not_matter(engine, cpu_alone, expected):
    before = es.num_threads()
    try:
        es.set_num_threads(3 if before != 3 else 2)
        assert digest.digest_of(engine) == expected(engine)
    finally:
        es.set_num_threads(before)
