"""torch.compile: a model in one graph trains its tables as the same model in eager does."""

import copy
import gc
import shutil

import numpy as np
import pytest

import embstore as es

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch import library  # noqa: E402
from torch._dynamo.utils import counters  # noqa: E402

from embstore.torch import (  # noqa: E402
    Embedding,
    EmbeddingBag,
    EmbeddingBagCollection,
    EmbeddingCollection,
    TableParameter,
    dense_parameters,
    operators,
    optimizer,
)

if not operators.HAS_EFFECTS:
    pytest.skip(f"torch {torch.__version__} keeps no effects", allow_module_level=True)

# Of torch's own modules, when Inductor is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

has_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="Inductor needs a C++ compiler, and g++ is not there"
)
BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=has_compiler)]
DIM = 4
FEATURES = {"u": "user", "a": "item", "b": "item"}
MODES = {"u": "sum", "a": "mean", "b": "sqrtn"}


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    counters.clear()


def table(name="item", **options):
    given = {
        "optimizer": es.Adagrad(lr=0.1),
        "initializer": es.Normal(std=0.1),
        "admission": es.CounterAdmission(min_count=2),
        **options,
    }
    return es.Table(dim=DIM, seed=3, name=name, **given)


def plain(name="item", **options):
    """A table that admits all, and whose rows are trained by minus their gradient."""
    return table(name, optimizer=es.SGD(lr=1.0), admission=None, **options)


def compiled(function, backend="aot_eager"):
    return torch.compile(function, fullgraph=True, backend=backend)


class Model(torch.nn.Module):
    """Embeddings of one kind under a linear layer."""

    def __init__(self, kind, fused):
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        tables = [table("user"), table("item")]
        self.embed = {
            "rows": lambda: Embedding(tables[1], fused=fused),
            "padded": lambda: Embedding(tables[1], fused=fused, padding_id=0),
            "bag": lambda: EmbeddingBag(tables[1], fused=fused, padding_id=0),
            "many rows": lambda: EmbeddingCollection(tables, FEATURES, fused=fused),
            "many bags": lambda: EmbeddingBagCollection(
                tables, FEATURES, mode=MODES, fused=fused, padding_id=0
            ),
        }[kind]()
        self.top = torch.nn.Linear(3 * DIM if kind == "many bags" else DIM, 1)

    def forward(self, u, a, b):
        if self.kind == "many bags":
            below = self.embed({"u": u, "a": a, "b": b}).values()
        elif self.kind == "many rows":
            rows = self.embed({"u": u, "a": a, "b": b})
            below = rows["u"] + rows["a"].sum(1) + rows["b"].mean(1)
        elif self.kind == "bag":
            below = self.embed(a)
        else:
            below = self.embed(a).sum(1)
        return self.top(torch.tanh(below))

    def tables(self):
        return [p.table for p in self.parameters() if isinstance(p, TableParameter)]


def train(model, forward, fused, n_steps=4):
    """Train, and return the losses; batches have two sizes."""
    tables = None if fused else optimizer(model)
    dense = torch.optim.SGD(dense_parameters(model), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for step in range(n_steps):
        n = 5 + step % 2
        ids = [torch.randint(0, 9, s, generator=generator) for s in ((n,), (n, 3), (n, 2))]
        predicted = forward(*ids)
        loss = (predicted - 1).square().sum()
        dense.zero_grad()
        if tables is not None:
            tables.zero_grad()
        loss.backward()
        dense.step()
        if tables is not None:
            tables.step()
        losses.append(loss.item())
    model.eval()
    return [*losses, *forward(*ids).detach().numpy().ravel()]


def assert_trained_alike(kind, fused, backend):
    eager, other = Model(kind, fused), Model(kind, fused)
    expected = train(eager, eager, fused)
    given = train(other, compiled(other, backend), fused)
    np.testing.assert_allclose(given, expected, rtol=2e-6, atol=1e-7)
    keys = np.arange(9)
    for theirs, own in zip(eager.tables(), other.tables(), strict=True):
        assert 0 < len(theirs) == len(own)
        rows, expected_rows = own.find(keys, with_meta=True), theirs.find(keys, with_meta=True)
        np.testing.assert_allclose(rows.rows, expected_rows.rows, rtol=2e-5, atol=1e-6)
        np.testing.assert_array_equal(rows.freq, expected_rows.freq)
        np.testing.assert_array_equal(rows.step, expected_rows.step)
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] <= 3  # of one size, of any size, of eval()


@pytest.mark.parametrize(
    ("kind", "fused"),
    [
        ("rows", False),
        ("padded", True),
        ("bag", False),
        ("bag", True),
        ("many rows", False),
        ("many rows", True),
        ("many bags", True),
    ],
)
def test_a_graph_trains_as_eager_does(kind, fused):
    assert_trained_alike(kind, fused, "aot_eager")


@pytest.mark.parametrize(
    "backend", ["eager", pytest.param("inductor", marks=[has_compiler, pytest.mark.slow])]
)
def test_other_backends_train_as_eager_does(backend):
    assert_trained_alike("many bags", False, backend)


@has_compiler
def test_inductor_trains_in_backward_as_eager_does():
    assert_trained_alike("rows", True, "inductor")


@pytest.mark.parametrize("backend", BACKENDS)
def test_lookups_are_neither_merged_nor_dropped_nor_moved(backend):
    embedding = Embedding(table(initializer=es.Constant(1.0)))

    def three(ids):
        first, second = embedding(ids), embedding(ids)
        embedding(ids + 10)
        return first, second

    ids = torch.tensor([1, 2])
    first, second = compiled(three, backend)(ids)
    assert first.detach().tolist() == [[0.0] * DIM] * 2  # seen once: not admitted yet
    assert second.detach().tolist() == [[1.0] * DIM] * 2  # the second time
    stats = embedding.table.stats()
    assert (len(embedding.table), stats["n_pending"]) == (2, 2)
    compiled(three, backend)(ids)
    assert embedding.table.find([1], with_meta=True).freq.tolist() == [4]
    assert len(embedding.table) == 4


def test_a_lookup_of_the_same_ids_is_made_at_each_call():
    embedding = Embedding(plain())
    forward = compiled(lambda: embedding(torch.tensor([7])))
    for n in range(1, 4):
        forward()
        assert embedding.table.find([7], with_meta=True).freq.tolist() == [n]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_lookup_that_sees_no_backward_is_forgotten(backend):
    embedding = Embedding(plain())
    forward = compiled(embedding, backend)
    n_before = len(operators._OPEN)
    rows = forward(torch.tensor([1, 2]))
    assert len(operators._OPEN) == n_before + 1
    del rows
    gc.collect()
    assert len(operators._OPEN) == n_before
    for _ in range(3):
        forward(torch.tensor([1, 2])).sum().backward()
    gc.collect()
    assert len(operators._OPEN) == n_before


def test_gradients_add_up_over_backward_passes():
    embedding = Embedding(plain())
    with torch._functorch.config.patch(donated_buffer=False):  # as retain_graph asks of any graph
        forward = compiled(embedding)
        forward(torch.tensor([7, 5, 7])).sum().backward()
        loss = forward(torch.tensor([5, 3])).sum()
        loss.backward(retain_graph=True)
        loss.backward()
    assert sorted(embedding.weight.grad[:, 0].tolist()) == [2.0, 2.0, 3.0]


def test_a_table_whose_rows_the_loss_passes_over_is_not_trained():
    model = EmbeddingCollection([plain("user"), plain("item")], FEATURES)
    ids = {"u": torch.tensor([1]), "a": torch.tensor([2]), "b": torch.tensor([2, 3])}
    compiled(lambda given: model(given)["b"].sum())(ids).backward()
    assert model.user.grad is None
    assert model.item.grad.sum().item() == 2 * DIM  # with zeros of feature a


def test_eval_no_grad_and_inference_change_nothing():
    embedding = Embedding(plain())
    forward = compiled(embedding)
    ids = torch.tensor([1, 2])
    with torch.no_grad():
        assert forward(ids).abs().sum() == 0
    with torch.inference_mode():
        forward(ids)
    embedding.eval()
    assert not forward(ids).requires_grad
    assert len(embedding.table) == 0
    embedding.train()
    forward(ids)
    assert len(embedding.table) == 2


def test_a_frozen_table_is_only_read():
    embedding = Embedding(plain())
    forward = compiled(embedding)
    forward(torch.tensor([1, 2]))
    embedding.requires_grad_(False)
    assert not forward(torch.tensor([2, 3])).requires_grad
    assert len(embedding.table) == 2
    embedding.requires_grad_(True)
    forward(torch.tensor([2, 3]))
    assert len(embedding.table) == 3
    embedding.weight.requires_grad = False
    assert not forward(torch.tensor([4])).requires_grad
    assert len(embedding.table) == 3
    embedding.weight.requires_grad = True
    forward(torch.tensor([4])).sum().backward()
    assert len(embedding.table) == 4
    assert embedding.weight.grad.tolist() == [[1.0] * 4]


def test_tables_of_one_lookup_are_frozen_together():
    model = EmbeddingCollection([plain("user"), plain("item")], FEATURES)
    model.user.requires_grad_(False)
    with pytest.raises(es.ArgumentError, match="some of the tables"):
        compiled(model)({"u": torch.tensor([1]), "a": torch.tensor([2])})
    assert len(model.store["item"]) == 0


def test_operators_pass_the_checks_of_torch_on_a_frozen_table():
    embedding = Embedding(plain())
    embedding(torch.tensor([1, 2]))
    embedding.requires_grad_(False)
    (handle,) = embedding._handles
    plan, ids, offsets = f"[{handle.plan}]", torch.tensor([1, 2, 1]), torch.tensor([0, 2, 3])
    check, ops = library.opcheck, torch.ops.embstore
    weights = torch.tensor([1.0, 2.0, 3.0])
    for given in ([ids], [ids, offsets], [ids, offsets, weights]):
        check(ops.train.default, (handle.anchor, given, plan, "sum", None, False))
        check(ops.read.default, (given, plan, "mean", 2, False))
    check(ops.bag_of_each.default, (offsets, ids))


@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
def test_weights_of_samples_get_the_gradient_of_eager(mode, padding):
    found = []
    for is_compiled in (False, True):
        bag = EmbeddingBag(plain(), mode=mode, padding_id=padding)
        forward = compiled(bag) if is_compiled else bag
        weights = torch.linspace(0.5, 2.5, 5, requires_grad=True)
        pooled = forward(torch.tensor([1, 2, 3, 2, 1]), torch.tensor([0, 2, 2]), weights)
        pooled.square().sum().backward()
        found.append([pooled.detach(), weights.grad, embed_grads(bag.weight)])
    for theirs, own in zip(*found, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-6, atol=1e-7)
    assert found[0][1].abs().sum() > 0


def embed_grads(parameter):
    """The gradients in the order of their sums, which is that of no rule."""
    return parameter.grad.sort(dim=0).values


def test_weights_without_gradient_pool_as_in_eager():
    bag = EmbeddingBag(plain(), mode="mean", padding_id=2)
    given = (torch.tensor([1, 2, 3, 2, 1]), torch.tensor([0, 2, 2]), torch.rand(5))
    assert torch.equal(compiled(bag)(*given), bag(*given))


def test_bfloat16_rows_stay_so_and_train():
    embedding = Embedding(plain(dtype="bfloat16"))
    rows = compiled(embedding)(torch.tensor([1, 2, 1]))
    assert rows.dtype == torch.bfloat16
    assert torch.equal(rows, embedding.eval()(torch.tensor([1, 2, 1])))
    rows.sum().backward()
    assert sorted(embedding.weight.grad[:, 0].tolist()) == [1.0, 2.0]


def test_autocast_gives_the_gradients_of_eager():
    found = []
    for is_compiled in (False, True):
        torch.manual_seed(0)
        embedding, top = Embedding(plain()), torch.nn.Linear(DIM, 3)

        def forward(ids, embedding=embedding, top=top):
            return top(embedding(ids))

        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = (compiled(forward) if is_compiled else forward)(torch.tensor([1, 2]))
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
        found.append((y.detach(), embed_grads(embedding.weight)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-2, atol=1e-3)


def test_all_forms_of_ids_go_into_graphs():
    embedding, bag = Embedding(plain()), EmbeddingBag(plain("tags"), mode="sum")
    values, offsets = torch.tensor([1, 2, 3]), torch.tensor([0, 2, 3])
    nested = torch.nested.nested_tensor_from_jagged(values, offsets)
    rows = compiled(embedding)((values, offsets))
    assert torch.equal(rows.values, embedding.eval()(values))
    assert torch.equal(compiled(embedding)(nested).values(), rows.values)
    assert torch.equal(compiled(bag)(nested), bag(values, offsets[:-1]))
    assert torch.equal(compiled(embedding)(values.int()), rows.values)
    assert compiled(embedding)(torch.empty(2, 0, dtype=torch.int64)).shape == (2, 0, DIM)


class KeyedJagged:
    """What TorchRec's KeyedJaggedTensor shows."""

    def __init__(self, values, offsets):
        self._values, self._offsets = values, offsets

    def keys(self):
        return ["user", "item"]

    def values(self):
        return self._values

    def offsets(self):
        return self._offsets


def test_keyed_jagged_tensors_of_any_lengths_are_one_graph():
    model = EmbeddingBagCollection([plain("user"), plain("item")], mode="sum")
    forward = compiled(lambda given: model(given).values())
    for lengths in ([2, 1, 1, 1], [1, 2, 3, 1], [3, 0, 2, 2], [0, 5, 1, 3]):
        ends = torch.tensor([0, *lengths]).cumsum(0)
        given = KeyedJagged(torch.arange(int(ends[-1])), ends)
        pooled = forward(given)
        with torch.no_grad():
            assert torch.equal(pooled, model(given).values())
    assert counters["stats"]["unique_graphs"] <= 3


def test_a_copy_of_a_module_trains_its_own_table():
    embedding = Embedding(plain("copied"))
    other = copy.deepcopy(embedding)
    compiled(other)(torch.tensor([1, 2])).sum().backward()
    assert (len(embedding.table), len(other.table)) == (0, 2)
    assert embedding.weight.grad is None
    assert other.weight.grad.shape == (2, DIM)


def test_bad_input_raises_what_eager_raises_and_changes_nothing():
    bag, padded = EmbeddingBag(plain()), EmbeddingBag(plain("other"), padding_id=0)
    weights = torch.ones(3, requires_grad=True)
    for module, more in ((bag, ()), (padded, ()), (bag, (weights,)), (padded, (weights,))):
        with pytest.raises(es.ArgumentError, match="offsets must begin with 0"):
            compiled(module)(torch.tensor([1, 2, 3]), torch.tensor([2, 1]), *more)
    assert len(padded.table) == len(bag.table) == 0
    with pytest.raises(es.ArgumentTypeError, match="integer tensor"):
        compiled(Embedding(plain("third")))(torch.tensor([1.5]))


def test_a_ticket_of_no_lookup_is_refused():
    with pytest.raises(es.TicketError, match="of no lookup in this process"):
        torch.ops.embstore.leave(torch.tensor([2**40]), [], [], torch.zeros(1))
