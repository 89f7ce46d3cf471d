"""The rows of the model: a dict from key to a place in growing numpy arrays."""

from dataclasses import dataclass

import numpy as np

from .hashing import partition_of

COLUMNS = ("keys", "values", "slots", "freq", "step")


@dataclass
class Rows:
    """Complete rows, as `export`, `evict(return_rows=True)` and `import_` exchange them."""

    keys: np.ndarray
    values: np.ndarray
    slots: np.ndarray
    freq: np.ndarray
    step: np.ndarray

    def __len__(self):
        return len(self.keys)


def in_order(keys):
    """Return `keys` by (partition, key)."""
    return keys[np.lexsort((keys, partition_of(keys)))]


class RowStore:
    """key -> place, and at each place a row; places of removed rows are used again."""

    def __init__(self, dim, n_slots):
        self.places = {}
        self.free = []
        self.keys = np.zeros(0, np.int64)
        self.values = np.zeros((0, dim), np.float32)
        self.slots = np.zeros((0, n_slots), np.float32)
        self.freq = np.zeros(0, np.uint32)
        self.step = np.zeros(0, np.int64)

    def __len__(self):
        return len(self.places)

    def find(self, keys):
        """Return the place of each key, -1 where it has no row."""
        get = self.places.get
        return np.array([get(key, -1) for key in keys.tolist()], np.int64)

    def add(self, keys):
        """Make places for new keys and return them; the caller fills in the rows."""
        missing = len(keys) - len(self.free)
        if missing > 0:
            size = len(self.keys)
            more = max(missing, size)
            for name in COLUMNS:
                old = getattr(self, name)
                new = np.zeros((more, *old.shape[1:]), old.dtype)
                setattr(self, name, np.concatenate((old, new)))
            self.free += range(size + more - 1, size - 1, -1)
        at = np.array([self.free.pop() for _ in range(len(keys))], np.int64)
        self.keys[at] = keys
        self.places.update(zip(keys.tolist(), at.tolist(), strict=True))
        return at

    def remove(self, at):
        """Remove the rows at these places."""
        for key in self.keys[at].tolist():
            self.free.append(self.places.pop(key))

    def live(self):
        """Return the places of all rows."""
        return np.fromiter(self.places.values(), np.int64, len(self.places))

    def rows(self, at):
        """Return a copy of the rows at these places."""
        return Rows(*(getattr(self, name)[at] for name in COLUMNS))

    def export(self):
        """Return all rows by (partition, key)."""
        at = self.live()
        keys = self.keys[at]
        return self.rows(at[np.lexsort((keys, partition_of(keys)))])


class ChangeLog:
    """Live keys written, and keys removed and absent, since it was made."""

    def __init__(self):
        self.upserted, self.deleted = set(), set()

    def note_written(self, keys):
        self.upserted.update(keys.tolist())
        self.deleted.difference_update(keys.tolist())

    def note_removed(self, keys):
        self.deleted.update(keys.tolist())
        self.upserted.difference_update(keys.tolist())

    def read(self):
        """Return (upserted, deleted), each by (partition, key)."""
        return tuple(
            in_order(np.array([*keys], np.int64)) for keys in (self.upserted, self.deleted)
        )
