"""The nouns that engines and tables exchange: rows, candidates, changes and reports."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class KeyStatus(IntEnum):
    """What find_or_insert did with a unique key of its batch.

    Examples
    --------
    >>> import embstore as es
    >>> batch = es.Table(dim=2).find_or_insert([7, 7], step=0)
    >>> es.KeyStatus(batch.status[0]).name
    'INSERTED'
    """

    FOUND = 0
    INSERTED = 1
    PENDING = 2
    REFUSED = 3


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Complete rows of a table, as export gives and import_ takes them.

    Attributes
    ----------
    keys : (n,) int64
    values : (n, dim)
        float32, or float16 of a float16 table; rows of bfloat16 tables cross as float32.
    slots : (n, slot_floats) float32
        Optimizer state, the slots of ``Table.slots`` one after another.
    freq : (n,) uint32
        How often the key was seen (0 to 2**32 - 1, saturating).
    step : (n,) int64
        The step of the last training, or of birth; -1 for keys that have no row.

    Examples
    --------
    >>> import embstore as es
    >>> table = es.Table(dim=2, optimizer=es.Adagrad())
    >>> _ = table.find_or_insert([3, 5, 3], step=9)
    >>> (rows,) = table.export()
    >>> sorted(zip(rows.keys.tolist(), rows.freq.tolist(), rows.step.tolist()))
    [(3, 2, 9), (5, 1, 9)]
    >>> other = es.Table(dim=2, optimizer=es.Adagrad())
    >>> other.import_(rows)
    >>> len(other)
    2
    """

    keys: NDArray[np.int64]
    values: NDArray[Any]
    slots: NDArray[np.float32]
    freq: NDArray[np.uint32]
    step: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: slice) -> "Rows":
        return Rows(
            self.keys[index],
            self.values[index],
            self.slots[index],
            self.freq[index],
            self.step[index],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Keys that CounterAdmission has counted and not admitted.

    Attributes
    ----------
    keys : (n,) int64
    counts : (n,) uint32
    epochs : (n,) int64
        The coarse time of the last sight: step // max(1, candidate_ttl // 16).
    """

    keys: NDArray[np.int64]
    counts: NDArray[np.uint32]
    epochs: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """Keys written, and keys removed, since the change log began; each sorted by (partition, key).

    Attributes
    ----------
    upserted : (n,) int64
        Live keys that were born or written.
    deleted : (m,) int64
        Keys that had a row and have none now.
    """

    upserted: NDArray[np.int64]
    deleted: NDArray[np.int64]


class FindResult(NamedTuple):
    """What find returns with ``with_meta=True``: rows, and of each key whether, how often, when."""

    rows: NDArray[Any]
    found: NDArray[np.bool_]
    freq: NDArray[np.uint32]
    step: NDArray[np.int64]


class ApplyReport(NamedTuple):
    """Unique keys by what apply_gradients did with their gradient."""

    n_applied: int
    n_dropped: int
    n_stale: int
    n_nonfinite: int


class AssignReport(NamedTuple):
    """Unique keys by what assign did with them."""

    n_replaced: int
    n_inserted: int
    n_refused: int


class EvictReport(NamedTuple):
    """What evict did; `rows` are the evicted ones (selected ones of a dry run) if asked for."""

    n_scanned: int
    n_selected: int
    n_evicted: int
    is_complete: bool
    rows: Rows | None


class PlanReport(NamedTuple):
    """Bytes a table will hold with the planned rows, and the most it holds on the way there."""

    resting_bytes: int
    peak_bytes: int
