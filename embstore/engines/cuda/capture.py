"""Calls that are captured in a CUDA graph, and what a replay of it needs; docs/gpu.md.

1. What a captured call uses of scratch memory is that of a launcher of its own, which lives as long
   as the table: a graph stays good whatever is called later.
2. What changes from replay to replay (step, training step, rates) stands in `Now`, in the memory
   of the device; what grows, behind the descriptor, whose address stays.
3. A replay is framed by `replaying`: it does what is due, sees to room, and orders the streams.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from embstore.engines import kernels
from embstore.engines.cuda.core import CudaCore
from embstore.engines.cuda.launch import Capture, packed
from embstore.errors import ArgumentError


class CudaCapture(CudaCore):
    """capturing and replaying."""

    @property
    def has_graphs(self) -> bool:
        """Whether calls may have been captured."""
        return bool(self._captures)

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """Let calls be captured: those inside use memory that graphs may keep."""
        with self._entered():
            if self._capture is not None:
                raise ArgumentError(f"{self._where}: capturing() is inside another")
            if self._config["collect_evicted"]:
                raise ArgumentError(
                    f"{self._where}: capturing: on_evict gets rows that the host reads after "
                    f"every call, which a graph cannot do"
                )
            capture = Capture(self._own_launcher.queue)
        self._captures.append(capture)
        self._capture = capture
        try:
            yield
        finally:
            with self._lock:
                self._capture = None

    @contextmanager
    def replaying(self, step: int | None, lr: float) -> Iterator[None]:
        """Frame a replay on the stream of the call; `step` None replays finds alone."""
        if step is None:
            with self._reading():
                yield
            return
        with self._writing():
            self._advance_base(step)
            step = self._clamped(step)
            self._maintain(step)
            self._make_room_for_replay()
            self._clock.train(step, self._betas)
            self._write_now(step, lr)
            if self._caller.handle != self._launcher.queue.handle:
                self._caller.wait_for(self._launcher.queue.record())
            yield
            self._launcher.queue.wait_for(self._caller.record())
            self._has_late = True
            self._bounds.add(self._n_captured, self._n_captured)
            self._bounds.send(self._launcher.queue, self._storage.counters_address)

    def _maintain(self, step: int) -> None:
        raise NotImplementedError

    @property
    def _betas(self) -> tuple[float, float] | None:
        raise NotImplementedError

    def _make_room_for_replay(self) -> None:
        """See to it that all keys of a replay could be new."""
        n, max_rows, storage = self._n_captured, self._spec.max_rows, self._storage
        self._check_late()
        self._renew_index()
        if not self._surely_fits(n):
            counters = self._counters()
            if max_rows is not None and counters.n_live + n > max_rows:
                raise ArgumentError(
                    f"{self._where}: a replay of {n} keys might pass max_rows={max_rows}, with "
                    f"{counters.n_live} rows there now; evict first, or call without a graph"
                )
            if storage.reserve_rows(counters.n_ids + max(0, n - counters.n_free)):
                storage.write_descriptor()
            storage.reserve_cells(counters.n_live + counters.n_candidates + n)
        if self._snapshot is not None:
            self._snapshot.make_room(2 * n)

    def _surely_fits(self, n: int) -> bool:
        raise NotImplementedError

    def _renew_index(self) -> None:
        raise NotImplementedError

    def _write_now(self, step: int, lr: float) -> None:
        """Write what a replay at `step` reads."""
        clock = self._clock
        fields = {
            "step": self._relative(step),
            "t": clock.n_train_steps,
            "lr": lr,
            "beta1_power": clock.beta1_power,
            "beta2_power": clock.beta2_power,
        }
        data = packed(kernels.struct_fields("Now"), fields, "Now")
        self._launcher.queue.upload(self._now.address, data)
