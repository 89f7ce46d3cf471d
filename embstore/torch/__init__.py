"""PyTorch: embedding modules whose rows live in embstore tables; importing its names needs torch.

A model keeps its optimizer, its loop and its checkpoints; `Embedding` and `EmbeddingBag` take the
place of those of ``torch.nn``, the collections that of TorchRec's, and `optimizer` trains their
tables beside the optimizer of the dense part. docs/pytorch.md is the guide.
"""

from importlib import import_module
from typing import TYPE_CHECKING

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
    "DenseEmbedding": "dense",
    "DenseEmbeddingBag": "dense",
    "Embedding": "embedding",
    "EmbeddingBag": "bag",
    "EmbeddingBagCollection": "collection",
    "EmbeddingCollection": "collection",
    "Jagged": "inputs",
    "KeyedTensor": "inputs",
    "ParquetDataset": "parquet",
    "ParquetLoader": "parquet_loader",
    "ShardedEmbedding": "sharded",
    "ShardedEmbeddingBag": "sharded",
    "ShardedEmbeddingBagCollection": "sharded",
    "ShardedEmbeddingCollection": "sharded",
    "StoreState": "store_state",
    "TableOptimizer": "training",
    "TableParameter": "parameter",
    "clip_grad_norm_": "sharded",
    "dense_parameters": "training",
    "latest_save": "sharded",
    "load_shard": "sharded",
    "optimizer": "training",
    "register": "compiled",
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


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'embstore.torch' has no attribute {name!r}")
    try:
        import torch  # noqa: F401
    except ImportError:
        raise ImportError(
            f"embstore.torch.{name} needs PyTorch, 2.6 or newer: pip install torch "
            f"--index-url https://download.pytorch.org/whl/cpu, or the build for your card"
        ) from None
    value = getattr(import_module(f"embstore.torch.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
