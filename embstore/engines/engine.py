"""The seam between tables and engines: what each engine offers, in numpy arrays that were checked.

Every array handed to an engine is C-contiguous, aligned, of the dtype named here and of a length
that fits the others (`embstore.engines.arrays` sees to it). Any number of threads may call `find`
and `contains` while others write; writers queue. Calls that consist of several native ones (export,
changes, take_evicted) need the writers held out by their caller. After `close` every call raises
ClosedTableError.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from embstore.engines.types import (
    ApplyReport,
    AssignReport,
    Candidates,
    Changes,
    EvictReport,
    PromoteReport,
    Rows,
)
from embstore.policies.eviction import Operation

Keys = NDArray[np.int64]
Floats = NDArray[np.float32]


class Ticket(Protocol):
    """What find_or_insert remembers of a batch, so that backward neither hashes nor deduplicates.

    The arrays lie in the ticket's memory, are read-only, and keep it alive.
    """

    def arrays(self) -> tuple[Keys, NDArray[np.uint8], NDArray[np.uint32]]:
        """Return (keys, status, inverse).

        The unique keys in order of first occurrence, (n_unique,); the `KeyStatus` of each; and the
        place of each key of the batch among them, (n,).
        """
        ...

    def n(self) -> int:
        """Return the number of keys."""
        ...

    def n_unique(self) -> int:
        """Return the number of unique keys."""
        ...


class Bags(NamedTuple):
    """How keys are pooled: bag i holds those from offsets[i] to offsets[i + 1]; no padding."""

    offsets: Keys
    mode: str
    weights: Floats | None

    @property
    def n_keys(self) -> int:
        """Number of keys in all bags."""
        return int(self.offsets[-1])

    @property
    def n_bags(self) -> int:
        """Number of bags."""
        return len(self.offsets) - 1


class Part(NamedTuple):
    """One feature of a table's batch.

    `keys` are None where a ticket knows them. `rows` are memory for the rows, or hold their
    gradients, float32: (n, dim), or, with bags, (n_bags, dim) float32.
    """

    keys: Keys | None
    rows: NDArray[Any]
    counts: NDArray[np.uint32] | None = None
    bags: Bags | None = None

    @property
    def n_keys(self) -> int:
        """Number of keys."""
        return len(self.rows) if self.bags is None else self.bags.n_keys


class JoinedBatch(NamedTuple):
    """One table's batch: its parts, joined in their order, are one to admission and updates."""

    engine: "Engine"
    parts: Sequence[Part]
    ticket: Ticket | None = None
    lr: float = 0.0


class Snapshot(Protocol):
    """A table as of one moment, read by one thread while others write to the table.

    What is lost by a full disk or for want of memory is the snapshot, never a write: its calls
    raise CheckpointError then.
    """

    def prepare(self, n_threads: int, prefault: bool) -> None:
        """Put the rows in order, and take the log's memory if asked; before anything is read."""
        ...

    def stats(self) -> dict[str, int]:
        """Return error, n_rows (to be read), n_live, n_candidates, n_deleted, n_in_file."""
        ...

    def state(self) -> dict[str, Any]:
        """Return ``es_state`` as of then."""
        ...

    def counts(self, candidates: bool) -> NDArray[np.uint64]:
        """Return the rows to be read (or candidates) of each of the 256 partitions."""
        ...

    def rows(
        self, first: int, n: int, n_threads: int
    ) -> tuple[Keys, NDArray[Any], Floats, NDArray[np.uint32], NDArray[np.int64]]:
        """Return rows [first, first + n) by (partition, key), each of which can be read once.

        keys, values as stored, slots, freq, step.
        """
        ...

    def deleted(self) -> Keys:
        """Return, of a delta, the keys that were removed and had no row then."""
        ...

    def candidates(self, first: int, n: int) -> tuple[Keys, NDArray[np.uint32], Keys]:
        """Return keys, counts and epochs of candidates [first, first + n)."""
        ...

    def bloom(self, partition: int) -> NDArray[np.uint8]:
        """Return the bytes of one sub-filter; partitions in ascending order, each once."""
        ...

    def end(self, is_saved: bool) -> None:
        """End it; unless it was saved, the change log is as if there had been none.

        One that has ended is left alone.
        """
        ...


class Named(Protocol):
    """A table as it is known by names in this process; ops of frameworks find it by them."""

    def publish(self, name: bytes) -> None:
        """Give it a name, which no other table may have."""
        ...

    def withdraw(self, name: bytes) -> None:
        """End a name."""
        ...

    def take_names(self, other: Any) -> None:
        """Take over all names of another table, and its gate."""
        ...

    def set_rate(self, lr: float) -> None:
        """Set the learning rate of updates by name; NaN if there is none."""
        ...


class Gate(Protocol):
    """Holds out those who write to a table by its name."""

    def acquire(self) -> None:
        """Wait for it, and hold it."""
        ...

    def release(self) -> None:
        """Let it go."""
        ...


class Engine(Protocol):
    """A table's storage on one device.

    The static calls serve many tables on this kind of device, each at most once, in one native
    call. All arguments are checked before the first table is served; one that fails then does not
    keep the others from being served, and what the first of those raised comes out.
    """

    @property
    def has_graphs(self) -> bool:
        """Whether CUDA graphs may hold calls of it."""
        ...

    @staticmethod
    def find_many(batches: Sequence[JoinedBatch], missing: str) -> None:
        """Fill the rows of all parts."""
        ...

    @staticmethod
    def find_or_insert_many(
        batches: Sequence[JoinedBatch], step: int, admit_always: bool
    ) -> list[Ticket]:
        """Count, admit and create; fill the rows of all parts; return a ticket for each batch."""
        ...

    @staticmethod
    def apply_many(batches: Sequence[JoinedBatch], step: int) -> list[ApplyReport]:
        """Update the rows of each batch's ticket, or, without one, of its keys."""
        ...

    def set_strict(self, is_strict: bool) -> None:
        """Say whether every call waits until its work is done, and raises what went wrong."""
        ...

    def check(self) -> None:
        """Raise what went wrong in calls that did not wait."""
        ...

    def capturing(self) -> AbstractContextManager[None]:
        """Let calls inside be captured in a graph of the device."""
        ...

    def replaying(self, step: int | None, lr: float) -> AbstractContextManager[None]:
        """Frame the replay of a graph; `step` None if nothing but reads was captured."""
        ...

    def new_output(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an array, to be filled whole, in the memory of this engine's device."""
        ...

    def find_fast(self, keys: object, out: object) -> NDArray[Any] | None:
        """Find with default rows for exact arrays (`out` may be None); None for anything else."""
        ...

    def find(
        self,
        keys: Keys,
        rows: NDArray[Any],
        missing: str,
        found: NDArray[np.bool_] | None,
        freq: NDArray[np.uint32] | None,
        step: NDArray[np.int64] | None,
    ) -> None:
        """Fill `rows` (n, dim), and those of `found`, `freq`, `step` (n,) that are given."""
        ...

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """Return which keys have a row."""
        ...

    def find_or_insert(
        self,
        keys: Keys,
        step: int,
        counts: NDArray[np.uint32] | None,
        admit_always: bool,
        rows: NDArray[Any] | None,
    ) -> Ticket:
        """Count, admit and create; fill `rows` (n, dim) if given."""
        ...

    def assign(self, keys: Keys, values: Floats, mode: str, step: int) -> AssignReport:
        """Replace, or add to, the values of `keys`."""
        ...

    def erase(self, keys: Keys) -> int:
        """Remove rows and candidates; return how many rows."""
        ...

    def clear(self) -> None:
        """Remove all rows, candidates and counts."""
        ...

    def set_restoring(self, is_restoring: bool) -> None:
        """Say whether what is imported comes out of a checkpoint: max_bytes is not asked then."""
        ...

    def reserve(self, n_rows: int) -> None:
        """Make and touch memory for `n_rows` rows."""
        ...

    def evict(
        self,
        predicates: tuple[Operation, ...],
        step: int,
        max_rows: int | None,
        keep_at_least: int,
        pins: Keys,
        max_seconds: float | None,
        is_dry_run: bool,
        collect: bool,
    ) -> EvictReport:
        """Remove what the predicate selects; with `collect`, `take_evicted` gives the rows."""
        ...

    def promote(self, max_rows: int | None) -> PromoteReport:
        """Let at most `max_rows` hot rows of the host change places with cold ones of the card."""
        ...

    def set_pins(self, keys: Keys) -> None:
        """Replace the pinned keys."""
        ...

    def take_evicted(self) -> Rows:
        """Return and forget the collected evicted rows."""
        ...

    def partition_counts(self, candidates: bool = False) -> NDArray[np.uint64]:
        """Return the live rows (or candidates) of each of the 256 partitions."""
        ...

    def export_rows(self, first: int, last: int) -> Rows:
        """Return the rows of partitions [first, last] by (partition, key), values as stored."""
        ...

    def import_rows(self, rows: Rows) -> None:
        """Create or replace complete rows, values as stored."""
        ...

    def export_candidates(self, first: int, last: int) -> Candidates:
        """Return the candidates of partitions [first, last] by (partition, key)."""
        ...

    def import_candidates(self, candidates: Candidates) -> None:
        """Create candidates; their keys must be absent."""
        ...

    def bloom_read(self, partition: int) -> NDArray[np.uint8]:
        """Return the bytes of one sub-filter; empty without a filter."""
        ...

    def bloom_write(self, partition: int, data: NDArray[np.uint8]) -> None:
        """Replace the bytes of one sub-filter."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Return ``es_state``: steps, powers, next times, totals."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Set ``es_state``, all fields of it."""
        ...

    def stats(self) -> dict[str, int]:
        """Return ``es_stats``: numbers of rows and cells, bytes by use."""
        ...

    def changes(self) -> Changes:
        """Return the change log."""
        ...

    def snapshot(self, is_delta: bool, log_bytes: int, file: int) -> Snapshot:
        """Return the table as of now, or what the change log names of it; begin a new log.

        Writers put rows that were not read yet into a log of `log_bytes` before they change them,
        and beyond that into `file`, the descriptor of an empty file, or -1.
        """
        ...

    def reset_changes(self) -> None:
        """Begin a new change log."""
        ...

    def named(self) -> tuple[Named, Gate] | None:
        """Return the table as it is known by names, and its gate; None where it cannot be."""
        ...

    def close(self) -> None:
        """Give the memory back, as soon as no other thread is inside a call."""
        ...

    def __len__(self) -> int:
        """Return the number of live rows."""
        ...
