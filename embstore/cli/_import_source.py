"""What every importer gives: rows in batches, and what is known of them before they are read."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embstore.cli._rows import widened
from embstore.errors import DataError

BATCH_BYTES = 16 << 20

Slots = tuple[tuple[str, int], ...]
Array = NDArray[Any]


class Batch(NamedTuple):
    """Rows of a source; what is None the source does not know."""

    keys: NDArray[np.int64]
    values: Array  # (n, dim) of a float dtype, or uint16 bits of bfloat16
    slots: NDArray[np.float32] | None = None
    freq: NDArray[np.uint32] | None = None
    step: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Source:
    """Rows to import.

    Attributes
    ----------
    n_rows : int
    dim : int or None
        Values of a row; None if there are no rows, and nothing else says.
    dtype : str
        The dtype of a table that holds the values as they are.
    read
        Yields the rows; is given the slots of the table that takes them.
    config : dict
        Parameters of the table that the source tells of.
    """

    n_rows: int
    dim: int | None
    dtype: str
    read: Callable[[Slots], Iterator[Batch]]
    config: Mapping[str, Any] = field(default_factory=dict)


def batch_rows(row_bytes: int) -> int:
    """Return how many rows to read at once."""
    return max(1, BATCH_BYTES // max(1, row_bytes))


def table_dtype(dtype: "np.dtype[Any]", what: str) -> str:
    """Return the dtype of a table for values of a numpy dtype; float64 is rounded to float32."""
    names = {"f2": "float16", "f4": "float32", "f8": "float32", "u2": "bfloat16"}
    name = names.get(f"{dtype.kind}{dtype.itemsize}")
    if name is None:
        raise DataError(f"{what} is {dtype}; values must be float16, float32 or float64")
    return name


def stored(values: Array, dtype: str) -> Array:
    """Return values as a table of `dtype` takes them."""
    if values.dtype == np.uint16 and dtype == "bfloat16":
        return values
    with np.errstate(over="ignore"):
        if dtype == "float16":
            wide = widened(values) if values.dtype == np.uint16 else values
            return wide.astype(np.float16, copy=False)
        return widened(values)


def as_keys(array: Array, what: str) -> NDArray[np.int64]:
    """Return integers as keys: uint64 by its bits, others widened."""
    if array.dtype == np.uint64:
        return array.view(np.int64)
    if array.dtype.kind not in "iu":
        raise DataError(f"{what} is {array.dtype}; keys must be integers")
    return array.astype(np.int64, copy=False)


def as_freq(array: Array, what: str) -> NDArray[np.uint32]:
    """Return counts as frequencies, which end at 2**32 - 1."""
    if array.dtype.kind not in "iu":
        raise DataError(f"{what} is {array.dtype}; frequencies must be integers")
    if len(array) and array.min() < 0:
        raise DataError(f"{what} has the frequency {array.min()}; expected 0 or more")
    return np.minimum(array, np.uint32(2**32 - 1)).astype(np.uint32)


def as_steps(array: Array, what: str) -> NDArray[np.int64]:
    """Return steps, which are not negative."""
    if array.dtype.kind not in "iu":
        raise DataError(f"{what} is {array.dtype}; steps must be integers")
    steps = array.astype(np.int64, copy=False)
    if len(steps) and steps.min() < 0:
        raise DataError(
            f"{what} has the step {steps.min()}; expected 0 or more (pending keys, of step -1, "
            f"cannot be imported)"
        )
    return steps


def chosen(names: "list[str]", wanted: str | None, what: str) -> str:
    """Return the name wanted, or the only one; raise an error that lists them."""
    listed = ", ".join(names) or "none"
    if wanted is not None:
        if wanted not in names:
            raise DataError(f"there is no {what} {wanted!r}; there are {listed}")
        return wanted
    if len(names) != 1:
        raise DataError(f"choose one {what} by --parameter; there are {listed}")
    return names[0]
