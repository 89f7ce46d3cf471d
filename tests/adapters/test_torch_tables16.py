"""Tables of 16 bits, and outputs and gradients of 16 bits of any table."""

import numpy as np
import pytest
from contract.tools import live
from property.pair import assert_same_rows, exported

import embstore as es

torch = pytest.importorskip("torch", reason="torch is not installed: its 16 bits are not tested")

from embstore.torch import (  # noqa: E402
    Embedding,
    EmbeddingBag,
    EmbeddingBagCollection,
    EmbeddingCollection,
    optimizer,
)

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
IDS = torch.tensor([3, -1, 3, 2**40])


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


def table_of(dtype, **parameters):
    given = {"optimizer": es.SGD(lr=1.0), "initializer": es.Normal(std=1.0), "name": "half"}
    return es.Table(5, dtype=dtype, **given | parameters)


def stored(table, ids):
    """Return the values of ids as the table has them, widened without loss."""
    return torch.from_numpy(np.asarray(table.find(ids.reshape(-1).numpy()), np.float32))


@pytest.mark.parametrize("padding_id", [None, 7])
def test_rows_come_in_the_dtype_of_the_table_bit_for_bit(dtype, padding_id):
    module = Embedding(table_of(dtype), padding_id=padding_id)
    trained = module(IDS)
    read = module.eval()(IDS)
    for rows in (trained, read):
        assert rows.dtype == DTYPES[dtype]
        assert torch.equal(rows.float(), stored(module.table, IDS))
    assert trained.requires_grad
    assert not read.requires_grad
    assert read.float().abs().max() > 0.5
    missing = module(torch.tensor([[77], [78]]))
    assert (missing.dtype, missing.shape) == (DTYPES[dtype], (2, 1, 5))
    assert not missing.any()


def test_signed_zeros_infinities_and_subnormals_survive(dtype):
    tiny = 2.0**-24 if dtype == "float16" else 2.0**-133
    table = table_of(dtype, on_nonfinite="allow")
    values = np.array([[-0.0, np.inf, -np.inf, tiny, -tiny]], np.float32)
    table.assign([1], values)
    ids = torch.tensor([1])
    module = Embedding(table)
    for rows in (module(ids), module.eval()(ids)):
        out = rows.detach().float().numpy()
        np.testing.assert_array_equal(out, values)
        np.testing.assert_array_equal(np.signbit(out), np.signbit(values))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradients_of_any_float_train_as_the_same_numbers_in_float32(dtype, fused, grad_dtype):
    grads = torch.from_numpy(np.random.default_rng(1).integers(-8, 8, (4, 5)) / 8).to(grad_dtype)
    module = Embedding(table_of(dtype), fused=fused, output_dtype=grad_dtype)
    trainer = optimizer(module)
    out = module(IDS)
    assert out.dtype == grad_dtype
    out.backward(grads)
    trainer.step()
    with table_of(dtype) as plain:
        batch = plain.find_or_insert(IDS.numpy(), step=0)
        plain.apply_gradients(batch, grads.float().numpy(), step=0)
        assert_same_rows(exported(module.table), exported(plain), "rows")


def test_the_gradient_of_a_table_is_float32(dtype):
    module = Embedding(table_of(dtype))
    module(IDS).sum().backward()
    assert module.weight.grad.dtype == torch.float32
    assert sorted(module.weight.grad[:, 0].tolist()) == [1, 1, 2]
    for _ in range(300):  # past what 8 bits of mantissa can count
        module(IDS[:1]).sum().backward()
    assert module.weight.grad.max() == 302


def test_many_small_steps_are_summed_before_they_are_rounded(dtype):
    module = Embedding(table_of(dtype, initializer=es.Constant(1.0)))
    trainer = optimizer(module)
    ids = torch.zeros(64, dtype=torch.int64)
    module(ids).backward(torch.full((64, 5), 2.0**-12, dtype=DTYPES[dtype]))
    trainer.step()
    assert module.eval()(ids[:1]).tolist() == [[1 - 2.0**-6] * 5]


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize("wants_gradient", [False, True])
def test_bags_are_pooled_in_float32_and_rounded_once(dtype, mode, wants_gradient):
    module = EmbeddingBag(table_of(dtype), mode=mode)
    ids, offsets, weights = torch.arange(30) % 7, torch.tensor([0, 0, 4, 25]), torch.rand(30)
    pooled = module(ids, offsets, weights.clone().requires_grad_(wants_gradient))
    whole = module.table.pooled(
        ids.numpy(), np.array([0, 0, 4, 25, 30]), mode, weights.numpy(), step=0
    )
    expected = torch.from_numpy(whole.rows)
    assert pooled.dtype == DTYPES[dtype]
    if wants_gradient:  # summed by torch, in another order
        torch.testing.assert_close(pooled.float(), expected, rtol=0.01, atol=0.01)
    else:
        assert torch.equal(pooled, expected.to(DTYPES[dtype]))
    pooled.sum().backward()
    optimizer(module).step()


@pytest.mark.parametrize("kind", [EmbeddingCollection, EmbeddingBagCollection])
def test_collections_mix_dtypes(dtype, kind):
    tables = [table_of(dtype), table_of("float32", name="full")]
    model = kind(tables, {"h": "half", "f": "full"})
    for is_training in (True, False):
        given = model.train(is_training)({"h": IDS[:, None], "f": IDS[:, None]})
        assert (given["h"].dtype, given["f"].dtype) == (DTYPES[dtype], torch.float32)
        assert torch.equal(given["h"].float().view(4, 5), stored(tables[0], IDS))
        assert torch.equal(given["f"].view(4, 5), stored(tables[1], IDS))
    given = model.train()({"h": IDS[:, None], "f": IDS[:, None]})
    before = [stored(table, IDS) for table in tables]
    (given["h"].float().sum() + given["f"].sum()).backward()
    optimizer(model).step()
    for table, rows in zip(tables, before, strict=True):
        moved = (stored(table, IDS) - rows)[:, 0]
        torch.testing.assert_close(moved, torch.tensor([-2.0, -1, -2, -1]), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("how", ["half", "bfloat16", "to"])
def test_a_model_of_16_bits_gives_them_and_goes_back(how):
    wanted = torch.float16 if how == "half" else torch.bfloat16
    module = Embedding(table_of("float32"))
    model = torch.nn.Sequential(module, torch.nn.Linear(5, 1))
    model = model.to(torch.bfloat16) if how == "to" else getattr(model, how)()
    out = model(IDS)
    assert (out.dtype, module(IDS).dtype) == (wanted, wanted)
    assert torch.equal(module(IDS), stored(module.table, IDS).to(wanted))
    out.sum().backward()
    optimizer(model).step()
    assert module.table.dtype == "float32"
    assert len(live(module.table)) == 3
    model.float()
    assert module(IDS).dtype == torch.float32
    assert torch.equal(module(IDS), stored(module.table, IDS))
    model.to("cpu")
    assert module.output_dtype == torch.float32
    model.double()
    assert module(IDS).dtype == torch.float64


def test_moving_a_model_asks_for_no_dtype():
    module = Embedding(table_of("float16")).to("cpu").share_memory()
    assert module.output_dtype is None
    assert module(IDS).dtype == torch.float16


def test_output_dtype_is_a_floating_one():
    for bad in (torch.int64, torch.bool, "float16", np.float16):
        with pytest.raises(es.ArgumentTypeError, match="output_dtype must be a floating dtype"):
            Embedding(dim=2, output_dtype=bad)


def test_autocast_takes_rows_of_16_bits(dtype):
    module = Embedding(table_of(dtype))
    tower = torch.nn.Linear(5, 3)
    before = stored(module.table, IDS)
    with torch.autocast("cpu", DTYPES[dtype]):
        out = tower(module(IDS))
        assert out.dtype == DTYPES[dtype]
    out.float().sum().backward()
    assert tower.weight.grad.dtype == torch.float32
    optimizer(module).step()
    assert not torch.equal(stored(module.table, IDS), before)


def test_a_gradient_that_overflowed_in_16_bits_is_found():
    module = Embedding(
        table_of("float32", initializer=es.Constant(0.0)), output_dtype=torch.float16
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**17)  # itself more than float16 holds
    trainer = optimizer(module)
    for _ in range(4):
        scaler.scale(module(IDS).float().sum()).backward()
        scaler.step(trainer)
        scaler.update()
        trainer.zero_grad()
    assert scaler.get_scale() == 2.0**15
    assert stored(module.table, IDS)[:, 0].tolist() == [-4, -2, -4, -2]
