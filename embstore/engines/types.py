"""The nouns that engines and tables exchange: rows, candidates, changes and reports."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Any, NamedTuple, Self

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

    Examples
    --------
    >>> import embstore as es
    >>> table = es.Table(dim=2, admission=es.CounterAdmission(min_count=3))
    >>> _ = table.find_or_insert([7, 7], step=0)
    >>> table.candidates().counts
    array([2], dtype=uint32)
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

    Examples
    --------
    >>> import embstore as es
    >>> table = es.Table(dim=2, track_changes=True)
    >>> _ = table.find_or_insert([5, 7], step=0)
    >>> _ = table.erase([5])
    >>> table.changes()
    Changes(upserted=array([7]), deleted=array([5]))
    """

    upserted: NDArray[np.int64]
    deleted: NDArray[np.int64]


class FindResult(NamedTuple):
    """What find returns with ``with_meta=True``: rows, and of each key whether, how often, when.

    Examples
    --------
    >>> import embstore as es
    >>> table = es.Table(dim=1, initializer=es.Constant(0.5))
    >>> _ = table.find_or_insert([7, 7], step=3)
    >>> result = table.find([7, 8], with_meta=True)
    >>> result.found.tolist(), result.freq.tolist(), result.step.tolist()
    ([True, False], [2, 0], [3, -1])
    """

    rows: NDArray[Any]
    found: NDArray[np.bool_]
    freq: NDArray[np.uint32]
    step: NDArray[np.int64]


class ApplyReport(NamedTuple):
    """Unique keys by what apply_gradients did with their gradient.

    Attributes
    ----------
    n_applied : int
        Their row was updated.
    n_dropped : int
        They had no row: pending or refused at forward, or absent.
    n_stale : int
        They had a row at forward and have none now.
    n_nonfinite : int
        Their gradient was not finite, and ``on_nonfinite="skip"``.

    Examples
    --------
    >>> import numpy as np, embstore as es
    >>> table = es.Table(dim=2, optimizer=es.SGD(lr=0.1))
    >>> batch = table.find_or_insert([5, 7], step=0)
    >>> _ = table.erase([5])
    >>> table.apply_gradients(batch, np.ones((2, 2), np.float32), step=0)
    ApplyReport(n_applied=1, n_dropped=0, n_stale=1, n_nonfinite=0)
    """

    n_applied: int
    n_dropped: int
    n_stale: int
    n_nonfinite: int


class LateReport(ApplyReport):
    """The `ApplyReport` of a call that did not wait for the card: reading a field waits.

    Examples
    --------
    >>> import embstore as es
    >>> report = es.LateReport(lambda: es.ApplyReport(2, 0, 1, 0))
    >>> report.n_applied, report == (2, 0, 1, 0)
    (2, True)
    """

    _read: Callable[[], ApplyReport]

    def __new__(cls, read: Callable[[], ApplyReport]) -> Self:
        """Return the report that `read` will return."""
        report = super().__new__(cls, -1, -1, -1, -1)
        report._read = cache(read)
        return report

    @property
    def n_applied(self) -> int:
        """Unique keys whose row was updated."""
        return self._read().n_applied

    @property
    def n_dropped(self) -> int:
        """Unique keys that had no row at forward."""
        return self._read().n_dropped

    @property
    def n_stale(self) -> int:
        """Unique keys that had a row at forward and had none any more."""
        return self._read().n_stale

    @property
    def n_nonfinite(self) -> int:
        """Unique keys that were skipped because their gradient was not finite."""
        return self._read().n_nonfinite

    def __iter__(self) -> Iterator[int]:
        return iter(tuple(self._read()))

    def __getitem__(self, index: Any) -> Any:
        return tuple(self._read())[index]

    def __eq__(self, other: object) -> bool:
        return tuple(self._read()) == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(self._read())


class AssignReport(NamedTuple):
    """Unique keys by what assign did with them.

    Examples
    --------
    >>> import numpy as np, embstore as es
    >>> table = es.Table(dim=2)
    >>> table.assign([5, 7], np.ones((2, 2), np.float32))
    AssignReport(n_replaced=0, n_inserted=2, n_refused=0)
    """

    n_replaced: int
    n_inserted: int
    n_refused: int


class EvictReport(NamedTuple):
    """What evict did; `rows` are the evicted ones (selected ones of a dry run) if asked for.

    Examples
    --------
    >>> import embstore as es
    >>> table = es.Table(dim=2)
    >>> _ = table.find_or_insert([5, 7], step=0)
    >>> report = table.evict(es.StepEviction(10), step=11, keep_at_least=1, return_rows=True)
    >>> report.n_selected, report.n_evicted, report.rows.keys.tolist()
    (2, 1, [5])
    """

    n_scanned: int
    n_selected: int
    n_evicted: int
    is_complete: bool
    rows: Rows | None


class PlanReport(NamedTuple):
    """Bytes a table will hold with the planned rows, and the most it holds on the way there.

    Attributes
    ----------
    resting_bytes : int
        Held in the end, on the card and in the host's memory.
    peak_bytes : int
        The most held at one time on the way there.
    host_bytes : int
        The part of `resting_bytes` that rows in pinned memory of the host take (``hbm_bytes`` of
        `Table`); 0 of tables that have one home.

    Examples
    --------
    >>> import embstore as es
    >>> plan = es.Table.plan(1_000_000, dim=16)
    >>> plan.peak_bytes >= plan.resting_bytes > 64_000_000
    True
    """

    resting_bytes: int
    peak_bytes: int
    host_bytes: int = 0


class PromoteReport(NamedTuple):
    """What promote did, and where the live rows are now.

    Attributes
    ----------
    n_promoted : int
        Rows that went from the host's memory to the card; as many went the other way.
    n_card_rows : int
        Live rows in the card's memory.
    n_host_rows : int
        Live rows in the host's memory; all rows of a table on the CPU.

    Examples
    --------
    >>> import embstore as es
    >>> table = es.Table(dim=2)
    >>> _ = table.find_or_insert([5, 7], step=0)
    >>> table.promote()
    PromoteReport(n_promoted=0, n_card_rows=0, n_host_rows=2)
    """

    n_promoted: int
    n_card_rows: int
    n_host_rows: int


class BufferStats(NamedTuple):
    """The memory of outputs of 1 MiB and more; no table's nbytes counts it.

    Attributes
    ----------
    limit_bytes : int
        The most that may wait: EMBSTORE_BUFFER_BYTES, 256 MiB by default; 0 is no pool.
    kept_bytes : int
        What waits for the next call.
    used_bytes : int
        What arrays hold that are alive.
    n_taken : int
        Blocks taken since the process began.
    n_reused : int
        Those of them that had waited.

    Examples
    --------
    >>> import numpy as np, embstore as es
    >>> table = es.Table(dim=16)
    >>> for _ in range(2):
    ...     rows = table.find(np.zeros(1 << 15, np.int64))
    >>> es.buffer_stats().used_bytes >= rows.nbytes
    True
    """

    limit_bytes: int
    kept_bytes: int
    used_bytes: int
    n_taken: int
    n_reused: int
