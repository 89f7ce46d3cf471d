"""inspect and verify: what a checkpoint holds, and whether every byte of it is sound."""

import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embstore.checkpoint import commit
from embstore.checkpoint.content import CandidateBlock, RowBlock
from embstore.checkpoint.files import CheckpointFiles
from embstore.checkpoint.manifest import VERSION, Manifest
from embstore.checkpoint.partition import N_PARTITIONS, partition_of
from embstore.checkpoint.paths import Path, path_of
from embstore.checkpoint.reader import LoadedCheckpoint, LoadedTable, load_tables
from embstore.checkpoint.signing import checked_key
from embstore.errors import CorruptCheckpointError


class VerifyReport(NamedTuple):
    """What verify has read, all of it sound."""

    n_files: int
    n_blocks: int
    n_bytes: int
    n_rows: int
    n_candidates: int
    seconds: float


def inspect(
    path: Path, generation: int | None = None, hmac_key: bytes | None = None
) -> dict[str, Any]:
    """Return what the manifest of a checkpoint says, as a dict for JSON; no data is read.

    Parameters
    ----------
    path, generation, hmac_key
        As for `load_tables`.

    Returns
    -------
    dict
        format_version, generation, generations (all that are kept), digest, deltas, step, bytes,
        store, extra (names), tables (name, dim, dtype, slots, rows, nonfinite_rows, candidates,
        pins, bytes, config, state, layers), files (name, kind, table, layer, partitions, rows,
        bytes, blocks). Layers have generation, step, step_base, rows, deleted, nonfinite_rows and
        bytes.

    Raises
    ------
    CheckpointError, CorruptCheckpointError, CheckpointMismatchError
        As `load_tables`.
    """
    files = CheckpointFiles(path_of(path), generation, checked_key(hmac_key))
    try:
        manifest, kept = files.manifest, commit.generations_in(files.directory)
    finally:
        files.close()
    return {
        "format_version": VERSION,
        "generation": manifest.generation,
        "generations": kept,
        "digest": manifest.digest,
        "deltas": manifest.n_deltas,
        "step": manifest.step,
        "bytes": sum(file.n_bytes for file in manifest.files),
        "store": manifest.store,
        "extra": sorted([*(manifest.values or {}), *(array.name for array in manifest.arrays)]),
        "tables": [_table(manifest, index) for index in range(len(manifest.tables))],
        "files": [
            {
                "name": file.name,
                "kind": file.kind,
                "table": file.table,
                "layer": file.layer,
                "partitions": [file.first, file.last],
                "rows": file.n_rows,
                "bytes": file.n_bytes,
                "blocks": len(file.sections) - 2,
            }
            for file in manifest.files
        ],
    }


def _table(manifest: Manifest, index: int) -> dict[str, Any]:
    table = manifest.tables[index]
    return {
        "name": table.name,
        "dim": table.dim,
        "dtype": table.dtype,
        "slots": [list(slot) for slot in table.slots],
        "rows": table.n_rows,
        "nonfinite_rows": table.n_nonfinite_rows,
        "candidates": manifest.n_rows(index, "candidates"),
        "pins": manifest.n_rows(index, "pins"),
        "bytes": sum(file.n_bytes for file in manifest.files if file.table == index),
        "config": table.config,
        "state": table.state,
        "layers": [
            {
                "generation": layer.generation,
                "step": layer.step,
                "step_base": layer.step_base,
                "rows": layer.n_rows,
                "deleted": layer.n_deleted,
                "nonfinite_rows": layer.n_nonfinite_rows,
                "bytes": sum(file.n_bytes for file in manifest.layer_files(index, i)),
            }
            for i, layer in enumerate(manifest.layers(index))
        ],
    }


def verify(
    path: Path, generation: int | None = None, hmac_key: bytes | None = None
) -> VerifyReport:
    """Read a checkpoint whole, check every byte of every layer, and that no candidate has a row.

    Parameters
    ----------
    path, generation, hmac_key
        As for `load_tables`.

    Raises
    ------
    CheckpointError, CorruptCheckpointError, CheckpointMismatchError
        As `load_tables`.
    """
    begin = time.perf_counter()
    with load_tables(path, generation=generation, hmac_key=hmac_key) as loaded:
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
