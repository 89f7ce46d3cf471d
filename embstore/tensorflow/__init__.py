"""TensorFlow: Keras 3 layers whose rows live in embstore tables; its names need tensorflow.

`Embedding` and `EmbeddingBag` take the place of ``keras.layers.Embedding``, and `Optimizer` trains
their tables beside the dense part that a Keras optimizer trains. docs/tensorflow.md is the guide.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embstore.tensorflow.bag import EmbeddingBag
    from embstore.tensorflow.callbacks import EvictEvery, SaveTables, TableScalars
    from embstore.tensorflow.embedding import Embedding
    from embstore.tensorflow.names import register
    from embstore.tensorflow.op_library import build_op, load_op
    from embstore.tensorflow.parquet import parquet_dataset
    from embstore.tensorflow.training import Optimizer, clear_gradients, tables_of

_HOMES = {
    "Embedding": "embedding",
    "EmbeddingBag": "bag",
    "EvictEvery": "callbacks",
    "Optimizer": "training",
    "SaveTables": "callbacks",
    "TableScalars": "callbacks",
    "build_op": "op_library",
    "clear_gradients": "training",
    "load_op": "op_library",
    "parquet_dataset": "parquet",
    "register": "names",
    "tables_of": "training",
}

__all__ = [
    "Embedding",
    "EmbeddingBag",
    "EvictEvery",
    "Optimizer",
    "SaveTables",
    "TableScalars",
    "build_op",
    "clear_gradients",
    "load_op",
    "parquet_dataset",
    "register",
    "tables_of",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'embstore.tensorflow' has no attribute {name!r}")
    try:
        import tensorflow  # noqa: F401
    except ImportError:
        raise ImportError(
            f"embstore.tensorflow.{name} needs TensorFlow, 2.16 or newer: pip install tensorflow"
        ) from None
    value = getattr(import_module(f"embstore.tensorflow.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
