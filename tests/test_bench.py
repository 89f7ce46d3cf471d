"""The benchmarks' own machinery: that it runs, counts and compares. No test looks at a time."""

import json
import socket
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

# At the end, so that a sanitized build that comes first on the path stays the one under test.
ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from bench import __main__ as program  # noqa: E402
from bench import compare, harness, keys, machine, results, stats, targets  # noqa: E402
from bench.report import aligned, case_lines, closing_lines, figure_lines, shown_ns  # noqa: E402
from bench.stats import Target  # noqa: E402

pytestmark = pytest.mark.usefixtures("own_garbage")

AXES = {"n_rows": 1000, "dim": 4, "batch": 8, "distribution": "uniform", "hit_rate": 1.0}


# ---- keys


@pytest.mark.parametrize("exponent", [0.5, 0.99, 1.0, 1.05, 2.0])
def test_zipf_ranks_have_the_probabilities_of_the_law(exponent):
    n, size = 200, 400_000
    ranks = keys.Zipf(n, exponent).sample(np.random.default_rng(1), size)
    assert ranks.min() >= 1
    assert ranks.max() <= n
    weights = np.arange(1, n + 1) ** -exponent
    p = weights / weights.sum()
    found = np.bincount(ranks, minlength=n + 1)[1:] / size
    assert np.all(np.abs(found - p) < 5 * np.sqrt(p * (1 - p) / size))


def test_zipf_of_one_rank_and_of_many():
    assert set(keys.Zipf(1).sample(np.random.default_rng(0), 10)) == {1}
    ranks = keys.Zipf(10**9).sample(np.random.default_rng(0), 100_000)
    assert ranks.min() == 1
    assert 10**6 < ranks.max() <= 10**9


@pytest.mark.parametrize(("n", "exponent"), [(0, 1.0), (10, 0.0), (10, float("nan"))])
def test_zipf_refuses_what_is_no_law(n, exponent):
    with pytest.raises(ValueError, match="Zipf"):
        keys.Zipf(n, exponent)


def test_keys_are_unique_and_depend_on_the_seed():
    found = keys.key_of(np.arange(100_000), seed=3)
    assert found.dtype == np.int64
    assert len(np.unique(found)) == len(found)
    assert 0.49 < (found < 0).mean() < 0.51
    assert not np.any(found == keys.key_of(np.arange(100_000), seed=4))


@pytest.mark.parametrize("distribution", keys.DISTRIBUTIONS)
def test_batches_are_reproducible_and_hold_the_keys_of_their_rows(distribution):
    axes = AXES | {"distribution": distribution}
    a, b = (keys.draw_batches(axes, 5, seed=2) for _ in range(2))
    assert a.row_ids.shape == a.keys.shape == (5, 8)
    assert np.array_equal(a.row_ids, b.row_ids)
    assert np.array_equal(a.keys, keys.key_of(a.row_ids, seed=2))
    assert a.row_ids.min() >= 0
    assert a.row_ids.max() < 1000
    assert not np.array_equal(a.row_ids, keys.draw_batches(axes, 5, seed=3).row_ids)


def test_popular_rows_are_scattered_by_a_permutation():
    for n in (1000, 20_000, 1_000_000):
        assert len(np.unique(np.arange(n) * keys.SCATTER % n)) == n


def test_the_hit_rate_is_kept_and_misses_have_no_row():
    axes = AXES | {"batch": 1000, "hit_rate": 0.25}
    batches = keys.draw_batches(axes, 20, seed=0)
    has_row = np.isin(batches.keys, keys.key_of(np.arange(1000)))
    assert has_row.mean() == pytest.approx(0.25, abs=0.02)
    assert np.array_equal(has_row, batches.keys == keys.key_of(batches.row_ids))


def test_an_unknown_distribution_is_an_error():
    with pytest.raises(ValueError, match="distribution"):
        keys.draw_batches(AXES | {"distribution": "normal"}, 1, seed=0)


# ---- statistics


def test_a_summary_is_what_numpy_says():
    samples = [5, 1, 4, 2, 3]
    assert stats.summarize(samples) == stats.Summary(5, median=3, min=1, p10=1, p90=5, max=5)
    assert stats.quantile(range(1, 1001), 0.999) == 999
    assert stats.quantile(range(1, 1001), 1.0) == 1000
    with pytest.raises(ValueError, match="no samples"):
        stats.summarize([])


def test_ratios_are_paired_by_round():
    assert stats.paired_ratios([2, 6], [1, 2]).tolist() == [2.0, 3.0]
    with pytest.raises(ValueError, match="rounds"):
        stats.paired_ratios([1, 2], [1])


@pytest.mark.parametrize(
    ("is_at_least", "value", "low", "high", "text"),
    [
        (True, 1.5, 1.4, 1.6, "meets"),
        (True, 1.0, 1.0, 1.0, "meets"),
        (True, 0.9, 0.8, 0.95, "misses by 10 %"),
        (True, 0.9, 0.8, 1.1, "misses by 10 % (within the spread)"),
        (True, 1.1, 0.9, 1.2, "meets (within the spread)"),
        (False, 0.9, 0.8, 0.95, "meets"),
        (False, 1.2, 1.1, 1.3, "misses by 20 %"),
        (False, 1.004, 1.003, 1.005, "misses by 0.4 %"),
        (False, 17.0, 16.0, 18.0, "misses, 17.0 times the bound"),
    ],
)
def test_a_verdict_says_how_far_the_bound_is(is_at_least, value, low, high, text):
    assert stats.verdict(Target("t", 1.0, is_at_least, {}), value, low, high) == text


# ---- harness


class Setup:
    """A setup that counts how often it was built."""

    def __init__(self):
        self.n_built = 0
        self.notes = {}

    def build(self):
        self.n_built += 1
        return self


def case_of(calls, setup, **changes):
    """Return a case of two contenders that append (name, turn) to `calls`."""

    def contender(name, **more):
        def build(workspace, case):
            return lambda turn: calls.append((name, turn))

        return harness.Contender(name, build, **more)

    case = harness.Case(
        name="case",
        axes=harness.axes_of(n_rows=1, batch=2),
        setup=setup,
        contenders=(contender("a", n_calls=2, is_ours=True), contender("b")),
        figures=(
            harness.Ratio("a", "b", Target("t", 1.0, True, {"n_rows": 9})),
            harness.Absolute("a", "ns", 1.0),
            harness.Ratio("a", "absent"),
        ),
        n_batches=10,
        n_warmups=2,
        rounds=7,
    )
    return replace(case, **changes)


def test_contenders_take_turns_at_different_batches():
    calls, setup = [], Setup()
    result = harness.run_case(case_of(calls, setup), setup)
    assert calls[:4] == [("a", -2), ("a", -1), ("b", 3), ("b", 4)]
    rounds = [calls[i : i + 2] for i in range(4, len(calls), 2)]
    assert [sorted(r) for r in rounds] == [[("a", i), ("b", 5 + i)] for i in range(7)]
    assert len({r[0][0] for r in rounds}) == 2, "the order is drawn anew for each round"
    assert result.rounds == 7
    assert [len(c.times_ns) for c in result.contenders] == [7, 7]


def test_a_change_of_threads_is_followed_by_a_call_that_is_not_timed():
    calls, setup = [], Setup()
    case = case_of(calls, setup, n_warmups=0, n_batches=0, rounds=3)
    two = replace(case.contenders[1], threads=2)
    result = harness.run_case(replace(case, contenders=(case.contenders[0], two)), setup)
    assert [len(c.times_ns) for c in result.contenders] == [3, 3]
    assert len(calls) > 6
    assert ("a", -1) in calls or ("b", -1) in calls
    harness.set_threads(1)


def test_a_case_ends_when_its_time_is_over():
    calls, setup = [], Setup()
    result = harness.run_case(case_of(calls, setup, max_seconds=0.0, rounds=1000), setup)
    assert result.rounds == harness.LEAST_ROUNDS


def test_neighbouring_cases_share_a_setup_and_figures_come_out():
    calls, setup, other = [], Setup(), Setup()
    cases = [case_of(calls, setup), case_of(calls, setup), case_of(calls, other)]
    told = []
    found, figures = harness.measure(cases, lambda result, figures: told.append(result.name))
    assert (setup.n_built, other.n_built) == (1, 1)
    assert told == ["case"] * 3
    assert [f.name for f in figures[:2]] == ["case: a against b", "case: a"]
    assert len(figures) == 6, "a contender that is not there gives no figure"
    assert figures[0].elsewhere() == {"n_rows": 9}
    a, b = found[0].contenders
    expected = stats.summarize([y / (x / 2) for x, y in zip(a.times_ns, b.times_ns, strict=True)])
    assert figures[0].value == pytest.approx(expected.median)
    assert figures[0].low <= figures[0].value <= figures[0].high


def test_a_failed_check_stops_the_case():
    def check(workspace, case, calls):
        assert sorted(calls) == ["a", "b"]
        raise AssertionError("they differ")

    setup = Setup()
    with pytest.raises(AssertionError, match="they differ"):
        harness.run_case(case_of([], setup, check=check), setup)


def test_axes_have_known_names():
    assert harness.axes_of(dim=3) == {"dim": 3}
    with pytest.raises(ValueError, match=r"unknown axes \['size'\]"):
        harness.axes_of(size=3)
    assert list(harness.product(dim=(1, 2), batch=3)) == [
        {"dim": 1, "batch": 3},
        {"dim": 2, "batch": 3},
    ]


# ---- results


def run_of(median, spread=0.0, **changes):
    """Return a synthetic run whose one contender takes about `median` ns."""
    times = [int(median * (1 + spread * x)) for x in (-1, -0.5, 0, 0.5, 1)]
    contender = results.ContenderResult("ours", 1, times)
    target = Target("fast", 2.0, True, {"n_rows": 5})
    axes = {"n_rows": 5, "batch": 10}
    figure = results.Figure("ratio", axes, 1e3 / median, 900 / median, 1.1e3 / median, "x", target)
    run = results.Run(
        concept="lookup",
        date="2025-01-01T000000Z",
        scale="quick",
        label="",
        seed=0,
        machine={"id": "0123abcd", "n_cores": 2, "commit": "a"},
        cases=[results.CaseResult("find", axes, 5, [contender], {"load": 0.7})],
        figures=[figure],
    )
    return replace(run, **changes)


def test_a_result_survives_the_file(tmp_path):
    run = run_of(100.0)
    path = results.write(run, tmp_path / "new")
    assert path.name == "lookup-2025-01-01T000000Z-0123abcd.json"
    assert results.read(path) == run
    stored = json.loads(path.read_text())
    assert stored["schema"] == results.SCHEMA
    assert stored["cases"][0]["contenders"][0]["summary_ns"]["median"] == 100.0
    assert stored["figures"][0]["verdict"] == "meets"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 99, "schema 99"),
        (("cases",), {}, "'cases' is a dict"),
        (("cases", 0, "rounds"), "3", "case 0: 'rounds' is a str"),
        (("cases", 0, "contenders", 0, "times_ns"), None, "'times_ns' is a NoneType"),
        (("figures", 0, "value"), "fast", "figure 0: 'value' is a str"),
        (("figures", 0, "target"), {"name": "t"}, "'bound' is missing"),
        (("machine",), [], "'machine' is a list"),
    ],
)
def test_a_result_of_another_schema_is_refused(path, value, message):
    stored = results.to_json(run_of(100.0))
    place = stored
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        results.from_json(stored)


def test_the_facts_name_no_machine_and_no_path():
    facts = machine.facts()
    text = json.dumps(facts)
    assert len(facts["id"]) == 8
    for name in ("cpu_model", "n_cores", "caches", "huge_pages", "kernel", "python", "numpy"):
        assert facts[name], name
    for secret in (socket.gethostname(), str(ROOT), str(Path.home()), sys.prefix):
        assert len(secret) < 4 or secret not in text


def test_a_busy_machine_and_what_it_lacks_are_told(monkeypatch):
    monkeypatch.setattr(machine, "lacks", lambda: {"torch": "", "tfra": ""})
    assert list(machine.warnings({"load_average": [0.0], "huge_pages": {}})) == []
    monkeypatch.setattr(machine, "lacks", lambda: {"torch": "not installed", "tfra": ""})
    busy = {"load_average": [3.0], "huge_pages": {"enabled": "never"}}
    assert len(list(machine.warnings(busy))) == 3
    assert set(machine.lacks()) == {"torch", "tfra"}


def test_a_report_shows_every_part():
    run = run_of(100.0)
    text = "\n".join([*case_lines(run.cases[0]), *figure_lines(run.figures)])
    assert "find: n_rows=5 batch=10, 5 rounds" in text
    assert "100 ns" in text
    assert "10.00x" in text
    assert list(aligned([("a", "b"), ("long", "1")])) == ["a     b", "long  1"]
    assert [shown_ns(x) for x in (9.5, 1500, 2e6, 3e9)] == ["9.5 ns", "1.5 us", "2 ms", "3 s"]


def test_the_closing_table_has_every_target_measured_or_not():
    measured, other = targets.ROWS[0].target, Target("of tomorrow", 1.0, True, {})
    figure = run_of(100.0).figures[0]
    run = run_of(100.0)
    run = replace(run, figures=[replace(figure, target=target) for target in (measured, other)])
    lines = list(closing_lines([run], {"tfra": "not built", "torch": ""}))
    assert len(lines) == 1 + len(targets.ROWS) + 1
    (line,) = (x for x in lines if x.startswith(measured.name))
    assert "10.00x" in line
    assert "meets" in line
    assert "the target is meant at dim=64 n_rows=10,000,000" in line
    assert lines[-1].startswith("of tomorrow")
    (tfra,) = (x for x in lines if x.startswith(targets.FIND_TFRA.name))
    assert "not measured  not built" in tfra
    (growth,) = (x for x in lines if x.startswith(targets.GROWTH_MAX.name))
    assert "not asked for: python -m bench growth" in growth
    (raw,) = (x for x in lines if x.startswith(targets.FIND_RAW[64].name))
    assert "no figure" in raw


def test_every_target_has_its_row_and_every_row_a_benchmark():
    named = [value for value in vars(targets).values() if isinstance(value, Target | dict)]
    named = [t for v in named for t in (v.values() if isinstance(v, dict) else [v])]
    found = [row.target for row in targets.ROWS]
    assert [t for t in named if isinstance(t, Target) and t not in found] == []
    assert len({target.name for target in found}) == len(found)
    assert {row.concept for row in targets.ROWS} <= set(program.CONCEPTS)
    assert {row.needs for row in targets.ROWS} - {""} <= set(machine.lacks())


# ---- compare


def test_compare_calls_a_change_what_is_beyond_the_spread(tmp_path, capsys):
    a, b = run_of(1000.0, spread=0.01), run_of(500.0, spread=0.01, date="2025-01-02T000000Z")
    files = [str(results.write(run, tmp_path)) for run in (a, b)]
    assert compare.main(files) == 0
    text = capsys.readouterr().out
    assert "find: n_rows=5 batch=10" in text
    assert "-50.0 %" in text, "the time"
    assert "+100.0 %" in text, "the figure"
    assert "WARNING" not in text


def test_compare_calls_noise_what_is_within_the_spread():
    text = "\n".join(compare.compare(run_of(1000.0, spread=0.2), run_of(1100.0, spread=0.2)))
    assert "1.100" in text
    assert text.count("noise") == 2


def test_compare_warns_of_another_machine_and_scale():
    other = run_of(100.0, scale="full", machine={"id": "ffff0000", "n_cores": 8, "commit": "b"})
    text = "\n".join(compare.compare(run_of(100.0), other))
    for name in ("id", "n_cores", "scale"):
        assert f"WARNING: {name} differs" in text
    assert "commit" not in text


def test_the_targets_of_results_are_shown_without_a_run(tmp_path, capsys):
    results.write(run_of(100.0), tmp_path)
    assert program.main(["--show", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert targets.FIND_RAW[64].name in text
    assert "not asked for: python -m bench train" in text


def test_compare_needs_something_in_common(tmp_path, capsys):
    a = results.write(run_of(1.0), tmp_path)
    b = results.write(run_of(1.0, concept="train"), tmp_path)
    with pytest.raises(SystemExit):
        compare.main([str(a), str(b)])
    assert "nothing in common" in capsys.readouterr().err
    assert sorted(results.latest(tmp_path)) == ["lookup", "train"]
