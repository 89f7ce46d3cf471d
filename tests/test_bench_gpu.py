"""The benchmark of a card runs, on an emulated one; no test looks at a time."""

import importlib.machinery
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import card_kit
import fake_card
import numpy as np
import pytest
from emulator.build import library
from emulator.device import Emulator

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

import embstore as es  # noqa: E402
from bench import __main__ as bench_program  # noqa: E402
from bench import keys, plot, results  # noqa: E402
from bench.gpu import adapter, model, pictures, program, targets  # noqa: E402
from bench.gpu.clock import SOURCES, EmulatedClock, GpuClock, Timed, address  # noqa: E402
from bench.gpu.data import Data  # noqa: E402
from bench.gpu.peers import HkvPeer, hkv_program  # noqa: E402
from bench.gpu.session import SCALES, Lane, Session  # noqa: E402
from bench.report import closing_lines  # noqa: E402
from embstore.engines.cuda import status, storage  # noqa: E402

pytestmark = pytest.mark.usefixtures("own_garbage")

CASES = {
    *("copy", "random lines", "random line and row", "find", "find_or_insert", "pooled"),
    *("find kernels in a graph", "find in a graph", "training step in a graph"),
    *("eviction scan", "export", "backward", "step of ten tables", "rows on the host"),
}
MAY_LACK = ("HierarchicalKV",)


@pytest.fixture
def clock():
    """An emulated card."""
    clock = EmulatedClock()
    yield clock
    clock.close()
    assert clock.device.violations == []


@pytest.fixture(scope="module")
def ran():
    """Run the whole benchmark once; return its session, its result, and what it printed."""
    said = []
    options = program.arguments(["--emulated"])
    with program.clock_of(options) as clock:
        session, found = program.run(options, clock, say=said.append, is_strict=True)
        lacks = program.lacks_of(session)
    assert clock.device.violations == []
    return session, found, "\n".join(said), lacks


def test_every_row_is_measured_or_says_why_not(ran):
    session, found, said, _ = ran
    assert session.n_failed == 0
    assert {case.name for case in found.cases if case.contenders} == CASES
    for case in found.cases:
        if not case.contenders:
            assert case.name.startswith(MAY_LACK), case
            assert case.notes["not measured"] in said
        for contender in case.contenders:
            assert len(contender.times_ns) == case.rounds
    assert all(np.isfinite(f.value) and f.value > 0 for f in found.figures)
    optimizers = {c.axes["optimizer"] for c in found.cases if c.name == "backward"}
    assert optimizers == set(targets.OPTIMIZERS)
    loads = {c.axes["load"] for c in found.cases if c.name == "find"}
    assert loads == {0.5, 0.75, 0.9}
    exponents = {c.axes.get("exponent") for c in found.cases if c.name == "backward"}
    assert exponents == {None, 0.8, 1.05, 1.2}
    assert {c.axes["fresh"] for c in found.cases if c.name == "find_or_insert"} == {0, 0.01, 0.5, 1}


def test_loads_are_what_they_say(ran):
    for case in ran[1].cases:
        if case.name == "find":
            assert case.notes["load_measured"] == pytest.approx(case.axes["load"], abs=0.03)


def test_rows_lie_where_their_share_says(ran):
    cases = [c for c in ran[1].cases if c.name == "rows on the host"]
    n_bytes = [c.notes["nbytes_host"] for c in cases]
    assert [c.axes["host_share"] for c in cases] == [0.0, 0.5, 1.0]
    assert n_bytes[0] == 0 < n_bytes[1] < n_bytes[2]


def test_every_target_has_its_line(ran):
    _, found, _, lacks = ran
    lines = [*closing_lines([found], lacks, targets.ROWS)]
    text = "\n".join(lines)
    for row in targets.ROWS:
        assert any(line.startswith(row.target.name) for line in lines)
    assert "HierarchicalKV has no emulated card" in text
    named = {f.target.name for f in found.figures if f.target is not None}
    assert named <= {row.target.name for row in targets.ROWS}
    assert len({row.target.name for row in targets.ROWS}) == len(targets.ROWS)


def test_the_result_can_be_written_read_shown_and_drawn(ran, tmp_path, capsys):
    _, found, _, _ = ran
    path = results.write(found, tmp_path)
    read = results.read(path)
    assert read == found
    assert read.machine["card"]["name"].startswith("emulated")
    names = {name for name, _ in pictures.draw(pytest.importorskip("matplotlib.pyplot"), read)}
    assert names == {"gpu-find-dims", "gpu-find-loads", "gpu-reads"}
    assert len(plot.write([read], tmp_path / "plots")) == 3
    assert bench_program.main(["--show", "--out", str(tmp_path)]) == 0
    assert "on a card: emulated" in capsys.readouterr().out


def test_without_a_card_one_line_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(es, "cuda_status", lambda: es.CudaStatus(False, "no-cupy", "no CuPy"))
    assert bench_program.main(["gpu"]) == 1
    assert capsys.readouterr().out == "python -m bench gpu: there is no card to measure: no CuPy\n"
    for wrong in (["--quick", "--emulated"], ["lookup"]):
        with pytest.raises(SystemExit):
            program.arguments(wrong)


def test_what_fails_or_is_out_of_time_does_not_stop_a_run(clock):
    said = []
    session = Session(clock, SCALES["emulated"], say=said.append)

    def fails(number):
        raise RuntimeError("a kernel\nhas failed")

    good = Lane("good", lambda number: None, 5)
    result = session.measure("case", {"dim": 4}, [good, Lane("bad", fails, 5)])
    assert [c.name for c in result.contenders] == ["good"]
    assert "FAILED: RuntimeError: a kernel has failed" in result.notes["bad not measured"]
    with session.guarded("section", {}):
        fails(0)
    assert session.n_failed == 2
    assert "section: : not measured: FAILED" in said[-1]
    session._begin -= 1e6
    assert session.measure("late", {}, [good]) is None
    assert "out of time" in session.cases[-1].notes["not measured"]


# ---- data


def test_keys_and_ids_are_those_of_the_host(clock):
    data = Data(clock, seed=3)
    assert np.array_equal(clock.host(data.following(7, 100)), keys.key_of(np.arange(7, 107), 3))
    batch = data.uniform(5000, 50, 1)
    ids = clock.host(batch.ids).astype(np.int64)
    assert np.array_equal(clock.host(batch.keys), keys.key_of(ids, 3))
    assert np.bincount(ids, minlength=50).min() > 50
    assert ids.max() < 50
    assert np.array_equal(clock.host(data.uniform(5000, 50, 1).ids), ids), "not the same again"
    assert not np.array_equal(clock.host(data.uniform(5000, 50, 2).ids), ids)
    mixed = clock.host(data.uniform(5000, 50, 1, 0.25, 10**6).ids)
    assert 0.2 < (mixed >= 10**6).mean() < 0.3
    assert len(set(mixed[mixed >= 10**6])) == (mixed >= 10**6).sum()
    assert clock.host(data.offsets(3, 10)).tolist() == [0, 10, 20, 30]
    floats = clock.host(data.floats((100, 3)))
    assert floats.shape == (100, 3)
    assert 0.005 < np.abs(floats).max() <= 0.01


@pytest.mark.parametrize("exponent", [0.8, 1.05, 1.2])
def test_zipf_ids_have_the_probabilities_of_the_law(clock, exponent):
    n_rows, n = 100, 20_000
    found = np.bincount(clock.host(Data(clock, 1).zipf(n, n_rows, 5, exponent).ids).astype(int))
    ranks = np.arange(n_rows)
    expected = (ranks + 1.0) ** -exponent
    at = ranks * keys.SCATTER % n_rows
    assert np.abs(found[at] / n - expected / expected.sum()).max() < 0.015


# ---- model, clock, adapter


def test_the_model_is_the_one_of_the_design():
    assert [model.find_bytes(dim) for dim in (8, 16, 32, 64, 128)] == [204, 268, 396, 652, 1164]
    assert [model.hit_bytes(dim) for dim in (8, 128)] == [268, 1228]
    assert [model.insert_bytes(dim, dim) for dim in (8, 128)] == [332, 1772]
    assert [model.update_bytes(64, slots) for slots in (64, 128, 1)] == [1284, 1796, 780]
    assert model.mixed_bytes(8, 8, 0.5) == (268 + 332) / 2


def test_rates_are_scaled_to_the_card_and_shares_are_not(ran):
    half = targets.scaled(targets.FIND[64], 2.15e12)
    assert (half.bound, half.name) == (2.4, targets.FIND[64].name)
    assert targets.scaled(targets.STEP_MS, 2.15e12).bound == 2.3
    assert targets.scaled(None, 1.0) is None
    shares = [f for f in ran[1].figures if f.target is not None and "kernel" in f.target.name]
    assert {f.target.bound for f in shares} == {0.7}


def test_a_sample_prepares_untimed_and_numbers_its_calls(clock):
    seen = []
    timed = Timed(clock, seen.append, 3, prepare=lambda i: seen.append(-i))
    assert timed.sample_ns(4) > 0
    assert seen == [-12, 12, 13, 14]


def test_a_table_can_be_filled_beyond_the_load_at_which_it_grows(clock):
    before = storage.MOST_LOAD
    with adapter.forced_load(0.9):
        assert pytest.approx(0.92) == storage.MOST_LOAD
    assert before == storage.MOST_LOAD


def test_a_kernel_that_has_changed_is_a_reason_and_no_crash(clock):
    with es.Table(4, device=clock.name) as table:
        launcher = table._engine._launcher
        with pytest.raises(adapter.NotMeasured, match="no arguments"):
            adapter.launch(launcher, "find_rows", 1, nothing=1)
        under = adapter.Kernels(table)
        del under._engine
        with pytest.raises(adapter.NotMeasured, match="insides have changed"):
            under.find(clock.filled((1,), np.int64), 1, clock.filled((1, 4), np.float32))


def test_the_emulated_clock_gives_the_devices_back():
    before = status.PROVIDER
    clock = EmulatedClock()
    array = clock.filled((3,), np.uint8, 7)
    assert clock.host(array).tolist() == [7, 7, 7]
    assert address(array) % 256 == 0
    clock.close()
    assert status.PROVIDER is before


def test_hierarchicalkv_is_looked_for_before_it_is_built(tmp_path, monkeypatch):
    with pytest.raises(adapter.NotMeasured, match=r"no merlin_hashtable\.cuh"):
        hkv_program(tmp_path)
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "merlin_hashtable.cuh").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(adapter.NotMeasured, match="nvcc, which is not on PATH"):
        hkv_program(tmp_path)


DRIVER = """#!/usr/bin/env python3
import sys
print("what a library says")
print("ready", *sys.argv[1:], flush=True)
for line in sys.stdin:
    print("error: too much" if "0.5" in line else 1000 * len(line.split()), flush=True)
"""


def test_the_driver_of_hierarchicalkv_is_told_by_lines_and_times_itself(clock, tmp_path):
    program = tmp_path / "driver"
    program.write_text(DRIVER)
    program.chmod(0o755)
    session = Session(clock, SCALES["emulated"], say=lambda text: None)
    peer = HkvPeer(session, program, 8, n_rows=650, n_cells=1000)
    try:
        assert peer.shape == ["1024", "8", "32", "0", "665"]
        lanes = [peer.lane("find", 204), peer.lane("find_or_insert 0.5", 204)]
        result = session.measure("find", {"dim": 8}, lanes[:1])
        assert set(result.contenders[0].times_ns) == {3000}
        with pytest.raises(adapter.NotMeasured, match="too much"):
            lanes[1].call(0)
    finally:
        peer.close()
    program.write_text("#!/bin/sh\necho error no memory\n")
    with pytest.raises(adapter.NotMeasured, match="error no memory"):
        HkvPeer(session, program, 8, n_rows=650, n_cells=1000)


def test_a_card_is_timed_by_events_around_what_is_queued():
    log = []

    class Event:
        def __init__(self):
            self.number = len(log)

        def record(self, stream):
            log.append(("record", stream))

        def synchronize(self):
            log.append("synchronize")

    cuda = SimpleNamespace(
        Event=Event,
        get_current_stream=lambda: "current",
        get_elapsed_time=lambda begin, end: 0.25 * (end.number - begin.number + 1),
    )
    clock = GpuClock.__new__(GpuClock)
    clock.cupy = SimpleNamespace(cuda=cuda)
    assert Timed(clock, log.append, n_calls=2).sample_ns(3) == 250_000
    assert log == [("record", "current"), 6, 7, ("record", "current"), "synchronize"]
    log.clear()
    Timed(clock, log.append, stream="own", prepare=lambda number: log.append("prepare")).sample_ns(
        1
    )
    assert log == ["prepare", ("record", "own"), 1, ("record", "own"), "synchronize"]


def test_a_run_goes_through_the_code_of_a_card(monkeypatch):
    emulators = [Emulator(library()), Emulator(library(sources=SOURCES.units(), with_engine=False))]
    said = []
    torch = SimpleNamespace(
        __version__="2.0", cuda=SimpleNamespace(is_available=lambda: False), set_num_threads=int
    )
    torch.__spec__ = importlib.machinery.ModuleSpec("torch", None)
    monkeypatch.setitem(sys.modules, "torch", torch)  # nor is the real one loaded, which is large
    with fake_card.installed(monkeypatch, emulators):
        options = program.arguments(["--emulated"])
        options.emulated = False
        with program.clock_of(options) as clock:
            assert isinstance(clock, GpuClock)
            session, found = program.run(options, clock, say=said.append, is_strict=True)
    assert session.n_failed == 0
    assert {case.name for case in found.cases if case.contenders} == CASES
    assert found.machine["card"]["name"] == "a stand-in"
    assert found.machine["kernels"]["find_rows"]["registers"] == 50
    text = "\n".join(said)
    assert "those that spill: find_rows" in text
    assert "torch 2.0 has no CUDA here" in text
    assert "give the folder of HierarchicalKV by --hkv" in text
    assert {t for case in found.cases for c in case.contenders for t in c.times_ns} == {500_000}


# ---- make test-gpu, make bench-gpu


def test_without_a_card_test_gpu_ends_with_one_line(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho there is no card here\n")
    python.chmod(0o755)
    done = subprocess.run(
        [ROOT / ".ci" / "test-gpu", python], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "test-gpu: FAILED: nothing was tested: there is no card here\n"


def test_the_device_under_test_is_named_by_the_environment(monkeypatch):
    monkeypatch.setenv(card_kit.VARIABLE, "gpu0")
    with pytest.raises(ValueError, match='"cuda", "cuda:N" or "emulated", got \'gpu0\''):
        card_kit.asked_for()
    for name, is_real in (("", False), ("emulated", False), ("cuda", True), ("cuda:3", True)):
        monkeypatch.setenv(card_kit.VARIABLE, name)
        assert (card_kit.asked_for(), card_kit.is_real()) == (name, is_real)
