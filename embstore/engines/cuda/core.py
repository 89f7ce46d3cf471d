"""What all verbs of a CUDA table share: its lock, memory, clock and counters, and arrays that cross.

1. A call of a table is queued whole under its lock, so that calls follow each other on the device in
   the order in which threads got the lock; the lock is held while nothing but a download waits.
2. `_numbers` are the counters as last downloaded; what is not downloaded after a call is only known
   to be at most `_bounds`.
3. A writer's call plans, and may fail, before it launches the first kernel that changes the table.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore.engines import kernels, native
from embstore.engines.cuda.batch import MOST_KEYS, Distinct
from embstore.engines.cuda.clock import BASE_KEPT, BASE_SPAN, Clock
from embstore.engines.cuda.device import Device
from embstore.engines.cuda.launch import Launcher
from embstore.engines.cuda.row_bits import DeviceTable, RowList
from embstore.engines.cuda.snapshot import Cut
from embstore.engines.cuda.storage import Counters, Storage, TakenLog
from embstore.engines.cuda.transfer import (
    CandidateOrder,
    ExportOrder,
    RowColumns,
    RowReader,
    RowWriter,
)
from embstore.engines.engine import Part
from embstore.engines.spec import TableSpec
from embstore.engines.types import Rows
from embstore.errors import ArgumentError, ClosedTableError, ForkError

ADMITS_BY_POLICY, ADMITS_ALL, ADMITS_NONE = range(3)
TALLY_BYTES = 8 * len(kernels.struct_fields("Tally"))
CLOCK_NAMES = tuple(Clock.__dataclass_fields__)
COUNTED_NAMES = (
    *("n_inserted", "n_evicted", "n_erased", "n_refused", "n_candidates_expired"),
    *("n_grads_dropped", "n_grads_stale", "n_nonfinite", "n_steps_clamped", "n_bloom_added"),
)
DTYPE_NUMBERS = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.uint16): 2}


class CudaCore:
    """State of a table on a device, and what its verbs are made of."""

    def __init__(
        self,
        spec: TableSpec,
        device: Device,
        hash_seed: int,
        collect_evicted: bool,
        hbm_bytes: int | None = None,
    ) -> None:
        self._spec = spec
        self._where = f"table {spec.name!r}"
        self._config = native.native_config(spec, hash_seed, collect_evicted)
        self._device = device
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._is_closed = False
        self._launcher = Launcher(device.queue())
        self._storage = Storage(spec, device, self._launcher, self._config, hbm_bytes)
        self._clock = Clock.at_birth(self._config)
        self._numbers = Counters()
        self._pins = np.empty(0, np.int64)
        self._n_clears = 0
        self._write_count = 0
        self._is_restoring = False
        self._tally = self._launcher.queue.alloc(TALLY_BYTES)
        self._snapshot: Cut | None = None
        self._evict_cursor = 0
        self._evicted: list[Rows] = []
        self._export_order, self._candidate_order = ExportOrder(), CandidateOrder()
        columns = RowColumns(spec.dim, spec.stored_dtype, spec.slot_floats)
        self._reader = RowReader(self._launcher, columns)
        self._writer = RowWriter(self._launcher, columns)

    @property
    def _has_counter(self) -> bool:
        return bool(self._config["admission_kind"] == 1)

    @property
    def _has_bloom(self) -> bool:
        return bool(self._config["admission_kind"] == 2)

    def _table(self) -> DeviceTable:
        """Return the table as the steps of the engine see it, with the counters of now; waits."""
        storage, n_ids = self._storage, self._counters().n_ids
        return DeviceTable(
            storage.view, storage.live_address, n_ids, storage.n_lines, self._protect_list
        )

    # ---- snapshots

    def _protect(self, rows: int, n: int, n_at: int) -> None:
        """Let a snapshot copy rows before they change: at most n, as many as stand at `n_at`."""
        if self._snapshot is not None and n:
            self._snapshot.protect(rows, n, n_at)

    def _protect_list(self, rows: RowList) -> None:
        self._protect(rows.address, rows.n, 0)

    def _take_log(self) -> TakenLog:
        """End the change log and begin a new one."""
        taken = self._storage.take_log()
        if self._spec.track_changes:
            self._storage.upload_counters(n_log=0)
        return taken

    def _end_snapshot(self, cut: Cut, taken: TakenLog, n_removed: int, is_saved: bool) -> None:
        """End a snapshot, whose cut took the change log with so many removed keys."""
        if self._snapshot is cut:
            self._snapshot = None
        if is_saved or self._is_closed or not self._spec.track_changes:
            return
        n_log = self._counters().n_log
        self._storage.put_log_back(taken, n_removed, n_log, has_rows=not cut.is_detached)
        self._storage.upload_counters(n_log=n_log + n_removed)

    # ---- calls

    @contextmanager
    def _entered(self) -> Iterator[None]:
        """Hold the table's lock for a call that reads."""
        if os.getpid() != self._pid:
            raise ForkError(
                f"{self._where}: a table on a card cannot be used in a forked child; "
                f'start processes by "spawn"'
            )
        with self._lock:
            if self._is_closed:
                raise ClosedTableError(f"{self._where} is closed")
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the table's lock for a call that writes."""
        with self._entered():
            self._write_count += 1
            yield

    def close(self) -> None:
        """Give the memory back, as soon as no other thread is inside a call."""
        if os.getpid() != self._pid:
            self._is_closed = True  # the memory is the parent's
            return
        with self._lock:
            self._is_closed = True
            for name in ("_launcher", "_storage", "_tally", "_reader", "_writer"):
                self.__dict__.pop(name, None)
            self._export_order.drop()
            self._candidate_order.drop()

    def __len__(self) -> int:
        with self._entered():
            return self._counters().n_live

    # ---- counters

    def _counters(self) -> Counters:
        """Return the counters as of now; waits."""
        self._numbers = self._storage.download_counters()
        return self._numbers

    def _download_tally(self) -> dict[str, int]:
        names = kernels.struct_fields("Tally")
        values = np.empty(len(names), np.uint64)
        self._launcher.queue.download(self._tally.address, values)
        return dict(zip(names, values.tolist(), strict=True))

    def _word(self, address: int) -> int:
        """Return a number that a kernel left at an address; waits."""
        value = np.empty(1, np.uint64)
        self._launcher.queue.download(address, value)
        return int(value[0])

    def _state(self) -> dict[str, Any]:
        counted = self._counters().as_dict()
        clock = {name: getattr(self._clock, name) for name in CLOCK_NAMES}
        return clock | {name: counted[name] for name in COUNTED_NAMES}

    # ---- steps

    def _advance_base(self, step: int) -> None:
        """Keep every step within 32 bits of the base."""
        clock = self._clock
        if step - clock.step_base < BASE_SPAN:
            return
        base = step - BASE_KEPT
        self._raise_steps(base - clock.step_base)
        clock.step_base = base
        clock.saw(base)
        self._set_clock()

    def _raise_steps(self, delta: int) -> None:
        raise NotImplementedError

    def _set_clock(self) -> None:
        self._storage.set_clock(self._clock.step_base, self._clock.candidate_epoch)

    def _clamped(self, step: int) -> int:
        """Return a step that is not before the base; one that was is counted."""
        if step >= self._clock.step_base:
            return step
        self._add_to_counter("n_steps_clamped", 1)
        return self._clock.step_base

    def _add_to_counter(self, name: str, n: int) -> None:
        if n:
            held = getattr(self._counters(), name)
            self._storage.upload_counters(**{name: held + n})

    def _relative(self, step: int) -> int:
        return step - self._clock.step_base

    # ---- arrays that cross

    def _upload(self, name: str, array: NDArray[Any]) -> int:
        """Return the address of scratch memory that holds an array of the host."""
        address = self._launcher.scratch(name, array.nbytes)
        if array.nbytes:
            self._launcher.queue.upload(address, array)
        return address

    def _upload_joined(self, parts: Sequence[Part]) -> tuple[int, int, int]:
        """Return the addresses of all parts' keys and counts (0: ones), and the number of keys."""
        n = sum(part.n_keys for part in parts)
        if n > MOST_KEYS:
            raise ArgumentError(f"{self._where}: a batch has at most {MOST_KEYS} keys, got {n}")
        keys = self._launcher.scratch("keys", 8 * n)
        at = 0
        for part in parts:
            if part.n_keys:
                assert part.keys is not None
                self._launcher.queue.upload(keys + 8 * at, part.keys)
            at += part.n_keys
        if all(part.counts is None for part in parts):
            return keys, 0, n
        counts = [
            np.ones(part.n_keys, np.uint32) if part.counts is None else part.counts
            for part in parts
        ]
        return keys, self._upload("counts", np.concatenate(counts)), n

    def _distinct(self, keys: int, counts: int | None, n: int) -> Distinct:
        """Return the distinct keys among those at an address."""
        distinct = Distinct(self._launcher, n)
        distinct.find(self._launcher, keys, counts, self._storage.hash_fields)
        return distinct

    def download_ticket(
        self, distinct: Distinct
    ) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint32]]:
        """Return the distinct keys, their status and the places of the batch's keys, read-only."""
        with self._entered():
            n_unique = self._word(distinct.n_unique)
            keys = np.empty(n_unique, np.int64)
            status = np.empty(n_unique, np.uint8)
            inverse = np.empty(distinct.n, np.uint32)
            self._fill(distinct.keys, keys)
            self._fill(distinct.status, status)
            self._fill(distinct.inverse, inverse)
        return keys, status, inverse

    def _fill(self, source: int, out: NDArray[Any]) -> None:
        """Fill an array of the host, which users may not write to."""
        if len(out):
            self._launcher.queue.download(source, out)
        out.setflags(write=False)
