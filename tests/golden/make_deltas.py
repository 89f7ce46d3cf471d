"""Write the golden chain of format version 1: a full checkpoint and two deltas, two kept.

`python -m golden.make_deltas FOLDER`, run in tests/, writes it anew; a difference to
golden/checkpoint_v1_deltas is a change of the format, or of what the engine computes.
"""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np

import embstore as es
from embstore import checkpoint
from embstore.table.files import TableView

PATH = Path(__file__).with_name("checkpoint_v1_deltas")
KEYS = np.concatenate([np.arange(60), [-1, -(2**63), 2**63 - 1, 2**32]])
LAST_STEPS = (9, 10, 13)  # of each save, exclusive


def make_tables():
    """Return two small tables that log what changes."""
    user = es.Table(
        4,
        name="user",
        optimizer=es.Adam(lr=0.01),
        admission=es.CounterAdmission(2, candidate_ttl=64),
        eviction=es.StepEviction(7),
        evict_every=4,
        seed=7,
        track_changes=True,
    )
    item = es.Table(
        3,
        name="item",
        optimizer=es.RowWiseAdagrad(lr=0.1),
        admission=es.BloomAdmission(2, capacity=100),
        dtype="bfloat16",
        initializer=es.Uniform(-0.1, 0.1),
        track_changes=True,
    )
    return {"user": user, "item": item}


def train(tables, step):
    """Train one step: all keys at first, then a few."""
    keys = KEYS if step < 5 else [*np.roll(KEYS, 3 * step)[:8], 10_000 + step]
    for table in tables.values():
        batch = table.find_or_insert(keys, step=step)
        grads = np.linspace(-1, 1, batch.rows.size, dtype=np.float32).reshape(batch.rows.shape)
        table.apply_gradients(batch, grads, step=step)
    if step > 8:
        tables["item"].erase([step, step + 10, 1_000])
        tables["user"].pin([step])


class Changes:
    """A table as a delta saves it: what its change log names."""

    def __init__(self, table):
        log = table.changes()
        self._whole, self._written = TableView(table), log.upserted
        self.deleted, self.n_live = log.deleted, len(table)

    def __getattr__(self, name):
        return getattr(self._whole, name)

    def partition_counts(self, candidates):
        if candidates:
            return self._whole.partition_counts(True)
        return np.array([len(self.export_rows(p, p).keys) for p in range(256)], np.uint64)

    def export_rows(self, first, last):
        rows = self._whole.export_rows(first, last)
        return rows[np.isin(rows.keys, self._written)]


def save(path, tables, k, base, keep_last):
    """Save the tables, as changes if that can be, and begin new change logs."""

    def cut(is_delta):
        return {name: (Changes if is_delta else TableView)(t) for name, t in tables.items()}

    extra = {"k": k, "x": np.arange(k)}
    report = checkpoint.save_tables(path, cut, extra, base=base, keep_last=keep_last)
    for table in tables.values():
        table.reset_changes()
    return report


def main(path, first_save=0):
    """Write the chain to `path`; return the tables and the reports of its saves."""
    tables, reports = make_tables(), []
    for k, (first, last) in enumerate(pairwise((0, *LAST_STEPS))):
        for step in range(first, last):
            train(tables, step)
        if k >= first_save:
            base = reports[-1].digest if reports else None
            reports.append(save(path, tables, k, base, keep_last=2))
    return tables, reports


if __name__ == "__main__":
    main(sys.argv[1])
