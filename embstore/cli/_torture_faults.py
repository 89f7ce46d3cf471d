"""Failing disks: an error, the checkpoint before, a table that works, and nothing left over."""

import errno
import gc
import os
import random
import warnings
from contextlib import AbstractContextManager
from pathlib import Path

import embstore as es
from embstore.cli import _torture_saves as saves
from embstore.cli._torture_kills import leftovers
from embstore.cli._torture_program import digest, new_store, train
from embstore.cli._torture_report import Tally
from embstore.cli._torture_seam import Counter, Seam, fail, write_short

N_KEYS = 60

# What the n-th call meets: its name, its errno (None: a short write), and whether for ever.
FAULTS = (
    ("no space", errno.ENOSPC, False),
    ("no space from then on", errno.ENOSPC, True),
    ("input/output error", errno.EIO, False),
    ("input/output errors from then on", errno.EIO, True),
    ("interrupted", errno.EINTR, False),
    ("short write", None, True),
)


class FailingDisk:
    """A store that is saved to a disk that fails, again and again."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self._kind = kind
        self._store = new_store()
        self._step = 1
        train(self._store, 1, N_KEYS)
        saves.save(self._store, path, 1, "full")

    def train(self) -> int:
        """Train a step; return it."""
        self._step += 1
        train(self._store, self._step, N_KEYS)
        return self._step

    def n_calls(self, counter: Counter) -> int:
        """Return how many calls a save makes that replaces another."""
        with counter:
            saves.save(self._store, self.path, self.train(), self._kind)
        return counter.n_calls

    def fault_of(self, disk: AbstractContextManager[object]) -> tuple[bool, str | None]:
        """Save while the disk fails; return whether that raised, and which promise was broken."""
        before = digest(self._store)
        step = self.train()
        after = digest(self._store)
        n_fds = n_open_files()
        error: str | None = None  # its text, since the error itself may hold files open
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            with disk:
                try:
                    saves.save(self._store, self.path, step, self._kind)
                except es.CheckpointError as raised:
                    error = str(raised)
        fault = self._fault(before, after, error is not None, n_fds)
        if fault is not None and error is not None:
            fault = f"{fault}; save said: {error}"
        return error is not None, fault

    def _fault(self, before: str, after: str, is_failed: bool, n_fds: int) -> str | None:
        if n_open_files() > n_fds:
            gc.collect()  # what an exception still holds is not lost
            if n_open_files() > n_fds:
                return f"{n_open_files() - n_fds} files were left open"
        if digest(self._store) != after:
            return "the store is not as it was"
        found, fault = self._found()
        if fault is not None:
            return fault
        if not is_failed and found != after:
            return "save returned, and the checkpoint is not what was saved"
        if found not in (before, after):
            return "the checkpoint is neither the one before nor the new one"
        step = self.train()
        saves.save(self._store, self.path, step, self._kind)
        found, fault = self._found()
        if fault is None and found != digest(self._store):
            fault = "the save after it is not what was saved"
        return fault or leftovers(self.path)

    def _found(self) -> tuple[str, str | None]:
        """Return the digest of what is there, or why it cannot be loaded."""
        try:
            return digest(es.Store.load(self.path)), None
        except es.CheckpointError as error:
            return "", f"the checkpoint does not load: {error}"

    def run(self, tally: Tally, seed: int) -> int:
        """Let each call fail in each way, in random order, until the time is over.

        Returns
        -------
        int
            How many cases there are.
        """
        places = range(1, self.n_calls(Seam()) + 1)
        cases = [(at, fault) for at in places for fault in FAULTS]
        random.Random(seed).shuffle(cases)
        for at, (name, error, is_sticky) in cases:
            act = write_short if error is None else fail(error)
            _, fault = self.fault_of(Seam(at, act, is_sticky))
            tally.judge(fault, f"{name} at call {at}, {self.path}")
            if tally.is_due or tally.failures:
                break
        return len(cases)


def n_open_files() -> int:
    """Return how many files this process has open."""
    return len(os.listdir("/proc/self/fd"))
