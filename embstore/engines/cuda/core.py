"""What all verbs of a CUDA table share: lock, memory, clock and counters, and arrays that cross.

1. A call of a table is queued whole under its lock. Writers work on the table's own stream, which
   waits for the caller's, and the caller's for it; readers work on the caller's, after all writers
   before them. The memory of a table is used on its own stream, or read before that goes on.
2. `_numbers` are the counters as last downloaded; what is not downloaded after a call is only known
   to be at most `_bounds`.
3. A writer's call plans, and may fail, before it launches the first kernel that changes the table.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from embstore.engines import kernels, native, streams
from embstore.engines.cuda.batch import MOST_KEYS, Distinct
from embstore.engines.cuda.bounds import Bounds
from embstore.engines.cuda.clock import BASE_KEPT, BASE_SPAN, Clock
from embstore.engines.cuda.crossing import array_at, floats_at, keys_at, put, put_keys
from embstore.engines.cuda.device import Device, Event, Queue
from embstore.engines.cuda.fused import Recorder
from embstore.engines.cuda.launch import Capture, Launcher
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
from embstore.engines.device_arrays import of_interface
from embstore.engines.engine import Part
from embstore.engines.spec import TableSpec
from embstore.engines.types import Rows
from embstore.errors import ArgumentError, ClosedTableError, ForkError, NonFiniteError

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
        self._strict = False
        self._is_fused = False  # what is queued now is recorded, in a call over many tables
        self._read_recorder: Recorder | None = None
        self._has_late = False  # calls that were not waited for may have gone wrong
        self._depth = 0  # calls of this thread that are inside each other
        self._last_call: Event | None = None
        self._readers: dict[int, tuple[Launcher, Event | None]] = {}
        self._launcher = self._own_launcher = Launcher(device.queue())
        self._caller = self._launcher.queue
        self._capture: Capture | None = None  # inside capturing()
        self._captures: list[Capture] = []  # graphs may use their memory
        self._is_captured = False  # this call
        self._n_captured = 0  # keys of captured inserts, of one replay
        self._now = self._launcher.alloc(8 * len(kernels.struct_fields("Now")))
        self._storage = Storage(spec, device, self._launcher, self._config, hbm_bytes)
        self._clock = Clock.at_birth(self._config)
        self._numbers = Counters()
        self._pins = np.empty(0, np.int64)
        self._n_clears = 0
        self._write_count = 0
        self._is_restoring = False
        self._bounds = Bounds(device)
        self._tally = self._launcher.alloc(TALLY_BYTES)
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

    def set_strict(self, is_strict: bool) -> None:
        """Say whether every call waits for the card."""
        self._strict = is_strict

    def named(self) -> None:
        """Return None: ops that find tables by name read the memory of the host."""

    # ---- snapshots

    def _protect(self, rows: int, n: int, n_at: int) -> None:
        """Let a snapshot copy rows before they change: at most n, as many as stand at `n_at`."""
        if self._is_captured:  # whoever saves while the graph is replayed
            self._launcher.run(
                "protect_rows_of_cut",
                8 * n,
                table=self._storage.view,
                cut=0,
                rows=rows,
                first=0,
                end=n,
                n_at=n_at,
            )
        elif self._snapshot is not None and n:
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
            if not self._is_closed:
                self._storage.set_cut(0)
        if is_saved or self._is_closed or not self._spec.track_changes:
            return
        n_log = self._counters().n_log
        self._storage.put_log_back(taken, n_removed, n_log, has_rows=not cut.is_detached)
        self._storage.upload_counters(n_log=n_log + n_removed)

    # ---- calls

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ForkError(
                f"{self._where}: a table on a card cannot be used in a forked child; "
                f'start processes by "spawn"'
            )

    @contextmanager
    def _entered(self) -> Iterator[None]:
        """Hold the table's lock for a call that no other overlaps, on the stream of the call."""
        self._check_process()
        with self._lock:
            if self._is_closed:
                raise ClosedTableError(f"{self._where} is closed")
            if self._depth == 0:
                self._begin_call()
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0 and not self._is_closed:
                    self._end_call()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the table's lock for a call that writes."""
        with self._entered():
            self._write_count += 1
            yield

    def _begin_call(self) -> None:
        """Let the table's stream go on after the caller's, and after all reads.

        What is captured stays on the caller's stream: a replay is ordered by `replaying`.
        """
        home = self._own_launcher.queue
        self._caller = self._device.queue(streams.current())
        self._is_captured = self._is_capture_of(self._caller)
        if self._capture is not None:
            queue = self._caller if self._is_captured else home
            self._launcher = self._capture.begin(queue, self._is_captured)
        if self._is_captured:
            return
        if self._caller.handle != home.handle:
            home.wait_for(self._caller.record())
        for handle, (launcher, event) in self._readers.items():
            if event is not None and handle not in (home.handle, self._caller.handle):
                home.wait_for(event)
            self._readers[handle] = (launcher, None)
        self._note_counters_seen()

    def _end_call(self) -> None:
        """Let the caller's stream go on after the table's, and reads on any."""
        if not self._is_captured:
            home = self._own_launcher.queue
            self._last_call = home.record()
            if self._caller.handle != home.handle:
                self._caller.wait_for(self._last_call)
        self._is_captured = False
        self._launcher = self._own_launcher

    def _is_capture_of(self, queue: Queue) -> bool:
        """Return whether what is queued goes into a graph, which needs capturing()."""
        is_capturing = queue.is_capturing()
        if is_capturing and self._capture is None:
            raise ArgumentError(
                f"{self._where}: the stream is being captured; begin the capture, and make the "
                f"calls once before it, inside `with table.capturing():`"
            )
        return is_capturing

    def _check_captured(self, may_be_late: bool) -> None:
        """Raise if a captured call would have to wait."""
        if self._is_captured and not may_be_late:
            raise ArgumentError(
                f"{self._where}: a captured call takes arrays of the card alone, of a table that "
                f"is not strict"
            )

    def _check_bags(self, parts: Sequence[Part], is_captured: bool) -> None:
        """Raise if bags are to be captured."""
        if is_captured and any(part.bags is not None for part in parts):
            raise ArgumentError(
                f"{self._where}: bags cannot be captured: their offsets are looked at on the host"
            )

    @property
    def _now_address(self) -> int:
        return self._now.address if self._is_captured else 0

    @contextmanager
    def _reading(self) -> Iterator[Launcher]:
        """Hold the lock while a read is queued, on the stream of the call; give its launcher.

        Reads on several streams overlap on the device; they come after all writes before them.
        """
        self._check_process()
        with self._lock:
            if self._is_closed:
                raise ClosedTableError(f"{self._where} is closed")
            queue = self._device.queue(streams.current())
            if self._is_capture_of(queue):
                assert self._capture is not None
                yield self._capture.reader(queue)
                return
            launcher, _ = self._readers.get(queue.handle, (None, None))
            if self._capture is not None:
                launcher = self._capture.reader(queue)
            elif launcher is None:
                launcher = Launcher(queue)
            is_home = queue.handle == self._own_launcher.queue.handle
            if self._last_call is not None and not is_home:
                queue.wait_for(self._last_call)
            recorder = self._read_recorder
            if recorder is None:
                yield launcher
                self._readers[queue.handle] = (launcher, queue.record())
                return
            self._readers[queue.handle] = (launcher, None)  # whoever runs it leaves the mark
            launcher.queue = recorder
            try:
                yield launcher
            finally:
                launcher.queue = queue

    def _reader_of(self, handle: int) -> Launcher:
        """Return the launcher of the reads on a stream."""
        return self._readers[handle][0]

    def close(self) -> None:
        """Give the memory back, as soon as no other thread is inside a call."""
        if os.getpid() != self._pid:
            self._is_closed = True  # the memory is the parent's
            return
        with self._lock:
            self._is_closed = True
            for name in (
                "_launcher",
                "_own_launcher",
                "_storage",
                "_tally",
                "_now",
                "_reader",
                "_writer",
            ):
                self.__dict__.pop(name, None)
            self._readers.clear()
            self._captures.clear()
            self._capture = None
            self._bounds.forget()
            self._export_order.drop()
            self._candidate_order.drop()

    def __len__(self) -> int:
        with self._entered():
            return self._counters().n_live

    # ---- counters

    def _counters(self) -> Counters:
        """Return the counters as of now; waits."""
        self._numbers = self._storage.download_counters()
        self._bounds.set(self._numbers)
        return self._numbers

    def _note_counters_seen(self) -> None:
        """Take what an earlier call has sent of its counters, if that is here."""
        seen = self._bounds.take_if_done()
        if seen is not None:
            self._numbers = seen

    def check(self) -> None:
        """Raise what went wrong on the card in a call that did not wait; waits.

        Raises
        ------
        NonFiniteError
            If a sum of gradients was not finite: that call changed no row, and the clock alone.
        """
        with self._entered():
            self._check_data(self._counters())

    def _check_late(self) -> None:
        """Check, unless all calls since the last time have waited."""
        if self._has_late:
            self._check_data(self._counters())

    def _check_data(self, counters: Counters) -> None:
        self._has_late = False
        if counters.n_bad_calls:
            self._storage.upload_counters(n_bad_calls=0)
            key = np.array([counters.bad_key], np.uint64).view(np.int64)[0]
            raise NonFiniteError(
                f"{self._where}: in {counters.n_bad_calls} calls a sum of gradients was not "
                f"finite, and nothing was changed by them; the last was that of key {key}"
            )

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

    def new_output(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return an array of the card, to be filled whole."""
        with self._lock:
            if self._is_closed:
                raise ClosedTableError(f"{self._where} is closed")
            queue = self._device.queue(streams.current())
            if self._is_capture_of(queue):
                raise ArgumentError(
                    f"{self._where}: a captured call needs out=, memory that was there before"
                )
            array = self._device.new_array(shape, dtype, queue)
        return cast(NDArray[Any], of_interface(array, "an output", self._where))

    def _pool(self, launcher: Launcher, part: Part, rows: int, inverse: int, out: int) -> None:
        """Pool rows of the table into those of a part, which are written to `out`."""
        raise NotImplementedError

    def _upload(self, name: str, array: NDArray[Any]) -> int:
        """Return the address of an array: of the card itself, or of scratch that holds a copy."""
        return array_at(self._launcher, name, array)

    def _floats(self, name: str, array: NDArray[Any]) -> int:
        """Return the address of numbers as float32; those of 16 bits on a card are widened."""
        return floats_at(self._launcher, name, array)

    def _upload_joined(self, parts: Sequence[Part]) -> tuple[int, int, int]:
        """Return the addresses of all parts' keys and counts (0: ones), and the number of keys."""
        n = sum(part.n_keys for part in parts)
        if n > MOST_KEYS:
            raise ArgumentError(f"{self._where}: a batch has at most {MOST_KEYS} keys, got {n}")
        if len(parts) == 1 and parts[0].keys is not None:
            keys = keys_at(self._launcher, "keys", parts[0].keys)
            counts = parts[0].counts
            return keys, 0 if counts is None else self._upload("counts", counts), n
        keys = self._launcher.scratch("keys", 8 * n)
        has_counts = any(part.counts is not None for part in parts)
        counts_at = self._launcher.scratch("counts", 4 * n) if has_counts else 0
        at = 0
        for part in parts:
            assert part.keys is not None
            put_keys(self._launcher, keys + 8 * at, part.keys)
            if has_counts:
                ones = np.ones(part.n_keys, np.uint32) if part.counts is None else part.counts
                put(self._launcher, counts_at + 4 * at, ones)
            at += part.n_keys
        return keys, counts_at, n

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
