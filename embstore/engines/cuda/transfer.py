"""Rows, candidates and the change log of a table on the device, in the order of files.

That order is (partition, key), keys compared as signed integers; docs/semantics.md, section 8.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embstore.engines.cuda.device import Memory
from embstore.engines.cuda.launch import Launcher
from embstore.engines.cuda.order import SortBy, scan, sort
from embstore.engines.cuda.row_bits import (
    DeviceTable,
    RowList,
    download_count,
    list_set,
    set_bytes,
)
from embstore.engines.spec import N_PARTITIONS
from embstore.engines.types import Candidates, Changes, Rows

TILE = 8
PIECE_BYTES = 64 << 20  # of rows, at a time
ALIGNMENT = 256
KEYS = np.dtype(np.int64)


class Column(NamedTuple):
    """One array of complete rows: its name, its dtype, and how many of that a row has."""

    name: str
    dtype: np.dtype[Any]
    width: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * self.width

    def shape(self, n: int) -> tuple[int, ...]:
        """Return the shape of n rows."""
        return (n, self.width) if self.name in ("values", "slots") else (n,)


class RowColumns:
    """The arrays of complete rows, and where they lie in one block of scratch memory."""

    def __init__(self, dim: int, stored_dtype: np.dtype[Any], slot_floats: int) -> None:
        self.columns = (
            Column("keys", KEYS, 1),
            Column("values", stored_dtype, dim),
            Column("slots", np.dtype(np.float32), slot_floats),
            Column("freq", np.dtype(np.uint32), 1),
            Column("step", KEYS, 1),
        )
        self.row_bytes = sum(column.row_bytes for column in self.columns)

    def rows_of_piece(self, n: int) -> int:
        """Return how many of n rows are moved at a time."""
        return max(1, min(n, PIECE_BYTES // self.row_bytes))

    def block_bytes(self, n: int) -> int:
        """Return the bytes of a block of n rows."""
        return n * self.row_bytes + ALIGNMENT * len(self.columns)

    def addresses(self, block: int, n: int) -> dict[str, int]:
        """Return the address of each array of n rows in a block."""
        found = {}
        for column in self.columns:
            found[column.name] = block
            block += -(-n * column.row_bytes // ALIGNMENT) * ALIGNMENT
        return found


class RowReader:
    """Copies complete rows from the device, in pieces of bounded size."""

    def __init__(self, launcher: Launcher, columns: RowColumns) -> None:
        self._launcher = launcher
        self._columns = columns

    def reserve(self, n: int) -> int:
        """Make the scratch memory that n rows need; return its address."""
        n_bytes = self._columns.block_bytes(self._columns.rows_of_piece(n))
        return self._launcher.scratch("rows in transfer", n_bytes)

    def read(self, table: DeviceTable, rows: RowList) -> Rows:
        """Return the rows of a list."""
        columns = self._columns.columns
        out = {c.name: np.empty(c.shape(rows.n), c.dtype) for c in columns}
        n_piece = self._columns.rows_of_piece(rows.n)
        block = self.reserve(rows.n)
        for at in range(0, rows.n, n_piece):
            n = min(n_piece, rows.n - at)
            arrays = self._columns.addresses(block, n)
            listed = {"rows": rows.address + 4 * at, "n": n}
            self._launcher.run(
                "gather_complete_rows", TILE * n, table=table.view, **listed, **arrays
            )
            for name, array in out.items():
                download(self._launcher, arrays[name], array[at : at + n])
        return Rows(**out)


class RowWriter:
    """Copies complete rows to the device, in pieces of bounded size."""

    def __init__(self, launcher: Launcher, columns: RowColumns) -> None:
        self._launcher = launcher
        self._columns = columns

    def write(
        self,
        table: DeviceTable,
        rows: RowList,
        data: dict[str, NDArray[Any]],
        step_of_all: int,
    ) -> None:
        """Give rows, distinct and in the index already, what `data` holds.

        `data` has values, and may have slots (else they are as at birth), freq (else 0) and step
        (else `step_of_all`), each of n rows.
        """
        n_piece = self._columns.rows_of_piece(rows.n)
        block = self._launcher.scratch("rows in transfer", self._columns.block_bytes(n_piece))
        for at in range(0, rows.n, n_piece):
            n = min(n_piece, rows.n - at)
            arrays = self._columns.addresses(block, n)
            given = {
                column.name: arrays[column.name] if column.name in data else 0
                for column in self._columns.columns
                if column.name != "keys"
            }
            for name, array in data.items():
                upload(self._launcher, arrays[name], array[at : at + n])
            listed = {"rows": rows.address + 4 * at, "n": n, "step_of_all": step_of_all}
            self._launcher.run(
                "import_complete_rows", TILE * n, table=table.view, **listed, **given
            )


def download(launcher: Launcher, source: int, out: NDArray[Any]) -> None:
    """Fill an array of the host, which may be empty; waits."""
    if out.nbytes > 0:
        launcher.queue.download(source, out)


def upload(launcher: Launcher, to: int, data: NDArray[Any]) -> None:
    """Copy a contiguous array of the host, which may be empty."""
    if data.nbytes > 0:
        launcher.queue.upload(to, data)


def sorted_by_file(launcher: Launcher, keys: int, n: int) -> int:
    """Return the address of the (n,) uint32 indices of int64 keys in the order of files."""
    order = launcher.scratch("file order", 4 * n)
    sort(launcher, keys, SortBy.PARTITION_AND_KEY, n, order)
    return order


def partition_counts(launcher: Launcher, keys: int, n: int) -> NDArray[np.uint64]:
    """Return how many of (n,) int64 keys each of the 256 partitions has."""
    counts = launcher.scratch("partition counts", 8 * N_PARTITIONS)
    launcher.queue.fill(counts, 0, 8 * N_PARTITIONS)
    launcher.run("count_keys_of_partitions", n, keys=keys, n=n, counts=counts)
    out = np.empty(N_PARTITIONS, np.uint64)
    launcher.queue.download(counts, out)
    return out


def keys_of_rows(launcher: Launcher, table: DeviceTable, rows: RowList) -> int:
    """Return the address of the keys of rows, in scratch memory."""
    keys = launcher.scratch("keys of rows", 8 * rows.n)
    listed = {"rows": rows.address, "n": rows.n}
    launcher.run("read_keys_of_rows", rows.n, table=table.view, **listed, keys=keys)
    return keys


class FileOrder:
    """Things on the device in the order of files, and how many each partition has.

    It is good until the table is written to: the caller says how often that was.
    """

    def __init__(self) -> None:
        self._write_count: int | None = None
        self._items: Memory | None = None
        self._offsets = np.zeros(N_PARTITIONS + 1, np.int64)

    @property
    def n_bytes(self) -> int:
        """Bytes of the device that it holds."""
        return 0 if self._items is None else self._items.n_bytes

    def drop(self) -> None:
        """Give its memory back."""
        self._items, self._write_count = None, None

    def _is_good(self, write_count: int) -> bool:
        return self._write_count == write_count

    def _set(
        self, launcher: Launcher, keys: int, items: int, n: int, item_bytes: int, write_count: int
    ) -> None:
        """Put (n,) items in the order of their keys."""
        self.drop()
        counts = partition_counts(launcher, keys, n)
        held = launcher.alloc(max(1, n) * item_bytes)
        order = sorted_by_file(launcher, keys, n)
        kernel = "put_rows_in_order" if item_bytes == 4 else "put_keys_in_order"
        fields = {"from": items, "order": order, "n": n, "out": held.address}
        launcher.run(kernel, n, **fields)
        self._offsets[1:] = np.cumsum(counts)
        self._items, self._write_count = held, write_count

    def counts(self) -> NDArray[np.uint64]:
        """Return the number of things in each partition."""
        return np.diff(self._offsets).astype(np.uint64)

    def _range(self, first: int, last: int, item_bytes: int) -> tuple[int, int]:
        """Return the address and the number of the things of partitions [first, last]."""
        if self._items is None:
            return 0, 0
        begin, end = int(self._offsets[first]), int(self._offsets[last + 1])
        return self._items.address + item_bytes * begin, end - begin

    def put_rows(
        self, launcher: Launcher, table: DeviceTable, bits: int, write_count: int = 0
    ) -> None:
        """Make it the rows of a set."""
        rows = list_set(launcher, bits, 0, table.n_ids)
        keys = keys_of_rows(launcher, table, rows)
        self._set(launcher, keys, rows.address, rows.n, 4, write_count)

    def rows(self, first: int, last: int) -> RowList:
        """Return the rows of partitions [first, last]."""
        return RowList(*self._range(first, last, 4))


class ExportOrder(FileOrder):
    """The rows of a table in the order of files."""

    def prepare(self, launcher: Launcher, table: DeviceTable, write_count: int) -> None:
        """Sort all live rows, unless that is done."""
        if self._is_good(write_count):
            return
        self.put_rows(launcher, table, table.live, write_count)


class CandidateOrder(FileOrder):
    """The cells of a table's candidates in the order of files."""

    def prepare(self, launcher: Launcher, table: DeviceTable, write_count: int) -> None:
        """Sort all candidates, unless that is done."""
        if self._is_good(write_count):
            return
        places = launcher.scratch("places of lines", 4 * table.n_lines)
        total = launcher.scratch("number of candidates", 8)
        launcher.run("count_candidates_of_lines", table.n_lines, table=table.view, counts=places)
        scan(launcher, places, table.n_lines, places, total)
        n = download_count(launcher, total)
        cells = launcher.scratch("cells of candidates", 8 * n)
        keys = launcher.scratch("keys of candidates", 8 * n)
        fields = {"places": places, "cells": cells, "keys": keys}
        launcher.run("list_candidates_of_lines", table.n_lines, table=table.view, **fields)
        self._set(launcher, keys, cells, n, 8, write_count)

    def read(self, launcher: Launcher, table: DeviceTable, first: int, last: int) -> Candidates:
        """Return the candidates of partitions [first, last]."""
        cells, n = self._range(first, last, 8)
        keys = launcher.scratch("keys of candidates", 8 * n)
        counts = launcher.scratch("counts of candidates", 4 * n)
        epochs = launcher.scratch("epochs of candidates", 8 * n)
        fields = {"cells": cells, "n": n, "keys": keys, "counts": counts, "epochs": epochs}
        launcher.run("read_candidate_cells", n, table=table.view, **fields)
        out = Candidates(np.empty(n, np.int64), np.empty(n, np.uint32), np.empty(n, np.int64))
        download(launcher, keys, out.keys)
        download(launcher, counts, out.counts)
        download(launcher, epochs, out.epochs)
        return out


def insert_candidates(launcher: Launcher, table: DeviceTable, data: Candidates) -> None:
    """Give keys, distinct and absent, cells as candidates. The index has room for them."""
    n = len(data)
    keys = launcher.scratch("keys of candidates", 8 * n)
    counts = launcher.scratch("counts of candidates", 4 * n)
    epochs = launcher.scratch("epochs of candidates", 8 * n)
    upload(launcher, keys, data.keys)
    upload(launcher, counts, data.counts)
    upload(launcher, epochs, data.epochs)
    fields = {"keys": keys, "counts": counts, "epochs": epochs, "n": n}
    launcher.run("insert_candidate_cells", TILE * n, table=table.view, **fields)


def _keys_by_file(launcher: Launcher, keys: int, n: int) -> int:
    """Return the address of (n,) keys in the order of files, in scratch memory."""
    order = sorted_by_file(launcher, keys, n)
    in_order = launcher.scratch("keys in order", 8 * n)
    fields = {"from": keys, "order": order, "n": n, "out": in_order}
    launcher.run("put_keys_in_order", n, **fields)
    return in_order


def changes(
    launcher: Launcher, table: DeviceTable, dirty: int, removed_keys: int, n_log: int
) -> Changes:
    """Return the change log: `dirty` is its set of rows, `removed_keys` its (n_log,) keys."""
    selected, _ = select_set(launcher, table, dirty)
    rows = list_set(launcher, selected, 0, table.n_ids)
    keys = _keys_by_file(launcher, keys_of_rows(launcher, table, rows), rows.n)
    upserted = np.empty(rows.n, np.int64)
    download(launcher, keys, upserted)
    return Changes(upserted, deleted_keys(launcher, table, removed_keys, n_log))


def select_set(launcher: Launcher, table: DeviceTable, marks: int) -> tuple[int, int]:
    """Return the live rows that are in the set `marks` (0: all) as a set, and their number.

    It lies in scratch memory. Waits.
    """
    selected = launcher.scratch("selected rows", set_bytes(table.n_ids))
    counts = launcher.scratch("selection counts", 16)
    launcher.queue.fill(counts, 0, 16)
    launcher.run(
        "select_rows_of_set",
        table.n_ids,
        set=table.live,
        other=marks,
        end_row=table.n_ids,
        selected=selected,
        counts=counts,
    )
    return selected, download_count(launcher, counts + 8)


def deleted_keys(
    launcher: Launcher, table: DeviceTable, removed_keys: int, n: int
) -> NDArray[np.int64]:
    """Return the removed keys that have no row now, once each."""
    keys = _keys_by_file(launcher, removed_keys, n)
    is_gone = launcher.scratch("keys that are gone", 4 * n)
    fields = {"keys": keys, "n": n, "is_gone": is_gone}
    launcher.run("mark_gone_keys", TILE * n, table=table.view, **fields)
    removed, gone = np.empty(n, np.int64), np.empty(n, np.uint32)
    download(launcher, keys, removed)
    download(launcher, is_gone, gone)
    return np.compress(gone != 0, removed)


def clear(launcher: Launcher, table: DeviceTable, has_log: bool) -> None:
    """Put the keys of all live rows into the change log, and settle the counts of a clear.

    The host has seen to room in removed_keys, and empties the index, the sets of rows and the
    filter afterwards.
    """
    if has_log:
        rows = list_set(launcher, table.live, 0, table.n_ids)
        fields = {"rows": rows.address, "n": rows.n}
        launcher.run("log_removed_rows", rows.n, table=table.view, **fields)
    launcher.run("settle_clear_of_table", 1, table=table.view)
