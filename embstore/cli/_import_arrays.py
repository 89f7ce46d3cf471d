"""Rows from npz files as our export writes them, and arrays from .npy and .npz, piece by piece.

numpy's own ``load`` could be told to unpickle; this reads headers and numbers, nothing else.
"""

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from embstore.cli._import_source import (
    Array,
    Batch,
    Slots,
    Source,
    as_freq,
    as_keys,
    as_steps,
    batch_rows,
    table_dtype,
)
from embstore.errors import DataError

# What a damaged archive raises; RuntimeError: encrypted, or compressed as zipfile cannot.
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, UnicodeError, struct.error)

Open = Callable[[], AbstractContextManager[IO[bytes]]]


@dataclass(frozen=True)
class StoredArray:
    """An array in a file: its shape and dtype, and the means to read its rows in order."""

    place: str
    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"
    open: Open

    def chunks(self, n_rows: int) -> Iterator[Array]:
        """Yield the rows, `n_rows` at a time."""
        width = math.prod(self.shape[1:])
        with self.open() as stream:
            _header(stream, self.place)
            for first in range(0, self.shape[0], n_rows):
                n = min(n_rows, self.shape[0] - first)
                data = stream.read(n * width * self.dtype.itemsize)
                if len(data) != n * width * self.dtype.itemsize:
                    raise DataError(f"{self.place} ends before its {self.shape[0]} rows")
                yield np.frombuffer(data, self.dtype).reshape(n, *self.shape[1:])
            if stream.read(1):
                raise DataError(f"{self.place} goes on behind its {self.shape[0]} rows")


def _header(stream: IO[bytes], place: str) -> tuple[tuple[int, ...], "np.dtype[Any]"]:
    """Return shape and dtype of a .npy file; only numbers in C order are taken."""
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} is not known")
        if version == (1, 0):
            shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    except (OSError, *ZIP_ERRORS[:2]):
        raise
    except Exception as error:  # a header that is not one: tokens, syntax, types, recursion, ...
        raise DataError(f"{place} is not a .npy file: {error}") from None
    if dtype.kind not in "iuf" or (is_fortran and len(shape) > 1):
        order = ", in Fortran order" if is_fortran else ""
        raise DataError(f"{place} is of {dtype}{order}; expected numbers in C order")
    return shape, dtype


def npy_array(path: str) -> StoredArray:
    """Return the array of a .npy file."""

    def opened() -> IO[bytes]:
        return open(path, "rb")

    with opened() as stream:
        shape, dtype = _header(stream, path)
    return StoredArray(path, shape, dtype, opened)


def npz_arrays(path: str) -> dict[str, StoredArray]:
    """Return the arrays of a .npz file by name."""
    if not os.path.isfile(path):
        raise DataError(f"there is no file {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
            return {name.removesuffix(".npy"): _member(path, archive, name) for name in members}
    except ZIP_ERRORS as error:
        raise DataError(f"{path} cannot be read as npz: {error}") from None


def _member(path: str, archive: zipfile.ZipFile, name: str) -> StoredArray:
    place = f"{name} of {path}"
    with archive.open(name) as stream:
        shape, dtype = _header(stream, place)
    return StoredArray(place, shape, dtype, lambda: _opened_member(path, name))


@contextmanager
def _opened_member(path: str, name: str) -> Iterator[IO[bytes]]:
    """Open a member of a zip file; that a byte of it was flipped shows while it is read."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name) as stream:
            yield stream
    except ZIP_ERRORS as error:
        raise DataError(f"{name} of {path} cannot be read: {error}") from None


def npz_source(paths: Sequence[str], has_slots: bool) -> Source:
    """Return the rows of one npz file with keys, values, and maybe slots, freq and step."""
    if len(paths) != 1:
        raise DataError(f"one npz file can be imported, got {len(paths)}")
    arrays = npz_arrays(paths[0])
    for name in ("keys", "values"):
        if name not in arrays:
            raise DataError(f"{paths[0]} has no array {name!r}; it has {', '.join(arrays)}")
    values = arrays["values"]
    n_rows = arrays["keys"].shape[0] if arrays["keys"].shape else 0
    if len(values.shape) != 2:
        raise DataError(f"{values.place} has the shape {values.shape}; expected (n, dim)")
    kept = {name: arrays[name] for name in _names(has_slots) if name in arrays}
    for name, array in kept.items():
        expected = array.shape if name == "values" else (n_rows, *array.shape[1:])
        if array.shape[:1] != (n_rows,) or len(array.shape) != _n_axes(name):
            raise DataError(
                f"{array.place} has the shape {array.shape}, and {arrays['keys'].place} "
                f"{arrays['keys'].shape}; expected {expected}"
            )
    return Source(
        n_rows,
        values.shape[1],
        table_dtype(values.dtype, values.place),
        lambda slots: _npz_batches(kept, slots),
    )


def _names(has_slots: bool) -> list[str]:
    return ["keys", "values", *(["slots"] if has_slots else []), "freq", "step"]


def _n_axes(name: str) -> int:
    return 2 if name in ("values", "slots") else 1


def _npz_batches(arrays: dict[str, StoredArray], slots: Slots) -> Iterator[Batch]:
    width = sum(size for _, size in slots)
    used = dict(arrays)
    if not width or ("slots" in used and not used["slots"].shape[1]):
        used.pop("slots", None)
    if "slots" in used and used["slots"].shape[1] != width:
        raise DataError(
            f"{used['slots'].place} has {used['slots'].shape[1]} numbers a row; the optimizer's "
            f"slots are {width}: give --optimizer, or --fresh-slots"
        )
    n_batch = batch_rows(8 * (used["values"].shape[1] + width + 3))
    places = {name: array.place for name, array in used.items()}
    for part in zip(*(array.chunks(n_batch) for array in used.values()), strict=True):
        found = dict(zip(used, part, strict=True))
        yield Batch(
            as_keys(found["keys"], places["keys"]),
            found["values"],
            found["slots"].astype(np.float32, copy=False) if "slots" in found else None,
            as_freq(found["freq"], places["freq"]) if "freq" in found else None,
            as_steps(found["step"], places["step"]) if "step" in found else None,
        )
