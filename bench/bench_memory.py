"""Memory: bytes of index and meta records for each live row, and whether nbytes tells the truth.

A table is filled to a load of 0.7 and watched while it grows beyond it: the figures are the bytes
at that load, the most while the old index and the new one are both held, and those right after.
The growth of a process is taken in a fresh one, between an empty table and a full one.
"""

import os
from pathlib import Path

import numpy as np

import embstore as es
from bench import targets
from bench.harness import Scale, axes_of
from bench.keys import key_of
from bench.results import CaseResult, Figure
from bench.worker import Worker

BATCH = 4096
SCALES = {
    "tiny": Scale(n_rows=2000, batch=BATCH),
    "quick": Scale(n_rows=50_000, batch=BATCH),
    "default": Scale(n_rows=1_000_000, batch=BATCH),
    "full": Scale(n_rows=10_000_000, batch=BATCH),
}
LOAD_RESERVED = 0.5  # reserve(n) makes an index in which n rows have this load


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


def resident_bytes():
    """Return the memory of this process that is in use."""
    n_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return n_pages * os.sysconf("SC_PAGE_SIZE")


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


def measure(scale, seed, report, peers=None):
    """Measure at one scale; nothing here is timed, so the ranges are points."""
    n_rows = SCALES[scale].n_rows
    figures, notes = [], {}
    for dim in (16, 64):
        figures += growth_figures(n_rows, dim, seed)
        figures.append(process_figure(n_rows, dim, seed, notes))
    result = CaseResult("memory", axes_of(n_rows=n_rows), 1, [], notes)
    report(result, figures)
    return [result], figures
