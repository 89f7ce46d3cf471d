"""Write the golden checkpoint of format version 1, whose bytes never change.

`python -m golden.make_checkpoint FOLDER`, run in tests/, writes it anew; a difference to
golden/checkpoint_v1 is a change of the format, or of what the engine computes.
"""

import sys
from pathlib import Path

import numpy as np

import embstore as es

PATH = Path(__file__).with_name("checkpoint_v1")
EXTRA = {
    "note": {"epoch": 1, "auc": 0.71875, "done": False, "words": ["a", "\u017c", None]},
    "weights": np.arange(6, dtype=np.float32).reshape(2, 3) / 8,
    "mask": np.array([True, False, True]),
    "scalar": np.array(-(2**63)),
}
KEYS = np.array([0, 1, -1, 42, 2**32, -(2**63), 2**63 - 1, 7, 8, 9, 10, 11])


def make_store(hash_seed=None):
    """Return a store of three small tables after a few steps of training."""
    user = es.Table(
        4,
        name="user",
        optimizer=es.Adam(lr=0.01, weight_decay=0.001),
        admission=es.CounterAdmission(5, candidate_ttl=32),
        eviction=es.StepEviction(2) | es.L2Eviction(0.001, min_age=5),
        evict_every=4,
        seed=7,
        hash_seed=hash_seed,
    )
    item = es.Table(
        3,
        name="item",
        optimizer=es.RowWiseAdagrad(lr=0.1),
        admission=es.BloomAdmission(3, capacity=100, halve_every=6),
        dtype="bfloat16",
        rounding="stochastic",
        initializer=es.Uniform(-0.1, 0.1),
        hash_seed=hash_seed,
    )
    tag = es.Table(2, name="tag", dtype="float16", max_rows=100, hash_seed=hash_seed)
    features = {"user": "user", "liked": "item", "seen": "item", "tag": "tag"}
    return es.Store({"user": user, "item": item, "tag": tag}, features)


def train(store, first, last):
    """Train some steps; what is done in a step depends on the step alone."""
    for step in range(first, last):
        keys = np.roll(KEYS, step)
        user = store["user"].find_or_insert(keys[: 6 + step % 5], step=step)
        item = store["item"].find_or_insert(np.repeat(keys[:4], 2), step=step)
        for table, batch in (("user", user), ("item", item)):
            grads = np.linspace(-1, 1, batch.rows.size, dtype=np.float32).reshape(batch.rows.shape)
            store[table].apply_gradients(batch, grads, step=step)
        store["tag"].assign(keys[:2], np.full((2, 2), step / 4, np.float32), step=step)
    store["user"].pin(KEYS[:2])


def main(path):
    """Write the checkpoint to `path`."""
    store = make_store()
    train(store, 0, 9)
    store.save(path, extra=EXTRA)


if __name__ == "__main__":
    main(sys.argv[1])
