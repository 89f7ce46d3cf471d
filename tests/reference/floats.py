"""Sums in the fixed orders of docs/semantics.md, section 3, and rounding to 16-bit rows."""

import numpy as np

BLOCK = 32


def reduce_blocks(rows, counts):
    """Sum consecutive groups of `rows`, of `counts` >= 1 rows each, block by block of 32."""
    counts = np.asarray(counts, np.int64)
    while len(counts) and counts.max() > 1:
        n_blocks = -(-counts // BLOCK)
        nth = np.arange(n_blocks.sum()) - np.repeat(np.cumsum(n_blocks) - n_blocks, n_blocks)
        starts = np.repeat(np.cumsum(counts) - counts, n_blocks) + BLOCK * nth
        sizes = np.minimum(np.repeat(counts, n_blocks) - BLOCK * nth, BLOCK)
        sums = rows[starts]
        for i in range(1, sizes.max()):
            longer = np.flatnonzero(sizes > i)
            sums[longer] = sums[longer] + rows[starts[longer] + i]
        rows, counts = sums, n_blocks
    return rows


def sum_duplicates(rows, inverse, n_unique):
    """Sum the rows of each unique key, its occurrences in batch order, (n_unique, dim)."""
    order = np.argsort(inverse, kind="stable")
    return reduce_blocks(rows[order], np.bincount(inverse, minlength=n_unique))


def row_sum(x):
    """Sum along each row: 16 partial sums, then a balanced tree, (n,)."""
    p = np.zeros((len(x), 16), np.float32)
    for j in range(0, x.shape[1], 16):
        part = x[:, j : j + 16]
        p[:, : part.shape[1]] = p[:, : part.shape[1]] + part
    for half in (8, 4, 2, 1):
        p[:, :half] = p[:, :half] + p[:, half : 2 * half]
    return p[:, 0]


def row_norm(x):
    """Return the Euclidean norm of each row."""
    return np.sqrt(row_sum(x * x))


def narrow(x, dtype):
    """Round float32 numbers to nearest even in `dtype`; the result is float32 again."""
    x = np.asarray(x, np.float32)
    if dtype == "float32":
        return x
    if dtype == "float16":
        return x.astype(np.float16).astype(np.float32)
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    rounded = np.where(np.isnan(x), (bits >> np.uint32(16)) | np.uint32(0x40), rounded)
    return (rounded.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bits16(x, dtype):
    """Return the 16 bits of numbers that `dtype` holds exactly, as uint16."""
    if dtype == "float16":
        return x.astype(np.float16).view(np.uint16)
    return (x.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def from_bits16(bits, dtype):
    """Return the float32 numbers of 16 bits each."""
    if dtype == "float16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrow_stochastic(x, r, dtype):
    """Round to one of the two neighbours in `dtype`, away from zero iff r is below the fraction."""
    nearest = narrow(x, dtype)
    bits = to_bits16(nearest, dtype)
    bits = np.where(np.abs(nearest) > np.abs(x), bits - np.uint16(1), bits).astype(np.uint16)
    down = from_bits16(bits, dtype)
    up = from_bits16(bits + np.uint16(1), dtype)
    fraction = (np.abs(x) - np.abs(down)) / (np.abs(up) - np.abs(down))
    rounded = np.where(r < fraction, up, down)
    return np.where(np.isfinite(x) & np.isfinite(up), rounded, nearest)
