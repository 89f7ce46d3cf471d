"""import: round trips of our exports, files of other systems written byte by byte, wrong input."""

import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_kit import check_import, imported, refused, rows_of, run

import embstore as es

DTYPES = ["float32", "float16", "bfloat16"]
OPTIMIZERS = [None, es.SGD(0.1), es.Adagrad(0.05), es.RowWiseAdagrad(), es.Adam(), es.FTRL()]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Read a few rows at a time, write a few in a block."""
    monkeypatch.setattr("embstore.cli._import_source.BATCH_BYTES", 1000)
    monkeypatch.setattr("embstore.checkpoint.writer.BLOCK_BYTES", 600)


def trained(dim=3, dtype="float32", optimizer=None, n=150, **options):
    """Return a table with some history, whose keys are anything."""
    random = np.random.default_rng(dim)
    table = es.Table(dim, dtype=dtype, optimizer=optimizer, name="user", **options)
    keys = random.integers(-(2**63), 2**63, n)
    keys[:3] = [-(2**63), 2**63 - 1, -1]
    for step in range(3):
        batch = table.find_or_insert(keys[step * n // 5 :], step=step)
        if optimizer is not None:
            grads = random.normal(size=(len(batch.rows), dim)).astype(np.float32)
            table.apply_gradients(batch, grads, step=step)
    return table


# Round trips.


@pytest.mark.parametrize("kind", ["parquet", "npz"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_export_and_import_are_a_round_trip_to_the_bit(capsys, tmp_path, kind, dtype, optimizer):
    table = trained(dtype=dtype, optimizer=optimizer)
    table.save(tmp_path / "c")
    file = tmp_path / f"x.{kind}"
    assert run(capsys, "export", tmp_path / "c", "--to", kind, "--out", file)[0] == 0
    options = []
    if kind == "npz":  # which says nothing of the table
        options = ["--dtype", dtype]
        if optimizer is not None:
            options += ["--optimizer", f"{type(optimizer).__name__}:lr={optimizer.lr}"]
    copy = imported(capsys, tmp_path, "--from", kind, file, *options)
    one, other = rows_of(table), rows_of(copy)
    for name, array in one.items():
        assert array.tobytes() == other[name].tobytes(), name
    if kind == "parquet":
        assert copy.config() == table.config()
    assert copy.optimizer == optimizer


def test_options_go_before_what_the_file_tells(capsys, tmp_path):
    table = trained(optimizer=es.Adagrad(), admission=es.CounterAdmission(2))
    table.save(tmp_path / "c")
    file = tmp_path / "x.parquet"
    run(capsys, "export", tmp_path / "c", "--to", "parquet", "--out", file)
    options = ["--name", "new", "--dtype", "float16", "--optimizer", "none", "--seed", 9]
    options += ["--admission", "none", "--evict", "step:7", "--initializer", "constant:value=2"]
    copy = imported(capsys, tmp_path, "--from", "parquet", file, *options)
    config = copy.config()
    assert (copy.name, copy.dtype, copy.optimizer, config["seed"]) == ("new", "float16", None, 9)
    assert (config["admission"], config["eviction"]) == (None, es.StepEviction(7).to_config())
    assert config["initializer"] == es.Constant(2.0).to_config()
    expected = rows_of(table)["values"].astype(np.float16)
    assert rows_of(copy)["values"].tobytes() == expected.tobytes()


def test_fresh_slots(capsys, tmp_path):
    table = trained(optimizer=es.Adagrad(initial_accumulator=0.5))
    table.save(tmp_path / "c")
    for kind in ("parquet", "npz"):
        file = tmp_path / f"x.{kind}"
        run(capsys, "export", tmp_path / "c", "--to", kind, "--out", file)
        options = ["--optimizer", "ftrl:lr=0.1,initial_accumulator=0.25", "--fresh-slots"]
        copy = imported(capsys, tmp_path, "--from", kind, file, *options)
        assert np.array_equal(
            rows_of(copy)["slots"], np.tile(np.float32([0.25] * 3 + [0] * 3), (len(copy), 1))
        )
    options = ["--optimizer", "ftrl:lr=0.1", "--from"]
    check_import(
        capsys,
        tmp_path,
        "no linear: give --fresh-slots",
        *options,
        "parquet",
        tmp_path / "x.parquet",
    )
    check_import(capsys, tmp_path, "3 numbers a row", *options, "npz", tmp_path / "x.npz")


def test_an_empty_table(capsys, tmp_path):
    es.Table(3, dtype="float16", optimizer=es.Adam()).save(tmp_path / "c")
    for kind in ("parquet", "npz"):
        file = tmp_path / f"x.{kind}"
        run(capsys, "export", tmp_path / "c", "--to", kind, "--out", file)
        assert len(imported(capsys, tmp_path, "--from", kind, file)) == 0


# Parquet of others.


def write(path, **columns):
    pq.write_table(pa.table(columns), path, row_group_size=7)
    return path


VECTORS = np.arange(60, dtype=np.float32).reshape(20, 3) / 8


@pytest.mark.parametrize(
    "values",
    [
        {"values": VECTORS.tolist()},
        {"values": pa.array(VECTORS.tolist(), pa.list_(pa.float32()))},
        {"values": pa.array(VECTORS.tolist(), pa.large_list(pa.float64()))},
        {"values": pa.array(VECTORS.tolist(), pa.list_(pa.float16(), 3))},
        {f"v{i}": VECTORS[:, i] for i in range(3)},
    ],
)
@pytest.mark.parametrize("kind", ["int64", "uint64", "int32", "uint8"])
def test_parquet_of_keys_and_vectors(capsys, tmp_path, values, kind):
    keys = np.arange(20).astype(kind)
    if kind == "uint64":
        keys[0] = 2**64 - 1
    file = write(tmp_path / "x.parquet", key=keys, **values)
    if kind == "uint8":
        keys = keys.astype(np.int64)
    options = ["--optimizer", "adagrad:lr=0.5,initial_accumulator=0.25", "--step", 5, "--freq", 3]
    table = imported(capsys, tmp_path, "--from", "parquet", file, *options)
    assert np.array_equal(table.find(keys), VECTORS)
    rows = rows_of(table)
    assert set(rows["slots"].reshape(-1).tolist()) == {0.25}
    assert (set(rows["freq"].tolist()), set(rows["step"].tolist())) == ({3}, {5})
    assert table.step == 5
    table.apply_gradients(keys, np.ones((20, 3), np.float32), step=6)  # it trains


def test_parquet_of_other_names_in_a_folder(capsys, tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for i in range(3):
        part = slice(7 * i, 7 * i + 7)
        write(folder / f"{i}.parquet", id=np.arange(20)[part], vector=VECTORS[part].tolist())
    options = ["--key-column", "id", "--values-column", "vector", "--name", "item"]
    table = imported(capsys, tmp_path, "--from", "parquet", folder, *options)
    assert np.array_equal(table.find(np.arange(20)), VECTORS)
    assert table.name == "item"
    files = sorted(folder.iterdir())
    same = imported(capsys, tmp_path, "--from", "parquet", *files, *options)
    assert len(same) == 20


def test_parquet_with_slots_freq_and_step(capsys, tmp_path):
    file = write(
        tmp_path / "x.parquet",
        key=np.arange(20),
        values=VECTORS.tolist(),
        accumulator=np.arange(20, dtype=np.float32),
        freq=np.arange(20) * 2**31,
        step=np.arange(20) + 7,
    )
    table = imported(capsys, tmp_path, "--from", "parquet", file, "--optimizer", "row-wise-adagrad")
    found = table.find(np.arange(20), with_meta=True)
    assert found.freq.tolist() == [min(i * 2**31, 2**32 - 1) for i in range(20)]
    assert found.step.tolist() == list(range(7, 27))
    rows = rows_of(table)
    assert np.array_equal(rows["slots"][:, 0], rows["keys"].astype(np.float32))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": [1], "values": [[1.0]]}, "no column 'key': give --key-column; it has id, values"),
        ({"key": [1], "vector": [[1.0]]}, "no column 'values', and no v0, v1, ..."),
        ({"key": [1], "values": [[1]]}, "is list<element: int64>, not of floats"),
        ({"key": [1], "values": ["a"]}, "is string, not of floats"),
        ({"key": [1.5], "values": [[1.0]]}, "keys must be integers"),
        ({"key": ["a"], "values": [[1.0]]}, "is string, not of numbers"),
        ({"key": [1, None], "values": [[1.0], [2.0]]}, "has a null at row 1"),
        ({"key": [1, 2], "values": [[1.0], None]}, "has a null at row 1"),
        ({"key": [1, 2], "values": [None, [1.0]]}, "has a null at row 0"),
        ({"key": [1, 2], "values": [[1.0], [None]]}, "has a null in a list"),
        ({"key": [1, 2], "values": [[1.0], [1.0, 2.0]]}, "has 2 numbers at row 1; expected 1"),
        ({"key": [1, 2, 1], "values": [[1.0]] * 3}, "the key 1 comes twice"),
        ({"key": [1], "values": [[float("nan")]]}, "the row of key 1 has NaN"),
        ({"key": [1], "values": [[1.0]], "freq": [-1]}, "frequency -1"),
        ({"key": [1], "values": [[1.0]], "freq": [0.5]}, "frequencies must be integers"),
        ({"key": [1], "values": [[1.0]], "step": [-1]}, "step -1; expected 0 or more (pending"),
        ({"key": [1], "v0": ["a"]}, "is string, not of floats"),
    ],
)
def test_wrong_parquet(capsys, tmp_path, columns, message):
    file = write(tmp_path / "x.parquet", **columns)
    check_import(capsys, tmp_path, message, "--from", "parquet", file)


def test_keys_that_come_twice_far_apart(capsys, tmp_path):
    keys = np.arange(500)
    keys[499] = 3
    file = write(tmp_path / "x.parquet", key=keys, values=np.ones((500, 3)).tolist())
    check_import(capsys, tmp_path, "the key 3 comes twice", "--from", "parquet", file)


def test_wrong_files_of_parquet(capsys, tmp_path):
    base = ["--from", "parquet"]
    check_import(capsys, tmp_path, "there is no file", *base, tmp_path / "no")
    (tmp_path / "text").write_text("key,values\n")
    check_import(capsys, tmp_path, "cannot be read as Parquet", *base, tmp_path / "text")
    (tmp_path / "empty").mkdir()
    check_import(capsys, tmp_path, "holds no file *.parquet", *base, tmp_path / "empty")
    one = write(tmp_path / "1.parquet", key=[1], values=[[1.0]])
    two = write(tmp_path / "2.parquet", key=[2], values=[[1.0, 2.0]])
    check_import(capsys, tmp_path, "1 float32, and", *base, one, two)
    check_import(
        capsys, tmp_path, "--dim is 2; the vectors of the source have 1", *base, one, "--dim", 2
    )
    none = write(
        tmp_path / "3.parquet",
        key=pa.array([], pa.int64()),
        values=pa.array([], pa.list_(pa.float32())),
    )
    check_import(capsys, tmp_path, "give --dim", *base, none)
    assert len(imported(capsys, tmp_path, *base, none, "--dim", 4)) == 0
    assert len(imported(capsys, tmp_path, *base, none, one)) == 1


def test_damaged_parameters_in_parquet(capsys, tmp_path):
    for words in (b"{", b"[]", b'{"config": 3}'):
        table = pa.table({"key": [1], "values": [[1.0]]}).replace_schema_metadata(
            {"embstore": words}
        )
        pq.write_table(table, tmp_path / "x.parquet")
        check_import(
            capsys, tmp_path, "'embstore' is damaged", "--from", "parquet", tmp_path / "x.parquet"
        )
    table = table.replace_schema_metadata({"embstore": b'{"config": {"surprise": 1}}'})
    pq.write_table(table, tmp_path / "x.parquet")
    check_import(capsys, tmp_path, "surprise", "--from", "parquet", tmp_path / "x.parquet")


def test_nonfinite_rows_are_taken_when_allowed(capsys, tmp_path):
    file = write(tmp_path / "x.parquet", key=[1], values=[[float("inf")]])
    arguments = ["import", "--from", "parquet", file, "--out", tmp_path / "o", "--allow-nonfinite"]
    with pytest.warns(es.EmbstoreWarning, match="NaN or infinity"):
        assert run(capsys, *arguments)[0] == 0
    assert es.Table.load(tmp_path / "o", allow_nonfinite=True).find([1]).tolist() == [[np.inf]]
    big = write(tmp_path / "y.parquet", key=[1], values=[[1e6]])
    message = "NaN or infinity as float16"
    check_import(capsys, tmp_path, message, "--from", "parquet", big, "--dtype", "float16")


def test_a_checkpoint_is_replaced_by_force_alone(capsys, tmp_path):
    file = write(tmp_path / "x.parquet", key=[1], values=[[1.0]])
    es.Table(9).save(tmp_path / "c")
    arguments = ["import", "--from", "parquet", file, "--out", tmp_path / "c"]
    assert "holds a checkpoint; --force replaces it" in refused(capsys, *arguments)
    assert es.Table.load(tmp_path / "c").dim == 9
    code, out, _ = run(capsys, *arguments, "--force")
    assert code == 0
    assert out.startswith("1 rows of 1 float32 in table 'table' of ")
    assert es.Table.load(tmp_path / "c").dim == 1


# npz


def write_npz(path, compress=False, **arrays):
    (np.savez_compressed if compress else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("compress", [False, True])
def test_npz_of_numpy(capsys, tmp_path, compress):
    file = write_npz(
        tmp_path / "x.npz",
        compress,
        keys=np.arange(20, dtype=np.int32),
        values=VECTORS.astype(np.float64),
    )
    table = imported(capsys, tmp_path, "--from", "npz", file)
    assert np.array_equal(table.find(np.arange(20)), VECTORS)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"values": VECTORS}, "no array 'keys'; it has values"),
        ({"keys": np.arange(20)}, "no array 'values'"),
        ({"keys": np.arange(19), "values": VECTORS}, "(20, 3), and keys.npy of"),
        ({"keys": np.arange(20), "values": VECTORS[0]}, "expected (n, dim)"),
        ({"keys": np.arange(20), "values": VECTORS.astype(int)}, "values must be float16"),
        ({"keys": np.arange(20.0), "values": VECTORS}, "keys must be integers"),
        ({"keys": np.arange(20), "values": VECTORS, "freq": np.arange(9)}, "freq.npy"),
        ({"keys": np.array(["a"] * 20), "values": VECTORS}, "expected numbers"),
        ({"keys": np.arange(20), "values": np.asfortranarray(VECTORS)}, "in Fortran order"),
        ({"keys": np.zeros((20, 1), int), "values": VECTORS}, "keys.npy"),
    ],
)
def test_wrong_npz(capsys, tmp_path, arrays, message):
    file = write_npz(tmp_path / "x.npz", **arrays)
    check_import(capsys, tmp_path, message, "--from", "npz", file)


def test_npz_is_never_unpickled(capsys, tmp_path):
    file = tmp_path / "x.npz"
    np.savez(file, keys=np.array([{}], dtype=object), values=VECTORS, allow_pickle=True)
    check_import(capsys, tmp_path, "expected numbers", "--from", "npz", file)


def test_damaged_npz(capsys, tmp_path):
    file = write_npz(tmp_path / "x.npz", keys=np.arange(20), values=VECTORS)
    data = bytearray(file.read_bytes())
    at = data.index(VECTORS.tobytes()) + 50
    data[at] ^= 1
    file.write_bytes(data)
    check_import(capsys, tmp_path, "'values.npy'", "--from", "npz", file)
    big = write_npz(tmp_path / "y.npz", keys=np.arange(4000), values=np.ones((4000, 3)))
    flipped = bytearray(big.read_bytes())
    flipped[-9000] ^= 1
    big.write_bytes(flipped)
    message = f"values.npy of {big} cannot be read: Bad CRC-32"
    check_import(capsys, tmp_path, message, "--from", "npz", big)
    file.write_bytes(data[:-30])
    check_import(capsys, tmp_path, "cannot be read as npz", "--from", "npz", file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("keys.npy", b"no array")
    check_import(capsys, tmp_path, "is not a .npy file", "--from", "npz", file)
    check_import(capsys, tmp_path, "there is no file", "--from", "npz", tmp_path / "no.npz")
    check_import(capsys, tmp_path, "one npz file", "--from", "npz", file, file)


@pytest.mark.parametrize("change", [-4, 4])
def test_npz_of_another_length_than_its_header(capsys, tmp_path, change):
    header = b"\x93NUMPY\x01\x00"
    words = b"{'descr': '<f4', 'fortran_order': False, 'shape': (20, 3), }"
    words = words.ljust(118) + b"\n"
    body = VECTORS.tobytes() + b"\0" * 4
    member = header + len(words).to_bytes(2, "little") + words + body[: 240 + change]
    file = write_npz(tmp_path / "x.npz", keys=np.arange(20))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("values.npy", member)
    what = "ends before its 20 rows" if change < 0 else "goes on behind its 20 rows"
    check_import(capsys, tmp_path, what, "--from", "npz", file)
