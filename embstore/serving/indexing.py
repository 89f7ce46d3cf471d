"""Tables that are built behind, from checkpoints that answer meanwhile.

1. One thread builds the tables of a checkpoint, one after another.
2. A job's table is there whole or not at all. What stops it is kept, and nothing else is harmed.
3. The thread ends with its process: it reads, and what it makes is memory.
"""

import threading
from collections.abc import Sequence

from embstore import CancelledError, Table
from embstore.checkpoint import MappedTable, ReadOnlySource


class IndexJob:
    """The table to be built of one mapped table.

    Attributes
    ----------
    table : Table or None
        When it is whole.
    error : Exception or None
        What kept it from being built.
    thread : Thread or None
        Who runs it.
    """

    def __init__(
        self, source: MappedTable, place: tuple[str, int | None], allow_nonfinite: bool
    ) -> None:
        self.table: Table | None = None
        self.error: Exception | None = None
        self._source: MappedTable | None = source
        self._device, self._hbm_bytes = place
        self._allow_nonfinite = allow_nonfinite
        self._lock = threading.RLock()  # a finalizer may stop this inside of it
        self._is_stopped = False
        self._is_running = False
        self._is_done = threading.Event()
        self.thread: threading.Thread | None = None

    def run(self) -> None:
        """Build the table, unless this was stopped."""
        with self._lock:
            if self._is_stopped:
                return
            self._is_running = True
        try:
            assert self._source is not None
            source = ReadOnlySource(self._source, self._check)
            table = Table.from_source(
                source,
                device=self._device,
                hbm_bytes=self._hbm_bytes,
                allow_nonfinite=self._allow_nonfinite,
            )
        except CancelledError:
            pass
        except Exception as error:
            self.error = error.with_traceback(None)  # its frames would keep the files mapped
        else:
            self.table = table
        finally:
            self._source = None
            self._is_done.set()

    def _check(self) -> None:
        if self._is_stopped:
            raise CancelledError("the table was closed while its index was built")

    def wait(self, timeout: float | None) -> bool:
        """Wait until it is done; return whether the table is there."""
        if self._can_end():
            self._is_done.wait(timeout)
        return self.table is not None

    def _can_end(self) -> bool:
        """Whether the thread is there that will end this: it is not in a forked child."""
        return self.thread is not None and self.thread.is_alive()

    def stop(self) -> None:
        """End the work at the next block, and wait for that; close the table."""
        with self._lock:
            self._is_stopped = True
            if not self._is_running:
                self._source = None
                self._is_done.set()
        if self.thread is not threading.current_thread() and self._can_end():
            self._is_done.wait()
        if self.table is not None:
            self.table.close()


def start(jobs: Sequence[IndexJob]) -> None:
    """Run jobs one after another in a thread of their own."""

    def run() -> None:
        for job in jobs:
            job.run()

    thread = threading.Thread(target=run, name="embstore-index", daemon=True)
    for job in jobs:
        job.thread = thread
    thread.start()
