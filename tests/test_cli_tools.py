"""top, explain and diff: beside plain numpy, the engine's own verdicts, and odd checkpoints."""

import argparse
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from checkpoint_kit import changed_table, environment, files_of, in_order, random_rows, save_delta
from cli_kit import EXTREMES, document, extreme_table, memory_table, refused, run, save, widened
from reference.admission import Bloom
from reference.floats import row_norm

import embstore as es
from embstore import checkpoint
from embstore.cli import main
from embstore.cli._rows import norms, rounded_bfloat16
from embstore.cli.explain import explained, key_of

DTYPES = ["float32", "float16", "bfloat16"]


@pytest.fixture
def small_blocks(monkeypatch):
    """Make blocks of a few rows and files of a few blocks."""
    monkeypatch.setattr("embstore.checkpoint.writer.BLOCK_BYTES", 300)
    monkeypatch.setattr("embstore.checkpoint.writer.FILE_BYTES", 1500)


# Numbers of rows.


@pytest.mark.parametrize("dim", [1, 2, 15, 16, 17, 100])
def test_norms_are_those_of_the_engine(dim):
    values = np.random.default_rng(dim).normal(size=(50, dim)).astype(np.float32)
    assert norms(values).tobytes() == row_norm(values).tobytes()


def test_rounding_to_bfloat16_is_that_of_the_engine():
    values = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    values[0] = [np.inf, -np.inf, 0.0, -0.0]
    table = es.Table(4, dtype="bfloat16", on_nonfinite="allow")
    table.assign(np.arange(200), values)
    assert rounded_bfloat16(values).tobytes() == table.find(np.arange(200)).tobytes()


# top


def expected_top(table, by, n):
    rows = table.rows
    measures = {
        "freq": rows.freq.astype(np.float64),
        "norm": row_norm(widened(rows.values)),
        "age": np.maximum(0, table.state["step"] - rows.step),
    }
    pairs = sorted(zip((-measures[by]).tolist(), rows.keys.tolist(), strict=True))
    return [key for _, key in pairs[:n]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("by", ["freq", "norm", "age"])
def test_top_rows(capsys, tmp_path, small_blocks, dtype, by):
    table = memory_table(300, dtype=dtype, dim=3)
    path = save(tmp_path / "c", user=table)
    found = document(capsys, "top", path, "--by", by, "-n", 7)
    assert [row["key"] for row in found["rows"]] == expected_top(table, by, 7)
    assert (found["table"], found["by"], found["step"]) == ("user", by, 40)
    assert list(found["rows"][0]) == ["key", "freq", "norm", "age", "step"]
    for row in found["rows"]:
        at = int(np.flatnonzero(table.rows.keys == row["key"])[0])
        assert np.float32(row["norm"]) == row_norm(widened(table.rows.values))[at]
        assert (row["freq"], row["step"]) == (table.rows.freq[at], table.rows.step[at])
    code, out, _ = run(capsys, "top", path, "--by", by)
    assert code == 0
    assert len(out.splitlines()) == 21


def test_top_of_few_rows_and_of_none(capsys, tmp_path):
    path = save(tmp_path / "c", few=extreme_table(), none=memory_table(0, 0))
    found = document(capsys, "top", path, "--by", "age", "--table", "few")
    assert sorted(row["key"] for row in found["rows"]) == sorted(EXTREMES)
    assert document(capsys, "top", path, "--by", "freq", "--table", "none")["rows"] == []


def test_rows_that_are_not_numbers_come_first(capsys, tmp_path):
    table = memory_table(9)
    table.rows.values[4] = np.nan
    table.rows.values[2] = np.inf
    with pytest.warns(es.EmbstoreWarning):
        path = save(tmp_path / "c", t=table)
    rows = document(capsys, "top", path, "--by", "norm", "-n", 3)["rows"]
    assert {row["norm"] for row in rows[:2]} == {"nan", "inf"}
    assert run(capsys, "top", path, "--by", "norm")[0] == 0


def test_a_table_must_be_chosen(capsys, tmp_path):
    path = save(tmp_path / "c", user=memory_table(), item=memory_table())
    assert "holds 2 tables ('user', 'item'): choose one by --table" in refused(
        capsys, "top", path, "--by", "freq"
    )
    assert "no table 'shop'; it has ['item', 'user']" in refused(
        capsys, "explain", path, 1, "--table", "shop"
    )
    assert "0 tables (none)" in refused(capsys, "top", save(tmp_path / "d"), "--by", "freq")


def test_an_older_generation(capsys, tmp_path):
    for n in (5, 9):
        checkpoint.save_tables(tmp_path / "c", {"t": memory_table(n)}, keep_last=2)
    for generation, n in ((1, 5), (2, 9)):
        arguments = ["top", tmp_path / "c", "--by", "freq", "--generation", generation]
        assert len(document(capsys, *arguments)["rows"]) == n
    assert "has no generation 7" in refused(
        capsys, "top", tmp_path / "c", "--by", "freq", "--generation", 7
    )


# explain


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("7", 7),
        ("-7", -7),
        ("0x7", 7),
        ("0xFFFFFFFFFFFFFFFF", -1),
        ("0x8000000000000000", -(2**63)),
        (str(-(2**63)), -(2**63)),
        (str(2**63 - 1), 2**63 - 1),
        (str(2**64 - 1), -1),
    ],
)
def test_words_of_keys(text, key):
    assert key_of(text) == key


@pytest.mark.parametrize(
    "text", ["", "x", "1.5", "0x", "-0x1", "0x10000000000000000", str(2**64), str(-(2**63) - 1)]
)
def test_words_that_are_no_keys(text):
    with pytest.raises(argparse.ArgumentTypeError):
        key_of(text)


@pytest.mark.parametrize("dtype", DTYPES)
def test_explain_a_row(capsys, tmp_path, dtype):
    slots = (("exp_avg", 3), ("exp_avg_sq", 3))
    table = extreme_table(dtype, dim=3, slots=slots)
    table.pins = np.array([-(2**63), 12345])
    path = save(tmp_path / "c", t=table)
    rows = table.rows
    for at, key in enumerate(rows.keys.tolist()):
        found = document(capsys, "explain", path, key)
        row = found["row"]
        assert (found["key"], found["status"]) == (key, "live")
        assert found["hex"] == f"0x{key % 2**64:016x}"
        assert (row["freq"], row["step"]) == (rows.freq[at], rows.step[at])
        assert row["age"] == 40 - rows.step[at]
        assert row["values"] == widened(rows.values)[at].tolist()
        assert list(row["slots"].values()) == [
            rows.slots[at, :3].tolist(),
            rows.slots[at, 3:].tolist(),
        ]
        assert found["is_pinned"] == (key == -(2**63))
        assert (tmp_path / "c" / row["file"]).exists()
        assert (row["block"], row["generation"]) == (0, 1)
    text = run(capsys, "explain", path, -(2**63))[1]
    for words in (
        "live, pinned",
        "exp_avg_sq:",
        "the table has no eviction policy",
        "block 0 of g0",
    ):
        assert words in text


def test_explain_a_key_that_is_not_there(capsys, tmp_path):
    path = save(tmp_path / "c", t=extreme_table())
    found = document(capsys, "explain", path, 77)
    assert (found["status"], found["row"], found["eviction"]) == ("unknown", None, None)
    assert "any key is admitted when it is seen" in found["admission"]


def counter_table():
    table = es.Table(2, admission=es.CounterAdmission(4, candidate_ttl=64))
    table.find_or_insert([1, 2, 2, 3, 3, 3, 4, 4, 4, 4], step=30)
    table.find_or_insert([1], step=50)
    return table


def test_explain_candidates(capsys, tmp_path):
    table = counter_table()
    table.save(tmp_path / "c")
    pending = table.candidates()
    for key, count, epoch in zip(pending.keys, pending.counts, pending.epochs, strict=True):
        found = document(capsys, "explain", tmp_path / "c", key)
        candidate = found["candidate"]
        assert found["status"] == "pending"
        assert (candidate["count"], candidate["epoch"]) == (count, epoch)
        assert f"seen {count} times of 4; {4 - count} more to go" in found["admission"]
        # It is there until the step that is named, and gone from then on.
        for step, is_there in (
            (candidate["expires_at_step"] - 1, True),
            (candidate["expires_at_step"], False),
        ):
            with es.Table.load(tmp_path / "c") as later:
                later.find_or_insert([99], step=step)
                assert (key in later.candidates().keys) == is_there
    assert document(capsys, "explain", tmp_path / "c", 4)["status"] == "live"
    assert "seen 4 times" in document(capsys, "explain", tmp_path / "c", 55)["admission"]
    assert "forgotten from step" in run(capsys, "explain", tmp_path / "c", 2)[1]


@pytest.mark.parametrize(("min_count", "fpr"), [(2, 0.05), (4, 0.05), (16, 0.05), (2, 1e-4)])
def test_explain_the_bloom_filter(capsys, tmp_path, min_count, fpr):
    capacity = 3000 if fpr > 1e-4 else 200_000
    policy = es.BloomAdmission(min_count, capacity, fpr)
    assert fpr > 1e-4 or policy.n_hashes > 7  # more than one word of hash bits
    table = es.Table(2, admission=policy)
    random = np.random.default_rng(min_count)
    for step in range(3):
        table.find_or_insert(random.integers(-2000, 2000, 3000), step=step)
    table.save(tmp_path / "c")
    model = Bloom(policy)
    with checkpoint.load_tables(tmp_path / "c") as loaded:
        (saved,) = loaded.tables.values()
        data = np.concatenate(list(saved.bloom())).reshape(-1, 64)
        shifts = np.arange(0, 8, policy.cell_bits, dtype=np.uint8)
        cells = data[:, :, None] >> shifts & np.uint8(2**policy.cell_bits - 1)
        model.cells = cells.reshape(len(data), -1).astype(np.int64)
        keys = np.concatenate([random.integers(-3000, 3000, 200), EXTREMES]).astype(np.int64)
        estimates = model.counts_before(keys)
        assert len(set(estimates.tolist())) > 1
        for key, estimate in zip(keys.tolist(), estimates.tolist(), strict=True):
            found = explained(saved, key)
            assert found["bloom"]["estimate"] == estimate
            if found["status"] == "unknown":
                assert f"{max(0, min_count - estimate)} more to go" in found["admission"]
    assert "bloom filter: estimate" in run(capsys, "explain", tmp_path / "c", -5)[1]


POLICIES = [
    es.StepEviction(20),
    es.L2Eviction(0.02, min_age=10),
    es.FrequencyEviction(3, min_age=5),
    (es.StepEviction(25) | es.L2Eviction(0.015, min_age=3)) & es.FrequencyEviction(4, min_age=0),
    es.StepEviction(25) | es.CapacityEviction(),
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_explain_what_would_be_evicted(capsys, tmp_path, policy, dtype):
    table = es.Table(3, dtype=dtype, eviction=policy, max_rows=10_000)
    random = np.random.default_rng(0)
    for step in range(40):
        table.find_or_insert(random.zipf(1.5, 20), step=step)
    table.pin([1])
    report = table.evict(dry_run=True, return_rows=True)
    table.save(tmp_path / "c")
    goes = set(report.rows.keys.tolist())
    (rows,) = table.export()
    assert 0 < len(goes) < len(rows)
    with checkpoint.load_tables(tmp_path / "c") as loaded:
        (saved,) = loaded.tables.values()
        for key in rows.keys.tolist():
            assert explained(saved, key)["eviction"]["would_evict"] == (key in goes), key
    key = goes.pop()
    found = document(capsys, "explain", tmp_path / "c", key)["eviction"]
    assert found["selects"] is True
    text = run(capsys, "explain", tmp_path / "c", key)[1]
    assert "it would be evicted" in text
    assert "evicts: " in text


def test_how_far_a_row_is_from_the_threshold(capsys, tmp_path):
    table = es.Table(1, eviction=es.StepEviction(10), initializer=es.Constant(2.0))
    table.find_or_insert([7], step=0)
    table.find_or_insert([8], step=13)
    table.save(tmp_path / "c")
    (condition,) = document(capsys, "explain", tmp_path / "c", 7)["eviction"]["conditions"]
    assert condition == {
        "quantity": "age",
        "value": 13,
        "sign": ">",
        "threshold": 10,
        "holds": True,
        "distance": 3,
    }
    assert "age 13 > 10 by 3" in run(capsys, "explain", tmp_path / "c", 7)[1]
    assert "age 0 > 10 is not so, by 10" in run(capsys, "explain", tmp_path / "c", 8)[1]


def test_explain_reads_only_the_files_of_the_partition(capsys, tmp_path, small_blocks):
    table = memory_table(200, 60, bloom_blocks=1)
    path = save(tmp_path / "c", t=table)
    key = int(table.rows.keys[0])
    mine = document(capsys, "explain", path, key)["row"]["file"]
    names = [file["name"] for file in checkpoint.inspect(path)["files"] if file["kind"] == "rows"]
    assert len(names) > 3
    for name in set(names) - {mine}:
        file = tmp_path / "c" / name
        file.write_bytes(bytes(len(file.read_bytes())))
    assert document(capsys, "explain", path, key)["status"] == "live"
    (tmp_path / "c" / mine).write_bytes(bytes((tmp_path / "c" / mine).stat().st_size))
    assert "checksum" in refused(capsys, "explain", path, key)


def test_explain_a_row_of_a_delta(capsys, tmp_path):
    table = memory_table(200, 5)
    first = checkpoint.save_tables(tmp_path / "c", {"t": table})
    later, changes = changed_table(table, 40, 20, np.random.default_rng(0))
    save_delta(tmp_path / "c", {"t": changes}, first.digest)
    written = set(changes.rows.keys.tolist())
    for key in later.rows.keys[::11].tolist():
        found = document(capsys, "explain", tmp_path / "c", key)
        assert found["row"]["generation"] == (2 if key in written else 1)
        at = int(np.flatnonzero(later.rows.keys == key)[0])
        assert found["row"]["values"] == later.rows.values[at].tolist()
    gone = int(changes.deleted[0])
    assert document(capsys, "explain", tmp_path / "c", gone)["status"] == "unknown"


# diff


def expected_difference(one, other):
    """Return the numbers of a comparison of two MemoryTables, key by key."""
    a, b = (
        {
            int(key): (widened(values[None])[0], *others)
            for key, values, *others in zip(
                t.rows.keys, t.rows.values, t.rows.slots, t.rows.freq, t.rows.step, strict=True
            )
        }
        for t in (one, other)
    )
    both = [key for key in a if key in b]
    changed = {
        name: sum(a[k][i].tobytes() != b[k][i].tobytes() for k in both)
        for i, name in enumerate(("values", "slots", "freq", "step"))
    }
    distances = [a[k][0].astype(np.float64) - b[k][0] for k in both] or [np.zeros(1)]
    return {
        "n_both": len(both),
        "n_only_a": len(a) - len(both),
        "n_only_b": len(b) - len(both),
        "n_changed": sum(
            any(x.tobytes() != y.tobytes() for x, y in zip(a[k], b[k], strict=True)) for k in both
        ),
        "n_changed_parts": changed,
        "max_abs_difference": float(np.abs(distances).max()),
        "l2_difference": pytest.approx(float(np.sqrt(np.square(distances).sum()))),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 40, 400])
def test_diff_beside_a_dict(capsys, tmp_path, monkeypatch, dtype, n):
    random = np.random.default_rng(n)
    one = memory_table(n, 30, dtype=dtype, bloom_blocks=1)
    other, _ = changed_table(one, n // 3 + 1, n // 4, random)
    freq = np.where(random.random(len(other.rows)) < 0.1, 1, other.rows.freq).astype(np.uint32)
    other = replace(other, rows=replace(other.rows, freq=freq))
    monkeypatch.setattr("embstore.checkpoint.writer.BLOCK_BYTES", 300)
    a = save(tmp_path / "a", t=one)
    monkeypatch.setattr("embstore.checkpoint.writer.BLOCK_BYTES", 1100)
    b = save(tmp_path / "b", t=other)
    found = document(capsys, "diff", a, b, "--limit", 5, code=1)
    (each,) = found["tables"]
    rows = each["rows"]
    expected = expected_difference(one, other)
    assert {name: rows[name] for name in expected} == expected
    only_a = in_order(np.setdiff1d(one.rows.keys, other.rows.keys)).tolist()
    assert rows["only_a"] == only_a[:5]
    assert len(rows["changed"]) == min(5, rows["n_changed"])
    assert each["state"] == {"n_train_steps": [7, 8]}
    assert run(capsys, "diff", a, b)[0] == 1
    assert run(capsys, "diff", b, b)[:2] == (0, f"equal: 1 tables, {len(other.rows):,} rows\n")
    assert document(capsys, "diff", a, a)["is_equal"] is True


def test_diff_sees_what_is_no_row(capsys, tmp_path):
    table = memory_table(20, 6, bloom_blocks=1)
    a = save(tmp_path / "a", t=table)
    pending = replace(table.pending, counts=table.pending.counts + np.uint32(1))
    bloom = table.bloom.copy()
    bloom[7, 3] ^= 1
    changes = {
        "pending": {"pending": replace(pending)},
        "bloom": {"bloom": bloom},
        "pins": {"pins": table.pins[1:]},
        "config": {"config": {**table.config, "dim": 3}},
    }
    for name, change in changes.items():
        b = save(tmp_path / name, t=replace(table, **change))
        (each,) = document(capsys, "diff", a, b, code=1)["tables"]
        assert each["rows"]["n_changed"] == 0
        assert {
            "pending": each["candidates"]["n_changed"] == 6,
            "bloom": each["n_filter_bytes"] == 1,
            "pins": each["n_pins"] == 1,
            "config": each["config"] == {"dim": [2, 3]},
        }[name]


def test_diff_of_tables_by_name(capsys, tmp_path):
    table = memory_table(9)
    a = save(tmp_path / "a", user=table, item=table)
    b = save(tmp_path / "b", user=table, shop=table)
    found = document(capsys, "diff", a, b, code=1)
    assert (found["tables_only_a"], found["tables_only_b"]) == (["item"], ["shop"])
    assert document(capsys, "diff", a, b, "--table", "user")["is_equal"]
    assert "'shop'" in refused(capsys, "diff", a, b, "--table", "shop")
    out = run(capsys, "diff", a, b)[1]
    assert f"table 'item' is only in {a}" in out
    # Two tables alone are compared whatever they are called.
    c, d = save(tmp_path / "c", one=table), save(tmp_path / "d", other=table)
    assert document(capsys, "diff", c, d)["is_equal"]


def test_diff_of_extra(capsys, tmp_path):
    tables = {"t": memory_table(3)}
    extras = [{"a": np.arange(3), "b": 1}, {"a": np.arange(3), "b": True}]
    for name, extra in zip("ab", extras, strict=True):
        checkpoint.save_tables(tmp_path / name, tables, extra=extra)
    assert document(capsys, "diff", tmp_path / "a", tmp_path / "b", code=1)["extra"] == ["b"]


def test_diff_of_other_shapes(capsys, tmp_path):
    table = memory_table(12, dtype="float32")
    halves = table.rows.values.astype(np.float16)
    wide = replace(table, rows=replace(table.rows, values=halves.astype(np.float32)))
    half = replace(table, dtype="float16", rows=replace(table.rows, values=halves))
    other = memory_table(12, dim=4)
    a, b, c = (save(tmp_path / n, t=t) for n, t in (("a", wide), ("b", half), ("c", other)))
    (each,) = document(capsys, "diff", a, b, code=1)["tables"]
    assert each["shape"] == {"dtype": ["float32", "float16"]}
    assert each["rows"]["n_changed_parts"]["values"] == 0  # the same numbers
    (each,) = document(capsys, "diff", a, c, code=1)["tables"]
    assert each["rows"]["n_changed_parts"]["values"] == 12
    assert "dim" in each["shape"]
    assert run(capsys, "diff", a, c)[0] == 1


def test_diff_where_numbers_are_not_finite(capsys, tmp_path):
    table = memory_table(5)
    table.rows.values[1] = np.nan
    other = replace(table, rows=random_rows(table, table.rows.keys, np.random.default_rng(1)))
    with pytest.warns(es.EmbstoreWarning):
        a = save(tmp_path / "a", t=table)
    b = save(tmp_path / "b", t=other)
    assert document(capsys, "diff", a, a)["is_equal"]
    (each,) = document(capsys, "diff", a, b, code=1)["tables"]
    assert each["rows"]["max_abs_difference"] == "inf"


def test_diff_of_generations(capsys, tmp_path):
    for n in (5, 9):
        checkpoint.save_tables(tmp_path / "c", {"t": memory_table(n, 0)}, keep_last=2)
    same = ["diff", tmp_path / "c", tmp_path / "c"]
    assert document(capsys, *same)["is_equal"]
    (each,) = document(capsys, *same, "--generation-a", 1, code=1)["tables"]
    assert each["rows"]["n_both"] + each["rows"]["n_only_b"] == 9
    assert document(capsys, *same, "--generation-a", 1, "--generation-b", 1)["is_equal"]


# What all tools do.


@pytest.mark.parametrize(
    "arguments",
    [
        ["top", "c", "--by", "age"],
        ["diff", "c", "c"],
        ["export", "c", "--to", "csv", "--out", "out"],
        ["export", "c", "--to", "parquet", "--out", "out"],
        ["export", "c", "--to", "npz", "--out", "out"],
        ["report", "c", "--out", "out"],
    ],
)
def test_a_damaged_checkpoint_is_one_line(capsys, tmp_path, monkeypatch, arguments):
    save(tmp_path / "c", t=memory_table(50))
    victim = max(
        files_of(tmp_path / "c"), key=lambda name: (name.endswith(".arrow"), "rows" in name)
    )
    data = bytearray((tmp_path / "c" / victim).read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "c" / victim).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    assert "checksum" in refused(capsys, *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c"]


@pytest.mark.parametrize(
    "config",
    [
        {"admission": 3, "default_row": "x"},
        {"admission": {"kind": "BloomAdmission", "capacity": "x"}, "default_row": [1, 2, 3]},
        {"admission": [1], "eviction": {"kind": "Or"}, "default_row": {"a": 1}},
        {"eviction": {"kind": "Or", "left": 3, "right": 4}, "default_row": [[]]},
        {"eviction": {"kind": "Sometimes"}, "default_row": [None, "x"]},
    ],
)
def test_parameters_that_nobody_saved(capsys, tmp_path, config):
    table = memory_table(20, 5)
    path = save(tmp_path / "c", t=replace(table, config=config))
    key = table.rows.keys[0]
    for arguments in (
        ["explain", path, key],
        ["explain", path, table.pending.keys[0]],
        ["explain", path, 0],
        ["export", path, "--to", "csv", "--out", tmp_path / "x", "--pending"],
        ["report", path, "--out", tmp_path / "x"],
        ["info", path],
        ["diff", path, path],
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 0 or (code == 2 and err.count("\n") == 1)
        (tmp_path / "x").unlink(missing_ok=True)
    assert run(capsys, "explain", path, key)[0] == 2
    refused(capsys, "export", path, "--to", "csv", "--out", tmp_path / "x", "--pending")


def test_tools_of_nothing(capsys, tmp_path):
    for arguments in (["top", "--by", "age"], ["explain", "1"]):
        refused(capsys, arguments[0], tmp_path / "none", *arguments[1:])
    assert "holds no checkpoint" in refused(capsys, "diff", tmp_path, tmp_path)


@pytest.mark.parametrize("command", ["top", "explain", "diff", "export", "import", "report"])
def test_each_tool_has_help(capsys, command):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert f"usage: embstore {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["top", "c"],
        ["top", "c", "--by", "size"],
        ["top", "c", "--by", "age", "-n", "0"],
        ["explain", "c", "1.5"],
        ["diff", "c"],
        ["export", "c", "--to", "xml", "--out", "o"],
        ["import", "--from", "npz", "o"],
        ["import", "o", "--from", "npz", "--out", "d", "--optimizer", "adagrad:lr=x"],
        ["import", "o", "--from", "npz", "--out", "d", "--optimizer", "lion"],
        ["import", "o", "--from", "npz", "--out", "d", "--optimizer", "adagrad:speed=1"],
        ["import", "o", "--from", "npz", "--out", "d", "--initializer", "normal:std=-1"],
        ["report", "c"],
    ],
)
def test_bad_usage_is_one_line(capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_nobody_reads_the_output(tmp_path):
    path = save(tmp_path / "c", t=memory_table(20_000, 0))
    command = [sys.executable, "-m", "embstore", "top", path, "--by", "freq", "-n", "20000"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), text=True
    )
    assert process.stdout.readline().startswith("key")
    process.stdout.close()
    assert process.wait() == 141
    assert process.stderr.read() == ""
    process.stderr.close()


def test_no_bar_where_there_is_no_terminal(capsys, tmp_path):
    path = save(tmp_path / "c", t=memory_table(50))
    assert run(capsys, "top", path, "--by", "freq")[2] == ""


def test_a_bar_on_a_terminal_with_and_without_tqdm(capsys, tmp_path, monkeypatch):
    path = save(tmp_path / "c", t=memory_table(50))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert "top: 100%" in run(capsys, "top", path, "--by", "freq")[2]
    monkeypatch.setitem(sys.modules, "tqdm", None)
    code, out, err = run(capsys, "top", path, "--by", "freq")
    assert (code, err) == (0, "")
    assert out.startswith("key")


def test_info_shows_parts_and_what_is_kept(capsys, tmp_path):
    table = memory_table(100, 10, bloom_blocks=1)
    reports = [checkpoint.save_tables(tmp_path / "c", {"t": table}, keep_last=3)]
    _, changes = changed_table(table, 20, 5, np.random.default_rng(0))
    save_delta(tmp_path / "c", {"t": changes}, reports[0].digest, keep_last=3)
    (each,) = document(capsys, "info", tmp_path / "c")["tables"]
    assert each["parts"]["values"] == 100 * 2 * 4
    assert each["parts"]["slots"] == 100 * 2 * 4
    assert each["parts"]["meta"] == 100 * 20
    assert {"deltas", "candidates", "bloom", "pins"} <= set(each["parts"])
    assert sum(each["parts"].values()) == each["bytes"]
    out = run(capsys, "info", tmp_path / "c")[1]
    assert "generation 2 (1 deltas; also kept: 1)" in out
