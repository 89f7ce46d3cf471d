"""What the ranks do in the tests of sharded tables: one training run, sharded or not."""

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import embstore as es
from embstore.torch import (
    EmbeddingBagCollection,
    ShardedEmbeddingBagCollection,
    dense_parameters,
    load_shard,
    optimizer,
)

FEATURES = {"user": "user", "shown": "item", "liked": "item"}
BATCH, N_STEPS = 48, 8


def tables(dtype="float32", optimizers=None):
    """A table that counts before it admits, and one that admits at once."""
    by_user, by_item = optimizers or (es.Adagrad(lr=0.1), es.Adam(lr=0.02))
    return [
        es.Table(
            dim=6,
            name="user",
            optimizer=by_user,
            initializer=es.Normal(std=0.1),
            admission=es.CounterAdmission(min_count=2),
            default_row=0.05,
            eviction=es.StepEviction(steps_to_live=5),
            evict_every=3,
        ),
        es.Table(
            dim=4, name="item", optimizer=by_item, initializer=es.Normal(std=0.1), dtype=dtype
        ),
    ]


def batches(n_steps=N_STEPS, seed=0):
    """Batches of all ranks together: ids, weights of one feature, labels."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n_steps):
        user = torch.from_numpy(rng.zipf(1.3, (BATCH, 1)) % 200 - 3)
        shown = torch.from_numpy(rng.zipf(1.3, (BATCH, 3)) % 97 * 2**40)
        liked = torch.from_numpy(rng.integers(0, 60, (BATCH, 2)) * 2**40)
        label = torch.from_numpy((rng.random(BATCH) < 0.4).astype(np.float32))
        found.append(({"user": user, "shown": shown, "liked": liked}, label))
    return found


def part(ids, label, rank, world_size):
    """A rank's part of a batch; the last rank's ids are ragged no less than the others'."""
    own = slice(rank * BATCH // world_size, (rank + 1) * BATCH // world_size)
    return {f: i[own] for f, i in ids.items()}, label[own]


class Model(torch.nn.Module):
    """Bags of two tables, and a dense part."""

    def __init__(self, embeddings):
        super().__init__()
        self.embeddings = embeddings
        torch.manual_seed(0)
        self.top = torch.nn.Sequential(
            torch.nn.Linear(14, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)
        )

    def forward(self, ids):
        return self.top(self.embeddings(ids).values().float()).squeeze(1)


MODES = {"user": "sum", "shown": "mean", "liked": "sqrtn"}


def content(store):
    """All rows and pending keys of a store: keys, values, slots, freq, step."""
    found = {}
    for name in store:
        blocks = [*store[name].export(pending=True)]
        if not blocks:
            found[name] = None
            continue
        fields = ("keys", "values", "freq", "step", "slots")
        found[name] = [np.concatenate([getattr(b, f) for b in blocks]) for f in fields]
    return found


def merged(shards):
    """The content of all shards as one, by key."""
    whole = {}
    for name in shards[0]:
        own = [shard[name] for shard in shards if shard[name] is not None]
        if not own:
            continue
        keys = np.concatenate([each[0] for each in own])
        order = np.argsort(keys)
        whole[name] = [np.concatenate([each[i] for each in own])[order] for i in range(5)]
    return whole


def train_alone(n_steps=N_STEPS, dtype="float32", n_accumulated=1, max_norm=None, optimizers=None):
    """The same training without any rank: losses and content."""
    store = es.Store(tables(dtype, optimizers), FEATURES)
    model = Model(EmbeddingBagCollection(store, mode=MODES))
    sparse, dense = optimizer(model), torch.optim.Adam(dense_parameters(model), lr=0.01)
    losses = _steps(model, model, sparse, dense, batches(n_steps), n_accumulated, max_norm)
    return losses, content(store)


def train(
    rank,
    world_size,
    n_steps=N_STEPS,
    dtype="float32",
    n_accumulated=1,
    max_norm=None,
    prefetches=False,
    optimizers=None,
):
    """Train on this rank's part of the batches: losses of all ranks, own content, traffic."""
    store = es.Store(tables(dtype, optimizers), FEATURES)
    embeddings = ShardedEmbeddingBagCollection(store, mode=MODES)
    model = Model(embeddings)
    whole = DistributedDataParallel(model)
    sparse, dense = optimizer(whole), torch.optim.Adam(dense_parameters(whole), lr=0.01)
    own = [part(*batch, rank, world_size) for batch in batches(n_steps)]
    losses = _steps(
        whole, model, sparse, dense, own, n_accumulated, max_norm, prefetches, world_size
    )
    return losses, content(store), embeddings.traffic()


def train_and_save(rank, world_size, path, n_steps):
    """Train some steps and save, then train and save once more, with the dense part."""
    store = es.Store(tables(), FEATURES)
    model = Model(ShardedEmbeddingBagCollection(store, mode=MODES))
    whole = DistributedDataParallel(model)
    sparse, dense = optimizer(whole), torch.optim.Adam(dense_parameters(whole), lr=0.01)
    own = [part(*batch, rank, world_size) for batch in batches(n_steps)]
    model.embeddings.save(path, extra={"epoch": 0})
    losses = _steps(whole, model, sparse, dense, own, 1, None, False, world_size)
    extra = {"top": model.top.state_dict(), "dense": dense.state_dict(), "n_steps": n_steps}
    model.embeddings.save(path, extra=extra)
    return losses, content(store)


def load_and_train(rank, world_size, path):
    """Go on where a save of any number of ranks was."""
    store = load_shard(path)
    first = store.extra["n_steps"]
    model = Model(ShardedEmbeddingBagCollection(store, mode=MODES))
    model.top.load_state_dict(store.extra["top"])
    whole = DistributedDataParallel(model)
    sparse, dense = optimizer(whole), torch.optim.Adam(dense_parameters(whole), lr=0.01)
    dense.load_state_dict(store.extra["dense"])
    own = [part(*batch, rank, world_size) for batch in batches()[first:]]
    losses = _steps(whole, model, sparse, dense, own, 1, None, False, world_size)
    return losses, content(store)


def _steps(
    whole, model, sparse, dense, own, n_accumulated, max_norm, prefetches=False, world_size=1
):
    from embstore.torch import clip_grad_norm_

    losses = []
    for i, (ids, label) in enumerate(own):
        output = whole(ids)
        if prefetches and i + 1 < len(own):
            model.embeddings.prefetch(own[i + 1][0])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(output, label)
        (loss / n_accumulated).backward()
        mean = loss.detach() / world_size
        if world_size > 1:
            dist.all_reduce(mean)
        losses.append(float(mean))
        if (i + 1) % n_accumulated == 0:
            if max_norm is not None:
                losses.append(float(clip_grad_norm_(whole, max_norm)))
            sparse.step()
            dense.step()
            sparse.zero_grad()
            dense.zero_grad()
    return losses
