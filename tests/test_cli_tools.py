"""top, and what all tools do: damage, wrong input, output that cannot be written."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from checkpoint_kit import changed_table, environment, files_of, save_delta
from cli_kit import EXTREMES, document, extreme_table, memory_table, refused, run, save, widened
from reference.floats import row_norm

import embstore as es
from embstore import checkpoint
from embstore.cli import main
from embstore.cli._rows import norms, rounded_bfloat16

DTYPES = ["float32", "float16", "bfloat16"]


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


@pytest.mark.parametrize(("redirect", "code"), [("> /dev/full", 2), (">&-", 0)])
def test_output_that_cannot_be_written(tmp_path, redirect, code):
    path = save(tmp_path / "c", t=memory_table(9))
    command = f"'{sys.executable}' -m embstore top '{path}' --by freq {redirect}"
    done = subprocess.run(
        command, check=False, shell=True, env=environment(), text=True, stderr=subprocess.PIPE
    )
    assert done.returncode == code
    assert done.stderr.count("\n") == (1 if code else 0)
    assert "Traceback" not in done.stderr


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


def test_verify_a_signature(capsys, tmp_path):
    checkpoint.save_tables(tmp_path / "c", {"t": memory_table(9)}, hmac_key=b"secret")
    (tmp_path / "key").write_bytes(b"secret")
    (tmp_path / "other").write_bytes(b"guess")
    (tmp_path / "empty").write_bytes(b"")
    base = ["verify", tmp_path / "c"]
    assert document(capsys, *base)["is_sound"]
    assert document(capsys, *base, "--hmac-key-file", tmp_path / "key")["is_sound"]
    found = document(capsys, *base, "--hmac-key-file", tmp_path / "other", code=1)
    assert found["is_sound"] is False
    for name in ("empty", "nothing"):
        refused(capsys, *base, "--hmac-key-file", tmp_path / name)
