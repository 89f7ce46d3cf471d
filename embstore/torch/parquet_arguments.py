"""What a `ParquetDataset` is asked for: checked, and made into what a reader takes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from embstore.data import Column, Feature, Ragged, parse_features
from embstore.errors import ArgumentError, ArgumentTypeError


def nothing_of(kind: str) -> Column:
    """Return a column of no rows, of what a schema says."""
    if kind.startswith("list"):
        return Ragged(np.empty(0, np.int64), np.zeros(1, np.int64))
    if kind.startswith("float"):
        return np.empty(0, np.float32)
    return np.empty(0, np.int64)


def parse(features: str | Sequence[str]) -> list[Feature]:
    """Return features from their names."""
    if not isinstance(features, str):
        if not isinstance(features, Sequence) or not all(isinstance(f, str) for f in features):
            raise ArgumentTypeError(
                f"ParquetDataset: features must be names as in 'user,user*item', got {features!r}"
            )
        features = ",".join(features)
    return parse_features(features) if features else []


def columns_to_read(columns: Sequence[str], used: list[str]) -> Sequence[str]:
    """Return the columns of a reader, which refuses what is wrong with the caller's."""
    if isinstance(columns, str) or not isinstance(columns, Sequence):
        return columns
    if not all(isinstance(name, str) for name in columns):
        return columns
    return [*columns, *dict.fromkeys(name for name in used if name not in columns)]


def check_dtype(dtype: Any) -> torch.dtype | None:
    """Return a dtype of floats, or None."""
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    raise ArgumentTypeError(
        f"ParquetDataset: float_dtype must be a floating dtype or None, got {dtype!r}"
    )


def check_ranks(rank: Any, world_size: Any) -> tuple[int, int] | None:
    """Return (rank, world size), or None if neither was given."""
    if rank is None and world_size is None:
        return None
    for name, value in (("rank", rank), ("world_size", world_size)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise ArgumentTypeError(
                f"ParquetDataset: {name} must be an int, and given with the other of rank and "
                f"world_size, got {value!r}"
            )
    if not 0 <= rank < world_size:
        raise ArgumentError(
            f"ParquetDataset: rank must be from 0 to world_size - 1, got {rank} of {world_size}"
        )
    return rank, world_size
