"""The rows that the layers of a chain leave: of each key the newest layer that names it wins.

1. Layers are streams by (partition, key), so that they are merged as they are read: in each round
   all that comes before the least end of the blocks at hand.
2. Of each layer one block of rows and one of deleted keys is held, whatever the table's size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from embstore.checkpoint.content import RowBlock, joined
from embstore.checkpoint.partition import partition_of

Keys = NDArray[np.int64]


class MergeError(ValueError):
    """A layer contradicts itself; the reader adds where."""


@dataclass(slots=True, eq=False)
class _Source:
    """Rows, or deleted keys, of one layer: what has been read and not merged yet."""

    layer: int
    blocks: Iterator[RowBlock | Keys]
    block: RowBlock | Keys | None = None
    keys: Keys = field(default_factory=lambda: np.empty(0, np.int64))
    partitions: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    at: int = 0

    def is_filled(self) -> bool:
        """Read the next block if nothing is left of this one; return whether there is any."""
        while self.at == len(self.keys):
            block: RowBlock | Keys | None = next(self.blocks, None)
            if block is None:
                return False
            self.block, self.keys = block, block.keys if isinstance(block, RowBlock) else block
            self.partitions, self.at = partition_of(self.keys), 0
        return True

    @property
    def end(self) -> tuple[int, int]:
        """Partition and key of the last entry at hand."""
        return int(self.partitions[-1]), int(self.keys[-1])

    def take(self, end: tuple[int, int]) -> slice:
        """Return the entries up to `end`, which are then done with."""
        partition, key = end
        low = int(np.searchsorted(self.partitions, partition, side="left"))
        high = int(np.searchsorted(self.partitions, partition, side="right"))
        stop = low + int(np.searchsorted(self.keys[low:high], key, side="right"))
        part = slice(self.at, max(stop, self.at))
        self.at = part.stop
        return part


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Some entries of a layer: rows, or keys alone if it deletes them."""

    layer: int
    keys: Keys
    rows: RowBlock | None


def merged(
    rows: Sequence[Iterator[RowBlock]], deleted: Sequence[Iterator[Keys]]
) -> Iterator[RowBlock]:
    """Yield the rows that layers leave, each given by its rows and by the keys that it removes."""
    sources = [_Source(layer, blocks) for layer, blocks in enumerate(rows)]
    sources += [_Source(layer, blocks) for layer, blocks in enumerate(deleted)]
    while sources := [source for source in sources if source.is_filled()]:
        end = min(source.end for source in sources)
        parts = [_part_of(source, source.take(end)) for source in sources]
        block = _newest([part for part in parts if len(part.keys)])
        if len(block):
            yield block


def _part_of(source: _Source, part: slice) -> _Part:
    rows = source.block[part] if isinstance(source.block, RowBlock) else None
    return _Part(source.layer, source.keys[part], rows)


def _newest(parts: list[_Part]) -> RowBlock:
    """Return the rows of the newest layer of each key; the parts with rows come first."""
    blocks = [part.rows for part in parts if part.rows is not None]
    if not blocks:
        return _NO_ROWS
    if len(parts) == 1:
        return blocks[0]
    keys = np.concatenate([part.keys for part in parts])
    layers = np.repeat([part.layer for part in parts], [len(part.keys) for part in parts])
    order = np.lexsort((layers, keys, partition_of(keys)))
    is_same_key = keys[order][1:] == keys[order][:-1]
    is_same_layer = layers[order][1:] == layers[order][:-1]
    if (is_same_key & is_same_layer).any():
        at = int((is_same_key & is_same_layer).argmax())
        raise MergeError(
            f"has key {keys[order][at]} both deleted and as a row in layer {layers[order][at]}"
        )
    newest = order[np.append(~is_same_key, True)]
    rows = joined(blocks)
    return rows[newest[newest < len(rows)]]


_NO_ROWS = RowBlock(
    keys=np.empty(0, np.int64),
    values=np.empty((0, 0), np.float32),
    slots=np.empty((0, 0), np.float32),
    freq=np.empty(0, np.uint32),
    step=np.empty(0, np.int64),
)
