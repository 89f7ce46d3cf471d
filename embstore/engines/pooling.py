"""Bags of rows: their sums, means and gradients, by the one rule in core (docs/semantics.md, 8)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore import _core
from embstore.engines import native


def pool(
    rows: NDArray[Any],
    offsets: NDArray[np.int64],
    mode: str,
    weights: NDArray[np.float32] | None,
    out: NDArray[np.float32],
) -> None:
    """Reduce rows (n, dim), float32 or float16, into `out` (n_bags, dim)."""
    dtype = native.DTYPES[rows.dtype.name]
    _core.pool(rows, dtype, offsets, native.POOL_MODES[mode], weights, out)


def pool_backward(
    bag_grads: NDArray[np.float32],
    offsets: NDArray[np.int64],
    mode: str,
    weights: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    """Return the gradient of each id (n, dim) from those of the bags (n_bags, dim)."""
    return _core.pool_backward(bag_grads, offsets, native.POOL_MODES[mode], weights)
