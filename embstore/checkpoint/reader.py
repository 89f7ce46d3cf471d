"""load_tables: a checkpoint's content, every byte of it checked before it is handed on."""

from collections.abc import Iterable, Iterator
from typing import NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from embstore.checkpoint import commit
from embstore.checkpoint import extra as extras
from embstore.checkpoint.blocks import Arrays
from embstore.checkpoint.checks import (
    STEP_SPAN,
    CandidateCheck,
    RowCheck,
    RowsSeen,
    look_at_rows,
)
from embstore.checkpoint.content import CandidateBlock, RowBlock
from embstore.checkpoint.entries import FileEntry, Layer, TableEntry
from embstore.checkpoint.files import CheckpointFiles
from embstore.checkpoint.fsio import Directory
from embstore.checkpoint.layout import BLOOM_BLOCK_BYTES
from embstore.checkpoint.manifest import Manifest
from embstore.checkpoint.merge import MergeError, merged
from embstore.checkpoint.partition import N_PARTITIONS, OrderCheck, partition_slice
from embstore.checkpoint.paths import Path, path_of
from embstore.checkpoint.signing import checked_key
from embstore.errors import ArgumentError, CheckpointMismatchError, CorruptCheckpointError


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
    layers : tuple of Layer
        What each save of the chain wrote, the full one first; one without deltas.
    n_deltas : int
        Layers on top of the first.
    bloom_bytes : int
        Of each sub-filter; 0 without a filter.
    digest : str
        The SHA-256 of the checkpoint's manifest, in hexadecimal.
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
        self.n_rows = self._entry.n_rows
        self.layers: tuple[Layer, ...] = files.manifest.layers(index)
        self.n_deltas = len(self.layers) - 1
        self.n_candidates = files.manifest.n_rows(index, "candidates")
        self.bloom_bytes = self._entry.bloom_blocks * BLOOM_BLOCK_BYTES
        self.digest = files.manifest.digest
        self.pins = self._read_pins()

    def _list(
        self, kind: str, layer: int = 0, first: int = 0, last: int = N_PARTITIONS - 1
    ) -> Iterator[tuple[FileEntry, int, Arrays]]:
        """Yield file, offset and columns of each block of files that may hold the partitions."""
        columns = self._entry.columns(kind)
        for file in self._files.manifest.files_of(self._index, kind, layer):
            if file.last >= first and file.first <= last:
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

        Rows of a chain are merged as they are read, in memory for a block or two of each layer;
        only files that may hold the partitions are opened.
        """
        _check_partitions(first, last)
        if not self.n_deltas:
            return self._layer_rows(0, first, last)
        return self._merged_rows(first, last)

    def _layer_rows(self, layer: int, first: int, last: int) -> Iterator[RowBlock]:
        """Yield the rows of one layer."""
        entry = self._entry.as_of(self.layers[layer])
        check = RowCheck(entry)
        n_told = self.layers[layer].n_nonfinite_rows
        for file, offset, block, seen in self._blocks_of_rows(entry, layer, first, last):
            self._raise(check.fault_seen(seen), file, offset)
            if check.n_nonfinite > n_told:
                fault = f"{check.n_nonfinite} rows so far have NaN or infinity; {n_told} were saved"
                self._raise(fault, file, offset)
            part = partition_slice(block.keys, first, last)
            if part.start < part.stop:
                yield block[part]
        is_whole = (first, last) == (0, N_PARTITIONS - 1)
        if is_whole and check.n_nonfinite != n_told:
            self._raise_of_table(
                f"has {check.n_nonfinite} rows with NaN or infinity in layer {layer}; the manifest "
                f"says {n_told}"
            )

    def _blocks_of_rows(
        self, entry: TableEntry, layer: int, first: int, last: int
    ) -> Iterator[tuple[FileEntry, int, RowBlock, RowsSeen]]:
        """Yield file, offset and rows of each block, and what was seen when it was read."""
        columns = entry.columns("rows")
        for file in self._files.manifest.files_of(self._index, "rows", layer):
            if file.last < first or file.first > last:
                continue

            def look(arrays: Arrays, file: FileEntry = file) -> RowsSeen:
                return look_at_rows(entry, row_block(arrays), file.first, file.last)

            for offset, arrays, seen in self._files.blocks_seen(file, columns, look):
                yield file, offset, row_block(arrays), seen

    def _deleted(self, layer: int, first: int, last: int) -> Iterator[NDArray[np.int64]]:
        """Yield the keys that a layer removes."""
        order = OrderCheck()
        for file, offset, (keys,) in self._list("deleted", layer, first, last):
            self._raise(order.fault(keys, file.first, file.last), file, offset)
            part = partition_slice(keys, first, last)
            if part.start < part.stop:
                yield keys[part]

    def _merged_rows(self, first: int, last: int) -> Iterator[RowBlock]:
        """Yield the rows that all layers leave."""
        layers = range(len(self.layers))
        rows = [self._layer_rows(layer, first, last) for layer in layers]
        deleted = [self._deleted(layer, first, last) for layer in layers]
        low = int(self.state["step_base"])
        high = min(int(self.state["step"]), low + STEP_SPAN - 1)
        n_merged = 0
        try:
            for block in merged(rows, deleted):
                n_merged += len(block)
                if n_merged > self.n_rows:
                    break
                is_off = (block.step < low) | (block.step > high)
                if is_off.any():
                    key, step = block.keys[is_off][0], block.step[is_off][0]
                    self._raise_of_table(f"has key {key} of step {step}, not of {low}..{high}")
                yield block
        except MergeError as error:
            self._raise_of_table(str(error))
        is_whole = (first, last) == (0, N_PARTITIONS - 1)
        if n_merged > self.n_rows or (is_whole and n_merged < self.n_rows):
            what = f"{n_merged} rows" if is_whole else "more rows"
            self._raise_of_table(f"has {what} after merging; the manifest says {self.n_rows}")

    def _raise_of_table(self, fault: str) -> NoReturn:
        raise CorruptCheckpointError(f"{self._files.directory.path}: table {self.name!r} {fault}")

    def candidates(self, first: int = 0, last: int = N_PARTITIONS - 1) -> Iterator[CandidateBlock]:
        """Yield the candidates of partitions [first, last] by (partition, key)."""
        _check_partitions(first, last)
        return self._candidates(first, last)

    def _candidates(self, first: int, last: int) -> Iterator[CandidateBlock]:
        check = CandidateCheck(self._entry)
        for file, offset, arrays in self._list("candidates", 0, first, last):
            block = CandidateBlock(*arrays)
            self._raise(check.fault(block, file.first, file.last), file, offset)
            part = partition_slice(block.keys, first, last)
            if part.start < part.stop:
                yield block[part]

    def bloom(self, first: int = 0, last: int = N_PARTITIONS - 1) -> Iterator[NDArray[np.uint8]]:
        """Yield the sub-filters of partitions [first, last]; nothing without a filter."""
        _check_partitions(first, last)
        return self._bloom(first, last)

    def _bloom(self, first: int, last: int) -> Iterator[NDArray[np.uint8]]:
        for file in self._files.manifest.files_of(self._index, "bloom"):
            if file.last < first or last < file.first:
                continue
            n_partitions = file.last - file.first + 1
            if file.n_rows != n_partitions * self._entry.bloom_blocks:
                self._raise(f"it holds {file.n_rows} blocks for {n_partitions} partitions", file, 0)
            blocks = self._files.bytes_of([file], self._entry.columns("bloom"))
            parts = extras.rechunk(blocks, [self.bloom_bytes] * n_partitions)
            for partition, part in enumerate(parts, file.first):
                if first <= partition <= last:
                    yield part

    def check_finite(self, allow_nonfinite: bool) -> None:
        """Raise CheckpointMismatchError if rows have NaN or infinity, and that is not allowed."""
        n_nonfinite = self._entry.n_nonfinite_rows
        is_allowed = allow_nonfinite or self.config.get("on_nonfinite") == "allow"
        if n_nonfinite and not is_allowed:
            up_to = "up to " if self.n_deltas else ""  # a later layer may have replaced them
            raise CheckpointMismatchError(
                f"{self._files.directory.path}: {up_to}{n_nonfinite} rows of table {self.name!r} "
                f"have NaN or infinity, as they had when they were saved; load with "
                f"allow_nonfinite=True"
            )


def _check_partitions(first: int, last: int) -> None:
    if not 0 <= first <= last < N_PARTITIONS:
        raise ArgumentError(f"partitions must be from 0 to 255, got [{first}, {last}]")


def row_block(arrays: Arrays) -> RowBlock:
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
    digest : str
        The SHA-256 of its manifest, in hexadecimal: what deltas to it are written relative to.
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
        self.digest = manifest.digest
        self.step = manifest.step
        self.store = manifest.store
        indices = files.indices(names)
        self.extra = files.extra()
        self.tables = {name: LoadedTable(files, index) for name, index in indices.items()}

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
    path: Path,
    names: Iterable[str] | None = None,
    verify: str = "full",
    generation: int | None = None,
    hmac_key: bytes | None = None,
    n_threads: int = 1,
) -> LoadedCheckpoint:
    """Open a checkpoint; its tables are read block by block.

    The manifest, the sizes of all files, pins and extra are checked here, and each block before it
    is handed on.

    Parameters
    ----------
    path
        The directory.
    names
        The tables to load; all by default.
    verify
        "full": all that is loaded is read and checked.
    generation
        An older generation that was kept; the newest by default.
    hmac_key
        The key that the checkpoint must be signed with; by default signatures are passed over.
    n_threads
        Threads that read and check blocks ahead of those that are handed on; 1: none.

    Raises
    ------
    CheckpointError
        If there is no checkpoint, or not that generation, or the disk fails.
    CorruptCheckpointError
        If a byte is not what was saved; the message names file and offset. If there is a key, and
        the checkpoint is not signed with it.
    CheckpointMismatchError
        If it needs a later version, or has no table of a name.
    """
    if verify != "full":
        raise ArgumentError(
            f'verify={verify!r} is not offered: verify must be "full" (blocks are read lazily by '
            f"embstore.serving.open)"
        )
    files = CheckpointFiles(path_of(path), generation, checked_key(hmac_key), n_threads)
    try:
        return LoadedCheckpoint(files, names)
    except BaseException:
        files.close()
        raise


def generations(path: Path) -> list[int]:
    """Return the generations that can be loaded from a directory, ascending; the last is newest.

    Raises
    ------
    CheckpointError
        If the directory cannot be read.
    """
    with Directory(path_of(path)) as directory:
        return commit.generations_in(directory)
