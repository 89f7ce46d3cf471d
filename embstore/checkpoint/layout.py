"""What data files hold: the columns of each kind, and which rows go into which file and block."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embstore.checkpoint.partition import N_PARTITIONS

BLOCK_BYTES = 1 << 20
FILE_BYTES = 1 << 27
BLOOM_BLOCK_BYTES = 64

# The dtype on disk of a table's values: bfloat16 is written as its bits.
VALUE_DTYPES = {"float32": "float32", "float16": "float16", "bfloat16": "uint16"}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of little-endian numbers without nulls; `width` of them in a row, or one (None)."""

    name: str
    dtype: str
    width: int | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return np.dtype(self.dtype).itemsize * (1 if self.width is None else self.width)

    def arrow_field(self) -> pa.Field:
        """Return the column as a field of an Arrow schema."""
        kind = pa.from_numpy_dtype(np.dtype(self.dtype))
        if self.width is not None:
            kind = pa.list_(pa.field("item", kind, nullable=False), self.width)
        return pa.field(self.name, kind, nullable=False)


Columns = tuple[Column, ...]
Slots = tuple[tuple[str, int], ...]


def row_columns(dim: int, dtype: str, slots: Slots) -> Columns:
    """Return the columns of complete rows; a table without slots has no column for them."""
    slot_floats = sum(width for _, width in slots)
    return (
        Column("key", "int64"),
        Column("values", VALUE_DTYPES[dtype], dim),
        *([Column("slots", "float32", slot_floats)] if slot_floats else []),
        Column("freq", "uint32"),
        Column("step", "int64"),
    )


CANDIDATE_COLUMNS = (Column("key", "int64"), Column("count", "uint32"), Column("epoch", "int64"))
BLOOM_COLUMNS = (Column("block", "uint8", BLOOM_BLOCK_BYTES),)
PIN_COLUMNS = (Column("key", "int64"),)
EXTRA_COLUMNS = (Column("byte", "uint8"),)


def row_bytes(columns: Columns) -> int:
    """Return the bytes of one row over all columns."""
    return sum(column.row_bytes for column in columns)


def arrow_schema(columns: Columns) -> pa.Schema:
    """Return the Arrow schema of a file."""
    return pa.schema([column.arrow_field() for column in columns])


@dataclass(frozen=True, slots=True)
class Run:
    """Partitions [first, last], which hold `n_rows` rows and are read from the table at once."""

    first: int
    last: int
    n_rows: int


def plan_runs(counts: NDArray[Any], max_rows: int) -> Iterator[Run]:
    """Yield runs of whole partitions of at most `max_rows` rows, or of one partition; all 256."""
    first, held = 0, 0
    for partition, count in enumerate(int(count) for count in counts):
        if held and count and held + count > max_rows:
            yield Run(first, partition - 1, held)
            first, held = partition, 0
        held += count
    yield Run(first, N_PARTITIONS - 1, held)


def plan_files(runs: Iterable[Run], max_rows: int) -> Iterator[list[Run]]:
    """Yield the runs of each file: at most `max_rows` rows, or one run."""
    file: list[Run] = []
    held = 0
    for run in runs:
        if held and run.n_rows and held + run.n_rows > max_rows:
            yield file
            file, held = [], 0
        file.append(run)
        held += run.n_rows
    yield file


def plan_blocks(n_rows: int, max_rows: int) -> Iterator[slice]:
    """Yield slices of a run, one a block: the fewest of at most `max_rows` rows, evenly."""
    n_blocks = -(-n_rows // max_rows)
    for i in range(n_blocks):
        yield slice(n_rows * i // n_blocks, n_rows * (i + 1) // n_blocks)


def rows_of(n_bytes: int, columns: Columns) -> int:
    """Return how many rows `n_bytes` hold, at least one."""
    return max(1, n_bytes // row_bytes(columns))
