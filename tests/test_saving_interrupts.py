"""Saves that Ctrl-C breaks off, twice in a row too: no crash, no deadlock, the next save works."""

import subprocess
import sys
import textwrap

import pytest

# Prints how many saves were broken off, and how many rows the last one wrote.
PROGRAM = """
    import signal, sys, time
    import numpy as np
    import embstore as es

    path, seconds = sys.argv[1], float(sys.argv[2])
    table = es.Table(dim=256, optimizer=es.Adam(lr=0.1))
    table.find_or_insert(np.arange(20_000), step=0)
    table.save(path)
    rng, n_left, n_broken = np.random.default_rng(1), 0, 0

    def interrupt(*_):
        global n_left
        n_left -= 1
        if n_left <= 0:
            signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        n_left = 2
        signal.setitimer(signal.ITIMER_REAL, float(rng.uniform(0.002, 0.03)), 0.001)
        try:
            table.save(path)
        except KeyboardInterrupt:
            n_broken += 1
        try:
            while n_left > 0:
                time.sleep(0.001)
        except KeyboardInterrupt:
            pass
    print(n_broken, table.save(path).n_rows)
"""


@pytest.mark.parametrize("seconds", [4, pytest.param(60, marks=pytest.mark.torture)])
def test_saves_that_are_broken_off_twice(seconds, tmp_path, record):
    tally = record("R1", "Ctrl-C twice at random times of a save", "saves broken off")
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path), str(seconds)]
    found = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=120 + seconds
    )
    assert found.returncode == 0, found.stderr
    n_broken, n_rows = map(int, found.stdout.split())
    assert n_rows == 20_000
    assert n_broken > 5
    tally.passed(n_broken)
