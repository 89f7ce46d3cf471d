"""What ranks do in the tests of failures: each job returns the error that it met, or None."""

import time

import numpy as np
import torch
from adapters import sharded_jobs as jobs
from adapters.sharded_kit import die
from torch.nn.parallel import DistributedDataParallel

import embstore as es
from embstore.torch import (
    Embedding,
    EmbeddingBag,
    EmbeddingCollection,
    ShardedEmbedding,
    ShardedEmbeddingBagCollection,
    optimizer,
)


def met(work):
    """The error that `work` raises: its class, its message."""
    try:
        work()
    except es.EmbstoreError as error:
        return type(error).__name__, str(error)
    return None


def table(**changes):
    return es.Table(**{"dim": 2, "name": "t", "optimizer": es.SGD(lr=0.1)} | changes)


def _train(model, trainer, n_steps, before=None):
    for i in range(n_steps):
        if before is not None:
            before(i)
        model(torch.arange(20) + i).sum().backward()
        trainer.step()
        trainer.zero_grad()


def lose_a_rank(rank, world_size, when):
    """The last rank dies before a lookup, while others wait for its rows, or before the step."""
    model = ShardedEmbedding(table())
    trainer = optimizer(model)
    _train(model, trainer, 2)
    is_victim = rank == world_size - 1

    def one_more():
        if is_victim and when == "lookup":
            die()
        if is_victim and when == "rows":
            model._shards._served = lambda *_: die()
        rows = model(torch.arange(20))
        if is_victim and when == "step":
            die()
        rows.sum().backward()
        trainer.step()

    first = met(one_more)
    return first, met(lambda: model(torch.arange(3)))


def be_late(rank, world_size, seconds):
    """The last rank does nothing for longer than the time-out."""
    model = ShardedEmbedding(table())
    if rank == world_size - 1:
        time.sleep(seconds)
    return met(lambda: model(torch.arange(3)))


def disagree_in_tables(rank, world_size):
    return met(lambda: ShardedEmbedding(table(dim=2 + rank)))


def disagree_in_features(rank, world_size):
    features = {"a": "t"} if rank else {"b": "t"}
    return met(lambda: ShardedEmbeddingBagCollection(es.Store([table()], features)))


def disagree_in_step(rank, world_size):
    model = ShardedEmbedding(table())
    model.step = 5 + rank
    return met(lambda: model(torch.arange(3))), len(model.table)


def disagree_in_mode(rank, world_size):
    model = ShardedEmbedding(table())
    model.train(rank == 0)
    return met(lambda: model(torch.arange(3))), len(model.table)


def disagree_in_order(rank, world_size):
    first, second = ShardedEmbedding(table(name="one")), ShardedEmbedding(table(name="two"))
    return met(lambda: (second if rank else first)(torch.arange(3)))


def fill_one_shard(rank, world_size):
    """A shard of rank 1 has no room: its own error there, DistributedError elsewhere."""
    limit = {"max_rows": 3, "on_full": "raise"} if rank else {}
    model = ShardedEmbedding(table(**limit))
    error = met(lambda: model(torch.arange(100)))
    again = model(torch.arange(2))  # a failed lookup has not broken the group
    return error, tuple(again.shape), len(model.table)


def prefetch_other_ids(rank, world_size):
    model = ShardedEmbedding(table())
    ids, others = torch.arange(4), torch.arange(4)
    model.prefetch(ids)
    error = met(lambda: model(others))
    model.eval()
    in_eval = met(lambda: model(ids))
    model.train()
    return error, in_eval, tuple(model(ids).shape)


def forget_prefetched(rank, world_size):
    """What was begun and is not wanted counts nothing, and other calls go on."""
    model = ShardedEmbedding(table())
    for first in (0, 10):
        model.prefetch(torch.arange(first, first + 4))
    model.forget_prefetched()
    shape = tuple(model(torch.arange(20, 24)).shape)
    return shape, sorted(k for b in model.table.export() for k in b.keys.tolist())


def disagree_in_prefetched(rank, world_size, other):
    """The last rank does not look up what all have prefetched."""
    model = ShardedEmbedding(table())
    trainer = optimizer(model)
    ids = torch.arange(4)
    model.prefetch(ids)
    if rank < world_size - 1:
        return met(lambda: model(ids)), len(model.table)
    if other == "step":
        return met(trainer.step), len(model.table)
    model.forget_prefetched()
    return met(lambda: model(ids)), len(model.table)


def replicate(rank, world_size):
    """DDP over tables that are not sharded: refused in training, whatever looks them up."""
    found = []
    for made in (
        Embedding(table()),
        EmbeddingBag(table(), mode="sum"),
        EmbeddingCollection([table()]),
    ):
        own = torch.nn.Sequential(torch.nn.Identity(), made)
        own.register_parameter("dense", torch.nn.Parameter(torch.zeros(1)))
        whole = DistributedDataParallel(own)
        ids = torch.tensor([[1], [2]])
        given = {"t": ids} if isinstance(made, EmbeddingCollection) else ids
        error = met(lambda whole=whole, given=given: whole(given))
        made.requires_grad_(False)
        whole(given)
        found.append(
            (error, len(made.weight.table if hasattr(made, "weight") else made.store["t"]))
        )
    return found


def read_grad_early(rank, world_size):
    model = ShardedEmbedding(table())
    trainer = optimizer(model)
    model(torch.arange(4)).sum().backward()

    def clip():
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)

    clipped = met(clip)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(1))
    scaled = met(lambda: scaler.unscale_(trainer))
    model.zero_grad()  # reads .grad, and may
    is_gone = model.weight.grad is None
    trainer.step()
    rows = np.concatenate([b.values for b in model.table.export()])
    return clipped, scaled, is_gone, rows


def backward_too_late(rank, world_size):
    model = ShardedEmbedding(table())
    trainer = optimizer(model)
    rows = model(torch.arange(4))
    rows.sum().backward(retain_graph=True)
    trainer.step()
    return met(lambda: rows.sum().backward())


def copy_and_pickle(rank, world_size):
    import copy
    import pickle

    model = ShardedEmbedding(table())
    return met(lambda: copy.deepcopy(model)), met(lambda: pickle.dumps(model))


def save_with_a_failure(rank, world_size, path):
    """Rank 1 cannot write its shard: the save before stays in force on the disk."""
    store = es.Store(jobs.tables(), jobs.FEATURES)
    model = ShardedEmbeddingBagCollection(store, mode=jobs.MODES)
    ids, _ = jobs.batches(1)[0]
    model(ids)
    model.save(path, extra={"epoch": 1})
    before = jobs.content(store)
    model.step = 7
    model(jobs.batches(2)[1][0])
    if rank == 1:
        store.save = fail
    return before, met(lambda: model.save(path, extra={"epoch": 2}))


def fail(*args, **kwargs):
    raise es.CheckpointError("the disk is full")


def die_in_save(rank, world_size, path):
    """Rank 1 dies while it saves."""
    model = ShardedEmbeddingBagCollection(es.Store(jobs.tables(), jobs.FEATURES), mode=jobs.MODES)
    if rank == 1:
        model._shared_store.save = lambda *args, **kwargs: die()
    return met(lambda: model.save(path))
