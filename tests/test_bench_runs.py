"""The benchmarks themselves, at sizes at which figures mean nothing; no test looks at a time."""

import sys
from pathlib import Path

import numpy as np
import pytest
from reference.hashing import partition_of

# At the end, so that a sanitized build that comes first on the path stays the one under test.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from bench import __main__ as program
from bench import (
    bench_accounting,
    bench_checkpoint,
    bench_growth,
    bench_lookup,
    bench_many,
    bench_peers,
    bench_pooled,
    bench_serving_open,
    bench_train,
    harness,
    machine,
    peers,
    plot,
    raw_gather,
    results,
    targets,
    twins,
    worker,
    workspace,
)

pytestmark = pytest.mark.usefixtures("own_garbage")


def names_of(result):
    return {contender.name for contender in result.contenders}


def test_lookup_runs_and_all_contenders_give_the_same_rows():
    found, figures = bench_lookup.measure("tiny", 0, lambda *_: None)
    assert {"find", "find fresh", "find one key"} <= {result.name for result in found}
    assert all(bench_lookup.OURS in names_of(result) for result in found)
    assert all(np.isfinite(figure.value) and figure.value > 0 for figure in figures)
    (one,) = (result for result in found if result.name == "find one key")
    assert {c.n_calls for c in one.contenders} == {bench_lookup.ONE_KEY_CALLS}


def test_lookup_notices_wrong_rows():
    case = next(bench_lookup.cases("tiny"))
    space = case.setup.build()
    wrong = np.zeros((case.axes["batch"], case.axes["dim"]), np.float32)
    with pytest.raises(AssertionError, match="does not give the rows"):
        bench_lookup.check_same_rows(space, case, {"embstore find": lambda turn: wrong})


def test_train_runs_with_torch_where_it_is_installed():
    found, _ = bench_train.measure("tiny", 0, lambda *_: None)
    assert {"uniform", "zipf"} == {result.axes["distribution"] for result in found}
    has_torch = any(bench_train.TORCH in names_of(result) for result in found)
    assert has_torch == machine.has_module("torch")


def test_train_notices_another_optimizer(monkeypatch):
    pytest.importorskip("torch", reason="torch is not installed")
    case = next(bench_train.cases("tiny"))
    bench_train.check_same_learning(case.setup.build(), case, {})
    monkeypatch.setattr(bench_train, "torch_step", lambda *arguments: None)
    with pytest.raises(AssertionError, match="learn differently"):
        bench_train.check_same_learning(case.setup.build(), case, {})


def test_growth_runs_every_batch_once_on_both_tables():
    (result,), figures = bench_growth.measure("tiny", 0, lambda *_: None)
    assert [len(c.times_ns) for c in result.contenders] == [8, 8]
    assert len(figures) == 8
    assert sum(figure.target is not None for figure in figures) == 2
    assert bench_growth.tails([1, 1, 1, 5])["max"] == 5.0


def test_pooled_runs_and_gives_the_bags_of_torch():
    found, _ = bench_pooled.measure("tiny", 0, lambda *_: None)
    assert {(result.name, result.axes["pooling"]) for result in found} == {
        (name, pooling) for name in ("pooled", "pooled step") for pooling in ("sum", "mean")
    }
    offsets = bench_pooled.offsets_of(1000, seed=1)
    assert (offsets[0], offsets[-1]) == (0, 1000)
    sizes = np.diff(offsets)
    assert sizes.min() >= 1
    assert sizes.max() <= bench_pooled.MOST_IDS
    case = next(bench_pooled.cases("tiny"))
    wrong = {bench_pooled.OURS: lambda turn: [1.0], bench_pooled.TORCH: lambda turn: [2.0]}
    with pytest.raises(AssertionError, match="the bags differ"):
        bench_pooled.check_same_bags(None, case, wrong)


def test_many_reads_the_rows_of_each_feature_from_either_store():
    found, figures = bench_many.measure("tiny", 0, lambda *_: None)
    assert len(found) == 4
    assert sum(figure.target is not None for figure in figures) == 8
    case = next(bench_many.cases("tiny"))
    space = case.setup.build()
    for store in (space.each, space.shared):
        asked = space.keys_of(case, store)[0]
        assert len(asked) == bench_many.N_FEATURES
        assert sum(map(len, asked.values())) == case.axes["batch"]
        assert all(store[store.features[f]].contains(keys).all() for f, keys in asked.items())


def test_checkpoints_are_measured_and_training_goes_on_beside_them():
    found, figures = bench_checkpoint.measure("tiny", 0, lambda *_: None)
    assert [result.name for result in found] == ["save", "load", "training while a save runs"]
    assert [f.target for f in figures] == [
        targets.SAVE_NUMPY,
        targets.LOAD_NUMPY,
        targets.SAVING_STALL_MS,
        targets.SAVING_SPEED,
    ]
    alone, saving = [[1e6, 1e6, 2e6]], [[1e6, 61e6]]
    stall, speed = bench_checkpoint.saving_figures({}, alone, saving)
    assert stall.value == 60.0
    assert speed.value == pytest.approx(4 / 3 / 31)


def test_a_peer_that_is_not_there_is_told_and_passed_over(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    assert bench_peers.measure("tiny", 0, lambda *_: None) == ([], [])
    text = capsys.readouterr().out
    assert all(f"SKIPPED: {peer.title}: not built" in text for peer in peers.PEERS)
    (tmp_path / "tfra").mkdir()
    peers.TFRA.verdict.write_text("No module named 'tensorflow'\n")
    assert peers.TFRA.why_not() == "No module named 'tensorflow'"
    peers.TFRA.verdict.write_text("\n")
    assert peers.TFRA.why_not() == ""


@pytest.mark.slow
@pytest.mark.unsanitized
@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.name)
def test_peers_take_turns_and_learn_the_same(peer, monkeypatch):
    if why := peer.why_not():
        pytest.skip(f"{peer.title}: {why}")
    monkeypatch.setattr(bench_peers, "PEERS", (peer,))
    found, figures = bench_peers.measure("tiny", 0, lambda *_: None)
    assert all(f"{peer.title} " in " ".join(names_of(result)) for result in found)
    assert len(found) == (4 if peer is peers.TFRA else 3)
    assert all(np.isfinite(figure.value) and figure.value > 0 for figure in figures)


@pytest.mark.unsanitized
def test_accounting_runs_two_builds_or_says_that_there_is_one(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(machine, "WITHOUT_ACCOUNTING", tmp_path / "nowhere")
    assert bench_accounting.measure("tiny", 0, lambda *_: None) == ([], [])
    assert "SKIPPED: accounting: not built" in capsys.readouterr().out
    monkeypatch.setattr(machine, "WITHOUT_ACCOUNTING", worker.this_build())
    monkeypatch.setattr(machine, "why_no_accounting", lambda: "")
    found, figures = bench_accounting.measure("tiny", 0, lambda *_: None)
    assert len(found) == len(figures) == 4
    assert all(figure.target == targets.ACCOUNTING for figure in figures)


@pytest.mark.unsanitized
def test_memory_runs_through_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    assert program.main(["--quick", "--out", str(tmp_path), "memory"]) == 0
    text = capsys.readouterr().out
    assert "index + meta a live row at load 0.7" in text
    (path,) = tmp_path.glob("*.json")
    run = results.read(path)
    assert (run.concept, run.scale) == ("memory", "quick")
    by_name = {figure.name: figure.value for figure in run.figures if figure.axes.get("dim") == 16}
    full, grown, most = (
        by_name[f"index + meta a live row, {when}"]
        for when in ("at its load", "right after growth", "most while growing")
    )
    assert 28.0 < full < most
    assert 28.0 < grown < most


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["speed"], "there is no benchmark 'speed'"),
        (["--quick", "--small"], "not allowed with"),
        (["--against", "other=nowhere"], "no package embstore in 'nowhere'"),
    ],
)
def test_the_command_line_says_what_is_wrong(arguments, message, capsys):
    with pytest.raises(SystemExit):
        program.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.unsanitized
@pytest.mark.parametrize("dim", [1, 3, 16, 64, 100])
def test_the_raw_gather_copies_the_rows(dim):
    if raw_gather.compiler() is None:
        pytest.skip("there is no C compiler")
    rows = raw_gather.huge_empty((500, dim))
    rows[:] = np.random.default_rng(0).random((500, dim), np.float32)
    row_ids = np.random.default_rng(1).integers(0, 500, 300)
    share = raw_gather.huge_share(rows)
    assert share is None or 0.0 <= share <= 1.0
    for n_threads, is_streaming in ((1, False), (1, True), (3, False), (2, True)):
        gather = raw_gather.RawGather(rows, n_threads, is_streaming)
        out = workspace.aligned_empty((300, dim))
        assert gather.tune([row_ids], out, n_tries=1) in raw_gather.DISTANCES
        for n in (300, 2, 0):
            out[:] = -1.0
            gather(row_ids[:n], out)
            assert np.array_equal(out[:n], rows[row_ids[:n]])
            assert np.all(out[n:] == -1.0)


@pytest.mark.unsanitized
def test_another_build_takes_turns_in_its_own_process():
    with worker.Worker() as child:
        case = next(bench_growth.cases("tiny"))
        extra = twins.twins_of({"same": child}, "bench.bench_growth", "tiny", 0)(case, 0)
        result = harness.run_case(case, case.setup.build(), extra)
        names = [contender.name for contender in case.contenders]
        assert [c.name for c in result.contenders] == [*names, *(f"{n} [same]" for n in names)]
        assert {len(c.times_ns) for c in result.contenders} == {8}
        figures = harness.figures_of(case, result, extra)
        assert [figure.name for figure in figures] == [
            f"growth: {name} [same] against {name}" for name in names
        ]
        with pytest.raises(RuntimeError, match="ModuleNotFoundError"):
            child.ask("bench.nowhere", "nothing")
        assert child.ask("bench.worker", "resident_bytes") > 0


def test_every_benchmark_is_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    for concept, module in {"growth": bench_growth, "many": bench_many}.items():
        cases, figures = module.measure("tiny", 0, lambda *_: None)
        head = {"date": "2025-01-01T000000Z", "scale": "tiny", "label": "", "seed": 0}
        head |= {"concept": concept, "machine": {"id": concept}}
        results.write(results.Run(**head, cases=cases, figures=figures), tmp_path)
    assert plot.main([str(tmp_path), "--out", str(tmp_path / "plots")]) == 0
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert names == ["growth-tails.png", "many.png"]
    assert all((tmp_path / "plots" / name).stat().st_size > 1000 for name in names)


def test_opening_for_serving_is_measured_on_the_rows_that_were_made_up():
    found, figures = bench_serving_open.measure("tiny", 0, lambda *_: None)
    assert [result.name for result in found] == ["open", "find of 1", "find of 64", "find of 4096"]
    assert figures[0].target == targets.OPEN_FIRST_ROW_S
    assert found[0].notes["blocks_touched"] >= 1
    counts = np.array([3, 0, 5])
    keys = np.concatenate([bench_serving_open.keys_of(p, int(n)) for p, n in enumerate(counts)])
    assert len(np.unique(keys)) == 8
    assert np.array_equal(partition_of(keys), np.repeat([0, 1, 2], counts))
