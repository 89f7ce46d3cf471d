"""Extra: what a user saves beside the tables, plain JSON values and numpy arrays by name."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore.checkpoint.entries import ArrayEntry
from embstore.checkpoint.fields import EXTRA_DTYPES
from embstore.errors import ArgumentTypeError, InternalError

MAX_DEPTH = 100


def split(extra: object) -> tuple[dict[str, Any] | None, dict[str, NDArray[Any]]]:
    """Return the JSON values and the arrays of `extra`, checked; (None, {}) for None."""
    if extra is None:
        return None, {}
    if not isinstance(extra, Mapping):
        raise ArgumentTypeError(f"extra must be a dict or None, got {type(extra).__name__}")
    values: dict[str, Any] = {}
    arrays: dict[str, NDArray[Any]] = {}
    for name, value in extra.items():
        if not isinstance(name, str):
            raise ArgumentTypeError(f"extra: the key {name!r} is not a string")
        if isinstance(value, np.ndarray):
            arrays[name] = _checked_array(name, value)
        else:
            values[name] = json_value(value, f"extra[{name!r}]")
    return values, arrays


def json_value(value: object, where: str, depth: int = 0) -> Any:
    """Return `value` as JSON will give it back; raise if JSON would change or refuse it."""
    if value is None or isinstance(value, bool | str):
        return _encodable(value, where)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ArgumentTypeError(f"{where} is {value}; JSON has finite numbers alone")
        return float(value)
    if depth == MAX_DEPTH:
        raise ArgumentTypeError(f"{where} is nested more than {MAX_DEPTH} deep")
    if isinstance(value, list | tuple):
        return [json_value(v, f"{where}[{i}]", depth + 1) for i, v in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ArgumentTypeError(f"{where}: the key {key!r} is not a string")
        return {
            _encodable(k, where): json_value(v, f"{where}[{k!r}]", depth + 1)
            for k, v in value.items()
        }
    raise ArgumentTypeError(
        f"{where} is a {type(value).__name__}; expected None, a bool, int, float, string, list or "
        f"dict, or at the top a numpy array"
    )


def _encodable(value: Any, where: str) -> Any:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ArgumentTypeError(f"{where}: {value!r} is not valid Unicode") from None
        return str(value)
    return value


def _checked_array(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.name not in EXTRA_DTYPES:
        expected = ", ".join(EXTRA_DTYPES)
        raise ArgumentTypeError(
            f"extra[{name!r}] is an array of {array.dtype}; expected one of {expected}"
        )
    _encodable(name, "extra")
    return array


def entry_of(name: str, array: NDArray[Any]) -> ArrayEntry:
    """Return what the manifest says of an array."""
    return ArrayEntry(name, array.dtype.name, array.shape)


def bytes_of(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the little-endian bytes of an array in C order, (n,)."""
    little = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
    return little.reshape(-1).view(np.uint8)


def n_bytes_of(entry: ArrayEntry) -> int:
    """Return the bytes of an array."""
    return math.prod(entry.shape) * np.dtype(entry.dtype).itemsize


def array_of(entry: ArrayEntry, data: NDArray[np.uint8]) -> NDArray[Any]:
    """Return the array that `data` holds, in its memory; ValueError if it cannot be."""
    if entry.dtype == "bool" and data.max(initial=0) > 1:
        raise ValueError(f"array {entry.name!r} is of bool and has other bytes than 0 and 1")
    return data.view(np.dtype(entry.dtype)).reshape(entry.shape)


def rechunk(
    blocks: Iterator[NDArray[np.uint8]], sizes: Iterable[int]
) -> Iterator[NDArray[np.uint8]]:
    """Yield fresh arrays of these sizes, one after another from the bytes of `blocks`, all of them.

    `blocks` is read to its end, since that is where it checks the end of its file.
    """
    held = np.empty(0, np.uint8)
    for size in sizes:
        chunk = np.empty(size, np.uint8)
        at = 0
        while at < size:
            if not len(held):
                held = next(blocks)
            n = min(len(held), size - at)
            chunk[at : at + n] = held[:n]
            held, at = held[n:], at + n
        yield chunk
    if len(held) or next(blocks, None) is not None:
        raise InternalError("the manifest's sums were not checked")
