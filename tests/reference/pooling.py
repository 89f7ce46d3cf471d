"""Bags of rows, docs/semantics.md, section 8: pooled values, and the gradients of their ids."""

import numpy as np

from .floats import reduce_blocks


def pool(rows, offsets, mode, weights):
    """Return (bags (n_bags, dim), divisor (n_bags,)); bag i is rows offsets[i]..offsets[i + 1]."""
    if weights is not None:
        rows = rows * weights[:, None]
    sizes = np.diff(offsets)
    count = sizes.astype(np.float32)
    divisor = {"sum": np.ones_like(count), "mean": count, "sqrtn": np.sqrt(count)}[mode]
    out = np.zeros((len(sizes), rows.shape[1]), np.float32)
    full = sizes > 0
    out[full] = reduce_blocks(rows, sizes[full]) / divisor[full, None]
    return out, divisor


def id_gradients(pooled, bag_grads):
    """Return the gradient of each id from those of the bags of a PooledBatch."""
    sizes = np.diff(pooled.offsets)
    g = np.repeat(bag_grads / pooled.divisor[:, None], sizes, axis=0)
    return g if pooled.weights is None else g * pooled.weights[:, None]
