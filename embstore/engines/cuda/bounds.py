"""What the host knows of a table's counts without waiting for the card.

The counters of a call are sent to pinned memory behind it. Until they are here, a count is at most
what was known before plus the keys of all calls since.
"""

import numpy as np

from embstore.engines.cuda.device import Device, Event, PinnedMemory, Queue
from embstore.engines.cuda.storage import Counters
from embstore.errors import OutOfMemoryError


class Bounds:
    """Upper bounds of row ids, live rows and cells."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._pinned: PinnedMemory | None = None
        self._event: Event | None = None
        self._n_since_sent = 0  # keys of calls after the counters that are on their way
        self.n_ids = self.n_live = self.n_cells = 0

    def set(self, counters: Counters) -> None:
        """Take note of counters that are exact."""
        self._event = None
        self._set(counters, 0)

    def _set(self, counters: Counters, n_more: int) -> None:
        self.n_ids = counters.n_ids + n_more
        self.n_live = counters.n_live + n_more
        self.n_cells = counters.n_live + counters.n_candidates + n_more

    def add(self, n_rows: int, n_cells: int) -> None:
        """Take note of a call that made at most so many rows, and took so many cells."""
        self.n_ids += n_rows
        self.n_live += n_rows
        self.n_cells += n_cells
        self._n_since_sent += max(n_rows, n_cells)

    def send(self, queue: Queue, counters: int) -> None:
        """Send the counters behind the calls of a queue, unless others are on their way.

        Where the host has no memory for them, the bounds stay as they are: calls wait sooner.
        """
        if self._event is not None:
            return
        n_bytes = 8 * len(Counters.NAMES)
        if self._pinned is None:
            try:
                self._pinned = self._device.alloc_pinned(n_bytes)
            except OutOfMemoryError:
                return
        queue.copy(self._pinned.address, counters, n_bytes)
        self._event = queue.record()
        self._n_since_sent = 0

    def take_if_done(self) -> Counters | None:
        """Return the counters that were sent, if they are here, and tighten the bounds."""
        if self._event is None or self._pinned is None or not self._event.is_done():
            return None
        self._event = None
        counters = Counters()
        counters.values[:] = self._pinned.array.view(np.uint64)
        self._set(counters, self._n_since_sent)
        return counters

    def forget(self) -> None:
        """Give the pinned memory back."""
        self._event = self._pinned = None
