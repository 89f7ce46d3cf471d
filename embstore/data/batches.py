"""Columns in memory: numpy arrays and ragged lists, and how they are cut, joined and reordered."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Ragged:
    """A column of lists: bag i holds ``values[offsets[i]:offsets[i + 1]]``.

    Parameters
    ----------
    values
        (m,) int64: the keys of all bags, one after another.
    offsets
        (n + 1,) int64, not decreasing, from 0 to m.

    Examples
    --------
    >>> import numpy as np
    >>> from embstore.data import Ragged
    >>> bags = Ragged(np.array([5, 6, 7]), np.array([0, 2, 2, 3]))
    >>> len(bags), [bag.tolist() for bag in bags]
    (3, [[5, 6], [], [7]])
    """

    values: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[npt.NDArray[np.int64]]:
        bounds = self.offsets.tolist()
        return (self.values[a:b] for a, b in pairwise(bounds))


Array: TypeAlias = "npt.NDArray[np.int64] | npt.NDArray[np.float32] | npt.NDArray[np.float64]"
Column: TypeAlias = "Array | Ragged"
Batch: TypeAlias = dict[str, Column]


def row_count(batch: Batch) -> int:
    """Return the number of rows of a batch, which has a column at least."""
    return len(next(iter(batch.values())))


def cut(batch: Batch, start: int, stop: int) -> Batch:
    """Return rows start to stop of a batch; arrays and the values of lists are not copied."""
    return {name: _cut(column, start, stop) for name, column in batch.items()}


def join(batches: list[Batch]) -> Batch:
    """Return batches of the same columns, one after another."""
    if len(batches) == 1:
        return batches[0]
    return {name: _join([batch[name] for batch in batches]) for name in batches[0]}


def take(batch: Batch, rows: npt.NDArray[np.int64]) -> Batch:
    """Return the given rows of a batch, in their order."""
    return {name: _take(column, rows) for name, column in batch.items()}


def rebatch(batches: Iterable[Batch], n_rows: int) -> Iterator[Batch]:
    """Cut and join batches of any size into batches of n_rows; the last one may be shorter."""
    parts: list[Batch] = []
    n_held = 0
    for batch in batches:
        start, size = 0, row_count(batch)
        while n_held + size - start >= n_rows:
            stop = start + n_rows - n_held
            yield join([*parts, cut(batch, start, stop)])
            parts, n_held, start = [], 0, stop
        if start < size:
            parts.append(cut(batch, start, size))
            n_held += size - start
    if parts:
        yield join(parts)


def _cut(column: Column, start: int, stop: int) -> Column:
    if not isinstance(column, Ragged):
        return column[start:stop]
    first, last = column.offsets[start], column.offsets[stop]
    return Ragged(column.values[first:last], column.offsets[start : stop + 1] - first)


def _join(columns: list[Column]) -> Column:
    if not isinstance(columns[0], Ragged):
        arrays = [column for column in columns if not isinstance(column, Ragged)]
        return np.concatenate(arrays)  # type: ignore[return-value]  # one dtype for all
    bags = [column for column in columns if isinstance(column, Ragged)]
    lengths = np.concatenate([np.diff(bag.offsets) for bag in bags])
    return Ragged(np.concatenate([bag.values for bag in bags]), _offsets(lengths))


def _take(column: Column, rows: npt.NDArray[np.int64]) -> Column:
    if not isinstance(column, Ragged):
        return column[rows]
    lengths = np.diff(column.offsets)[rows]
    offsets = _offsets(lengths)
    shift = np.repeat(column.offsets[:-1][rows] - offsets[:-1], lengths)
    return Ragged(column.values[np.arange(offsets[-1]) + shift], offsets)


def _offsets(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
