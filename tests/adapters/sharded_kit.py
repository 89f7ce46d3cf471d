"""Ranks for the tests of sharded tables: processes that live through many tests, without a port."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import traceback
from datetime import timedelta

TIMEOUT_S = 20  # of the process groups: what a lost rank costs at most
LIMIT_S = 90  # of a job, so that a defect that blocks fails a test and not the run


_SHARED = []


class JobError(Exception):
    """A job raised; the message is that of its error, by rank."""

    def __init__(self, errors):
        super().__init__("\n".join(errors.values()))
        self.errors = errors


class Ranks:
    """Processes that run a function together, each as a rank of a new process group."""

    def __init__(self, n, folder):
        self._context = multiprocessing.get_context("spawn")
        self._folder = folder
        self._numbers = itertools.count()
        self.pipes, self.processes = [], []
        for _ in range(n):
            here, there = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(there,), daemon=True)
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)

    def run(self, job, world_size, *args, timeout_s=TIMEOUT_S):
        """Return what `job(rank, world_size, *args)` returns on each rank; None for dead ones."""
        place = str(self._folder / f"store-{next(self._numbers)}")
        for rank in range(world_size):
            self.pipes[rank].send((job, rank, world_size, place, timeout_s, args))
        results, errors = [], {}
        for rank in range(world_size):
            value = None
            try:
                assert self.pipes[rank].poll(LIMIT_S), f"rank {rank} did not answer"
                value, error = self.pipes[rank].recv()
            except (EOFError, ConnectionResetError):
                error = None
            if error is not None:
                errors[rank] = error
            results.append(value)
        if errors:
            raise JobError(errors)
        return results

    def close(self):
        for pipe in self.pipes:
            with contextlib.suppress(OSError):  # of a rank that is dead
                pipe.send(None)
        for process in self.processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()


def shared_ranks(tmp_path_factory):
    """Four ranks for all tests that lose none."""
    if not _SHARED:
        _SHARED.append(Ranks(4, tmp_path_factory.mktemp("ranks")))
    return _SHARED[0]


def die():
    """End this process as a lost machine does."""
    os.kill(os.getpid(), signal.SIGKILL)


def _serve(pipe):
    import torch
    import torch.distributed as dist

    import embstore as es

    torch.set_num_threads(1)
    es.set_num_threads(1)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        if task is None:
            return
        job, rank, world_size, place, timeout_s, args = task
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(place, world_size),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
        )
        answer = None, None
        try:
            answer = job(rank, world_size, *args), None
        except Exception:
            answer = None, traceback.format_exc()
        dist.destroy_process_group()
        pipe.send(answer)
