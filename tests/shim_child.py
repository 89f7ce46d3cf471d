"""What children do under the preloaded library; see embstore.cli._torture_child."""

import errno
import os
import stat
from itertools import product
from pathlib import Path

from fault_shim import Shim

import embstore as es
from embstore.checkpoint import fsio
from embstore.cli import _torture_child as child
from embstore.cli import _torture_saves as saves
from embstore.cli._torture_faults import FailingDisk
from embstore.cli._torture_host import say, serve
from embstore.cli._torture_program import train

HOW = {"before": "b", "after": "a", "halfway": "h"}


def main():
    """Serve cases from standard input."""
    for name in ("Store", "Table"):
        getattr(es, name)
    serve(run)


def run(case):
    """Do one case."""
    {"once": once, "fail": fail, "journal": journal}[case["do"]](case)


def once(case):
    """Train one step and save; die at the call `at` of the save."""
    child.once(case, Shim(case["at"], HOW[case["how"]]))


def fail(case):
    """Let calls of saves fail; tell of each case what was wrong."""
    disk = FailingDisk(Path(case["path"]), case["kind"])
    places = range(1, disk.n_calls(Shim()) + 3, case["every"])
    for at, (how, error, is_sticky) in product(places, case["faults"]):
        is_raised, fault = disk.fault_of(Shim(at, how, error, is_sticky))
        name = errno.errorcode.get(error, "a short write")
        say(f"{'raised' if is_raised else 'saved'} {name} at {at}: {fault or 'kept'}")


def kind_of(fd):
    """Return "files" or "directories"."""
    return "directories" if stat.S_ISDIR(os.fstat(fd).st_mode) else "files"


def journal(case):
    """Save some steps with a journal that says when each save began and ended."""
    real, unsynced = fsio.calls.fsync, case["unsynced"]
    fsio.calls.fsync = lambda fd: None if kind_of(fd) in unsynced else real(fd)
    store, step = child.loaded(case)
    with Shim() as shim:
        shim.journal(case["journal"])
        for k in range(step + 1, step + 1 + case["n_saves"]):
            train(store, k, case["n_keys"])
            shim.mark(f"begun {k}")
            saves.save(store, Path(case["path"]), k, case["kind"])
            shim.mark(f"done {k}")
    say(f"calls {shim.n_calls}")
