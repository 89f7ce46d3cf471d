"""The adapters' benchmarks beside their frameworks, at sizes at which figures mean nothing.

The frameworks run in processes of their own; no test looks at a time.
"""

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

# At the end, so that a sanitized build that comes first on the path stays the one under test.
sys.path.append(str(Path(__file__).resolve().parent.parent.parent))

from bench import bench_frameworks as bench
from bench import peers, targets
from bench.results import CaseResult, ContenderResult

for package in ("tensorflow", "jax", "optax", "flax"):
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed: make test-adapters", allow_module_level=True)


@pytest.mark.unsanitized
def test_frameworks_run_without_tfra_and_say_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    monkeypatch.setattr(bench, "LOGS", tmp_path)
    monkeypatch.setattr(bench, "FRAMEWORKS", (bench.TENSORFLOW, bench.JAX))
    monkeypatch.setattr(bench, "choices", lambda scale: [(500, 16, bench.SMALL_BATCH)])
    told = []
    found, figures = bench.measure("tiny", 0, lambda result, own: told.append(result.name))
    assert "SKIPPED: TFRA 0.8.1: not built" in capsys.readouterr().out
    assert told == [result.name for result in found]
    assert len(found) == 2 * 3
    for result in found:
        title, _, kind = result.name.partition(", ")
        (framework,) = (f for f in bench.FRAMEWORKS if f.title == title)
        (asked,) = (k for k in framework.kinds.values() if k.title == kind)
        assert tuple(contender.name for contender in result.contenders) == asked.names
        assert result.notes["native_ops"] is True
    met = {figure.target.name for figure in figures if figure.target is not None}
    asked = (*targets.TF_OP_US.values(), *targets.JAX_FORWARD_US.values())
    assert met == {target.name for target in asked}
    assert all(np.isfinite(figure.value) for figure in figures)


@pytest.mark.slow
@pytest.mark.unsanitized
def test_keras_runs_on_a_backend(monkeypatch, tmp_path):
    backend = bench.FRAMEWORKS[-1]
    if why := backend.why_not():
        pytest.skip(f"{backend.title}: {why}")
    monkeypatch.setattr(peers, "FOLDER", tmp_path)
    monkeypatch.setattr(bench, "LOGS", tmp_path)
    monkeypatch.setattr(bench, "FRAMEWORKS", (backend,))
    found, _ = bench.measure("tiny", 0, lambda *_: None)
    assert [result.name for result in found] == [f"{backend.title}, train_on_batch"] * 2
    assert backend.environment["KERAS_BACKEND"] in found[0].notes


@pytest.mark.slow
@pytest.mark.unsanitized
def test_tfra_takes_turns_and_learns_the_same(monkeypatch, tmp_path):
    if why := peers.TFRA.why_not():
        pytest.skip(f"{peers.TFRA.title}: {why}")
    monkeypatch.setattr(bench, "LOGS", tmp_path)
    monkeypatch.setattr(bench, "FRAMEWORKS", (bench.TENSORFLOW,))
    found, figures = bench.measure("tiny", 0, lambda *_: None)
    last = [result.contenders[-1].name for result in found]
    assert last == [bench.TFRA_FIND, bench.TFRA_FIND, bench.TFRA_STEP] * 2
    met = {figure.target.name for figure in figures if figure.target is not None}
    assert met >= {target.name for target in targets.STEP_TFRA.values()}


def test_a_peer_that_nobody_knows_is_refused(capsys):
    assert peers.main(["tfra", "dynamo"]) == 2
    assert "there are no peers ['dynamo']" in capsys.readouterr().err


def test_a_framework_that_is_missing_is_named():
    absent = replace(bench.JAX, needs=("jax", "no_such_framework"))
    assert absent.why_not() == "without no_such_framework: make bench-frameworks"


def test_rows_that_differ_are_noticed():
    rows = np.ones((3, 2))
    bench.raise_unless_alike("here", {"ours": rows, "theirs": (rows + 1e-6).tolist()})
    with pytest.raises(AssertionError, match="here: 'theirs' does not have the rows of 'ours'"):
        bench.raise_unless_alike("here", {"ours": rows, "theirs": rows + 0.01})
    with pytest.raises(AssertionError, match="does not have the rows"):
        bench.raise_unless_alike("here", {"ours": rows, "theirs": rows[:2]})


def test_a_check_asks_who_does_not_sum_over_distinct_ids_alone():
    asked = []

    class Stub:
        def ask(self, module, function, kind, name, axes, seed, has_duplicates):
            asked.append((name, has_duplicates))
            return [[1.0 if has_duplicates or name != bench.KERAS_STEP else 2.0]]

    case = next(bench.cases(bench.TENSORFLOW, Stub(), "tiny"))
    check = bench.check_with(bench.TENSORFLOW, Stub(), "step", None)
    names = bench.TENSORFLOW.kinds["step"].names
    with pytest.raises(AssertionError, match=f"'{bench.KERAS_STEP}' does not have the rows"):
        check(None, case, dict.fromkeys(names))
    assert [name for name, has_duplicates in asked if not has_duplicates] == [
        bench.FUSED,
        bench.KERAS_STEP,
    ]
    assert (bench.KERAS_STEP, True) not in asked


def test_a_difference_is_taken_round_by_round_for_small_batches():
    contenders = [
        ContenderResult(bench.GATHER, 2, [20_000, 40_000, 60_000]),
        ContenderResult(bench.FIND_OP, 2, [30_000, 46_000, 68_000]),
    ]
    title = bench.TENSORFLOW.kinds["graph"].title
    small = CaseResult(f"TensorFlow, {title}", {"batch": bench.SMALL_BATCH}, 3, contenders)
    (figure,) = bench.difference_figures(small)
    assert (figure.value, figure.low, figure.high, figure.unit) == (4.0, 3.0, 5.0, "us")
    assert figure.target == targets.TF_OP_US[True]
    assert bench.difference_figures(replace(small, axes={"batch": 16_384})) == []
    assert bench.difference_figures(replace(small, contenders=contenders[:1])) == []
