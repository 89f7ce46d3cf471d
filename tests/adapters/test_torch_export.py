"""torch.export and AOTInductor: graphs that name their tables, and predict in another process."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import embstore as es
import embstore.serving

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from embstore.torch import (  # noqa: E402
    Embedding,
    EmbeddingBag,
    EmbeddingBagCollection,
    register,
)

# Of torch's own modules, when Inductor is imported and when it copies trees.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]

SERVER = Path(__file__).parent / "exported_models.py"
DIM = 4
N = torch.export.Dim("n", min=2, max=4096)
DYNAMIC = ({0: N}, {0: N}, {0: N})


class Model(torch.nn.Module):
    """A kind of embeddings under a linear layer."""

    def __init__(self, kind, tables):
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.embed = {
            "rows": lambda: Embedding(tables["item"]),
            "padded": lambda: Embedding(tables["item"], padding_id=0),
            "bag": lambda: EmbeddingBag(tables["item"], mode="sqrtn", padding_id=0),
            "many": lambda: EmbeddingBagCollection(
                tables, {"u": "user", "a": "item", "b": "item"}, mode="mean"
            ),
        }[kind]()
        self.top = torch.nn.Linear(3 * DIM if kind == "many" else DIM, 1)

    def forward(self, u, a, b):
        if self.kind == "many":
            below = self.embed({"u": u, "a": a, "b": b}).values()
        elif self.kind == "bag":
            below = self.embed(a)
        else:
            below = self.embed(a).sum(1)
        return self.top(torch.tanh(below.float()))


def ids_of(n=7):
    generator = torch.Generator().manual_seed(n)
    return tuple(torch.randint(0, 30, s, generator=generator) for s in ((n,), (n, 3), (n, 2)))


@pytest.fixture
def tables():
    """Tables of which some of the ids have rows; one has bfloat16 values."""
    made = {
        "user": es.Table(dim=DIM, initializer=es.Normal(std=1.0), name="user", dtype="bfloat16"),
        "item": es.Table(dim=DIM, initializer=es.Normal(std=1.0), name="item"),
    }
    for table in made.values():
        table.find_or_insert(np.arange(20), step=0)
    return made


@pytest.fixture
def forget():
    """Names to be given up at the end."""
    names = []
    yield names
    for name in names:
        register(name, None)


def exported(model, strict=False):
    return torch.export.export(model.eval(), ids_of(), strict=strict, dynamic_shapes=DYNAMIC)


@pytest.mark.parametrize(
    ("kind", "strict"), [("rows", True), ("padded", False), ("bag", True), ("many", False)]
)
def test_a_graph_names_its_tables_and_gives_the_model_s_predictions(kind, strict, tables, forget):
    model = Model(kind, tables)
    for name, table in tables.items():  # that tests before this one may have left behind
        forget.append(name)
        register(name, table)
    program = exported(model, strict)
    ops = [n for n in program.graph.nodes if "embstore" in str(n.target)]
    assert [str(n.target) for n in ops] == ["embstore.read.default"]
    assert '["item", 4, "float32"]' in ops[0].args[1]
    for n in (7, 2, 40):
        assert torch.equal(program.module()(*ids_of(n)), model(*ids_of(n)))
    assert sum(t.numel() for t in program.state_dict.values()) < 50  # no rows


def test_a_model_in_training_is_not_exported(tables):
    model = Model("rows", tables).train()
    with pytest.raises(es.ArgumentError, match=r"in training cannot be exported.*model.eval\(\)"):
        torch.export.export(model, ids_of(), strict=False)
    assert len(tables["item"]) == 20


def predict_elsewhere(folder, *loaders):
    done = subprocess.run(
        [sys.executable, SERVER, folder, *loaders],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def predictions(folder, loader):
    with np.load(folder / f"{loader}.npz", allow_pickle=False) as found:
        return dict(found)


def saved(folder, tables):
    """Save the tables, ids, and what each kind of model predicts for them."""
    es.Store(tables).save(folder / "tables")
    ids = ids_of(11)
    np.savez(folder / "ids.npz", u=ids[0], a=ids[1], b=ids[2])
    expected = {}
    for kind in ("rows", "padded", "bag", "many"):
        model = Model(kind, tables)
        torch.export.save(exported(model), folder / f"{kind}.pt2")
        expected[f"{kind}.pt2"] = model(*ids).detach().numpy()
    return expected


def test_another_process_predicts_the_same_bits_from_the_checkpoint(tables, tmp_path):
    expected = saved(tmp_path, tables)
    loaders = ("searched", "indexed", "table")
    predict_elsewhere(tmp_path, *loaders)
    for loader in loaders:
        found = predictions(tmp_path, loader)
        assert found.keys() == expected.keys()
        for name, predicted in expected.items():
            np.testing.assert_array_equal(found[name], predicted)
    error = (tmp_path / "error.txt").read_text()
    assert error.startswith("ArgumentError: no table is known by the name 'item'")
    assert "embstore.torch.register('item', table)" in error
    assert "\n" not in error


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs g++, which is missing")
def test_a_package_of_aotinductor_predicts_the_same_in_another_process(tables, tmp_path):
    es.Store(tables).save(tmp_path / "tables")
    ids = ids_of(11)
    np.savez(tmp_path / "ids.npz", u=ids[0], a=ids[1], b=ids[2])
    model = Model("many", tables)
    package = tmp_path / "many.aoti.pt2"
    torch._inductor.aoti_compile_and_package(exported(model), package_path=str(package))
    predict_elsewhere(tmp_path, "searched")
    found = predictions(tmp_path, "searched")
    np.testing.assert_allclose(
        found[package.name], model(*ids).detach().numpy(), rtol=1e-6, atol=1e-7
    )
    assert "no table is known by the name" in (tmp_path / "error.txt").read_text()


def program_of(name):
    """A graph over a table that has no rows."""
    embedding = Embedding(dim=DIM, name=name).eval()
    return torch.export.export(embedding, (torch.tensor([1, 2, 3]),)).module()


def test_a_name_can_be_given_to_a_newer_table_and_given_up(forget):
    predict, ids = program_of("swapped"), torch.tensor([1, 2, 3])
    forget.append("swapped")
    for value in (1.0, 2.0):
        table = es.Table(dim=DIM, initializer=es.Constant(value), name="any")
        table.find_or_insert([1, 2], step=0)
        register("swapped", table)
        assert predict(ids)[:, 0].tolist() == [value, value, 0.0]
    register("swapped", None)
    with pytest.raises(es.ArgumentError, match="no table is known by the name 'elsewhere'"):
        torch.ops.embstore.read([ids], '[["elsewhere", 4, "float32"]]', "sum", None, True)
    assert predict(ids).abs().sum() == 0  # of the module's own table


def test_a_table_that_a_graph_was_not_made_for_is_refused(forget):
    predict, ids = program_of("other"), torch.tensor([1, 2, 3])
    forget.append("other")
    register("other", es.Table(dim=DIM + 1))
    with pytest.raises(es.ArgumentError, match=r"'other' of dim 4 and float32.*has dim 5"):
        predict(ids)
    register("other", es.Table(dim=DIM, dtype="float16"))
    with pytest.raises(es.ArgumentError, match="dim 4 and float16"):
        predict(ids)


def test_of_several_tables_of_a_name_one_is_to_be_registered(forget):
    modules = [Embedding(dim=DIM, name="twins").eval() for _ in range(2)]
    for value, module in enumerate(modules):
        module.table.assign([1, 2, 3], np.full((3, DIM), value, np.float32))
    ids = torch.tensor([1, 2, 3])
    predict = torch.export.export(modules[1], (ids,)).module()
    with pytest.raises(es.ArgumentError, match="2 tables of this process have the name 'twins'"):
        predict(ids)
    forget.append("twins")
    register("twins", modules[1].table)
    assert predict(ids).sum() == 3 * DIM
    assert modules[0](ids).sum() == 0


@pytest.mark.parametrize(("name", "table"), [("a", 5), ("a", "path"), (7, None), ("a", {})])
def test_register_takes_names_and_tables(name, table):
    with pytest.raises(es.ArgumentTypeError, match="register"):
        register(name, table)
