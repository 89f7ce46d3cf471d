"""Short words for what every contract test needs."""

import numpy as np
from property.pair import exported

import embstore as es

FOUND, INSERTED, PENDING, REFUSED = (int(status) for status in es.KeyStatus)
INT64 = np.iinfo(np.int64)


def ids(*keys):
    """Return keys as an int64 array."""
    return np.array(keys, np.int64)


def rows_of(*values, dim=2):
    """Return an (n, dim) float32 array whose rows are filled with these values."""
    return np.repeat(np.array(values, np.float32)[:, None], dim, axis=1)


def write_number(table, keys, k):
    """Make values, slots, freq and step of rows all k; a row of two numbers is torn."""
    numbers = np.full((len(keys), table.dim), k, np.float32)
    freq, step = np.full(len(keys), k, np.uint32), np.full(len(keys), k)
    table.import_(es.Rows(keys, numbers, numbers, freq, step))


def live(table):
    """Return the keys that have a row, ascending."""
    rows = exported(table)
    return [] if rows is None else sorted(rows.keys.tolist())


def meta(table, *keys):
    """Return [(freq, step)] of keys."""
    result = table.find(ids(*keys), with_meta=True)
    return [*zip(result.freq.tolist(), result.step.tolist(), strict=True)]


def pending(table):
    """Return {key: count} of the candidates."""
    candidates = table.candidates()
    return dict(zip(candidates.keys.tolist(), candidates.counts.tolist(), strict=True))


def snapshot(table):
    """Return everything that a failed call must leave as it was, as comparable values."""
    rows = exported(table)
    columns = [] if rows is None else [getattr(rows, name).tobytes() for name in rows.__slots__]
    stats = {name: value for name, value in table.stats().items() if "nbytes" not in name}
    for name in ("n_cells", "n_tombstones", "load_factor"):
        del stats[name]
    return columns, pending(table), stats


def f32(x):
    """Round to float32."""
    return np.float32(x)
