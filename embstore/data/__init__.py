"""Parquet files to numpy batches, and the features made of their columns.

>>> from embstore.data import ParquetReader, parse_features
"""

from embstore.data.batches import Batch, Column, Ragged
from embstore.data.errors import ClosedReaderError, DataFileError, DataTypeError
from embstore.data.features import Feature, cross_keys, fixed_hash, parse_features
from embstore.data.order import Shuffle
from embstore.data.parquet import BatchIterator, ParquetReader
from embstore.data.strings import hash_strings
from embstore.errors import DataError

__all__ = [
    "Batch",
    "BatchIterator",
    "ClosedReaderError",
    "Column",
    "DataError",
    "DataFileError",
    "DataTypeError",
    "Feature",
    "ParquetReader",
    "Ragged",
    "Shuffle",
    "cross_keys",
    "fixed_hash",
    "hash_strings",
    "parse_features",
]
