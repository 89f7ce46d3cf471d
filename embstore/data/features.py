"""Features: which keys a model looks up for a row, from one column or from a cross of several.

The key of a cross of columns c1, ..., ck is hk of ``h1 = f(c1)``, ``hj = f(h(j-1) + cj)`` in 64-bit
integers that wrap, where f is the finalizer of SplitMix64, a bijection of the 64-bit integers
(``fixed_hash`` of docs/semantics.md). It depends on the order of the columns. Unlike ``a * n + b``
it needs no bound on the keys, and unlike ``% n`` it does not fold them: two of m crosses share a
key with probability m^2 / 2^65, and never where only one column differs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embstore.data.batches import Column, Ragged
from embstore.data.errors import DataTypeError
from embstore.errors import ArgumentError, ArgumentTypeError, DataError

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)

Keys = npt.NDArray[np.int64]


def fixed_hash(keys: Keys | npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the fixed hash of keys: the finalizer of SplitMix64, a bijection of 64-bit integers.

    Parameters
    ----------
    keys
        (n,) int64, or uint64 as the same bits.

    Returns
    -------
    numpy.ndarray
        (n,) uint64.
    """
    z = keys.view(np.uint64) + GOLDEN
    z ^= z >> np.uint64(30)
    z *= MIX_1
    z ^= z >> np.uint64(27)
    z *= MIX_2
    z ^= z >> np.uint64(31)
    return z


def cross_keys(*columns: Keys) -> Keys:
    """Return the keys of the cross of columns, row by row.

    Parameters
    ----------
    columns
        Two or more arrays (n,) int64.

    Returns
    -------
    numpy.ndarray
        (n,) int64; the formula stands at the head of this module.

    Raises
    ------
    ArgumentTypeError
        If an array is not int64.
    ArgumentError
        If there are fewer than two arrays, or their shapes are not one (n,).

    Examples
    --------
    >>> import numpy as np
    >>> from embstore.data import cross_keys
    >>> user, category = np.array([7, 7]), np.array([1, 2])
    >>> cross_keys(user, category).tolist() == cross_keys(category, user).tolist()
    False
    """
    arrays = [np.asarray(column) for column in columns]
    if len(arrays) < 2:
        raise ArgumentError(f"a cross takes two or more columns, not {len(arrays)}")
    for position, array in enumerate(arrays):
        if array.dtype != np.int64:
            raise ArgumentTypeError(f"a cross takes int64 keys; column {position} is {array.dtype}")
        if array.ndim != 1 or array.shape != arrays[0].shape:
            shapes = ", ".join(str(a.shape) for a in arrays)
            raise ArgumentError(f"the columns of a cross must have one shape (n,), not {shapes}")
    mixed = fixed_hash(arrays[0])
    for array in arrays[1:]:
        mixed = fixed_hash(mixed + array.view(np.uint64))
    return mixed.view(np.int64)


@dataclass(frozen=True)
class Feature:
    """A feature of a model: the keys of one column, or of a cross of several.

    Parameters
    ----------
    columns
        One column name, or the names of a cross in order.

    Raises
    ------
    ArgumentError
        If there is no column, a name is empty, or a cross names a column twice.

    Examples
    --------
    >>> import numpy as np
    >>> from embstore.data import Feature
    >>> feature = Feature.parse("user*category")
    >>> feature.columns
    ('user', 'category')
    >>> batch = {"user": np.array([7, 8]), "category": np.array([1, 1])}
    >>> feature.keys(batch).dtype
    dtype('int64')
    """

    columns: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.columns or not all(self.columns):
            raise ArgumentError(f"a feature needs names of columns, not {self.name!r}")
        if len(set(self.columns)) < len(self.columns):
            raise ArgumentError(f"the cross {self.name!r} names a column twice")

    @classmethod
    def parse(cls, text: str) -> "Feature":
        """Read ``user``, or ``user*category`` for a cross."""
        return cls(tuple(part.strip() for part in text.split("*")))

    @property
    def name(self) -> str:
        """The columns joined by ``*``."""
        return "*".join(self.columns)

    def keys(self, batch: Mapping[str, Column]) -> Keys | Ragged:
        """Return the keys of this feature in a batch.

        Parameters
        ----------
        batch
            Columns by name, as `ParquetReader` gives them.

        Returns
        -------
        numpy.ndarray or Ragged
            (n,) int64 without a copy for one column; `Ragged` where the column is a list, or where
            one column of a cross is: then each of its values is crossed with the row's other keys.

        Raises
        ------
        DataError
            If a column is not in the batch, or two columns of a cross are lists.
        DataTypeError
            If a column holds floats.
        """
        columns = [self._column(batch, name) for name in self.columns]
        if len(columns) == 1:
            return columns[0]
        lists = [column for column in columns if isinstance(column, Ragged)]
        if len(lists) > 1:
            raise DataError(
                f"the cross {self.name!r} has {len(lists)} list columns; one can be crossed"
            )
        if not lists:
            return cross_keys(*(c for c in columns if not isinstance(c, Ragged)))
        (bags,) = lists
        lengths = np.diff(bags.offsets)
        spread = (c.values if isinstance(c, Ragged) else np.repeat(c, lengths) for c in columns)
        return Ragged(cross_keys(*spread), bags.offsets)

    def _column(self, batch: Mapping[str, Column], name: str) -> Keys | Ragged:
        if name not in batch:
            raise DataError(
                f"the feature {self.name!r} needs the column {name!r}; there are {', '.join(batch)}"
            )
        column = batch[name]
        if isinstance(column, Ragged):
            return column
        if column.dtype != np.int64:
            raise DataTypeError(
                f"the feature {self.name!r} needs keys; the column {name!r} is {column.dtype}"
            )
        return column  # type: ignore[return-value]  # its dtype was just checked


def parse_features(features: str, crosses: str = "") -> list[Feature]:
    """Read lists of features, as the command line has them.

    Parameters
    ----------
    features
        Features separated by commas, for example ``"user,item"``; crosses may stand among them.
    crosses
        More of them, for example ``"user*category"``.

    Returns
    -------
    list of Feature
        In the order given.

    Raises
    ------
    ArgumentError
        If a feature is malformed or named twice, or none is given.

    Examples
    --------
    >>> from embstore.data import parse_features
    >>> [feature.name for feature in parse_features("user,item", "user*item")]
    ['user', 'item', 'user*item']
    """
    texts = [text for part in (features, crosses) if part.strip() for text in part.split(",")]
    parsed = [Feature.parse(text) for text in texts]
    names = [feature.name for feature in parsed]
    if not parsed:
        raise ArgumentError("no feature is given")
    for name in names:
        if names.count(name) > 1:
            raise ArgumentError(f"the feature {name!r} is given twice")
    return parsed
