"""From equal rows and the same recorded gradients, tables train as torch's optimizers do.

Gradients are multiples of 2**-10 whose sums are exact in float32 in any order, and those of one id
in one batch have one sign, so that no sum is next to nothing: what is compared is the optimizers,
not the order of sums, nor Adam's eps, which torch adds to another (a rescaled) denominator. Rows
stay between about 0.3 and 2, since a relative tolerance means nothing for one that crosses 0.
"""

import numpy as np
import pytest

import embstore as es

torch = pytest.importorskip("torch", reason="torch is not installed: its optimizers are no peers")

from embstore.torch import Embedding, optimizer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # Adagrad's

N_IDS, DIM, N_STEPS = 40, 6, 200
LAZY = {  # torch's leave the rows that a batch does not touch alone, too
    "SGD": (es.SGD(lr=0.01), lambda p: torch.optim.SGD(p, lr=0.01)),
    "Adagrad": (es.Adagrad(lr=0.01), lambda p: torch.optim.Adagrad(p, lr=0.01)),
    "Adagrad-start": (
        es.Adagrad(lr=0.01, initial_accumulator=0.1),
        lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.1),
    ),
    "SparseAdam": (es.Adam(lr=0.01), lambda p: torch.optim.SparseAdam(p, lr=0.01)),
    "SparseAdam-betas": (
        es.Adam(lr=0.01, betas=(0.8, 0.95), eps=1e-6),
        lambda p: torch.optim.SparseAdam(p, lr=0.01, betas=(0.8, 0.95), eps=1e-6),
    ),
}
DENSE = {  # these move all rows in each step
    "Adam": (es.Adam(lr=0.01), lambda p: torch.optim.Adam(p, lr=0.01)),
    "Adam-decay": (
        es.Adam(lr=0.01, weight_decay=0.01),
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    ),
    "AdamW": (
        es.AdamW(lr=0.01, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.01),
    ),
    "SGD-momentum": (
        es.SGD(lr=0.01, momentum=0.9),
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    ),
    "SGD-nesterov": (
        es.SGD(lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.01),
    ),
    "SGD-decay": (
        es.SGD(lr=0.01, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.01),
    ),
    "Adagrad-decay": (
        es.Adagrad(lr=0.01, weight_decay=0.01),
        lambda p: torch.optim.Adagrad(p, lr=0.01, weight_decay=0.01),
    ),
}


def recorded(seed, touches_all):
    """Yield N_STEPS batches of ids (n,) and gradients (n, DIM)."""
    rng = np.random.default_rng(seed)
    for _ in range(N_STEPS):
        ids = rng.integers(0, N_IDS, rng.integers(1, 60))
        if touches_all:
            ids = rng.permutation(np.r_[ids, :N_IDS])
        signs = rng.choice([-1, 1], (N_IDS, DIM))[ids]
        grads = signs * rng.integers(16, 100, (len(ids), DIM)) / 1024
        yield torch.from_numpy(ids), torch.from_numpy(grads.astype(np.float32))


def replayed(ours, seed, touches_all):
    """Return the initial rows, and what a table trained by `ours` makes of them."""
    initial = np.random.default_rng(seed + 1).uniform(0.75, 1.25, (N_IDS, DIM)).astype(np.float32)
    model = Embedding(dim=DIM, optimizer=ours, name=f"replay{seed}")
    model.table.assign(np.arange(N_IDS), initial)
    trainer = optimizer(model)
    for ids, grads in recorded(seed, touches_all):
        model(ids).backward(grads)
        trainer.step()
        trainer.zero_grad()
    return initial, model.table.find(np.arange(N_IDS))


def replayed_by_torch(theirs, initial, seed, touches_all, is_sparse):
    peer = torch.nn.Embedding.from_pretrained(
        torch.from_numpy(initial.copy()), freeze=False, sparse=is_sparse
    )
    trainer = theirs(peer.parameters())
    for ids, grads in recorded(seed, touches_all):
        peer(ids).backward(grads)
        trainer.step()
        trainer.zero_grad()
    return peer.weight.detach().numpy()


@pytest.mark.parametrize("name", LAZY)
def test_any_batches_train_as_with_sparse_gradients_of_torch(name):
    ours, theirs = LAZY[name]
    initial, rows = replayed(ours, 10, touches_all=False)
    expected = replayed_by_torch(theirs, initial, 10, touches_all=False, is_sparse=True)
    np.testing.assert_allclose(rows, expected, rtol=1e-6, atol=1e-7)
    assert (abs(rows - initial) > 1e-3).mean() > 0.9
    assert 0.3 < rows.min() < rows.max() < 2


@pytest.mark.parametrize("name", DENSE)
def test_batches_that_touch_every_row_train_as_the_dense_optimizers_of_torch(name):
    ours, theirs = DENSE[name]
    initial, rows = replayed(ours, 20, touches_all=True)
    expected = replayed_by_torch(theirs, initial, 20, touches_all=True, is_sparse=False)
    np.testing.assert_allclose(rows, expected, rtol=1e-6, atol=1e-7)
    assert (abs(rows - initial) > 1e-3).mean() > 0.9
    assert 0.3 < rows.min() < rows.max() < 2


def test_lazy_optimizers_leave_the_other_rows_alone_and_dense_ones_do_not():
    ours, theirs = DENSE["AdamW"]
    initial, rows = replayed(ours, 30, touches_all=False)
    expected = replayed_by_torch(theirs, initial, 30, touches_all=False, is_sparse=False)
    assert abs(rows - expected).max() > 1e-3


def summed(ids, grads):
    """Return the unique ids and their sums in float64."""
    unique, inverse = np.unique(ids.numpy(), return_inverse=True)
    g = np.zeros((len(unique), DIM))
    np.add.at(g, inverse, grads.numpy())
    return unique, g


def test_row_wise_adagrad_is_that_of_fbgemm():
    lr, eps = 0.01, 1e-8
    initial, rows = replayed(es.RowWiseAdagrad(lr=lr, eps=eps), 40, touches_all=False)
    w, a = initial.astype(np.float64), np.zeros(N_IDS)
    for ids, grads in recorded(40, touches_all=False):
        at, g = summed(ids, grads)
        a[at] += (g**2).mean(axis=1)
        w[at] -= lr * g / (np.sqrt(a[at]) + eps)[:, None]
    np.testing.assert_allclose(rows, w, rtol=1e-6, atol=1e-6)


def test_ftrl_is_that_of_tensorflow():
    lr, l1, l2, beta = 0.05, 0.02, 0.01, 0.1
    ours = es.FTRL(lr=lr, l1=l1, l2=l2, beta=beta, initial_accumulator=0.1)
    initial, rows = replayed(ours, 50, touches_all=False)
    w, z, n = initial.astype(np.float64), np.zeros((N_IDS, DIM)), np.full((N_IDS, DIM), 0.1)
    for ids, grads in recorded(50, touches_all=False):
        at, g = summed(ids, grads)
        more = n[at] + g**2
        z[at] += g - (np.sqrt(more) - np.sqrt(n[at])) / lr * w[at]
        n[at] = more
        quadratic = (np.sqrt(more) + beta) / lr + 2 * l2
        w[at] = np.where(abs(z[at]) > l1, (np.sign(z[at]) * l1 - z[at]) / quadratic, 0)
    np.testing.assert_allclose(rows, w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "SparseAdam"])
def test_rates_of_a_scheduler_reach_the_table(name):
    make = {"SGD": es.SGD, "Adagrad": es.Adagrad, "SparseAdam": es.Adam}[name]
    model = Embedding(dim=DIM, optimizer=make(lr=0.02), name=f"rates{name}")
    initial = np.full((N_IDS, DIM), 0.5, np.float32)
    model.table.assign(np.arange(N_IDS), initial)
    peer = torch.nn.Embedding.from_pretrained(torch.from_numpy(initial), False, sparse=True)
    trainers = [optimizer(model), getattr(torch.optim, name)(peer.parameters(), lr=0.02)]
    schedules = [torch.optim.lr_scheduler.StepLR(t, step_size=5, gamma=0.7) for t in trainers]
    for ids, grads in list(recorded(60, touches_all=False))[:40]:
        for module, trainer, schedule in zip((model, peer), trainers, schedules, strict=True):
            module(ids).backward(grads)
            trainer.step()
            trainer.zero_grad()
            schedule.step()
    rows = model.table.find(np.arange(N_IDS))
    np.testing.assert_allclose(rows, peer.weight.detach().numpy(), rtol=1e-6, atol=1e-7)
    assert model.table.lr == pytest.approx(0.02 * 0.7**7)
