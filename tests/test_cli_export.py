"""export: what each format holds, and that a file is there as a whole or not at all."""

import resource
from contextlib import contextmanager

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from cli_kit import document, extreme_table, memory_table, refused, run, save, widened

import embstore as es
from embstore.cli._rows import rounded_bfloat16

DTYPES = ["float32", "float16", "bfloat16"]
FORMATS = ["parquet", "csv", "npz"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("embstore.checkpoint.writer.BLOCK_BYTES", 300)
    monkeypatch.setattr("embstore.cli._formats.GROUP_BYTES", 1000)


def export(capsys, path, kind, *options):
    out = f"{path}.{kind}"
    found = document(capsys, "export", path, "--to", kind, "--out", out, *options)
    assert found["out"] == out
    return out, found


def npz(path):
    with np.load(path) as loaded:
        return {name: loaded[name] for name in loaded}


def tables():
    yield from (memory_table(100, 7, dim=3, dtype=dtype) for dtype in DTYPES)
    yield memory_table(50, 3, slots=())
    yield memory_table(50, 3, dim=3, slots=(("exp_avg", 3), ("exp_avg_sq", 3)))
    yield memory_table(50, 3, dim=3, slots=(("accumulator", 1),))
    yield extreme_table()
    yield memory_table(0, 0)


TABLES = list(tables())


@pytest.mark.parametrize("table", TABLES)
def test_npz(capsys, tmp_path, table):
    out, found = export(capsys, save(tmp_path / "c", t=table), "npz")
    arrays, rows = npz(out), table.rows
    assert list(arrays) == ["keys", "values", "slots", "freq", "step"]
    assert found["rows"] == len(rows)
    assert arrays["values"].dtype == (np.float16 if table.dtype == "float16" else np.float32)
    assert widened(arrays["values"]).tobytes() == widened(rows.values).tobytes()
    for name in ("slots", "freq", "step"):
        expected = getattr(rows, name)
        assert arrays[name].dtype == expected.dtype
        assert np.array_equal(arrays[name], expected)
    assert arrays["keys"].tobytes() == rows.keys.tobytes()


@pytest.mark.parametrize("table", TABLES)
def test_parquet(capsys, tmp_path, table):
    out, found = export(capsys, save(tmp_path / "c", t=table), "parquet")
    read, rows = pq.read_table(out), table.rows
    assert found["rows"] == len(rows) == read.num_rows
    names = [name for name, _ in table.slots]
    assert read.column_names == ["key", "values", *names, "freq", "step"]
    assert read["key"].to_numpy().tobytes() == rows.keys.tobytes()
    vectors = read["values"].combine_chunks()
    kind = "halffloat" if table.dtype == "float16" else "float"
    assert str(read["values"].type.value_type) == kind
    assert read["values"].type.list_size == table.dim
    assert widened(vectors.flatten().to_numpy()).tobytes() == widened(rows.values).tobytes()
    begin = 0
    for name, width in table.slots:
        slot = read[name].combine_chunks().flatten().to_numpy().reshape(-1, width)
        assert np.array_equal(slot, rows.slots[:, begin : begin + width])
        begin += width
    assert np.array_equal(read["freq"].to_numpy(), rows.freq)
    assert np.array_equal(read["step"].to_numpy(), rows.step)
    assert not len(rows) >= 50 or pq.ParquetFile(out).num_row_groups > 1


@pytest.mark.parametrize("table", TABLES)
def test_csv(capsys, tmp_path, table):
    out, _ = export(capsys, save(tmp_path / "c", t=table), "csv")
    read, rows = pyarrow.csv.read_csv(out), table.rows
    assert read.num_rows == len(rows)
    slots = [f"{name}{i}" for name, width in table.slots for i in range(width)]
    names = ["key", *(f"v{i}" for i in range(table.dim)), *slots, "freq", "step"]
    assert read.column_names == names
    if not len(rows):
        return
    assert read["key"].to_pylist() == rows.keys.tolist()
    for i in range(table.dim):  # as many digits as float32 needs
        column = np.array(read[f"v{i}"].to_pylist(), np.float32)
        assert np.array_equal(column, widened(rows.values)[:, i])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("default", [None, 0.3, [0.1, 0.2]])
def test_pending_keys_are_as_the_table_exports_them(capsys, tmp_path, dtype, default):
    table = es.Table(
        2,
        dtype=dtype,
        optimizer=es.Adagrad(),
        admission=es.CounterAdmission(3),
        default_row=default,
    )
    table.find_or_insert([5, 5, 5, 6, 7, 7], step=4)
    table.save(tmp_path / "c")
    out, found = export(capsys, str(tmp_path / "c"), "npz", "--pending")
    batches = list(table.export(pending=True))
    arrays = npz(out)
    assert found["rows"] == 3
    for name in ("keys", "values", "slots", "freq", "step"):
        expected = np.concatenate([getattr(rows, name) for rows in batches])
        assert arrays[name].tobytes() == expected.tobytes()
    assert rounded_bfloat16(np.float32([0.3])) != np.float32(0.3)


def test_columns(capsys, tmp_path):
    path = save(
        tmp_path / "c", t=memory_table(20, dim=2, slots=(("exp_avg", 2), ("exp_avg_sq", 2)))
    )
    out, _ = export(capsys, path, "parquet", "--columns", "freq,slots,key")
    assert pq.read_schema(out).names == ["freq", "exp_avg", "exp_avg_sq", "key"]
    out, _ = export(capsys, path, "csv", "--columns", "key,exp_avg_sq")
    assert pyarrow.csv.read_csv(out).column_names == ["key", "exp_avg_sq0", "exp_avg_sq1"]
    out, _ = export(capsys, path, "npz", "--columns", "values,key")
    assert list(npz(out)) == ["values", "keys"]
    base = ["export", path, "--to", "parquet", "--out", tmp_path / "x", "--columns"]
    assert (
        "no column 'size'; it has key, values, exp_avg, exp_avg_sq, freq, step, slots"
        in refused(capsys, *base, "key,size")
    )
    assert "two columns 'key'" in refused(capsys, *base, "key,key")
    assert "names no column" in refused(capsys, *base, ",")
    assert not (tmp_path / "x").exists()


def test_a_slot_called_as_another_column(capsys, tmp_path):
    path = save(tmp_path / "c", t=memory_table(3, slots=(("freq", 2),)))
    assert "two columns 'freq'" in refused(
        capsys, "export", path, "--to", "csv", "--out", tmp_path / "x"
    )


# The file.


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_is_replaced_by_force_alone(capsys, tmp_path, kind):
    path, out = save(tmp_path / "c", t=memory_table(20)), tmp_path / "out"
    out.write_text("mine")
    arguments = ["export", path, "--to", kind, "--out", out]
    assert "exists; --force replaces it" in refused(capsys, *arguments)
    assert out.read_text() == "mine"
    assert run(capsys, *arguments, "--force")[0] == 0
    assert out.read_bytes()[:4] != b"mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "out"]


def test_places_where_no_file_can_be(capsys, tmp_path):
    path = save(tmp_path / "c", t=memory_table(20))
    base = ["export", path, "--to", "csv", "--out"]
    assert "there is no folder" in refused(capsys, *base, tmp_path / "no" / "out")
    assert "is a folder" in refused(capsys, *base, tmp_path)
    assert "is a folder" in refused(capsys, *base, tmp_path, "--force")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    assert "exists" in refused(capsys, *base, tmp_path / "link")


@contextmanager
def small_disk(n_bytes):
    """Let no file grow beyond `n_bytes`, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("n_bytes", [0, 1000, 20_000])
def test_a_full_disk_leaves_nothing(capsys, tmp_path, kind, n_bytes):
    path = save(tmp_path / "c", t=memory_table(2000, dim=8, slots=(("a", 8),)))
    out = tmp_path / "out"
    with small_disk(n_bytes):
        refused(capsys, "export", path, "--to", kind, "--out", out)
        out.write_text("")
        refused(capsys, "export", path, "--to", kind, "--out", out, "--force")
    assert out.read_text() == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "out"]


@pytest.mark.parametrize("kind", FORMATS)
def test_an_interrupt_leaves_nothing(capsys, tmp_path, monkeypatch, kind):
    path = save(tmp_path / "c", t=memory_table(200))
    n_seen = 0

    def update(self, n):
        nonlocal n_seen
        n_seen += 1
        if n_seen == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("embstore.cli._progress.Bar.update", update)
    assert run(capsys, "export", path, "--to", kind, "--out", tmp_path / "out")[0] == 130
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
