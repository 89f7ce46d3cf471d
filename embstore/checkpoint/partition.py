"""Partitions, and the order of keys in files: by (partition, key); docs/semantics.md, 1."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

N_PARTITIONS = 256

Keys = NDArray[np.int64]


def fixed_hash(keys: Keys) -> NDArray[np.uint64]:
    """Return the hash of each key that partitions and shards are made by."""
    z = keys.view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def partition_of(keys: Keys) -> NDArray[np.uint8]:
    """Return the partition of each key: the top 8 bits of its fixed hash."""
    return (fixed_hash(keys) >> np.uint64(56)).astype(np.uint8)


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
            return order_fault(keys[int(is_outside.argmax())], None, first, last)
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
        return order_fault(keys[at + 1], keys[at], 0, N_PARTITIONS - 1)


def order_fault(key: Any, before: Any, first: int, last: int) -> str:
    """Return what is wrong with `key`, which does not belong after the key `before`."""
    partition = int(partition_of(np.array([key], np.int64))[0])
    if not first <= partition <= last:
        return f"key {key} is of partition {partition}, not of {first}..{last}"
    what = "twice" if key == before else f"after key {before}, out of order"
    return f"key {key} comes {what}"


def is_before(key: int, other: int) -> bool:
    """Whether a key comes before another by (partition, key)."""
    first, second = partition_of(np.array([key, other], np.int64)).tolist()
    return bool((first, key) < (second, other))
