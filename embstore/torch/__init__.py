"""PyTorch: embedding modules whose rows live in embstore tables; importing its names needs torch.

A model keeps its optimizer, its loop and its checkpoints; `Embedding` and `EmbeddingBag` take the
place of those of ``torch.nn``, the collections that of TorchRec's, and `optimizer` trains their
tables beside the optimizer of the dense part. docs/pytorch.md is the guide.
"""

from typing import TYPE_CHECKING

from embstore._adapters import lazy_names

if TYPE_CHECKING:
    from embstore.torch.bag import EmbeddingBag
    from embstore.torch.collection import EmbeddingBagCollection, EmbeddingCollection
    from embstore.torch.compiled import register
    from embstore.torch.dense import DenseEmbedding, DenseEmbeddingBag
    from embstore.torch.embedding import Embedding
    from embstore.torch.inputs import Jagged, KeyedTensor
    from embstore.torch.parameter import TableParameter
    from embstore.torch.parquet import ParquetDataset
    from embstore.torch.parquet_loader import ParquetLoader
    from embstore.torch.sharded import (
        ShardedEmbedding,
        ShardedEmbeddingBag,
        ShardedEmbeddingBagCollection,
        ShardedEmbeddingCollection,
        clip_grad_norm_,
        latest_save,
        load_shard,
    )
    from embstore.torch.store_state import StoreState
    from embstore.torch.training import TableOptimizer, dense_parameters, optimizer

_HOMES = {
    "DenseEmbedding": "embstore.torch.dense",
    "DenseEmbeddingBag": "embstore.torch.dense",
    "Embedding": "embstore.torch.embedding",
    "EmbeddingBag": "embstore.torch.bag",
    "EmbeddingBagCollection": "embstore.torch.collection",
    "EmbeddingCollection": "embstore.torch.collection",
    "Jagged": "embstore.torch.inputs",
    "KeyedTensor": "embstore.torch.inputs",
    "ParquetDataset": "embstore.torch.parquet",
    "ParquetLoader": "embstore.torch.parquet_loader",
    "ShardedEmbedding": "embstore.torch.sharded",
    "ShardedEmbeddingBag": "embstore.torch.sharded",
    "ShardedEmbeddingBagCollection": "embstore.torch.sharded",
    "ShardedEmbeddingCollection": "embstore.torch.sharded",
    "StoreState": "embstore.torch.store_state",
    "TableOptimizer": "embstore.torch.training",
    "TableParameter": "embstore.torch.parameter",
    "clip_grad_norm_": "embstore.torch.sharded",
    "dense_parameters": "embstore.torch.training",
    "latest_save": "embstore.torch.sharded",
    "load_shard": "embstore.torch.sharded",
    "optimizer": "embstore.torch.training",
    "register": "embstore.torch.compiled",
}

__all__ = [
    "DenseEmbedding",
    "DenseEmbeddingBag",
    "Embedding",
    "EmbeddingBag",
    "EmbeddingBagCollection",
    "EmbeddingCollection",
    "Jagged",
    "KeyedTensor",
    "ParquetDataset",
    "ParquetLoader",
    "ShardedEmbedding",
    "ShardedEmbeddingBag",
    "ShardedEmbeddingBagCollection",
    "ShardedEmbeddingCollection",
    "StoreState",
    "TableOptimizer",
    "TableParameter",
    "clip_grad_norm_",
    "dense_parameters",
    "latest_save",
    "load_shard",
    "optimizer",
    "register",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    _HOMES,
    "torch",
    "PyTorch, 2.6 or newer: pip install torch --index-url "
    "https://download.pytorch.org/whl/cpu, or the build for your card",
)
