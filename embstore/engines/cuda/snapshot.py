"""A CUDA table as of one moment, for a save beside writers; include/embstore/cuda/snapshot.h.

1. The cut fixes which rows are of it, their order, the candidates, the filter and the clock; rows
   themselves are copied into a log of pinned memory before they change. What the log cannot hold
   goes to a file.
2. Nothing here fails a writer: without memory, or with a full disk, the snapshot is lost, and its
   reader is told.
3. All but `end` waits for the table's lock; one thread reads, and another may end it.
"""

import errno
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embstore import _core
from embstore.engines import kernels
from embstore.engines.cuda.chunks import META_BYTES
from embstore.engines.cuda.device import Memory, PinnedMemory
from embstore.engines.cuda.launch import packed
from embstore.engines.cuda.storage import Counters, TakenLog
from embstore.engines.cuda.transfer import CandidateOrder, FileOrder, deleted_keys, select_set
from embstore.engines.types import Candidates
from embstore.errors import ArgumentError, CheckpointError, ClosedTableError, OutOfMemoryError

if TYPE_CHECKING:
    from embstore.engines.cuda.core import CudaCore

LEAST_IMAGES = 1024  # that the log has room for, however small it was asked to be


class RowImages:
    """The log: images of rows in pinned memory, and those that were drained to a file.

    Image number i lies in memory at i - `n_drained`. There is room for `n_most`; `n_kept` may stay.
    """

    def __init__(self, engine: "CudaCore", n_rows: int, log_bytes: int, file: int) -> None:
        self.image_bytes = META_BYTES + engine._storage.shape.row_bytes
        self.n_kept = min(log_bytes // self.image_bytes, n_rows)
        self.n_most = max(1, min(n_rows, max(self.n_kept, LEAST_IMAGES)))
        self.n_drained = 0
        self._file = file
        self._memory: PinnedMemory = engine._device.alloc_pinned(self.n_most * self.image_bytes)

    @property
    def address(self) -> int:
        """Where the images in memory begin."""
        return self._memory.address

    @property
    def n_bytes(self) -> int:
        """Bytes of pinned memory."""
        return self._memory.n_bytes

    def drain(self, n: int) -> None:
        """Write the n images in memory to the file; raise OSError if they do not fit there."""
        if n == 0:
            return
        if self._file < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        data = memoryview(self._memory.array[: n * self.image_bytes])  # type: ignore[arg-type]
        offset = self.n_drained * self.image_bytes
        while data:
            n_written = os.pwrite(self._file, data, offset)
            data, offset = data[n_written:], offset + n_written
        self.n_drained += n

    def read(self, number: int) -> NDArray[np.uint8]:
        """Return an image that was drained; raise OSError if it cannot be read."""
        data = os.pread(self._file, self.image_bytes, number * self.image_bytes)
        if len(data) != self.image_bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return np.frombuffer(data, np.uint8)


class Cut:
    """What the device knows of a cut: CutView in its memory, and what it points to."""

    def __init__(
        self, engine: "CudaCore", n_ids: int, n_rows: int, log_bytes: int, file: int
    ) -> None:
        self.engine, self.n_ids, self.n_rows = engine, n_ids, n_rows
        self.launcher, self.storage = engine._launcher, engine._storage
        n_words = max(1, -(-n_ids // 32))
        self._names = kernels.struct_fields("CutView")
        self._view: Memory = self.launcher.alloc(8 * len(self._names))
        self.waiting: Memory = self.launcher.alloc(4 * n_words)
        self._image_of: Memory = self.launcher.alloc(4 * max(1, n_ids))
        self._frozen: Memory | None = None
        self.images = RowImages(engine, n_rows, log_bytes, file)
        self.most_logged = 0  # images that may have been made
        self.step_base = engine._clock.step_base
        self.errno = 0
        self.is_detached = False  # the rows are this snapshot's alone
        self.side_bytes = 0  # of what else the snapshot holds
        self.taken: TakenLog | None = None  # the change log that ended with the cut

    @property
    def view(self) -> int:
        """Address of the CutView."""
        return self._view.address

    @property
    def n_bytes(self) -> int:
        """Bytes that the cut holds."""
        held = [self._view, self.waiting, self._image_of, self._frozen]
        n_bytes = sum(m.n_bytes for m in held if m is not None)
        return n_bytes + self.images.n_bytes + self.side_bytes

    def write_view(self, n_images: int) -> None:
        """Write the CutView anew."""
        fields = {
            "n_ids": self.n_ids,
            "waiting": self.waiting.address,
            "image_of": self._image_of.address,
            "frozen": 0 if self._frozen is None else self._frozen.address,
            "step_base": self.step_base,
            "images": self.images.address,
            "image_bytes": self.images.image_bytes,
            "first_image": self.images.n_drained,
            "n_images": n_images,
            "n_most": self.images.n_most,
            "is_lost": 0,
        }
        self.launcher.queue.upload(self.view, packed(self._names, fields, "CutView"))

    def protect(self, rows: int, n: int, n_at: int) -> None:
        """Copy rows of a list into the log before they change: distinct ones, at most n.

        `n_at` is where the device keeps how many there are; 0 is nowhere.
        """
        if self.errno or self.is_detached:
            return
        try:
            for first in range(0, n, self.images.n_most):
                self._protect_some(rows, first, min(n, first + self.images.n_most), n_at)
        except OSError as error:
            self.errno = error.errno or errno.EIO

    def _protect_some(self, rows: int, first: int, end: int, n_at: int) -> None:
        """Protect rows number `first` to `end` of a list: no more than there may be images."""
        images, listed = self.images, {"rows": rows, "first": first, "end": end, "n_at": n_at}
        n_more = end - first
        if self.most_logged + n_more > images.n_drained + images.n_most:
            n_more = self._count_waiting(listed)
            self.most_logged = self._n_images()
            if self.most_logged + n_more > images.n_drained + images.n_most:
                self._drain()
        self._run("protect_rows_of_cut", 8 * (end - first), listed)
        self.most_logged += n_more
        if self.most_logged > images.n_drained + images.n_kept:
            self.most_logged = self._n_images()
            if self.most_logged > images.n_drained + images.n_kept:
                self._drain()

    def _run(self, kernel: str, n_threads: int, listed: dict[str, int], **more: int) -> None:
        fields = {"table": self.storage.view, "cut": self.view}
        self.launcher.run(kernel, n_threads, **fields, **listed, **more)

    def _count_waiting(self, listed: dict[str, int]) -> int:
        """Return how many rows of a list are still to be read or logged; waits."""
        count = self.launcher.scratch("rows waiting", 8)
        self.launcher.queue.fill(count, 0, 8)
        self._run("count_waiting_rows", listed["end"] - listed["first"], listed, count=count)
        return self._number(count)

    def _n_images(self) -> int:
        """Return how many images were made; waits."""
        return self._number(self.view + 8 * list(self._names).index("n_images"))

    def _number(self, address: int) -> int:
        value = np.empty(1, np.uint64)
        self.launcher.queue.download(address, value)
        return int(value[0])

    def _drain(self) -> None:
        """Write all images in memory to the file."""
        self.images.drain(self.most_logged - self.images.n_drained)
        self.write_view(self.most_logged)

    def make_room(self, n: int) -> None:
        """Make room for n images that a replayed graph may make."""
        if self.errno or self.is_detached:
            return
        self.most_logged = self._n_images()
        n = min(n, self.n_rows - self.most_logged)
        try:
            if self.most_logged + n > self.images.n_drained + self.images.n_most:
                self._drain()
        except OSError as error:
            self.errno = error.errno or errno.EIO
        self.most_logged += n

    def note_lost(self) -> None:
        """Take note of what a kernel found no room for; waits."""
        if self._number(self.view + 8 * list(self._names).index("is_lost")):
            self.errno = self.errno or errno.ENOSPC

    def freeze_metas(self) -> None:
        """Copy the records of all rows, before all of them change."""
        if self.errno or self.is_detached or self._frozen is not None:
            return
        try:
            frozen = self.launcher.alloc(META_BYTES * max(1, self.n_ids))
        except OutOfMemoryError:
            self.errno = errno.ENOMEM
            return
        self.launcher.run(
            "freeze_metas_of_cut",
            self.n_ids,
            table=self.storage.view,
            cut=self.view,
            out=frozen.address,
        )
        self._frozen = frozen
        at = self.view + 8 * list(self._names).index("frozen")
        self.launcher.queue.upload(at, np.array([frozen.address], np.uint64))


class CudaSnapshot:
    """See `embstore.engines.engine.Snapshot`."""

    def __init__(self, engine: "CudaCore", is_delta: bool, log_bytes: int, file: int) -> None:
        """Cut the table, whose lock is held."""
        self._where = engine._where
        self._engine = engine
        self._lock = engine._lock
        self._launcher, self._storage = engine._launcher, engine._storage
        self._spec = engine._spec
        self._has_ended = False
        counters = engine._counters()
        self._n_live = counters.n_live
        self._state = engine._state()
        self._n_removed = counters.n_log
        self._take_rows(engine, counters, is_delta, (log_bytes, file))
        self._candidates = self._take_candidates(engine)
        self._deleted = np.empty(0, np.int64)
        if is_delta:
            self._deleted = deleted_keys(
                self._launcher, engine._table(), self._storage.removed_address, counters.n_log
            )
        self._bloom = self._take_bloom()
        self.cut.side_bytes = self._order.n_bytes + (self._bloom.n_bytes if self._bloom else 0)
        self._taken = self.cut.taken = engine._take_log()  # the last that may fail

    def _take_rows(
        self, engine: "CudaCore", counters: Counters, is_delta: bool, log: tuple[int, int]
    ) -> None:
        """Fix which rows are of the cut, and their order."""
        storage, table, queue = self._storage, engine._table(), self._launcher.queue
        marks = storage.dirty_address if is_delta else 0
        selected, n_rows = select_set(self._launcher, table, marks)
        self.cut = Cut(engine, counters.n_ids, n_rows, *log)
        queue.copy(self.cut.waiting.address, selected, 4 * max(1, -(-counters.n_ids // 32)))
        self.cut.write_view(0)
        self._order = FileOrder()
        self._order.put_rows(self._launcher, table, selected)
        self._n_rows = n_rows

    def _take_candidates(self, engine: "CudaCore") -> Candidates:
        if not engine._has_counter:
            none = np.empty(0, np.int64)
            return Candidates(none, np.empty(0, np.uint32), none)
        order = CandidateOrder()
        order.prepare(self._launcher, engine._table(), 0)
        return order.read(self._launcher, engine._table(), 0, 255)

    def _take_bloom(self) -> Memory | None:
        n_bytes = self._storage.bloom_bytes
        if not n_bytes:
            return None
        memory = self._launcher.alloc(n_bytes)
        self._launcher.queue.copy(memory.address, self._storage.bloom_address, n_bytes)
        return memory

    # ---- for the saving thread

    def _check_open(self) -> None:
        if self._has_ended:
            raise ClosedTableError(f"{self._where}: the snapshot has ended")

    def _check_whole(self) -> None:
        self.cut.note_lost()
        if self.cut.errno:
            text = os.strerror(self.cut.errno)
            raise CheckpointError(
                self.cut.errno, f"{self._where}: the snapshot is lost: its log cannot grow: {text}"
            )

    def prepare(self, n_threads: int, prefault: bool) -> None:
        """Do nothing: the order of the rows, and the log's memory, were made at the cut."""
        with self._lock:
            self._check_open()

    def stats(self) -> dict[str, int]:
        """Return error, n_rows (to be read), n_live, n_candidates, n_deleted, n_in_file."""
        with self._lock:
            self._check_open()
            return {
                "error": self.cut.errno,
                "n_rows": self._n_rows,
                "n_live": self._n_live,
                "n_candidates": len(self._candidates),
                "n_deleted": len(self._deleted),
                "n_in_file": self.cut.images.n_drained,
            }

    def state(self) -> dict[str, Any]:
        """Return ``es_state`` as of the cut."""
        self._check_open()
        return dict(self._state)

    def counts(self, candidates: bool) -> NDArray[np.uint64]:
        """Return the rows to be read (or candidates) of each of the 256 partitions."""
        self._check_open()
        if not candidates:
            return self._order.counts()
        parts = _core.fixed_hash(self._candidates.keys) >> np.uint64(56)
        return np.bincount(parts.astype(np.int64), minlength=256).astype(np.uint64)

    def rows(
        self, first: int, n: int, n_threads: int
    ) -> tuple[
        NDArray[np.int64], NDArray[Any], NDArray[np.float32], NDArray[np.uint32], NDArray[np.int64]
    ]:
        """Return rows [first, first + n) by (partition, key), each of which can be read once."""
        spec = self._spec
        keys, freq = np.empty(n, np.int64), np.empty(n, np.uint32)
        step, elsewhere = np.empty(n, np.int64), np.zeros(n, np.uint64)
        values = np.empty((n, spec.dim), spec.stored_dtype)
        slots = np.empty((n, spec.slot_floats), np.float32)
        with self._lock:
            self._check_open()
            self._check_whole()
            if first + n > self._n_rows:
                raise ArgumentError(f"{self._where}: the snapshot has fewer rows")
            outputs = {
                "keys": keys,
                "values": values,
                "slots": slots,
                "freq": freq,
                "step": step,
                "elsewhere": elsewhere,
            }
            at = {
                name: self._launcher.scratch(f"cut_{name}", array.nbytes)
                for name, array in outputs.items()
            }
            self._launcher.run(
                "read_rows_of_cut",
                8 * n,
                table=self._storage.view,
                cut=self.cut.view,
                rows=self._order.rows(0, 255).address + 4 * first,
                n=n,
                **at,
            )
            for name, array in outputs.items():
                if array.nbytes:
                    self._launcher.queue.download(at[name], array)
        self._fill_drained(keys, values, slots, freq, step, elsewhere)
        return keys, values, slots, freq, step

    def _fill_drained(
        self,
        keys: NDArray[np.int64],
        values: NDArray[Any],
        slots: NDArray[np.float32],
        freq: NDArray[np.uint32],
        step: NDArray[np.int64],
        elsewhere: NDArray[np.uint64],
    ) -> None:
        """Read the rows whose images are in the file."""
        shape = self._storage.shape
        try:
            for i in np.flatnonzero(elsewhere).tolist():
                image = self.cut.images.read(int(elsewhere[i]) - 1)
                keys[i] = image[:8].view(np.int64)[0]
                relative, freq[i] = image[8:META_BYTES].view(np.uint32)
                step[i] = self.cut.step_base + int(relative)
                row = image[META_BYTES:]
                values[i] = row[: values[i].nbytes].view(values.dtype)
                slots[i] = row[shape.slots_at :][: slots[i].nbytes].view(np.float32)
        except OSError as error:
            self.cut.errno = error.errno or errno.EIO
            self._check_whole()

    def deleted(self) -> NDArray[np.int64]:
        """Return, of a delta, the keys that were removed and had no row then."""
        self._check_open()
        return self._deleted

    def candidates(
        self, first: int, n: int
    ) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.int64]]:
        """Return keys, counts and epochs of candidates [first, first + n)."""
        self._check_open()
        part, chosen = self._candidates, slice(first, first + n)
        return part.keys[chosen], part.counts[chosen], part.epochs[chosen]

    def bloom(self, partition: int) -> NDArray[np.uint8]:
        """Return the bytes of one sub-filter."""
        n_bytes = self._spec.bloom_bytes
        out = np.empty(n_bytes, np.uint8)
        with self._lock:
            self._check_open()
            if self._bloom is not None:
                self._launcher.queue.download(self._bloom.address + partition * n_bytes, out)
        return out

    def end(self, is_saved: bool) -> None:
        """End it; unless it was saved, the change log is as if there had been none."""
        with self._lock:
            if self._has_ended:
                return
            self._has_ended = True
            self._engine._end_snapshot(self.cut, self._taken, self._n_removed, is_saved)

    def __del__(self) -> None:
        if not getattr(self, "_has_ended", True):
            self.end(False)
