"""Failing disks, power losses and kills: an error or nothing, and always a whole checkpoint."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import checkpoint_kit as kit
import numpy as np
import pytest

import embstore as es
from embstore import checkpoint
from embstore.checkpoint import commit, fsio

pytestmark = pytest.mark.usefixtures("quick_disk")


@pytest.fixture
def saved(tmp_path):
    """A small checkpoint with a file of each kind but bloom."""
    table = kit.memory_table(n=12, n_pending=3)
    checkpoint.save_tables(tmp_path, {"t": table}, {"x": np.arange(3), "note": "a"})
    return tmp_path


class Crash(BaseException):
    """The process is gone: nothing that comes after it happens."""


class Disk:
    """Stands for the system's calls; the n-th fails, or kills."""

    def __init__(self, monkeypatch, nth=None, error=None, is_sticky=False, kinds=None):
        self.n_calls = 0
        self.nth, self.error, self.is_sticky, self.kinds = nth, error, is_sticky, kinds
        self.log, self.renamed = [], []
        self.real = fsio.calls
        calls = {name: self.wrapped(name, call) for name, call in vars(self.real).items()}
        monkeypatch.setattr(fsio, "calls", SimpleNamespace(**calls))

    def wrapped(self, name, call):
        def wrapper(*args, **kwargs):
            is_counted = self.kinds is None or name in self.kinds
            self.n_calls += is_counted
            is_hit = (
                self.nth is not None
                and is_counted
                and (self.n_calls == self.nth or (self.is_sticky and self.n_calls > self.nth))
            )
            if is_hit or (self.error is Crash and self.nth and self.n_calls >= self.nth):
                self.log.append(name)
                if name == "close":
                    call(*args, **kwargs)
                raise Crash if self.error is Crash else OSError(self.error, os.strerror(self.error))
            return self.done(name, call, args, kwargs)

        return wrapper

    def done(self, name, call, args, kwargs):
        result = None if name == "fsync" else call(*args, **kwargs)
        if name == "rename":
            self.renamed.append(args[-1])
        return result


def save(path, table, k):
    checkpoint.save_tables(path, {"t": table}, {"k": k, "x": np.full(3, k)})


def error_of(call):
    """Return the CheckpointError that `call` raises, or None."""
    try:
        call()
    except es.CheckpointError as error:
        return error
    return None


class Scenario:
    """A save over a checkpoint, again and again; what must be there when it fails, and when not."""

    def __init__(self, path, kind, keep_last):
        self.path, self.kind, self.keep_last = path, kind, keep_last
        rng = np.random.default_rng(0)
        self.first = kit.memory_table(seed=1, bloom_blocks=1)
        self.second, self.changes = kit.changed_table(self.first, 6, 4, rng)
        self.old, self.new = {
            "full": (self.first, kit.memory_table(seed=2)),
            "delta": (self.first, self.second),
            "compact": (self.second, self.second),
        }[kind]
        self.contents = {}  # of all generations ever written
        self.begin()
        self.begin()
        assert len(self.kept) == keep_last

    def begin(self):
        """Save the checkpoint that the save is to replace."""
        report = checkpoint.save_tables(
            self.path, {"t": self.first}, {"k": False}, keep_last=self.keep_last
        )
        self.contents[report.generation] = self.expected(self.first, False)
        if self.kind == "compact":
            report = self._save_delta(report.digest, False)
        self.base, self.generation = report.digest, report.generation
        self.contents[report.generation] = self.expected(self.old, False)
        self.contents[report.generation + 1] = self.expected(self.new, self.kind != "compact")
        self.kept = checkpoint.generations(self.path)
        assert set(kit.files_of(self.path)) == kit.names_due(self.path)

    def _save_delta(self, base, k):
        return kit.save_delta(
            self.path, {"t": self.changes}, base, extra={"k": k}, keep_last=self.keep_last
        )

    def save(self):
        """Save what may fail."""
        if self.kind == "delta":
            self._save_delta(self.base, True)
        elif self.kind == "compact":
            checkpoint.compact(self.path, keep_last=self.keep_last)
        else:
            tables = {"t": self.new}
            checkpoint.save_tables(self.path, tables, {"k": True}, keep_last=self.keep_last)

    def n_calls(self):
        """Return how many calls to the system a save makes that does not fail."""
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch)
            self.save()
        self.begin()
        return disk.n_calls

    def expected(self, table, k):
        return k, {"t": kit.content_of_table(table)}

    def check(self):
        """Check all generations; return whether the save was committed."""
        with checkpoint.load_tables(self.path) as loaded:
            newest = loaded.generation
        assert newest in (self.generation, self.generation + 1)
        is_committed = newest != self.generation
        wanted = set(self.kept)
        if is_committed:
            wanted = {newest, self.generation} if self.keep_last == 2 else {newest}
        there = checkpoint.generations(self.path)
        assert wanted <= set(there)
        for generation in there:
            with checkpoint.load_tables(self.path, generation=generation) as loaded:
                k = loaded.extra["k"]
            found = k, kit.content_of(self.path, generation=generation)
            assert found == self.contents[generation], (generation, there)
        return is_committed


OFTEN = [("full", 1), ("delta", 2)]
SELDOM = [("full", 2), ("delta", 1), ("compact", 1), ("compact", 2)]
DISKS = [(errno.ENOSPC, False), (errno.EIO, False), (errno.EIO, True)]


def with_torture(often, seldom):
    """Return the parameters of tests, some of them only for long runs."""
    return [*often, *(pytest.param(*each, marks=pytest.mark.torture) for each in seldom)]


@pytest.mark.parametrize(
    ("kind", "keep_last", "error", "is_sticky"),
    with_torture(
        [(*case, *disk) for case in OFTEN for disk in DISKS],
        [(*case, *disk) for case in SELDOM for disk in DISKS],
    ),
)
def test_the_nth_call_that_fails_is_an_error_and_no_loss(
    kind, keep_last, error, is_sticky, tmp_path
):
    scenario = Scenario(tmp_path, kind, keep_last)
    n_calls = scenario.n_calls()
    n_fds = kit.n_open_files()
    assert n_calls > 40
    n_raised = 0
    for nth in range(1, n_calls + 5):
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            disk = Disk(patch, nth, error, is_sticky)
            outcome = error_of(scenario.save)
        is_committed = scenario.check()
        if outcome is None:
            assert is_committed, nth
            assert told or not disk.log, (nth, disk.log)
        else:
            n_raised += 1
            assert outcome.errno == error, (nth, disk.log)
            # Once the new manifest has its name, nobody can say whether a crash would lose it.
            assert is_committed == ("manifest.json" in disk.renamed), (nth, disk.log)
        scenario.begin()
    assert n_raised > 30
    assert kit.n_open_files() <= n_fds


@pytest.mark.parametrize("error", [errno.EIO, errno.EMFILE])
def test_the_nth_call_that_fails_while_loading_is_an_error(error, saved):
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        checkpoint.verify(saved)
    for nth in range(1, disk.n_calls + 1):
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, nth, error)
            with pytest.raises(es.CheckpointError) as raised:
                checkpoint.verify(saved)
        assert raised.value.errno == error
        assert not isinstance(raised.value, es.CorruptCheckpointError)
    checkpoint.verify(saved)


def test_bytes_written_short_are_written_on(tmp_path, monkeypatch):
    real = fsio.calls.write
    monkeypatch.setattr(
        fsio.calls, "write", lambda fd, data: real(fd, data[: max(1, len(data) // 2)])
    )
    real_read = fsio.calls.pread
    monkeypatch.setattr(fsio.calls, "pread", lambda fd, n, at: real_read(fd, max(1, n // 2), at))
    table = kit.memory_table()
    save(tmp_path, table, 1)
    assert kit.content_of(tmp_path) == {"t": kit.content_of_table(table)}


def test_a_disk_that_writes_nothing_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(fsio.calls, "write", lambda fd, data: 0)
    with pytest.raises(es.CheckpointError, match="wrote 0 of"):
        save(tmp_path, kit.memory_table(), 1)


def test_a_full_table_stays_usable_after_a_failed_save(tmp_path, monkeypatch):
    with es.Table(2, name="t", optimizer=es.Adagrad()) as table:
        table.find_or_insert([1, 2, 3], step=0)
        Disk(monkeypatch, 3, errno.ENOSPC, is_sticky=True, kinds=("write",))
        with pytest.raises(es.CheckpointError, match="No space left") as raised:
            table.save(tmp_path)
        assert raised.value.errno == errno.ENOSPC
        assert os.listdir(tmp_path) == ["lock"]
        table.find_or_insert([4], step=1)
        assert len(table) == 4


# ---- crashes


class PowerLoss(Disk):
    """Crashes at the n-th call; what was not fsynced by then is undone, all or at random."""

    def __init__(self, monkeypatch, folder, nth, rng):
        self.folder, self.rng = Path(folder), rng
        self.names, self.dirty, self.pending = {}, set(), []
        super().__init__(monkeypatch, nth, Crash)

    def done(self, name, call, args, kwargs):
        kept = None
        if name in ("rename", "unlink"):
            target = self.folder / args[-1]
            kept = target.read_bytes() if target.exists() else None
        result = None if name == "fsync" else call(*args, **kwargs)
        if name == "open":
            is_new = args[1] & os.O_EXCL
            self.names[result] = args[0] if is_new else None
            if is_new:
                self.pending.append((args[0], None))
        elif name == "write":
            self.dirty.add(self.names[args[0]])
        elif name == "fsync":
            self.dirty.discard(self.names.get(args[0]))
            if self.names.get(args[0]) is None:  # the directory
                self.pending.clear()
        elif name in ("rename", "unlink"):
            self.pending.append((args[-1], kept))
            if name == "rename" and args[0] in self.dirty:
                self.dirty.add(args[1])
        return result

    def lose(self):
        """Leave the folder as the disk may have it after the power comes back."""
        for name in self.dirty:
            if (self.folder / name).exists():
                data = (self.folder / name).read_bytes()
                (self.folder / name).write_bytes(data[: self.rng.randint(0, len(data) // 2)])
        for name, before in reversed(self.pending):
            if self.rng.random() < 0.5:
                continue
            if before is None:
                (self.folder / name).unlink(missing_ok=True)
            else:
                (self.folder / name).write_bytes(before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it is gone
@pytest.mark.parametrize(
    ("kind", "keep_last", "seed"),
    with_torture(
        [*((*case, seed) for case in OFTEN for seed in (None, 0)), ("compact", 2, 1)],
        [(*case, seed) for case in OFTEN + SELDOM for seed in range(2, 12)],
    ),
)
def test_a_crash_at_any_call_leaves_a_whole_checkpoint(kind, keep_last, seed, tmp_path):
    """Without a seed the process dies; with one, the power fails and what was not synced goes."""
    scenario = Scenario(tmp_path, kind, keep_last)
    rng = random.Random(seed)
    seen, is_through = [], False
    while not is_through:
        with pytest.MonkeyPatch.context() as patch:
            disk = PowerLoss(patch, tmp_path, len(seen) + 1, rng)
            with suppress(Crash):
                scenario.save()
                is_through = True
        if seed is not None:
            disk.lose()
        seen.append(scenario.check())
        scenario.begin()
    assert set(seen) == {False, True}
    assert len(seen) > 30


CHILD = """
import sys
import numpy as np
import embstore as es
k = int(sys.argv[2])
with es.Table(8, name="t", optimizer=es.SGD(1.0, momentum=0.5)) as table:
    keys = np.arange(20_000) * 977
    while True:
        table.assign(keys, np.full((len(keys), 8), k, np.float32), step=k)
        table.save(sys.argv[1], extra={"k": k, "bulk": np.full(100_000, k)})
        print(k, flush=True)
        k += 1
"""


def kill_loop(path, n_kills, seed):
    """Kill a saving process at random times; what is there afterwards is always one whole save."""
    rng = random.Random(seed)
    done = -1
    for _ in range(n_kills):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, path, str(done + 1)],
            stdout=subprocess.PIPE,
            text=True,
            env=kit.environment(),
        )
        with child:
            for _ in range(rng.randint(1, 4)):  # saves before the killed one
                done = int(child.stdout.readline())
            time.sleep(rng.random() * 0.05)
            child.send_signal(signal.SIGKILL)
            done = max([done, *(int(line) for line in child.stdout)])
        checkpoint.verify(path)
        with es.Store.load(path) as store:
            k = store.extra["k"]
            assert done <= k <= done + 1
            done = k
            assert (store.extra["bulk"] == k).all()
            assert store["t"].step == k
            rows = store["t"].find(np.arange(20_000) * 977, with_meta=True)
            assert (rows.rows == k).all()
            assert (rows.step == k).all()


def test_a_process_killed_while_saving_leaves_the_last_whole_checkpoint(tmp_path):
    kill_loop(tmp_path, 5, seed=0)


@pytest.mark.torture
def test_many_kills(tmp_path):
    kill_loop(tmp_path, 300, seed=1)


def test_names_of_ours_are_told_from_others():
    assert commit.OWN_NAME.fullmatch(commit.data_name(1, "t000-rows-00-ff"))
    assert commit.OWN_NAME.fullmatch(commit.data_name(2**62, "extra"))
    for name in ("x.arrow", "g1-x.arrow", "g00000001-x.arrow.bak", "G00000001-x.arrow"):
        assert not commit.OWN_NAME.fullmatch(name)
