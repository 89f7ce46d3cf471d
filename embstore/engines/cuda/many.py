"""Calls over many tables of a card: they are locked together, and their stages run together."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Self

from embstore.engines import streams
from embstore.engines.cuda.core import CudaCore
from embstore.engines.cuda.fused import Recorder, run_groups
from embstore.engines.cuda.launch import Launcher


class ManyWrites:
    """A call that writes to several tables, each once."""

    def __init__(self, engines: Sequence[CudaCore]) -> None:
        self._engines = engines
        self._stack = ExitStack()
        self._recorders: dict[int, tuple[Launcher, Recorder]] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            # In one order, so that two calls cannot block each other.
            for engine in sorted(self._engines, key=id):
                stack.enter_context(engine._writing())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    @contextmanager
    def recording(self, engine: CudaCore) -> Iterator[None]:
        """Record what is queued for a table; alone, or in a captured graph, it runs at once."""
        if len(self._engines) == 1 or engine._is_captured:
            yield
            return
        launcher = engine._launcher
        queue = launcher.queue
        launcher.queue = recorder = Recorder(queue)
        self._recorders[id(engine)] = (launcher, recorder)
        engine._is_fused = True
        try:
            yield
        finally:
            launcher.queue = queue
            engine._is_fused = False

    def run(self) -> None:
        """Queue what was recorded, and fill the arrays of the host."""
        recorded, self._recorders = [*self._recorders.values()], {}
        run_groups(recorded)
        for _, recorder in recorded:
            recorder.deliver()
        for engine in self._engines:
            if not engine._is_captured:
                engine._bounds.send(engine._launcher.queue, engine._storage.counters_address)


class ManyReads:
    """A call that reads from several tables on the stream of the call."""

    def __init__(self, engines: Sequence[CudaCore]) -> None:
        self._engines = engines
        self._recorders: list[tuple[Launcher, Recorder]] = []

    def run(self, reads: Sequence[Callable[[], None]]) -> None:
        """Make the reads of the tables, one each, and fill the arrays of the host."""
        if len(reads) == 1:
            reads[0]()
            return
        with ExitStack() as stack:
            for engine in sorted(self._engines, key=id):
                stack.enter_context(engine._lock)
            for engine, read in zip(self._engines, reads, strict=True):
                engine._read_recorder = Recorder(engine._device.queue(streams.current()))
                try:
                    read()
                finally:
                    recorder, engine._read_recorder = engine._read_recorder, None
                self._recorders.append((engine._reader_of(recorder.handle), recorder))
            run_groups(self._recorders)
            for engine, (launcher, recorder) in zip(self._engines, self._recorders, strict=True):
                engine._readers[recorder.handle] = (launcher, recorder.real.record())
        for _, recorder in self._recorders:
            recorder.deliver()
