"""Values from one dtype to another, rounded to nearest even."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore.checkpoint import RowBlock
from embstore.engines import arrays
from embstore.errors import CheckpointMismatchError


def convert_values(
    rows: RowBlock, old: str, new: str, place: str, allow_overflow: bool
) -> NDArray[Any]:
    """Return the values of rows, stored as `old`, as they are stored in a table of `new`.

    Raises
    ------
    CheckpointMismatchError
        If a finite value becomes infinite, and that is not allowed.
    """
    wide = _widened(rows.values, old)
    narrow = _narrowed(wide, new)
    if not allow_overflow:
        back = _widened(narrow, new)
        is_lost = np.isinf(back) & np.isfinite(wide)
        if is_lost.any():
            row, column = map(int, np.argwhere(is_lost)[0])
            raise CheckpointMismatchError(
                f"{place}: key {rows.keys[row]} has the value {wide[row, column]} in column "
                f"{column}, which {new} cannot hold; load with allow_nonfinite=True to make it "
                f"infinite"
            )
    return narrow


def _widened(values: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Return values as float32, which holds all of them exactly."""
    return arrays.bfloat16_to_float32(values) if dtype == "bfloat16" else values.astype(np.float32)


def _narrowed(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    if dtype == "bfloat16":
        return arrays.float32_to_bfloat16(values)
    with np.errstate(over="ignore"):
        return values.astype(dtype)
