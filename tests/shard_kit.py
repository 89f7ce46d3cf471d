"""What the tests of shards share: tables of random shapes, two shards of one, names of shards."""

from dataclasses import replace

import checkpoint_kit as kit
import numpy as np
from reference import hashing

import embstore as es
from embstore import checkpoint


def shard_paths(folder, n):
    """The directories that reshard makes."""
    return [folder / f"shard-{i:05d}-of-{n:05d}" for i in range(n)] if n > 1 else [folder]


def tables_of(seed):
    """Tables of random shapes, with rows, candidates or a filter, pins, or nothing."""
    rng = np.random.default_rng(seed)
    dtype = ["float32", "float16", "bfloat16"][seed % 3]
    slots = [(("accumulator", 1),), (), (("exp_avg", 3), ("exp_avg_sq", 3))][seed % 3]
    bloom = {"kind": "BloomAdmission", "min_count": (2, 3, 9)[seed % 3], "capacity": 10}
    counter = {"kind": "CounterAdmission", "min_count": 9, "candidate_ttl": 144}
    filtered = kit.memory_table(int(rng.integers(1, 900)), 0, 3, dtype, slots, 2, seed)
    counted = kit.memory_table(int(rng.integers(1, 900)), 70, 5, seed=seed)
    empty = kit.memory_table(0, 0, slots=(), seed=seed)
    for table, admission in ((filtered, bloom), (counted, counter)):
        table.config["admission"] = admission
        table.state["n_inserted"] = 77
    empty.state["n_inserted"] = 5
    return {"filtered": filtered, "counted": counted, "empty": empty}


def saved_shards(tmp_path, **changes):
    """Two shards of one table; the second with changes."""
    table = tables_of(1)["counted"]
    owners = hashing.shard_of(table.rows.keys, 2)
    waiting = hashing.shard_of(table.pending.keys, 2)
    paths = [tmp_path / "a", tmp_path / "b"]
    for i, path in enumerate(paths):
        rows = table.rows[owners == i]
        pending = table.pending
        pending = es.Candidates(
            *(c[waiting == i] for c in (pending.keys, pending.counts, pending.epochs))
        )
        own = replace(table, rows=rows, pending=pending, config=dict(table.config))
        own = replace(own, **changes) if i else own
        checkpoint.save_tables(path, {"t": own})
    return table, paths
