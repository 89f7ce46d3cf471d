"""inspect and verify: what a checkpoint holds, and whether every byte of it is sound."""

import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embstore.checkpoint.content import CandidateBlock, RowBlock
from embstore.checkpoint.manifest import VERSION
from embstore.checkpoint.partition import N_PARTITIONS, partition_of
from embstore.checkpoint.paths import Path, path_of
from embstore.checkpoint.reader import CheckpointFiles, LoadedCheckpoint, LoadedTable, load_tables
from embstore.errors import CorruptCheckpointError


class VerifyReport(NamedTuple):
    """What verify has read, all of it sound."""

    n_files: int
    n_blocks: int
    n_bytes: int
    n_rows: int
    n_candidates: int
    seconds: float


def inspect(path: Path) -> dict[str, Any]:
    """Return what the manifest of a checkpoint says, as a dict for JSON; no data is read.

    Returns
    -------
    dict
        format_version, generation, step, bytes, store, extra (names), tables (name, dim, dtype,
        slots, rows, nonfinite_rows, candidates, pins, bytes, config, state), files (name, kind,
        table, partitions, rows, bytes, blocks).

    Raises
    ------
    CheckpointError, CorruptCheckpointError, CheckpointMismatchError
        As `load_tables`.
    """
    files = CheckpointFiles(path_of(path))
    files.close()
    manifest = files.manifest
    tables = []
    for index, table in enumerate(manifest.tables):
        own = [file for file in manifest.files if file.table == index]
        tables.append(
            {
                "name": table.name,
                "dim": table.dim,
                "dtype": table.dtype,
                "slots": [list(slot) for slot in table.slots],
                "rows": manifest.n_rows(index, "rows"),
                "nonfinite_rows": table.n_nonfinite_rows,
                "candidates": manifest.n_rows(index, "candidates"),
                "pins": manifest.n_rows(index, "pins"),
                "bytes": sum(file.n_bytes for file in own),
                "config": table.config,
                "state": table.state,
            }
        )
    return {
        "format_version": VERSION,
        "generation": manifest.generation,
        "step": manifest.step,
        "bytes": sum(file.n_bytes for file in manifest.files),
        "store": manifest.store,
        "extra": sorted([*(manifest.values or {}), *(array.name for array in manifest.arrays)]),
        "tables": tables,
        "files": [
            {
                "name": file.name,
                "kind": file.kind,
                "table": file.table,
                "partitions": [file.first, file.last],
                "rows": file.n_rows,
                "bytes": file.n_bytes,
                "blocks": len(file.sections) - 2,
            }
            for file in manifest.files
        ],
    }


def verify(path: Path) -> VerifyReport:
    """Read a checkpoint whole and check every byte, and that no candidate has a row.

    Raises
    ------
    CheckpointError, CorruptCheckpointError, CheckpointMismatchError
        As `load_tables`.
    """
    begin = time.perf_counter()
    with load_tables(path) as loaded:
        for table in loaded.tables.values():
            _read(table, loaded)
        files = loaded.manifest.files
        return VerifyReport(
            n_files=len(files),
            n_blocks=sum(len(file.sections) - 2 for file in files),
            n_bytes=sum(file.n_bytes for file in files),
            n_rows=sum(table.n_rows for table in loaded.tables.values()),
            n_candidates=sum(table.n_candidates for table in loaded.tables.values()),
            seconds=time.perf_counter() - begin,
        )


def _read(table: LoadedTable, loaded: LoadedCheckpoint) -> None:
    """Read everything of a table, rows and candidates side by side."""
    pairs = zip(_by_partition(table.rows()), _by_partition(table.candidates()), strict=True)
    for live, pending in pairs:
        is_both = len(live) and len(pending) and np.isin(pending, live, assume_unique=True)
        if np.any(is_both):
            both = pending[is_both]
            raise CorruptCheckpointError(
                f"{loaded.path}: table {table.name!r}: key {both[0]} has a row and is a candidate"
            )
    for _ in table.bloom():
        pass


def _by_partition(
    blocks: Iterable[RowBlock] | Iterable[CandidateBlock],
) -> Iterator[NDArray[np.int64]]:
    """Yield the keys of each partition, from blocks in the order of files."""
    none = np.empty(0, np.int64)
    held = [none]
    at = 0
    for block in blocks:
        ends = np.searchsorted(partition_of(block.keys), np.arange(N_PARTITIONS), side="right")
        begin = 0
        while at < N_PARTITIONS - 1 and ends[at] < len(block.keys):
            yield np.concatenate([*held, block.keys[begin : ends[at]]])
            held, begin, at = [none], int(ends[at]), at + 1
        held.append(block.keys[begin:].copy())  # a view would keep the whole block
    while at < N_PARTITIONS:
        yield np.concatenate(held) if len(held) > 1 else none
        held, at = [none], at + 1
