"""import of other systems' files: TFRA, dynamicemb, PyTorch, written byte by byte."""

import json
import struct
import sys
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_kit import check_import, imported, rows_of, run

import embstore as es


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Read a few rows at a time."""
    monkeypatch.setattr("embstore.cli._import_source.BATCH_BYTES", 1000)


def int64s(numbers):
    return b"".join(struct.pack("<q", number) for number in numbers)


def floats(rows, letter="f"):
    return b"".join(struct.pack(f"<{len(row)}{letter}", *row) for row in rows)


def vector(key, dim=4):
    """Return the vector of a key, exact in every float dtype."""
    return [float((key * 7 + i) % 64) / 16 for i in range(dim)]


def vectors(keys, dim=4):
    return np.array([vector(key, dim) for key in keys], np.float32)


KEYS = [5, -1, -(2**63), 2**63 - 1, 0, *range(100, 300)]


# TFRA


def write_tfra(stem, keys, letter="f", dim=4):
    stem.with_name(stem.name + "-keys").write_bytes(int64s(keys))
    stem.with_name(stem.name + "-values").write_bytes(
        floats([vector(k, dim) for k in keys], letter)
    )
    return stem


@pytest.mark.parametrize(
    ("dtype", "letter"), [("float32", "f"), ("float16", "e"), ("float64", "d")]
)
def test_tfra_files(capsys, tmp_path, dtype, letter):
    stem = write_tfra(tmp_path / "user_mht_1of1", KEYS, letter)
    base = ["--from", "tfra", "--value-dtype", dtype]
    for source in (stem, f"{stem}-keys", f"{stem}-values", tmp_path / "user", tmp_path):
        table = imported(capsys, tmp_path, *base, source)
        assert np.array_equal(table.find(KEYS), vectors(KEYS))
        assert table.dtype == ("float16" if dtype == "float16" else "float32")


def test_tfra_bfloat16(capsys, tmp_path):
    (tmp_path / "a-keys").write_bytes(int64s(KEYS))
    bits = (vectors(KEYS).view(np.uint32) >> 16).astype("<u2")
    (tmp_path / "a-values").write_bytes(bits.tobytes())
    base = ["--from", "tfra", "--value-dtype", "bfloat16", tmp_path / "a"]
    for options, dtype in (
        ([], "bfloat16"),
        (["--dtype", "float32"], "float32"),
        (["--dtype", "float16"], "float16"),
    ):
        table = imported(capsys, tmp_path, *base, *options)
        assert table.dtype == dtype
        assert np.array_equal(table.find(KEYS).astype(np.float32), vectors(KEYS))


def test_tfra_shards_of_all_ranks_are_joined(capsys, tmp_path):
    parts = np.array_split(KEYS, 6)
    for i, part in enumerate(parts):
        write_tfra(tmp_path / f"user_mht_{i % 2 + 1}of2_rank{i // 2}_size3", part.tolist())
    slots = "user_DynamicEmbedding_keras_adam_lazy_build-shadow_m"
    for i in range(6):
        write_tfra(tmp_path / f"{slots}_mht_{i % 2 + 1}of2_rank{i // 2}_size3", [i])
    base = ["--from", "tfra", "--parameter", "user"]
    table = imported(capsys, tmp_path, *base, tmp_path)
    assert len(table) == len(KEYS)
    assert np.array_equal(table.find(KEYS), vectors(KEYS))
    # By its prefix it needs no choice.
    assert len(imported(capsys, tmp_path, "--from", "tfra", tmp_path / "user")) == len(KEYS)
    check_import(capsys, tmp_path, f"there are user, {slots}", "--from", "tfra", tmp_path)
    check_import(capsys, tmp_path, "no variable 'item'", *base[:2], "--parameter", "item", tmp_path)
    (tmp_path / "user_mht_2of2_rank1_size3-keys").unlink()
    check_import(capsys, tmp_path, "shard 2 of 2, rank 1 of 3", *base, tmp_path)


def test_tfra_sizes_must_fit(capsys, tmp_path):
    stem = write_tfra(tmp_path / "a", KEYS)
    base = ["--from", "tfra", stem]
    check_import(
        capsys, tmp_path, "205 keys: 4 numbers of 4 bytes a key; expected 5", *base, "--dim", 5
    )
    assert len(imported(capsys, tmp_path, *base, "--dim", 4)) == len(KEYS)
    values = tmp_path / "a-values"
    values.write_bytes(values.read_bytes()[:-2])
    message = f"has 3278 bytes, and {stem}-keys has 205 keys: 3.99756098 numbers of 4 bytes a key"
    check_import(capsys, tmp_path, message, *base)
    values.write_bytes(b"")
    check_import(capsys, tmp_path, "has 0 bytes", *base)
    values.unlink()
    check_import(capsys, tmp_path, "there is no file", *base)
    (tmp_path / "a-keys").write_bytes(b"1234567")
    check_import(capsys, tmp_path, "has 7 bytes, not a multiple of 8", *base)
    check_import(capsys, tmp_path, "there are no files", "--from", "tfra", tmp_path / "b")


def test_tfra_files_of_several_saves(capsys, tmp_path):
    write_tfra(tmp_path / "a_mht_1of1", [1])
    write_tfra(tmp_path / "a_mht_1of2", [2])
    write_tfra(tmp_path / "a_mht_2of2", [3])
    check_import(capsys, tmp_path, "of several saves", "--from", "tfra", tmp_path / "a")


def test_tfra_without_rows(capsys, tmp_path):
    stem = write_tfra(tmp_path / "a", [])
    check_import(capsys, tmp_path, "give --dim", "--from", "tfra", stem)
    assert len(imported(capsys, tmp_path, "--from", "tfra", stem, "--dim", 3)) == 0


# dynamicemb


def write_dynamicemb(folder, name, ranks, slots=None, scores=1, options=None):
    """Write a dump: the keys of each rank, `slots` numbers of state and `scores` marks a key."""
    folder.mkdir(exist_ok=True)
    for rank, keys in enumerate(ranks):
        end = f".rank_{rank}.world_size_{len(ranks)}"
        (folder / f"{name}_emb_keys{end}").write_bytes(int64s(keys))
        (folder / f"{name}_emb_values{end}").write_bytes(floats([vector(k) for k in keys]))
        if scores:
            marks = [mark for k in keys for mark in [k % 97] * scores]
            (folder / f"{name}_emb_scores{end}").write_bytes(int64s(marks))
        if slots:
            state = [[v + 1 for v in vector(k, slots)] for k in keys]
            (folder / f"{name}_emb_opt_values{end}").write_bytes(floats(state))
    if options:
        (folder / f"{name}_opt_args.json").write_text(json.dumps(options))
    return folder


RANKS = [KEYS[:90], KEYS[90:200], [], KEYS[200:]]
ADAM = {"opt_type": "adam", "lr": 0.25, "iters": 9, "beta1": 0.5, "beta2": 0.75, "eps": 0.125}
ADAGRAD = {"opt_type": "exact_adagrad", "lr": 0.5, "eps": 0.25, "initial_accumulator_value": 0.125}
ROW_WISE = {"opt_type": "exact_row_wise_adagrad", "lr": 0.5, "eps": 0.25}
OPTIONS = [
    (ADAM, 8, es.Adam(0.25, betas=(0.5, 0.75), eps=0.125)),
    (ADAGRAD, 4, es.Adagrad(0.5, 0.125, 0.25)),
    (ROW_WISE, 1, es.RowWiseAdagrad(0.5, eps=0.25)),
    ({"opt_type": "sgd", "lr": 0.5}, 0, es.SGD(0.5)),
    ({"opt_type": "something_new"}, 0, None),
    (None, 0, None),
]


@pytest.mark.parametrize(("options", "width", "optimizer"), OPTIONS)
def test_dynamicemb_ranks_are_joined(capsys, tmp_path, options, width, optimizer):
    folder = write_dynamicemb(tmp_path / "dump", "user", RANKS, slots=width, options=options)
    table = imported(capsys, tmp_path, "--from", "dynamicemb", folder)
    assert (table.name, table.optimizer) == ("user", optimizer)
    assert np.array_equal(table.find(KEYS), vectors(KEYS))
    rows = rows_of(table)
    if width:
        expected = np.array([vector(key, width) for key in rows["keys"].tolist()], np.float32) + 1
        assert np.array_equal(rows["slots"], expected)
    assert set(rows["freq"].tolist()) == {1}


def test_dynamicemb_scores(capsys, tmp_path):
    folder = write_dynamicemb(tmp_path / "dump", "user", RANKS)
    expected = [key % 97 for key in KEYS]
    found = {}
    for scores in ("freq", "step"):
        table = imported(capsys, tmp_path, "--from", "dynamicemb", folder, "--scores", scores)
        found[scores] = table.find(KEYS, with_meta=True)
    assert found["freq"].freq.tolist() == expected
    assert set(found["freq"].step.tolist()) == {0}
    assert found["step"].step.tolist() == expected
    double = write_dynamicemb(tmp_path / "double", "user", RANKS, scores=2)
    base = ["--from", "dynamicemb", double]
    check_import(
        capsys, tmp_path, ": 2 numbers of 8 bytes a key; expected 1", *base, "--scores", "freq"
    )
    assert len(imported(capsys, tmp_path, *base)) == len(KEYS)
    none = write_dynamicemb(tmp_path / "none", "user", RANKS, scores=0)
    message = "no file of scores beside it: use --scores ignore"
    check_import(capsys, tmp_path, message, "--from", "dynamicemb", none, "--scores", "step")


def test_dynamicemb_of_several_tables(capsys, tmp_path):
    folder = write_dynamicemb(tmp_path / "dump", "user", RANKS)
    write_dynamicemb(folder, "item", [[1, 2]])
    base = ["--from", "dynamicemb", folder]
    check_import(capsys, tmp_path, "choose one table by --parameter; there are item, user", *base)
    assert len(imported(capsys, tmp_path, *base, "--parameter", "item", "--name", "x")) == 2
    check_import(capsys, tmp_path, "no table 'shop'", *base, "--parameter", "shop")


def test_dynamicemb_slots_must_fit(capsys, tmp_path):
    folder = write_dynamicemb(tmp_path / "dump", "user", RANKS, slots=8)
    base = ["--from", "dynamicemb", folder, "--optimizer"]
    assert len(imported(capsys, tmp_path, *base, "adam")) == len(KEYS)
    message = "has 8 numbers a key; the optimizer's slots are accumulator (4)"
    check_import(capsys, tmp_path, message, *base, "adagrad")
    table = imported(capsys, tmp_path, *base, "adagrad", "--fresh-slots")
    assert not rows_of(table)["slots"].any()
    assert imported(capsys, tmp_path, *base, "none").slots == ()


def test_wrong_dumps_of_dynamicemb(capsys, tmp_path):
    folder = write_dynamicemb(tmp_path / "dump", "user", RANKS, slots=8, options=ADAM)
    base = ["--from", "dynamicemb", folder]
    check_import(capsys, tmp_path, ": 4 numbers of 4 bytes a key; expected 5", *base, "--dim", 5)
    values = folder / "user_emb_values.rank_1.world_size_4"
    whole = values.read_bytes()
    values.write_bytes(whole[:-4])
    check_import(capsys, tmp_path, f"{values} has 1756 bytes, and", *base)
    values.write_bytes(whole)
    state = folder / "user_emb_opt_values.rank_0.world_size_4"
    whole = state.read_bytes()
    state.write_bytes(whole[4:])
    check_import(capsys, tmp_path, f"{state} has 2876 bytes", *base)
    state.unlink()
    check_import(capsys, tmp_path, "3 of 4 ranks in", *base)
    state.write_bytes(whole)
    nothing = folder / "user_emb_values.rank_2.world_size_4"
    nothing.write_bytes(b"1234")
    message = "0 keys: more than no numbers of 4 bytes a key; expected 4"
    check_import(capsys, tmp_path, message, *base)
    nothing.write_bytes(b"")
    (folder / "user_opt_args.json").write_text("{")
    check_import(capsys, tmp_path, "is not JSON", *base)
    (folder / "user_opt_args.json").write_text(json.dumps({**ADAM, "lr": "fast"}))
    check_import(capsys, tmp_path, "lr must be a number", *base)
    (folder / "user_emb_keys.rank_2.world_size_4").unlink()
    check_import(capsys, tmp_path, "no file of the keys of ranks [2], of 4", *base)
    write_dynamicemb(folder, "user", [[1]])
    check_import(capsys, tmp_path, "several world sizes: [1, 4]", *base)
    check_import(capsys, tmp_path, "there is no folder", "--from", "dynamicemb", tmp_path / "no")
    check_import(capsys, tmp_path, "there are none", "--from", "dynamicemb", tmp_path)
    check_import(capsys, tmp_path, "one folder", "--from", "dynamicemb", folder, folder)


def test_a_key_of_two_ranks(capsys, tmp_path):
    folder = write_dynamicemb(tmp_path / "dump", "user", [[1, 2], [3, 1]])
    check_import(capsys, tmp_path, "the key 1 comes twice", "--from", "dynamicemb", folder)


# PyTorch


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed")


MATRIX = vectors(range(50))


def save_torch(torch, path, **arrays):
    torch.save({name: torch.tensor(array) for name, array in arrays.items()}, path)
    return path


def test_torch_state_dict(capsys, tmp_path, torch):
    model = torch.nn.Sequential(torch.nn.EmbeddingBag(50, 4), torch.nn.LayerNorm(4))
    with torch.no_grad():
        model[0].weight[:] = torch.tensor(MATRIX)
    torch.save(model.state_dict(), tmp_path / "m.pt")
    base = ["--from", "torch", tmp_path / "m.pt"]
    table = imported(capsys, tmp_path, *base, "--optimizer", "adagrad:lr=0.05", "--name", "user")
    assert np.array_equal(table.find(np.arange(50)), MATRIX)
    assert table.optimizer == es.Adagrad(0.05)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_torch_dtypes(capsys, tmp_path, torch, dtype):
    torch.save({"w": torch.tensor(MATRIX).to(getattr(torch, dtype))}, tmp_path / "m.pt")
    table = imported(capsys, tmp_path, "--from", "torch", tmp_path / "m.pt")
    assert table.dtype == ("float32" if dtype == "float64" else dtype)
    assert np.array_equal(table.find(np.arange(50)).astype(np.float32), MATRIX)


def test_torch_parameters_are_chosen(capsys, tmp_path, torch):
    weights = {
        "embedding_bags": {"t1.weight": torch.tensor(MATRIX)},
        "dense.weight": torch.ones(2, 3),
    }
    whole = {
        "state_dict": weights,
        "epoch": 3,
        "dense.bias": torch.ones(3),
        "n": torch.ones(2, 2, dtype=torch.int64),
    }
    torch.save(whole, tmp_path / "m.pt")
    base = ["--from", "torch", tmp_path / "m.pt"]
    name = "state_dict.embedding_bags.t1.weight"
    check_import(capsys, tmp_path, f"there are state_dict.dense.weight, {name}", *base)
    table = imported(capsys, tmp_path, *base, "--parameter", name)
    assert np.array_equal(table.find(np.arange(50)), MATRIX)
    check_import(capsys, tmp_path, "no parameter of two dimensions", *base, "--parameter", "x")


def test_torch_views_of_a_matrix(capsys, tmp_path, torch):
    torch.save({"w": torch.tensor(np.asfortranarray(MATRIX.T)).T}, tmp_path / "m.pt")
    table = imported(capsys, tmp_path, "--from", "torch", tmp_path / "m.pt")
    assert np.array_equal(table.find(np.arange(50)), MATRIX)


def test_torch_files_of_the_old_kind(capsys, tmp_path, torch):
    torch.save({"w": torch.tensor(MATRIX)}, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    assert len(imported(capsys, tmp_path, "--from", "torch", tmp_path / "m.pt")) == 50


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code ran')",))


def test_torch_files_run_no_code(capsys, tmp_path, torch):
    torch.save({"w": torch.tensor(MATRIX), "x": Evil()}, tmp_path / "m.pt")
    check_import(
        capsys, tmp_path, "cannot be read as weights of torch", "--from", "torch", tmp_path / "m.pt"
    )
    (tmp_path / "m.pt").write_bytes(b"nothing of torch")
    check_import(
        capsys, tmp_path, "cannot be read as weights of torch", "--from", "torch", tmp_path / "m.pt"
    )
    torch.save(torch.tensor(MATRIX), tmp_path / "m.pt")
    check_import(
        capsys, tmp_path, "holds a Tensor; expected a dict", "--from", "torch", tmp_path / "m.pt"
    )


def test_without_torch_one_line_says_how_to_get_it(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "m.pt").write_bytes(b"")
    check_import(
        capsys, tmp_path, "needs torch: pip install torch", "--from", "torch", tmp_path / "m.pt"
    )


def test_torch_too_old_to_be_safe(capsys, tmp_path, torch, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    (tmp_path / "m.pt").write_bytes(b"")
    check_import(capsys, tmp_path, "2.5.1+cpu is too old", "--from", "torch", tmp_path / "m.pt")


# Matrices of other files, and ids.


def test_npy_and_npz_matrices(capsys, tmp_path):
    np.save(tmp_path / "w.npy", MATRIX)
    np.savez(tmp_path / "w.npz", a=MATRIX, b=np.arange(50), c=np.zeros((3, 3)))
    table = imported(capsys, tmp_path, "--from", "torch", tmp_path / "w.npy")
    assert np.array_equal(table.find(np.arange(50)), MATRIX)
    table = imported(capsys, tmp_path, "--from", "torch", tmp_path / "w.npz", "--parameter", "a")
    assert np.array_equal(table.find(np.arange(50)), MATRIX)
    check_import(capsys, tmp_path, "there are a, c", "--from", "torch", tmp_path / "w.npz")
    np.save(tmp_path / "v.npy", MATRIX[0])
    check_import(capsys, tmp_path, "there are none", "--from", "torch", tmp_path / "v.npy")
    check_import(capsys, tmp_path, "there is no file", "--from", "torch", tmp_path / "no.pt")
    two = [tmp_path / "w.npy", tmp_path / "w.npz"]
    check_import(capsys, tmp_path, "one file of parameters", "--from", "torch", *two)


def test_ids(capsys, tmp_path):
    np.save(tmp_path / "w.npy", MATRIX)
    ids = np.random.default_rng(0).permutation(50) * 10**15 - 7
    np.save(tmp_path / "ids.npy", ids)
    pq.write_table(pa.table({"id": ids}), tmp_path / "ids.parquet")
    np.save(tmp_path / "unsigned.npy", ids.astype(np.uint64))
    base = ["--from", "torch", tmp_path / "w.npy", "--ids"]
    for name in ("ids.npy", "ids.parquet", "unsigned.npy"):
        table = imported(capsys, tmp_path, *base, tmp_path / name)
        assert np.array_equal(table.find(ids), MATRIX)
    np.save(tmp_path / "short.npy", ids[:-1])
    check_import(capsys, tmp_path, "ids of shape (49,);", *base, tmp_path / "short.npy")
    np.save(tmp_path / "same.npy", np.zeros(50, np.int64))
    check_import(capsys, tmp_path, "the key 0 comes twice", *base, tmp_path / "same.npy")
    np.save(tmp_path / "floats.npy", ids.astype(float))
    check_import(capsys, tmp_path, "keys must be integers", *base, tmp_path / "floats.npy")
    pq.write_table(pa.table({"a": ids, "b": ids}), tmp_path / "two.parquet")
    check_import(capsys, tmp_path, "must have one column of ids", *base, tmp_path / "two.parquet")
    check_import(capsys, tmp_path, "cannot be read as Parquet", *base, tmp_path / "w.npy.txt")


def test_safetensors(capsys, tmp_path):
    numpy_io = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    arrays = {
        "a": MATRIX,
        "h": MATRIX.astype(np.float16),
        "v": MATRIX[0],
        "i": np.ones((2, 2), int),
    }
    numpy_io.save_file(arrays, tmp_path / "m.safetensors")
    base = ["--from", "torch", tmp_path / "m.safetensors"]
    for name, dtype in (("a", "float32"), ("h", "float16")):
        table = imported(capsys, tmp_path, *base, "--parameter", name)
        assert np.array_equal(table.find(np.arange(50)).astype(np.float32), MATRIX)
        assert table.dtype == dtype
    check_import(capsys, tmp_path, "there are a, h", *base)
    (tmp_path / "m.safetensors").write_bytes(b"\xff" * 100)
    check_import(capsys, tmp_path, "cannot be read as safetensors", *base)


def test_safetensors_by_hand(capsys, tmp_path):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    for dtype, message in (("F32", None), ("BF16", "is bfloat16, which safetensors does not give")):
        n_bytes = 8 if dtype == "F32" else 4
        header = json.dumps({"w": {"dtype": dtype, "shape": [1, 2], "data_offsets": [0, n_bytes]}})
        file = tmp_path / "m.safetensors"
        file.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(n_bytes))
        if message:
            check_import(capsys, tmp_path, message, "--from", "torch", file)
        else:
            assert imported(capsys, tmp_path, "--from", "torch", file).find([0]).tolist() == [
                [0, 0]
            ]


def test_without_safetensors_one_line_says_how_to_get_it(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    (tmp_path / "m.safetensors").write_bytes(b"")
    check_import(
        capsys, tmp_path, "pip install safetensors", "--from", "torch", tmp_path / "m.safetensors"
    )


def test_the_numbers_of_an_import_in_words(capsys, tmp_path):
    np.save(tmp_path / "w.npy", MATRIX)
    base = ["import", "--from", "torch", tmp_path / "w.npy", "--optimizer", "adam"]
    code, out, err = run(capsys, *base, "--out", tmp_path / "o")
    assert (code, err) == (0, "")
    assert out.startswith("50 rows of 4 float32 in table 'table' of ")
    assert "optimizer Adam(lr=0.001, betas=[0.9, 0.999]" in out


# Damage.


def damaged(data, random):
    """Return bytes with some changed, left out, or cut off."""
    data, at = bytearray(data), int(random.integers(len(data)))
    kind = random.integers(4)
    if kind == 0:
        del data[at:]
    elif kind == 1:
        del data[at : at + int(random.integers(1, 9))]
    else:
        n = int(random.integers(1, 4))
        data[at : at + n] = random.bytes(n)
    return bytes(data)


@pytest.mark.parametrize("name", ["x.parquet", "x.npz", "w.npy", "m.pt"])
def test_damaged_files_are_one_line(capsys, tmp_path, name):
    file = tmp_path / name
    keys = np.arange(20)
    if name == "x.parquet":
        pq.write_table(pa.table({"key": keys, "values": vectors(keys).tolist()}), file)
    elif name == "x.npz":
        np.savez(file, keys=keys, values=vectors(keys))
    elif name == "w.npy":
        np.save(file, MATRIX)
    else:
        torch = pytest.importorskip("torch", reason="torch is not installed")
        torch.save({"w": torch.tensor(MATRIX)}, file)
    kind = {".parquet": "parquet", ".npz": "npz"}.get(file.suffix, "torch")
    whole, random, codes = file.read_bytes(), np.random.default_rng(0), set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, of headers that it takes for Python 2's
        for _ in range(120):
            file.write_bytes(damaged(whole, random))
            code, _, err = run(
                capsys, "import", "--from", kind, file, "--out", tmp_path / "o", "--force"
            )
            codes.add(code)
            assert code == 0 or (code == 2 and err.count("\n") == 1)
    assert 2 in codes
