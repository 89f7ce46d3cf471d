"""As much of CuPy as `CupyDevice` calls, over memory of the host; queued work is done at once.

It checks some of what a card would not forgive, and records the rest: the device and the stream
that were current in each call.
"""

import ctypes
import threading
import types

import numpy as np

ALIGNMENT = 256


class CudaError(RuntimeError):
    """As CuPy raises it."""

    def __init__(self, status):
        super().__init__(f"cudaError {status}")
        self.status = status


class OutOfMemoryError(MemoryError):
    """As CuPy's pool raises it."""


class FakeCupy:
    """The module, with a record of what was called in `log`."""

    def __init__(self, limit=1 << 30, n_devices=2):
        self.log = []
        self.limit, self.used = limit, 0
        self.blocks = {}
        self.local = threading.local()
        self.kernels = {}
        self.pending = set()  # events that are not done
        self.failed = set()  # events whose work failed
        self.n_devices = n_devices
        fake = self

        class Device:
            compute_capability = "90"
            attributes = types.MappingProxyType({"MultiProcessorCount": 4})

            def __init__(self, index):
                assert index < fake.n_devices
                self.index = index

            def __enter__(self):
                stack = fake.stack()
                stack.append((self.index, None))

            def __exit__(self, *_):
                fake.stack().pop()

        class Stream:
            def __init__(self, ptr):
                self.ptr = ptr

            @classmethod
            def from_external(cls, other):
                version, ptr = other.__cuda_stream__()
                assert version == 0
                return cls(ptr)

            def __enter__(self):
                fake.stack().append((fake.device(), self.ptr))

            def __exit__(self, *_):
                fake.stack().pop()

            def synchronize(self):
                fake.say("synchronize", self.ptr)

            def wait_event(self, event):
                fake.say("wait_event", self.ptr, event.ptr)

        class Event:
            count = 0

            def __init__(self, disable_timing=False):
                assert disable_timing
                Event.count += 1
                self.ptr = Event.count

            def record(self, stream):
                fake.say("record", stream.ptr)

            def synchronize(self):
                fake.say("synchronize event", self.ptr)
                fake.pending.discard(self.ptr)
                if self.ptr in fake.failed:
                    raise CudaError(700)

        class Module:
            def load(self, cubin):
                assert isinstance(cubin, bytes)
                fake.say("load", len(cubin))

            def get_function(self, name):
                def call(grid, block, args, stream):
                    (struct,) = args
                    assert struct.size == 1
                    assert struct.dtype.kind == "V"
                    fake.say("launch", name, grid, block, stream.ptr)
                    fake.kernels[name](grid[0], np.frombuffer(struct.tobytes(), np.uint64))

                return call

        runtime = types.SimpleNamespace(
            CUDARuntimeError=CudaError,
            hostAllocPortable=1,
            hostAllocMapped=2,
            memcpyDefault=4,
            hostAlloc=self.host_alloc,
            freeHost=self.free,
            memcpyAsync=self.memcpy,
            memsetAsync=self.memset,
            memGetInfo=lambda: (fake.limit - fake.used, fake.limit),
            deviceSynchronize=lambda: fake.say("deviceSynchronize"),
            eventQuery=lambda p: 700 if p in fake.failed else 600 if p in fake.pending else 0,
        )
        self.cuda = types.SimpleNamespace(
            Device=Device,
            Stream=Stream,
            Event=Event,
            Module=Module,
            PinnedMemoryPointer=self.pinned,
            runtime=runtime,
            memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            alloc=self.alloc,
            alloc_pinned_memory=lambda n: self.pinned(
                types.SimpleNamespace(ptr=self.host_alloc(n, 1), size=n), 0
            ),
            get_current_stream=lambda index: Stream(0),
        )

    def stack(self):
        """The devices and streams that are current in this thread, innermost last."""
        if not hasattr(self.local, "stack"):
            self.local.stack = []
        return self.local.stack

    def device(self):
        """The current device."""
        return self.stack()[-1][0] if self.stack() else 0

    def say(self, what, *details):
        """Log a call with the device that was current."""
        self.log.append((what, self.device(), *details))

    def new_block(self, n_bytes, error):
        """The aligned address of a new allocation."""
        if self.used + n_bytes > self.limit:
            raise error
        memory = np.full(n_bytes + ALIGNMENT, 0xAB, np.uint8)
        address = -(-memory.ctypes.data // ALIGNMENT) * ALIGNMENT
        self.blocks[address] = memory, n_bytes
        self.used += n_bytes
        return address

    def free(self, address):
        """Give an allocation back."""
        self.used -= self.blocks.pop(address)[1]
        self.say("free")

    def alloc(self, n_bytes):
        """Memory of the pool, on the current stream."""
        _, stream = self.stack()[-1]
        assert stream is not None, "no stream is current"
        self.say("alloc", stream, n_bytes)
        return types.SimpleNamespace(
            ptr=self.new_block(n_bytes, OutOfMemoryError("the pool is empty"))
        )

    def host_alloc(self, n_bytes, flags):
        """Pinned memory."""
        assert flags & 1, "is not portable"
        self.say("hostAlloc", n_bytes)
        return self.new_block(n_bytes, CudaError(2))

    @staticmethod
    def pinned(memory, offset):
        """A buffer over pinned memory that keeps `memory`, as PinnedMemoryPointer does."""
        buffer = (ctypes.c_uint8 * (memory.size - offset)).from_address(memory.ptr + offset)
        buffer.memory, buffer.ptr = memory, memory.ptr + offset
        return buffer

    def memcpy(self, to, source, n_bytes, kind, stream):
        """Copy at once."""
        assert kind == 4
        self.say("memcpy", stream, n_bytes)
        ctypes.memmove(to, source, n_bytes)

    def memset(self, to, byte, n_bytes, stream):
        """Fill at once."""
        assert 0 <= byte <= 255
        self.say("memset", stream, n_bytes)
        ctypes.memset(to, byte, n_bytes)

    def empty(self, shape, dtype):
        """An array, on the current stream."""
        assert self.stack()[-1][1] is not None, "no stream is current"
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        if self.used + n_bytes > self.limit:
            raise OutOfMemoryError("the pool is empty")
        self.say("empty", self.stack()[-1][1], shape)
        return np.empty(shape, dtype)

    @staticmethod
    def get_default_memory_pool():
        """The pool."""
        return types.SimpleNamespace(free_bytes=lambda: 7)
