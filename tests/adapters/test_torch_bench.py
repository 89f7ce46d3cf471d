"""The adapter's benchmarks, at sizes at which figures mean nothing; no test looks at a time."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install embstore[torch]")

# At the end, so that a sanitized build that comes first on the path stays the one under test.
sys.path.append(str(Path(__file__).resolve().parent.parent.parent))

import embstore as es  # noqa: E402
from bench import bench_scaling, bench_torch, dlrm, peers, plot, results, targets  # noqa: E402
from bench.scaling import clusters, model, shares, simulation  # noqa: E402

STAGES = {
    "dedup": 1.0,
    "keys": 2.0,
    "find": 3.0,
    "rows": 4.0,
    "dense": 10.0,
    "gradients": 5.0,
    "apply": 6.0,
}


def names_of(result):
    return [contender.name for contender in result.contenders]


def test_a_dlrm_step_runs_without_peers_and_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    told = []
    found, figures = bench_torch.measure("tiny", 0, lambda result, own: told.append(result.name))
    assert "SKIPPED: TorchRec 1.8.0: not built" in capsys.readouterr().out
    assert told == [result.name for result in found]
    assert len(found) == 2 * 3 + 4
    steps = [result for result in found if result.name == bench_torch.PARTS["step"]]
    assert {result.axes["optimizer"] for result in steps} == set(bench_torch.OPTIMIZERS)
    assert all(bench_torch.DENSE in names_of(result) for result in steps)
    met = {figure.target.name for figure in figures if figure.target is not None}
    assert met >= {target.name for target in targets.MODULE_COST.values()}
    assert met >= {target.name for target in targets.DLRM_BEST.values()}
    assert all(np.isfinite(figure.value) and figure.value > 0 for figure in figures)


def test_losses_that_differ_are_noticed():
    same = {"ours": [0.7, 0.6], "theirs": [0.7, 0.6 + 1e-6]}
    bench_torch.raise_unless_alike("here", same)
    with pytest.raises(AssertionError, match=r"losses of 'theirs' are \[0\.7, 0\.61\]"):
        bench_torch.raise_unless_alike("here", same | {"theirs": [0.7, 0.61]})


def test_ours_learns_as_torch_does_and_another_rate_is_seen(monkeypatch):
    case = next(bench_torch.cases("tiny"))
    axes = dict(case.axes) | bench_torch.CHECK

    def losses(name):
        space = replace(case.setup, n_rows=axes["n_rows"]).build()
        return dlrm.losses(bench_torch.sparse_of(space, name, 1), axes, 4, 0)

    found = {name: losses(name) for name in (bench_torch.OURS, bench_torch.BAGS)}
    bench_torch.raise_unless_alike("here", found)
    assert len(set(found[bench_torch.OURS])) == 4
    monkeypatch.setattr(bench_torch, "LEARNING_RATE", 0.06)
    found[bench_torch.OURS] = losses(bench_torch.OURS)
    with pytest.raises(AssertionError, match="losses of"):
        bench_torch.raise_unless_alike("here", found)


def test_the_dense_part_has_the_products_of_all_pairs():
    tower = dlrm.Tower(n_features=3, dim=2)
    assert tower.pairs.tolist() == [1, 2, 3, 6, 7, 11]
    assert tower.top[0].in_features == 2 + 6
    assert tower(torch.zeros(5, dlrm.N_DENSE), torch.zeros(5, 6)).shape == (5,)


@pytest.mark.slow
@pytest.mark.unsanitized
def test_torchrec_takes_turns_and_has_the_same_losses(monkeypatch):
    if why := peers.TORCHREC.why_not():
        pytest.skip(f"{peers.TORCHREC.title}: {why}")
    monkeypatch.setattr(bench_torch, "choices", lambda scale: [(16, 32, "zipf", 1, "adagrad")])
    monkeypatch.setattr(bench_torch, "module_cases", lambda *_: [])
    found, _ = bench_torch.measure("tiny", 0, lambda *_: None)
    assert set(bench_torch.PEERS.values()) <= set(names_of(found[0]))
    assert found[0].notes["best other"] in names_of(found[0])


def test_bytes_of_a_step_are_those_of_keys_rows_and_gradients():
    own = model.Work(n_ids=1000, dim=16, unique_share=0.5)
    assert own.sent_bytes(1) == {"keys": 0.0, "rows": 0.0, "gradients": 0.0}
    assert own.sent_bytes(4) == {"keys": 4500.0, "rows": 24_000.0, "gradients": 24_000.0}
    assert replace(own, value_bytes=2).sent_bytes(4)["rows"] == 12_000.0


def test_an_exchange_takes_as_long_as_its_slower_way():
    network = model.Network("two nodes", 4, 2, inside_rate=100.0, between_rate=10.0, latency_s=1.0)
    assert network.exchange_s(30.0) == pytest.approx(1.0 + 20.0 / 10.0)
    alone = replace(network, per_node=4)
    assert alone.exchange_s(30.0) == pytest.approx(1.0 + 30.0 / 100.0)
    one = model.stages(
        model.Work(10, 1, 1.0), replace(network, world_size=1), model.Costs(1, 1, 1, 0)
    )
    assert (one["keys"], one["rows"], one["gradients"]) == (0.0, 0.0, 0.0)


def test_a_quiet_simulation_is_the_model():
    expected = model.step_s(STAGES)
    assert expected == {"in a row": 31.0, "keys ahead": 28.0, "bound": 11.0}
    for is_ahead, how in ((False, "in a row"), (True, "keys ahead")):
        times = simulation.step_times(STAGES, 4, 6, is_ahead=is_ahead)
        assert times.tolist() == pytest.approx([expected[how]] * 5)
    short = STAGES | {"dense": 1.0}
    times = simulation.step_times(short, 4, 6)
    assert times.tolist() == pytest.approx([model.step_s(short)["keys ahead"]] * 5)


def test_unevenness_costs_and_a_slow_rank_holds_all_up():
    quiet = simulation.step_times(STAGES, 8, 50).mean()
    noisy = simulation.step_times(STAGES, 8, 50, simulation.Noise(0.1)).mean()
    more = simulation.step_times(STAGES, 64, 50, simulation.Noise(0.1)).mean()
    assert quiet < noisy < more
    slow = simulation.Noise(0.0, n_slow=1, slow=2.0)
    assert simulation.step_times(STAGES, 8, 5, slow).tolist() == pytest.approx([56.0] * 4)


def test_distinct_shares_are_those_of_the_keys():
    assert shares.distinct(np.array([3, 1, 3, 2**62])).tolist() == [3, 1, 2**62]
    keys, counts, to = shares.ask(np.array([3, 1, 3, 2**62]), 2)
    assert dict(zip(keys.tolist(), counts.tolist(), strict=True)) == {1: 1, 3: 2, 2**62: 1}
    assert to.sum() == 3
    assert shares.unique_share("uniform", 10, 1000) == pytest.approx(0.01)
    joint, imbalance = shares.owner_shares("uniform", 10, 1000, 2, 1)
    assert joint == pytest.approx(0.5)
    assert 1.0 <= imbalance <= 2.0


@pytest.mark.unsanitized
def test_scaling_is_measured_on_loopback_and_projected(tmp_path):
    found, figures = bench_scaling.measure("tiny", 0, lambda *_: None)
    by_name = {figure.name: figure for figure in figures}
    bytes_sent = by_name["sharded step on loopback: bytes that the module sent, over the model"]
    assert bytes_sent.value == pytest.approx(1.0, abs=0.25)  # a few hundred keys of one draw
    assert len([r for r in found if r.name == "sharded step on loopback"]) == 1
    plan = es.Table.plan(100_000_000, dim=64, optimizer=es.Adagrad())
    row = by_name["projected, 10 TB of rows, float32: a row with its index and record"]
    assert 64 * 8 < plan.resting_bytes / 100_000_000 < 64 * 8 + 64
    assert row.unit == "bytes"
    cards = by_name["projected, 10 TB of rows, float32: cards of 141 GB"]
    assert cards.value == pytest.approx(1e13 / (0.8 * clusters.HBM_BYTES))
    assert all(np.isfinite(figure.value) for figure in figures)
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    head = {"date": "2025-01-01T000000Z", "scale": "tiny", "label": "", "seed": 0}
    run = results.Run(
        concept="scaling", machine={"id": "test"}, cases=found, figures=figures, **head
    )
    assert results.read(results.write(run, tmp_path)).figures == figures
    assert plot.main([str(tmp_path), "--out", str(tmp_path / "plots")]) == 0
