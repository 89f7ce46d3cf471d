"""compact: a chain of deltas written anew as one full checkpoint, as it is read."""

import time
from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray

from embstore.checkpoint import commit
from embstore.checkpoint.content import (
    Block,
    CandidateBlock,
    RowBlock,
    TableView,
    joined,
)
from embstore.checkpoint.fsio import Directory
from embstore.checkpoint.layout import Slots
from embstore.checkpoint.manifest import Manifest
from embstore.checkpoint.partition import N_PARTITIONS, partition_of, partition_slice
from embstore.checkpoint.paths import Path, path_of
from embstore.checkpoint.reader import LoadedCheckpoint, LoadedTable, load_tables
from embstore.checkpoint.save import SaveOptions, SaveReport, save_after
from embstore.checkpoint.writer import Beside


def compact(path: Path, keep_last: int = 1, hmac_key: bytes | None = None) -> SaveReport:
    """Write the chain of deltas in a directory anew as a full checkpoint, the next generation.

    Its data files hold the bytes that a full save at that moment would have written, checksums and
    names apart, which tell of the generation. Rows are merged as they are read, twice: once to be
    counted. A full checkpoint is left alone. A table whose changes are logged since the last delta
    will next be saved whole, since the checkpoint is another now.

    Parameters
    ----------
    path
        The directory.
    keep_last
        How many generations stay loadable, the new one included.
    hmac_key
        The key that the chain must be signed with; the new checkpoint is signed with it too.

    Returns
    -------
    SaveReport
        With the reason "nothing to compact" if nothing was written.

    Raises
    ------
    CheckpointError, CorruptCheckpointError, CheckpointMismatchError
        As `load_tables` and `save_tables`; the chain remains.
    """
    begin = time.perf_counter()
    options = SaveOptions.of(keep_last, hmac_key)
    with (
        Directory(path_of(path)) as directory,
        directory.locked(),
        load_tables(path, hmac_key=hmac_key) as loaded,
    ):
        history = commit.read_history(directory)
        if not loaded.manifest.n_deltas:
            return _untouched(loaded.manifest, time.perf_counter() - begin)
        beside = Beside.of(loaded.extra, loaded.store)
        report = save_after(
            directory, history, lambda is_delta: _views(loaded), beside, "", options
        )
    return report._replace(seconds=time.perf_counter() - begin)


def _untouched(manifest: Manifest, seconds: float) -> SaveReport:
    return SaveReport(
        kind="full",
        reason="nothing to compact",
        generation=manifest.generation,
        digest=manifest.digest,
        n_rows=0,
        n_deleted=0,
        n_bytes=0,
        n_deltas=0,
        seconds=seconds,
    )


def _views(loaded: LoadedCheckpoint) -> dict[str, TableView]:
    return {name: LoadedView(table) for name, table in loaded.tables.items()}


_NO_BYTES = np.empty(0, np.uint8)


class LoadedView:
    """A table of a checkpoint as one to save.

    Partitions are read as a stream: what is not asked for in their order begins it anew.
    """

    def __init__(self, table: LoadedTable) -> None:
        self.config: dict[str, Any] = table.config
        self.dim: int = table.dim
        self.dtype: str = table.dtype
        self.slots: Slots = table.slots
        self.pins: NDArray[np.int64] = table.pins
        self._table = table
        self._rows: _Cursor[RowBlock] = _Cursor(table.rows)
        self._candidates: _Cursor[CandidateBlock] = _Cursor(table.candidates)
        self._bloom: Iterator[tuple[int, NDArray[np.uint8]]] = iter(())
        self._filter = (-1, _NO_BYTES)
        self._lock = Lock()

    def get_state(self) -> dict[str, int | float]:
        """Return the clocks and totals."""
        return self._table.state

    def partition_counts(self, candidates: bool) -> NDArray[np.uint64]:
        """Return the rows (or candidates) of each partition, by reading them all."""
        counts = np.zeros(N_PARTITIONS, np.uint64)
        for block in self._table.candidates() if candidates else self._table.rows():
            found = np.bincount(partition_of(block.keys), minlength=N_PARTITIONS)
            counts += found.astype(np.uint64)
        return counts

    def export_rows(self, first: int, last: int) -> RowBlock:
        """Return the rows of partitions [first, last], of which there are some."""
        return joined(self._rows.take(first, last))

    def export_candidates(self, first: int, last: int) -> CandidateBlock:
        """Return the candidates of partitions [first, last], of which there are some."""
        return joined(self._candidates.take(first, last))

    def bloom_read(self, partition: int) -> NDArray[np.uint8]:
        """Return a sub-filter; empty without a filter."""
        if not self._table.bloom_bytes:
            return _NO_BYTES
        with self._lock:
            if partition < self._filter[0] or self._filter[0] < 0:
                self._bloom = enumerate(self._table.bloom())
                self._filter = next(self._bloom)
            while self._filter[0] < partition:
                self._filter = next(self._bloom)
            if partition == N_PARTITIONS - 1:
                next(self._bloom, None)  # where the end of the file is checked
            return self._filter[1]


class _Cursor(Generic[Block]):
    """A stream of blocks from which runs of partitions are taken, one after another."""

    def __init__(self, open_at: Callable[[int], Iterator[Block]]) -> None:
        self._open_at: Callable[[int], Iterator[Block]] = open_at
        self._stream: Iterator[Block] = iter(())
        self._rest: Block | None = None
        self._next = -1
        self._lock = Lock()

    def take(self, first: int, last: int) -> list[Block]:
        """Return what partitions [first, last] hold."""
        with self._lock:
            if first != self._next:
                self._stream, self._rest = self._open_at(first), None
            self._next = last + 1
            return list(self._until(last))

    def _until(self, last: int) -> Iterator[Block]:
        while (block := self._rest or next(self._stream, None)) is not None:
            stop = partition_slice(block.keys, 0, last).stop
            self._rest = block[stop:] if stop < len(block) else None
            if stop:
                yield block[:stop]
            if self._rest is not None:
                return
