"""One call over many tables: what they queue is recorded, and runs stage by stage, side by side.

1. A `Recorder` stands in for the queue of each table. Where the host must see a number in the
   middle of a call, what was recorded for that table runs at once; no result depends on it.
2. Recorded launches of the same kernel become one, whose argument structs are uploaded together.
3. Tables share nothing, so that the order between their stages is free.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embstore.engines import kernels
from embstore.engines.cuda.device import Event, Memory, Queue
from embstore.engines.cuda.launch import Launcher, packed

WORD = 4


class Launch(NamedTuple):
    """A recorded launch of a kernel."""

    kernel: str
    n_threads: int
    args: NDArray[np.uint64]


class Recorder:
    """A queue that takes note of what it is told, for `run_together`."""

    def __init__(self, queue: Queue) -> None:
        self.real = queue
        self.work: deque[Launch | Callable[[], None]] = deque()
        self.later: list[tuple[int, NDArray[Any], object]] = []
        self.kept: list[Memory | None] = []  # memory that the work uses

    @property
    def handle(self) -> int:
        """The number of the stream."""
        return self.real.handle

    def alloc(self, n_bytes: int) -> Memory:
        """Return uninitialized memory of the device."""
        return self.real.alloc(n_bytes)

    def upload(self, to: int, data: NDArray[Any]) -> None:
        """Copy an array of the host to an address."""
        self.work.append(lambda: self.real.upload(to, data))

    def download(self, source: int, out: NDArray[Any]) -> None:
        """Run what was recorded, and fill an array of the host."""
        self.flush()
        self.real.download(source, out)

    def give(self, source: int, out: NDArray[Any], keep: object) -> None:
        """Fill an array of the host in the end; `keep` is the memory, which must last."""
        self.later.append((source, out, keep))

    def copy(self, to: int, source: int, n_bytes: int) -> None:
        """Copy bytes from one address to another."""
        if n_bytes % WORD or to % WORD or source % WORD:
            self.work.append(lambda: self.real.copy(to, source, n_bytes))
            return
        n = n_bytes // WORD
        self._record("copy_words", n, **{"from": source}, to=to, n=n)

    def fill(self, to: int, byte: int, n_bytes: int) -> None:
        """Set bytes to a value."""
        if n_bytes % WORD or to % WORD:
            self.work.append(lambda: self.real.fill(to, byte, n_bytes))
            return
        n = n_bytes // WORD
        self._record("fill_words", n, to=to, n=n, word=byte * 0x01010101)

    def _record(self, kernel: str, n_threads: int, **fields: int) -> None:
        args = packed(kernels.argument_fields(kernel), fields, kernel)
        self.launch(kernel, max(1, n_threads), args)

    def launch(self, kernel: str, n_threads: int, args: NDArray[np.uint64]) -> None:
        """Run a kernel."""
        self.work.append(Launch(kernel, n_threads, args))

    def launch_many(self, kernel: str, n_threads: int, args: int, n: int) -> None:
        """Run a kernel n times side by side."""
        self.work.append(lambda: self.real.launch_many(kernel, n_threads, args, n))

    def is_capturing(self) -> bool:
        """Return whether what is queued goes into a graph."""
        return self.real.is_capturing()

    def record(self) -> Event:
        """Return the present point of the queue's order."""
        self.flush()
        return self.real.record()

    def wait_for(self, event: Event) -> None:
        """Let what follows come after an event."""
        self.flush()
        self.real.wait_for(event)

    def synchronize(self) -> None:
        """Wait until all is done."""
        self.flush()
        self.real.synchronize()

    def flush(self) -> None:
        """Run what was recorded, by itself."""
        while self.work:
            run_alone(self.real, self.work.popleft())

    def deliver(self) -> None:
        """Fill the arrays of the host; waits for the device."""
        for source, out, _ in self.later:
            self.real.download(source, out)
        self.later.clear()
        self.kept.clear()


def run_alone(queue: Queue, work: Launch | Callable[[], None]) -> None:
    """Queue one piece of recorded work."""
    if isinstance(work, Launch):
        queue.launch(*work)
    else:
        work()


def staged(recorders: Sequence[Recorder]) -> list[list[Launch] | Callable[[], None]]:
    """Return the work of all recorders as stages: launches of one kernel, or something else."""
    stages: list[list[Launch] | Callable[[], None]] = []
    while any(recorder.work for recorder in recorders):
        for recorder in recorders:
            while recorder.work and not isinstance(recorder.work[0], Launch):
                stages.append(recorder.work.popleft())  # type: ignore[arg-type]
        waiting = [recorder for recorder in recorders if recorder.work]
        if not waiting:
            break
        longest = max(waiting, key=lambda recorder: len(recorder.work)).work[0]
        assert isinstance(longest, Launch)
        together = []
        for recorder in waiting:
            head = recorder.work[0]
            if isinstance(head, Launch) and head.kernel == longest.kernel:
                together.append(head)
                recorder.work.popleft()
        stages.append(together)
    return stages


def run_together(launcher: Launcher, queue: Queue, recorders: Sequence[Recorder]) -> None:
    """Queue the recorded work of tables whose queue this is; `launcher` has the scratch memory."""
    stages = staged(recorders)
    shared = [stage for stage in stages if isinstance(stage, list) and len(stage) > 1]
    address = 0
    if shared:
        args = np.concatenate([launch.args for stage in shared for launch in stage])
        address = launcher.scratch("arguments of many", args.nbytes)
        queue.upload(address, args)
    for stage in stages:
        if not isinstance(stage, list) or len(stage) == 1:
            run_alone(queue, stage[0] if isinstance(stage, list) else stage)
            continue
        n_threads = max(launch.n_threads for launch in stage)
        queue.launch_many(stage[0].kernel, n_threads, address, len(stage))
        address += sum(launch.args.nbytes for launch in stage)


@contextmanager
def not_recorded(launcher: Launcher) -> Iterator[None]:
    """Queue what follows at once, after what was recorded: memory may be dropped then."""
    recorder = launcher.queue
    if isinstance(recorder, Recorder):
        recorder.flush()
        launcher.queue = recorder.real
    try:
        yield
    finally:
        launcher.queue = recorder


def give(queue: Queue, source: int, out: NDArray[Any], keep: object) -> None:
    """Fill an array of the host, now or at the end of a call over many tables."""
    if isinstance(queue, Recorder):
        queue.give(source, out, keep)
    else:
        queue.download(source, out)


def run_groups(recorded: Sequence[tuple[Launcher, Recorder]]) -> None:
    """Queue the recorded work, together for those of one stream."""
    groups: dict[tuple[int, int], list[tuple[Launcher, Recorder]]] = {}
    for launcher, recorder in recorded:
        key = (id(type(recorder.real)), recorder.handle)
        groups.setdefault(key, []).append((launcher, recorder))
    for group in groups.values():
        launcher, first = group[0]
        run_together(launcher, first.real, [recorder for _, recorder in group])
