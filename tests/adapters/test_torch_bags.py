"""Bags against ``torch.nn.EmbeddingBag``, and what of them is refused."""

import itertools

import numpy as np
import pytest
from contract.tools import live, snapshot

import embstore as es

torch = pytest.importorskip("torch", reason="torch is not installed: its inputs are not tested")

from embstore.torch import (  # noqa: E402
    Embedding,
    EmbeddingBag,
    optimizer,
)

INT = torch.tensor


def ones(dim=2, **parameters):
    """Return a new table of SGD at the rate 1 whose rows are born 1."""
    return es.Table(
        dim, **{"optimizer": es.SGD(lr=1.0), "initializer": es.Constant(1.0)} | parameters
    )


N_IDS, DIM = 20, 5


def bag_pair(mode, padding_id=None, **options):
    """Return an EmbeddingBag, and torch's with equal rows."""
    weight = np.random.default_rng(1).standard_normal((N_IDS, DIM), np.float32)
    table = es.Table(DIM, optimizer=es.SGD(lr=1.0), name="bag")
    table.assign(np.arange(N_IDS), weight)
    ours = EmbeddingBag(table, mode=mode, padding_id=padding_id, **options)
    theirs = torch.nn.EmbeddingBag.from_pretrained(
        torch.from_numpy(weight.copy()),
        freeze=False,
        mode=mode,
        padding_idx=padding_id,
        **options,
    )
    return ours, theirs


def compare(ours, theirs, *args, **kwargs):
    """Compare what both give, and what a step of SGD makes of their rows."""
    given, expected = ours(*args, **kwargs), theirs(*args, **kwargs)
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)
    grad = torch.from_numpy(
        np.random.default_rng(2).standard_normal(tuple(given.shape), np.float32)
    )
    given.backward(grad)
    expected.backward(grad)
    trainers = optimizer(ours), torch.optim.SGD([theirs.weight], lr=1.0)
    for trainer in trainers:
        trainer.step()
        trainer.zero_grad()
    np.testing.assert_allclose(
        ours.table.find(np.arange(N_IDS)), theirs.weight.detach(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("mode", "padding_id", "last", "dtype"),
    [*itertools.product(["sum", "mean"], [None, 3], [False, True], [torch.int64, torch.int32])],
)
def test_random_bags_are_those_of_torch(mode, padding_id, last, dtype):
    rng = np.random.default_rng(3)
    ours, theirs = bag_pair(mode, padding_id, include_last_offset=last)
    for _ in range(5):
        offsets = np.r_[0, rng.integers(0, 5, 12).cumsum()]
        ids = torch.from_numpy(rng.integers(0, N_IDS, offsets[-1])).to(dtype)
        offsets = torch.from_numpy(offsets if last else offsets[:-1]).to(dtype)
        compare(ours, theirs, ids, offsets)


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("padding_id", [None, 3])
@pytest.mark.parametrize("shape", [(6, 4), (1, 1), (0, 3)])
def test_bags_of_one_length_are_those_of_torch(mode, padding_id, shape):
    ours, theirs = bag_pair(mode, padding_id)
    compare(ours, theirs, torch.from_numpy(np.random.default_rng(4).integers(0, N_IDS, shape)))


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize("padding_id", [None, 3])
def test_bags_of_no_ids_and_no_bags_at_all_train_nothing(mode, padding_id):
    ours = EmbeddingBag(ones(), mode=mode, padding_id=padding_id)
    trainer = optimizer(ours)
    for args, n_bags in (
        ((torch.empty(4, 0, dtype=torch.int64),), 4),
        ((torch.empty(0, dtype=torch.int64), INT([0, 0])), 2),
        ((torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)), 0),
        ((torch.full((2, 3), 3)[:, : 3 if padding_id else 0],), 2),
    ):
        pooled = ours(*args)
        assert pooled.tolist() == [[0, 0]] * n_bags
        pooled.sum().backward()
        trainer.step()
    assert len(ours.table) == 0


@pytest.mark.parametrize("padding_id", [None, 3])
@pytest.mark.parametrize("wants_gradient", [False, True])
def test_weights_and_their_gradients_are_those_of_torch(padding_id, wants_gradient):
    rng = np.random.default_rng(5)
    ours, theirs = bag_pair("sum", padding_id)
    ids, offsets = torch.from_numpy(rng.integers(0, N_IDS, 30)), INT([0, 0, 4, 11, 29])
    numbers = torch.from_numpy(rng.standard_normal(30, np.float32))
    if not wants_gradient:
        compare(ours, theirs, ids, offsets, per_sample_weights=numbers)
        return
    weights = [numbers.clone().requires_grad_() for _ in range(2)]
    grad = torch.from_numpy(rng.standard_normal((5, DIM), np.float32))
    for module, own in zip((ours, theirs), weights, strict=True):
        module(ids, offsets, own).backward(grad)
    torch.testing.assert_close(weights[0].grad, weights[1].grad, rtol=1e-4, atol=1e-5)
    optimizer(ours).step()
    torch.optim.SGD([theirs.weight], lr=1.0).step()
    np.testing.assert_allclose(
        ours.table.find(np.arange(N_IDS)), theirs.weight.detach(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize("padding_id", [None, 3])
def test_the_way_of_weights_with_gradients_pools_as_the_other(mode, padding_id):
    rng = np.random.default_rng(6)
    ours = EmbeddingBag(dim=3, mode=mode, padding_id=padding_id, optimizer=es.SGD(lr=1.0))
    ids, offsets = torch.from_numpy(rng.integers(0, 9, 20)), INT([0, 3, 3, 15])
    weights = torch.from_numpy(rng.standard_normal(20, np.float32))
    plain = ours(ids, offsets, weights)
    slow = ours(ids, offsets, weights.clone().requires_grad_())
    torch.testing.assert_close(slow, plain, rtol=1e-5, atol=1e-6)
    ours.eval()
    torch.testing.assert_close(ours(ids, offsets, weights.requires_grad_()), plain)
    assert (3 in live(ours.table)) is (padding_id is None)


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
def test_gradients_of_weights_are_finite_differences(mode):
    rng = np.random.default_rng(7)
    table = es.Table(3, optimizer=es.SGD(lr=1.0), initializer=es.Normal(std=1.0))
    ours = EmbeddingBag(table, mode=mode)
    ids, offsets = torch.from_numpy(rng.integers(0, 9, 10)), INT([0, 3, 3, 7])
    weights = torch.from_numpy(rng.standard_normal(10, np.float32)).requires_grad_()
    grad = torch.from_numpy(rng.standard_normal((4, 3), np.float32))
    ours(ids, offsets, weights).backward(grad)
    ours.eval()
    for k in range(10):
        ends = []
        for eps in (1e-2, -1e-2):
            moved = weights.detach().clone()
            moved[k] += eps
            ends.append(float((ours(ids, offsets, moved) * grad).sum()))
        assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(float(weights.grad[k]), abs=1e-3)


BAD_OFFSETS = [[0, 2], [0, -1, 4], [0, 9], [0, 3, 2, 4], [1, 4], []]


@pytest.mark.parametrize("offsets", BAD_OFFSETS)
@pytest.mark.parametrize("padding_id", [None, 0])
@pytest.mark.parametrize("weights", [None, torch.ones(4), torch.ones(4, requires_grad=True)])
def test_bad_offsets_raise_and_leave_the_table_as_it_was(offsets, padding_id, weights):
    bag = EmbeddingBag(ones(), padding_id=padding_id, include_last_offset=True)
    bag(INT([[1]]))
    before = snapshot(bag.table)
    ids, bad = INT([1, 2, 0, 0]), INT(offsets, dtype=torch.int64)
    reader = EmbeddingBag(bag.table, padding_id=padding_id).eval()
    for module, given in ((bag, (ids, bad, weights)), (reader, ((ids, bad, weights),))):
        with pytest.raises(es.ArgumentError, match="offsets must begin with 0"):
            module(*given)
    with pytest.raises(es.ArgumentTypeError, match="offsets must be"):
        bag(INT([1, 2, 0, 0]), INT([0.0, 4.0]), weights)
    assert snapshot(bag.table) == before


def test_arguments_that_do_not_fit_together_are_refused():
    bag = EmbeddingBag(ones())
    ids, offsets, weights = INT([1, 2, 3]), INT([0, 3]), torch.ones(3)
    for args, shown in (
        ((ids,), r"\(n,\) with offsets"),
        ((ids[None], offsets), "are bags already"),
        ((ids.view(1, 3, 1),), r"must be \(n_bags, length\)"),
        ((ids, offsets[None]), r"offsets must be \(n_bags,\)"),
        (((ids, offsets), offsets), "offsets came twice"),
        (((ids, offsets, weights), None, weights), "weights came twice"),
        ((ids, INT([0]), torch.ones(2)), "one for each id, 3"),
        (((ids, offsets, torch.ones(2)),), "one for each id, 3"),
    ):
        with pytest.raises(es.ArgumentError, match=shown):
            bag(*args)
    with pytest.raises(es.ArgumentTypeError, match="weights must be a tensor, got list"):
        bag((ids, offsets, [1.0, 1.0, 1.0]))
    with pytest.raises(es.ArgumentTypeError, match="offsets must be a tensor, got list"):
        bag(ids, [0, 3])
    for mode in ("max", None):
        with pytest.raises((es.ArgumentError, es.ArgumentTypeError), match="mode must be one of"):
            EmbeddingBag(ones(), mode=mode)
    assert len(bag.table) == 0


def test_rows_are_inputs_whose_gradients_are_finite_differences():
    rng = np.random.default_rng(8)
    table = es.Table(3, optimizer=es.SGD(lr=1.0), name="check")
    ids = torch.from_numpy(rng.integers(0, 6, (4, 3)))
    for module in (Embedding(table), EmbeddingBag(table, mode="mean")):
        values = rng.standard_normal((6, 3), np.float32)
        table.assign(np.arange(6), values)
        out = module(ids)
        grad = torch.from_numpy(rng.standard_normal(tuple(out.shape), np.float32))
        out.backward(grad)
        trainer = optimizer(module)
        trainer.step()
        trainer.zero_grad()
        left = values - table.find(np.arange(6))
        for place in np.ndindex(6, 3):
            ends = []
            for eps in (0.5, -0.5):  # linear: a wide step is as good, and loses fewer digits
                moved = values.copy()
                moved[place] += eps
                table.assign(np.arange(6), moved)
                with torch.no_grad():
                    ends.append(float((module(ids) * grad).sum()))
            assert ends[0] - ends[1] == pytest.approx(left[place], abs=1e-3)
