"""Optimizers: each formula by hand on one row, each option, and torch's own results."""

import math

import numpy as np
import pytest
from contract.tools import f32, ids, rows_of
from property.pair import exported

import embstore as es

SQRT_HALF = math.sqrt(0.5)


def trained(make_table, optimizer, *grads, dim=2, **parameters):
    """Return (values, slots) of a row born as 1 and trained by these gradients, step by step."""
    table = make_table(dim, optimizer=optimizer, **parameters)
    table.find_or_insert(ids(7), step=0)
    for step, grad in enumerate(grads):
        row = np.full((1, dim), grad, np.float32)
        table.apply_gradients(ids(7), row, step=step)
    rows = exported(table)
    return rows.values[0].tolist(), rows.slots[0].tolist()


# Expected values and slots of every column after gradients of 2.0 and then -1.0, by hand.
BY_HAND = [
    (es.SGD(0.5), 1 - 0.5 * 2 + 0.5, []),
    (es.SGD(0.5, momentum=0.5), 1 - 0.5 * 2 - 0.5 * (0.5 * 2 - 1), [0.0]),
    # u = g + momentum * b: 2 + 0.5 * 2 = 3, then b = 0 and u = -1
    (es.SGD(0.5, momentum=0.5, nesterov=True), 1 - 0.5 * 3 + 0.5, [0.0]),
    (es.Adagrad(0.5, eps=1e-10), 1 - 0.5 * 2 / 2 + 0.5 / math.sqrt(5), [5.0]),
    (
        es.Adagrad(0.5, initial_accumulator=5.0, eps=1.0),
        1 - 0.5 * 2 / (3 + 1) + 0.5 / (math.sqrt(10) + 1),
        [10.0],
    ),
    (
        es.Adam(0.1, betas=(0.5, 0.75), eps=0.0),
        # m = 1, v = 1: the first step moves by lr; m = 0, v = 1
        0.9,
        [0.0, 1.0],
    ),
    (
        es.AdamW(0.1, betas=(0.5, 0.75), eps=0.0, weight_decay=1.0),
        (1 * 0.9 - 0.1) * 0.9,
        [0.0, 1.0],
    ),
    (
        es.FTRL(0.5, initial_accumulator=0.0),
        # n = 4, sigma = 4, z = 2 - 4 * 1 = -2, w = 2 / 4;
        # n = 5, sigma = (sqrt 5 - 2) * 2, z = -3 - sigma / 2, w = -z / (2 sqrt 5)
        (3 + math.sqrt(5) - 2) / (2 * math.sqrt(5)),
        [5.0, -3 - (math.sqrt(5) - 2)],
    ),
]


@pytest.mark.parametrize(("optimizer", "value", "slots"), BY_HAND, ids=lambda x: repr(x)[:40])
def test_by_hand(make_table, optimizer, value, slots):
    values, actual = trained(make_table, optimizer, 2.0, -1.0)
    assert values == pytest.approx([value] * 2, rel=1e-6)
    assert actual == pytest.approx(np.repeat(slots, 2).tolist(), rel=1e-6, abs=1e-7)


def test_rowwise_adagrad_takes_the_mean_square_of_the_row(make_table):
    optimizer = es.RowWiseAdagrad(0.5, initial_accumulator=1.0, eps=0.0)
    values, slots = trained(make_table, optimizer, [1.0, 3.0, 1.0, 1.0], dim=4)
    assert slots == [1 + 12 / 4]
    assert values == [1 - 0.25, 1 - 0.75, 1 - 0.25, 1 - 0.25]


def test_ftrl_regularizes(make_table):
    # n = 4, sigma = 4, z = -2: |z| <= l1 gives exactly 0
    assert trained(make_table, es.FTRL(0.5, 0.0, l1=2.0), 2.0)[0] == [0, 0]
    # (l1 - |z|) against sqrt(n) / lr + 2 * l2 + beta / lr
    optimizer = es.FTRL(0.5, 0.0, l1=0.5, l2=1.0, beta=1.0)
    assert trained(make_table, optimizer, 2.0)[0] == pytest.approx([1.5 / (4 + 2 + 2)] * 2)


def test_adam_uses_the_count_of_training_steps(make_table):
    """A key first trained at t = 3 gets the bias correction of t = 3, as in SparseAdam."""
    table = make_table(optimizer=es.Adam(0.1, betas=(0.5, 0.75), eps=0.0))
    table.find_or_insert(ids(7), step=0)
    none = np.empty((0, 2), np.float32)
    for step in (0, 0, 5):
        table.apply_gradients(ids(), none, step=step)
    table.apply_gradients(ids(7), rows_of(2.0), step=6)
    scale = 0.1 * math.sqrt(1 - 0.75**3) / (1 - 0.5**3)
    assert table.find(ids(7))[0] == pytest.approx([1 - scale * 1 / 1] * 2, rel=1e-6)


def test_adam_is_lazy(make_table):
    """Moments and decay of a key that is absent from a batch stay as they are."""
    table = make_table(optimizer=es.AdamW(0.1, weight_decay=0.5))
    table.find_or_insert(ids(1, 2), step=0)
    table.apply_gradients(ids(1), rows_of(1.0), step=0)
    before = table.find(ids(1)).tobytes()
    table.apply_gradients(ids(2), rows_of(1.0), step=1)
    assert table.find(ids(1)).tobytes() == before


OPTIMIZERS = [
    lambda **kw: es.SGD(0.5, **kw),
    lambda **kw: es.SGD(0.5, momentum=0.5, **kw),
    lambda **kw: es.Adagrad(0.5, **kw),
    lambda **kw: es.RowWiseAdagrad(0.5, **kw),
    lambda **kw: es.Adam(0.5, **kw),
    lambda **kw: es.AdamW(0.5, **({"weight_decay": 0.0} | kw)),
    lambda **kw: es.FTRL(0.5, **kw),
]


@pytest.fixture(params=OPTIMIZERS, ids=lambda make: type(make()).__name__)
def optimizer(request):
    """A function that makes one of the optimizers with further options."""
    return request.param


def test_clip_value(make_table, optimizer):
    clipped = trained(make_table, optimizer(clip_value=0.5), [3.0, -0.25], [-9.0, 0.5])
    assert clipped == trained(make_table, optimizer(), [0.5, -0.25], [-0.5, 0.5])


def test_clip_norm(make_table, optimizer):
    clipped = trained(make_table, optimizer(clip_norm=2.5), [3.0, 4.0], [1.5, 2.0], [0, 1])
    assert clipped == trained(make_table, optimizer(), [1.5, 2.0], [1.5, 2.0], [0, 1])


def test_clip_value_comes_before_clip_norm(make_table, optimizer):
    both = trained(make_table, optimizer(clip_value=4.0, clip_norm=2.5), [3.0, 400.0])
    assert both == trained(make_table, optimizer(), [1.5, 2.0])


def test_clipping_acts_on_the_sum_of_duplicates(make_table, optimizer):
    table = make_table(optimizer=optimizer(clip_value=1.0))
    table.find_or_insert(ids(7), step=0)
    table.apply_gradients(ids(7, 7, 7), rows_of(5.0, -5.0, 0.25), step=0)
    values, _ = trained(make_table, optimizer(), 0.25)
    assert table.find(ids(7))[0].tolist() == values


def test_weight_decay_adds_to_the_gradient(make_table, optimizer):
    values, slots = trained(make_table, optimizer(weight_decay=0.25), 0.5)
    if isinstance(optimizer(), es.AdamW):
        decoupled, _ = trained(make_table, optimizer(), 0.5)
        assert values == pytest.approx([x - 0.5 * 0.25 for x in decoupled])
    else:
        assert (values, slots) == trained(make_table, optimizer(), 0.75)


def test_weight_decay_comes_after_clipping(make_table):
    values, _ = trained(make_table, es.SGD(1.0, weight_decay=0.25, clip_value=0.5), 9.0)
    assert values == [1 - 0.5 - 0.25] * 2


def test_learning_rate_of_a_call(make_table, optimizer):
    one, other = (make_table(optimizer=optimizer()) for _ in range(2))
    for table in (one, other):
        table.find_or_insert(ids(7), step=0)
    one.apply_gradients(ids(7), rows_of(1.0), step=0, lr=0.125)
    other.apply_gradients(ids(7), rows_of(1.0), step=0)
    moved = [1 - float(table.find(ids(7))[0, 0]) for table in (one, other)]
    if not isinstance(optimizer(), es.FTRL):
        assert moved[0] == pytest.approx(moved[1] / 4, rel=1e-4)
    assert moved[0] != moved[1]


def test_learning_rate_schedule(make_table):
    asked = []

    def schedule(step):
        asked.append(step)
        return 0.5 if step < 10 else 0.25

    table = make_table(optimizer=es.SGD(schedule))
    table.find_or_insert(ids(7), step=0)
    for step in (3, 10):
        table.apply_gradients(ids(7), rows_of(1.0), step=step)
    assert table.find(ids(7)).tolist() == [[0.25, 0.25]]
    assert asked == [3, 10]
    table.apply_gradients(ids(7), rows_of(1.0), step=11, lr=0.125)
    assert table.find(ids(7)).tolist() == [[0.125, 0.125]]
    assert asked == [3, 10]


def test_without_an_optimizer(make_table):
    table = make_table()
    table.find_or_insert(ids(7), step=0)
    with pytest.raises(es.ArgumentError, match="optimizer"):
        table.apply_gradients(ids(7), rows_of(1.0), step=0)
    assert table.slots == ()


@pytest.mark.parametrize(
    ("optimizer", "slots"),
    [
        (es.SGD(0.1), ()),
        (es.SGD(0.1, momentum=0.9), (("momentum", 3),)),
        (es.Adagrad(), (("accumulator", 3),)),
        (es.RowWiseAdagrad(), (("accumulator", 1),)),
        (es.Adam(), (("exp_avg", 3), ("exp_avg_sq", 3))),
        (es.AdamW(), (("exp_avg", 3), ("exp_avg_sq", 3))),
        (es.FTRL(), (("accumulator", 3), ("linear", 3))),
    ],
)
def test_names_of_slots(make_table, optimizer, slots):
    assert make_table(3, optimizer=optimizer).slots == slots


def test_sums_of_many_duplicates_go_in_blocks_of_32(make_table):
    """1 and 32 * 33 numbers too small to change it alone: blocks keep most of them."""
    table = make_table(1, optimizer=es.SGD(1.0), initializer=es.Constant(0.0))
    table.find_or_insert(ids(7), step=0)
    grads = np.full((33 * 32, 1), 2.0**-24, np.float32)
    grads[0] = 1.0
    table.apply_gradients(np.full(len(grads), 7), grads, step=0)
    # block 0 stays 1; the 32 others are 2**-19 each; 33 block sums make two blocks again
    assert table.find(ids(7))[0, 0] == -f32(1 + 32 * 2.0**-19)
    left_to_right = f32(0)
    for g in grads[:, 0]:
        left_to_right = f32(left_to_right + g)
    assert left_to_right == 1


# torch places eps of Adam and AdamW otherwise (but of SparseAdam as we do): it is tiny here.
TORCH = {
    "SGD": (es.SGD(0.1), {"lr": 0.1}),
    "momentum": (es.SGD(0.1, momentum=0.9), {"lr": 0.1, "momentum": 0.9}),
    "nesterov": (
        es.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    ),
    "Adagrad": (
        es.Adagrad(0.1, initial_accumulator=0.1, weight_decay=0.01),
        {"lr": 0.1, "initial_accumulator_value": 0.1, "weight_decay": 0.01},
    ),
    "SparseAdam": (es.Adam(0.01), {"lr": 0.01}),
    "Adam": (
        es.Adam(0.01, weight_decay=0.1, eps=1e-15),
        {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-15},
    ),
    "AdamW": (
        es.AdamW(0.01, weight_decay=0.1, eps=1e-15),
        {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-15},
    ),
}


def torch_optimizer(torch, name, weight, options):
    kind = {"momentum": "SGD", "nesterov": "SGD"}.get(name, name)
    return getattr(torch.optim, kind)([weight], **options)


@pytest.fixture
def torch():
    """The module, whose sparse tensors are told to check themselves, or a skip."""
    module = pytest.importorskip("torch", reason="torch is not installed: no comparison with it")
    with module.sparse.check_sparse_tensor_invariants():
        yield module


def assert_close(actual, expected):
    """Compare with torch's float64: to 1e-6 of a value, or of 1 where that is more."""
    error = np.abs(actual - expected) / np.maximum(np.abs(expected), 1)
    assert error.max() < 1e-6


@pytest.mark.parametrize("name", TORCH)
def test_against_torch(make_table, torch, name):
    optimizer, options = TORCH[name]
    rng = np.random.default_rng(1)
    keys = np.arange(20)
    table = make_table(8, optimizer=optimizer, initializer=es.Normal(std=1.0))
    weight = torch.nn.Parameter(torch.tensor(table.find_or_insert(keys, 0).rows.astype(float)))
    reference = torch_optimizer(torch, name, weight, options)
    for step in range(10):
        grads = rng.standard_normal((20, 8)).astype(np.float32)
        table.apply_gradients(keys, grads, step=step)
        dense = torch.tensor(grads.astype(float))
        weight.grad = dense.to_sparse(1) if name == "SparseAdam" else dense
        reference.step()
    assert_close(table.find(keys), weight.detach().numpy())


def test_lazy_updates_against_torch_sparse_adam(make_table, torch):
    """Batches of some rows, with duplicates."""
    rng = np.random.default_rng(2)
    table = make_table(4, optimizer=es.Adam(0.01), initializer=es.Normal(std=1.0))
    start = table.find_or_insert(np.arange(30), 0).rows
    weight = torch.nn.Parameter(torch.tensor(start.astype(float)))
    reference = torch.optim.SparseAdam([weight], lr=0.01)
    for step in range(10):
        keys = rng.integers(0, 30, 12)
        grads = rng.standard_normal((12, 4)).astype(np.float32)
        table.apply_gradients(keys, grads, step=step)
        weight.grad = torch.sparse_coo_tensor(keys[None, :], grads.astype(float), (30, 4))
        reference.step()
    assert_close(table.find(np.arange(30)), weight.detach().numpy())
