"""Where the GPU benchmark runs: a card timed by CUDA events, or an emulated one by the wall clock.

A clock makes arrays of its device, runs the kernels of bench/gpu/kernels on it and times calls. All
that differs between a card and its emulator stands here, so that a run on the emulator goes through
every line of a run on a card but those of `GpuClock`.
"""

import gc
import sys
import time
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np

from embstore.engines.cuda import status
from embstore.engines.cuda.launch import packed
from embstore.engines.kernel_sources import Sources

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = Sources(ROOT / "include", Path(__file__).resolve().parent / "kernels")
OWN_STREAM = 100  # of the emulated device
HOST_BYTES = 1 << 30  # what the emulated device may be filled with


def address(array):
    """Return where an array of the device begins."""
    return array.__cuda_array_interface__["data"][0]


class Timed:
    """A call that its clock times: what a contender builds.

    A sample is `n_calls` calls, queued one behind another. `prepare` runs before each sample, and
    is not timed; both are called with the number of the call. `host_ns` are the times that the host
    took to queue a sample: where they are as long as the sample, the device waits for the host.
    """

    def __init__(self, clock, call, n_calls=1, prepare=None, stream=None):
        self._clock, self._call, self._n_calls = clock, call, n_calls
        self._prepare, self._stream = prepare, stream
        self.host_ns = []

    def __call__(self, turn):
        self.sample_ns(turn)

    def sample_ns(self, turn):
        """Return the nanoseconds of one sample."""
        first = turn * self._n_calls
        if self._prepare is not None:
            self._prepare(first)
        return self._clock.sample_ns(self._queue_all, first, self._stream)

    def _queue_all(self, first):
        begin = time.perf_counter_ns()
        for number in range(first, first + self._n_calls):
            self._call(number)
        self.host_ns.append((time.perf_counter_ns() - begin) / self._n_calls)


class Clock:
    """What both clocks share: kernels by name and fields."""

    @cached_property
    def _arguments(self):
        return SOURCES.kernel_arguments()

    def run(self, kernel, n_threads, **fields):
        """Queue a kernel of this benchmark; arrays of the device stand for their addresses."""
        at = {
            name: address(value) if hasattr(value, "__cuda_array_interface__") else value
            for name, value in fields.items()
        }
        self._launch(kernel, n_threads, packed(self._arguments[kernel], at, kernel))

    def filled(self, shape, dtype, byte=0):
        """Return an array of the device whose bytes are all `byte`."""
        array = self.empty(shape, dtype)
        n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        self.device.queue().fill(address(array), byte, n_bytes)
        return array


class GpuClock(Clock):
    """A card, by CuPy, on its current stream."""

    is_emulated = False

    def __init__(self, index=0):
        import cupy

        from embstore.engines.cuda.cupy_device import CupyDevice

        self.cupy, self.index = cupy, index
        cupy.cuda.Device(index).use()
        self.device = status.open_device(f"cuda:{index}")
        self.name = f"cuda:{index}"
        self._own = CupyDevice(index, SOURCES)

    def _launch(self, kernel, n_threads, args):
        self._own.queue().launch(kernel, n_threads, args)

    def empty(self, shape, dtype):
        """Return an uninitialized array of the device."""
        return self.cupy.empty(shape, dtype)

    def host(self, array):
        """Return a copy of an array of the device, as numpy has it."""
        return self.cupy.asnumpy(array)

    def to_device(self, array):
        """Return a copy of an array of the host."""
        return self.cupy.asarray(array)

    def copy(self, to, source, n_bytes):
        """Queue a copy by the driver."""
        self.device.queue().copy(address(to), address(source), n_bytes)

    def sample_ns(self, call, argument, stream=None):
        """Return the nanoseconds between two events, with what the call queues between them."""
        stream = stream or self.cupy.cuda.get_current_stream()
        begin, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        begin.record(stream)
        call(argument)
        end.record(stream)
        end.synchronize()
        return max(1, round(self.cupy.cuda.get_elapsed_time(begin, end) * 1e6))

    @contextmanager
    def own_stream(self):
        """Make a new stream the current one; give it."""
        with self.cupy.cuda.Stream(non_blocking=True) as stream:
            yield stream

    @staticmethod
    def handle(stream):
        """Return the number of a stream."""
        return int(stream.ptr)

    def captured(self, call, stream=None):
        """Return (replay, stream) of a graph of what call(queue) queues on a stream."""
        stream = stream or self.cupy.cuda.Stream(non_blocking=True)
        queue = self.device.queue(stream.ptr)
        self.synchronize()  # this stream does not wait for the others
        call(queue)  # loads what is not loaded yet
        queue.synchronize()
        with stream:
            stream.begin_capture()
            call(queue)
            graph = stream.end_capture()
        return lambda turn: graph.launch(stream), stream

    def synchronize(self):
        """Wait for all that was queued."""
        self.cupy.cuda.runtime.deviceSynchronize()

    def free_bytes(self):
        """Return the memory that can still be had."""
        self.release()
        return int(self.cupy.cuda.runtime.memGetInfo()[0])

    def release(self):
        """Give back what nobody holds."""
        gc.collect()
        self.synchronize()
        self.cupy.get_default_memory_pool().free_all_blocks()

    def close(self):
        """Give everything back."""
        self.release()


class EmulatedClock(Clock):
    """The device that tests/emulator makes of the CPU; its times mean nothing.

    Its streams run in an order drawn by a seed: what relies on an order that nothing makes fails.
    """

    is_emulated = True
    name = "cuda"

    def __init__(self):
        if str(ROOT / "tests") not in sys.path:
            sys.path.append(str(ROOT / "tests"))
        from emulator.build import library
        from emulator.device import Emulator
        from emulator.streams import LazyDevice

        self.device = LazyDevice()
        self._own = Emulator(library(sources=SOURCES.units(), with_engine=False))
        self._before, status.PROVIDER = status.PROVIDER, lambda name: self.device

    def _launch(self, kernel, n_threads, args):
        n_blocks = max(1, min(-(-n_threads // 256), 4))
        self.device.queue().push(lambda: self._own.launch(kernel, n_blocks, args))

    def empty(self, shape, dtype):
        """Return an uninitialized array of the device."""
        return self.device.new_array(np.atleast_1d(shape), np.dtype(dtype), self.device.queue())

    def host(self, array):
        """Return a copy of an array of the device, as numpy has it."""
        self.synchronize()
        return array.numpy().copy()

    def to_device(self, array):
        """Return a copy of an array of the host."""
        return self.device.array_of(array)

    def copy(self, to, source, n_bytes):
        """Copy as the driver does."""
        self.device.queue().copy(address(to), address(source), n_bytes)

    def sample_ns(self, call, argument, stream=None):
        """Return the nanoseconds until a call and all that it has queued are done."""
        begin = time.perf_counter_ns()
        call(argument)
        self.synchronize()
        return max(1, time.perf_counter_ns() - begin)

    @contextmanager
    def own_stream(self):
        """Make another stream the current one; give its number."""
        before, self.device.current_stream = self.device.current_stream, OWN_STREAM
        try:
            yield OWN_STREAM
        finally:
            self.device.current_stream = before

    @staticmethod
    def handle(stream):
        """Return the number of a stream."""
        return stream

    def captured(self, call, stream=OWN_STREAM):
        """Return (replay, stream) of a graph of what call(queue) queues on a stream."""
        queue = self.device.queue(stream)
        self.synchronize()
        call(queue)
        self.synchronize()
        queue.begin_capture()
        call(queue)
        graph = queue.end_capture()
        return lambda turn: graph(), stream

    def synchronize(self):
        """Wait for all that was queued."""
        self.device.finish()

    def free_bytes(self):
        """Return the memory that can still be had."""
        return HOST_BYTES

    def release(self):
        """Give back what nobody holds."""
        gc.collect()
        self.synchronize()

    def close(self):
        """Let devices be opened as before."""
        status.PROVIDER = self._before
        self.release()
        self.device.allocations.release()
