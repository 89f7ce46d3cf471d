"""TensorFlow: Keras 3 layers whose rows live in embstore tables; its names need tensorflow.

`Embedding` and `EmbeddingBag` take the place of ``keras.layers.Embedding``, and `Optimizer` trains
their tables beside the dense part that a Keras optimizer trains. docs/tensorflow.md is the guide.
"""

from typing import TYPE_CHECKING

from embstore._adapters import lazy_names

if TYPE_CHECKING:
    from embstore._keras.callbacks import EvictEvery, SaveTables
    from embstore._keras.layer import tables_of
    from embstore.tensorflow.bag import EmbeddingBag
    from embstore.tensorflow.callbacks import TableScalars
    from embstore.tensorflow.embedding import Embedding
    from embstore.tensorflow.names import register
    from embstore.tensorflow.op_library import build_op, load_op
    from embstore.tensorflow.parquet import parquet_dataset
    from embstore.tensorflow.training import Optimizer, clear_gradients

_HOMES = {
    "Embedding": "embstore.tensorflow.embedding",
    "EmbeddingBag": "embstore.tensorflow.bag",
    "EvictEvery": "embstore._keras.callbacks",
    "Optimizer": "embstore.tensorflow.training",
    "SaveTables": "embstore._keras.callbacks",
    "TableScalars": "embstore.tensorflow.callbacks",
    "build_op": "embstore.tensorflow.op_library",
    "clear_gradients": "embstore.tensorflow.training",
    "load_op": "embstore.tensorflow.op_library",
    "parquet_dataset": "embstore.tensorflow.parquet",
    "register": "embstore.tensorflow.names",
    "tables_of": "embstore._keras.layer",
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

__getattr__, __dir__ = lazy_names(
    __name__,
    _HOMES,
    "tensorflow",
    "TensorFlow, 2.16 or newer, and Keras 3.10 or newer: pip install 'embstore[tensorflow]'",
)
