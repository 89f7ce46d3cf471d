"""The seam between the CUDA engine and a machine: memory, copies, launches and events.

Two kinds of device stand behind it, one of CuPy and one that emulates a card on the CPU (tests);
the engine knows neither. A `Queue` is a stream: what it is told happens in that order, and nothing
here waits for it but `download` and `synchronize`. Memory is freed when the last reference to it
goes; its device keeps it until what was queued on its own queue is done.
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

BLOCK_THREADS = 256  # of every launch


class Memory(Protocol):
    """Bytes that kernels can address: of the device, or of the host, pinned."""

    @property
    def address(self) -> int:
        """Where they begin, a multiple of 256."""
        ...

    @property
    def n_bytes(self) -> int:
        """How many they are."""
        ...


class PinnedMemory(Memory, Protocol):
    """Memory of the host that kernels can address too."""

    @property
    def array(self) -> NDArray[np.uint8]:
        """The bytes, (n_bytes,) uint8, as the host sees them."""
        ...


class Event(Protocol):
    """A point in the order of a queue."""

    def is_done(self) -> bool:
        """Return whether all that was queued before has been done."""
        ...

    def wait(self) -> None:
        """Wait until it is."""
        ...


class Queue(Protocol):
    """A stream of a device. Any thread may use it, one at a time."""

    @property
    def handle(self) -> int:
        """The number of the stream, as ``cudaStream_t``."""
        ...

    def alloc(self, n_bytes: int) -> Memory:
        """Return uninitialized memory of the device.

        Raises
        ------
        OutOfMemoryError
            If the device has none left.
        """
        ...

    def upload(self, to: int, data: NDArray[Any]) -> None:
        """Copy a contiguous array of the host to an address; `data` may be changed afterwards."""
        ...

    def download(self, source: int, out: NDArray[Any]) -> None:
        """Fill a contiguous array of the host, after all that was queued; waits."""
        ...

    def copy(self, to: int, source: int, n_bytes: int) -> None:
        """Copy bytes from one address to another; pinned memory too."""
        ...

    def fill(self, to: int, byte: int, n_bytes: int) -> None:
        """Set bytes to a value, 0 to 255."""
        ...

    def launch(self, kernel: str, n_threads: int, args: NDArray[np.uint64]) -> None:
        """Run a kernel by at least one block, and about `n_threads` in blocks of BLOCK_THREADS.

        A device bounds the number of blocks: kernels stride over their work by the grid. `args` are
        the fields of the kernel's argument struct, each of 8 bytes.
        """
        ...

    def launch_many(self, kernel: str, n_threads: int, args: int, n: int) -> None:
        """Run a kernel n times side by side, each with the same number of blocks.

        `args` is the address of n argument structs, one after another, in the device's memory.
        """
        ...

    def is_capturing(self) -> bool:
        """Return whether what is queued goes into a graph that is being captured."""
        ...

    def record(self) -> Event:
        """Return the present point of the queue's order."""
        ...

    def wait_for(self, event: Event) -> None:
        """Let what is queued from here on come after an event; the host does not wait."""
        ...

    def synchronize(self) -> None:
        """Wait until all that was queued is done."""
        ...


class Device(Protocol):
    """A card, or what stands for it."""

    @property
    def name(self) -> str:
        """As users name it: "cuda:0"."""
        ...

    def queue(self, stream: int | None = None) -> Queue:
        """Return the queue of a stream (a ``cudaStream_t``); None is the current one."""
        ...

    def alloc_pinned(self, n_bytes: int) -> PinnedMemory:
        """Return zeroed memory of the host that kernels can address.

        Raises
        ------
        OutOfMemoryError
            If the host has none left.
        """
        ...

    def new_array(self, shape: tuple[int, ...], dtype: np.dtype[Any], queue: Queue) -> Any:
        """Return an uninitialized array of the device, as users get it.

        It has ``__cuda_array_interface__``.
        """
        ...
