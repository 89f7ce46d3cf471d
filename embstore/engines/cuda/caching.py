"""A cache of fixed capacity, the table of `CacheEviction`: what of an engine is its own.

A new key takes the place of another in its two buckets, by kernels alone: the host waits for none
of them, but where an eviction sink wants the rows or the change log must grow.
"""

import os

import numpy as np

from embstore.engines import kernels, native
from embstore.engines.cuda.batch import Distinct
from embstore.engines.cuda.capture import CudaCapture
from embstore.engines.cuda.content import CudaContent
from embstore.engines.cuda.core import TALLY_BYTES
from embstore.engines.cuda.device import Device, Memory, Queue
from embstore.engines.cuda.evict import remove
from embstore.engines.cuda.fused import not_recorded
from embstore.engines.cuda.launch import packed
from embstore.engines.cuda.order import scan
from embstore.engines.cuda.removing import CudaRemoving
from embstore.engines.cuda.row_bits import RowList, set_bytes
from embstore.engines.cuda.snapshot import Cut
from embstore.engines.cuda.storage import TakenLog
from embstore.engines.engine import Keys
from embstore.engines.spec import TableSpec
from embstore.engines.types import Rows

TILE = 8
PIN_THREADS = 1 << 13  # in a graph
UNKNOWN = 2**64  # of a bound: more than there is room for


class CacheState:
    """What a cache keeps beside its storage.

    `spared` is a set of rows that are no victims of a call, `pins` the address of a struct
    PinnedKeys, `tally` of a struct CacheTally, and `most_removed` a bound of the counter n_log that
    the host knows without waiting.
    """

    NAMES = tuple(kernels.struct_fields("CacheTally"))

    def __init__(self, max_rows: int, queue: Queue) -> None:
        self.max_rows = max_rows
        self.spared: Memory = queue.alloc(set_bytes(max_rows))
        self._tally: Memory = queue.alloc(8 * len(self.NAMES))
        self._pins: Memory = queue.alloc(8 * len(kernels.struct_fields("PinnedKeys")))
        self._pinned_keys: Memory | None = None
        self.set_pins(np.empty(0, np.int64), queue)
        self.most_removed = UNKNOWN

    def set_pins(self, keys: Keys, queue: Queue) -> None:
        """Replace the pinned keys."""
        self._pinned_keys = queue.alloc(max(8, keys.nbytes))
        if len(keys):
            queue.upload(self._pinned_keys.address, keys)
        fields = {"keys": self._pinned_keys.address, "n": len(keys)}
        names = kernels.struct_fields("PinnedKeys")
        queue.upload(self._pins.address, packed(names, fields, "PinnedKeys"))

    @property
    def n_bytes(self) -> int:
        """Bytes that it holds."""
        held = (self.spared, self._tally, self._pins, self._pinned_keys)
        return sum(memory.n_bytes for memory in held if memory is not None)

    @property
    def pins(self) -> int:
        """Address of the pinned keys' struct."""
        return self._pins.address

    @property
    def tally(self) -> int:
        """Address of the whole tally."""
        return self._tally.address

    def count_at(self, name: str) -> int:
        """Return the address of one of its counts."""
        return self._tally.address + 8 * self.NAMES.index(name)


class CudaCaching(CudaRemoving, CudaContent, CudaCapture):
    """Inserting into a cache, and importing into one; other tables are passed on."""

    def __init__(
        self,
        spec: TableSpec,
        device: Device,
        hash_seed: int,
        collect_evicted: bool,
        hbm_bytes: int | None = None,
    ) -> None:
        super().__init__(spec, device, hash_seed, collect_evicted, hbm_bytes)
        self._cache: CacheState | None = None
        if spec.is_cache and spec.max_rows is not None:
            self._cache = CacheState(spec.max_rows, self._launcher.queue)

    def close(self) -> None:
        """Give the memory back, as soon as no other thread is inside a call."""
        super().close()
        if os.getpid() == self._pid:  # in a forked child the memory, and perhaps the lock, is held
            self._cache = None

    def _held_bytes(self) -> int:
        return super()._held_bytes() + (0 if self._cache is None else self._cache.n_bytes)

    # ---- the change log

    def _reserve_removals(self, n: int) -> None:
        """Make room in the change log for so many more removed keys; waits."""
        super()._reserve_removals(n)
        if self._cache is not None:
            self._cache.most_removed = self._numbers.n_log + n

    def _end_snapshot(self, cut: Cut, taken: TakenLog, n_removed: int, is_saved: bool) -> None:
        super()._end_snapshot(cut, taken, n_removed, is_saved)
        if self._cache is not None:
            self._cache.most_removed = UNKNOWN

    def _reserve_log(self, cache: CacheState, n: int) -> None:
        """Make room for n more removed keys; waits only where there may be none."""
        if not self._spec.track_changes:
            return
        capacity = self._storage.removed_capacity
        if cache.most_removed + n > capacity:
            self._reserve_removals(max(n, capacity // 2))  # so that this is seldom
            cache.most_removed = self._numbers.n_log
        cache.most_removed += n

    # ---- find_or_insert and assign

    def _insert(
        self, distinct: Distinct, step: int, has_counts: bool, may_be_late: bool = False
    ) -> dict[str, int] | None:
        """Make the keys that are to be inserted; return the tally, of assign alone."""
        cache = self._cache
        if cache is None:
            return super()._insert(distinct, step, has_counts, may_be_late)
        if self._is_captured:
            self._insert_or_evict(cache, distinct, self._clock.step_base, has_counts)
            self._n_captured += distinct.n
            return None
        if not may_be_late:
            self._check_late()
        with not_recorded(self._launcher):
            self._reserve_log(cache, distinct.n)
            if self._config["collect_evicted"]:
                self._reader.reserve(distinct.n)
        self._insert_or_evict(cache, distinct, step, has_counts)
        return None if has_counts else self._tally_of_births(cache)

    def _make_room_for_replay(self) -> None:
        """See to it that all keys of a replay could be new."""
        cache = self._cache
        if cache is None:
            super()._make_room_for_replay()
            return
        self._check_late()
        self._reserve_log(cache, self._n_captured)
        if self._snapshot is not None:
            self._snapshot.make_room(3 * self._n_captured)

    def set_pins(self, keys: Keys) -> None:
        """Replace the pinned keys."""
        with self._writing():
            super().set_pins(keys)
            if self._cache is not None:
                self._cache.set_pins(keys, self._launcher.queue)

    def _insert_or_evict(
        self, cache: CacheState, distinct: Distinct, step: int, has_counts: bool
    ) -> None:
        launcher, view, n = self._launcher, self._storage.view, distinct.n
        names = ("victims", "from free", "evicting", "listed victims")
        victims, from_free, evicting, listed = (
            launcher.scratch(f"cache {s}", 4 * n) for s in names
        )
        distinct.tally(launcher, view, self._tally.address, TALLY_BYTES)
        self._spare(cache, distinct)
        batch = {"keys": distinct.keys, "n_unique": distinct.n_unique}
        batch |= {"status": distinct.status, "cells": distinct.cells, "victims": victims}
        launcher.run(
            "claim_cells",
            TILE * n,
            table=view,
            **batch,
            ranks=distinct.ranks,
            spared=cache.spared.address,
            max_rows=cache.max_rows,
            is_by_freq=self._config["capacity_by"] == native.CAPACITY_BY["freq"],
            is_from_free=from_free,
            is_evicting=evicting,
        )
        for flags, name in ((from_free, "n_from_free"), (evicting, "n_evicted")):
            scan(launcher, flags, n, flags, total=cache.count_at(name), n_at=distinct.n_unique)
        self._protect(distinct.rows, n, distinct.n_unique)
        self._protect(victims, n, distinct.n_unique)
        if self._config["collect_evicted"]:
            found = {"n_unique": distinct.n_unique, "victims": victims, "places": evicting}
            launcher.run("list_cache_victims", n, **found, out=listed)
            self._collect(RowList(listed, self._word(cache.count_at("n_evicted"))))
        launcher.run(
            "commit_cache_keys",
            TILE * n,
            table=view,
            **batch,
            occurrences=distinct.occurrences if has_counts else 0,
            rows=distinct.rows,
            before=distinct.before if has_counts else 0,
            free_places=from_free,
            gone_places=evicting,
            step=self._relative(step),
            now=self._now_address,
        )
        launcher.run("settle_cache", 1, table=view, batch=self._tally.address, cache=cache.tally)

    def _spare(self, cache: CacheState, distinct: Distinct) -> None:
        """Mark the rows of the batch and of pins: nobody evicts them."""
        spared = cache.spared
        self._launcher.queue.fill(spared.address, 0, spared.n_bytes)
        batch = {"rows": distinct.rows, "n_unique": distinct.n_unique}
        self._launcher.run("spare_rows_of_batch", distinct.n, **batch, spared=spared.address)
        if len(self._pins) or self._is_captured:  # there may be pins at a replay
            pins = {"table": self._storage.view, "pins": cache.pins}
            n_threads = PIN_THREADS if self._is_captured else TILE * len(self._pins)
            self._launcher.run("spare_rows_of_pins", n_threads, **pins, spared=spared.address)

    def _collect(self, victims: RowList) -> None:
        """Read rows before they are written over."""
        if victims.n:
            self._evicted.append(self._reader.read(self._table(), victims))

    def _tally_of_births(self, cache: CacheState) -> dict[str, int]:
        """Return what assign reports, by the names of struct Tally; waits."""
        tally = self._download_tally()
        n_born = self._word(cache.count_at("n_from_free")) + self._word(cache.count_at("n_evicted"))
        n_refused = tally["n_new_rows"] - n_born
        return tally | {"n_new_rows": n_born, "n_refused": n_refused}

    # ---- import

    def import_rows(self, rows: Rows) -> None:
        """Create or replace complete rows; those for which a cache has no cells are evicted."""
        with self._writing():
            super().import_rows(rows)
            if self._cache is not None:
                self._evict_homeless(self._cache, len(rows))

    def _commit(self, distinct: Distinct, step: int, has_counts: bool) -> None:
        """Make the keys of an import; others do not come here."""
        cache, launcher, n = self._cache, self._launcher, distinct.n
        if cache is None:
            super()._commit(distinct, step, has_counts)
            return
        self._reserve_removals(n)
        n_homeless = cache.count_at("n_homeless")
        homeless = launcher.scratch("cache homeless", 4 * n)
        launcher.scratch("cells of rows", 8 * n)  # for what follows
        launcher.queue.fill(n_homeless, 0, 8)
        launcher.run(
            "restore_cache_keys",
            TILE * n,
            table=self._storage.view,
            keys=distinct.keys,
            n_unique=distinct.n_unique,
            status=distinct.status,
            rows=distinct.rows,
            ranks=distinct.ranks,
            step=self._relative(step),
            homeless=homeless,
            n_homeless=n_homeless,
        )
        launcher.run("settle_insert", 1, table=self._storage.view, tally=self._tally.address)

    def _evict_homeless(self, cache: CacheState, n_most: int) -> None:
        """Remove the rows that an import left without a cell; waits."""
        n = self._word(cache.count_at("n_homeless"))
        rows = RowList(self._launcher.scratch("cache homeless", 4 * n_most), n)
        if self._config["collect_evicted"]:
            self._collect(rows)
        remove(self._launcher, self._table(), rows)
