"""How many keys of a batch are distinct, and how evenly owners are asked: counted, by embstore."""

import numpy as np

import embstore as es
from bench.keys import draw_row_ids, key_of
from embstore.checkpoint import shard_of


def distinct(keys):
    """Return the distinct keys of a batch, by the deduplication of a training step."""
    with es.Table(1, hash_seed=0).find_or_insert(keys, step=0) as batch:
        return np.array(batch.keys)


def ask(keys, world_size):
    """Return the distinct keys of ids with their counts, by owner, and how many each is asked.

    As ``embstore.torch``'s sharded modules do it.
    """
    import torch

    found = torch.unique(torch.from_numpy(keys), return_inverse=True, return_counts=True)
    unique, _, counts = (tensor.numpy() for tensor in found)
    owners = shard_of(unique, world_size).astype(np.uint16)
    order = np.argsort(owners, kind="stable")
    to = np.bincount(owners, minlength=world_size)
    return unique[order], counts[order].astype(np.uint32), to


def unique_share(distribution, n_rows, n_ids, seed=0):
    """Return the share of a feature's ids of one rank that are distinct."""
    keys = key_of(draw_row_ids(np.random.default_rng(seed), distribution, n_rows, n_ids))
    return len(distinct(keys)) / n_ids


def owner_shares(distribution, n_rows, n_ids, world_size, n_features, seed=0):
    """Return what owners see, as (joint share, imbalance).

    The first is the share of the keys sent to an owner that are distinct among all ranks; the
    second what the busiest owner is sent over the mean. Tables hash alike, so features are drawn
    from key ranges of their own.
    """
    rng = np.random.default_rng(seed)
    n_sent = np.zeros(world_size)
    n_joint = n_all = 0
    for feature in range(n_features):
        parts = [
            distinct(key_of(draw_row_ids(rng, distribution, n_rows, n_ids), feature))
            for _ in range(world_size)
        ]
        keys = np.concatenate(parts)
        n_sent += np.bincount(shard_of(keys, world_size), minlength=world_size)
        n_all += len(keys)
        n_joint += len(distinct(keys))
    return n_joint / n_all, float(n_sent.max() / n_sent.mean())
