"""Parquet files on disk: found, checked before the first row is read, and read in chunks."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from embstore.data.batches import Batch
from embstore.data.columns import ColumnType, NullError, column_type, to_numpy
from embstore.data.errors import DataFileError, DataTypeError
from embstore.errors import ArgumentError, ArgumentTypeError, DataError

CHUNK_ROWS = 65536
MAGIC = b"PAR1"


@dataclass(frozen=True)
class RowGroup:
    """A row group: the unit of shards and of the shuffle."""

    file: int
    index: int
    n_rows: int


@dataclass(frozen=True, eq=False)
class _File:
    path: str
    metadata: pq.FileMetaData
    footer_digest: bytes


class ParquetFiles:
    """Files that hold the same columns; their footers are read and checked here, no row is.

    Parameters
    ----------
    paths
        Local files, and folders that stand for the files ``*.parquet`` in them, by name.
    columns
        Names of top-level columns, in the order in which a batch has them.

    Raises
    ------
    EmbstoreError
        As `ParquetReader` says.
    """

    def __init__(
        self,
        paths: "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]",
        columns: Sequence[str],
    ):
        self.columns = _checked_names(columns)
        self._files = [_open(path) for path in _find(paths)]
        self.types = self._joined_types()

    @property
    def paths(self) -> list[str]:
        """The files, in the order in which they are read."""
        return [file.path for file in self._files]

    @property
    def row_groups(self) -> list[RowGroup]:
        """All row groups that hold rows, in order."""
        groups = (
            RowGroup(number, index, file.metadata.row_group(index).num_rows)
            for number, file in enumerate(self._files)
            for index in range(file.metadata.num_row_groups)
        )
        return [group for group in groups if group.n_rows]

    @property
    def digest(self) -> str:
        """A hash of all footers: the same data have the same digest wherever they lie."""
        return hashlib.blake2b(
            b"".join(f.footer_digest for f in self._files), digest_size=16
        ).hexdigest()

    def read(self, groups: Iterable[RowGroup], skip_rows: int = 0) -> Iterator[Batch]:
        """Yield the rows of row groups in chunks; the first skip_rows are passed over.

        Raises
        ------
        DataFileError
            If a file cannot be read to its end.
        DataError
            If there is a null; the message names file, column and row.
        """
        run: list[RowGroup] = []
        for group in groups:
            if not run and skip_rows >= group.n_rows:
                skip_rows -= group.n_rows
                continue
            if run and run[-1].file != group.file:
                yield from self._read_run(run, skip_rows)
                run, skip_rows = [], 0
            run.append(group)
        if run:
            yield from self._read_run(run, skip_rows)

    def _read_run(self, run: list[RowGroup], skip_rows: int) -> Iterator[Batch]:
        """Read row groups of one file; skip_rows lie within the first."""
        file = self._files[run[0].file]
        n_done = 0
        for records in _record_batches(file, [group.index for group in run], self.columns):
            start = min(max(skip_rows - n_done, 0), records.num_rows)
            if start < records.num_rows:
                yield self._convert(records.slice(start), file, run, n_done + start)
            n_done += records.num_rows

    def _convert(
        self, records: pa.RecordBatch, file: _File, run: list[RowGroup], n_done: int
    ) -> Batch:
        batch = {}
        for name in self.columns:
            try:
                batch[name] = to_numpy(records.column(name), self.types[name])
            except NullError as error:
                row = _row_in_file(file, run, n_done + error.row)
                raise DataError(
                    f"the column {name!r} of {file.path} has {error.what} at row {row}; "
                    "fill it or drop the row first"
                ) from None
        return batch

    def _joined_types(self) -> dict[str, ColumnType]:
        types: dict[str, ColumnType] = {}
        for file in self._files:
            schema = _arrow_schema(file)
            for name in self.columns:
                kind = column_type(_field(schema, name, file.path).type, name, file.path)
                joined = kind.joined(types.get(name, kind))
                if joined is None:
                    raise DataTypeError(
                        f"the column {name!r} is {types[name]} in {self._files[0].path} "
                        f"and {kind} in {file.path}"
                    )
                types[name] = joined
        return types


def _checked_names(columns: Sequence[str]) -> list[str]:
    if isinstance(columns, str | bytes) or not all(isinstance(name, str) for name in columns):
        raise ArgumentTypeError(f"columns must be a sequence of names, not {columns!r}")
    if not columns:
        raise ArgumentError("columns is empty; name one column or more")
    repeated = [name for name in columns if list(columns).count(name) > 1]
    if repeated:
        raise ArgumentError(f"the column {repeated[0]!r} is named twice")
    return list(columns)


def _find(paths: "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]") -> list[str]:
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not given:
        raise ArgumentError("no path is given")
    found: list[str] = []
    for path in given:
        if not isinstance(path, str | os.PathLike):
            raise ArgumentTypeError(
                f"a path must be a str or a PathLike, not {type(path).__name__}"
            )
        if os.path.isdir(path):
            inside = sorted(str(p) for p in Path(path).glob("*.parquet") if p.is_file())
            if not inside:
                raise DataFileError(f"the folder {os.fspath(path)} holds no file *.parquet")
            found += inside
        else:
            found.append(os.fspath(path))
    return found


def _open(path: str) -> _File:
    """Read the footer of a file, twice: as bytes for its digest, and parsed."""
    try:
        with open(path, "rb") as stream:
            footer = _footer_bytes(stream.seek(0, os.SEEK_END), stream)
        metadata = pq.read_metadata(path)
    except FileNotFoundError:
        raise DataFileError(f"there is no file {path}") from None
    except (OSError, pa.ArrowException) as error:
        raise DataFileError(f"{path} cannot be read as Parquet: {error}") from None
    return _File(path, metadata, hashlib.blake2b(footer, digest_size=16).digest())


def _footer_bytes(size: int, stream: BinaryIO) -> bytes:
    tail = b""
    if size >= 12:
        stream.seek(size - 8)
        tail = stream.read(8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != MAGIC or length > size - 12:
        raise OSError(f"its {size} bytes do not end like a Parquet file")
    stream.seek(size - 8 - length)
    return stream.read(length)


def _arrow_schema(file: _File) -> pa.Schema:
    try:
        return file.metadata.schema.to_arrow_schema()
    except (OSError, pa.ArrowException) as error:
        raise DataFileError(f"{file.path} has a schema that cannot be read: {error}") from None


def _field(schema: pa.Schema, name: str, path: str) -> pa.Field:
    indices = schema.get_all_field_indices(name)
    if len(indices) == 1:
        return schema.field(indices[0])
    if indices:
        raise DataError(f"{path} has {len(indices)} columns of the name {name!r}")
    raise DataError(f"{path} has no column {name!r}; it has {', '.join(map(repr, schema.names))}")


def _record_batches(
    file: _File, row_groups: list[int], columns: list[str]
) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(
            file.path, metadata=file.metadata, pre_buffer=False, page_checksum_verification=True
        ) as parquet:
            yield from parquet.iter_batches(CHUNK_ROWS, row_groups=row_groups, columns=columns)
    except FileNotFoundError:
        raise DataFileError(f"the file {file.path} has gone since it was opened") from None
    except (OSError, pa.ArrowException) as error:
        raise DataFileError(f"{file.path} cannot be read to its end: {error}") from None


def _row_in_file(file: _File, run: list[RowGroup], row_in_run: int) -> int:
    """Return the row of the file that is the given row of a run of its row groups."""
    for group in run:
        if row_in_run < group.n_rows:
            before = [int(file.metadata.row_group(i).num_rows) for i in range(group.index)]
            return sum(before) + row_in_run
        row_in_run -= group.n_rows
    raise AssertionError("the row lies behind the run")
