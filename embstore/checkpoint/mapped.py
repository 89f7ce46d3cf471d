"""Checkpoints that are opened without being read: files are mapped, blocks verified when touched.

1. The manifest is checked whole, and that all files are there with their sizes; nothing else is
   read before it is asked for.
2. What was opened stays as it is: a later save to the directory does not change it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embstore.checkpoint.blocks import Arrays
from embstore.checkpoint.checks import RowCheck
from embstore.checkpoint.content import CandidateBlock, RowBlock
from embstore.checkpoint.entries import LAYER_KINDS, FileEntry
from embstore.checkpoint.files import CheckpointFiles, Seen
from embstore.checkpoint.layout import Columns
from embstore.checkpoint.lazy import Check, LazyBlocks
from embstore.checkpoint.mapping import FileRange
from embstore.checkpoint.partition import OrderCheck, partition_of
from embstore.checkpoint.paths import Path, path_of
from embstore.checkpoint.reader import LoadedTable, row_block
from embstore.checkpoint.search import Places, find_places
from embstore.checkpoint.source import LAST, SavedTable, State
from embstore.errors import CheckpointError

Keys = NDArray[np.int64]

# The parameters by which a table is read, and not trained.
READ_FIELDS = ("dim", "name", "initializer", "seed", "dtype", "default_row")


class MappedFiles(CheckpointFiles):
    """The files of a checkpoint, those with rows of some tables mapped; none is held open."""

    def __init__(self, path: str, generation: int | None, names: Iterable[str] | None) -> None:
        self._names = None if names is None else list(names)
        self._blocks: dict[tuple[int, str, int], LazyBlocks] = {}
        super().__init__(path, generation)
        self.directory.close()

    def _measure(self) -> None:
        """Map the files of rows and removed keys, look at the sizes of all others."""
        self.tables = self.indices(self._names)
        wanted = set(self.tables.values())
        is_mapped = [f.table in wanted and f.kind in LAYER_KINDS for f in self.manifest.files]
        files = [f for f, mapped in zip(self.manifest.files, is_mapped, strict=True) if mapped]
        for file, mapped in zip(self.manifest.files, is_mapped, strict=True):
            if not mapped:
                self._open(file).close()
        memory = self._room_for(files)
        starts: dict[str, int] = {}
        for i, file in enumerate(files):
            with self._open(file) as opened:
                memory.map(i, opened)
            starts[file.name] = memory.starts[i]
        for index in wanted:
            for layer in range(len(self.manifest.layers(index))):
                for kind in LAYER_KINDS:
                    own = self.manifest.files_of(index, kind, layer)
                    self._blocks[index, kind, layer] = self._lazy(
                        own, memory.bytes, [starts[file.name] for file in own], index, kind, layer
                    )

    def _room_for(self, files: list[FileEntry]) -> FileRange:
        sizes = [file.n_bytes for file in files]
        try:
            return FileRange(sizes)
        except OSError as error:
            raise CheckpointError(
                error.errno,
                f"cannot map {self.directory.path}: no addresses for {sum(sizes)} bytes: "
                f"{error.strerror}",
            ) from error

    def _lazy(
        self,
        files: list[FileEntry],
        memory: NDArray[np.uint8],
        starts: list[int],
        index: int,
        kind: str,
        layer: int,
    ) -> LazyBlocks:
        entry = self.manifest.tables[index]
        own = entry.as_of(self.manifest.layers(index)[layer])
        is_rows = kind == "rows"

        def check_rows(arrays: Arrays, first: int, last: int) -> tuple[str | None, int]:
            check = RowCheck(own)
            return check.fault(row_block(arrays), first, last), check.n_nonfinite

        check: Check = check_rows if is_rows else _check_keys
        n_nonfinite = own.n_nonfinite_rows if is_rows else 0
        columns = entry.columns(kind)
        path_of = self.directory.place  # of this object it would be a cycle, and keep the memory
        return LazyBlocks(memory, files, starts, columns, check, n_nonfinite, path_of)

    def lazy_blocks(self, index: int, kind: str, layer: int) -> LazyBlocks:
        """Return the blocks of rows, or of removed keys, of one layer of a mapped table."""
        return self._blocks[index, kind, layer]

    def blocks_seen(
        self, file: FileEntry, columns: Columns, look: Callable[[Arrays], Seen]
    ) -> Iterator[tuple[int, Arrays, Seen]]:
        """Yield offset and columns of each block of a mapped file, and what `look` sees in it."""
        assert file.table is not None
        for offset, arrays in self._blocks[file.table, file.kind, file.layer].blocks_of(file):
            yield offset, arrays, look(arrays)


def _check_keys(arrays: Arrays, first: int, last: int) -> tuple[str | None, int]:
    return OrderCheck().fault(arrays[0], first, last), 0


class FoundRows(NamedTuple):
    """Rows that were looked for: of which of the keys, values as stored, freq and step.

    keys (m,) int64, places among the keys that were given; values (m, dim); freq (m,) uint32; step
    (m,) int64. What was not asked for is empty.
    """

    keys: Keys
    values: NDArray[Any]
    freq: NDArray[np.uint32]
    step: NDArray[np.int64]


class MappedTable(LoadedTable):
    """A table of a mapped checkpoint: its rows as `LoadedTable` has them, and `find`.

    It has no candidates, filter or pins: who only reads admits and evicts nothing. Any number of
    threads may use it.
    """

    def __init__(self, files: MappedFiles, index: int) -> None:
        super().__init__(files, index)
        layers = range(len(self.layers))
        self._rows = [files.lazy_blocks(index, "rows", layer) for layer in layers]
        self._removed = [files.lazy_blocks(index, "deleted", layer) for layer in layers]
        self.n_candidates = self.bloom_bytes = 0
        self.generation = files.manifest.generation
        self.place = f"{files.directory.path}: table {self.name!r}"

    def _read_pins(self) -> Keys:
        return np.empty(0, np.int64)

    def candidates(self, first: int = 0, last: int = LAST) -> Iterator[CandidateBlock]:
        """Yield nothing."""
        return iter(())

    def bloom(self, first: int = 0, last: int = LAST) -> Iterator[NDArray[np.uint8]]:
        """Yield nothing."""
        return iter(())

    def find(self, keys: Keys, with_meta: bool = False) -> FoundRows:
        """Return the rows of those keys that have one.

        Parameters
        ----------
        keys : (n,) int64
            In any order, with duplicates.
        with_meta
            Give freq and step too.

        Raises
        ------
        CorruptCheckpointError
            If a block that is needed is damaged, each time again.
        """
        found = self._find(keys)
        gathered = [
            np.concatenate(parts) if len(parts) > 1 else parts[0]
            for parts in zip(
                *(_gathered(self._rows[layer], p, with_meta) for layer, p in found), strict=True
            )
        ]
        return FoundRows(np.concatenate([p.keys for _, p in found]), *gathered)

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """Return which keys have a row, (n,) bool."""
        is_there = np.zeros(len(keys), np.bool_)
        for _, places in self._find(keys):
            is_there[places.keys] = True
        return is_there

    def _find(self, keys: Keys) -> list[tuple[int, Places]]:
        """Return layer and places of the keys that have a row; the newest layer decides."""
        partitions = partition_of(keys)
        order = np.lexsort((keys, partitions))
        keys, partitions = keys[order], partitions[order]
        found = []
        for layer in reversed(range(len(self.layers))):
            places = find_places(self._rows[layer], partitions, keys)
            found.append((layer, places._replace(keys=order[places.keys])))
            if layer == 0 or not len(keys):
                break
            is_open = np.ones(len(keys), np.bool_)
            is_open[places.keys] = False
            order, keys, partitions = order[is_open], keys[is_open], partitions[is_open]
            if self._removed[layer].n_blocks:
                is_open = np.ones(len(keys), np.bool_)
                is_open[find_places(self._removed[layer], partitions, keys).keys] = False
                order, keys, partitions = order[is_open], keys[is_open], partitions[is_open]
        return found

    def verify(self) -> None:
        """Read all rows, merged where there are layers; raise CorruptCheckpointError on damage."""
        for _ in self.rows():
            pass

    def blocks_touched(self) -> tuple[int, int, int, int]:
        """Return the blocks, those that were verified, the bytes of these, and those of files."""
        every = [*self._rows, *self._removed]
        return (
            sum(blocks.n_blocks for blocks in every),
            sum(blocks.n_touched for blocks in every),
            sum(blocks.n_bytes_verified for blocks in every),
            sum(blocks.n_bytes for blocks in every),
        )


def _gathered(blocks: LazyBlocks, places: Places, with_meta: bool) -> list[NDArray[Any]]:
    """Return values, freq and step of the rows at some places of a layer."""
    starts = blocks.column_starts(places.blocks)
    names = ("freq", "step") if with_meta else ()
    meta = [_of_column(blocks, name, starts, places.rows) for name in names]
    values = _of_column(blocks, "values", starts, places.rows)
    return [values, *(meta or [np.empty(0, np.uint32), np.empty(0, np.int64)])]


def _of_column(
    blocks: LazyBlocks, name: str, starts: Mapping[str, Keys], rows: Keys
) -> NDArray[Any]:
    """Return what a column holds in some rows, whose blocks' columns begin at `starts`."""
    column = next(column for column in blocks.columns if column.name == name)
    dtype = np.dtype(column.dtype)
    shape = () if column.width is None else (column.width,)
    if not len(rows):
        return np.empty((0, *shape), dtype)
    items: NDArray[Any] = blocks.memory.view(dtype)
    if column.width is not None:
        items = np.lib.stride_tricks.sliding_window_view(items, column.width)
    found: NDArray[Any] = items[(starts[name] + rows * column.row_bytes) // dtype.itemsize]
    return found


class MappedCheckpoint:
    """A checkpoint that is open for reading without having been read.

    Attributes
    ----------
    path : str
    generation : int
    store : dict or None
        The parameters of the Store.
    tables : dict of str to MappedTable
    """

    def __init__(self, files: MappedFiles) -> None:
        self.path = files.directory.path
        self.generation = files.manifest.generation
        self.store = files.manifest.store
        self.tables = {name: MappedTable(files, index) for name, index in files.tables.items()}


def map_tables(
    path: Path, names: Iterable[str] | None = None, generation: int | None = None
) -> MappedCheckpoint:
    """Open a checkpoint without reading it; its memory is given back with the last use of it.

    Parameters
    ----------
    path
        The directory.
    names
        The tables to map; all by default.
    generation
        An older generation that was kept; the newest by default.

    Raises
    ------
    CheckpointError
        If there is no checkpoint, or not that generation, or the disk fails.
    CorruptCheckpointError
        If the manifest is damaged, or a file is missing or has another size.
    CheckpointMismatchError
        If it needs a later version, or has no table of a name.
    """
    return MappedCheckpoint(MappedFiles(path_of(path), generation, names))


class ReadOnlySource:
    """The rows of a mapped table as a source of one that is only read, without slots.

    `check` is called before each block, and may raise to end the reading.
    """

    dropped: str | None = None

    def __init__(self, table: MappedTable, check: Callable[[], object]) -> None:
        self._table = table
        self._check = check
        self.name = table.name
        self.place = table.place
        self.shards: Sequence[SavedTable] = []
        self.dim = table.dim
        self.dtype = table.dtype
        self.slots: tuple[tuple[str, int], ...] = ()
        self.config = read_config(table.config)
        clocks = ("next_evict", "next_freq_halve", "next_bloom_halve", "candidate_epoch")
        self.state: State = {**table.state, **dict.fromkeys((*clocks, "n_bloom_added"), 0)}
        self.pins = table.pins
        self.n_rows = table.n_rows
        self.n_candidates, self.bloom_bytes = table.n_candidates, table.bloom_bytes

    def rows(self, first: int = 0, last: int = LAST) -> Iterator[RowBlock]:
        """Yield the rows of partitions [first, last]."""
        for rows in self._table.rows(first, last):
            self._check()
            none = np.empty((len(rows), 0), np.float32)
            yield RowBlock(rows.keys, rows.values, none, rows.freq, rows.step)

    def candidates(self, first: int = 0, last: int = LAST) -> Iterator[CandidateBlock]:
        """Yield nothing."""
        return self._table.candidates(first, last)

    def bloom(self) -> Iterator[NDArray[np.uint8]]:
        """Yield nothing."""
        return self._table.bloom()

    def check_finite(self, allow_nonfinite: bool) -> None:
        """Raise CheckpointMismatchError if there is NaN or infinity and that is not allowed."""
        self._table.check_finite(allow_nonfinite)


def read_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return those parameters of a table that say what `find` gives."""
    return {name: config[name] for name in READ_FIELDS if name in config}
