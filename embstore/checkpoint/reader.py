"""load_tables: a checkpoint's content, every byte of it checked before it is handed on."""

import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from embstore.checkpoint import commit
from embstore.checkpoint import extra as extras
from embstore.checkpoint import manifest as manifests
from embstore.checkpoint.blocks import (
    Arrays,
    LayoutError,
    check_header,
    decode_block,
    section_seed,
)
from embstore.checkpoint.checks import CandidateCheck, RowCheck
from embstore.checkpoint.content import CandidateBlock, RowBlock, TableSink
from embstore.checkpoint.fsio import Directory, InputFile
from embstore.checkpoint.layout import BLOOM_BLOCK_BYTES, EXTRA_COLUMNS, Columns, Slots
from embstore.checkpoint.manifest import FileEntry, Manifest
from embstore.checkpoint.partition import N_PARTITIONS, OrderCheck, partition_of
from embstore.checkpoint.paths import Path, path_of
from embstore.errors import (
    ArgumentError,
    CheckpointError,
    CheckpointMismatchError,
    CorruptCheckpointError,
)


class CheckpointFiles:
    """An open checkpoint: its directory, its manifest, and its data files as checked blocks."""

    def __init__(self, path: str) -> None:
        self.directory = Directory(path)
        self._being_read: set[InputFile] = set()
        try:
            self.manifest = self._read_manifest()
            for file in self.manifest.files:
                self._open(file).close()
        except BaseException:
            self.directory.close()
            raise

    def _read_manifest(self) -> Manifest:
        manifest = commit.read_manifest(self.directory)
        if manifest is None:
            raise CheckpointError(
                f"{self.directory.path} holds no checkpoint: there is no {manifests.NAME} in it"
            )
        return manifest

    def close(self) -> None:
        """Close the directory, and the files whose readers stopped halfway."""
        try:
            while self._being_read:
                self._being_read.pop().close()
        finally:
            self.directory.close()

    def place(self, file: FileEntry, offset: int) -> str:
        """Return where a section lies, for messages."""
        return f"{self.directory.place(file.name)}, offset {offset}"

    def _open(self, file: FileEntry) -> InputFile:
        """Open a data file, whose size must be exactly what the manifest says."""
        try:
            opened = self.directory.open(file.name)
        except FileNotFoundError:
            raise self._missing(file) from None
        if opened.n_bytes != file.n_bytes:
            opened.close()
            raise CorruptCheckpointError(
                f"{self.directory.place(file.name)} has {opened.n_bytes} bytes; the manifest says "
                f"{file.n_bytes}"
            )
        return opened

    def _missing(self, file: FileEntry) -> CheckpointError:
        if commit.read_manifest(self.directory) != self.manifest:
            return CheckpointError(
                f"{self.directory.path} was replaced by another save while it was read: load it "
                f"again"
            )
        return CorruptCheckpointError(
            f"{self.directory.place(file.name)}, which the manifest names, is missing"
        )

    def blocks(self, file: FileEntry, columns: Columns) -> Iterator[tuple[int, Arrays]]:
        """Yield offset and columns of each block; the file's last section is checked at the end."""
        with self._open(file) as opened:
            self._being_read.add(opened)
            offset, last = 0, len(file.sections) - 1
            for i, section in enumerate(file.sections):
                data = opened.read(offset, section.n_bytes)
                crc = zlib.crc32(data, section_seed(file.name, offset))
                if crc != section.crc:
                    raise CorruptCheckpointError(
                        f"{self.place(file, offset)}: {section.n_bytes} bytes have the checksum "
                        f"{crc:08x}; the manifest says {section.crc:08x}"
                    )
                try:
                    if i == 0:
                        check_header(data, columns)
                    elif i < last:
                        yield offset, decode_block(data, section.n_rows, columns)
                except LayoutError as error:
                    raise CorruptCheckpointError(f"{self.place(file, offset)}: {error}") from None
                offset += section.n_bytes
            self._being_read.discard(opened)

    def bytes_of(self, files: Iterable[FileEntry], columns: Columns) -> Iterator[NDArray[np.uint8]]:
        """Yield the bytes of files of one column of bytes."""
        for file in files:
            for _, (column,) in self.blocks(file, columns):
                yield column.reshape(-1)

    def extra(self) -> dict[str, Any] | None:
        """Return what was saved beside the tables."""
        values, entries = self.manifest.values, self.manifest.arrays
        if values is None:
            return None
        sizes = [extras.n_bytes_of(entry) for entry in entries]
        files = self.manifest.files_of(None, "extra")
        n_bytes = self.manifest.n_rows(None, "extra")
        if sum(sizes) != n_bytes:
            raise CorruptCheckpointError(
                f"{self.directory.place(manifests.NAME)}: the arrays of extra take {sum(sizes)} "
                f"bytes; their file has {n_bytes}"
            )
        chunks = list(extras.rechunk(self.bytes_of(files, EXTRA_COLUMNS), sizes))
        found = dict(values)
        try:
            for entry, chunk in zip(entries, chunks, strict=True):
                found[entry.name] = extras.array_of(entry, chunk)
        except ValueError as error:
            raise CorruptCheckpointError(f"{self.directory.path}: extra: {error}") from None
        return found


class LoadedTable:
    """A table of a checkpoint.

    Attributes
    ----------
    name : str
    config : dict
        The parameters, as they were saved.
    state : dict
        Clocks and totals.
    dim, dtype, slots
        What rows look like.
    n_rows, n_candidates : int
    bloom_bytes : int
        Of each sub-filter; 0 without a filter.
    pins : (n,) int64
        The pinned keys in ascending order.
    """

    def __init__(self, files: CheckpointFiles, index: int) -> None:
        self._files = files
        self._index = index
        self._entry = files.manifest.tables[index]
        self.name = self._entry.name
        self.config = self._entry.config
        self.state = self._entry.state
        self.dim = self._entry.dim
        self.dtype = self._entry.dtype
        self.slots = self._entry.slots
        self.n_rows = files.manifest.n_rows(index, "rows")
        self.n_candidates = files.manifest.n_rows(index, "candidates")
        self.bloom_bytes = self._entry.bloom_blocks * BLOOM_BLOCK_BYTES
        self.pins = self._read_pins()

    def check_fits(self, dim: int, dtype: str, slots: Slots, on_what: str) -> None:
        """Raise CheckpointMismatchError unless rows of such a table are as these."""
        pairs = (("dim", self.dim, dim), ("dtype", self.dtype, dtype), ("slots", self.slots, slots))
        for what, saved, wanted in pairs:
            if saved != wanted:
                raise CheckpointMismatchError(
                    f"{self._files.directory.path}: table {self.name!r} has {what} {saved}; "
                    f"{on_what} has {wanted}"
                )

    def _list(
        self, kind: str, first: int = 0, last: int = N_PARTITIONS - 1
    ) -> Iterator[tuple[FileEntry, int, Arrays]]:
        """Yield file, offset and columns of each block of the files with such partitions."""
        columns = self._entry.columns(kind)
        for file in self._files.manifest.files_of(self._index, kind):
            if file.first <= last and first <= file.last:
                for offset, arrays in self._files.blocks(file, columns):
                    yield file, offset, arrays

    def _raise(self, fault: str | None, file: FileEntry, offset: int) -> None:
        if fault is not None:
            raise CorruptCheckpointError(f"{self._files.place(file, offset)}: {fault}")

    def _read_pins(self) -> NDArray[np.int64]:
        order, parts = OrderCheck(), [np.empty(0, np.int64)]
        for file, offset, (keys,) in self._list("pins"):
            self._raise(order.fault(keys, file.first, file.last), file, offset)
            parts.append(keys)
        return np.sort(np.concatenate(parts))

    def rows(self, first: int = 0, last: int = N_PARTITIONS - 1) -> Iterator[RowBlock]:
        """Yield the rows of partitions [first, last] by (partition, key), about 1 MiB at a time.

        Files without such partitions are not read.
        """
        check = RowCheck(self._entry)
        n_told = self._entry.n_nonfinite_rows
        is_whole = first == 0 and last == N_PARTITIONS - 1
        for file, offset, arrays in self._list("rows", first, last):
            block = _row_block(arrays)
            self._raise(check.fault(block, file.first, file.last), file, offset)
            if check.n_nonfinite > n_told:
                fault = f"{check.n_nonfinite} rows so far have NaN or infinity; {n_told} were saved"
                self._raise(fault, file, offset)
            part = _within(block.keys, first, last)
            if part.start < part.stop:
                yield RowBlock(*(a[part] for a in _arrays_of(block)))
        if is_whole and check.n_nonfinite != n_told:
            raise CorruptCheckpointError(
                f"{self._files.directory.path}: table {self.name!r} has {check.n_nonfinite} rows "
                f"with NaN or infinity; the manifest says {n_told}"
            )

    def candidates(self, first: int = 0, last: int = N_PARTITIONS - 1) -> Iterator[CandidateBlock]:
        """Yield the candidates of partitions [first, last] by (partition, key)."""
        check = CandidateCheck(self._entry)
        for file, offset, arrays in self._list("candidates", first, last):
            block = CandidateBlock(*arrays)
            self._raise(check.fault(block, file.first, file.last), file, offset)
            part = _within(block.keys, first, last)
            if part.start < part.stop:
                yield CandidateBlock(block.keys[part], block.counts[part], block.epochs[part])

    def bloom(self, first: int = 0, last: int = N_PARTITIONS - 1) -> Iterator[NDArray[np.uint8]]:
        """Yield the sub-filters of partitions [first, last]; nothing without a filter."""
        files = self._files.manifest.files_of(self._index, "bloom")
        for file in files:
            if file.first <= last and first <= file.last:
                n_expected = (file.last - file.first + 1) * self._entry.bloom_blocks
                if file.n_rows != n_expected:
                    fault = f"it has {file.n_rows} bloom blocks; its partitions have {n_expected}"
                    self._raise(fault, file, 0)
                blocks = self._files.bytes_of([file], self._entry.columns("bloom"))
                sizes = [self.bloom_bytes] * (file.last - file.first + 1)
                for partition, part in enumerate(extras.rechunk(blocks, sizes), file.first):
                    if first <= partition <= last:
                        yield part

    def restore(self, sink: TableSink, allow_nonfinite: bool = False) -> None:
        """Put everything but the pins into an empty table; after an error, drop that table.

        Raises
        ------
        CorruptCheckpointError
            If a byte is not what was saved.
        CheckpointMismatchError
            If rows have NaN or infinity, and that is not allowed, or if the table's filter has
            another size.
        """
        self.check_finite(allow_nonfinite)
        self._check_filter(len(sink.bloom_read(0)))
        try:
            self._fill(sink)
        except ArgumentError as error:
            raise CorruptCheckpointError(
                f"{self._files.directory.path}: table {self.name!r}: {error}"
            ) from error

    def _fill(self, sink: TableSink) -> None:
        sink.reserve(self.n_rows)
        sink.set_state(dict(self.state))  # for step_base; importing rows changes the rest
        for rows in self.rows():
            sink.import_rows(rows)
        for candidates in self.candidates():
            sink.import_candidates(candidates)
        for partition, data in enumerate(self.bloom()):
            sink.bloom_write(partition, data)
        sink.set_state(dict(self.state))
        sink.reset_changes()

    def check_finite(self, allow_nonfinite: bool) -> None:
        """Raise CheckpointMismatchError if rows have NaN or infinity, and that is not allowed."""
        n_nonfinite = self._entry.n_nonfinite_rows
        is_allowed = allow_nonfinite or self.config.get("on_nonfinite") == "allow"
        if n_nonfinite and not is_allowed:
            raise CheckpointMismatchError(
                f"{self._files.directory.path}: {n_nonfinite} rows of table {self.name!r} have NaN "
                f"or infinity, as they had when they were saved; load with allow_nonfinite=True"
            )

    def _check_filter(self, n_bytes: int) -> None:
        """Raise CheckpointMismatchError unless sub-filters of the table to fill have our size."""
        if self.bloom_bytes != n_bytes:
            raise CheckpointMismatchError(
                f"{self._files.directory.path}: table {self.name!r} was saved with bloom "
                f"sub-filters of {self.bloom_bytes} bytes; its admission policy makes them of "
                f"{n_bytes} bytes"
            )


def _within(keys: NDArray[np.int64], first: int, last: int) -> slice:
    """Return where in the sorted keys of a block those of partitions [first, last] lie."""
    partitions = partition_of(keys)
    begin, end = np.searchsorted(partitions, [first, last + 1]).tolist()
    return slice(begin, end)


def _arrays_of(block: RowBlock) -> tuple[NDArray[Any], ...]:
    return block.keys, block.values, block.slots, block.freq, block.step


def _row_block(arrays: Arrays) -> RowBlock:
    """Return the rows of a block; a table without slots has no column for them."""
    if len(arrays) == 5:
        return RowBlock(*arrays)
    keys, values, freq, step = arrays
    return RowBlock(keys, values, np.empty((len(keys), 0), np.float32), freq, step)


class LoadedCheckpoint:
    """A checkpoint that is open for loading; a context manager.

    Attributes
    ----------
    path : str
    generation : int
        How many saves to this directory came before it, plus one.
    step : int
        The greatest step of any table.
    tables : dict of str to LoadedTable
    store : dict or None
        The parameters of the Store.
    extra : dict or None
        What the user saved beside the tables.
    """

    def __init__(self, files: CheckpointFiles, names: Iterable[str] | None) -> None:
        manifest = files.manifest
        self._files = files
        self.path = files.directory.path
        self.generation = manifest.generation
        self.step = manifest.step
        self.store = manifest.store
        places = {table.name: i for i, table in enumerate(manifest.tables)}
        wanted = list(places) if names is None else list(names)
        for name in wanted:
            if name not in places:
                raise CheckpointMismatchError(
                    f"{self.path} has no table {name!r}; it has {sorted(places)}"
                )
        self.extra = files.extra()
        self.tables = {name: LoadedTable(files, places[name]) for name in wanted}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def manifest(self) -> Manifest:
        """What the checkpoint holds, file by file."""
        return self._files.manifest

    def close(self) -> None:
        """Close the checkpoint; tables that were restored stay."""
        self._files.close()


def load_tables(
    path: Path, names: Iterable[str] | None = None, verify: str = "full"
) -> LoadedCheckpoint:
    """Open a checkpoint; its tables are read by `LoadedTable.restore`.

    The manifest, the sizes of all files, pins and extra are checked here. `restore` checks each
    block before it hands it on, so that a table is whole if restore returns.

    Parameters
    ----------
    path
        The directory.
    names
        The tables to load; all by default.
    verify
        "full": all that is loaded is read and checked.

    Raises
    ------
    CheckpointError
        If there is no checkpoint, or the disk fails.
    CorruptCheckpointError
        If a byte is not what was saved; the message names file and offset.
    CheckpointMismatchError
        If it needs a later version, or has no table of a name.
    """
    if verify != "full":
        raise ArgumentError(
            f'verify={verify!r} is not offered: verify must be "full" (reading blocks lazily will '
            f"come with serving)"
        )
    files = CheckpointFiles(path_of(path))
    try:
        return LoadedCheckpoint(files, names)
    except BaseException:
        files.close()
        raise
