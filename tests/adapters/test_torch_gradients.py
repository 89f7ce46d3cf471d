"""Gradients between backward and step: accumulated, clipped, scaled, refused."""

import copy

import numpy as np
import pytest
from contract.tools import meta, pending, snapshot
from property.pair import assert_same_rows, exported

import embstore as es

torch = pytest.importorskip("torch", reason="torch is not installed: its training is not tested")

from adapters.torch_kit import OPTIMIZERS, exact, rows, sgd  # noqa: E402

from embstore.torch import (  # noqa: E402
    Embedding,
    EmbeddingBag,
    EmbeddingCollection,
    dense_parameters,
    optimizer,
)

# Accumulation


@pytest.mark.parametrize("rule", OPTIMIZERS, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("admission", [None, es.CounterAdmission(min_count=100)])
def test_micro_batches_add_up_to_one_batch(rule, admission):
    whole, parts = (Embedding(dim=3, optimizer=rule, name="add") for _ in range(2))
    if admission is not None:  # ids from 20 on wait for ever, the others were there before
        whole, parts = (
            Embedding(dim=3, optimizer=rule, name="add", admission=admission) for _ in range(2)
        )
        for module in (whole, parts):
            module.table.find_or_insert(np.arange(20), 0, admit="always")
    trainers = [optimizer(whole), optimizer(parts)]
    rng = np.random.default_rng(5)
    buffer = torch.empty(16, dtype=torch.int64)
    for k in range(5):
        ids = torch.from_numpy(rng.integers(0, 30, 64))
        grads = exact((64, 3), seed=k)
        whole(ids).backward(grads)
        for own, grad in zip(ids.split(16), grads.split(16), strict=True):
            buffer.copy_(own)
            parts(buffer).backward(grad)
            buffer.fill_(-5)
        for trainer in trainers:
            trainer.step()
            trainer.zero_grad()
    assert_same_rows(exported(parts.table), exported(whole.table), "rows")
    assert pending(parts.table) == pending(whole.table)
    assert len(whole.table) == (30 if admission is None else 20)


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize("padding_id", [None, 3])
def test_micro_batches_of_bags_add_up_too(mode, padding_id):
    config = {"dim": 2, "optimizer": es.Adagrad(lr=0.1), "name": "bags", "mode": mode}
    config["padding_id"] = padding_id
    config["admission"] = es.CounterAdmission(min_count=100)
    modules = [EmbeddingBag(**config) for _ in range(2)]
    for module in modules:
        module.table.find_or_insert(np.arange(8), 0, admit="always")
    whole, parts = modules
    trainers = [optimizer(module) for module in modules]
    rng = np.random.default_rng(6)
    ids, weights = torch.empty(4, 4, dtype=torch.int64), torch.empty(4, 4)
    for k in range(6):
        all_ids = torch.from_numpy(rng.integers(0, 12, (16, 4)))
        all_weights = torch.from_numpy(rng.choice([0.5, 1, 2, -1], (16, 4)).astype(np.float32))
        grads = exact((16, 2), seed=k)
        whole(all_ids, per_sample_weights=all_weights).backward(grads)
        for part in range(4):
            own = slice(4 * part, 4 * part + 4)
            ids.copy_(all_ids[own])
            weights.copy_(all_weights[own])
            pooled = parts(ids, per_sample_weights=weights)
            ids.fill_(99)
            weights.fill_(99)
            pooled.backward(grads[own])
        for trainer in trainers:
            trainer.step()
            trainer.zero_grad()
    a, b = exported(parts.table), exported(whole.table)
    np.testing.assert_array_equal(a.freq, b.freq)
    np.testing.assert_allclose(a.values, b.values, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(a.slots, b.slots, rtol=1e-5, atol=1e-9)
    assert pending(parts.table) == pending(whole.table)


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("pools", [False, True])
def test_a_lookup_that_found_no_row_has_no_part_in_the_sum(read, pools):
    table = es.Table(
        2,
        optimizer=es.SGD(lr=1.0),
        initializer=es.Constant(0.0),
        admission=es.CounterAdmission(min_count=2),
    )
    module = EmbeddingBag(table, mode="sum") if pools else Embedding(table)
    trainer = optimizer(module)
    for factor, ids in ((1.0, [1, 1, 2]), (10.0, [1, 2, 3])):
        given = torch.tensor(ids)
        out = module(given[:, None] if pools else given)
        (out * factor).sum().backward()
        if read:  # 2 waits in the first lookup, and 3 in the second
            assert module.weight.grad[:, 0].sum() == (2 if factor == 1 else 22)
    if read:
        assert module.weight.grad.shape == (2, 2)
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 1e9)
        assert float(norm) == pytest.approx(np.sqrt(2 * (12**2 + 10**2)))
    trainer.step()
    assert table.find([1, 2, 3])[:, 0].tolist() == [-12, -10, 0]


def test_gradients_that_nobody_steps_do_not_grow_with_the_number_of_lookups():
    module = sgd()
    for _ in range(500):
        module(torch.tensor([1, 2])).sum().backward()
    assert len(module.weight.gradients.lookups) <= 64
    optimizer(module).step()
    assert rows(module, 1, 2) == [[-500, -500]] * 2


def test_a_dense_gradient_that_shares_memory_with_that_of_rows_is_changed_alone():
    module = sgd()
    beside = torch.nn.Parameter(torch.zeros(8))
    for _ in range(2):  # the second adds to beside.grad in place
        (module(torch.arange(4)) + beside.view(4, 2)).mul(torch.ones(4, 2)).sum().backward()
        beside.grad.mul_(10)
    assert module.weight.grad.tolist() == [[2, 2]] * 4


# What is done to gradients


def models(seed=0, n_ids=30, dim=4):
    """Return the same model twice: on a table, and on torch's embedding."""
    torch.manual_seed(seed)
    peer = torch.nn.Sequential(torch.nn.Embedding(n_ids, dim), torch.nn.Linear(dim, 1))
    table = es.Table(dim, optimizer=es.SGD(lr=0.5), name="peer")
    table.assign(np.arange(n_ids), peer[0].weight.detach().numpy())
    ours = torch.nn.Sequential(Embedding(table), copy.deepcopy(peer[1]))
    return ours, peer


def trained(ours, peer, change, n_steps=10, scaled=1.0):
    """Train both for some steps, calling `change` between backward and step; compare them."""
    sparse = optimizer(ours)
    dense = torch.optim.SGD(dense_parameters(ours), lr=0.5)
    whole = torch.optim.SGD(peer.parameters(), lr=0.5)
    for k in range(n_steps):
        ids = torch.from_numpy(np.random.default_rng(k).integers(0, 30, 20))
        for model, trainers in ((ours, (sparse, dense)), (peer, (whole,))):
            (model(ids).square().mean() * scaled).backward()
            change(model)
            for trainer in trainers:
                trainer.step()
                trainer.zero_grad()
    expected = peer[0].weight.detach().numpy()
    np.testing.assert_allclose(ours[0].table.find(np.arange(30)), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours[1].weight, peer[1].weight, rtol=1e-5, atol=1e-6)


def test_clip_grad_norm_is_that_of_the_dense_model():
    ours, peer = models()
    norms = {id(ours): [], id(peer): []}

    def clip(model):
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        norms[id(model)].append(float(norm))

    trained(ours, peer, clip)
    np.testing.assert_allclose(norms[id(ours)], norms[id(peer)], rtol=1e-5)
    assert max(norms[id(peer)]) > 0.1


def test_clip_grad_value_is_that_of_the_dense_model():
    trained(*models(), lambda model: torch.nn.utils.clip_grad_value_(model.parameters(), 0.01))


def test_reading_the_gradient_changes_no_bit_of_the_result():
    results = []
    for is_read in (False, True):
        module = Embedding(dim=3, optimizer=es.Adam(lr=0.1), name="read")
        trainer = optimizer(module)
        rng = np.random.default_rng(7)
        for _ in range(5):
            ids = torch.from_numpy(rng.integers(0, 9, 200))
            module(ids).backward(torch.from_numpy(rng.standard_normal((200, 3), np.float32)))
            if is_read:
                assert module.weight.grad.shape == (9, 3)
            trainer.step()
            trainer.zero_grad()
        results.append(exported(module.table))
    assert_same_rows(*results, "rows")


def test_a_gradient_cannot_be_replaced():
    module = sgd()
    module(torch.tensor([1])).sum().backward()
    with pytest.raises(es.ArgumentError, match="in place"):
        module.weight.grad = torch.zeros(1, 2)
    module.weight.grad = None
    assert module.weight.grad is None


@pytest.mark.parametrize("scale", [2.0, 2.0**16])
def test_grad_scaler_gives_what_there_is_without_it(scale):
    module, plain = sgd(), sgd()
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    trainer, plain_trainer = optimizer(module), optimizer(plain)
    for _ in range(3):
        for _ in range(2):
            scaler.scale(module(torch.tensor([1, 2, 1])).sum()).backward()
            plain(torch.tensor([1, 2, 1])).sum().backward()
        scaler.step(trainer)
        scaler.update()
        trainer.zero_grad()
        plain_trainer.step()
        plain_trainer.zero_grad()
    assert rows(module, 1, 2) == rows(plain, 1, 2) == [[-12, -12], [-6, -6]]
    assert module.step == 3


def test_grad_scaler_skips_a_step_with_infinity_and_halves_its_scale():
    module = sgd()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer = optimizer(module)
    for factor in (1.0, np.inf, 1.0):
        scaler.scale((module(torch.tensor([1])) * factor).sum()).backward()
        scaler.unscale_(trainer)
        torch.nn.utils.clip_grad_norm_(module.parameters(), 100.0)
        scaler.step(trainer)
        scaler.update()
        trainer.zero_grad()
    assert scaler.get_scale() == 4.0
    assert rows(module, 1) == [[-2, -2]]
    assert module.step == 2
    assert meta(module.table, 1) == [(3, 1)]


def test_autocast_trains_float32_rows_by_gradients_of_bfloat16_layers():
    module = Embedding(dim=4, optimizer=es.SGD(lr=1.0), name="cast")
    tower = torch.nn.Linear(4, 1, bias=False)
    ids = torch.tensor([1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        given = module(ids)
        out = tower(given)
    assert (given.dtype, out.dtype) == (torch.float32, torch.bfloat16)
    before = module.table.find(ids.numpy())
    out.sum().backward()
    optimizer(module).step()
    moved = before - module.table.find(ids.numpy())
    expected = tower.weight.detach().bfloat16().float().expand(2, 4).numpy()
    np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_and_the_step_is_not_over(bad):
    module = sgd()
    trainer = optimizer(module)
    module(torch.tensor([1, 2])).backward(torch.tensor([[1.0, 1.0], [1.0, bad]]))
    before = snapshot(module.table)
    for _ in range(2):
        with pytest.raises(es.NonFiniteError):
            trainer.step()
    assert snapshot(module.table) == before
    assert module.step == 0
    trainer.zero_grad()
    trainer.step()
    assert module.step == 1


def test_a_bad_gradient_of_one_of_two_tables_spares_that_one_and_the_step_is_not_over():
    model = EmbeddingCollection(
        [es.Table(2, name=n, optimizer=es.SGD(lr=1.0)) for n in ("good", "bad")]
    )
    trainer = optimizer(model)
    given = model({"good": torch.tensor([1]), "bad": torch.tensor([1])})
    (given["good"] + given["bad"] * np.inf).sum().backward()
    before = snapshot(model.store["bad"])
    with pytest.raises(es.NonFiniteError, match="bad"):
        trainer.step()
    assert snapshot(model.store["bad"]) == before
    assert model.step == 0


def test_an_error_in_fused_backward_keeps_its_type_and_the_next_one_works():
    module = sgd(fused=True)
    with pytest.raises(es.NonFiniteError):
        (module(torch.tensor([1])) * np.inf).sum().backward()
    assert rows(module, 1) == [[0, 0]]
    module(torch.tensor([1])).sum().backward()
    assert rows(module, 1) == [[-1, -1]]


def test_a_step_after_clear_says_that_the_ticket_is_void():
    module = sgd()
    trainer = optimizer(module)
    module(torch.tensor([1])).sum().backward()
    module.table.clear()
    with pytest.raises(es.TicketError):
        trainer.step()
    trainer.zero_grad()
    trainer.step()
