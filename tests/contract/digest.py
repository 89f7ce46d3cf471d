"""Run a fixed program of large batches and print the hash of all that it leaves.

Run as a program, it shows what the threads and the instruction set of its environment compute.
"""

import argparse
import hashlib

import numpy as np
from property.pair import exported

import embstore as es

DIM = 17
N_KEYS = 50_000
OPTIMIZERS = {
    "momentum": es.SGD(0.1, momentum=0.9, clip_norm=1.0),
    "adagrad": es.Adagrad(0.1, weight_decay=0.01),
    "rowwise": es.RowWiseAdagrad(0.1),
    "adamw": es.AdamW(0.01, clip_value=0.5),
    "ftrl": es.FTRL(0.1, l1=0.01, l2=0.1),
}


def tables(engine, hash_seed, n_keys):
    """Yield tables of all optimizers, with each dtype, initializer and admission among them."""
    dtypes = [{}, {"dtype": "float16", "rounding": "stochastic"}, {"dtype": "bfloat16"}]
    initializers = [es.Normal(std=0.1), es.Uniform(-0.1, 0.1), es.TruncatedNormal(std=0.1)]
    admissions = [None, es.CounterAdmission(2, candidate_ttl=3), es.BloomAdmission(2, n_keys)]
    for i, optimizer in enumerate(OPTIMIZERS.values()):
        yield es.Table(
            DIM,
            optimizer=optimizer,
            initializer=initializers[i % 3],
            admission=admissions[(i + 1) % 3],
            eviction=es.StepEviction(2) & es.L2Eviction(2.0, min_age=1),
            evict_every=2,
            max_rows=n_keys * 6 // 5,
            on_full="evict",
            hash_seed=hash_seed,
            device=engine,
            **dtypes[i % 3],
        )


def add(digest, *arrays):
    """Add arrays to a hash, all NaNs as one."""
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())


def run(table, digest, n_keys):
    """Train a table for some steps, and add all that it gives and holds to the hash."""
    rng = np.random.default_rng(7)
    for step in range(3):
        keys = rng.zipf(1.1, n_keys) % (4 * n_keys) - 1000
        batch = table.find_or_insert(keys, step=step)
        grads = rng.standard_normal((n_keys, DIM), np.float32)
        report = table.apply_gradients(batch, grads, step=step)
        bags = np.append(np.arange(0, n_keys, 50), n_keys)
        pooled = table.pooled(keys, bags, mode="mean", step=step)
        table.assign(keys[: n_keys // 10], grads[: n_keys // 10], mode="add")
        add(digest, batch.rows, batch.status, batch.inverse, pooled.rows, np.array(report))
    rows = exported(table)
    add(digest, rows.keys, rows.values, rows.slots, rows.freq, rows.step)
    add(digest, table.find(rows.keys), table.candidates().counts)


def digest_of(engine="cpu", hash_seed=1, n_keys=N_KEYS):
    """Return the hash of the whole program, with batches of so many keys."""
    digest = hashlib.sha256()
    for table in tables(engine, hash_seed, n_keys):
        run(table, digest, n_keys)
        table.close()
    return digest.hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", nargs="?", default="cpu")
    config = es.show_config(quiet=True)
    print(config["cpu_path"], config["threads"], digest_of(parser.parse_args().engine))
