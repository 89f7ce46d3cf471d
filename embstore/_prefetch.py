"""A generator run ahead of its consumer by a thread that ends with it.

1. At most `depth` items wait; the thread sleeps while the consumer is behind.
2. An exception of the generator reaches the consumer after the items before it.
3. close(), exhaustion and the last reference to `Prefetched` all end the thread and wait for it.

One thread consumes. The producer thread holds the channel and the generator, never `Prefetched`.
"""

import threading
import weakref
from collections.abc import Generator
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")


class _End:
    """What the producer leaves behind its last item: an exception, or None at the end."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _Channel(Generic[T]):
    """A bounded queue that its consumer can leave.

    No lock is held in Python code, so that a KeyboardInterrupt at any place leaves it whole.
    """

    def __init__(self, depth: int) -> None:
        self.is_closed = False
        self._items: SimpleQueue[T | _End] = SimpleQueue()
        self._room: SimpleQueue[None] = SimpleQueue()  # one for each item that may be put
        for _ in range(depth):
            self._room.put(None)

    def put(self, item: T) -> bool:
        """Wait for room and append; False once closed."""
        self._room.get()
        if not self.is_closed:
            self._items.put(item)
        return not self.is_closed

    def end(self, end: _End) -> None:
        """Append the last item, for which there is always room."""
        self._items.put(end)

    def get(self) -> T | _End:
        item = self._items.get()
        self._room.put(None)
        return item

    def close(self) -> None:
        self.is_closed = True
        self._room.put(None)
        with suppress(Empty):
            while True:
                self._items.get_nowait()


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
        channel.end(_End(error))


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
        self._stop = partial(_stop, self._channel, thread)
        weakref.finalize(self, self._stop)

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
        self._stop()
