"""A device whose streams run when somebody waits, in an order drawn by a seed.

What no event orders may happen in any order: a wait that the engine forgot shows as a wrong
result, as a write to freed memory, or as streams that wait for each other.
"""

import collections
import random
import threading

import numpy as np

from .device import GARBAGE, EmulatedArray, EmulatedDevice, EmulatedQueue


class LazyEvent:
    """A point in the order of a queue."""

    def __init__(self, device, graph):
        self._device = device
        self.graph = graph
        self.is_set = False

    def is_done(self):
        self._device.run_some()
        return self.is_set

    def wait(self):
        self._device.run_until(lambda: self.is_set)


class LazyQueue(EmulatedQueue):
    """A stream whose work waits."""

    def __init__(self, device, handle):
        super().__init__(device, handle)
        self.work = collections.deque()  # (event to wait for or None, what to do)
        self.graph = None

    def push(self, do, after=None):
        if after is not None and after.graph is not None:
            self.graph = after.graph  # this stream joins the capture
            assert self.handle != 0, "the default stream cannot be captured"
        if self.graph is not None:
            assert after is None or after.graph is self.graph, "a graph waits for what is not in it"
            self.graph.append(do)
            return
        with self._device.lock:
            self.work.append((after, do))

    def is_ready(self):
        return bool(self.work) and (self.work[0][0] is None or self.work[0][0].is_set)

    def run_one(self):
        _, do = self.work.popleft()
        do()

    def alloc(self, n_bytes):
        assert self.graph is None, "memory is asked for while a stream is captured"
        return self._device.new_memory(n_bytes, GARBAGE, self.free)

    def free(self, remove):
        """Give memory back in the order of this queue, as a pool of the queue does."""
        self.work.append((None, remove))

    def upload(self, to, data):
        assert self.graph is None, "an upload is captured"
        copied = np.array(data)
        self.push(lambda: EmulatedQueue.upload(self, to, copied))

    def download(self, source, out):
        assert self.graph is None, "a download is captured"
        is_done = []

        def do():
            EmulatedQueue.download(self, source, out)
            is_done.append(True)

        self.push(do)
        self._device.run_until(lambda: is_done)

    def copy(self, to, source, n_bytes):
        self.push(lambda: EmulatedQueue.copy(self, to, source, n_bytes))

    def fill(self, to, byte, n_bytes):
        self.push(lambda: EmulatedQueue.fill(self, to, byte, n_bytes))

    def launch(self, kernel, n_threads, args):
        copied = np.array(args)
        self.push(lambda: EmulatedQueue.launch(self, kernel, n_threads, copied))

    def launch_many(self, kernel, n_threads, args, n):
        self.push(lambda: EmulatedQueue.launch_many(self, kernel, n_threads, args, n))

    def record(self):
        event = LazyEvent(self._device, self.graph)
        if self.graph is None:
            self.push(lambda: setattr(event, "is_set", True))
        return event

    def wait_for(self, event):
        self.push(lambda: None, after=event)

    def synchronize(self):
        assert self.graph is None, "a synchronize is captured"
        event = self.record()
        event.wait()
        super().synchronize()

    # Capture, as of a CUDA graph

    def is_capturing(self):
        return self.graph is not None

    def begin_capture(self):
        assert self.handle != 0, "the default stream cannot be captured"
        self.graph = []

    def end_capture(self):
        """Return a function that queues what was captured, on this stream and those that joined."""
        captured = self.graph
        for queue in self._device.queues():
            if queue.graph is captured:
                queue.graph = None
        return lambda: [self.push(do) for do in captured] and None


class LazyDevice(EmulatedDevice):
    """An emulated device with `LazyQueue`; `order` is the seed of the order of streams."""

    def __init__(self, order=0, **more):
        super().__init__(**more)
        self.lock = threading.RLock()
        self._order = random.Random(order)

    def queue(self, stream=None):
        handle = self.current_stream if stream is None else int(stream)
        assert handle not in (1, 2), "1 and 2 are other names of the default stream"
        with self.lock:
            if handle not in self._queues:
                self._queues[handle] = LazyQueue(self, handle)
            return self._queues[handle]

    def queues(self):
        with self.lock:
            return list(self._queues.values())

    def new_memory(self, n_bytes, fill, free=None, is_pinned=False):
        return super().new_memory(n_bytes, fill, free or self.free_later, is_pinned)

    def free_later(self, remove):
        """Give pinned memory back once all that is queued now is done."""
        with self.lock:
            busy = [q for q in self._queues.values() if q.work]
        left = [None] * len(busy)

        def pass_by():
            left.pop()
            if not left:
                remove()

        for queue in busy:
            queue.free(pass_by)
        if not busy:
            remove()

    def new_array(self, shape, dtype, queue):
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = queue.alloc(n_bytes)
        return EmulatedArray(memory, shape, dtype, queue.handle)

    def run_until(self, is_done):
        """Run work of streams, one piece at a time, until something is so."""
        with self.lock:
            while not is_done():
                ready = [q for q in list(self._queues.values()) if q.is_ready()]
                assert ready, "streams wait for each other"
                self._order.choice(ready).run_one()

    def run_some(self):
        """Run a few pieces of work."""
        with self.lock:
            for _ in range(self._order.randrange(4)):
                ready = [q for q in list(self._queues.values()) if q.is_ready()]
                if ready:
                    self._order.choice(ready).run_one()

    def finish(self):
        """Run all work."""
        self.run_until(lambda: not any(q.work for q in self._queues.values()))
