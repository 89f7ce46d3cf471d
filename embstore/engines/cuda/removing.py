"""The verbs of a CUDA table by which rows leave it, and what is due at a step."""

import numpy as np
from numpy.typing import NDArray

from embstore.engines import native
from embstore.engines.cuda import evict as eviction
from embstore.engines.cuda import transfer, upkeep
from embstore.engines.cuda.batch import Distinct
from embstore.engines.cuda.clock import candidate_grain, next_multiple
from embstore.engines.cuda.core import CudaCore
from embstore.engines.cuda.crossing import keys_at
from embstore.engines.cuda.row_bits import RowList
from embstore.engines.engine import Keys
from embstore.engines.types import EvictReport, Rows
from embstore.policies.eviction import Operation


class CudaRemoving(CudaCore):
    """evict, erase, clear, pins, and upkeep."""

    # ---- upkeep

    def _raise_steps(self, delta: int) -> None:
        self._freeze_metas()
        upkeep.advance_base(self._launcher, self._table(), delta)

    def _maintain(self, step: int) -> None:
        """Do what is due at a step; semantics, section 4, point 1."""
        config, clock = self._config, self._clock
        if self._has_counter and config["candidate_ttl"] > 0:
            self._expire_candidates(step, config["candidate_ttl"])
        if self._has_bloom and config["bloom_halve_every"] > 0 and step >= clock.next_bloom_halve:
            upkeep.halve_bloom(self._launcher, self._table(), self._storage.bloom_bytes)
            clock.next_bloom_halve = next_multiple(step, config["bloom_halve_every"])
        if config["freq_halve_every"] > 0 and step >= clock.next_freq_halve:
            self._freeze_metas()
            upkeep.halve_frequencies(self._launcher, self._table())
            clock.next_freq_halve = next_multiple(step, config["freq_halve_every"])
        if config["evict_every"] > 0 and step >= clock.next_evict:
            program = eviction.upload_program(self._launcher, config["predicates"])
            call = eviction.EvictCall(program, step, pins=(self._pin_keys(),))
            self._evict(call, self._config["collect_evicted"])
            clock.next_evict = next_multiple(step, config["evict_every"])

    def _expire_candidates(self, step: int, ttl: int) -> None:
        now = step // candidate_grain(ttl)
        if now <= self._clock.candidate_epoch:
            return
        upkeep.expire_candidates(self._launcher, self._table(), now, ttl)
        self._clock.candidate_epoch = now
        self._set_clock()

    # ---- eviction

    def set_pins(self, keys: Keys) -> None:
        """Replace the pinned keys."""
        with self._writing():
            self._pins = keys.copy()

    def _pin_keys(self) -> eviction.Keys:
        return eviction.Keys(self._upload("pins", self._pins), len(self._pins))

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
        with self._writing():
            own = eviction.Keys(self._upload("call_pins", pins), len(pins))
            call = eviction.EvictCall(
                eviction.upload_program(self._launcher, native.native_predicates(predicates)),
                step,
                max_rows,
                keep_at_least,
                (self._pin_keys(), own),
                max_seconds,
                is_dry_run,
            )
            done = self._evict(call, collect)
            if not is_dry_run:
                self._clock.saw(step)
        return EvictReport(
            done.n_scanned, done.n_selected, done.n_evicted, done.is_complete, rows=None
        )

    def _evict(self, call: eviction.EvictCall, collect: bool) -> eviction.Evicted:
        n_live = self._counters().n_live
        done = eviction.evict(
            self._launcher,
            self._table(),
            call,
            n_live,
            self._evict_cursor,
            self._reserve_removals,
            self._reader if collect else None,
        )
        self._evict_cursor = done.cursor
        self._evicted += done.rows
        return done

    def _reserve_removals(self, n: int) -> None:
        """Make room in the change log for so many more removed keys."""
        n_log = self._counters().n_log
        if self._storage.reserve_removed(n_log + n, n_log):
            self._storage.write_descriptor()

    def take_evicted(self) -> Rows:
        """Return and forget the collected evicted rows, by key."""
        with self._writing():
            parts, self._evicted = self._evicted, []
            if not parts:
                parts = [self._reader.read(self._table(), RowList(0, 0))]
        names = ("keys", "values", "slots", "freq", "step")
        columns = {n: np.concatenate([getattr(part, n) for part in parts]) for n in names}
        order = np.argsort(columns["keys"], kind="stable")
        return Rows(**{name: column[order] for name, column in columns.items()})

    def _choose_victims(self, distinct: Distinct, target: int) -> RowList:
        """Return the rows that go when `target` shall remain."""
        n_live = self._numbers.n_live
        selection, n = eviction.select_for_room(
            self._launcher,
            self._table(),
            self._pin_keys(),
            RowList(distinct.rows, distinct.n),
            max(0, n_live - target),
            self._config["capacity_by"] == native.CAPACITY_BY["freq"],
            n_at=distinct.n_unique,
        )
        rows = selection.rows(0, self._numbers.n_ids)
        if self._config["collect_evicted"]:
            self._reader.reserve(n)
        return rows

    def _remove_victims(self, victims: RowList) -> None:
        if self._config["collect_evicted"] and victims.n:
            self._evicted.append(self._reader.read(self._table(), victims))
        eviction.remove(self._launcher, self._table(), victims)

    # ---- erase and clear

    def erase(self, keys: Keys) -> int:
        """Remove rows and candidates; return how many rows."""
        with self._writing():
            self._counters()
            given = eviction.Keys(keys_at(self._launcher, "keys", keys), len(keys))
            return eviction.erase(self._launcher, self._table(), given, self._reserve_removals)

    def clear(self) -> None:
        """Remove all rows, candidates and counts."""
        with self._writing():
            counters = self._counters()
            self._reserve_removals(counters.n_live)
            transfer.clear(self._launcher, self._table(), self._spec.track_changes)
            if self._snapshot is not None:
                self._snapshot.is_detached = True
                self._storage = self._storage.successor()
            else:
                self._storage.clear()
            self._evict_cursor = 0
            self._n_clears += 1

    def _freeze_metas(self) -> None:
        if self._snapshot is not None and not self._snapshot.is_detached:
            self._snapshot.freeze_metas()

    # ---- filter

    def bloom_read(self, partition: int) -> NDArray[np.uint8]:
        """Return the bytes of one sub-filter; empty without a filter."""
        out = np.empty(self._spec.bloom_bytes, np.uint8)
        with self._entered():
            if len(out):
                at = self._storage.bloom_address + partition * len(out)
                self._launcher.queue.download(at, out)
        return out

    def bloom_write(self, partition: int, data: NDArray[np.uint8]) -> None:
        """Replace the bytes of one sub-filter."""
        with self._writing():
            at = self._storage.bloom_address + partition * self._spec.bloom_bytes
            self._launcher.queue.upload(at, data)
