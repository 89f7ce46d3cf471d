"""How a model's loop may train tables: what works with torch's optimizers works with a table's."""

import copy
import gc
import threading
import weakref

import numpy as np
import pytest
from contract.tools import meta, snapshot
from property.pair import assert_same_rows, exported

import embstore as es

torch = pytest.importorskip("torch", reason="torch is not installed: its training is not tested")

from adapters.torch_kit import OPTIMIZERS, exact, rows, sgd  # noqa: E402

from embstore.torch import (  # noqa: E402
    Embedding,
    EmbeddingBag,
    EmbeddingBagCollection,
    EmbeddingCollection,
    optimizer,
)

IDS = torch.tensor([1])


def test_schedulers_and_closures_work():
    module = sgd(lr=1.0)
    trainer = optimizer(module)
    scheduler = torch.optim.lr_scheduler.LambdaLR(trainer, lambda epoch: 0.5**epoch)

    def closure():
        trainer.zero_grad()
        loss = module(torch.tensor([1])).sum()
        loss.backward()
        return loss

    losses = []
    for _ in range(3):
        losses.append(trainer.step(closure).item())
        scheduler.step()
    assert losses == [0, -2, -3]
    assert rows(module, 1) == [[-1.75, -1.75]]


def test_the_rate_may_be_set_on_the_table_or_on_its_group_and_the_later_one_counts():
    module = sgd(lr=1.0)
    trainer = optimizer(module)
    total = 0.0
    for on_table, on_group in ((0.5, None), (None, None), (None, 4.0), (0.25, None), (8.0, 2.0)):
        if on_table is not None:
            module.table.lr = on_table
        if on_group is not None:
            trainer.param_groups[0]["lr"] = on_group
        module(torch.tensor([1])).sum().backward()
        trainer.step()
        trainer.zero_grad()
        assert module.table.lr == trainer.param_groups[0]["lr"]
        total += module.table.lr
    assert total == 0.5 + 0.5 + 4 + 0.25 + 2
    assert rows(module, 1) == [[-total, -total]]


def test_one_cycle_sets_the_rate_of_each_step():
    module = sgd()
    trainer = optimizer(module)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        trainer, max_lr=1.0, total_steps=8, cycle_momentum=False
    )
    total = 0.0
    for _ in range(6):
        module(torch.tensor([1])).sum().backward()
        total += scheduler.get_last_lr()[0]
        trainer.step()
        trainer.zero_grad()
        scheduler.step()
    np.testing.assert_allclose(rows(module, 1), [[-total, -total]], rtol=1e-5)
    assert total > 2


def test_a_table_may_have_a_schedule_of_its_own_and_not_two():
    module = sgd(lr=lambda step: 2.0**-step)
    trainer = optimizer(module)
    for _ in range(3):
        module(torch.tensor([1])).sum().backward()
        trainer.step()
        trainer.zero_grad()
    assert rows(module, 1) == [[-1.75, -1.75]]
    assert trainer.param_groups[0]["lr"] == 0.25
    torch.optim.lr_scheduler.StepLR(trainer, 1)
    with pytest.raises(es.ArgumentError, match="schedule"):
        trainer.step()


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("of_model", [True, False])
def test_zero_grad_gives_up_gradients(set_to_none, of_model):
    module = sgd()
    trainer = optimizer(module)
    module(torch.tensor([1])).sum().backward()
    (module if of_model else trainer).zero_grad(set_to_none=set_to_none)
    trainer.step()
    assert rows(module, 1) == [[0, 0]]
    grad = module.weight.grad
    assert grad is None or not grad.any()


def test_a_second_step_trains_with_the_same_gradients_as_in_torch():
    module = sgd()
    trainer = optimizer(module)
    module(torch.tensor([1])).sum().backward()
    trainer.step()
    trainer.step()
    assert rows(module, 1) == [[-2, -2]]
    assert module.step == 2


@pytest.mark.parametrize("fused", [False, True])
def test_a_graph_that_is_kept_can_be_walked_twice(fused):
    module = sgd(fused=fused)
    trainer = optimizer(module)
    loss = module(torch.tensor([1, 1])).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    trainer.step()
    assert rows(module, 1) == [[-4, -4]]
    assert meta(module.table, 1) == [(2, 0)]


@pytest.mark.parametrize("read", [False, True])
def test_one_module_called_twice_trains_once_with_the_sum(read):
    module = sgd(optimizer=es.Adagrad(lr=1.0))
    whole = sgd(optimizer=es.Adagrad(lr=1.0))
    trainer = optimizer(module)
    (module(torch.tensor([1, 2])) + 3 * module(torch.tensor([2, 3]))).sum().backward()
    if read:
        assert module.weight.grad.sum() == 16
    trainer.step()
    whole(torch.tensor([1, 2, 3])).backward(torch.tensor([[1.0] * 2, [4.0] * 2, [3.0] * 2]))
    optimizer(whole).step()
    assert rows(module, 1, 2, 3) == rows(whole, 1, 2, 3)
    assert meta(module.table, 1, 2, 3) == [(1, 0), (2, 0), (1, 0)]


def test_modules_that_share_a_table_share_its_parameter_and_train_it_once():
    first = sgd()
    second, bag = Embedding(first.table), EmbeddingBag(first.table, mode="sum")
    assert second.weight is first.weight is bag.weight
    model = torch.nn.ModuleList([first, second, bag])
    trainer = optimizer(model)
    assert len(trainer.param_groups) == 1
    ids = torch.tensor([1, 2])
    (first(ids).sum() + second(ids).sum() + bag(ids[None]).sum()).backward()
    trainer.step()
    assert rows(first, 1, 2) == [[-3, -3]] * 2
    assert meta(first.table, 1) == [(3, 0)]


def test_rows_that_the_loss_does_not_use_are_not_trained():
    used, unused = sgd(name="used"), sgd(name="unused")
    trainer = optimizer(torch.nn.ModuleList([used, unused]))
    unused(torch.tensor([1]))
    used(torch.tensor([1])).sum().backward()
    assert unused.weight.grad is None
    trainer.step()
    assert (rows(used, 1), rows(unused, 1)) == ([[-1, -1]], [[0, 0]])
    assert unused.table.stats()["n_train_steps"] == 0
    assert used.step == unused.step == 1


@pytest.mark.parametrize("how", ["module", "parameter", "attribute"])
def test_a_frozen_table_is_read_and_nothing_more(how):
    module = sgd(initializer=es.Constant(1.0))
    module(torch.tensor([1]))
    if how == "attribute":
        module.weight.requires_grad = False
    else:
        (module if how == "module" else module.weight).requires_grad_(False)
    before = snapshot(module.table)
    out = module(torch.tensor([1, 2]))
    assert not out.requires_grad
    assert out.tolist() == [[1, 1], [0, 0]]
    assert snapshot(module.table) == before
    with pytest.raises(es.ArgumentError, match="no table to train"):
        optimizer(module)
    assert not copy.deepcopy(module).weight.requires_grad
    module.requires_grad_(True)
    module(torch.tensor([2])).sum().backward()
    optimizer(module).step()
    assert rows(module, 1, 2) == [[1, 1], [0, 0]]


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD, torch.optim.SparseAdam])
def test_an_optimizer_of_torch_that_was_given_a_table_says_so_and_changes_nothing(kind):
    module, linear = sgd(name="mine"), torch.nn.Linear(2, 1)
    model = torch.nn.Sequential(module, linear)
    trainer = kind([*model.parameters()], lr=0.1)
    model(torch.tensor([1])).sum().backward()
    before, weight = snapshot(module.table), linear.weight.detach().clone()
    with pytest.raises(es.ArgumentError, match=r"'mine'.*embstore\.torch\.optimizer\(model\)"):
        trainer.step()
    assert snapshot(module.table) == before
    assert torch.equal(linear.weight, weight)
    assert torch.equal(module.weight, torch.zeros(1))


def test_the_state_of_an_optimizer_goes_round_and_only_to_the_same_tables():
    model = torch.nn.ModuleList([sgd(name="a"), sgd(name="b")])
    trainer = optimizer(model)
    trainer.param_groups[1]["lr"] = 0.25
    state = copy.deepcopy(trainer.state_dict())
    trainer.param_groups[1]["lr"] = 8.0
    trainer.load_state_dict(state)
    for module in model:
        module(torch.tensor([1])).sum().backward()
    trainer.step()
    assert [rows(module, 1) for module in model] == [[[-1, -1]], [[-0.25, -0.25]]]
    other = optimizer(torch.nn.ModuleList([model[1], model[0]]))
    with pytest.raises(es.ArgumentError, match=r"\['b', 'a'\].*\['a', 'b'\]"):
        other.load_state_dict(state)


def test_the_step_may_be_set():
    module = sgd()
    trainer = optimizer(module)
    module.step = 1000
    for _ in range(2):
        module(torch.tensor([1])).sum().backward()
        trainer.step()
        trainer.zero_grad()
    assert meta(module.table, 1) == [(2, 1001)]
    assert module.step == 1002
    for bad in (-1, 2**63, 1.0, True, None):
        with pytest.raises(es.ArgumentError, match="the step must be an int"):
            module.step = bad
    assert module.step == 1002


@pytest.mark.parametrize("rule", OPTIMIZERS, ids=lambda o: type(o).__name__)
def test_fused_is_the_default_where_each_step_looks_up_once(rule):
    plain, fused = (
        Embedding(dim=3, optimizer=rule, name="fuse", fused=fused) for fused in (False, True)
    )
    trainer = optimizer(plain)
    rng = np.random.default_rng(8)
    for _ in range(6):
        ids = torch.from_numpy(rng.integers(0, 9, 50))
        grads = torch.from_numpy(rng.standard_normal((50, 3), np.float32))
        for module in (plain, fused):
            module(ids).backward(grads)
        trainer.step()
        trainer.zero_grad()
    assert_same_rows(exported(fused.table), exported(plain.table), "rows")
    assert fused.weight.grad is None


@pytest.mark.parametrize("kind", [EmbeddingCollection, EmbeddingBagCollection])
def test_fused_with_two_tables_is_the_default(kind):
    def made(fused):
        tables = [es.Table(2, name=n, optimizer=es.Adam(lr=0.1)) for n in ("a", "b")]
        return kind(tables, {"x": "a", "y": "b", "z": "a"}, fused=fused)

    plain, fused = made(False), made(True)
    trainer = optimizer(plain)
    rng = np.random.default_rng(9)
    for _ in range(5):
        ids = {f: torch.from_numpy(rng.integers(0, 9, (4, 2))) for f in "xyz"}
        for model in (plain, fused):
            given = model(ids)
            sum(given[f].square().sum() * (k + 1) for k, f in enumerate("xyz")).backward()
        trainer.step()
        trainer.zero_grad()
    for name in ("a", "b"):
        assert_same_rows(exported(fused.store[name]), exported(plain.store[name]), name)
        assert fused.store[name].stats()["n_train_steps"] == 5


def test_a_collection_made_after_the_optimizer_keeps_its_step():
    tables = [es.Table(2, name=n, optimizer=es.SGD(lr=1.0)) for n in ("a", "b")]
    first, second = Embedding(tables[0]), Embedding(tables[1])
    trainer = optimizer(torch.nn.ModuleList([first, second]))
    late = EmbeddingCollection(tables)
    for _ in range(3):
        given = late(dict.fromkeys("ab", torch.tensor([1])))
        (given["a"] + given["b"]).sum().backward()
        trainer.step()
        trainer.zero_grad()
    assert late.step == first.step == second.step == 3
    assert meta(tables[0], 1) == meta(tables[1], 1) == [(3, 2)]


# Autograd


def test_gradients_of_outputs_can_be_asked_for_without_training():
    module = sgd(initializer=es.Constant(3.0))
    out = module(torch.tensor([1, 2]))
    (grad,) = torch.autograd.grad(out.square().sum(), out)
    assert grad.tolist() == [[6, 6], [6, 6]]
    assert module.weight.grad is None


def test_outputs_may_be_changed_in_place():
    module = sgd(initializer=es.Constant(1.0))
    trainer = optimizer(module)
    out = module(torch.tensor([1, 1, 2])).mul_(2)
    out += torch.ones(3, 2)
    out[0] = 0
    assert rows(module, 1) == [[1, 1]]
    out.square().sum().backward()
    trainer.step()
    assert rows(module, 1, 2) == [[1 - 12, 1 - 12]] * 2
    read = module.eval()(torch.tensor([1]))
    read.zero_()
    assert rows(module, 1) == [[-11, -11]]


def test_lookups_without_a_backward_leave_no_memory_behind():
    module = sgd()
    bag = EmbeddingBag(module.table)
    for lookup in (module, lambda ids: bag(ids[None])):
        held = []
        for _ in range(3):
            out = lookup(torch.tensor([1, 2]))
            node = out.grad_fn
            while not hasattr(node, "lookup"):
                node = node.next_functions[0][0]
            held.append(weakref.ref(node))
        del out, node
        gc.collect()
        assert [ref() for ref in held] == [None] * 3
    assert module.weight.grad is None


def test_a_table_is_let_go_with_its_last_module():
    for _ in range(50):  # ids of objects are used again; parameters must not be
        module = sgd(name="let-go")
        assert module.weight.table is module.table
        assert len(module.table) == 0
        module(torch.tensor([1])).sum().backward()
        assert module.weight.key == "let-go"
        module = None
    gc.collect()


def test_a_table_outlives_a_module_and_goes_on_where_it_was():
    table = es.Table(2, optimizer=es.SGD(lr=1.0), initializer=es.Constant(0.0))
    for k in range(3):
        module = Embedding(table)
        assert module.step == k
        module(torch.tensor([1])).sum().backward()
        optimizer(module).step()
        module = None
    assert meta(table, 1) == [(3, 2)]


# Threads


def test_threads_may_train_one_table_together():
    module = sgd()
    trainer = optimizer(module)
    errors = []

    def work(first):
        try:
            for k in range(50):
                module(torch.arange(first, first + 20)).backward(exact((20, 2), seed=k))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(10 * k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    trainer.step()
    whole = sgd()
    for first in (0, 10, 20):
        for k in range(50):
            whole(torch.arange(first, first + 20)).backward(exact((20, 2), seed=k))
    optimizer(whole).step()
    assert_same_rows(exported(module.table), exported(whole.table), "rows")


def test_threads_may_read_while_one_trains():
    table = es.Table(4, optimizer=es.SGD(lr=1.0), initializer=es.Constant(0.0))
    module, reader = Embedding(table), Embedding(table).eval()
    trainer = optimizer(module)
    ids = torch.arange(64)
    is_over, torn = threading.Event(), []

    def read():
        while not is_over.is_set():
            given = reader(ids)
            if not (given == given[:, :1]).all() or given.requires_grad:
                torn.append(given)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(200):
            module(ids).sum().backward()
            trainer.step()
            trainer.zero_grad()
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert torn == []
    assert reader(ids).eq(-200).all()
    assert meta(table, 0) == [(200, 199)]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_lookup_that_checkpointing_would_repeat_is_refused(use_reentrant):
    module = Embedding(dim=4, optimizer=es.SGD(lr=1.0), name="recomputed")
    scale = torch.ones(4, requires_grad=True)

    def forward(ids, scale):
        return module(ids) * scale

    out = torch.utils.checkpoint.checkpoint(
        forward, torch.tensor([1, 2]), scale, use_reentrant=use_reentrant
    )
    with pytest.raises(es.ArgumentError, match="inside backward"):
        out.sum().backward()
    assert module.table.find([1, 2], with_meta=True).freq.max() <= 1


def test_fused_updates_have_the_rate_that_a_scheduler_set_before_them():
    module = Embedding(dim=1, optimizer=es.SGD(lr=1.0), name="rates", fused=True)
    module.table.assign([7], np.zeros((1, 1), np.float32))
    trainer = optimizer(module)
    scheduler = torch.optim.lr_scheduler.StepLR(trainer, step_size=1, gamma=0.5)
    for _ in range(3):
        module(torch.tensor([7])).sum().backward()
        trainer.step()
        scheduler.step()
    assert module.table.find([7]).item() == -1.75


def test_a_gradient_that_nobody_else_has_is_not_copied():
    from embstore.torch.crossing import has_one_owner

    module = Embedding(dim=4, optimizer=es.SGD(lr=1.0), name="alone")
    weight = torch.randn(4, 3)
    (module(torch.arange(5)) @ weight).sum().backward()
    (lookup,) = module.weight.gradients.lookups
    assert has_one_owner(lookup.grad)
    shared = lookup.grad.view(-1)
    assert not has_one_owner(lookup.grad)
    del shared


def test_hooks_after_backward_see_the_gradient_and_others_are_refused():
    one = sgd()
    many = EmbeddingCollection([es.Table(2, name="many", optimizer=es.SGD(lr=1.0))])
    for parameter in (one.weight, many.many):
        with pytest.raises(es.ArgumentTypeError, match="register_post_accumulate_grad_hook"):
            parameter.register_hook(print)
        seen = []
        parameter.register_post_accumulate_grad_hook(lambda p, seen=seen: seen.append(p.grad))
        rows_of = one(torch.tensor([1])) if parameter is one.weight else many({"many": IDS})["many"]
        rows_of.sum().backward()
        assert [grad.tolist() for grad in seen] == [[[1, 1]]]


def test_modules_may_be_made_under_any_default_device():
    with torch.device("meta"):
        module = sgd(padding_id=0)
        module(torch.tensor([1, 0], device="cpu")).sum().backward()
        optimizer(module).step()
        dense = module.to_dense()
    assert dense(IDS).tolist() == module.eval()(IDS).tolist() == [[-1, -1]]
