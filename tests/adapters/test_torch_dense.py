"""Rows of tables as plain modules of torch, and tables of plain weights."""

import copy

import numpy as np
import pytest

import embstore as es

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

from embstore.torch import (  # noqa: E402
    DenseEmbedding,
    DenseEmbeddingBag,
    Embedding,
    EmbeddingBag,
    optimizer,
)

KEYS = torch.tensor([70, -5, 2**62, -(2**63), 0, 2**63 - 1])
IDS = torch.tensor([[70, 0, 3], [2**62, -(2**63), -6], [2**63 - 1, -5, 71]])


def make_table(dtype="float32", **parameters):
    table = es.Table(dim=3, dtype=dtype, optimizer=es.SGD(lr=0.5), **parameters)
    values = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    table.assign(KEYS.numpy(), values)
    return table


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("default", [None, 0.25, [1.0, 2.0, 3.0]])
@pytest.mark.parametrize("padding", [None, -5])
def test_a_dense_module_reads_what_the_table_reads(dtype, default, padding):
    model = Embedding(make_table(dtype, default_row=default), padding_id=padding).eval()
    dense = model.to_dense()
    assert torch.equal(dense(IDS), model(IDS))
    assert dense.weight.dtype == model(IDS).dtype
    assert torch.equal(dense.keys, KEYS.sort().values)
    assert type(dense.weight) is torch.nn.Parameter


def test_dense_rows_of_some_keys_leave_the_others_out():
    model = Embedding(make_table(default_row=0.5)).eval()
    dense = model.to_dense(torch.tensor([70, 9, 70]))
    assert dense.keys.tolist() == [9, 70]
    assert torch.equal(dense(torch.tensor([70])), model(torch.tensor([70])))
    assert dense(torch.tensor([9, 0])).tolist() == [[0.5] * 3] * 2
    empty = model.to_dense(torch.empty(0, dtype=torch.int64))
    assert empty(IDS).eq(0.5).all()


def test_gradients_are_dense_and_train_as_the_table_would():
    model = Embedding(make_table())
    dense, trainer = model.to_dense(), optimizer(model)
    plain = torch.optim.SGD(dense.parameters(), lr=0.5)
    known = KEYS[[0, 0, 3, 5]]
    for step in range(3):
        for each, by in ((model, trainer), (dense, plain)):
            each(known).square().sum().backward()
            by.step()
            if step == 0 and each is dense:
                assert dense.weight.grad.layout == torch.strided
                assert dense.weight.grad.shape == (7, 3)
            by.zero_grad()
    torch.testing.assert_close(dense(KEYS), model(KEYS).detach(), rtol=1e-6, atol=1e-7)


def test_the_default_row_is_trained_only_if_asked():
    for trains in (False, True):
        dense = DenseEmbedding(torch.tensor([5]), torch.ones(2, 3), trains_default=trains)
        dense(torch.tensor([5, 6, 7])).sum().backward()
        assert dense.weight.grad.tolist() == [[1] * 3, [2.0 * trains] * 3]


def test_gradcheck_passes_in_float64():
    ids = torch.tensor([[70, 0], [3, 70]])
    dense = Embedding(make_table()).to_dense().double()
    dense.trains_default = True

    def rows(weight):
        return torch.func.functional_call(dense, {"weight": weight}, (ids,))

    assert dense.weight.dtype == torch.float64
    assert torch.autograd.gradcheck(rows, (dense.weight,))
    for mode in ("sum", "mean", "sqrtn"):
        bag = EmbeddingBag(make_table(), mode=mode, padding_id=0).to_dense().double()
        bag.trains_default = True

        def pooled(weight, factors, bag=bag):
            return torch.func.functional_call(bag, {"weight": weight}, (ids, None, factors))

        factors = torch.rand(2, 2, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(pooled, (bag.weight, factors))


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_dense_bags_pool_as_the_table_pools(mode, padding, is_weighted):
    model = EmbeddingBag(make_table(default_row=0.5), mode=mode, padding_id=padding).eval()
    dense = model.to_dense()
    weights = torch.rand(9) if is_weighted else None
    square = None if weights is None else weights.reshape(3, 3)
    torch.testing.assert_close(dense(IDS, None, square), model(IDS, None, square))
    offsets = torch.tensor([0, 0, 2, 7, 9, 9])
    flat = IDS.reshape(-1)
    torch.testing.assert_close(dense(flat, offsets, weights), model(flat, offsets, weights))
    assert dense(flat, offsets, weights)[0].tolist() == [0, 0, 0]
    dense.include_last_offset = model.include_last_offset = True
    torch.testing.assert_close(dense(flat, offsets, weights), model(flat, offsets, weights))
    assert len(dense(flat, offsets, weights)) == 5


def test_rows_are_written_back():
    table = make_table()
    dense = Embedding(table).to_dense(torch.tensor([70, 0, 9]))
    with torch.no_grad():
        dense.weight += 1
    before = table.find(KEYS.numpy())
    report = dense.write_back(table)
    assert (report.n_replaced, report.n_inserted) == (2, 1)
    after = table.find(KEYS.numpy())
    assert np.array_equal(after[[0, 4]], before[[0, 4]] + np.float32(1))
    assert np.array_equal(after[[1, 2, 3, 5]], before[[1, 2, 3, 5]])
    assert table.find([9]).tolist() == [[1, 1, 1]]
    with pytest.raises(es.ArgumentError, match=r"weight must be \(n, 2\), got \(4, 3\)"):
        dense.write_back(es.Table(dim=2))
    with pytest.raises(es.ArgumentTypeError, match=r"expected an embstore\.Table"):
        dense.write_back("user")


def test_a_dense_module_is_saved_copied_compiled_and_exported_as_any():
    dense = Embedding(make_table()).to_dense()
    other = DenseEmbedding(torch.arange(6), torch.zeros(7, 3))
    other.load_state_dict(dense.state_dict())
    assert torch.equal(other(IDS), dense(IDS))
    assert torch.equal(copy.deepcopy(dense)(IDS), dense(IDS))
    compiled = torch.compile(dense, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(IDS), dense(IDS))
    exported = torch.export.export(dense, (IDS,), dynamic_shapes=({0: torch.export.Dim("n")},))
    assert torch.equal(exported.module()(IDS[:2]), dense(IDS[:2]))
    ops = {str(n.target) for n in exported.graph.nodes if n.op == "call_function"}
    assert [op for op in ops if "embstore" in op] == []
    bag = EmbeddingBag(make_table(), mode="sqrtn").to_dense()
    exported = torch.export.export(bag, (IDS,))
    assert torch.equal(exported.module()(IDS), bag(IDS))


@pytest.mark.parametrize(
    ("attempt", "expected"),
    [
        (lambda: DenseEmbedding(torch.tensor([2, 1]), torch.ones(3, 3)), "must be sorted"),
        (lambda: DenseEmbedding(torch.tensor([1, 1]), torch.ones(3, 3)), "each once"),
        (lambda: DenseEmbedding(torch.tensor([1]), torch.ones(3, 3)), r"got \(3, 3\)"),
        (lambda: DenseEmbedding(torch.tensor([1.0]), torch.ones(2, 3)), "int64 tensor"),
        (lambda: DenseEmbedding(torch.tensor([1]), torch.ones(6)), r"must be \(n, dim\)"),
        (lambda: DenseEmbedding(torch.tensor([1]), torch.ones(2, 3).int()), "floating tensor"),
        (lambda: DenseEmbeddingBag(torch.tensor([1]), torch.ones(2, 3), mode="max"), "mode"),
        (lambda: Embedding(make_table()).to_dense([1, 2]), "int64 tensor"),
        (lambda: Embedding(make_table()).to_dense()(torch.tensor([1.0])), "integer tensor"),
        (lambda: EmbeddingBag(make_table()).to_dense()(torch.tensor([1])), "with offsets"),
        (lambda: Embedding.from_pretrained(torch.ones(2, 3), False), "int64 tensor"),
        (lambda: Embedding.from_pretrained(torch.ones(2, 3), torch.tensor([1])), "got 1"),
        (lambda: Embedding.from_pretrained(torch.ones(2, 3), torch.tensor([1, 1])), "twice"),
        (lambda: Embedding.from_pretrained(torch.ones(2, 3), dim=4), "dim=4"),
        (
            lambda: Embedding.from_pretrained(torch.ones(9, 3), max_rows=5, on_full="refuse"),
            "9 rows, of which 5 fit",
        ),
    ],
)
def test_what_cannot_be_is_refused(attempt, expected):
    with pytest.raises((es.ArgumentError, es.ArgumentTypeError), match=expected):
        attempt()


@pytest.mark.parametrize("kind", [Embedding, EmbeddingBag])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_from_pretrained_is_as_torch_has_it(kind, dtype):
    weight = torch.randn(8, 3).to(dtype)
    ids = torch.tensor([[7, 0], [3, 3]])
    model = kind.from_pretrained(weight, name="user", admission=es.CounterAdmission(5))
    own = getattr(torch.nn, kind.__name__).from_pretrained(weight.float())
    expected = torch.float32 if dtype == torch.float64 else dtype
    assert model(ids).dtype == expected
    torch.testing.assert_close(model(ids).float(), own(ids), rtol=1e-2, atol=1e-2)
    if kind is Embedding:
        assert torch.equal(model(ids), weight.to(expected)[ids])
    assert not model.weight.requires_grad
    assert not model(ids).requires_grad
    assert model(torch.tensor([[99, 98]])).eq(0).all()
    assert len(model.table) == 8


def test_from_pretrained_with_keys_can_be_trained():
    weight = torch.randn(6, 3)
    model = Embedding.from_pretrained(weight, KEYS, freeze=False, optimizer=es.SGD(lr=0.5))
    trainer = optimizer(model)
    model(KEYS[:1]).sum().backward()
    trainer.step()
    assert torch.equal(model(KEYS[:1]).detach(), weight[:1] - 0.5)
    assert torch.equal(model(KEYS[1:]).detach(), weight[1:])
