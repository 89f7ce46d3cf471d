"""Two streams of sorted blocks side by side, in parts that cover the same keys.

Keys ascend by (partition, key) in both. A part holds all keys of either stream up to some key, so
that a key that both have is always in one part. At most two blocks are held of each stream.
"""

from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from embstore.checkpoint import CandidateBlock, RowBlock
from embstore.checkpoint.partition import partition_of

BlockT = TypeVar("BlockT", RowBlock, CandidateBlock)


class Part(NamedTuple, Generic[BlockT]):
    """What two streams hold of the same range of keys; None where one of them has ended."""

    one: BlockT | None
    other: BlockT | None


def side_by_side(one: Iterator[BlockT], other: Iterator[BlockT]) -> Iterator[Part[BlockT]]:
    """Yield the parts of two streams of blocks."""
    a, b = next(one, None), next(other, None)
    while a is not None and b is not None:
        n_a, n_b = _common(a.keys, b.keys)
        yield Part(a[:n_a], b[:n_b])
        a = a[n_a:] if n_a < len(a) else next(one, None)
        b = b[n_b:] if n_b < len(b) else next(other, None)
    while a is not None:
        yield Part(a, None)
        a = next(one, None)
    while b is not None:
        yield Part(None, b)
        b = next(other, None)


def _common(a: NDArray[np.int64], b: NDArray[np.int64]) -> tuple[int, int]:
    """Return how many keys of each are not after the lesser of their last keys."""
    ends = [(int(partition_of(keys[-1:])[0]), int(keys[-1])) for keys in (a, b)]
    partition, key = min(ends)
    return _n_until(a, partition, key), _n_until(b, partition, key)


def _n_until(keys: NDArray[np.int64], partition: int, key: int) -> int:
    """Return how many keys come before (partition, key), or are that."""
    begin, end = np.searchsorted(partition_of(keys), [partition, partition + 1]).tolist()
    return int(begin + np.searchsorted(keys[begin:end], key, side="right"))
