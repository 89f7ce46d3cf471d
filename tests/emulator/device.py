"""A device of the CUDA engine that a CPU emulates: memory of numpy, kernels of the emulator.

Memory is filled with garbage when it is given and has red zones on both sides, which are checked
when it is given back; it then lies in quarantine for a while, in which nobody may write to it. What
was wrong stands in `EmulatedDevice.violations`, and a test asserts that it is empty.
"""

import collections
import ctypes
import functools
import math
import random
import threading
import weakref

import numpy as np

from embstore.engines.cuda.device import BLOCK_THREADS
from embstore.errors import OutOfMemoryError

from .build import library_of_devices

GARBAGE = 0xA5
RED = 0x5C
FREED = 0xDD
RED_BYTES = 256
QUARANTINE_BYTES = 16 << 20
ALIGNMENT = 256


class Emulator:
    """The C interface of a built library."""

    def __init__(self, path):
        self._calls = ctypes.CDLL(str(path))
        u64 = ctypes.c_uint64
        self._calls.emulator_launch.argtypes = [
            *(ctypes.c_char_p, ctypes.c_uint32, ctypes.c_void_p, u64, u64, ctypes.c_char_p, u64)
        ]
        self._calls.emulator_kernels.argtypes = [ctypes.c_char_p, u64]
        self._calls.emulator_set_limit.argtypes = [u64]

    def launch(self, kernel, n_blocks, args, seed=0):
        """Run a kernel to its end; raise RuntimeError with what went wrong."""
        args = np.ascontiguousarray(args)
        assert args.dtype == np.uint64, f"arguments are uint64, not {args.dtype}"
        text = ctypes.create_string_buffer(4096)
        name = kernel.encode()
        at = args.ctypes.data
        if self._calls.emulator_launch(name, n_blocks, at, args.nbytes, seed, text, len(text)):
            raise RuntimeError(f"{kernel}: {text.value.decode()}")

    def kernels(self):
        """The bytes of arguments of each kernel, by its name."""
        n_bytes = self._calls.emulator_kernels(None, 0)
        text = ctypes.create_string_buffer(n_bytes)
        self._calls.emulator_kernels(text, n_bytes)
        return {name: int(n) for name, n in map(str.split, text.value.decode().splitlines())}

    def set_limit(self, n_accesses=0):
        """Say how many accesses may pass without a thread ending; 0 is the default."""
        self._calls.emulator_set_limit(n_accesses)


class Allocations:
    """What of a device's memory is in use, and what was found wrong with it."""

    def __init__(self):
        self.violations = []
        self._n_bytes = {}  # by address
        self._pinned = set()  # addresses of the host's memory
        self._quarantine = collections.deque()
        self._n_quarantined = 0  # bytes
        self._lock = threading.RLock()  # a finalizer may run inside any call

    def add(self, address, n_bytes, is_pinned):
        with self._lock:
            self._n_bytes[address] = n_bytes
            if is_pinned:
                self._pinned.add(address)

    def remove(self, whole, begin, n_bytes):
        """Forget memory that is given back, and look at its red zones."""
        with self._lock:
            del self._n_bytes[whole.ctypes.data + begin]
            self._pinned.discard(whole.ctypes.data + begin)
            fault = fault_of(whole, begin, n_bytes)
            if fault is not None:
                self.violations.append(fault)
            whole[:] = FREED
            self._quarantine.append(whole)
            self._n_quarantined += len(whole)
            self.release(QUARANTINE_BYTES)

    def release(self, n_bytes=0):
        """Let all but `n_bytes` leave the quarantine, and look whether it was written to."""
        with self._lock:
            while self._quarantine and self._n_quarantined > n_bytes:
                whole = self._quarantine.popleft()
                self._n_quarantined -= len(whole)
                if (whole != FREED).any():
                    self.violations.append(f"{len(whole)} bytes were written after they were freed")

    def require(self, address, n_bytes):
        """Raise AssertionError unless the bytes lie in one allocation."""
        with self._lock:
            held = self._held()
        room = max((a + n - address for a, n in held if a <= address <= a + n), default=-1)
        if n_bytes > room:
            fault = f"{n_bytes} bytes at {address:#x} are not in one allocation"
            self.violations.append(fault)
            raise AssertionError(fault)

    def _held(self):
        """All addresses and their bytes; finalizers, which may run at any time, change them."""
        while True:
            try:
                return list(self._n_bytes.items())
            except RuntimeError:
                pass

    @property
    def n_bytes(self):
        """Bytes in use, of the device and pinned."""
        with self._lock:
            return sum(n_bytes for _, n_bytes in self._held())

    def bytes_of(self, is_pinned):
        """Those of the device alone, or of the host's pinned memory alone."""
        with self._lock:
            held = self._held()
            return sum(n for address, n in held if (address in self._pinned) == is_pinned)

    def __len__(self):
        return len(self._n_bytes)


def fault_of(whole, begin, n_bytes):
    """What is wrong with the red zones around whole[begin : begin + n_bytes], or None."""
    before, after = whole[:begin], whole[begin + n_bytes :]
    at = [*(np.flatnonzero(before != RED) - begin), *(np.flatnonzero(after != RED) + n_bytes)]
    if not at:
        return None
    return f"an allocation of {n_bytes} bytes was written at byte {at[0]} to {at[-1]}"


class EmulatedMemory:
    """Bytes between red zones, at a multiple of 256; pinned memory too."""

    def __init__(self, allocations, n_bytes, fill, free=None, is_pinned=False):
        self._whole = np.empty(n_bytes + 2 * RED_BYTES + ALIGNMENT, dtype=np.uint8)
        self._begin = -(self._whole.ctypes.data + RED_BYTES) % ALIGNMENT + RED_BYTES
        self._whole[:] = RED
        self.n_bytes = n_bytes
        self.address = self._whole.ctypes.data + self._begin
        self.array[:] = fill
        allocations.add(self.address, n_bytes, is_pinned)
        remove = functools.partial(allocations.remove, self._whole, self._begin, n_bytes)
        given_back = weakref.finalize(self, *([remove] if free is None else [free, remove]))
        given_back.atexit = False  # threads that are stopped at exit may use it until then

    @property
    def __array_interface__(self):
        data = (self.address, False)
        return {"version": 3, "shape": (self.n_bytes,), "typestr": "|u1", "data": data}

    @property
    def array(self):
        """The bytes; what is made of it keeps the memory."""
        return np.asarray(self)

    def check(self):
        """Raise AssertionError if a red zone was written to."""
        fault = fault_of(self._whole, self._begin, self.n_bytes)
        assert fault is None, fault


class EmulatedArray:
    """An array of the emulated device, with the interface that frameworks read."""

    def __init__(self, memory, shape, dtype, stream, begin=0):
        self.memory = memory
        self._begin = begin  # byte of the memory
        self.shape = tuple(int(n) for n in shape)
        self.dtype = np.dtype(dtype)
        self._stream = stream

    @property
    def __cuda_array_interface__(self):
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.memory.address + self._begin if math.prod(self.shape) else 0, False),
            "strides": None,
            "stream": self._stream or 1,  # 0 is not allowed; 1 is the default stream
        }

    def numpy(self):
        """The array itself, as the host sees it: no copy."""
        n_bytes = math.prod(self.shape) * self.dtype.itemsize
        own = self.memory.array[self._begin : self._begin + n_bytes]
        return own.view(self.dtype).reshape(self.shape)

    def __getitem__(self, rows):
        """Rows [start, stop), over the same memory."""
        first, end, _ = rows.indices(self.shape[0])
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        shape = (max(0, end - first), *self.shape[1:])
        begin = self._begin + first * row_bytes
        return EmulatedArray(self.memory, shape, self.dtype, self._stream, begin)

    def __len__(self):
        return self.shape[0]


class EmulatedEvent:
    """A point in the order of a queue: all before it is done already."""

    def is_done(self):
        return True

    def wait(self):
        pass


class EmulatedQueue:
    """A stream, on which everything is done at once."""

    def __init__(self, device, handle):
        self._device = device
        self.handle = handle

    def alloc(self, n_bytes):
        return self._device.new_memory(n_bytes, GARBAGE)

    def upload(self, to, data):
        assert data.flags.c_contiguous, "upload takes a contiguous array"
        self._move(to, data.ctypes.data, data.nbytes, device_bytes=[to])

    def download(self, source, out):
        assert out.flags.c_contiguous, "download takes a contiguous array"
        assert out.flags.writeable, "download takes an array that can be written"
        self._device.n_waits += 1
        self._move(out.ctypes.data, source, out.nbytes, device_bytes=[source])

    def copy(self, to, source, n_bytes):
        self._move(to, source, n_bytes, device_bytes=[to, source])

    def fill(self, to, byte, n_bytes):
        assert 0 <= byte <= 255, f"a byte is 0 to 255, not {byte}"
        self._device.allocations.require(int(to), int(n_bytes))
        ctypes.memset(int(to), int(byte), int(n_bytes))

    def launch(self, kernel, n_threads, args):
        self._device.launch(kernel, n_threads, args)

    def launch_many(self, kernel, n_threads, args, n):
        self._device.launch_many(kernel, n_threads, args, n)

    def is_capturing(self):
        return False

    def record(self):
        return EmulatedEvent()

    def wait_for(self, event):
        event.wait()

    def synchronize(self):
        self._device.n_waits += 1

    def _move(self, to, source, n_bytes, device_bytes):
        for address in device_bytes:
            self._device.allocations.require(int(address), int(n_bytes))
        ctypes.memmove(int(to), int(source), int(n_bytes))


class EmulatedDevice:
    """What stands for a card.

    Parameters
    ----------
    seed
        0 runs threads in order, fast; any other makes each launch an interleaving of its own, and
        the launches of two devices of one seed alike.
    max_blocks
        The most blocks of a launch: few, so that kernels stride.
    memory_bytes
        The size of the memory; None is without bound.
    pinned_bytes
        The same of the host's.
    emulator
        An `Emulator`; None is one of `library_of_devices()`.
    """

    name = "cuda:0"

    def __init__(self, seed=0, max_blocks=4, memory_bytes=None, emulator=None, pinned_bytes=None):
        self.emulator = emulator or Emulator(library_of_devices())
        self.max_blocks = max_blocks
        self.memory_bytes = memory_bytes
        self.pinned_bytes = pinned_bytes
        self.current_stream = 0
        self.allocations = Allocations()
        self.launches = collections.Counter()  # by kernel
        self.n_waits = 0  # of the host for a queue
        self.seed = seed
        self._queues = {}

    @property
    def violations(self):
        """What was written or copied where it may not be: a test asserts that there is none."""
        return self.allocations.violations

    @property
    def seed(self):
        return self._seed

    @seed.setter
    def seed(self, seed):
        self._seed = seed
        self._random = random.Random(seed)

    def queue(self, stream=None):
        handle = self.current_stream if stream is None else int(stream)
        return self._queues.setdefault(handle, EmulatedQueue(self, handle))

    def alloc_pinned(self, n_bytes):
        return self.new_memory(n_bytes, 0, is_pinned=True)

    def new_array(self, shape, dtype, queue):
        shape = tuple(int(n) for n in shape)
        memory = self.new_memory(math.prod(shape) * np.dtype(dtype).itemsize, GARBAGE)
        return EmulatedArray(memory, shape, dtype, queue.handle)

    def array_of(self, values, stream=None):
        """Return a copy of an array of the host, as a user's array of the device."""
        values = np.asarray(values)
        array = self.new_array(values.shape, values.dtype, self.queue(stream))
        array.numpy()[...] = values
        return array

    def new_memory(self, n_bytes, fill, free=None, is_pinned=False):
        n_bytes = int(n_bytes)
        whose, most = "device", self.memory_bytes
        if is_pinned:
            whose, most = "host", self.pinned_bytes
        if most is not None and self.allocations.bytes_of(is_pinned) + n_bytes > most:
            raise OutOfMemoryError(f"{n_bytes} bytes: the {whose} has {most} in all")
        return EmulatedMemory(self.allocations, n_bytes, fill, free, is_pinned)

    def launch_many(self, kernel, n_threads, args, n):
        """Run a kernel with each of n structs at an address."""
        n_bytes = self.emulator.kernels()[kernel]
        self.allocations.require(int(args), n * n_bytes)
        given = np.empty((n, n_bytes // 8), np.uint64)
        ctypes.memmove(given.ctypes.data, int(args), given.nbytes)
        launches = self.launches.copy()
        for own in given:
            self.launch(kernel, n_threads, own)
        self.launches = launches
        self.launches[kernel] += 1

    def launch(self, kernel, n_threads, args):
        self.launches[kernel] += 1
        n_blocks = max(1, min(-(-int(n_threads) // BLOCK_THREADS), self.max_blocks))
        seed = self._random.getrandbits(63) | 1 if self.seed else 0
        self.emulator.launch(kernel, n_blocks, args, seed)
