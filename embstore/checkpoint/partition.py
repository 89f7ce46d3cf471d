"""The order of keys in files: by (partition, key); docs/semantics.md, section 1."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

N_PARTITIONS = 256

Keys = NDArray[np.int64]


def partition_of(keys: Keys) -> NDArray[np.uint8]:
    """Return the partition of each key: the top 8 bits of its fixed hash."""
    z = keys.view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(56)).astype(np.uint8)


def in_file_order(keys: Keys) -> Keys:
    """Return `keys` sorted by (partition, key)."""
    return keys[np.lexsort((keys, partition_of(keys)))]


def partition_slice(keys: Keys, first: int, last: int) -> slice:
    """Return where keys of partitions [first, last] lie among `keys` in the order of files."""
    if (first, last) == (0, N_PARTITIONS - 1):
        return slice(0, len(keys))
    partitions = partition_of(keys)
    begin = np.searchsorted(partitions, first, side="left")
    return slice(int(begin), int(np.searchsorted(partitions, last, side="right")))


class OrderCheck:
    """Follows the keys of one table through blocks and files: ascending, and where they belong."""

    def __init__(self) -> None:
        self._last: Keys = np.empty(0, np.int64)

    def fault(self, keys: Keys, first: int, last: int) -> str | None:
        """Return what is wrong with the next block, all of whose keys lie in [first, last]."""
        partitions = partition_of(keys)
        is_outside: NDArray[np.bool_] = (partitions < first) | (partitions > last)
        if is_outside.any():
            at = int(is_outside.argmax())
            return f"key {keys[at]} is of partition {partitions[at]}, not of {first}..{last}"
        row = self._first_out_of_order(keys, partitions)
        self._last = keys[-1:].copy()
        return row

    def _first_out_of_order(self, keys: Keys, partitions: NDArray[Any]) -> str | None:
        if len(self._last):
            keys = np.concatenate([self._last, keys])
            partitions = np.concatenate([partition_of(self._last), partitions])
        same = partitions[1:] == partitions[:-1]
        is_after = (partitions[1:] > partitions[:-1]) | (same & (keys[1:] > keys[:-1]))
        if is_after.all():
            return None
        at = int(is_after.argmin())
        what = "twice" if keys[at] == keys[at + 1] else f"after key {keys[at]}, out of order"
        return f"key {keys[at + 1]} comes {what}"
