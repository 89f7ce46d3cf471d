"""diff: beside dicts, with blocks that end at other keys."""

from dataclasses import replace

import numpy as np
import pytest
from checkpoint_kit import changed_table, in_order, random_rows
from cli_kit import document, memory_table, refused, run, save, widened

import embstore as es
from embstore import checkpoint

DTYPES = ["float32", "float16", "bfloat16"]


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
