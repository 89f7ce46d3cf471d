"""The forms in which ids come."""

import numpy as np
import pytest
from contract.tools import live, meta, snapshot

import embstore as es

torch = pytest.importorskip("torch", reason="torch is not installed: its inputs are not tested")

from embstore.torch import (  # noqa: E402
    Embedding,
    EmbeddingBag,
    EmbeddingBagCollection,
    EmbeddingCollection,
    Jagged,
    KeyedTensor,
    optimizer,
)

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
INT = torch.tensor
BAD_OFFSETS = [[0, 2], [0, -1, 4], [0, 9], [0, 3, 2, 4], [1, 4], []]


class JaggedTensor:
    """TorchRec's, by its methods."""

    def __init__(self, values, lengths, weights=None):
        self._values, self._lengths, self._weights = values, lengths, weights

    def values(self):
        return self._values

    def lengths(self):
        return self._lengths

    def offsets(self):
        return torch.cat([self._lengths.new_zeros(1), self._lengths.cumsum(0)])

    def weights_or_none(self):
        return self._weights


class KeyedJaggedTensor(JaggedTensor):
    """TorchRec's, by its methods; feature i has ``strides[i]`` lists."""

    def __init__(self, keys, values, lengths, weights=None, strides=None):
        super().__init__(values, lengths, weights)
        self._keys = keys
        self._strides = strides or [len(lengths) // len(keys)] * len(keys)

    def keys(self):
        return self._keys

    def stride(self):
        return max(self._strides)

    def stride_per_key(self):
        return self._strides


def ones(dim=2, **parameters):
    """Return a new table of SGD at the rate 1 whose rows are born 1."""
    return es.Table(
        dim, **{"optimizer": es.SGD(lr=1.0), "initializer": es.Constant(1.0)} | parameters
    )


def nested(*lists):
    return torch.nested.nested_tensor([INT(one) for one in lists], layout=torch.jagged)


# Ids


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint32, torch.int64, torch.uint64])
def test_integers_of_32_and_64_bits_are_ids(dtype):
    module = Embedding(dim=2, name="ints")
    expected = module(INT([5, 2**31 - 1]))
    assert torch.equal(module(INT([5, 2**31 - 1]).to(dtype)), expected)
    assert live(module.table) == [5, 2**31 - 1]


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int16, torch.float32, torch.bool, torch.complex64]
)
@pytest.mark.parametrize("padding_id", [None, 0])
def test_other_dtypes_are_refused_by_every_module(dtype, padding_id):
    table = ones(name="t")
    ids = INT([[1, 1]]).to(dtype)
    for module in (
        Embedding(table, padding_id=padding_id),
        EmbeddingBag(table, padding_id=padding_id),
        lambda ids: EmbeddingCollection([table], padding_id=padding_id)({"t": ids}),
        lambda ids: EmbeddingBagCollection([table], padding_id=padding_id)({"t": ids}),
    ):
        with pytest.raises(es.ArgumentTypeError, match=str(dtype).rpartition(".")[2]):
            module(ids)
    assert len(table) == 0


def test_ids_need_not_be_contiguous():
    module = Embedding(dim=3, name="strides")
    ids = torch.arange(24).view(4, 6)
    for given in (ids.t(), ids[:, ::2], ids[1:3, 2:5], ids[:1].expand(3, 6), ids.flip(0)):
        expected = module.table.find(given.reshape(-1).numpy(), missing="initial")
        assert torch.equal(module(given).reshape(-1, 3), torch.from_numpy(expected))
        pooled = EmbeddingBag(module.table, mode="sum").eval()(given)
        torch.testing.assert_close(pooled, module(given).sum(1))


def test_gradients_need_not_be_contiguous():
    module = Embedding(dim=3, optimizer=es.SGD(lr=1.0), initializer=es.Constant(0.0))
    trainer = optimizer(module)
    grad = torch.arange(6.0).view(3, 2)
    module(INT([1, 2])).backward(grad.t())
    trainer.step()
    trainer.zero_grad()
    module(INT([3, 4])).backward(torch.ones(1).expand(2, 3))
    trainer.step()
    assert module.table.find([1, 2, 3]).tolist() == [[0, -2, -4], [-1, -3, -5], [-1, -1, -1]]


def test_what_is_no_ids_is_named():
    module = Embedding(ones())
    for bad, shown in (
        ([1, 2], r"\(int, int\)"),
        (np.arange(3), "ndarray"),
        ({}, "dict"),
        (3, "int"),
        ((INT([1]), [0, 1]), r"\(Tensor, list\)"),
        ((), r"\(\)"),
    ):
        with pytest.raises(es.ArgumentTypeError, match=rf"Embedding: .*got {shown}$"):
            module(bad)
    with pytest.raises(es.ArgumentError, match=r"values must be \(n,\), got \(2, 2\)"):
        module((torch.ones(2, 2, dtype=torch.int64), INT([0, 2])))


@pytest.mark.parametrize("bad", ["0", 1.0, True])
def test_padding_is_an_int(bad):
    for make in (Embedding, EmbeddingBag):
        with pytest.raises(es.ArgumentTypeError, match="padding_id must be an int, got"):
            make(dim=2, padding_id=bad)
        with pytest.raises(es.ArgumentError, match="from -2"):
            make(dim=2, padding_id=2**63)


# Lists of ids


@pytest.mark.parametrize("padding_id", [None, 7])
def test_lists_give_lists_of_rows(padding_id):
    module = Embedding(ones(), padding_id=padding_id)
    values, offsets, weights = INT([5, 7, 5]), INT([0, 2, 2, 3]), torch.tensor([1.0, 2.0, 3.0])
    expected = torch.ones(3, 2)
    if padding_id is not None:
        expected[1] = 0
    for given in (
        (values, offsets),
        Jagged(values, offsets),
        Jagged(values, offsets, weights),
        JaggedTensor(values, INT([2, 0, 1])),
        JaggedTensor(values, INT([2, 0, 1]), weights),
    ):
        rows = module(given)
        assert isinstance(rows, Jagged)
        assert torch.equal(rows.values, expected)
        assert torch.equal(rows.offsets, offsets)
        had = given.weights_or_none() if isinstance(given, JaggedTensor) else [*given, None][2]
        assert rows.weights is had or torch.equal(rows.weights, had)


def test_lists_become_padded_rows():
    rows = Jagged(torch.tensor([[1.0, 2], [3, 4], [5, 6]]), INT([0, 2, 2, 3]))
    padded = rows.to_padded()
    assert padded.tolist() == [[[1, 2], [3, 4]], [[0, 0], [0, 0]], [[5, 6], [0, 0]]]
    assert rows.to_padded(1).tolist() == [[[1, 2]], [[0, 0]], [[5, 6]]]
    assert rows.to_padded(3, padding=9)[2].tolist() == [[5, 6], [9, 9], [9, 9]]
    assert Jagged(INT([1, 2, 3]), INT([0, 1, 3])).to_padded(padding=-1).tolist() == [
        [1, -1],
        [2, 3],
    ]
    assert Jagged(INT([]), INT([0])).to_padded().shape == (0, 0)
    assert rows.to_padded(0).shape == (3, 0, 2)


def test_gradients_come_back_through_padded_rows():
    module = Embedding(ones(initializer=es.Constant(0.0)))
    trainer = optimizer(module)
    padded = module((INT([1, 2, 1]), INT([0, 2, 2, 3]))).to_padded()
    padded.backward(torch.arange(12.0).view(3, 2, 2))
    trainer.step()
    assert module.table.find([1, 2]).tolist() == [[-0 - 8, -1 - 9], [-2, -3]]


def test_nested_tensors_go_in_and_come_out_and_keep_their_structure():
    module, other = Embedding(ones(initializer=es.Constant(0.0))), Embedding(ones(dim=2))
    trainer = optimizer(module)
    ids = nested([1, 2, 3], [1], [5, 5])
    rows = module(ids)
    assert rows.is_nested
    assert [part.shape for part in rows.unbind()] == [(3, 2), (1, 2), (2, 2)]
    both = rows + other(ids)
    both.values().sum().backward()
    trainer.step()
    assert module.table.find([1, 2, 3, 5]).tolist() == [[-2, -2], [-1, -1], [-1, -1], [-2, -2]]
    read = module.eval()(ids)
    assert read.unbind()[2].tolist() == [[-2, -2], [-2, -2]]
    pooled = EmbeddingBag(module.table, mode="sum").eval()(ids)
    assert pooled.tolist() == [[-4, -4], [-2, -2], [-4, -4]]


@pytest.mark.parametrize("wants_gradient", [False, True])
def test_weights_of_nested_ids_may_be_nested(wants_gradient):
    ids = nested([1, 2, 3], [1], [5, 5])
    numbers = [torch.tensor(one) for one in ([1.0, 2, 3], [4.0], [5.0, 6])]
    weights = torch.nested.nested_tensor(numbers, layout=torch.jagged)
    pooled = EmbeddingBag(ones(), mode="sum")(
        ids, per_sample_weights=weights.requires_grad_(wants_gradient)
    )
    assert pooled.tolist() == [[6, 6], [4, 4], [11, 11]]
    if wants_gradient:
        pooled.sum().backward()
        assert weights.grad.values().tolist() == [2] * 6


def test_nested_tensors_with_holes_or_of_another_layout_are_refused():
    module = Embedding(ones())
    holes = torch.nested.nested_tensor_from_jagged(
        torch.arange(10), INT([0, 4, 10]), lengths=INT([2, 3])
    )
    with pytest.raises(es.ArgumentTypeError, match="holes"):
        module(holes)
    strided = torch.nested.nested_tensor([INT([1]), INT([2, 3])], layout=torch.strided)
    with pytest.raises(es.ArgumentTypeError, match=r"layout torch\.jagged"):
        module(strided)
    assert len(module.table) == 0


# Many features


def two_tables():
    return [ones(name="u", initializer=es.Constant(1.0)), ones(name="i", dim=3)]


def keyed(strides=None):
    """Return lists of u, of i, and of u again: [[1], [2, 2], []], [[5, 5], [], [6]], ..."""
    lengths = INT([1, 2, 0, 2, 0, 1, 1, 1, 1])
    values = INT([1, 2, 2, 5, 5, 6, 1, 3, 4])
    weights = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8, 9])
    return KeyedJaggedTensor(["a", "b", "c"], values, lengths, weights, strides)


FEATURES = {"a": "u", "b": "i", "c": "u"}


def test_a_keyed_jagged_tensor_is_pooled_by_feature_with_its_weights():
    model = EmbeddingBagCollection(two_tables(), FEATURES)
    trainer = optimizer(model)
    pooled = model(keyed())
    assert isinstance(pooled, KeyedTensor)
    assert pooled.keys() == ["a", "b", "c"]
    assert pooled.length_per_key() == [2, 3, 2]
    assert pooled["a"][:, 0].tolist() == [1, 5, 0]
    assert pooled["b"][:, 0].tolist() == [9, 0, 6]
    assert pooled.values().shape == (3, 7)
    assert torch.equal(torch.cat([*pooled.to_dict().values()], 1), pooled.values())
    assert (len(pooled), [*pooled]) == (3, ["a", "b", "c"])
    pooled.values().sum().backward()
    trainer.step()
    assert model.store["u"].find([1, 2, 3, 4])[:, 0].tolist() == [1 - 1 - 7, 1 - 5, 1 - 8, 1 - 9]
    assert model.store["i"].find([5, 6])[:, 0].tolist() == [1 - 9, 1 - 6]
    assert meta(model.store["u"], 1, 2) == [(2, 0), (2, 0)]


def test_a_keyed_jagged_tensor_gives_lists_by_feature():
    model = EmbeddingCollection(two_tables(), FEATURES)
    given = model(keyed())
    assert {f: tuple(rows.values.shape) for f, rows in given.items()} == {
        "a": (3, 2),
        "b": (3, 3),
        "c": (3, 2),
    }
    assert given["b"].offsets.tolist() == [0, 2, 2, 3]
    assert given["c"].weights.tolist() == [7, 8, 9]


def test_features_may_have_different_numbers_of_lists():
    lengths, values = INT([1, 2, 2, 0, 1]), INT([1, 2, 2, 5, 5, 6])
    given = KeyedJaggedTensor(["a", "b"], values, lengths, strides=[2, 3])
    pooled = EmbeddingBagCollection(two_tables(), {"a": "u", "b": "i"})(given)
    assert pooled["a"][:, 0].tolist() == [1, 2]
    assert pooled["b"][:, 0].tolist() == [2, 0, 1]
    bad = KeyedJaggedTensor(["a", "b"], values, lengths, strides=[2, 2])
    with pytest.raises(es.ArgumentError, match="offsets"):
        EmbeddingBagCollection(two_tables(), {"a": "u", "b": "i"})(bad)


def test_a_collection_gives_what_modules_of_one_table_give():
    rng = np.random.default_rng(9)
    for mode in ("sum", "mean", "sqrtn"):
        model = EmbeddingBagCollection(two_tables(), FEATURES, mode=mode, padding_id=0)
        trainer = optimizer(model)
        single = {
            name: EmbeddingBag(ones(table.dim, name=name), mode=mode, padding_id=0)
            for name, table in ((t.name, t) for t in two_tables())
        }
        trainers = [optimizer(bag) for bag in single.values()]
        for _ in range(3):
            ids = {f: torch.from_numpy(rng.integers(0, 4, (5, 3))) for f in FEATURES}
            pooled = model(ids)
            pooled.values().square().sum().backward()
            trainer.step()
            trainer.zero_grad()
            for f, table in FEATURES.items():
                own = single[table](ids[f])
                torch.testing.assert_close(pooled[f], own)
                own.square().sum().backward()
            for own_trainer in trainers:
                own_trainer.step()
                own_trainer.zero_grad()
        for name, bag in single.items():
            keys = np.arange(4)
            np.testing.assert_allclose(
                model.store[name].find(keys), bag.table.find(keys), rtol=1e-5, atol=1e-5
            )
            assert meta(model.store[name], 1, 2) == meta(bag.table, 1, 2)
            assert 0 not in live(bag.table)


@pytest.mark.parametrize("kind", [EmbeddingCollection, EmbeddingBagCollection])
def test_a_table_may_have_the_name_of_what_modules_have(kind):
    names = [
        "half",
        "type",
        "store",
        "step",
        "training",
        "modes",
        "weight",
        "a.b",
        "a/b",
        "_tables",
    ]
    model = kind([ones(name=name) for name in names])
    trainer = optimizer(model)
    given = model({name: INT([[1, 1]]) for name in names})
    given = given if kind is EmbeddingCollection else given.to_dict()
    sum(rows.sum() for rows in given.values()).backward()
    trainer.step()
    own = {name for name, _ in model.eval().named_parameters()}
    assert own >= {"half_", "type_", "training_", "weight", "a/b", "a/b_"}
    assert len(own) == len(names)
    for name in names:
        assert model.store[name].find([1]).tolist() == [[-1, -1]]


@pytest.mark.parametrize("kind", [EmbeddingCollection, EmbeddingBagCollection])
def test_collections_that_only_read_change_nothing(kind):
    model = kind(two_tables(), FEATURES)
    model({"a": INT([[1, 2]])})
    before = [snapshot(model.store[name]) for name in model.store]
    ids = {"a": INT([[1, 9]]), "b": INT([[1, 9]])}
    with torch.no_grad():
        model(ids)
    given = model.eval()(ids)
    given = given if kind is EmbeddingCollection else given.to_dict()
    assert not any(rows.requires_grad for rows in given.values())
    assert [snapshot(model.store[name]) for name in model.store] == before


def test_what_a_collection_does_not_know_is_named():
    pooling, listing = EmbeddingBagCollection(two_tables()), EmbeddingCollection(two_tables())
    for model in (pooling, listing):
        with pytest.raises(es.ArgumentError, match="unknown feature 'x'"):
            model({"x": INT([[1]])})
        with pytest.raises(es.ArgumentTypeError, match="got list"):
            model([INT([1])])
    weights = torch.ones(2, requires_grad=True)
    with pytest.raises(es.ArgumentError, match="weights ask for gradients"):
        pooling({"u": (INT([1, 2]), INT([0, 2]), weights)})
    for offsets in BAD_OFFSETS:
        for padding_id in (None, 0):
            model = EmbeddingBagCollection(two_tables(), padding_id=padding_id)
            with pytest.raises(es.ArgumentError, match="offsets must begin with 0"):
                model({"u": (INT([1, 2, 0, 0]), INT(offsets, dtype=torch.int64))})
            assert len(model.store["u"]) == 0
    with pytest.raises(es.ArgumentError, match="mode must have the features"):
        EmbeddingBagCollection(two_tables(), mode={"u": "sum"})
    assert len(pooling.store["u"]) == len(listing.store["u"]) == 0
