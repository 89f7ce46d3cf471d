"""The verbs of a CUDA table that move whole rows, and look at the whole: export, import, stats."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore.engines.cuda import transfer, upkeep
from embstore.engines.cuda.batch import Distinct
from embstore.engines.cuda.core import ADMITS_ALL, CLOCK_NAMES, COUNTED_NAMES
from embstore.engines.cuda.inserting import CudaInserting
from embstore.engines.cuda.room import Budget
from embstore.engines.cuda.row_bits import RowList
from embstore.engines.cuda.snapshot import CudaSnapshot
from embstore.engines.cuda.storage import LINE_CELLS
from embstore.engines.spec import N_PARTITIONS
from embstore.engines.types import Candidates, Changes, Rows
from embstore.errors import ArgumentError, CapacityError, InternalError

MOST_EPOCHS = (1 << 18) - 1  # that a candidate's cell tells apart


class CudaContent(CudaInserting):
    """Export, import, candidates, the change log, statistics and snapshots."""

    # ---- rows out

    def partition_counts(self, candidates: bool = False) -> NDArray[np.uint64]:
        """Return the live rows (or candidates) of each of the 256 partitions."""
        with self._entered():
            order = self._candidate_order if candidates else self._export_order
            order.prepare(self._launcher, self._table(), self._write_count)
            return order.counts()

    def export_rows(self, first: int, last: int) -> Rows:
        """Return the rows of partitions [first, last]."""
        self._check_partitions(first, last)
        with self._entered():
            self._export_order.prepare(self._launcher, self._table(), self._write_count)
            rows = self._reader.read(self._table(), self._export_order.rows(first, last))
            if last == N_PARTITIONS - 1:
                self._export_order.drop()  # whoever reads all of it comes by here last
        return rows

    def export_candidates(self, first: int, last: int) -> Candidates:
        """Return the candidates of partitions [first, last]."""
        self._check_partitions(first, last)
        with self._entered():
            self._candidate_order.prepare(self._launcher, self._table(), self._write_count)
            return self._candidate_order.read(self._launcher, self._table(), first, last)

    @staticmethod
    def _check_partitions(first: int, last: int) -> None:
        if not 0 <= first <= last < N_PARTITIONS:
            raise InternalError(f"partitions must lie in [0, {N_PARTITIONS}), got {first}..{last}")

    # ---- rows in

    def set_restoring(self, is_restoring: bool) -> None:
        """Say whether what is imported comes out of a checkpoint: max_bytes is not asked then."""
        with self._writing():
            self._is_restoring = is_restoring

    def import_rows(self, rows: Rows) -> None:
        """Create or replace complete rows."""
        n = len(rows)
        with self._writing():
            latest = int(rows.step.max()) if n else 0
            distinct = self._absent_born(rows.keys, "import: a key is given twice")
            self._fit_import(distinct)
            self._advance_base(latest)
            self._protect(distinct.rows, n, distinct.n_unique)
            self._commit(distinct, self._clock.step_base, has_counts=False)
            self._counters()
            data = {"values": rows.values, "slots": rows.slots, "freq": rows.freq}
            listed = RowList(distinct.rows, n)
            if n:
                self._writer.write(self._table(), listed, data | {"step": rows.step}, 0)
            self._clock.saw(latest)

    def _absent_born(self, keys: NDArray[np.int64], fault: str) -> Distinct:
        """Return the given keys, of which those without a row are to be born; none comes twice."""
        n = len(keys)
        distinct = self._distinct(self._upload("keys", keys), None, n)
        if self._word(distinct.n_unique) != n:
            raise ArgumentError(f"{self._where}: {fault}")
        distinct.look_up(self._launcher, self._storage.view, ADMITS_ALL)
        return distinct

    def _fit_import(self, distinct: Distinct) -> None:
        """Make room for the keys to be born, or raise CapacityError."""
        tally = self._tallied(distinct)
        counters = self._counters()
        n_rows, n_cells = self._needed(tally)
        max_rows = self._spec.max_rows
        has_rows = max_rows is None or counters.n_live + n_rows <= max_rows
        if not has_rows or not Budget(self._storage, counters, self._max_bytes).fits(
            n_rows, n_cells
        ):
            raise CapacityError(
                f"{self._where}: import: {n_rows} new rows do not fit beside {counters.n_live}"
            )
        self._reserve(distinct, n_rows, n_cells, 0)

    def import_candidates(self, candidates: Candidates) -> None:
        """Create candidates; their keys must be absent."""
        n, where = len(candidates), self._where
        with self._writing():
            if not self._has_counter:
                raise ArgumentError(
                    f"{where}: import_candidates: the table has no counter admission"
                )
            distinct = self._absent_born(candidates.keys, "import_candidates: a key is given twice")
            self._check_candidates(candidates, distinct)
            counters = self._counters()
            if not Budget(self._storage, counters, self._max_bytes).fits(0, n):
                raise CapacityError(
                    f"{where}: import_candidates: {n} candidates do not fit into max_bytes"
                )
            self._storage.reserve_cells(counters.n_live + counters.n_candidates + n)
            transfer.insert_candidates(self._launcher, self._table(), candidates)
            self._counters()

    def _check_candidates(self, candidates: Candidates, distinct: Distinct) -> None:
        where = f"{self._where}: import_candidates"
        needs = self._needs(distinct)
        if needs.has_cell.any():
            raise ArgumentError(f"{where}: a key is in the table already")
        if (candidates.counts >= self._config["min_count"]).any():
            raise ArgumentError(f"{where}: a count reaches min_count")
        ages = self._clock.candidate_epoch - candidates.epochs
        if ((candidates.epochs < 0) | (ages < 0) | (ages > MOST_EPOCHS)).any():
            raise ArgumentError(f"{where}: an epoch is not one that a candidate can have")

    # ---- state and statistics

    def get_state(self) -> dict[str, Any]:
        """Return ``es_state``: steps, powers, next times, totals."""
        with self._entered():
            return self._state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Set ``es_state``, all fields of it."""
        with self._writing():
            step, base = state["step"], state["step_base"]
            if step < 0 or base < 0 or base > step:
                raise ArgumentError(f"{self._where}: a state's steps are out of order")
            if self._counters().n_live and base != self._clock.step_base:
                raise ArgumentError(f"{self._where}: step_base is set before rows are imported")
            for name in CLOCK_NAMES:
                setattr(self._clock, name, state[name])
            self._storage.upload_counters(**{name: state[name] for name in COUNTED_NAMES})
            self._counters()
            self._set_clock()

    def stats(self) -> dict[str, int]:
        """Return ``es_stats``: numbers of rows and cells, bytes by use."""
        with self._entered():
            counters, storage = self._counters(), self._storage
            self._check_data(counters)
            n_bits = 8 * storage.bloom_bytes
            used = 0
            if n_bits:
                used = upkeep.bloom_cells_used(self._launcher, self._table(), storage.bloom_bytes)
            by_use = storage.bytes_by_use()
            by_use["nbytes_other"] += self._held_bytes()
            return {
                "slot_floats": self._spec.slot_floats,
                "n_live": counters.n_live,
                "n_candidates": counters.n_candidates,
                "n_tombstones": 0,
                "n_cells": LINE_CELLS * storage.n_lines,
                **by_use,
                "host_bytes": storage.chunks.host_bytes,
                "bloom_cells": n_bits // max(1, self._config["bloom_cell_bits"]),
                "bloom_cells_used": used,
            }

    def _held_bytes(self) -> int:
        """Return the bytes beside storage and scratch."""
        held = self._export_order.n_bytes + self._candidate_order.n_bytes
        return held + (0 if self._snapshot is None else self._snapshot.n_bytes)

    # ---- the change log

    def changes(self) -> Changes:
        """Return the change log."""
        with self._entered():
            n_log = self._counters().n_log
            storage = self._storage
            return transfer.changes(
                self._launcher,
                self._table(),
                storage.dirty_address,
                storage.removed_address,
                n_log,
            )

    def reset_changes(self) -> None:
        """Begin a new change log."""
        with self._writing():
            self._take_log()

    # ---- snapshots

    def snapshot(self, is_delta: bool, log_bytes: int, file: int) -> CudaSnapshot:
        """Return the table as of now, or what the change log names of it; begin a new log."""
        with self._writing():
            if is_delta and not self._spec.track_changes:
                raise ArgumentError(f"{self._where}: a delta needs track_changes")
            if self._snapshot is not None:
                raise ArgumentError(f"{self._where}: another snapshot of this table is being saved")
            self._check_data(self._counters())
            snapshot = CudaSnapshot(self, is_delta, log_bytes, file)
            self._snapshot = snapshot.cut
            self._storage.set_cut(snapshot.cut.view)
            return snapshot
