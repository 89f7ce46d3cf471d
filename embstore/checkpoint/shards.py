"""Shards: shard i of n owns the keys with mulhi(fixed_hash(key), n) == i.

So it owns one range of hashes, and of partitions; at its ends it may share a partition with its
neighbours. docs/semantics.md, section 1.
"""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from embstore.checkpoint.content import CandidateBlock, RowBlock
from embstore.checkpoint.fields import TOTAL_FIELDS
from embstore.checkpoint.partition import fixed_hash
from embstore.checkpoint.paths import Path, path_of
from embstore.checkpoint.reader import LoadedCheckpoint, load_tables
from embstore.checkpoint.source import LAST, SavedTable, State, TableSource, kept
from embstore.checkpoint.union import MergedTable
from embstore.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointMismatchError,
    EmbstoreWarning,
)
from embstore.policies._check import check_int

MAX_SHARDS = 1 << 16


def check_shard(where: str, shard: object) -> tuple[int, int]:
    """Return `shard` as (i, n), i being less than n."""
    if not isinstance(shard, tuple) or len(shard) != 2:
        raise ArgumentTypeError(f"{where}: shard must be a pair (i, n), got {shard!r}")
    n = check_int(where, "n of shard (i, n)", shard[1], 1, MAX_SHARDS)
    return check_int(where, "i of shard (i, n)", shard[0], 0, n - 1), n


def shard_of(keys: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return which of `n` shards owns each key: the high part of hash times n."""
    z, low_half = fixed_hash(keys), np.uint64(0xFFFFFFFF)
    wide = np.uint64(n)
    low = ((z & low_half) * wide) >> np.uint64(32)
    return (((z >> np.uint64(32)) * wide + low) >> np.uint64(32)).astype(np.int64)


def partitions_of_shard(i: int, n: int) -> tuple[int, int]:
    """Return the first and the last partition in which shard i of n owns keys."""
    least = -(-(i << 64) // n)
    beyond = -(-((i + 1) << 64) // n)
    return least >> 56, (beyond - 1) >> 56


class Shard:
    """Shard i of n of a table, as a source; totals are those of the table in shard 0, else 0.

    A sub-filter of a partition that two shards share goes to both.
    """

    dropped: str | None = None

    def __init__(self, source: TableSource, i: int, n: int) -> None:
        self._source = source
        self._i, self._n = i, n
        self._first, self._last = partitions_of_shard(i, n)
        self.name = source.name
        self.place = f"{source.place}, shard {i} of {n}"
        self.shards = source.shards
        self.dim = source.dim
        self.dtype = source.dtype
        self.slots = source.slots
        self.config = source.config
        self.state: State = dict(source.state)
        if i:
            self.state.update(dict.fromkeys(TOTAL_FIELDS, 0))
        self.pins = source.pins[self._is_own(source.pins)]
        self.n_rows = source.n_rows
        self.n_candidates = source.n_candidates
        self.bloom_bytes = source.bloom_bytes

    def _is_own(self, keys: NDArray[np.int64]) -> NDArray[np.bool_]:
        owned: NDArray[np.bool_] = shard_of(keys, self._n) == self._i
        return owned

    def rows(self, first: int = 0, last: int = LAST) -> Iterator[RowBlock]:
        """Yield the rows of partitions [first, last]."""
        first, last = max(first, self._first), min(last, self._last)
        for block in self._source.rows(first, last) if first <= last else ():
            yield from kept(block, self._is_own(block.keys))

    def candidates(self, first: int = 0, last: int = LAST) -> Iterator[CandidateBlock]:
        """Yield the candidates of partitions [first, last]."""
        first, last = max(first, self._first), min(last, self._last)
        for block in self._source.candidates(first, last) if first <= last else ():
            yield from kept(block, self._is_own(block.keys))

    def bloom(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the 256 sub-filters; nothing without a filter."""
        for partition, data in enumerate(self._source.bloom()):
            yield data if self._first <= partition <= self._last else np.zeros_like(data)

    def check_finite(self, allow_nonfinite: bool) -> None:
        """Raise CheckpointMismatchError if there is NaN or infinity and that is not allowed."""
        self._source.check_finite(allow_nonfinite)


def count_entries(source: TableSource) -> tuple[int, int]:
    """Return how many rows and candidates a source has, by reading them."""
    n_rows = sum(len(block) for block in source.rows())
    return n_rows, sum(len(block) for block in source.candidates())


def paths_of(path: Path | Sequence[Path]) -> list[str]:
    """Return the directories of a checkpoint's shards: one path, or several."""
    if isinstance(path, str | os.PathLike) or not isinstance(path, Sequence):
        return [path_of(path)]
    paths = [path_of(each) for each in path]
    if not paths:
        raise ArgumentError("path must name a directory, or several; got none")
    real = [os.path.realpath(each) for each in paths]
    for i, each in enumerate(real):
        if each in real[:i]:
            raise ArgumentError(f"path names {paths[i]} twice")
    return paths


class OpenShards:
    """Open checkpoints whose tables are shards of the same tables; a context manager.

    Attributes
    ----------
    place : str
        The directories, for messages.
    tables : dict of str to TableSource
    store : dict or None
        The parameters of the Store.
    """

    def __init__(
        self,
        path: Path | Sequence[Path],
        names: Iterable[str] | None = None,
        verify: str = "full",
        generation: int | None = None,
        hmac_key: bytes | None = None,
        n_threads: int = 1,
    ) -> None:
        paths = paths_of(path)
        wanted = None if names is None else list(names)
        with ExitStack() as stack:
            how = (wanted, verify, generation, hmac_key, n_threads)
            opened = [stack.enter_context(load_tables(p, *how)) for p in paths]
            self.place = ", ".join(paths)
            self.store = opened[0].store
            self.tables = _tables_of(opened)
            self._opened = opened
            self._stack = stack.pop_all()

    def take_extra(self) -> dict[str, Any] | None:
        """Return what the user saved beside the tables: that of the first checkpoint.

        Warns
        -----
        EmbstoreWarning
            If that of another differs.
        """
        first = self._opened[0]
        others = [e.path for e in self._opened[1:] if not _is_same(e.extra, first.extra)]
        if others:
            warnings.warn(
                f"the extra of {first.path} is taken; that of {', '.join(others)} is another",
                EmbstoreWarning,
                stacklevel=3,
            )
        return first.extra

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()


def _tables_of(opened: Sequence[LoadedCheckpoint]) -> Mapping[str, TableSource]:
    """Return the tables of all checkpoints, those of a name as one."""
    first = opened[0]
    for other in opened[1:]:
        for what in ("tables", "store"):
            mine, theirs = (
                sorted(each.tables) if what == "tables" else each.store for each in (first, other)
            )
            if mine != theirs:
                raise CheckpointMismatchError(
                    f"{other.path} is no shard of what is in {first.path}: its {what} are "
                    f"{theirs}, there they are {mine}"
                )
    tables: dict[str, TableSource] = {}
    for name in first.tables:
        shards = [SavedTable(each.path, each.tables[name]) for each in opened]
        tables[name] = shards[0] if len(shards) == 1 else MergedTable(shards)
    return tables


def _is_same(one: Any, other: Any) -> bool:
    """Whether two extras are the same, arrays by dtype, shape and bytes."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        pair = [
            (each.dtype, each.shape, each.tobytes()) if isinstance(each, np.ndarray) else None
            for each in (one, other)
        ]
        return pair[0] == pair[1]
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(one[k], other[k]) for k in one)
    return type(one) is type(other) and bool(one == other)
