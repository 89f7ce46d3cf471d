"""Saves under a preloaded library that sees every call to the system, whoever makes it."""

import errno
import subprocess
import sys
from pathlib import Path

import checkpoint_kit as kit
import fault_shim
import pytest

from embstore.cli import _torture_saves
from embstore.cli._torture_host import Host
from embstore.cli._torture_kills import BASE_STEP, N_KEYS_EACH_CALL, EachCall
from embstore.cli._torture_program import Twin, fault_of
from embstore.cli._torture_report import Tally

pytestmark = pytest.mark.unsanitized

# Errors, and whether all later calls have them too. (Python repeats a call that was interrupted.)
ERRORS = [
    (errno.EINTR, 0),
    *((e, s) for e in (errno.ENOSPC, errno.EIO, errno.EDQUOT) for s in (0, 1)),
]
COUNTED = {"open", "close", "write", "fsync", "rename", "unlink"}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The compiled library."""
    library = fault_shim.build(tmp_path_factory.mktemp("shim"))
    if library is None:
        pytest.skip("there is no C compiler, so nothing is tested under the preloaded library")
    return library


@pytest.fixture
def host(library, tmp_path):
    """A process under the library, whose children save below tmp_path / "disk"."""
    (tmp_path / "disk").mkdir()
    environment = {**kit.environment(), **fault_shim.environment(library, tmp_path / "disk")}
    code = "from shim_child import main; main()"
    with Host(tmp_path / "children.log", code, environment) as host:
        yield host


NATIVE = """
import os, sys
import pyarrow as pa
from fault_shim import Shim
folder = sys.argv[1]
with Shim() as shim:
    with pa.OSFile(folder + "/native", "wb") as file:
        file.write(b"x" * 10)
    fd = os.open(folder + "/python", os.O_WRONLY | os.O_CREAT)
    os.pwrite(fd, b"abc", 5)
    os.writev(fd, [b"de", b"f"])
    os.fsync(fd)
    os.ftruncate(fd, 3)
    os.posix_fallocate(fd, 0, 10)
    os.close(fd)
    os.rename(folder + "/python", folder + "/renamed")
    os.unlink(folder + "/renamed")
    os.mkdir(folder + "/below")
    os.open(sys.argv[2], os.O_RDONLY)
print(*shim.names)
"""


def test_the_library_sees_calls_of_python_and_of_native_code(library, tmp_path):
    (tmp_path / "disk").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", NATIVE, tmp_path / "disk", tmp_path],
        env={**kit.environment(), **fault_shim.environment(library, tmp_path / "disk")},
        capture_output=True,
        text=True,
        check=True,
    )
    native = ["open", "write", "close"]
    python = ["open", "write", "write", "write", "fsync", "ftruncate", "fallocate", "close"]
    assert done.stdout.split() == [*native, *python, "rename", "unlink", "mkdir"]


# ---- kills


def kill_at(host, tmp_path, how, places, kind="full"):
    """Kill saves at the calls that `places(n_calls)` gives; return the tally and n_calls."""
    each = EachCall(tmp_path / "disk", host, kind)
    tally = Tally("R1", how, "kills")
    n_calls = each.n_calls(how)
    for at in places(n_calls):
        tally.judge(each.kill_at(at, how), f"{how} call {at} of {n_calls}")
    assert tally.failures == []
    return tally, n_calls


@pytest.mark.parametrize(
    ("how", "kind"), [("before", "full"), ("after", "delta"), ("halfway", "kept")]
)
def test_kills_at_some_calls_of_a_save(host, tmp_path, how, kind):
    tally, n_calls = kill_at(host, tmp_path, how, lambda n: range(1, n + 1, 6), kind)
    assert tally.n_cases > 10
    assert n_calls > 50


@pytest.mark.torture
@pytest.mark.parametrize("kind", _torture_saves.KINDS)
@pytest.mark.parametrize("how", ["before", "after", "halfway"])
def test_kills_at_all_calls_of_a_save(host, tmp_path, how, kind, record):
    tally = record("R1", f"SIGKILL {how} each system call of a save, preloaded library", "calls")
    killed, n_calls = kill_at(host, tmp_path, how, lambda n: range(1, n + 1), kind)
    tally.passed(killed.n_cases)
    assert killed.n_cases == n_calls


# ---- failing calls


def fail_at(host, tmp_path, every, kind="full"):
    """Fail every so many calls in each way; return what the child says of each case."""
    faults = [["f", *error] for error in ERRORS] + [["s", 0, 0]]
    case = {"do": "fail", "path": str(tmp_path / "disk" / "failing"), "kind": kind}
    lines = list(host.start({**case, "every": every, "faults": faults}).lines())
    assert [line for line in lines if not line.endswith(": kept")] == []
    return lines


def test_some_calls_of_a_save_fail(host, tmp_path):
    lines = fail_at(host, tmp_path, 19)
    assert sum(line.startswith("raised") for line in lines) > 15


@pytest.mark.torture
@pytest.mark.parametrize("kind", _torture_saves.KINDS)
def test_each_call_of_a_save_fails(host, tmp_path, kind, record):
    tally = record("R5", "each system call of a save fails, preloaded library", "calls x errors")
    lines = fail_at(host, tmp_path, 1, kind)
    assert sum(line.startswith("raised") for line in lines) > 300
    tally.passed(len(lines))


# ---- power losses


def losses(host, tmp_path, n_cases, seed, unsynced=(), kind="full", is_first=False):
    """Lose the power at random moments of some saves; return what was wrong, for each case.

    The saves go to a checkpoint that is there; if `is_first`, to a folder that is not there yet.
    """
    root = tmp_path / "disk"
    below = Path("new", "deep") if is_first else Path(f"base-{kind}")
    if not is_first:
        EachCall(root, host, kind)  # makes the checkpoint
    base_step = 0 if is_first else BASE_STEP
    disk = fault_shim.Disk(root)
    case = {"do": "journal", "path": str(root / below), "n_keys": N_KEYS_EACH_CALL, "kind": kind}
    case |= {"journal": str(tmp_path / "journal"), "n_saves": 4, "unsynced": unsynced}
    (line,) = host.start(case).lines()
    assert line.startswith("calls")
    twin, found = Twin(N_KEYS_EACH_CALL), []
    journal = fault_shim.read_journal(tmp_path / "journal")
    assert {operation.op for operation in journal} >= set("cwru!")
    for marks in fault_shim.power_losses(disk, journal, tmp_path / "lost", n_cases, seed):
        steps = {word: base_step for word in ("begun", "done")}
        steps |= {mark.split()[0]: int(mark.split()[1]) for mark in marks}
        _, fault = fault_of(tmp_path / "lost" / below, twin, steps["done"], steps["begun"])
        found.append(fault)
    return found


@pytest.mark.parametrize("kind", ["full", "compact"])
def test_power_losses(host, tmp_path, kind):
    assert losses(host, tmp_path, 60, seed=0, kind=kind) == [None] * 60


def test_power_losses_while_the_folder_is_made(host, tmp_path):
    assert losses(host, tmp_path, 60, seed=0, is_first=True) == [None] * 60


@pytest.mark.parametrize("unsynced", ["files", "directories"])
def test_a_save_that_does_not_sync_is_caught_by_the_model(host, tmp_path, unsynced):
    found = losses(host, tmp_path, 60, seed=0, unsynced=[unsynced])
    assert sum(fault is not None for fault in found) > 20


@pytest.mark.torture
@pytest.mark.parametrize("kind", _torture_saves.KINDS)
def test_many_power_losses(host, tmp_path, kind, record):
    tally = record("R1", "power losses: unsynced pages, sizes and names kept at random", "losses")
    for is_first in (False, True):
        found = losses(host, tmp_path, 500, seed=1, kind=kind, is_first=is_first)
        assert found == [None] * 500
        tally.passed(500)
