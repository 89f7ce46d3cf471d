"""Sections of a data file: Arrow IPC in, numpy out, each with a checksum bound to its place.

1. A file is a header, one record batch a block, and a footer; these sections tile it without a gap.
2. A checksum is the CRC-32 of the file's name, a zero byte, the section's offset and its bytes, so
   that no section is good in another place.
3. A block is decoded only if it has the one layout that the columns prescribe: nothing is
   decompressed, and no length that the file states is believed.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from embstore import _core
from embstore.checkpoint.layout import Columns, arrow_schema
from embstore.errors import InternalError

MAGIC = b"ARROW1\0\0"
SMALL_BYTES = 1 << 16  # pieces below are joined before they are written
CONTINUATION = 0xFFFFFFFF
RECORD_BATCH = 3  # MessageHeader of Arrow's Message.fbs

Arrays = Sequence[NDArray[Any]]

crc32 = _core.crc32 if _core.has_crc32() else zlib.crc32
Data = bytes | memoryview
IntT = TypeVar("IntT", int, NDArray[np.int64])


class Section(NamedTuple):
    """A section as the manifest lists it; the offset is the sum of the bytes before."""

    n_bytes: int
    n_rows: int
    crc: int


def section_seed(name: str, offset: int) -> int:
    """Return the CRC-32 that a section's own bytes continue."""
    return crc32(name.encode() + b"\0" + offset.to_bytes(8, "little"))


class Output(Protocol):
    """Takes the bytes of a file, from its beginning to its end."""

    def write(self, data: memoryview, /) -> None:
        """Take more bytes."""
        ...


class BlockWriter:
    """Writes one data file; `sections` is complete after `finish`.

    It is also the sink to which Arrow hands the pieces of each message.
    """

    closed = False

    def __init__(self, name: str, columns: Columns, file: Output) -> None:
        self.sections: list[Section] = []
        self._name = name
        self._columns = columns
        self._file = file
        self._offset = 0
        self._start = 0
        self._pieces: list[memoryview] = []  # of the section, not written yet
        self._schema = arrow_schema(columns)
        self._header_bytes = len(MAGIC) + self._schema.serialize().size
        self._writer = pa.ipc.new_file(self, self._schema)

    def add(self, arrays: Arrays) -> None:
        """Write one block: arrays (n,) or (n, width) in the order of the columns."""
        n_rows = len(arrays[0])
        for column, array in zip(self._columns, arrays, strict=True):
            shape = (n_rows,) if column.width is None else (n_rows, column.width)
            if array.shape != shape or array.dtype != np.dtype(column.dtype):
                raise InternalError(
                    f"column {column.name!r} is {array.dtype} {array.shape}; expected "
                    f"{column.dtype} {shape}"
                )
        batch = pa.RecordBatch.from_arrays(
            [self._arrow_array(i, array) for i, array in enumerate(arrays)], schema=self._schema
        )
        self._writer.write_batch(batch)
        self._end_section(n_rows)

    def finish(self) -> None:
        """Write the footer."""
        self._writer.close()
        self._end_section(0)

    def _arrow_array(self, i: int, array: NDArray[Any]) -> pa.Array:
        column, kind = self._columns[i], self._schema.field(i).type
        flat = np.ascontiguousarray(array).reshape(-1)
        if column.width is None:
            return pa.Array.from_buffers(kind, len(array), [None, pa.py_buffer(flat)], 0)
        child = pa.Array.from_buffers(kind.value_type, flat.size, [None, pa.py_buffer(flat)], 0)
        return pa.Array.from_buffers(kind, len(array), [None], 0, children=[child])

    def _end_section(self, n_rows: int) -> None:
        crc = section_seed(self._name, self._start)
        for piece in _joined(self._pieces):
            crc = crc32(piece, crc)
            self._file.write(piece)
        self._pieces.clear()
        self.sections.append(Section(self._offset - self._start, n_rows, crc))
        self._start = self._offset

    # What Arrow calls.

    def write(self, data: Any) -> int:
        """Take a piece; the header ends where the schema's message does."""
        piece = memoryview(data).cast("B")
        self._pieces.append(piece)
        self._offset += len(piece)
        if self._offset == self._header_bytes:
            self._end_section(0)
        return len(piece)

    def tell(self) -> int:
        """Return the bytes written so far."""
        return self._offset

    def flush(self) -> None:
        """Do nothing: a section is written when it is whole."""

    def writable(self) -> bool:
        """Return True."""
        return True

    def readable(self) -> bool:
        """Return False."""
        return False

    def seekable(self) -> bool:
        """Return False."""
        return False


def _joined(pieces: list[memoryview]) -> Iterator[memoryview]:
    """Yield the bytes of `pieces` in order, small ones put together: a call each costs more."""
    small: list[memoryview] = []
    for piece in pieces:
        if len(piece) < SMALL_BYTES:
            small.append(piece)
            continue
        if small:
            yield memoryview(b"".join(small))
            small = []
        yield piece
    if small:
        yield memoryview(b"".join(small))


class LayoutError(ValueError):
    """A section has a right checksum and a wrong content; the reader adds file and offset."""


def check_sum(data: Data, crc: int, name: str, offset: int) -> None:
    """Raise LayoutError unless the bytes of a section have this checksum at their place."""
    found = crc32(data, section_seed(name, offset))
    if found != crc:
        raise LayoutError(
            f"{len(data)} bytes have the checksum {found:08x}; the manifest says {crc:08x}"
        )


def check_header(data: Data, columns: Columns) -> None:
    """Raise LayoutError unless `data` is the header of a file of `columns`."""
    if data[: len(MAGIC)] != MAGIC:
        raise LayoutError("the header does not begin with ARROW1")
    expected = arrow_schema(columns)
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(data[len(MAGIC) :]))
        is_expected = schema.equals(expected, check_metadata=True)
        found = _shown(schema)
    except (pa.ArrowException, OSError, ValueError, KeyError, NotImplementedError) as error:
        raise LayoutError(f"the schema cannot be read: {error}") from None
    if not is_expected:
        raise LayoutError(f"the columns are ({found}); expected ({_shown(expected)})")


def _shown(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def decode_block(data: Data, n_rows: int, columns: Columns) -> list[NDArray[Any]]:
    """Return the columns of a record batch as read-only arrays in the memory of `data`."""
    try:
        body, buffers = _record_batch(data, n_rows, columns)
    except struct.error:
        raise LayoutError("the record batch's message is cut off") from None
    arrays, begin = [], 0
    for column, place in zip(columns, buffers, strict=True):
        n_bytes = n_rows * column.row_bytes
        if place != (begin, n_bytes):
            raise LayoutError(
                f"column {column.name!r} lies at {place}; expected {(begin, n_bytes)}"
            )
        dtype = np.dtype(column.dtype).newbyteorder("<")
        array = np.frombuffer(data, dtype, n_bytes // dtype.itemsize, body + begin)
        arrays.append(array if column.width is None else array.reshape(n_rows, column.width))
        begin += padded(n_bytes)
    return arrays


def padded(n_bytes: IntT) -> IntT:
    """Return bytes, a number or an array of them, with the padding that follows a buffer."""
    return -(-n_bytes // 8) * 8


def _record_batch(data: Data, n_rows: int, columns: Columns) -> tuple[int, list[tuple[int, int]]]:
    """Return where the body begins, and offset and bytes therein of each column's numbers."""
    body_bytes = sum(padded(n_rows * column.row_bytes) for column in columns)
    marker, size = struct.unpack_from("<Ii", data)
    if marker != CONTINUATION or size < 8 or size % 8 or 8 + size > len(data):
        raise LayoutError("a record batch does not begin with a message of its size")
    message = _Flatbuffer(data[8 : 8 + size])
    root = message.root()
    if message.number(root, 1, "<B") != RECORD_BATCH:
        raise LayoutError("the message is no record batch")
    if not message.number(root, 3, "<q") == body_bytes == len(data) - 8 - size:
        raise LayoutError(f"the record batch has not the {body_bytes} bytes of its rows")
    batch = message.table(root, 2)
    if message.number(batch, 0, "<q") != n_rows:
        raise LayoutError(f"the record batch has not the {n_rows} rows that the manifest lists")
    if message.field(batch, 3) or message.field(batch, 4):
        raise LayoutError("the record batch is compressed, or has buffers of variadic number")
    if [tuple(node) for node in message.structs(batch, 1)] != _nodes(n_rows, columns):
        raise LayoutError("the record batch has nulls, or columns of other lengths")
    return 8 + size, _data_buffers(message.structs(batch, 2), columns)


def _nodes(n_rows: int, columns: Columns) -> list[tuple[int, int]]:
    """Return (length, null count) of each Arrow array, as a record batch without nulls has them."""
    nodes = []
    for column in columns:
        nodes.append((n_rows, 0))
        if column.width is not None:
            nodes.append((n_rows * column.width, 0))
    return nodes


def _data_buffers(buffers: list[tuple[int, int]], columns: Columns) -> list[tuple[int, int]]:
    """Return the buffer of numbers of each column; the validity buffers before it are empty."""
    found, at = [], 0
    for column in columns:
        n_validity = 1 if column.width is None else 2
        if any(n_bytes for _, n_bytes in buffers[at : at + n_validity]):
            raise LayoutError(f"column {column.name!r} has a validity buffer")
        found += buffers[at + n_validity : at + n_validity + 1]
        at += n_validity + 1
    if len(buffers) != at:
        raise LayoutError(f"the record batch has {len(buffers)} buffers; expected {at}")
    return found


class _Flatbuffer:
    """Reads tables of a flatbuffer; whatever points outside raises struct.error."""

    def __init__(self, data: Data) -> None:
        self._data = data

    def _get(self, kind: str, at: int) -> Any:
        if at < 0:
            raise struct.error
        return struct.unpack_from(kind, self._data, at)[0]

    def root(self) -> int:
        """Return the place of the root table."""
        return int(self._get("<I", 0))

    def field(self, table: int, index: int) -> int:
        """Return the place of a table's field, or 0 if it is not there."""
        vtable = table - self._get("<i", table)
        entry = 4 + 2 * index
        if entry + 2 > self._get("<H", vtable):
            return 0
        offset = self._get("<H", vtable + entry)
        return table + offset if offset else 0

    def number(self, table: int, index: int, kind: str) -> int:
        """Return a number, which is 0 where it is not there."""
        at = self.field(table, index)
        return int(self._get(kind, at)) if at else 0

    def table(self, table: int, index: int) -> int:
        """Return the place of a table that a field points to."""
        at = self.field(table, index)
        if not at:
            raise struct.error
        return int(at + self._get("<I", at))

    def structs(self, table: int, index: int) -> list[tuple[int, int]]:
        """Return a vector of structs of two int64."""
        at = self.table(table, index)
        n = self._get("<I", at)
        if at + 4 + 16 * n > len(self._data):
            raise struct.error
        return list(struct.iter_unpack("<qq", self._data[at + 4 : at + 4 + 16 * n]))
