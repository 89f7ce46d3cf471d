"""Numbers of rows: their values in float32, norms by the rule of docs/semantics.md, ages."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

N_PARTIALS = 16


def widened(values: NDArray[Any]) -> Floats:
    """Return values as stored in float32; uint16 are the bits of bfloat16."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32, copy=False)


def row_sums(numbers: Floats) -> Floats:
    """Return the sum of each row, (n,), in the order of docs/semantics.md, section 3.

    Column j is added to partial j mod 16, then the 16 partials by a balanced tree.
    """
    partials = np.zeros((len(numbers), N_PARTIALS), np.float32)
    for first in range(0, numbers.shape[1], N_PARTIALS):
        columns = numbers[:, first : first + N_PARTIALS]
        partials[:, : columns.shape[1]] += columns
    half = N_PARTIALS // 2
    while half:
        partials[:, :half] += partials[:, half : 2 * half]
        half //= 2
    return partials[:, 0]


def norms(values: NDArray[Any]) -> Floats:
    """Return the Euclidean norm of each row of values as stored, (n,) float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        wide = widened(values)
        return np.sqrt(row_sums(wide * wide))


def ages(steps: NDArray[np.int64], now: int) -> NDArray[np.int64]:
    """Return the age of each row at step `now`, (n,) int64."""
    return np.maximum(now - steps, 0)


def rounded_bfloat16(values: Floats) -> Floats:
    """Return float32 values rounded to the nearest bfloat16, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    upper = (bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(values), values, upper.view(np.float32))


def json_number(value: float) -> float | str:
    """Return a float for JSON, which has finite numbers alone: the others as words."""
    number = float(value)
    return number if math.isfinite(number) else str(number)
