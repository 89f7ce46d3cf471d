"""A generator run ahead of its consumer by a thread that ends with it.

1. At most `depth` items wait; the thread sleeps while the consumer is behind.
2. An exception of the generator reaches the consumer after the items before it.
3. close(), exhaustion and the last reference to `Prefetched` all end the thread and wait for it.

One thread consumes. The producer thread holds the channel and the generator, never `Prefetched`.
"""

import threading
import weakref
from collections import deque
from collections.abc import Generator
from typing import Generic, TypeVar

T = TypeVar("T")


class _End:
    """What the producer leaves behind its last item: an exception, or None at the end."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _Channel(Generic[T]):
    """A bounded queue that either side can leave."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.items: deque[T | _End] = deque()
        self.closed = False
        self.changed = threading.Condition()

    def put(self, item: T | _End) -> bool:
        """Wait for room and append; False once closed."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or len(self.items) < self.depth)
            if not self.closed:
                self.items.append(item)
                self.changed.notify_all()
            return not self.closed

    def get(self) -> T | _End:
        with self.changed:
            self.changed.wait_for(lambda: len(self.items) > 0)
            item = self.items.popleft()
            self.changed.notify_all()
            return item

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.items.clear()
            self.changed.notify_all()


def _produce(channel: _Channel[T], source: Generator[T, None, None]) -> None:
    error: BaseException | None = None
    try:
        for item in source:
            if not channel.put(item):
                return
    except BaseException as raised:  # any: it is raised again where the items are used
        error = raised
    finally:
        source.close()
        channel.put(_End(error))


def _stop(channel: _Channel[T], thread: threading.Thread) -> None:
    channel.close()
    if thread is not threading.current_thread():
        thread.join()


class Prefetched(Generic[T]):
    """An iterator over a generator that runs in a thread, at most `depth` items ahead."""

    def __init__(self, source: Generator[T, None, None], depth: int) -> None:
        self._channel: _Channel[T] = _Channel(depth)
        self._ended = False
        thread = threading.Thread(
            target=_produce, args=(self._channel, source), name="embstore-prefetch", daemon=True
        )
        thread.start()
        self._finalizer = weakref.finalize(self, _stop, self._channel, thread)

    def __iter__(self) -> "Prefetched[T]":
        return self

    def __next__(self) -> T:
        if self._ended:
            raise StopIteration
        item = self._channel.get()
        if not isinstance(item, _End):
            return item
        self.close()
        if item.error is not None:
            raise item.error
        raise StopIteration

    def close(self) -> None:
        """End the thread and wait for it; then there is nothing more to iterate over."""
        self._ended = True
        self._finalizer()
