"""find_or_insert on a device: distinct keys, decision, room, commit, rows; semantics, section 4."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from embstore.engines.cuda.batch import CudaTicket, Distinct
from embstore.engines.cuda.core import (
    ADMITS_ALL,
    ADMITS_BY_POLICY,
    DTYPE_NUMBERS,
    TALLY_BYTES,
    CudaCore,
)
from embstore.engines.cuda.crossing import is_late
from embstore.engines.cuda.fused import not_recorded
from embstore.engines.cuda.room import Budget, Needs, rows_to_remain
from embstore.engines.cuda.row_bits import RowList
from embstore.engines.cuda.storage import has_room
from embstore.engines.device_arrays import DeviceArray
from embstore.engines.engine import Keys, Part
from embstore.errors import CapacityError, OutOfMemoryError

NO_CELL = 2**64 - 1


class CudaInserting(CudaCore):
    """find_or_insert, and the births of other verbs."""

    def find_or_insert(
        self,
        keys: Keys,
        step: int,
        counts: NDArray[np.uint32] | None,
        admit_always: bool,
        rows: NDArray[np.float32] | None,
    ) -> CudaTicket:
        """Count, admit and create; fill `rows` (n, dim) if given."""
        out = np.empty((len(keys), 0), np.float32) if rows is None else rows
        with self._writing():
            return self._insert_parts([Part(keys, out, counts)], step, admit_always)

    def _insert_parts(self, parts: Sequence[Part], step: int, admit_always: bool) -> CudaTicket:
        given = [a for part in parts for a in (part.keys, part.counts, part.rows)]
        self._check_captured(is_late(self._strict, *given))
        self._check_bags(parts, self._is_captured)
        may_be_late = not self._strict
        if not self._is_captured:
            with not_recorded(self._launcher):
                self._advance_base(step)
                step = self._clamped(step)
                self._maintain(step)
                self._renew_index()
        keys, counts, n = self._upload_joined(parts)
        distinct = self._distinct(keys, counts, n)
        admits = ADMITS_ALL if admit_always else ADMITS_BY_POLICY
        distinct.look_up(self._launcher, self._storage.view, admits)
        outputs = self._outputs(parts)  # may fail, so before births
        self._insert(distinct, step, has_counts=True, may_be_late=may_be_late)
        if not self._is_captured:
            self._clock.saw(step)
        first = 0
        for part, out in zip(parts, outputs, strict=True):
            self._give_part(distinct, first, part, out)
            first += part.n_keys
        return CudaTicket(self, distinct, self._n_clears)

    def _outputs(self, parts: Sequence[Part]) -> list[int]:
        """Return where the rows of each part are written, and make what else its bags need."""
        launcher, outputs = self._launcher, []
        for number, part in enumerate(parts):
            if isinstance(part.rows, DeviceArray):
                outputs.append(part.rows.address)
            else:
                outputs.append(launcher.scratch(f"rows_out_{number}", part.rows.nbytes))
            if part.bags is not None:
                launcher.scratch("pool_offsets", part.bags.offsets.nbytes)
            if part.bags is not None and part.bags.weights is not None:
                launcher.scratch("pool_weights", 4 * part.bags.weights.size)
        return outputs

    def _maintain(self, step: int) -> None:
        raise NotImplementedError

    def _renew_index(self) -> None:
        """Make the index anew where the marks of keys that have left may slow searches down.

        A mark says that a key has gone past a bucket, and stays when the key is removed.
        """
        storage, numbers = self._storage, self._numbers
        n_gone = numbers.n_gone
        if n_gone - storage.n_gone_at_rehash <= storage.n_cells // 2 or self._spec.is_cache:
            return
        budget = Budget(storage, numbers, self._max_bytes)
        if budget.fits_beside(storage.index_bytes):
            storage.rehash(storage.n_lines)
            storage.n_gone_at_rehash = n_gone

    # ---- planning

    def _insert(
        self, distinct: Distinct, step: int, has_counts: bool, may_be_late: bool = False
    ) -> dict[str, int] | None:
        """Make room for the keys that are to be inserted, and make them; return the tally.

        If the call need not wait, and there is room whatever the keys are, return None.
        """
        if self._is_captured:
            self._queue_tally(distinct)
            self._protect(distinct.rows, distinct.n, distinct.n_unique)
            self._commit(distinct, 0, has_counts)
            self._n_captured += distinct.n
            return None
        if may_be_late and self._surely_fits(distinct.n):
            self._queue_tally(distinct)
            self._protect(distinct.rows, distinct.n, distinct.n_unique)
            self._commit(distinct, step, has_counts)
            self._bounds.add(distinct.n, distinct.n)
            if not self._is_fused:
                self._bounds.send(self._launcher.queue, self._storage.counters_address)
            return None
        with not_recorded(self._launcher):
            return self._insert_exactly(distinct, step, has_counts, may_be_late)

    def _insert_exactly(
        self, distinct: Distinct, step: int, has_counts: bool, may_be_late: bool
    ) -> dict[str, int]:
        """Insert by numbers that the host waits for."""
        tally, counters = self._tallied(distinct), self._counters()
        if not may_be_late:
            self._check_late()
        n_rows, n_cells = self._needed(tally)
        victims = RowList(0, 0)
        budget = Budget(self._storage, counters, self._max_bytes)
        max_rows = self._spec.max_rows
        fits = max_rows is None or n_rows <= max(0, max_rows - counters.n_live)
        if not (fits and budget.fits(n_rows, n_cells)):
            victims = self._make_room(distinct, budget)
            tally = self._tallied(distinct)
            n_rows, n_cells = self._needed(tally)
        self._reserve(distinct, n_rows, n_cells, victims.n)
        self._remove_victims(victims)
        self._protect(distinct.rows, distinct.n, distinct.n_unique)
        self._commit(distinct, step, has_counts)
        self._bounds.add(n_rows, n_cells)
        return tally

    def _tallied(self, distinct: Distinct) -> dict[str, int]:
        """Return what is to become of the keys, by the names of struct Tally; waits."""
        self._queue_tally(distinct)
        return self._download_tally()

    def _queue_tally(self, distinct: Distinct) -> None:
        distinct.tally(self._launcher, self._storage.view, self._tally.address, TALLY_BYTES)

    def _surely_fits(self, n: int) -> bool:
        """Return whether n more keys surely fit without growth, refusal or eviction."""
        bounds, storage, max_rows = self._bounds, self._storage, self._spec.max_rows
        return (
            bounds.n_ids + n <= storage.row_capacity
            and has_room(storage.n_lines, bounds.n_cells + n)
            and (max_rows is None or bounds.n_live + n <= max_rows)
        )

    @staticmethod
    def _needed(tally: dict[str, int]) -> tuple[int, int]:
        """Return how many rows, and how many cells, a tally asks for."""
        n_rows = tally["n_new_rows"]
        return n_rows, n_rows - tally["n_ended_candidates"] + tally["n_new_candidates"]

    @property
    def _max_bytes(self) -> int | None:
        return None if self._is_restoring else self._spec.max_bytes

    def _needs(self, distinct: Distinct) -> Needs:
        """Return what the keys need, as the host sees it; waits."""
        queue, n_unique = self._launcher.queue, self._word(distinct.n_unique)
        status, cells = np.empty(n_unique, np.uint8), np.empty(n_unique, np.uint64)
        if n_unique:
            queue.download(distinct.status, status)
            queue.download(distinct.cells, cells)
        has_counter = self._config["admission_kind"] == 1
        return Needs(status, cells != np.uint64(NO_CELL), has_counter)

    def _make_room(self, distinct: Distinct, budget: Budget) -> RowList:
        """Refuse what does not fit, or choose the victims that make room, or raise."""
        needs = self._needs(distinct)
        n_live, on_full = self._numbers.n_live, self._spec.on_full
        limit = self._row_limit(needs, budget)
        n_wanted, victims = needs.n_rows, RowList(0, 0)
        has_too_many = n_wanted > max(0, limit - n_live)
        if has_too_many and on_full == "raise":
            raise CapacityError(
                f"{self._where}: {n_wanted} new rows do not fit: the table holds {n_live} of at "
                f"most {limit}"
            )
        if has_too_many and on_full == "evict":
            victims = self._choose_victims(distinct, rows_to_remain(limit, n_wanted))
        if has_too_many:
            needs.refuse_rows_beyond(max(0, limit - (n_live - victims.n)))
        prefix = budget.fitting_prefix(needs, victims.n)
        if prefix < len(needs.missing) and on_full == "raise":
            raise CapacityError(
                f"{self._where}: the batch does not fit into max_bytes = {budget.max_bytes}"
            )
        needs.refuse_from(prefix)
        self._launcher.queue.upload(distinct.status, needs.status)
        distinct.rank_again(self._launcher)
        return victims

    def _row_limit(self, needs: Needs, budget: Budget) -> int:
        """Return the most live rows there may be, by max_rows and by what fits into max_bytes."""
        limit = 2**64 if self._spec.max_rows is None else self._spec.max_rows
        prefix = budget.fitting_prefix(needs, 0)
        if prefix < len(needs.missing):
            limit = min(limit, self._numbers.n_live + int(needs.needs_row[:prefix].sum()))
        return limit

    def _choose_victims(self, distinct: Distinct, target: int) -> RowList:
        """Return the rows that go when `target` shall remain."""
        raise NotImplementedError

    def _remove_victims(self, victims: RowList) -> None:
        raise NotImplementedError

    def _reserve(self, distinct: Distinct, n_rows: int, n_cells: int, n_victims: int) -> None:
        """Make room in memory: the last that may fail."""
        storage, counters = self._storage, self._numbers
        n_more = max(0, n_rows - n_victims)
        n_ids = counters.n_ids + max(0, n_more - counters.n_free)
        has_grown = storage.reserve_rows(n_ids)
        has_grown |= storage.reserve_removed(counters.n_log + n_victims, counters.n_log)
        if has_grown:
            storage.write_descriptor()
        if storage.reserve_cells(counters.n_live + counters.n_candidates + n_cells):
            storage.n_gone_at_rehash = counters.n_gone
            distinct.find_cells_again(self._launcher, storage.view)

    # ---- committing

    def _commit(self, distinct: Distinct, step: int, has_counts: bool) -> None:
        self._launcher.run(
            "commit_keys",
            8 * distinct.n,
            table=self._storage.view,
            keys=distinct.keys,
            n_unique=distinct.n_unique,
            occurrences=distinct.occurrences if has_counts else 0,
            status=distinct.status,
            rows=distinct.rows,
            before=distinct.before if has_counts else 0,
            cells=distinct.cells,
            ranks=distinct.ranks,
            step=self._relative(step),
            now=self._now_address,
        )
        self._launcher.run("settle_insert", 1, table=self._storage.view, tally=self._tally.address)

    def _give_part(self, distinct: Distinct, first: int, part: Part, out: int) -> None:
        """Write the rows of a part, whose keys begin at position `first` of the batch, to `out`."""
        if part.rows.size == 0:
            return
        inverse = distinct.inverse + 4 * first
        if part.bags is not None:
            self._pool(self._launcher, part, distinct.rows, inverse, out)
        else:
            self._launcher.run(
                "gather_batch",
                8 * part.n_keys,
                table=self._storage.view,
                inverse=inverse,
                n=part.n_keys,
                rows=distinct.rows,
                out=out,
                out_dtype=DTYPE_NUMBERS[part.rows.dtype],
            )
        if not isinstance(part.rows, DeviceArray):
            self._launcher.give(out, part.rows)

    def reserve(self, n_rows: int) -> None:
        """Make memory for `n_rows` rows."""
        with self._writing():
            counters = self._counters()
            n_more = max(0, n_rows - counters.n_live)
            if not Budget(self._storage, counters, self._max_bytes).fits(n_more, n_more):
                raise OutOfMemoryError(
                    f"{self._where}: reserve: {n_rows} rows do not fit into max_bytes"
                )
            if self._storage.reserve_rows(counters.n_ids + max(0, n_more - counters.n_free)):
                self._storage.write_descriptor()
            self._storage.reserve_cells(counters.n_live + counters.n_candidates + n_more)
