"""Memory: bytes of index and meta records for each live row, and whether nbytes tells the truth.

A table is filled to a load of 0.7 and watched while it grows beyond it: the figures are the bytes
at that load, the most while the old index and the new one are both held, and those right after.
The growth of a process is taken in a fresh one, between an empty table and a full one. Beside them
stand other stores, each marked as measured here (the growth of a process less the values) or quoted
from its documents and code; a quoted one is what a row or an id costs at least.
"""

import numpy as np

import embstore as es
from bench import targets
from bench.harness import Scale, axes_of
from bench.keys import key_of
from bench.peers import TFRA
from bench.results import CaseResult, Figure
from bench.worker import Worker, peer_worker, resident_bytes
from bench.workspace import LOAD_RESERVED

BATCH = 4096
SCALES = {
    "tiny": Scale(n_rows=2000, batch=BATCH),
    "quick": Scale(n_rows=50_000, batch=BATCH),
    "small": Scale(n_rows=1_000_000, batch=BATCH),
    "default": Scale(n_rows=10_000_000, batch=BATCH),
}
PEER_ROWS = 1_000_000  # of what is measured by the growth of a process of another store
WAITING_IDS = 4_000_000
ROW, WAITING = "bytes a live row beside its values", "bytes an id that waits"
# What others spend, by their documents and code (snapshots of 2023 to 2026); "+" where a part of
# unknown size comes on top.
QUOTED = (
    (ROW, "DeepRec, freq and version (quoted, + its map node)", 16.0),
    (WAITING, "DeepRec CounterFilter (quoted, + its map node)", 8.0),
    (WAITING, "DeepRec CBFFilter, 1-byte counters, fpr 0.01 (quoted)", 9.585),
    (WAITING, "DeepRec CBFFilter, int64 as in its example (quoted)", 76.68),
)


def overhead_bytes(table):
    """Return the bytes of index and meta records for each live row."""
    stats = table.stats()
    return (stats["nbytes_index"] + stats["nbytes_meta"]) / stats["n_live"]


def insert(table, first, end, seed):
    """Insert the keys of the row ids [first, end), in batches."""
    for start in range(first, end, BATCH):
        keys = key_of(np.arange(start, min(start + BATCH, end)), seed)
        table.find_or_insert(keys, step=0).close()


def watch_growth(n_rows, dim, seed):
    """Return (bytes at load 0.7, most while growing, bytes right after), all for a live row."""
    table = es.Table(dim, hash_seed=seed)
    table.reserve(int(np.ceil(n_rows * LOAD_RESERVED / 0.7)))
    insert(table, 0, n_rows, seed)
    at_load, load = overhead_bytes(table), table.stats()["load_factor"]
    n_bytes = table.stats()["nbytes_index"]
    end, most = n_rows, at_load
    while end < 2 * n_rows:
        insert(table, end, end + BATCH, seed)
        end += BATCH
        most = max(most, overhead_bytes(table))
        before, n_bytes = n_bytes, table.stats()["nbytes_index"]
        if n_bytes < before:
            break
    return {"load": load, "at_load": at_load, "most": most, "grown": overhead_bytes(table)}


def growth_figures(n_rows, dim, seed):
    found = watch_growth(n_rows, dim, seed)
    axes = axes_of(n_rows=n_rows, dim=dim, batch=BATCH)
    full_axes = axes | axes_of(load=round(found["load"], 3))
    rows = (
        ("at its load", full_axes, found["at_load"], targets.INDEX_FULL_BYTES),
        ("right after growth", axes, found["grown"], targets.INDEX_GROWN_BYTES),
        ("most while growing", axes, found["most"], None),
    )
    return [point(f"index + meta a live row, {name}", *row, "bytes") for name, *row in rows]


def point(name, axes, value, target, unit):
    """Return a figure that was counted, not sampled."""
    return Figure(name, axes, value, value, value, unit, target)


def grow_process(n_rows, dim, seed):
    """Return by how much this process grows for a table, and what the table says it holds."""
    keys = np.zeros(BATCH, np.int64)
    out = np.ones((BATCH, dim), np.float32)
    for size in (BATCH, n_rows):  # the first table is what any first call brings
        before = resident_bytes()
        table = es.Table(dim, optimizer=es.Adagrad(lr=0.05), hash_seed=seed)
        table.reserve(size)
        for start in range(0, size, BATCH):
            n = min(BATCH, size - start)
            keys[:n] = key_of(np.arange(start, start + n), seed)
            table.find_or_insert(keys[:n], step=0, out=out[:n]).close()
        grown_bytes = resident_bytes() - before
    return {"grown_bytes": grown_bytes, "nbytes": table.nbytes}


def process_figure(n_rows, dim, seed, notes):
    """Return how far nbytes is off, measured in a process of its own; `notes` gets the bytes."""
    with Worker() as worker:
        found = worker.ask("bench.bench_memory", "grow_process", n_rows, dim, seed)
    notes[f"dim {dim}"] = found
    error = abs(found["nbytes"] / found["grown_bytes"] - 1.0) * 100
    name = "nbytes, off the growth of the process"
    return point(name, axes_of(n_rows=n_rows, dim=dim), error, targets.NBYTES_ERROR, "%")


def grow_by_dict(n_rows, dim):
    """Return by how much this process grows for a dict from ints to the rows of one array."""
    before = resident_bytes()
    rows = np.ones((n_rows, dim), np.float32)
    held = dict(zip(key_of(np.arange(n_rows)).tolist(), rows, strict=True))
    return (resident_bytes() - before) * len(held) / n_rows


def measured_others(n_rows, dim):
    """Yield (store, bytes a live row beside its values) for those that can be measured here."""
    with Worker() as worker:
        grown = worker.ask("bench.bench_memory", "grow_by_dict", n_rows, dim)
        yield "dict of rows (measured)", grown / n_rows - dim * 4
    if not TFRA.why_not():
        with peer_worker(TFRA) as worker:
            for n in (n_rows, n_rows * 11 // 10):
                grown = worker.ask(TFRA.module, "grow_process", n, dim)
                share = n / (1 << (n - 1).bit_length())  # it has a power of two of cells
                yield f"{TFRA.title}, {share:.0%} full (measured)", grown / n - dim * 4


def waiting_bytes(admission, n_ids, seed):
    """Return the bytes an id costs that is seen once and waits for its row."""
    table = es.Table(16, admission=admission, hash_seed=seed)
    insert(table, 0, n_ids, seed)
    stats = table.stats()
    return (stats["nbytes_index"] + stats["nbytes_bloom"]) / n_ids


def waiting_figures(n_ids, seed):
    """Return what an id that waits costs under each admission, and what others spend."""
    axes = axes_of(n_rows=n_ids)
    found = {"embstore, counted in the index": es.CounterAdmission(2)}
    for min_count in (2, 4, 16):
        name = f"embstore, bloom filter, min_count {min_count}"
        found[name] = es.BloomAdmission(min_count, capacity=n_ids, fpr=0.01)
    for name, admission in found.items():
        value = waiting_bytes(admission, n_ids, seed)
        yield point(f"{WAITING}: {name}", axes, value, None, "bytes")
    for what, name, value in QUOTED:
        if what == WAITING:
            yield point(f"{what}: {name}", axes, value, None, "bytes")


def other_figures(n_rows, dim):
    """Return what a row costs in other stores beside its values."""
    axes = axes_of(n_rows=n_rows, dim=dim)
    yield point(f"{ROW}: torch nn.Embedding, which has no keys", axes, 0.0, None, "bytes")
    quoted = [(name, value) for what, name, value in QUOTED if what == ROW]
    for name, value in [*measured_others(n_rows, dim), *quoted]:
        yield point(f"{ROW}: {name}", axes, value, None, "bytes")


def measure(scale, seed, report, twins=None):
    """Measure at one scale; nothing here is timed, so the ranges are points."""
    n_rows = SCALES[scale].n_rows
    figures, notes = [], {}
    for dim in (16, 64):
        figures += growth_figures(n_rows, dim, seed)
        figures.append(process_figure(n_rows, dim, seed, notes))
    figures += other_figures(min(n_rows, PEER_ROWS), 16)
    figures += waiting_figures(min(n_rows, WAITING_IDS), seed)
    result = CaseResult("memory", axes_of(n_rows=n_rows), 1, [], notes)
    report(result, figures)
    return [result], figures
