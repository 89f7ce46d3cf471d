"""What two ranks do in the tests of the sharded modules' corners; jobs return what to compare."""

import torch
from adapters import sharded_jobs as jobs

import embstore as es
from embstore.torch import (
    ShardedEmbedding,
    ShardedEmbeddingBag,
    ShardedEmbeddingBagCollection,
    ShardedEmbeddingCollection,
    optimizer,
)


def table(name="t", **changes):
    start = es.Normal(std=1.0)
    made = {"dim": 2, "name": name, "optimizer": es.Adam(lr=0.1), "initializer": start}
    return es.Table(**made | changes)


def only_one_rank_has_ids(rank, world_size):
    """Steps in which ranks have no ids, no backward, or lack a table."""
    store = es.Store([table("one"), table("two")])
    model = ShardedEmbeddingBagCollection(store)
    trainer = optimizer(model)
    none = (torch.empty(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    ids = torch.arange(12).reshape(4, 3)
    given = [
        [{"one": ids, "two": ids}, {"one": none, "two": none}],
        [{"one": ids}, {}],
        [{"one": none}, {"one": ids}],
        [{"two": ids + 5}, {"one": ids}],
    ]
    for by_rank in given:
        own = by_rank[rank]
        pooled = model(own)
        if any(v is not none for v in own.values()):
            pooled.values().sum().backward()
        trainer.step()
        trainer.zero_grad()
    clocks = {n: store[n].stats()["n_train_steps"] for n in store}
    return jobs.content(store), clocks


def twice_the_gradients(rank, world_size):
    """zero_grad between a lookup and its backward, which comes twice; two modules of one table."""
    own = table(optimizer=es.SGD(lr=1.0))
    one, two = ShardedEmbedding(own), ShardedEmbeddingBag(own, mode="sum")
    model = torch.nn.ModuleList([one, two])
    trainer = optimizer(model)
    forgotten = one(torch.arange(4))
    forgotten.sum().backward()
    rows = one(torch.arange(4))
    trainer.zero_grad()
    rows.sum().backward(retain_graph=True)
    rows.sum().backward()
    two(torch.arange(4).reshape(2, 2)).sum().backward()
    trainer.step()
    return jobs.content(es.Store([own])), len(one._shards.rounds)


def evaluate(rank, world_size):
    """eval, no_grad and frozen lookups change nothing."""
    own = table(default_row=0.5, admission=es.CounterAdmission(min_count=2))
    model = ShardedEmbedding(own)
    trainer = optimizer(model)
    model(torch.arange(3)).sum().backward()  # each rank once: admitted by both together
    trainer.step()
    trainer.zero_grad()
    before = jobs.content(es.Store([own]))
    ids = torch.tensor([0, 1, 99])
    model.eval()
    in_eval = model(ids)
    model.train()
    with torch.no_grad():
        unrecorded = model(ids)
    model.requires_grad_(False)
    frozen = model(ids)
    after = jobs.content(es.Store([own]))
    return in_eval.detach(), unrecorded, frozen.detach(), before, after


def sub_groups(rank, world_size):
    """Two pairs of four ranks have tables of their own."""
    import torch.distributed as dist

    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    model = ShardedEmbedding(table(), process_group=pairs[rank // 2])
    model(torch.arange(10) + 10 * (rank // 2))
    return jobs.content(es.Store([model.table]))


def many_tables(rank, world_size):
    """More tables than a header has words."""
    store = es.Store([table(f"t{i}", optimizer=es.SGD(lr=1.0)) for i in range(130)])
    model = ShardedEmbeddingCollection(store)
    trainer = optimizer(model)
    rows = model({f"t{i}": torch.arange(i % 5) for i in range(0, 130, 2)})
    sum(own.sum() for own in rows.values()).backward()
    trainer.step()
    return jobs.content(store)
