"""The command torture: what it prints, and that it sees each kind of fault when there is one."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

import checkpoint_kit as kit
import numpy as np
import pytest

import embstore as es
from embstore.checkpoint import fsio
from embstore.cli import _torture_damage, _torture_model, main
from embstore.cli._torture_damage import Damage
from embstore.cli._torture_faults import FailingDisk
from embstore.cli._torture_host import Host
from embstore.cli._torture_kills import BASE_STEP, EachCall, RandomKills
from embstore.cli._torture_program import Twin, digest, new_store, torn, torn_row, train
from embstore.cli._torture_report import Tally
from embstore.cli._torture_seam import READING, Seam


@pytest.fixture
def tally():
    """A tally whose time is over in a minute, should nothing end it before."""
    return Tally("promise", "test", "cases", deadline=time.monotonic() + 60)


@pytest.mark.unsanitized
def test_a_quick_run_keeps_all_promises(tmp_path, capsys):
    assert main(["torture", str(tmp_path), "--quick", "--seed", "1", "--json"]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert (told["seed"], told["n_failures"], told["folder"]) == (1, 0, None)
    assert told["again"] == f"embstore torture {tmp_path} --seed 1 --quick"
    assert all(test["n_cases"] > 0 and test["failures"] == [] for test in told["tests"])
    assert len({test["promise"] for test in told["tests"]}) == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.unsanitized
def test_what_fails_is_told_and_kept(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_torture_damage, "verify", lambda path: None)
    assert main(["torture", str(tmp_path), "--minutes", "0.02", "--seed", "5", "--kills", "2"]) == 1
    out = capsys.readouterr().out
    (kept,) = tmp_path.iterdir()
    assert f"kept: {kept}" in out
    assert f"again: embstore torture {tmp_path} --seed 5 --minutes 0.02 --kills 2" in out
    assert "FAILED: changed bytes: " in out
    assert "not detected" in out
    assert "2 kills" in out


@pytest.mark.parametrize(
    "options", [["--minutes", "0"], ["--seed", "-1"], ["--kills", "x"], ["/no/such/folder"]]
)
def test_wrong_options_give_code_2(options, capsys):
    try:
        code = main(["torture", *options])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# ---- the program


def test_the_same_steps_give_the_same_content_also_after_a_load(tmp_path):
    store, twin = new_store(), Twin(30)
    for step in range(1, 41):
        train(store, step, 30)
        assert torn(store) is None
        if step % 9 == 0:
            store.save(tmp_path)
            store = es.Store.load(tmp_path)
    assert digest(store) == twin.digest_at(40)
    assert {len(store[name]) > 0 for name in store} == {True}
    assert len(store["counted"].candidates()) > 0
    assert len(store["steps"].pinned) > 0


@pytest.mark.parametrize("what", ["values", "slots", "freq", "step"])
def test_a_torn_row_is_seen(what):
    store = new_store()
    for step in range(1, 10):
        train(store, step, 30)
    (rows,) = store["steps"].export()
    assert torn_row(rows) is None
    getattr(rows, what)[7] += 1
    assert f"key {rows.keys[7]} is torn" in torn_row(rows)


# ---- faults that are made on purpose are seen


def test_a_byte_that_is_not_checked_is_seen(tmp_path, tally, monkeypatch):
    monkeypatch.setattr("embstore.checkpoint.blocks.crc32", lambda data, seed=0: 0)
    damage = Damage(tmp_path)
    damage.flips(tally, seed=0)
    assert len(tally.failures) == 1


def test_a_save_that_hides_an_error_is_seen(tmp_path, tally, monkeypatch, quick_disk):
    disk = FailingDisk(tmp_path / "disk", "full")
    real = fsio.OutputFile.write

    def write(self, data):
        with suppress(es.CheckpointError):
            real(self, data)

    monkeypatch.setattr(fsio.OutputFile, "write", write)
    disk.run(tally, seed=0)
    assert len(tally.failures) == 1


def test_a_failed_save_that_leaves_files_open_is_seen(tmp_path, tally, monkeypatch, quick_disk):
    disk = FailingDisk(tmp_path / "disk", "full")
    held = []
    real = fsio.Directory.create

    def create(self, name):
        held.append(os.open(tmp_path, os.O_RDONLY))
        return real(self, name)

    monkeypatch.setattr(fsio.Directory, "create", create)
    disk.run(tally, seed=0)
    assert "left open" in tally.failures[0]
    for fd in held:
        os.close(fd)


def test_a_model_that_differs_is_seen(tmp_path, tally, monkeypatch):
    monkeypatch.setattr(_torture_model.Model, "erase", lambda self, keys: None)
    _torture_model.run(tmp_path, tally, seed=0)
    assert len(tally.failures) == 1
    assert "after" in tally.failures[0]


def names_of_calls(path):
    """Return the names of the calls of a save that replaces another, as they are counted."""
    seam, disk = Seam(ignored=READING), FailingDisk(path, "full")
    while disk.train() < BASE_STEP:  # from when on there is a file of each kind
        pass
    disk.n_calls(Seam())
    disk.n_calls(seam)
    return seam.names


RENAMES_IN_TWO_STEPS = """
import os
import time
from embstore.checkpoint import fsio
from embstore.cli._torture_child import main

real = fsio.Directory.rename

def rename(self, old, new):
    if os.path.exists(self.place(new)):
        self.remove(new)
    real(self, old, new)

fsio.Directory.rename = rename
main()
"""


@pytest.mark.unsanitized
def test_a_rename_in_two_steps_is_seen(tmp_path):
    with Host(tmp_path / "log", RENAMES_IN_TWO_STEPS, kit.environment()) as host:
        each = EachCall(tmp_path, host, "full")
        names = names_of_calls(tmp_path / "disk")
        at = names.index("rename") + 1
        faults = [each.kill_at(n, "before") for n in (at, at + 1)]
    assert ["holds no checkpoint" in str(fault) for fault in faults] == [False, True]


@pytest.mark.unsanitized
def test_a_child_that_fails_is_told(tmp_path):
    code = "from embstore.cli._torture_host import serve; serve(lambda case: 1 / 0)"
    with Host(tmp_path / "log", code) as host:
        assert "ZeroDivisionError" in RandomKills(tmp_path, host, 0).kill_one()
    assert "ZeroDivisionError" in Path(tmp_path / "log").read_text()


@pytest.mark.unsanitized
def test_a_child_does_not_outlive_its_host(tmp_path):
    case = {"do": "loop", "path": str(tmp_path / "saved"), "n_keys": 30, "kinds": ["full"]}
    with Host(tmp_path / "log") as host:
        assert next(host.start(case).lines()) == "begun 1"


def test_the_seam_counts_and_goes_away(tmp_path):
    outer = fsio.calls
    with Seam() as seam:
        kit.checkpoint.save_tables(tmp_path, {"t": kit.memory_table()}, {"x": np.arange(3)})
    assert fsio.calls is outer
    assert seam.n_calls == len(seam.names) > 30
    assert {"open", "write", "fsync", "rename", "close", "flock"} <= set(seam.names)
