"""The device of a real card, by CuPy.

1. Device memory comes from CuPy's pool, in the order of the queue that asked for it: once dropped,
   it may be handed to later work of that queue. Who uses it on another queue lets the first wait
   for the other before the drop.
2. Pinned memory is the process's own, of the exact size; freeing it waits for the device.
3. While a stream is captured, nothing here is called but `launch` (after the first, which loads all
   kernels), `copy`, `fill`, `record` and `wait_for`.
4. CuPy is imported when a device is opened, not before.
"""

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore.engines import kernels
from embstore.engines.cuda.device import BLOCK_THREADS, Event, Queue
from embstore.errors import InternalError, OutOfMemoryError

BLOCKS_PER_MULTIPROCESSOR = 8
PIECE_BYTES = 4 << 20  # of an upload
STAGED_BYTES = 64 << 20  # of all uploads of a device under way
OF_MANY = "_of_many"  # the variant of a kernel that runs it side by side; simt.h
SUCCESS, NOT_READY = 0, 600  # of cudaError_t
DEFAULT_STREAMS = (0, 1)  # cudaStream_t: null, and cudaStreamLegacy
NO_MEMORY = (
    1,
    2,
    304,
)  # what allocations give: invalid value (a size), allocation, operating system


class CupyMemory:
    """Memory of the device, which goes back to CuPy's pool when dropped."""

    def __init__(self, pointer: Any, n_bytes: int) -> None:
        self._pointer = pointer
        self.address = int(pointer.ptr)
        self.n_bytes = n_bytes


class PinnedBlock:
    """An allocation of pinned host memory, in the form that CuPy makes buffers of."""

    def __init__(self, n_bytes: int, device: "CupyDevice") -> None:
        runtime = device.runtime
        flags = runtime.hostAllocPortable | runtime.hostAllocMapped
        self.size = max(1, n_bytes)
        with device.current(), device.memory_errors(n_bytes, of="the host, pinned"):
            self.ptr = int(runtime.hostAlloc(self.size, flags))
        weakref.finalize(self, self._free, self.ptr, device).atexit = False

    @staticmethod
    def _free(address: int, device: "CupyDevice") -> None:
        """Wait until no queued work can use the memory, and free it."""
        runtime = device.runtime
        with contextlib.suppress(runtime.CUDARuntimeError), device.current():
            runtime.deviceSynchronize()
        with contextlib.suppress(runtime.CUDARuntimeError):
            runtime.freeHost(address)


class CupyPinnedMemory:
    """Pinned memory of the host, zeroed, mapped into every device; lives as long as its array."""

    def __init__(self, n_bytes: int, device: "CupyDevice") -> None:
        block = PinnedBlock(n_bytes, device)
        self.address = block.ptr
        self.n_bytes = n_bytes
        view = device.cupy.cuda.PinnedMemoryPointer(block, 0)
        self.array: NDArray[np.uint8] = np.frombuffer(view, np.uint8, block.size)[:n_bytes]
        self.array.fill(0)


class CupyEvent:
    """A CUDA event that keeps no time."""

    def __init__(self, event: Any, runtime: Any) -> None:
        self.event = event
        self._runtime = runtime

    def is_done(self) -> bool:
        """Return whether all that was queued before has been done."""
        status = self._runtime.eventQuery(self.event.ptr)
        if status not in (SUCCESS, NOT_READY):
            self.event.synchronize()  # raises what the status says
        return bool(status == SUCCESS)

    def wait(self) -> None:
        """Wait until it is."""
        self.event.synchronize()


class Staging:
    """Pinned copies of what is being uploaded, each kept until its event is done.

    A copy from pageable memory would make the host wait for the stream, and one from pinned memory
    of the user would read what the user has changed since.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: deque[tuple[CupyEvent, Any, int]] = deque()
        self._n_bytes = 0

    def hold(self, event: CupyEvent, pinned: Any, n_bytes: int) -> None:
        """Keep `pinned` until `event` is done; waits for older ones when too many are held."""
        with self._lock:
            self._held.append((event, pinned, n_bytes))
            self._n_bytes += n_bytes
            while self._held:
                oldest = self._held[0][0]
                if self._n_bytes > STAGED_BYTES:
                    oldest.wait()
                elif not oldest.is_done():
                    break
                self._n_bytes -= self._held.popleft()[2]


class Handle:
    """A stream by its number, in the protocol of ``__cuda_stream__``."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._number


class CupyQueue:
    """A stream of a `CupyDevice`."""

    def __init__(self, device: "CupyDevice", stream: Any) -> None:
        self._device = device
        self._stream = stream  # a stream that CuPy made lives as long as this
        self.handle = int(stream.ptr)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make device and stream CuPy's current ones of this thread."""
        with self._device.current(), self._stream:
            yield

    def alloc(self, n_bytes: int) -> CupyMemory:
        """Return uninitialized memory of the device."""
        with self.current(), self._device.memory_errors(n_bytes):
            pointer = self._device.cupy.cuda.alloc(max(1, n_bytes))
        return CupyMemory(pointer, n_bytes)

    def upload(self, to: int, data: NDArray[Any]) -> None:
        """Copy a contiguous array of the host to an address; `data` may be changed afterwards."""
        source = bytes_of(data)
        cupy = self._device.cupy
        for begin in range(0, source.size, PIECE_BYTES):
            piece = source[begin : begin + PIECE_BYTES]
            with self._device.memory_errors(piece.size, of="the host, pinned"):
                pinned = cupy.cuda.alloc_pinned_memory(piece.size)
            np.frombuffer(pinned, np.uint8, piece.size)[:] = piece
            self.copy(to + begin, int(pinned.ptr), piece.size)
            self._device.staging.hold(self.record(), pinned, piece.size)

    def download(self, source: int, out: NDArray[Any]) -> None:
        """Fill a contiguous array of the host, after all that was queued; waits."""
        to = bytes_of(out)
        if to.size:
            self.copy(to.ctypes.data, source, to.size)
        self.synchronize()

    def copy(self, to: int, source: int, n_bytes: int) -> None:
        """Copy bytes from one address to another; pinned memory too."""
        if n_bytes:
            runtime = self._device.runtime
            with self._device.current():
                runtime.memcpyAsync(to, source, n_bytes, runtime.memcpyDefault, self.handle)

    def fill(self, to: int, byte: int, n_bytes: int) -> None:
        """Set bytes to a value, 0 to 255."""
        if n_bytes:
            with self._device.current():
                self._device.runtime.memsetAsync(to, byte, n_bytes, self.handle)

    def launch(self, kernel: str, n_threads: int, args: NDArray[np.uint64]) -> None:
        """Run a kernel; see `Queue.launch`."""
        with self._device.current():
            function, layout = self._device.kernel(kernel)
            if args.dtype != np.uint64 or args.nbytes != layout.itemsize:
                raise InternalError(
                    f"kernel {kernel} takes {layout.itemsize // 8} arguments of 8 bytes, "
                    f"got {args.dtype} of shape {args.shape}"
                )
            blocks = min(-(-n_threads // BLOCK_THREADS), self._device.max_blocks)
            # One element of `layout` is passed by value, as the kernel's one parameter.
            struct = args.reshape(-1).view(layout)
            function((max(1, blocks),), (BLOCK_THREADS,), (struct,), stream=self._stream)

    def launch_many(self, kernel: str, n_threads: int, args: int, n: int) -> None:
        """Run a kernel n times side by side; see `Queue.launch_many`."""
        with self._device.current():
            function, _ = self._device.kernel(kernel + OF_MANY)
            blocks = min(-(-n_threads // BLOCK_THREADS), self._device.max_blocks)
            grid = (max(1, blocks), n)
            function(grid, (BLOCK_THREADS,), (np.uint64(args),), stream=self._stream)

    def is_capturing(self) -> bool:
        """Return whether what is queued goes into a graph; the default stream is never captured."""
        if self.handle in DEFAULT_STREAMS:
            return False
        with self._device.current():
            return bool(self._device.runtime.streamIsCapturing(self.handle))

    def record(self) -> CupyEvent:
        """Return the present point of the queue's order."""
        with self._device.current():
            event = self._device.cupy.cuda.Event(disable_timing=True)
            event.record(self._stream)
        return CupyEvent(event, self._device.runtime)

    def wait_for(self, event: Event) -> None:
        """Let what is queued from here on come after an event; the host does not wait."""
        if not isinstance(event, CupyEvent):
            raise InternalError(f"{self._device.name}: {type(event).__name__} is of another device")
        with self._device.current():
            self._stream.wait_event(event.event)

    def synchronize(self) -> None:
        """Wait until all that was queued is done."""
        with self._device.current():
            self._stream.synchronize()


class CupyDevice:
    """A card. Any thread may use it.

    Parameters
    ----------
    index
        Its number, as CUDA counts.
    sources
        Where its kernels lie; those installed if None.
    """

    def __init__(self, index: int, sources: kernels.Sources | None = None) -> None:
        import cupy

        self.cupy: Any = cupy
        self.runtime: Any = cupy.cuda.runtime
        self.index = index
        self.name = f"cuda:{index}"
        self.staging = Staging()
        device = cupy.cuda.Device(index)
        self.arch = int(device.compute_capability)
        n_multiprocessors = int(device.attributes["MultiProcessorCount"])
        self.max_blocks = BLOCKS_PER_MULTIPROCESSOR * n_multiprocessors
        self._sources = sources
        self._lock = threading.Lock()
        self._kernels: dict[str, tuple[Any, np.dtype[np.void]]] = {}

    def current(self) -> Any:
        """Return a context in which this is the current device of the thread."""
        return self.cupy.cuda.Device(self.index)

    def queue(self, stream: int | None = None) -> CupyQueue:
        """Return the queue of a stream (a ``cudaStream_t``); None is CuPy's current one."""
        if stream is None:
            return CupyQueue(self, self.cupy.cuda.get_current_stream(self.index))
        return CupyQueue(self, self.cupy.cuda.Stream.from_external(Handle(int(stream))))

    def alloc_pinned(self, n_bytes: int) -> CupyPinnedMemory:
        """Return zeroed memory of the host that kernels can address."""
        return CupyPinnedMemory(n_bytes, self)

    def new_array(self, shape: tuple[int, ...], dtype: np.dtype[Any], queue: Queue) -> Any:
        """Return an uninitialized ``cupy.ndarray``, allocated on a queue."""
        if not isinstance(queue, CupyQueue):
            raise InternalError(f"{self.name}: {type(queue).__name__} is of another device")
        n_bytes = int(np.prod(shape, dtype=object)) * dtype.itemsize
        with queue.current(), self.memory_errors(n_bytes):
            return self.cupy.empty(shape, dtype)

    def kernel(self, name: str) -> tuple[Any, np.dtype[np.void]]:
        """Return a kernel and the layout of its arguments; the first call loads them all.

        The device must be current.
        """
        if not self._kernels:
            with self._lock:
                self._kernels = self._kernels or self._load()
        if name not in self._kernels:
            raise InternalError(f"there is no kernel named {name!r}")
        return self._kernels[name]

    def _load(self) -> dict[str, tuple[Any, np.dtype[np.void]]]:
        sources = self._sources or kernels.installed_sources()
        cubins = kernels.cubins(self.arch, sources)
        loaded = {}
        for unit, arguments in sources.arguments_by_unit().items():
            module = self.cupy.cuda.Module()
            module.load(cubins[unit])
            for name, fields in arguments.items():
                layout = np.dtype((np.void, 8 * len(fields)))
                for variant in (name, name + OF_MANY):
                    loaded[variant] = module.get_function(variant), layout
        return loaded

    @contextlib.contextmanager
    def memory_errors(self, n_bytes: int, of: str = "the device") -> Iterator[None]:
        """Raise OutOfMemoryError where CUDA has no memory left."""
        try:
            yield
        except self.cupy.cuda.memory.OutOfMemoryError as error:
            raise self._out_of_memory(n_bytes, of) from error
        except self.runtime.CUDARuntimeError as error:
            if error.status not in NO_MEMORY:
                raise
            raise self._out_of_memory(n_bytes, of) from error

    def _out_of_memory(self, n_bytes: int, of: str) -> OutOfMemoryError:
        with self.current():
            free, total = self.runtime.memGetInfo()
        pooled = self.cupy.get_default_memory_pool().free_bytes()
        return OutOfMemoryError(
            f"{self.name}: {n_bytes} bytes of {of} were asked for; of the device's {total} bytes "
            f"{free} are free, and {pooled} more in CuPy's pool"
        )


def bytes_of(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the bytes of a contiguous array, over the same memory."""
    if not array.flags.c_contiguous:
        raise InternalError(f"an array of shape {array.shape} is not contiguous")
    return array.reshape(-1).view(np.uint8)


@cache
def open_cupy_device(index: int) -> CupyDevice:
    """Return the device of a number; the same one each time."""
    return CupyDevice(index)
