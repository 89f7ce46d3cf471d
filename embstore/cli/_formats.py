"""The files of an export: Parquet, CSV and npz, written block by block."""

import json
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from embstore.checkpoint import LoadedTable, RowBlock
from embstore.cli._columns import Array, Column
from embstore.errors import InternalError

GROUP_BYTES = 32 << 20
METADATA = b"embstore"
NPZ_NAMES = {"key": "keys"}

Blocks: TypeAlias = Callable[[], Iterator[RowBlock]]


def write_parquet(file: BinaryIO, columns: list[Column], blocks: Blocks, table: LoadedTable) -> int:
    """Write a Parquet file of row groups of about 32 MiB; return how many rows.

    The table's parameters stand in the metadata, from which an import makes the same table.
    """
    parameters = json.dumps({"table": table.name, "config": table.config})
    schema = pa.schema(
        [pa.field(c.name, _arrow_type(c), nullable=False) for c in columns],
        metadata={METADATA: parameters.encode()},
    )
    n_rows = n_bytes = 0
    held: list[pa.RecordBatch] = []
    with pq.ParquetWriter(file, schema, use_dictionary=False, write_page_checksum=True) as writer:
        for block in blocks():
            arrays = [_arrow_array(column, column.take(block)) for column in columns]
            held.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
            n_rows, n_bytes = n_rows + len(block), n_bytes + held[-1].nbytes
            if n_bytes >= GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(held, schema))
                held, n_bytes = [], 0
        if held:
            writer.write_table(pa.Table.from_batches(held, schema))
    return n_rows


def _arrow_type(column: Column) -> pa.DataType:
    kind = pa.from_numpy_dtype(column.dtype)
    if column.width is None:
        return kind
    return pa.list_(pa.field("element", kind, nullable=False), column.width)


def _arrow_array(column: Column, array: Array) -> pa.Array:
    if column.width is None:
        return pa.array(array)
    flat = pa.array(np.ascontiguousarray(array).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=_arrow_type(column))


def write_csv(file: BinaryIO, columns: list[Column], blocks: Blocks) -> int:
    """Write a CSV file with a header, a column for each number; return how many rows."""
    names = [name for column in columns for name in _flat_names(column)]
    kinds = [_csv_type(column) for column in columns for _ in _flat_names(column)]
    schema = pa.schema(list(zip(names, kinds, strict=True)))
    n_rows = 0
    with csv.CSVWriter(file, schema) as writer:
        for block in blocks():
            flat: list[Array] = []
            for column in columns:
                array = column.take(block)
                flat += [array] if column.width is None else list(array.T)
            arrays = [pa.array(a).cast(kind) for a, kind in zip(flat, kinds, strict=True)]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
            n_rows += len(block)
    return n_rows


def _flat_names(column: Column) -> list[str]:
    if column.width is None:
        return [column.name]
    stem = "v" if column.name == "values" else column.name
    return [f"{stem}{i}" for i in range(column.width)]


def _csv_type(column: Column) -> pa.DataType:
    return pa.float32() if column.dtype.kind == "f" else pa.from_numpy_dtype(column.dtype)


def write_npz(file: BinaryIO, columns: list[Column], blocks: Blocks, n_rows: int) -> int:
    """Write a npz file, uncompressed; return how many rows.

    The arrays come one after another, so the checkpoint is read once for each: this way no more
    than a block is ever held.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for column in columns:
            member = zipfile.ZipInfo(f"{NPZ_NAMES.get(column.name, column.name)}.npy")
            with archive.open(member, "w", force_zip64=True) as stream:
                _write_array(stream, column, blocks, n_rows)
    return n_rows


def _write_array(stream: Any, column: Column, blocks: Blocks, n_rows: int) -> None:
    shape = (n_rows,) if column.width is None else (n_rows, column.width)
    header = {"descr": column.dtype.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    n_written = 0
    for block in blocks():
        array = np.ascontiguousarray(column.take(block), column.dtype)
        stream.write(array.reshape(-1).view(np.uint8).data)
        n_written += len(array)
    if n_written != n_rows:
        raise InternalError(f"{n_written} rows were read where {n_rows} were counted")
