"""What the tests of serving share: tables, keys to look for, and what to compare."""

import threading
from pathlib import Path

import numpy as np
import pytest

import embstore as es
from embstore import checkpoint, serving

EXTREMES = [0, -1, 1, -(2**63), 2**63 - 1]


def filled(n=300, seed=0, **parameters):
    """Return a table that was trained a little; keys are random, and the extreme ones."""
    optimizer = parameters.pop("optimizer", es.Adagrad(lr=0.5))
    table = es.Table(dim=parameters.pop("dim", 3), optimizer=optimizer, **parameters)
    rng = np.random.default_rng(seed)
    keys = np.concatenate([rng.integers(-(2**63), 2**63 - 1, n), EXTREMES])
    for step in range(3):
        batch = table.find_or_insert(rng.permutation(keys)[: 3 * n // 4], step=step)
        if optimizer is not None:
            grads = rng.normal(size=batch.rows.shape).astype(np.float32)
            table.apply_gradients(batch, grads, step=step)
    table.find_or_insert(EXTREMES, step=3, admit="always")
    return table


def asked_of(table, seed=1):
    """Return keys to look for: those of the table and others, in disorder, some twice."""
    rng = np.random.default_rng(seed)
    keys = np.concatenate([*(rows.keys for rows in table.export()), EXTREMES])
    keys = np.concatenate([keys, keys + 1, rng.integers(-(2**63), 2**63 - 1, 100), keys[:50]])
    return rng.permutation(keys)


def same(one, other):
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    assert one.tobytes() == other.tobytes()


def check_equal(served, table, keys):
    """Fail unless both find the same, to the bit."""
    for missing in ("default", "initial"):
        mine = served.find(keys, missing=missing, with_meta=True)
        for one, other in zip(mine, table.find(keys, missing=missing, with_meta=True), strict=True):
            same(one, other)
        same(served.find(keys, missing=missing), mine.rows)
    rows, found = served.find(keys, return_found=True)
    same(rows, table.find(keys))
    same(found, table.contains(keys))
    same(served.contains(keys), found)
    same(served.find(keys, raw=True), table.find(keys, raw=True))
    same(served.find(keys[found], missing="raise"), table.find(keys[found]))
    out = np.full((len(keys), table.dim), 7, rows.dtype)
    assert served.find(keys, out) is out
    same(out, rows)


def searched(path, **options):
    return serving.open(path, index="none", **options)


def error_of(call):
    with pytest.raises(es.EmbstoreError) as caught:
        call()
    return type(caught.value), str(caught.value)


def blocks_of(path):
    """Return file, offset, bytes and keys of each block of rows."""
    found = []
    with checkpoint.load_tables(path) as loaded:
        (table,) = loaded.tables.values()
        for file, offset, arrays in table._list("rows"):
            found.append((file.name, offset, arrays[0].copy()))
    return found


def flip(path, name, offset):
    """Change one byte of a file."""
    with open(Path(path) / name, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))


def together(n, call):
    """Call something in n threads at once; return what they gave."""
    barrier, given = threading.Barrier(n), [None] * n

    def run(i):
        barrier.wait()
        try:
            given[i] = call(i)
        except Exception as error:  # told by the asserts
            given[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return given


def index_threads():
    return [thread for thread in threading.enumerate() if thread.name == "embstore-index"]


def n_maps(path):
    return Path("/proc/self/maps").read_text().count(str(path))
