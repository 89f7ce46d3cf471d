"""Two streams of sorted blocks side by side, in parts that cover the same keys.

Keys ascend by (partition, key) in both. A part holds all keys of either stream up to some key, so
that a key that both have is always in one part. At most two blocks are held of each stream.
"""

from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from embstore.checkpoint import CandidateBlock, RowBlock
from embstore.checkpoint.partition import partition_of


class Keyed(Protocol):
    """A block of entries by key."""

    @property
    def keys(self) -> NDArray[np.int64]:
        """(n,) int64."""
        ...


BlockT = TypeVar("BlockT", bound=Keyed)
Cut = Callable[[BlockT, slice], BlockT]


class Part(NamedTuple, Generic[BlockT]):
    """What two streams hold of the same range of keys; None where one of them has ended."""

    one: BlockT | None
    other: BlockT | None


def side_by_side(
    one: Iterator[BlockT], other: Iterator[BlockT], cut: Cut[BlockT]
) -> Iterator[Part[BlockT]]:
    """Yield the parts of two streams of blocks."""
    a, b = next(one, None), next(other, None)
    while a is not None and b is not None:
        n_a, n_b = _common(a.keys, b.keys)
        yield Part(cut(a, slice(0, n_a)), cut(b, slice(0, n_b)))
        a = cut(a, slice(n_a, None)) if n_a < len(a.keys) else next(one, None)
        b = cut(b, slice(n_b, None)) if n_b < len(b.keys) else next(other, None)
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


def cut_rows(block: RowBlock, part: slice) -> RowBlock:
    """Return some rows of a block."""
    return RowBlock(
        block.keys[part], block.values[part], block.slots[part], block.freq[part], block.step[part]
    )


def cut_candidates(block: CandidateBlock, part: slice) -> CandidateBlock:
    """Return some candidates of a block."""
    return CandidateBlock(block.keys[part], block.counts[part], block.epochs[part])
