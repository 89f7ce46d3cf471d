"""Evict from tables of many blocks by many policies, and hold what goes to the oracle.

Run as a program, it does so with the threads and the instruction set of its environment.
"""

import argparse

import numpy as np
from reference.eviction import is_evictable

import embstore as es

N = 9000  # rows: two blocks of the scan and a bit
NOW = 2**40
STEP, L2, FREQ = es.StepEviction, es.L2Eviction, es.FrequencyEviction
POLICIES = (
    STEP(0),
    STEP(50),
    STEP(2**63 - 1),
    L2(1.0, min_age=0),
    L2(2.0, min_age=60),
    L2(1.0, min_age=2**63 - 1),
    FREQ(3, min_age=0),
    FREQ(2**32 - 1, min_age=30),
    STEP(20) & FREQ(3, min_age=0),
    STEP(80) | L2(1.0, min_age=0),
    STEP(80) | L2(2.0, min_age=40) & FREQ(4, min_age=0),
    (L2(1.0, min_age=0) | FREQ(2, min_age=5)) & (L2(3.0, min_age=10) | STEP(70)),
)


def filled(engine, dim, dtype):
    """Return a table with rows of all kinds of values, and holes of single rows and of blocks."""
    rng = np.random.default_rng(dim)
    values = rng.standard_normal((N, dim), np.float32) * rng.choice([0, 1e-30, 0.1, 1], (N, 1))
    values[rng.integers(0, N, 40), 0] = np.resize([np.nan, np.inf, -np.inf, -0.0], 40)
    steps = NOW - rng.integers(0, 100, N)
    freq = rng.choice(np.array([0, 1, 2, 3, 4, 2**32 - 1], np.uint32), N)
    keys = rng.permutation(np.arange(-N // 2, N - N // 2))
    table = es.Table(dim, dtype=dtype, on_nonfinite="allow", device=engine)
    table.find_or_insert(keys[:1], step=NOW)  # the base of steps advances
    stored = values.astype(np.float32 if dtype == "bfloat16" else dtype)
    table.import_(es.Rows(keys, stored, np.empty((N, 0), np.float32), freq, steps))
    table.erase(keys[1000:5500])
    table.erase(rng.choice(keys, N // 5))
    return table


def check(table):
    """Raise where a policy selects other rows than the oracle says."""
    parts = [*table.export()]
    keys, values, freq, steps = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("keys", "values", "freq", "step")
    )
    for policy in POLICIES:
        for now in (0, NOW, NOW + 60, 2**63 - 1):
            wanted = is_evictable(policy, np.maximum(0, now - steps), freq, values.astype("f4"))
            report = table.evict(policy, step=now, dry_run=True, return_rows=True)
            assert report[:4] == (len(keys), wanted.sum(), 0, True), (policy, now)
            assert np.array_equal(report.rows.keys, np.sort(keys[wanted])), (policy, now)


def check_all(engine="cpu"):
    """Check tables of several dims and dtypes."""
    for dim, dtype in ((1, "float32"), (16, "float32"), (39, "float16"), (20, "bfloat16")):
        table = filled(engine, dim, dtype)
        check(table)
        table.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", nargs="?", default="cpu")
    check_all(parser.parse_args().engine)
    config = es.show_config(quiet=True)
    print(config["cpu_path"], config["threads"])
