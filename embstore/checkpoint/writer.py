"""The data files of a save: whole tables, or what changed of them since the layer before."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Self, cast

import numpy as np
from numpy.typing import NDArray

from embstore.checkpoint import commit, fields
from embstore.checkpoint import extra as extras
from embstore.checkpoint.blocks import Arrays, BlockWriter
from embstore.checkpoint.checks import CandidateCheck, RowCheck
from embstore.checkpoint.content import CandidateBlock, DeltaView, RowBlock, TableView
from embstore.checkpoint.entries import LAYER_KINDS, FileEntry, Layer, TableEntry
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
from embstore.checkpoint.manifest import Manifest
from embstore.checkpoint.partition import (
    N_PARTITIONS,
    OrderCheck,
    in_file_order,
    partition_of,
    partition_slice,
)
from embstore.checkpoint.signing import sha256_of
from embstore.errors import (
    ArgumentTypeError,
    CheckpointMismatchError,
    InternalError,
)

Export = Callable[[Run], Arrays]
Views = Mapping[str, TableView]


class Beside(NamedTuple):
    """What is saved beside the tables, checked."""

    values: dict[str, Any] | None
    arrays: dict[str, NDArray[Any]]
    store: dict[str, Any] | None

    @classmethod
    def of(cls, extra: object, store: Mapping[str, Any] | None) -> Self:
        """Return what a caller gives; raise ArgumentTypeError if it cannot be saved."""
        own = None if store is None else extras.json_value(dict(store), "store")
        return cls(*extras.split(extra), own)


def table_entry(name: object, view: TableView) -> TableEntry:
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


def _check_fits_base(entries: list[TableEntry], base: Manifest, place: str) -> None:
    """Raise CheckpointMismatchError unless tables are those that a delta adds to."""
    shapes, saved = (
        [(table.name, table.dim, table.dtype, table.slots) for table in tables]
        for tables in (entries, base.tables)
    )
    if shapes != saved:
        raise CheckpointMismatchError(
            f"{place}: a delta must be of the tables (name, dim, dtype, slots) {saved}; got "
            f"{shapes}; nothing was saved"
        )


def _with_layer(entry: TableEntry, layer: Layer, view: TableView) -> TableEntry:
    """Return the entry of a table with one more layer."""
    layers = (*entry.layers, layer)
    n_live = cast(DeltaView, view).n_live
    least, most = layer.n_rows, sum(layer.n_rows for layer in layers)
    if not least <= n_live <= most:
        raise InternalError(f"a view of changes has {n_live} live rows, not {least} to {most}")
    return replace(
        entry,
        n_rows=n_live,
        n_nonfinite_rows=sum(layer.n_nonfinite_rows for layer in layers),
        layers=layers,
    )


class DataWriter:
    """Writes the data files of one save; of a delta if there is a base."""

    def __init__(
        self, directory: Directory, generation: int, base: Manifest | None, is_signed: bool
    ) -> None:
        self.generation = generation
        self.is_delta = base is not None
        self.n_bytes = 0
        self._directory = directory
        self._base = base
        self._is_signed = is_signed

    def write(self, views: Views, beside: Beside) -> Manifest:
        """Write all data files and return the manifest that names them."""
        entries = [table_entry(name, view) for name, view in views.items()]
        if self._base is not None:
            _check_fits_base(entries, self._base, self._directory.path)
        files: list[FileEntry] = []
        for index, view in enumerate(views.values()):
            entries[index], own = self._write_table(index, entries[index], view)
            files += own
        files += self._write_extra(beside.arrays)
        arrays = tuple(extras.entry_of(name, array) for name, array in beside.arrays.items())
        return Manifest(
            self.generation, tuple(entries), tuple(files), beside.store, beside.values, arrays
        )

    def _write_table(
        self, index: int, entry: TableEntry, view: TableView
    ) -> tuple[TableEntry, list[FileEntry]]:
        """Write the files of a table; return them in order, and its entry with all counts.

        Candidates and filter come first, since a snapshot holds them in memory until then.
        """
        if self._base is not None:
            entry = replace(entry, layers=self._base.layers(index))
        rest = [*self._write_candidates(index, entry, view), *self._write_bloom(index, entry, view)]
        rows = _RowSource(entry, view, _deleted_of(view, self.is_delta))
        deleted = self._write_deleted(index, entry, rows.deleted)
        written = self._write_rows(index, entry, view, rows)
        pins = in_file_order(np.ascontiguousarray(view.pins, np.int64))
        all_pins = [Run(0, N_PARTITIONS - 1, len(pins))]
        rest += self._write_keyed(index, entry, "pins", all_pins, lambda run: [pins])
        n_rows = sum(file.n_rows for file in written)
        if self._base is None:
            entry = replace(entry, n_rows=n_rows, n_nonfinite_rows=rows.n_nonfinite)
            return entry, [*written, *rest]
        layer = Layer(
            generation=self.generation,
            step=int(entry.state["step"]),
            step_base=int(entry.state["step_base"]),
            n_rows=n_rows,
            n_deleted=len(rows.deleted),
            n_nonfinite_rows=rows.n_nonfinite,
        )
        below = [f for f in self._base.files if f.table == index and f.kind in LAYER_KINDS]
        return _with_layer(entry, layer, view), [*below, *deleted, *written, *rest]

    def _write_rows(
        self, index: int, entry: TableEntry, view: TableView, rows: "_RowSource"
    ) -> list[FileEntry]:
        columns = entry.columns("rows")
        runs = plan_runs(view.partition_counts(False), rows_of(BLOCK_BYTES, columns))
        return [
            file
            for part in plan_files(runs, rows_of(FILE_BYTES, columns))
            for file in self._write_keyed(index, entry, "rows", part, rows.export)
        ]

    def _write_deleted(
        self, index: int, entry: TableEntry, keys: NDArray[np.int64]
    ) -> list[FileEntry]:
        columns = entry.columns("deleted")
        counts = np.bincount(partition_of(keys), minlength=N_PARTITIONS)
        runs = plan_runs(counts, rows_of(BLOCK_BYTES, columns))
        return [
            file
            for part in plan_files(runs, rows_of(FILE_BYTES, columns))
            for file in self._write_keyed(
                index,
                entry,
                "deleted",
                part,
                lambda run: [keys[partition_slice(keys, run.first, run.last)]],
            )
        ]

    def _write_candidates(self, index: int, entry: TableEntry, view: TableView) -> list[FileEntry]:
        check = CandidateCheck(entry)

        def export(run: Run) -> Arrays:
            found = view.export_candidates(run.first, run.last)
            block = CandidateBlock(found.keys, found.counts, found.epochs)
            _expect(check.fault(block, run.first, run.last), run.n_rows, len(block))
            return [block.keys, block.counts, block.epochs]

        runs = plan_runs(
            view.partition_counts(True), rows_of(FILE_BYTES, entry.columns("candidates"))
        )
        return [
            file
            for run in runs
            for file in self._write_keyed(index, entry, "candidates", [run], export)
        ]

    def _write_bloom(self, index: int, entry: TableEntry, view: TableView) -> list[FileEntry]:
        columns = entry.columns("bloom")

        def export(run: Run) -> Arrays:
            parts = [view.bloom_read(p) for p in range(run.first, run.last + 1)]
            return [np.concatenate(parts).reshape(-1, BLOOM_BLOCK_BYTES)]

        counts = np.full(N_PARTITIONS, entry.bloom_blocks)
        runs = plan_runs(counts, rows_of(BLOCK_BYTES, columns))
        return [
            file
            for part in plan_files(runs, rows_of(FILE_BYTES, columns))
            for file in self._write_keyed(index, entry, "bloom", part, export)
        ]

    def _write_keyed(
        self, index: int, entry: TableEntry, kind: str, runs: list[Run], export: Export
    ) -> list[FileEntry]:
        """Write the file of some runs; return it, or nothing if they have no rows."""
        if not any(run.n_rows for run in runs):
            return []
        columns = entry.columns(kind)
        first, last = runs[0].first, runs[-1].last
        name = f"t{index:03d}-{kind}-{first:02x}-{last:02x}"
        layer = len(entry.layers) if kind in LAYER_KINDS else 0
        blocks = _blocks_of(runs, export, rows_of(BLOCK_BYTES, columns))
        file = FileEntry(name, kind, index, first, last, (), layer)
        return [self._write_file(file, columns, blocks)]

    def _write_extra(self, arrays: Mapping[str, NDArray[Any]]) -> list[FileEntry]:
        """Write the bytes of all arrays into one file, if there are any bytes."""
        if not any(array.size for array in arrays.values()):
            return []
        blocks = (
            [data[part]]
            for data in map(extras.bytes_of, arrays.values())
            for part in plan_blocks(len(data), BLOCK_BYTES)
        )
        file = FileEntry("extra", "extra", None, 0, N_PARTITIONS - 1, ())
        return [self._write_file(file, EXTRA_COLUMNS, blocks)]

    def _write_file(
        self, entry: FileEntry, columns: Columns, blocks: Iterator[Arrays]
    ) -> FileEntry:
        """Write a data file and make it durable; return it with its name and sections."""
        name = commit.data_name(self.generation, entry.name)
        with self._directory.create(name) as file:
            writer = BlockWriter(name, columns, file)
            for block in blocks:
                writer.add(block)
            writer.finish()
            file.sync()
        digest = self._sha256(name) if self._is_signed else None
        written = replace(entry, name=name, sections=tuple(writer.sections), sha256=digest)
        self.n_bytes += written.n_bytes
        return written

    def _sha256(self, name: str) -> str:
        with self._directory.open(name) as file:
            return sha256_of(file)


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


def _deleted_of(view: TableView, is_delta: bool) -> NDArray[np.int64]:
    """Return the keys that a view says were removed, in the order of files; none if it is whole."""
    deleted: NDArray[np.int64] | None = getattr(view, "deleted", None)
    if is_delta != (deleted is not None):
        what = "a whole table" if is_delta else "changes"
        raise InternalError(f"a view of {what} was given for a {'delta' if is_delta else 'full'}")
    if deleted is None:
        return np.empty(0, np.int64)
    keys = in_file_order(np.ascontiguousarray(deleted, np.int64))
    _expect(OrderCheck().fault(keys, 0, N_PARTITIONS - 1), len(keys), len(keys))
    return keys


class _RowSource:
    """Rows from the engine, checked as they will be when they are loaded."""

    def __init__(self, entry: TableEntry, view: TableView, deleted: NDArray[np.int64]) -> None:
        self.deleted = deleted
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
        fault = self._check.fault(block, run.first, run.last) or self._deleted_fault(block, run)
        _expect(fault, run.n_rows, len(block))
        arrays = [block.keys, block.values, block.slots, block.freq, block.step]
        return arrays if len(self._columns) == len(arrays) else arrays[:2] + arrays[3:]

    def _deleted_fault(self, block: RowBlock, run: Run) -> str | None:
        deleted = self.deleted[partition_slice(self.deleted, run.first, run.last)]
        if not len(deleted):
            return None
        both = block.keys[np.isin(block.keys, deleted, assume_unique=True)]
        return f"key {both[0]} was both written and removed" if len(both) else None
