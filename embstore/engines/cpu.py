"""The CPU engine: embstore.h through `embstore._core`, call by call."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from embstore import _core
from embstore.engines import native
from embstore.engines.engine import Floats, Gate, JoinedBatch, Keys, Named, Snapshot, Ticket
from embstore.engines.spec import N_PARTITIONS, TableSpec
from embstore.engines.types import (
    ApplyReport,
    AssignReport,
    Candidates,
    Changes,
    EvictReport,
    PlanReport,
    PromoteReport,
    Rows,
)
from embstore.errors import InternalError
from embstore.policies._check import UINT64_MAX
from embstore.policies.eviction import Operation


class CpuEngine:
    """One table on the CPU; see `embstore.engines.engine.Engine` for what the calls mean."""

    has_graphs = False

    def __init__(self, spec: TableSpec, hash_seed: int, collect_evicted: bool) -> None:
        self._core = _core.CoreTable(native.native_config(spec, hash_seed, collect_evicted))
        self.find_fast = self._core.find_fast
        self.contains = self._core.contains
        self.erase = self._core.erase
        self.clear = self._core.clear
        self.set_restoring = self._core.set_restoring
        self.reserve = self._core.reserve
        self.set_pins = self._core.set_pins
        self.bloom_write = self._core.bloom_write
        self.get_state = self._core.get_state
        self.set_state = self._core.set_state
        self.stats = self._core.stats
        self.reset_changes = self._core.reset_changes
        self.close = self._core.close
        self.find_or_insert = self._core.find_or_insert

    def __len__(self) -> int:
        return len(self._core)

    def set_strict(self, is_strict: bool) -> None:
        """Do nothing: every call waits."""

    def named(self) -> tuple[Named, Gate]:
        """Return the table as it is known by names, and its gate."""
        return self._core, _core.CoreGate(self._core)

    def check(self) -> None:
        """Raise ClosedTableError if the table is closed; calls raise what goes wrong themselves."""
        len(self._core)

    def capturing(self) -> AbstractContextManager[None]:
        """Raise InternalError: there are no graphs of a CPU."""
        raise InternalError("the CPU engine captures nothing")

    def replaying(self, step: int | None, lr: float) -> AbstractContextManager[None]:
        """Raise InternalError: there are no graphs of a CPU."""
        raise InternalError("the CPU engine replays nothing")

    def new_output(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an array of the host, to be filled whole."""
        return _core.new_output(shape[0], shape[1] if len(shape) > 1 else -1, dtype)

    @staticmethod
    def find_many(batches: Sequence[JoinedBatch], missing: str) -> None:
        """Fill the rows of all parts."""
        _core.find_many(_native(batches), native.MISSING[missing])

    @staticmethod
    def find_or_insert_many(
        batches: Sequence[JoinedBatch], step: int, admit_always: bool
    ) -> list[Ticket]:
        """Count, admit and create; fill the rows of all parts."""
        return [*_core.find_or_insert_many(_native(batches), step, admit_always)]

    @staticmethod
    def apply_many(batches: Sequence[JoinedBatch], step: int) -> list[ApplyReport]:
        """Update rows by the gradients of all parts."""
        return [ApplyReport(*fields) for fields in _core.apply_many(_native(batches), step)]

    def find(
        self,
        keys: Keys,
        rows: NDArray[Any],
        missing: str,
        found: NDArray[np.bool_] | None,
        freq: NDArray[np.uint32] | None,
        step: NDArray[np.int64] | None,
    ) -> None:
        """Fill `rows` and those of `found`, `freq` and `step` that are given."""
        self._core.find(keys, rows, native.MISSING[missing], found, freq, step)

    def assign(self, keys: Keys, values: Floats, mode: str, step: int) -> AssignReport:
        """Replace, or add to, the values of `keys`."""
        return AssignReport(*self._core.assign(keys, values, native.ASSIGN_MODES[mode], step))

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
        """Remove what the predicate selects."""
        report = self._core.evict(
            native.native_predicates(predicates),
            step,
            UINT64_MAX if max_rows is None else max_rows,
            keep_at_least,
            pins,
            max_seconds or 0.0,
            is_dry_run,
            collect,
        )
        return EvictReport(*report, rows=None)

    def promote(self, max_rows: int | None) -> PromoteReport:
        """Say where the rows are: there is nowhere else for them."""
        return PromoteReport(0, 0, len(self))

    def take_evicted(self) -> Rows:
        """Return and forget the collected evicted rows."""
        return Rows(*self._core.evicted_take(self._core.evicted_count()))

    def partition_counts(self, candidates: bool = False) -> NDArray[np.uint64]:
        """Return the live rows (or candidates) of each partition."""
        return self._core.partition_counts(candidates)

    def export_rows(self, first: int, last: int) -> Rows:
        """Return the rows of partitions [first, last]."""
        return Rows(*self._core.export_rows(first, last, self._count(first, last, False)))

    def import_rows(self, rows: Rows) -> None:
        """Create or replace complete rows."""
        self._core.import_rows(rows.keys, rows.values, rows.slots, rows.freq, rows.step)

    def export_candidates(self, first: int, last: int) -> Candidates:
        """Return the candidates of partitions [first, last]."""
        n = self._count(first, last, True)
        return Candidates(*self._core.export_candidates(first, last, n))

    def import_candidates(self, candidates: Candidates) -> None:
        """Create candidates."""
        self._core.import_candidates(candidates.keys, candidates.counts, candidates.epochs)

    def bloom_read(self, partition: int) -> NDArray[np.uint8]:
        """Return the bytes of one sub-filter; empty without a filter."""
        if self._core.bloom_partition_bytes() == 0:
            return np.empty(0, np.uint8)
        return self._core.bloom_read(partition)

    def changes(self) -> Changes:
        """Return the change log."""
        return Changes(*self._core.changes())

    def snapshot(self, is_delta: bool, log_bytes: int, file: int) -> Snapshot:
        """Return the table as of now."""
        return _core.CoreSnapshot(self._core, is_delta, log_bytes, file)

    def _count(self, first: int, last: int, candidates: bool) -> int:
        """Return the number of rows (or candidates) of partitions [first, last]."""
        if not 0 <= first <= last < N_PARTITIONS:
            raise InternalError(f"partitions must lie in [0, {N_PARTITIONS}), got {first}..{last}")
        return int(self.partition_counts(candidates)[first : last + 1].sum())


def _native(batches: Sequence[JoinedBatch]) -> list[Any]:
    """Return the batches as the binding takes them."""
    return [(cast(CpuEngine, b.engine)._core, b.parts, b.ticket, b.lr) for b in batches]


def plan(spec: TableSpec, n_rows: int, n_candidates: int) -> PlanReport:
    """Return the bytes that a table of `spec` will hold with so many rows and candidates."""
    config = native.native_config(spec, 0, collect_evicted=False)
    return PlanReport(*_core.plan(config, n_rows, n_candidates))
