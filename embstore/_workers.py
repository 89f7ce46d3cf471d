"""Threads that run calls.

As `concurrent.futures.ThreadPoolExecutor`, but it works while the interpreter ends, too, which is
when the last save of a run may be made; and it survives a KeyboardInterrupt at any place: no lock
is held in Python code.
"""

import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Job(Generic[T]):
    """A call that a thread makes; one thread waits for it."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call: Callable[[], T] | None = call
        self._value: list[T] = []
        self._error: BaseException | None = None
        self._is_over = False
        self._over: SimpleQueue[None] = SimpleQueue()

    def run(self) -> None:
        """Make the call, unless it was cancelled."""
        call, self._call = self._call, None
        try:
            if call is not None:
                self._value.append(call())
        except BaseException as error:  # any: it is raised again where the result is wanted
            self._error = error
        self._is_over = True
        self._over.put(None)

    def cancel(self) -> None:
        """Do not make the call, if it has not begun."""
        self._call = None

    def wait(self) -> None:
        """Wait until the call has returned or raised, or was passed over."""
        if not self._is_over:
            self._over.get()

    def result(self) -> T:
        """Wait, and return or raise what the call did."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._value[0]


_Jobs = SimpleQueue[Job[Any] | None]


def _run(jobs: _Jobs) -> None:
    """Run jobs until a None comes, of which there is one for each thread."""
    while (job := jobs.get()) is not None:
        job.run()
        del job  # what it holds goes now, not with the next one


def _end(jobs: _Jobs, n_threads: int) -> None:
    for _ in range(n_threads):
        jobs.put(None)


class Workers:
    """Threads that make the calls they are given, in this order; a context manager."""

    def __init__(self, n_threads: int, name: str) -> None:
        jobs: _Jobs = SimpleQueue()
        self._jobs = jobs
        self._threads = [
            threading.Thread(target=_run, args=(jobs,), name=name, daemon=True)
            for _ in range(n_threads)
        ]
        self._end = weakref.finalize(self, _end, jobs, n_threads)
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Job[T]:
        """Let a thread call `call`; its result or exception is the job's."""
        job = Job(lambda: call(*args, **kwargs))
        self._jobs.put(job)
        return job

    def shutdown(self) -> None:
        """Wait until all calls have been made; there can be no more."""
        self._end()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()
