"""The table to beat: a fixed number of rows, onto which keys are folded as users do it.

Features with few distinct keys get a row for each key, as with a vocabulary; the other features
share the remaining rows by a hash. Which they are is known from a pass over the data beforehand, a
favour that a static table needs and the dynamic one does not.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from embstore.data import DataError, Ragged, cross_keys
from embstore.errors import ArgumentError

Keys = npt.NDArray[np.int64]

VOCABULARY_SHARE = 1 / 8


class StaticLayout:
    """Which rows of a static table the keys of each feature have.

    Parameters
    ----------
    n_rows
        Rows of the table, at least one for the hashed features together.
    vocabularies
        For each feature without collisions its distinct keys, sorted.
    hashed
        The features that are hashed onto the remaining rows.
    shares
        For hashed features the share of the remaining rows that is theirs alone; those without
        one use together what is left. Empty: all use all of it.
    seed
        Of the hash: which keys collide is luck, and seeds are to differ in it too.

    Raises
    ------
    ArgumentError
        If the rows do not suffice, or the shares name another feature or exceed 1.
    """

    def __init__(
        self,
        n_rows: int,
        vocabularies: Mapping[str, Keys],
        hashed: Sequence[str],
        shares: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        self.n_rows = n_rows
        self._seed = seed
        self.vocabularies = dict(vocabularies)
        self._starts: dict[str, int] = {}
        start = 0
        for name, keys in self.vocabularies.items():
            self._starts[name], start = start, start + len(keys)
        self.ranges = _hashed_ranges(start, n_rows, hashed, dict(shares or {}))

    def places(self, feature: str, keys: Keys) -> Keys:
        """Return the rows (n,) of the keys (n,) of a feature.

        Raises
        ------
        DataError
            If a key is not in the feature's vocabulary.
        """
        if feature in self.vocabularies:
            vocabulary = self.vocabularies[feature]
            place = np.searchsorted(vocabulary, keys)
            is_known = vocabulary[np.minimum(place, len(vocabulary) - 1)] == keys
            if not is_known.all():
                raise DataError(f"{feature!r} has keys that the pass beforehand did not see")
            return place + self._starts[feature]
        start, stop = self.ranges[feature]
        salt = cross_keys(
            np.array([self._seed % 2**63]), np.array([list(self.ranges).index(feature)])
        )
        hashes = cross_keys(keys, np.repeat(salt, len(keys))).view(np.uint64)
        return (hashes % np.uint64(stop - start)).astype(np.int64) + start

    def describe(self) -> dict[str, object]:
        """Return the rows of each feature, as JSON holds them."""
        return {
            "n_rows": self.n_rows,
            "without_collisions": {name: len(keys) for name, keys in self.vocabularies.items()},
            "hashed": {name: list(bounds) for name, bounds in self.ranges.items()},
        }


def distinct_keys(
    batches: Iterable[Mapping[str, "Keys | Ragged"]], names: Sequence[str], n_most: int | None
) -> dict[str, Keys]:
    """Return the sorted distinct keys of features; not of those that have more than n_most."""
    found = {name: np.empty(0, np.int64) for name in names}
    for batch in batches:
        for name in list(found):
            column = batch[name]
            keys = column.values if isinstance(column, Ragged) else column
            found[name] = np.union1d(found[name], keys)
            if n_most is not None and len(found[name]) > n_most:
                del found[name]
    return found


def choose_vocabularies(found: Mapping[str, Keys], n_rows: int) -> dict[str, Keys]:
    """Return the features that get a row for each key: the smallest, while they take up to half.

    Parameters
    ----------
    found
        Distinct keys of the features that have at most `VOCABULARY_SHARE` of the rows.
    n_rows
        Rows of the table.
    """
    chosen: dict[str, Keys] = {}
    n_taken = 0
    for name in sorted(found, key=lambda name: len(found[name])):
        n_taken += len(found[name])
        if n_taken <= n_rows // 2:
            chosen[name] = found[name]
    return chosen


def _hashed_ranges(
    start: int, n_rows: int, hashed: Sequence[str], shares: dict[str, float]
) -> dict[str, tuple[int, int]]:
    """Return the first row of each hashed feature, and the row behind its last."""
    n_free = n_rows - start
    if n_free < len(hashed):
        raise ArgumentError(
            f"a static table of {n_rows:,} rows is too small: features without collisions take "
            f"{start:,}, and {len(hashed)} more are to be hashed"
        )
    strangers = sorted(set(shares) - set(hashed))
    if strangers:
        raise ArgumentError(f"{strangers[0]!r} is not hashed; hashed are {', '.join(hashed)}")
    if sum(shares.values()) > 1 + 1e-9:
        raise ArgumentError(f"the shares of the hashed rows add up to {sum(shares.values()):g} > 1")
    ranges: dict[str, tuple[int, int]] = {}
    for name in hashed:
        if name in shares:
            stop = min(start + max(1, round(shares[name] * n_free)), n_rows)
            ranges[name], start = (start, stop), stop
    for name in hashed:
        if name not in shares:
            ranges[name] = (start, n_rows)
    if any(first >= stop for first, stop in ranges.values()):
        raise ArgumentError("the shares leave no row for a hashed feature")
    return ranges
