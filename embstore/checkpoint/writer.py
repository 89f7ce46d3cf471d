"""save_tables: a checkpoint of several tables, as of one moment."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore.checkpoint import commit, fields
from embstore.checkpoint import extra as extras
from embstore.checkpoint.blocks import Arrays, BlockWriter
from embstore.checkpoint.checks import CandidateCheck, RowCheck
from embstore.checkpoint.content import CandidateBlock, RowBlock, TableView
from embstore.checkpoint.fsio import Directory
from embstore.checkpoint.layout import (
    BLOCK_BYTES,
    BLOOM_BLOCK_BYTES,
    EXTRA_COLUMNS,
    FILE_BYTES,
    Columns,
    Run,
    plan_blocks,
    plan_files,
    plan_runs,
    rows_of,
)
from embstore.checkpoint.manifest import FileEntry, Manifest, TableEntry
from embstore.checkpoint.partition import N_PARTITIONS, in_file_order
from embstore.checkpoint.paths import Path, path_of
from embstore.errors import (
    ArgumentTypeError,
    CheckpointError,
    EmbstoreWarning,
    InternalError,
)

Export = Callable[[Run], Arrays]


def save_tables(
    path: Path,
    tables: Mapping[str, TableView],
    extra: Any = None,
    store: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint of `tables` into a directory, replacing the one that is there at the end.

    The same content gives the same bytes, whatever the engine, its threads and its hash_seed.

    Parameters
    ----------
    path
        A directory, made if need be.
    tables
        By name; nobody writes to them until this returns.
    extra
        By name, JSON values (None, bools, ints, finite floats, strings, lists, dicts with string
        keys) and numpy arrays of bools, ints and floats.
    store
        The parameters of the Store, as JSON; None for a table alone.

    Raises
    ------
    ArgumentTypeError
        If `extra` holds something else; nothing was written.
    CheckpointError
        If another save to the directory is running, or the disk fails. The checkpoint before
        remains; ``errno`` tells what the system said.
    CorruptCheckpointError, CheckpointMismatchError
        If the directory's manifest is damaged, foreign, or of a later version: it is left alone.

    Warns
    -----
    EmbstoreWarning
        If rows have NaN or infinity; they are saved.
    """
    values, arrays = extras.split(extra)
    own = None if store is None else extras.json_value(dict(store), "store")
    entries = [_table_entry(name, view) for name, view in tables.items()]
    with Directory(path_of(path), create=True) as directory, directory.locked():
        before = commit.manifest_to_replace(directory)
        commit.remove_unlisted(directory, before)
        save = _Save(directory, 1 if before is None else before.generation + 1)
        try:
            entries = [
                save.write_table(i, entry, view)
                for i, (entry, view) in enumerate(zip(entries, tables.values(), strict=True))
            ]
            save.write_extra(arrays)
            made = tuple(extras.entry_of(name, array) for name, array in arrays.items())
            manifest = Manifest(
                save.generation, tuple(entries), tuple(save.files), own, values, made
            )
            commit.prepare(directory, manifest)
        except BaseException:
            save.undo(before)
            raise
        commit.publish(directory)
        commit.remove_replaced(directory, manifest)
    _warn_of_nonfinite(entries)


def _table_entry(name: object, view: TableView) -> TableEntry:
    """Return what the manifest says of a table before its rows are counted."""
    if not isinstance(name, str):
        raise ArgumentTypeError(f"the name of a table must be a string, got {name!r}")
    bloom_bytes = len(view.bloom_read(0))
    if bloom_bytes % BLOOM_BLOCK_BYTES:
        raise InternalError(f"table {name!r}: a sub-filter has {bloom_bytes} bytes")
    return TableEntry(
        name=extras.json_value(name, "the name of a table"),
        dim=view.dim,
        dtype=view.dtype,
        slots=tuple(view.slots),
        config=extras.json_value(dict(view.config), f"the config of table {name!r}"),
        state=fields.state(fields.state_member(view.get_state())),
        bloom_blocks=bloom_bytes // BLOOM_BLOCK_BYTES,
    )


def _warn_of_nonfinite(entries: Iterable[TableEntry]) -> None:
    for entry in entries:
        if entry.n_nonfinite_rows:
            warnings.warn(
                f"table {entry.name!r}: {entry.n_nonfinite_rows} of the saved rows have NaN or "
                f"infinity; loading them must be allowed expressly",
                EmbstoreWarning,
                stacklevel=4,
            )


class _Save:
    """The data files of one save."""

    def __init__(self, directory: Directory, generation: int) -> None:
        self.generation = generation
        self.files: list[FileEntry] = []
        self._directory = directory

    def undo(self, before: Manifest | None) -> None:
        """Remove what was written; what remains is removed by the next save."""
        with suppress(CheckpointError):
            commit.remove_unlisted(self._directory, before)

    def write_table(self, index: int, entry: TableEntry, view: TableView) -> TableEntry:
        """Write the files of a table; return its entry with the rows that are not finite."""
        rows = _RowSource(entry, view)
        columns = entry.columns("rows")
        runs = plan_runs(view.partition_counts(False), rows_of(BLOCK_BYTES, columns))
        for file in plan_files(runs, rows_of(FILE_BYTES, columns)):
            self._write_keyed(index, "rows", columns, file, rows.export)
        self._write_candidates(index, entry, view)
        self._write_bloom(index, entry, view)
        pins = in_file_order(np.ascontiguousarray(view.pins, np.int64))
        all_pins = [Run(0, N_PARTITIONS - 1, len(pins))]
        self._write_keyed(index, "pins", entry.columns("pins"), all_pins, lambda run: [pins])
        return replace(entry, n_nonfinite_rows=rows.n_nonfinite)

    def _write_candidates(self, index: int, entry: TableEntry, view: TableView) -> None:
        columns = entry.columns("candidates")
        check = CandidateCheck(entry)

        def export(run: Run) -> Arrays:
            found = view.export_candidates(run.first, run.last)
            block = CandidateBlock(found.keys, found.counts, found.epochs)
            _expect(check.fault(block, run.first, run.last), run.n_rows, len(block))
            return [block.keys, block.counts, block.epochs]

        for run in plan_runs(view.partition_counts(True), rows_of(FILE_BYTES, columns)):
            self._write_keyed(index, "candidates", columns, [run], export)

    def _write_bloom(self, index: int, entry: TableEntry, view: TableView) -> None:
        columns = entry.columns("bloom")

        def export(run: Run) -> Arrays:
            parts = [view.bloom_read(p) for p in range(run.first, run.last + 1)]
            return [np.concatenate(parts).reshape(-1, BLOOM_BLOCK_BYTES)]

        counts = np.full(N_PARTITIONS, entry.bloom_blocks)
        runs = plan_runs(counts, rows_of(BLOCK_BYTES, columns))
        for file in plan_files(runs, rows_of(FILE_BYTES, columns)):
            self._write_keyed(index, "bloom", columns, file, export)

    def _write_keyed(
        self, index: int, kind: str, columns: Columns, runs: list[Run], export: Export
    ) -> None:
        """Write the file of some runs, if they have any rows."""
        if not any(run.n_rows for run in runs):
            return
        first, last = runs[0].first, runs[-1].last
        name = f"t{index:03d}-{kind}-{first:02x}-{last:02x}"
        blocks = _blocks_of(runs, export, rows_of(BLOCK_BYTES, columns))
        self._write_file(FileEntry(name, kind, index, first, last, ()), columns, blocks)

    def write_extra(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write the bytes of all arrays into one file, if there are any bytes."""
        entry = FileEntry("extra", "extra", None, 0, N_PARTITIONS - 1, ())
        blocks = (
            [data[part]]
            for data in map(extras.bytes_of, arrays.values())
            for part in plan_blocks(len(data), BLOCK_BYTES)
        )
        if any(array.size for array in arrays.values()):
            self._write_file(entry, EXTRA_COLUMNS, blocks)

    def _write_file(self, entry: FileEntry, columns: Columns, blocks: Iterator[Arrays]) -> None:
        """Write a data file and make it durable."""
        name = commit.data_name(self.generation, entry.name)
        with self._directory.create(name) as file:
            writer = BlockWriter(name, columns, file)
            for block in blocks:
                writer.add(block)
            writer.finish()
            file.sync()
        self.files.append(replace(entry, name=name, sections=tuple(writer.sections)))


def _blocks_of(runs: list[Run], export: Export, max_rows: int) -> Iterator[Arrays]:
    """Yield the blocks of a file; whole partitions, or part of one, in each."""
    for run in runs:
        if run.n_rows:
            arrays = export(run)
            for part in plan_blocks(run.n_rows, max_rows):
                yield [array[part] for array in arrays]


def _expect(fault: str | None, n_expected: int, n_found: int) -> None:
    """Raise if an engine exports what could not be loaded again."""
    if n_found != n_expected:
        fault = f"it has {n_found} entries where {n_expected} were counted"
    if fault is not None:
        raise InternalError(f"the engine's export is wrong: {fault}")


class _RowSource:
    """Rows from the engine, checked as they will be when they are loaded."""

    def __init__(self, entry: TableEntry, view: TableView) -> None:
        self._view = view
        self._columns = entry.columns("rows")
        self._check = RowCheck(entry)

    @property
    def n_nonfinite(self) -> int:
        """Rows with NaN or infinity so far."""
        return self._check.n_nonfinite

    def export(self, run: Run) -> Arrays:
        """Return the columns of a run."""
        rows = self._view.export_rows(run.first, run.last)
        block = RowBlock(rows.keys, rows.values, rows.slots, rows.freq, rows.step)
        _expect(self._check.fault(block, run.first, run.last), run.n_rows, len(block))
        arrays = [block.keys, block.values, block.slots, block.freq, block.step]
        return arrays if len(self._columns) == len(arrays) else arrays[:2] + arrays[3:]
