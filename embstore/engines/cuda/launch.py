"""Kernels by name and fields: what stands between the engine's steps and a queue."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore.engines import kernels
from embstore.engines.cuda.device import Memory, Queue
from embstore.errors import InternalError


class Launcher:
    """A queue, and the scratch memory that a table's calls use one after another on it.

    What a step leaves in scratch is good until the next step asks for memory of the same name.
    """

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self._scratch: dict[str, Memory] = {}

    def run(self, kernel: str, n_threads: int, **fields: int | float) -> None:
        """Launch a kernel: about `n_threads`, and the fields of its argument struct by name."""
        args = packed(kernels.argument_fields(kernel), fields, kernel)
        self.queue.launch(kernel, max(1, n_threads), args)

    def scratch(self, name: str, n_bytes: int) -> int:
        """Return the address of at least `n_bytes` that hold nothing in particular."""
        held = self._scratch.get(name)
        if held is None or held.n_bytes < n_bytes:
            old = self._scratch.pop(name, None)
            kept = getattr(self.queue, "kept", None)  # of work that was recorded, and has not run
            if kept is not None:
                kept.append(old)
            held = self.queue.alloc(max(256, n_bytes + n_bytes // 4))
            self._scratch[name] = held
        return held.address

    def alloc(self, n_bytes: int) -> Memory:
        """Return uninitialized memory."""
        return self.queue.alloc(n_bytes)

    def give(self, source: int, out: NDArray[Any], keep: object = None) -> None:
        """Fill an array of the host, now or at the end of a call over many tables."""
        later = getattr(self.queue, "give", None)
        if later is None:
            self.queue.download(source, out)
        else:
            later(source, out, keep)

    @property
    def scratch_bytes(self) -> int:
        """Bytes of all scratch memory."""
        return sum(memory.n_bytes for memory in self._scratch.values())


class KeepingLauncher(Launcher):
    """A launcher whose memory is kept, for work that is captured: what is dropped is not reused.

    After `rewind` it gives the memory that it gave before, in the same order.
    """

    def __init__(self, queue: Queue) -> None:
        super().__init__(queue)
        self._kept: list[Memory] = []
        self._next = 0

    def alloc(self, n_bytes: int) -> Memory:
        """Return memory that lives as long as this."""
        while self._next < len(self._kept):
            memory = self._kept[self._next]
            self._next += 1
            if memory.n_bytes >= n_bytes:
                return memory
        memory = super().alloc(n_bytes)
        self._kept.append(memory)
        self._next = len(self._kept)
        return memory

    def rewind(self) -> None:
        """Begin again with the first memory that was given."""
        self._next = 0


class Capture:
    """The memory of calls that are captured: it lives as long as their table."""

    def __init__(self, home: Queue) -> None:
        self._launcher = KeepingLauncher(home)
        self._readers: dict[int, KeepingLauncher] = {}
        self._was_captured = False

    def begin(self, queue: Queue, is_captured: bool) -> Launcher:
        """Return the launcher of a writer's call on a queue.

        Captured calls use the memory of those before them, which were not.
        """
        if is_captured and not self._was_captured:
            self._launcher.rewind()
        self._was_captured = is_captured
        self._launcher.queue = queue
        return self._launcher

    def reader(self, queue: Queue) -> Launcher:
        """Return the launcher of reads on a stream."""
        return self._readers.setdefault(queue.handle, KeepingLauncher(queue))


def packed(
    types: Mapping[str, str], fields: Mapping[str, int | float], where: str
) -> NDArray[np.uint64]:
    """Return a struct of 8-byte fields as uint64; `types` says of each whether it is a double."""
    if fields.keys() != types.keys():
        odd = sorted(fields.keys() ^ types.keys())
        raise InternalError(f"{where}: fields {odd} are missing, or are not of its struct")
    values = np.empty(len(types), np.uint64)
    for place, (name, kind) in enumerate(types.items()):
        value = fields[name]
        if kind == "double":
            values[place] = np.float64(value).view(np.uint64)
        else:
            values[place] = int(value) & 0xFFFFFFFFFFFFFFFF
    return values
