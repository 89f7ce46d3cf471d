"""reshard: from N checkpoints to M, rows going from files to files, no table being made.

1. All of every source is read and checked before the first output is made.
2. An output is written a run of partitions at a time: memory does not grow with the table.
3. The bytes of an output depend on its keys alone, not on how the sources were cut.
"""

import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from embstore.checkpoint import manifest as manifests
from embstore.checkpoint.compact import LoadedView
from embstore.checkpoint.content import CandidateBlock, KeyBlock, RowBlock
from embstore.checkpoint.partition import N_PARTITIONS, partition_of
from embstore.checkpoint.paths import Path, path_of
from embstore.checkpoint.reader import LoadedTable
from embstore.checkpoint.save import save_tables
from embstore.checkpoint.shards import MAX_SHARDS, OpenShards, Shard, paths_of, shard_of
from embstore.checkpoint.source import (
    LAST,
    TableSource,
    clamp_steps,
    drop_expired,
    settled_state,
)
from embstore.checkpoint.union import merged, raise_twice
from embstore.errors import ArgumentError, EmbstoreWarning
from embstore.policies._check import check_int

OnRows = Callable[[int], None]

SHARD_NAME = "shard-{:05d}-of-{:05d}"
SHARD_PATTERN = re.compile(r"shard-([0-9]{5})-of-([0-9]{5})", re.ASCII)


class ReshardReport(NamedTuple):
    """What reshard has read and written; `rows_by_output` are all tables' rows of each output."""

    sources: tuple[str, ...]
    outputs: tuple[str, ...]
    n_rows: int
    n_candidates: int
    rows_by_output: tuple[int, ...]
    seconds: float


def reshard(
    sources: Path | Sequence[Path],
    out: Path | Sequence[Path] | tuple[Path, int],
    *,
    verify: str = "full",
    force: bool = False,
    on_rows: OnRows | None = None,
) -> ReshardReport:
    """Write the tables of N checkpoints, which are their shards, into M checkpoints.

    A key goes to the output that `docs/semantics.md`, section 1, names for it; candidates and pins
    go with their keys, a sub-filter to each output that has keys of its partition, totals to
    the first. What the user saved beside the tables (extra) goes to each.

    Parameters
    ----------
    sources
        The directory of a checkpoint, or those of all shards.
    out
        One directory for one output, several for as many, or (directory, m) for
        ``directory/shard-00000-of-0000m`` and so on.
    verify
        As in ``load_tables``.
    force
        Replace checkpoints that are in the output directories.
    on_rows
        Called with the number of rows read or written since the last call: in the end twice
        `n_rows`.

    Raises
    ------
    ArgumentError
        If an output has a checkpoint and `force` is not given, or is a source, or comes twice; if
        sources are named ``shard-00000-of-00004`` and the like, and others of the set are missing.
    CheckpointError, CorruptCheckpointError, CheckpointMismatchError
        As `load_tables`; if sources are not of one table; if a key is in two of them. No output
        was made then. If the disk fails, the outputs before are complete checkpoints.

    Warns
    -----
    EmbstoreWarning
        If an output has more rows than its tables' max_rows allow to be loaded.
    """
    begin = time.perf_counter()
    paths, outputs = paths_of(sources), _outputs(out)
    _check_complete(paths)
    _check_outputs(outputs, paths, force)
    note = on_rows or (lambda n_rows: None)
    with OpenShards(paths, None, verify) as opened:
        surveys = {
            name: _Survey(table, len(outputs), note) for name, table in opened.tables.items()
        }
        extra = opened.take_extra()
        for i, output in enumerate(outputs):
            views = {name: surveys[name].view(i, note) for name in opened.tables}
            save_tables(output, views, extra=extra, store=opened.store)
    by_output = [sum(s.n_rows(i) for s in surveys.values()) for i in range(len(outputs))]
    return ReshardReport(
        sources=tuple(paths),
        outputs=tuple(outputs),
        n_rows=sum(by_output),
        n_candidates=sum(survey.n_candidates for survey in surveys.values()),
        rows_by_output=tuple(by_output),
        seconds=time.perf_counter() - begin,
    )


def _outputs(out: Any) -> list[str]:
    """Return the directories to write."""
    is_pair = isinstance(out, tuple) and len(out) == 2
    if is_pair and not isinstance(out[1], str | os.PathLike):
        n = check_int("reshard", "the number of shards", out[1], 1, MAX_SHARDS)
        folder = path_of(out[0])
        if n == 1:
            return [folder]
        return [os.path.join(folder, SHARD_NAME.format(i, n)) for i in range(n)]
    return paths_of(out)


def _check_complete(sources: Sequence[str]) -> None:
    """Raise if sources are named as shards of a set that is not all there."""
    names = [os.path.basename(os.path.abspath(source)) for source in sources]
    matches = [SHARD_PATTERN.fullmatch(name) for name in names]
    for n in {int(match[2]) for match in matches if match}:
        missing = [name for i in range(n) if (name := SHARD_NAME.format(i, n)) not in names]
        if missing:
            raise ArgumentError(
                f"reshard: {len(missing)} of {n} shards are not among the sources, the first of "
                f"them {missing[0]}; directories of other names are taken as they are"
            )


def _check_outputs(outputs: Sequence[str], sources: Sequence[str], force: bool) -> None:
    """Raise if an output is a source, or has a checkpoint that is not to be replaced."""
    real = {os.path.realpath(source) for source in sources}
    for output in outputs:
        if os.path.realpath(output) in real:
            raise ArgumentError(f"reshard: {output} is a source; write to another directory")
        if not force and os.path.lexists(os.path.join(output, manifests.NAME)):
            raise ArgumentError(
                f"reshard: {output} has a checkpoint; force=True (--force) replaces it"
            )


class _Survey:
    """All of a table, read and checked once; what each output will hold of it."""

    def __init__(self, source: TableSource, n_outputs: int, note: OnRows) -> None:
        self._source = source
        self._n_outputs = n_outputs
        self._rows = np.zeros((n_outputs, N_PARTITIONS), np.uint64)
        self._candidates = np.zeros((n_outputs, N_PARTITIONS), np.uint64)
        self._n_clamped = np.zeros(n_outputs, np.int64)
        self._n_expired = np.zeros(n_outputs, np.int64)
        shards = source.shards
        streams: list[Iterator[KeyBlock]] = []
        for shard in shards:
            streams += [self._read_rows(shard, note), self._read_candidates(shard)]
        for _ in merged(
            streams, lambda key, i, j: raise_twice(key, shards[i // 2], shards[j // 2])
        ):
            pass
        for shard in shards:
            for _ in shard.bloom():
                pass
        self._warn_of_max_rows()

    @property
    def n_candidates(self) -> int:
        """Candidates of all outputs."""
        return int(self._candidates.sum())

    def n_rows(self, i: int) -> int:
        """Return the rows of output i."""
        return int(self._rows[i].sum())

    def view(self, i: int, note: OnRows) -> "_ShardView":
        """Return the table of output i, to be saved."""
        shard = _Settled(self._source, i, self._n_outputs)
        shard.state = settled_state(shard.state, int(self._n_clamped[i]), int(self._n_expired[i]))
        return _ShardView(shard, self._rows[i], self._candidates[i], note)

    def _read_rows(self, shard: TableSource, note: OnRows) -> Iterator[KeyBlock]:
        for rows in shard.rows():
            owners = self._count(self._rows, rows.keys)
            is_older = rows.step < int(self._source.state["step_base"])
            self._n_clamped += np.bincount(owners[is_older], minlength=self._n_outputs)
            note(len(rows))
            yield KeyBlock(rows.keys)

    def _read_candidates(self, shard: TableSource) -> Iterator[KeyBlock]:
        source = self._source
        for block in shard.candidates():
            young, n_older = drop_expired(block, source.config, source.state)
            self._count(self._candidates, young.keys)
            if n_older:
                older = block.keys[~np.isin(block.keys, young.keys)]
                owners = shard_of(older, self._n_outputs)
                self._n_expired += np.bincount(owners, minlength=self._n_outputs)
            yield KeyBlock(block.keys)

    def _count(self, counts: NDArray[np.uint64], keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count keys by output and partition; return the output of each."""
        owners = shard_of(keys, self._n_outputs)
        places = owners * N_PARTITIONS + partition_of(keys)
        found = np.bincount(places, minlength=counts.size).reshape(counts.shape)
        counts += found.astype(np.uint64)
        return owners

    def _warn_of_max_rows(self) -> None:
        limit = self._source.config.get("max_rows")
        most = max(self.n_rows(i) for i in range(self._n_outputs))
        if isinstance(limit, int) and most > limit:
            warnings.warn(
                f"{self._source.place}: an output has {most} rows, more than max_rows={limit}; "
                f"load it with another max_rows",
                EmbstoreWarning,
                stacklevel=4,
            )


class _Settled(Shard):
    """A shard whose steps and epochs fit the merged clocks."""

    def rows(self, first: int = 0, last: int = LAST) -> Iterator[RowBlock]:
        """Yield the rows of partitions [first, last]."""
        for rows in super().rows(first, last):
            yield clamp_steps(rows, self.state)[0]

    def candidates(self, first: int = 0, last: int = LAST) -> Iterator[CandidateBlock]:
        """Yield the candidates of partitions [first, last]."""
        for block in super().candidates(first, last):
            young, _ = drop_expired(block, self.config, self.state)
            if len(young):
                yield young


class _ShardView(LoadedView):
    """A shard as one to save, whose rows and candidates were counted before."""

    def __init__(
        self,
        shard: _Settled,
        row_counts: NDArray[np.uint64],
        candidate_counts: NDArray[np.uint64],
        note: OnRows,
    ) -> None:
        super().__init__(cast(LoadedTable, shard))
        self._counts = (row_counts, candidate_counts)
        self._note = note

    def partition_counts(self, candidates: bool) -> NDArray[np.uint64]:
        """Return the rows (or candidates) of each partition."""
        return self._counts[candidates]

    def export_rows(self, first: int, last: int, part: slice) -> RowBlock:
        """Return a part of the rows of partitions [first, last], of which there are some."""
        rows = super().export_rows(first, last, part)
        self._note(len(rows))
        return rows
