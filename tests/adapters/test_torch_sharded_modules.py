"""The sharded modules take and give what the others do; ranks with nothing to do take part."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

if not torch.distributed.is_available():
    pytest.skip("this PyTorch has no torch.distributed", allow_module_level=True)

import torch.distributed as dist  # noqa: E402
from adapters import sharded_uses as jobs  # noqa: E402
from adapters.sharded_kit import shared_ranks  # noqa: E402

import embstore as es  # noqa: E402
import embstore.torch as et  # noqa: E402
from embstore.torch import optimizer  # noqa: E402

merged = jobs.jobs.merged


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return shared_ranks(tmp_path_factory)


@pytest.fixture
def alone(tmp_path):
    """This process as the only rank."""
    store = dist.FileStore(str(tmp_path / "rendezvous"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def table(**changes):
    return jobs.table(**{"default_row": 0.25, "dtype": "float32"} | changes)


def train_both(one, other, *given, n_steps=3, values=lambda rows: rows):
    """Train a module and its sharded twin alike; outputs and rows must be the same."""
    trainers = optimizer(one), optimizer(other)
    for _ in range(n_steps):
        outputs = [values(module(*given)) for module in (one, other)]
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-6)
        for output, trainer in zip(outputs, trainers, strict=True):
            output.float().square().sum().backward()
            trainer.step()
            trainer.zero_grad()
    return outputs


IDS = torch.tensor([[7, -1, 7, 2**62], [-1, -1, 5, 0]])


@pytest.mark.parametrize("padding_id", [None, -1])
@pytest.mark.parametrize(
    ("ids", "values"),
    [
        (IDS, lambda rows: rows),
        (IDS[0].int() // 2, lambda rows: rows),
        (torch.empty(0, 3, dtype=torch.int64), lambda rows: rows),
        ((IDS.reshape(-1), torch.tensor([0, 3, 8])), lambda rows: rows.values),
    ],
)
def test_embedding_is_as_the_unsharded(alone, ids, values, padding_id):
    one = et.Embedding(table(), padding_id=padding_id)
    other = et.ShardedEmbedding(table(), padding_id=padding_id)
    train_both(one, other, ids, values=values)
    assert type(one(ids)) is type(other(ids))


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize("padding_id", [None, -1])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_bags_are_as_the_unsharded(alone, mode, padding_id, is_weighted):
    one = et.EmbeddingBag(table(), mode=mode, padding_id=padding_id)
    other = et.ShardedEmbeddingBag(table(), mode=mode, padding_id=padding_id)
    weights = torch.linspace(-1, 2, 8) if is_weighted else None
    flat, offsets = IDS.reshape(-1), torch.tensor([0, 0, 3, 8])  # two bags are empty
    train_both(one, other, flat, offsets, weights)
    train_both(one, other, IDS, None, None)


def test_weights_of_bags_get_their_gradients(alone):
    one = et.EmbeddingBag(table(), mode="mean", padding_id=-1)
    other = et.ShardedEmbeddingBag(table(), mode="mean", padding_id=-1)
    grads = []
    for module in (one, other):
        weights = torch.linspace(-1, 2, 8).requires_grad_()
        module(IDS.reshape(-1), torch.tensor([0, 3]), weights).square().sum().backward()
        grads.append(weights.grad)
    torch.testing.assert_close(grads[1], grads[0])
    assert grads[0].abs().sum() > 0


def test_collections_are_as_the_unsharded(alone):
    features = {"a": "t", "b": "t"}
    given = {"b": IDS, "a": (IDS.reshape(-1), torch.tensor([0, 3, 8]))}

    def both(rows):
        return torch.cat([rows["b"].reshape(-1, 2), rows["a"].values])

    for padding in (None, -1):
        one = et.EmbeddingCollection([table()], features, padding_id=padding)
        other = et.ShardedEmbeddingCollection([table()], features, padding_id=padding)
        train_both(one, other, given, values=both)
        modes = {"a": "mean", "b": "sqrtn"}
        one = et.EmbeddingBagCollection([table()], features, mode=modes, padding_id=padding)
        other = et.ShardedEmbeddingBagCollection(
            [table()], features, mode=modes, padding_id=padding
        )
        train_both(one, other, given, values=lambda pooled: pooled.values())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_outputs_have_the_dtype_of_the_table_or_the_one_asked_for(alone, dtype):
    own = et.ShardedEmbedding(table(dtype=dtype))
    assert own(IDS).dtype == getattr(torch, dtype)
    wide = et.ShardedEmbedding(table(dtype=dtype), output_dtype=torch.float64)
    torch.testing.assert_close(wide(IDS), own(IDS).double())


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda m, _: m(torch.ones(3)), es.ArgumentTypeError, "integer tensor"),
        (lambda m, _: m(torch.ones(3, dtype=torch.int16)), es.ArgumentTypeError, "int16"),
        (lambda _, c: c({"x": IDS}), es.ArgumentError, "unknown feature 'x'"),
        (lambda _, c: c({"a": (IDS[0], torch.tensor([0, 9]))}), es.ArgumentError, "offsets"),
    ],
)
def test_bad_ids_are_refused_before_anything_is_sent(alone, call, error, match):
    single = et.ShardedEmbedding(table())
    bags = et.ShardedEmbeddingBagCollection([table(name="a")])
    before = single.traffic(), bags.traffic()
    with pytest.raises(error, match=match):
        call(single, bags)
    assert (single.traffic(), bags.traffic()) == before
    assert single(IDS).shape == (2, 4, 2)  # the ranks are still at one call


def test_a_table_is_sharded_or_not(alone):
    own = table()
    et.ShardedEmbedding(own)
    with pytest.raises(es.ArgumentError, match="a table is either"):
        et.Embedding(own)


def test_ranks_without_ids_or_backward_take_part(ranks):
    found = ranks.run(jobs.only_one_rank_has_ids, 2)
    assert found[0][1] == found[1][1] == {"one": 4, "two": 2}  # Adam's time is one on all ranks
    shards = merged([own for own, _ in found])

    twin = {name: jobs.table(name) for name in ("one", "two")}
    ids = np.arange(12)
    # Of each step: what a table was asked for, and by how many ranks.
    steps = [{"one": ids, "two": ids}, {"one": ids}, {"one": ids}, {"two": ids + 5, "one": ids}]
    for i, asked in enumerate(steps):
        for name, keys in asked.items():
            batch = twin[name].find_or_insert(keys, step=i)
            twin[name].apply_gradients(batch, np.full((12, 2), 0.5, np.float32), step=i)
    for name, (keys, values, freq, *_) in merged([jobs.jobs.content(es.Store(twin))]).items():
        np.testing.assert_array_equal(shards[name][0], keys)
        np.testing.assert_array_equal(shards[name][2], freq)
        np.testing.assert_allclose(shards[name][1], values, rtol=1e-6)


def test_backwards_and_modules_add_up_to_one_update(ranks):
    found = ranks.run(jobs.twice_the_gradients, 2)
    (keys, values, *_) = merged([own for own, _ in found])["t"]
    start = jobs.table().find_or_insert(keys, 0).rows
    np.testing.assert_allclose(values, start - 3.0, rtol=1e-6)  # 2 + 1, averaged over ranks
    assert [n for _, n in found] == [1, 1]  # the forgotten one may still have its backward


def test_evaluation_reads_and_changes_nothing(ranks):
    found = ranks.run(jobs.evaluate, 2)
    whole = merged([before for *_, before, _ in found])["t"]
    assert whole[0].tolist() == [0, 1, 2]
    for in_eval, unrecorded, frozen, before, after in found:
        np.testing.assert_allclose(in_eval[:2], whole[1][:2])
        np.testing.assert_array_equal(in_eval[2], [0.5, 0.5])
        assert torch.equal(in_eval, unrecorded)
        assert torch.equal(in_eval, frozen)
        for own, same in zip(before["t"] or [], after["t"] or [], strict=True):
            np.testing.assert_array_equal(own, same)


def test_groups_of_ranks_have_tables_of_their_own(ranks):
    found = ranks.run(jobs.sub_groups, 4)
    for pair, first in ((found[:2], 0), (found[2:], 10)):
        keys, _, freq, *_ = merged(pair)["t"]
        assert keys.tolist() == [*range(first, first + 10)]
        assert freq.tolist() == [2] * 10


def test_tables_may_be_more_than_a_header_has_words(ranks):
    found = merged(ranks.run(jobs.many_tables, 2))
    for i in range(0, 130, 2):
        if i % 5:
            keys, values, *_ = found[f"t{i}"]
            assert keys.tolist() == [*range(i % 5)]
            start = jobs.table(f"t{i}").find_or_insert(keys, 0).rows
            np.testing.assert_allclose(values, start - 1.0, rtol=1e-6)


def test_a_model_with_sharded_tables_says_that_it_cannot_be_copied(alone):
    with pytest.raises(es.ArgumentTypeError, match="cannot be copied"):
        copy.deepcopy(torch.nn.Sequential(et.ShardedEmbedding(table())))


def test_a_compiled_model_looks_up_outside_its_graphs(alone):
    model = torch.nn.Sequential(et.ShardedEmbedding(table()), torch.nn.Linear(2, 1))
    expected = model(IDS)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(IDS), expected)
    compiled(IDS).sum().backward()
    before = model[0].table.find(IDS.reshape(-1).numpy())
    optimizer(model).step()
    assert (model[0].table.find(IDS.reshape(-1).numpy()) != before).all()
    torch._dynamo.reset()  # what it has compiled it would use
    with pytest.raises(torch._dynamo.exc.Unsupported, match="exchange"):
        torch.compile(model, backend="eager", fullgraph=True)(IDS)


def test_a_state_dict_says_which_shard_it_has(alone):
    one, other = et.ShardedEmbedding(table()), et.ShardedEmbedding(table(seed=5))
    rows = one(IDS)
    (key,) = (k for k in one.state_dict() if k.startswith("table"))
    assert key == "table.shard-00000-of-00001"
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(other.eval()(IDS), rows)


def test_shards_are_frozen_by_the_attribute_too(alone):
    model = et.ShardedEmbedding(table())
    for parameter in model.parameters():
        parameter.requires_grad = False
    assert not model(IDS).requires_grad
    assert len(model.table) == 0
    for parameter in model.parameters():
        parameter.requires_grad = True  # DDP still passes over it
        assert not parameter.requires_grad
    assert model(IDS).requires_grad
    assert len(model.table) == 5


def test_rows_are_whole_whatever_the_default_dtype_of_torch(alone):
    one = et.ShardedEmbedding(table())
    expected = one(IDS)
    torch.set_default_dtype(torch.bfloat16)
    try:
        other = et.ShardedEmbedding(table())
        assert torch.equal(other(IDS), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_ddp_of_one_rank_takes_tables_that_are_not_sharded(alone):
    model = torch.nn.ModuleDict({"tables": et.EmbeddingCollection([table()])})
    model.forward = lambda ids: model["tables"](ids)["t"]
    whole, trainer = torch.nn.parallel.DistributedDataParallel(model), optimizer(model)
    for _ in range(3):
        whole({"t": torch.tensor([1])}).sum().backward()
        trainer.step()
        trainer.zero_grad()
    start = table().find_or_insert([1], 0).rows
    np.testing.assert_allclose(
        model["tables"].store["t"].find([1]), start - 3 * jobs.table().lr, rtol=1e-6
    )


def test_a_process_that_exchanged_pauses_once_before_it_ends(alone, monkeypatch):
    from embstore.torch.sharded import wire

    asked = []
    monkeypatch.setattr(wire.atexit, "register", lambda *call: asked.append(call))
    wire._pause_at_exit.cache_clear()
    for _ in range(2):
        wire.Wire(dist.group.WORLD, "here")
    assert asked == [(wire.time.sleep, wire.PAUSE_S)]
