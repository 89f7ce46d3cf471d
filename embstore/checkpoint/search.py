"""Binary search of many keys at once in the blocks of a layer: partition, file, block, row.

Only blocks that the search compares with are touched; damaged ones are passed over, and matter to
keys alone that could lie in one of them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from embstore.checkpoint.lazy import Ints, LazyBlocks, Live
from embstore.checkpoint.partition import partition_of

Partitions = NDArray[np.uint8]
Mask = NDArray[np.bool_]


class Places(NamedTuple):
    """Where some of the keys that were looked for lie: which of them, and block and row of each."""

    keys: Ints
    blocks: Ints
    rows: Ints


class _NewDamageError(Exception):
    """A block that was not known to be damaged is."""


def find_places(blocks: LazyBlocks, partitions: Partitions, keys: Ints) -> Places:
    """Return the places of those keys that are there.

    Raises
    ------
    CorruptCheckpointError
        If a key may lie in a damaged block.
    """
    files = np.searchsorted(blocks.file_last, partitions)
    chosen = np.flatnonzero(blocks.file_first[files] <= partitions)
    if len(chosen) < len(keys):
        files, partitions, keys = files[chosen], partitions[chosen], keys[chosen]
    found = _blocks_of(blocks, files, partitions, keys)
    within = np.flatnonzero(found >= 0)
    found, partitions, keys = found[within], partitions[within], keys[within]
    rows = _rows_of(blocks, found, partitions, keys)
    is_there = _words(blocks)[blocks.bodies[found] // 8 + rows] == keys
    return Places(chosen[within[is_there]], found[is_there], rows[is_there])


def _bisected(counts: Ints, precede: Callable[[Ints, Mask], Mask]) -> Ints:
    """Return how many of its `counts` sorted items precede what each entry looks for.

    ``precede(items, is_asked)`` tells it of one item of each entry, where `is_asked`.
    """
    n_before = np.zeros(len(counts), np.int64)
    for power in reversed(range(int(counts.max(initial=0)).bit_length())):
        probe = n_before + (1 << power)
        is_asked = probe <= counts
        is_before = precede(np.minimum(probe, counts) - 1, is_asked) & is_asked
        n_before += is_before.astype(np.int64) << power
    return n_before


def _blocks_of(blocks: LazyBlocks, files: Ints, partitions: Partitions, keys: Ints) -> Ints:
    """Return the one block that may hold each key, -1 if none does."""
    while True:
        live = blocks.live
        try:
            n_before = _n_blocks_before(blocks, live, files, partitions, keys)
        except _NewDamageError:
            continue
        places = live.begins[files] + n_before - 1
        found = np.full(len(keys), -1)
        is_inside = n_before > 0
        found[is_inside] = own = live.blocks[places[is_inside]]
        is_beyond = _precedes(
            blocks.last_partition[own], blocks.last_key[own], partitions[is_inside], keys[is_inside]
        )
        is_inside[is_inside] = ~is_beyond
        if blocks.has_damage and not is_inside.all():
            _check_gaps(blocks, live, files, found, places + 1, is_inside)
        return np.where(is_inside, found, -1)


def _n_blocks_before(
    blocks: LazyBlocks, live: Live, files: Ints, partitions: Partitions, keys: Ints
) -> Ints:
    """Return how many live blocks of its file begin at or before each key."""
    begins = live.begins[files]

    def precede(items: Ints, is_asked: Mask) -> Mask:
        asked = live.blocks[begins + items]
        if not blocks.touch(asked[is_asked]):
            raise _NewDamageError
        return ~_precedes(partitions, keys, blocks.first_partition[asked], blocks.first_key[asked])

    return _bisected(live.begins[files + 1] - begins, precede)


def _precedes(
    some_partitions: Partitions, some_keys: Ints, partitions: Partitions, keys: Ints
) -> Mask:
    """Whether some keys come before others in the order of files."""
    is_same = some_partitions == partitions
    precede: Mask = (some_partitions < partitions) | (is_same & (some_keys < keys))
    return precede


def _check_gaps(
    blocks: LazyBlocks, live: Live, files: Ints, found: Ints, following: Ints, is_inside: Mask
) -> None:
    """Raise if a key is in no sound block, and one between those about it is damaged."""
    for i in np.flatnonzero(~is_inside).tolist():
        begin, end = blocks.bounds(int(files[i]))
        if found[i] >= 0:
            begin = int(found[i]) + 1
        if following[i] < live.begins[files[i] + 1]:
            end = int(live.blocks[following[i]])
        damaged = blocks.damaged_between(begin, end)
        if damaged is not None:
            blocks.require(damaged)


def _words(blocks: LazyBlocks) -> Ints:
    return blocks.memory.view(np.int64)


def _rows_of(blocks: LazyBlocks, found: Ints, partitions: Partitions, keys: Ints) -> Ints:
    """Return the row of its block at which each key lies, if it is there."""
    words, begins = _words(blocks), blocks.bodies[found] // 8
    is_one = bool((blocks.first_partition[found] == blocks.last_partition[found]).all())

    def precede(items: Ints, is_asked: Mask) -> Mask:
        there = words[begins + items]
        if is_one:
            is_before: Mask = there < keys
            return is_before
        return _precedes(partition_of(there), there, partitions, keys)

    return _bisected(blocks.n_rows[found], precede)
