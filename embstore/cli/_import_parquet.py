"""Rows from Parquet: keys, vectors as lists or as columns v0, v1, ..., and what our export adds."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embstore.cli._formats import METADATA
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


def parquet_files(paths: Sequence[str]) -> list[str]:
    """Return the files; a folder stands for the ``*.parquet`` in it, by name."""
    found: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            inside = sorted(str(p) for p in Path(path).glob("*.parquet") if p.is_file())
            if not inside:
                raise DataError(f"the folder {path} holds no file *.parquet")
            found += inside
        else:
            found.append(path)
    return found


def parquet_source(
    paths: Sequence[str], key_column: str, values_column: str, has_slots: bool
) -> Source:
    """Return the rows of Parquet files that have the same columns."""
    files = [_Rows(path, key_column, values_column) for path in parquet_files(paths)]
    first = files[0]
    dim = next((file.dim for file in files if file.dim is not None), None)
    for file in files:
        if file.dim not in (None, dim) or file.dtype != first.dtype:
            raise DataError(
                f"{first.path} has vectors of {dim} {first.dtype}, and {file.path} of "
                f"{file.dim} {file.dtype}"
            )

    def read(slots: Slots) -> Iterator[Batch]:
        for file in files:
            yield from file.batches(dim or 1, slots if has_slots else ())

    n_rows = sum(file.n_rows for file in files)
    return Source(n_rows, dim, first.dtype, read, first.config)


class _Rows:
    """One file: its footer is read, and its first row if nothing else says how long vectors are."""

    def __init__(self, path: str, key_column: str, values_column: str) -> None:
        self.path = path
        self.key_column = key_column
        with self._opened() as parquet:
            self.n_rows = int(parquet.metadata.num_rows)
            self.schema = self._schema(parquet)
        self.names = set(self.schema.names)
        if key_column not in self.names:
            raise self._error(f"no column {key_column!r}: give --key-column")
        self.vectors = self._vector_columns(values_column)
        kind = self.schema.field(self.vectors[0]).type
        self.is_list = _is_list(kind)
        number = kind.value_type if self.is_list else kind
        if not pa.types.is_floating(number):
            raise DataError(f"the column {self.vectors[0]!r} of {path} is {kind}, not of floats")
        self.dtype = table_dtype(
            np.dtype(number.to_pandas_dtype()), f"{self.vectors[0]!r} of {path}"
        )
        self.dim = self._dim(kind)
        self.config = self._config()

    def _opened(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.path, page_checksum_verification=True)
        except FileNotFoundError:
            raise DataError(f"there is no file {self.path}") from None
        except (OSError, UnicodeError, pa.ArrowException) as error:
            raise DataError(f"{self.path} cannot be read as Parquet: {error}") from None

    def _schema(self, parquet: pq.ParquetFile) -> pa.Schema:
        try:
            schema = parquet.schema_arrow
            _ = schema.names, schema.metadata  # which are decoded here
        except (OSError, UnicodeError, pa.ArrowException) as error:
            raise DataError(f"{self.path} has a schema that cannot be read: {error}") from None
        return schema

    def _error(self, what: str) -> DataError:
        return DataError(f"{self.path} has {what}; it has {', '.join(self.schema.names)}")

    def _vector_columns(self, name: str) -> list[str]:
        """Return the column of vectors, or v0, v1, ... where there is none."""
        if name in self.names:
            return [name]
        flat = 0
        while f"v{flat}" in self.names:
            flat += 1
        if not flat:
            raise self._error(f"no column {name!r}, and no v0, v1, ...: give --values-column")
        return [f"v{i}" for i in range(flat)]

    def _dim(self, kind: pa.DataType) -> int | None:
        if not self.is_list:
            return len(self.vectors)
        if pa.types.is_fixed_size_list(kind):
            return int(kind.list_size)
        for records in self._records(self.vectors, 1):
            self._check_nulls(records.column(0), self.vectors[0], 0)
            return len(records.column(0)[0])
        return None

    def _config(self) -> dict[str, Any]:
        """Return the parameters of the table that was exported, if our export wrote the file."""
        data = (self.schema.metadata or {}).get(METADATA)
        if data is None:
            return {}
        try:
            config = json.loads(data)["config"]
        except (ValueError, KeyError, TypeError, RecursionError):
            config = None
        if not isinstance(config, Mapping):
            raise DataError(f"{self.path}: its metadata {METADATA.decode()!r} is damaged")
        return dict(config)

    def _records(self, columns: Sequence[str], n_rows: int) -> Iterator[pa.RecordBatch]:
        try:
            with self._opened() as parquet:
                for records in parquet.iter_batches(n_rows, columns=list(columns)):
                    if records.num_rows:
                        yield records
        except (OSError, UnicodeError, pa.ArrowException) as error:
            raise DataError(f"{self.path} cannot be read to its end: {error}") from None

    def batches(self, dim: int, slots: Slots) -> Iterator[Batch]:
        """Yield the rows; slots are left out where the file has none of them."""
        there = [name for name, _ in slots if name in self.names]
        if there and len(there) < len(slots):
            missing = ", ".join(name for name, _ in slots if name not in there)
            raise self._error(f"{', '.join(there)} and no {missing}: give --fresh-slots")
        known = [name for name in ("freq", "step") if name in self.names]
        columns = [self.key_column, *self.vectors, *there, *known]
        n_batch = batch_rows(8 * (dim + sum(width for _, width in slots) + 3))
        n_done = 0
        for records in self._records(columns, n_batch):
            yield self._batch(records, dim, slots if there else (), known, n_done)
            n_done += records.num_rows

    def _batch(
        self, records: pa.RecordBatch, dim: int, slots: Slots, known: list[str], n_done: int
    ) -> Batch:
        def vectors(name: str, width: int) -> Array:
            return self._vectors(records.column(name), name, width, n_done)

        def numbers(name: str) -> Array:
            return self._numbers(records.column(name), name, n_done)

        values = vectors(self.vectors[0], dim) if self.is_list else self._stacked(records, n_done)
        parts = [vectors(name, width).astype(np.float32, copy=False) for name, width in slots]
        where = {name: f"the column {name!r} of {self.path}" for name in (self.key_column, *known)}
        return Batch(
            as_keys(numbers(self.key_column), where[self.key_column]),
            values,
            np.concatenate(parts, axis=1) if parts else None,
            as_freq(numbers("freq"), where["freq"]) if "freq" in known else None,
            as_steps(numbers("step"), where["step"]) if "step" in known else None,
        )

    def _stacked(self, records: pa.RecordBatch, n_done: int) -> Array:
        columns = [self._numbers(records.column(n), n, n_done) for n in self.vectors]
        return np.stack(columns, axis=1)

    def _check_nulls(self, array: pa.Array, name: str, n_done: int) -> None:
        if array.null_count:
            at = n_done + int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
            raise DataError(f"the column {name!r} of {self.path} has a null at row {at}")

    def _numbers(self, array: pa.Array, name: str, n_done: int) -> Array:
        self._check_nulls(array, name, n_done)
        if pa.types.is_nested(array.type) or not _is_number(array.type):
            raise DataError(f"the column {name!r} of {self.path} is {array.type}, not of numbers")
        numbers: Array = array.to_numpy(zero_copy_only=False)
        return numbers

    def _vectors(self, array: pa.Array, name: str, width: int, n_done: int) -> Array:
        if not _is_list(array.type):  # a slot of one number
            return self._numbers(array, name, n_done).reshape(-1, 1)
        self._check_nulls(array, name, n_done)
        lengths = array.value_lengths().to_numpy(zero_copy_only=False)
        is_off = lengths != width
        if is_off.any():
            at = int(is_off.argmax())
            raise DataError(
                f"the column {name!r} of {self.path} has {lengths[at]} numbers at row "
                f"{n_done + at}; expected {width}"
            )
        flat = array.flatten()
        if flat.null_count:
            raise DataError(f"the column {name!r} of {self.path} has a null in a list")
        return self._numbers(flat, name, n_done).reshape(-1, width)


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
