"""Rows from a parameter of a model: state dicts of PyTorch, safetensors, .npz and .npy."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore.cli._import_arrays import StoredArray, npy_array, npz_arrays
from embstore.cli._import_parquet import parquet_files
from embstore.cli._import_source import (
    Array,
    Batch,
    Slots,
    Source,
    as_keys,
    batch_rows,
    chosen,
    table_dtype,
)
from embstore.errors import DataError

SAFE_DTYPES = {"F16": "f2", "F32": "f4", "F64": "f8"}


@dataclass(frozen=True)
class Matrix:
    """A two-dimensional parameter; `chunks` yields its rows, as many at a time as it is told."""

    place: str
    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"
    chunks: Callable[[int], Iterator[Array]]


def torch_source(paths: Sequence[str], parameter: str | None, ids: str | None) -> Source:
    """Return the rows of a parameter; the key of a row is its number, or what `ids` says."""
    if len(paths) != 1:
        raise DataError(f"one file of parameters can be imported, got {len(paths)}")
    found = _matrices(paths[0])
    name = chosen(sorted(found), parameter, f"parameter of two dimensions in {paths[0]}")
    matrix = found[name]
    n_rows, dim = matrix.shape
    keys = None if ids is None else _ids(ids, n_rows, matrix.place)

    def read(slots: Slots) -> Iterator[Batch]:
        first = 0
        for values in matrix.chunks(batch_rows(dim * matrix.dtype.itemsize)):
            last = first + len(values)
            own = np.arange(first, last, dtype=np.int64) if keys is None else keys[first:last]
            yield Batch(own, values)
            first = last

    return Source(n_rows, dim, table_dtype(matrix.dtype, matrix.place), read)


def _ids(path: str, n_rows: int, place: str) -> NDArray[np.int64]:
    """Return the keys of the rows of a parameter, from a .npy file or a column of Parquet."""
    if path.endswith(".npy"):
        stored = npy_array(path)
        parts = list(stored.chunks(1 << 20)) if len(stored.shape) == 1 else []
        ids = np.concatenate(parts) if parts else np.empty(stored.shape, stored.dtype)
    else:
        ids = _parquet_ids(path)
    if ids.shape != (n_rows,):
        raise DataError(f"{path} has ids of shape {ids.shape}; {place} has {n_rows} rows")
    return as_keys(ids, path)


def _parquet_ids(path: str) -> Array:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(parquet_files([path]))
    except (OSError, UnicodeError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from None
    if table.num_columns != 1 or table.column(0).null_count:
        raise DataError(f"{path} must have one column of ids without nulls; it has {table.schema}")
    ids: Array = table.column(0).to_numpy()
    return ids


def _matrices(path: str) -> dict[str, Matrix]:
    """Return the two-dimensional float arrays of a file by name."""
    if not os.path.isfile(path):
        raise DataError(f"there is no file {path}")
    suffix = Path(path).suffix
    if suffix == ".npy":
        found = {Path(path).stem: _of_stored(npy_array(path))}
    elif suffix == ".npz":
        found = {name: _of_stored(array) for name, array in npz_arrays(path).items()}
    elif suffix == ".safetensors":
        found = _safe_matrices(path)
    else:
        from embstore.torch.state_dict import read_state_dict

        arrays = read_state_dict(path)
        found = {name: _of_array(f"{name} of {path}", a) for name, a in arrays.items()}
    return {name: matrix for name, matrix in found.items() if _is_matrix(matrix)}


def _is_matrix(matrix: Matrix) -> bool:
    return len(matrix.shape) == 2 and (matrix.dtype.kind == "f" or matrix.dtype == np.uint16)


def _of_stored(array: StoredArray) -> Matrix:
    return Matrix(array.place, array.shape, array.dtype, array.chunks)


def _of_array(place: str, array: Array) -> Matrix:
    def chunks(n_rows: int) -> Iterator[Array]:
        for first in range(0, len(array), n_rows):
            yield np.ascontiguousarray(array[first : first + n_rows])

    return Matrix(place, array.shape, array.dtype, chunks)


def _safe_matrices(path: str) -> dict[str, Matrix]:
    """Return the matrices of a safetensors file; its rows are read when they are asked for."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise DataError(f"{path}: reading it needs safetensors: pip install safetensors") from None
    found = {}
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                shape, dtype = tuple(part.get_shape()), part.get_dtype()
                if len(shape) == 2 and dtype == "BF16":
                    raise DataError(
                        f"{name} of {path} is bfloat16, which safetensors does not give to numpy: "
                        f"convert it to float32"
                    )
                if dtype in SAFE_DTYPES:
                    kind = np.dtype(SAFE_DTYPES[dtype])
                    found[name] = _of_safe(path, name, shape, kind)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read as safetensors: {error}") from None
    return found


def _of_safe(path: str, name: str, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> Matrix:
    def chunks(n_rows: int) -> Iterator[Array]:
        from safetensors import safe_open

        with safe_open(path, framework="numpy") as file:
            part = file.get_slice(name)
            for first in range(0, shape[0], n_rows):
                yield part[first : min(first + n_rows, shape[0])]

    return Matrix(f"{name} of {path}", shape, dtype, chunks)
