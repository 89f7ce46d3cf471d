"""Keras 3 on TensorFlow, PyTorch or JAX: layers whose rows live in embstore tables; needs keras.

`Embedding` and `EmbeddingBag` take the place of ``keras.layers.Embedding`` on each of Keras's
backends; their tables are trained in backward. docs/keras.md is the guide.
"""

from typing import TYPE_CHECKING

from embstore._adapters import lazy_names

if TYPE_CHECKING:
    from embstore._keras.callbacks import EvictEvery, SaveTables
    from embstore._keras.layer import tables_of
    from embstore.keras.bag import EmbeddingBag
    from embstore.keras.embedding import Embedding

_HOMES = {
    "Embedding": "embstore.keras.embedding",
    "EmbeddingBag": "embstore.keras.bag",
    "EvictEvery": "embstore._keras.callbacks",
    "SaveTables": "embstore._keras.callbacks",
    "tables_of": "embstore._keras.layer",
}

__all__ = [
    "Embedding",
    "EmbeddingBag",
    "EvictEvery",
    "SaveTables",
    "tables_of",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    _HOMES,
    "keras",
    "Keras 3.10 or newer and one of its backends: pip install 'embstore[keras]'",
)
