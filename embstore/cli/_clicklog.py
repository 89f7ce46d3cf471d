"""A made-up click log with the habits of real ones, and a truth that a model can find.

Keys are spread over all of int64. Half of the impressions show a fixed catalogue and go to a fixed
audience, both by Zipf's law. The other half are drift: new items keep coming, are shown much while
new and hardly ever again, and so do visitors. A click depends on the item's quality, on the user's
readiness to click, and on how the user likes the category: all fixed functions of the keys.
"""

import os
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from embstore.data import fixed_hash

Array = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

CHUNK_ROWS = 1 << 18
N_CATEGORIES = 40
N_AUDIENCE, N_CATALOGUE = 200_000, 300_000
NEW_USERS_PER_ROW, NEW_ITEMS_PER_ROW = 0.06, 0.05
BIAS, QUALITY, READINESS, TASTE = -1.8, 1.3, 0.8, 1.2
USER, ITEM, CATEGORY, LIKES = (np.uint64(salt << 56) for salt in (1, 2, 3, 4))

SCHEMA = pa.schema(
    [
        ("user", pa.int64()),
        ("item", pa.int64()),
        ("category", pa.dictionary(pa.int32(), pa.string())),
        ("label", pa.int8()),
    ]
)


def write_clicklog(path: "str | os.PathLike[str]", n_rows: int, seed: int) -> None:
    """Write a click log of n_rows in time order; the same seed gives the same log."""
    names = pa.array([f"category-{number:02}" for number in range(N_CATEGORIES)])
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for users, items, categories, labels in _chunks(n_rows, seed):
            columns = [
                pa.array(users),
                pa.array(items),
                pa.DictionaryArray.from_arrays(pa.array(categories.astype(np.int32)), names),
                pa.array(labels),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA))


def _chunks(n_rows: int, seed: int) -> Iterator[tuple[Array, Array, Array, npt.NDArray[np.int8]]]:
    random = np.random.default_rng(seed)
    for start in range(0, n_rows, CHUNK_ROWS):
        time = np.arange(start, min(start + CHUNK_ROWS, n_rows))
        users = _drifting(random, time, N_AUDIENCE, NEW_USERS_PER_ROW) ^ USER
        items = _drifting(random, time, N_CATALOGUE, NEW_ITEMS_PER_ROW) ^ ITEM
        categories = fixed_hash(items ^ CATEGORY) % np.uint64(N_CATEGORIES)
        taste = fixed_hash(users ^ LIKES) ^ categories
        logit = BIAS + QUALITY * _normal(items) + READINESS * _normal(users)
        logit += TASTE * _normal(fixed_hash(taste))
        clicks = random.random(len(time)) < 1 / (1 + np.exp(-logit))
        user_keys, item_keys = (fixed_hash(n).view(np.int64) for n in (users, items))
        yield user_keys, item_keys, categories.astype(np.int64), clicks.astype(np.int8)


def _drifting(
    random: np.random.Generator, time: Array, n_lasting: int, n_new_per_row: float
) -> npt.NDArray[np.uint64]:
    """Return numbers of users or items: lasting ones by Zipf's law, or new ones by their age."""
    lasting = _zipf(random, len(time), n_lasting)
    newest = (time * n_new_per_row).astype(np.int64)
    age = _zipf(random, len(time), n_lasting // 4)
    is_new = (random.random(len(time)) < 0.5) & (age <= newest)
    return np.where(is_new, n_lasting + newest - age, lasting).astype(np.uint64)


def _zipf(random: np.random.Generator, n: int, n_ranks: int) -> Array:
    """Return ranks 0 to n_ranks - 1 with probability about proportional to 1 / (rank + 10)."""
    shift = 10.0
    ranks = shift * ((n_ranks + shift) / shift) ** random.random(n) - shift
    return np.minimum(ranks.astype(np.int64), n_ranks - 1)


def _normal(numbers: npt.NDArray[np.uint64]) -> Floats:
    """Return a standard normal, nearly, that is fixed for each number: a sum of four uniforms."""
    bits = fixed_hash(fixed_hash(numbers))
    parts = [(bits >> np.uint64(16 * i)) & np.uint64(0xFFFF) for i in range(4)]
    uniform_sum: Floats = np.array(parts, np.float64).sum(axis=0) / 2**16
    return (uniform_sum - 2) * 3**0.5
