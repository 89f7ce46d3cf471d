"""Which rows a shard has, and in which order an epoch visits them."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embstore.data.batches import Batch, cut, rebatch, row_count, take
from embstore.data.features import fixed_hash
from embstore.data.files import ParquetFiles, RowGroup
from embstore.errors import ArgumentError, ArgumentTypeError

GROUP_ORDER = -1


@dataclass(frozen=True)
class Shuffle:
    """A seeded shuffle: row groups are put in random order, then rows within a buffer.

    The buffer takes `buffer_rows` consecutive rows of the reordered row groups, reorders them, and
    hands them out whole before it takes the next. Rows therefore mix across row groups when these
    are smaller than the buffer. Each epoch has another order, which depends on nothing but seed,
    epoch and the files.

    Parameters
    ----------
    seed
        Any int64.
    buffer_rows
        Rows held in memory, at least 1.

    Raises
    ------
    ArgumentTypeError, ArgumentError
        If a parameter is not an integer, or out of its range.

    Examples
    --------
    >>> from embstore.data import Shuffle
    >>> Shuffle(seed=7)
    Shuffle(seed=7, buffer_rows=131072)
    """

    seed: int = 0
    buffer_rows: int = 131072

    def __post_init__(self) -> None:
        for name in ("seed", "buffer_rows"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ArgumentTypeError(f"{name} of a shuffle must be an int, not {value!r}")
        if not -(2**63) <= self.seed < 2**63:
            raise ArgumentError(f"seed of a shuffle must be an int64, not {self.seed}")
        if self.buffer_rows < 1:
            raise ArgumentError(
                f"buffer_rows of a shuffle must be at least 1, not {self.buffer_rows}"
            )


def shard_row_groups(groups: list[RowGroup], shard: int, n_shards: int) -> list[RowGroup]:
    """Deal row groups to shards; return those of one, in order.

    Each goes to the shard that has fewest rows so far, the lowest of equals: row groups of equal
    size go round. Every row group belongs to exactly one shard.
    """
    dealt = zip(groups, _deal(groups, n_shards), strict=True)
    return [group for group, (owner, _) in dealt if owner == shard]


def shard_rows(groups: list[RowGroup], n_shards: int) -> list[int]:
    """Return the rows of each shard."""
    n_rows = [0] * n_shards
    for owner, total in _deal(groups, n_shards):
        n_rows[owner] = total
    return n_rows


def _deal(groups: list[RowGroup], n_shards: int) -> Iterator[tuple[int, int]]:
    """Yield the shard of each row group, and the rows that the shard then has."""
    shards = [(0, shard) for shard in range(n_shards)]  # a heap: fewest rows first
    for group in groups:
        n_rows, owner = shards[0]
        n_rows += group.n_rows
        heapq.heapreplace(shards, (n_rows, owner))
        yield owner, n_rows


def epoch_rows(
    files: ParquetFiles, groups: list[RowGroup], shuffle: Shuffle | None, epoch: int, first_row: int
) -> Iterator[Batch]:
    """Yield the rows of an epoch from first_row on, in chunks of any size."""
    if shuffle is None:
        yield from files.read(groups, first_row)
        return
    order = _permutation(len(groups), shuffle.seed, epoch, GROUP_ORDER)
    buffer, skip_rows = divmod(first_row, shuffle.buffer_rows)
    rows = files.read((groups[i] for i in order), buffer * shuffle.buffer_rows)
    for number, chunk in enumerate(rebatch(rows, shuffle.buffer_rows), start=buffer):
        mixed = take(chunk, _permutation(row_count(chunk), shuffle.seed, epoch, number))
        yield cut(mixed, min(skip_rows, row_count(mixed)), row_count(mixed))
        skip_rows = 0


def _permutation(n: int, *words: int) -> npt.NDArray[np.int64]:
    """Return a permutation of n that is a pure function of the words, which are int64."""
    state = np.zeros(1, np.uint64)
    for word in words:
        state = fixed_hash((state + np.array([word], np.int64).view(np.uint64)).view(np.int64))
    numbers = np.arange(n, dtype=np.uint64) + state
    return np.argsort(fixed_hash(numbers.view(np.int64)), kind="stable")
