"""The wire between the ranks of a process group: collectives that fail by DistributedError.

1. What is sent in one collective is of sizes that all ranks know before: gloo ends a process that
   gets more than it waits for. So each exchange begins with headers, of one size whatever they say,
   and goes on only where they agree.
2. A wire has groups of its own, so that its collectives cannot meet those of DDP; and two of
   them, one for each thread that exchanges.
3. After a collective failed its group is in no known state, and is not used again.
"""

import atexit
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import timedelta
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from embstore import ArgumentError, DistributedError

HEADER = 64  # words of a header
TAGS = ("tables", "call", "number", "step")  # the first words, which must be those of all ranks
FREE = HEADER - len(TAGS)
EXIT_S = 10  # at most, that a process which ends waits for what it has begun by prefetch
PAUSE_S = 0.05  # before a process ends, in which threads of gloo let go of tensors
NO_STEP = -1  # of what is sent before the step is known

Words = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Tasks = queue.SimpleQueue[Callable[[], None] | None]


class Channel:
    """A group of the wire; one thread uses it."""

    def __init__(self, group: Any, rank: int, world_size: int) -> None:
        self._group = group
        self.rank, self.world_size = rank, world_size
        self._failure: str | None = None
        is_nccl = dist.get_backend(group) == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if is_nccl else None

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.world_size}"

    def swap(self, what: str, words: Words) -> Words:
        """Send row r of (world_size, n) words to rank r; return what the ranks sent here."""
        width = 8 * words.shape[1]
        sizes = [width] * self.world_size
        received = self.send(what, words.reshape(-1).view(np.uint8), sizes, sizes)
        return received.view(np.int64).reshape(words.shape)

    def send(self, what: str, data: Bytes, to: Sequence[int], of: Sequence[int]) -> Bytes:
        """Send consecutive parts of `data`, of `to` bytes each, and return parts of `of` bytes."""
        if self._failure is not None:
            raise DistributedError(self._failure)
        given = torch.from_numpy(data)
        try:
            if self._device is not None:
                given = given.to(self._device)
            received = torch.empty(sum(of), dtype=torch.uint8, device=given.device)
            dist.all_to_all_single(received, given, list(of), list(to), group=self._group)
            return received.cpu().numpy()
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            self._failure = (
                f"{self}: the exchange of {what} failed, so that a rank is dead, late or does "
                f"something else: {reason}"
            )
            raise DistributedError(self._failure) from error

    def agree(self, what: str, tags: Sequence[int], words: Words) -> Words:
        """Swap headers, (world_size, n) words behind `tags`, which must be equal on all ranks.

        Returns
        -------
        (world_size, n) int64

        Raises
        ------
        DistributedError
            On every rank, if the tags of one differ.
        """
        header = np.zeros((self.world_size, HEADER), np.int64)
        header[:, : len(TAGS)] = tags
        first = words[:, :FREE]
        header[:, len(TAGS) : len(TAGS) + first.shape[1]] = first
        received = self.swap(what, header)
        self._check_tags(what, received[:, : len(TAGS)])
        got = received[:, len(TAGS) : len(TAGS) + first.shape[1]]
        if words.shape[1] <= FREE:
            return got
        rest = self.swap(what, np.ascontiguousarray(words[:, FREE:]))
        return np.concatenate([got, rest], axis=1)

    def _check_tags(self, what: str, tags: Words) -> None:
        for name, of_ranks in zip(TAGS, tags.T.tolist(), strict=True):
            if len(set(of_ranks)) > 1:
                shown = of_ranks if name in ("number", "step") else "which they do not share"
                raise DistributedError(
                    f"{self}: the ranks are not at one {what}; by rank, the {name} is {shown}. "
                    f"All ranks must make the same calls of modules with the same tables, in the "
                    f"same order"
                )


class Wire:
    """The channels among the ranks of a process group; modules that share a group share it."""

    def __init__(self, group: Any, where: str) -> None:
        self.group = group
        rank, world_size = dist.get_rank(group), dist.get_world_size(group)
        if rank < 0:
            raise ArgumentError(f"{where}: this process is no member of the process group")
        self.rank, self.world_size = rank, world_size
        _pause_at_exit()
        self.main = self._channel("main")
        self._ahead: Channel | None = None
        self._tasks: Tasks | None = None

    @classmethod
    def of(cls, group: Any, where: str) -> "Wire":
        """Return the wire of a process group, or of the default one; all ranks ask for it."""
        if not (dist.is_available() and dist.is_initialized()):
            raise ArgumentError(
                f"{where}: torch.distributed has no process group; call "
                f"torch.distributed.init_process_group first, under torchrun"
            )
        group = dist.group.WORLD if group is None else group
        known = _WIRES.get(id(group))
        if known is None:
            known = _WIRES[id(group)] = cls(group, where)
        return known

    def ahead(self, task: Callable[[Channel], Any]) -> "Future[Any]":
        """Run a task with the second channel in the background, behind those before it."""
        if self._ahead is None:
            self._ahead = self._channel("prefetch")
        channel, future = self._ahead, Future[Any]()
        if self._tasks is None:
            self._tasks = queue.SimpleQueue()
            thread = threading.Thread(
                target=_run, args=(self._tasks,), name="embstore-prefetch", daemon=True
            )
            thread.start()
            weakref.finalize(self, _end, self._tasks, thread)
        self._tasks.put(lambda: _settle(future, task, channel))
        return future

    def _channel(self, name: str) -> Channel:
        """Make a group of the ranks of the user's; all of them do so at the same place."""
        try:
            group = dist.new_group(
                dist.get_process_group_ranks(self.group),
                timeout=_timeout_of(self.group),
                backend=dist.get_backend(self.group),
                use_local_synchronization=True,
                group_desc=f"embstore {name}",
            )
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise DistributedError(
                f"rank {self.rank} of {self.world_size}: the ranks could not connect: {reason}"
            ) from error
        return Channel(group, self.rank, self.world_size)


def _timeout_of(group: Any) -> timedelta | None:
    """Return the time-out that a group was made with; None, torch's own, where it is not told."""
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    try:
        timeout = group._get_backend(torch.device(device)).options._timeout
    except (AttributeError, RuntimeError):
        return None
    return timeout if isinstance(timeout, timedelta) else None


@cache
def _pause_at_exit() -> None:
    """Pause when the process ends: a thread that then still waits for the interpreter aborts it.

    Threads of gloo do, for the tensors of what they have just exchanged.
    """
    atexit.register(time.sleep, PAUSE_S)


def _run(tasks: Tasks) -> None:
    while (task := tasks.get()) is not None:
        task()
        del task  # and the group that it holds: groups end in the threads that made them


def _end(tasks: Tasks, thread: threading.Thread) -> None:
    """End the thread before the interpreter does: one that wakes up then ends the process."""
    tasks.put(None)
    if thread is not threading.current_thread():
        thread.join(EXIT_S)


def _settle(future: "Future[Any]", task: Callable[[Channel], Any], channel: Channel) -> None:
    try:
        future.set_result(task(channel))
    except BaseException as error:  # raised by who waits for the result
        future.set_exception(error)


_WIRES: weakref.WeakValueDictionary[int, Wire] = weakref.WeakValueDictionary()
