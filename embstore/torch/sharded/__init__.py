"""Tables sharded over many ranks of torch.distributed: the modules, their saves, and clipping.

Each key lives on one rank, by the rule by which checkpoints are sharded. A lookup sends each key of
a batch once, to its owner, with how often it occurs; rows come back, and gradients go, once for
each key. What W ranks compute is what one computes on their batches together.
"""

from embstore.torch.sharded.clipping import clip_grad_norm_
from embstore.torch.sharded.collection import (
    ShardedEmbeddingBagCollection,
    ShardedEmbeddingCollection,
)
from embstore.torch.sharded.embedding import ShardedEmbedding, ShardedEmbeddingBag
from embstore.torch.sharded.saving import LatestSave, latest_save, load_shard

__all__ = [
    "LatestSave",
    "ShardedEmbedding",
    "ShardedEmbeddingBag",
    "ShardedEmbeddingBagCollection",
    "ShardedEmbeddingCollection",
    "clip_grad_norm_",
    "latest_save",
    "load_shard",
]
