"""Keys, row ids and numbers of a benchmark's batches, made on the device; keys.py is the model.

Row i is the row of ``keys.key_of(i, seed)``, here and for the peers, so that a static table can be
asked by row id what a dynamic one is asked by key.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.keys import SCATTER

GOLDEN = 0x9E3779B97F4A7C15
SPAN = 1 << 40  # seeds of one launch and the next lie so far apart


@dataclass(frozen=True)
class Batch:
    """The row ids, (n,) uint64, and keys, (n,) int64, of one call; arrays of the device."""

    n: int
    ids: Any
    keys: Any


class Data:
    """Batches of one clock; every call with equal arguments gives equal numbers."""

    def __init__(self, clock, seed):
        self._clock = clock
        self._seed = seed
        self._salt = (seed * 2 + 1) * GOLDEN % 2**64

    def _at(self, turn):
        """Return the seed of a launch."""
        return (self._seed * 7919 + turn + 1) * SPAN % 2**64

    def _keys(self, n, ids=0, first=0):
        keys = self._clock.empty((n,), np.int64)
        fields = {"first": first, "n": n, "salt": self._salt, "keys": keys}
        self._clock.run("data_keys", n, ids=ids, **fields)
        return keys

    def following(self, first, n):
        """Return the keys of the rows first, first + 1, ..."""
        return self._keys(n, first=first)

    def uniform(self, n, n_rows, turn, fresh_share=0.0, first_fresh=0):
        """Return a batch of rows below `n_rows`; a share of it are rows from `first_fresh` on."""
        ids = self._clock.empty((n,), np.uint64)
        fields = {"n": n, "n_rows": n_rows, "seed": self._at(turn), "ids": ids}
        fields |= {"fresh_share": float(fresh_share), "first_fresh": first_fresh}
        self._clock.run("data_uniform_ids", n, **fields)
        return Batch(n, ids, self._keys(n, ids))

    def zipf(self, n, n_rows, turn, exponent):
        """Return a batch of rows by popularity; popular ones lie scattered."""
        ids = self._clock.empty((n,), np.uint64)
        fields = {"n": n, "n_rows": n_rows, "seed": self._at(turn), "ids": ids}
        fields |= {"exponent": float(exponent), "scatter": SCATTER}
        self._clock.run("data_zipf_ids", n, **fields)
        return Batch(n, ids, self._keys(n, ids))

    def floats(self, shape, turn=0, scale=0.01):
        """Return numbers in [-scale, scale), float32."""
        out = self._clock.empty(shape, np.float32)
        n = int(np.prod(shape))
        self._clock.run("data_floats", n, n=n, seed=self._at(turn), scale=scale, out=out)
        return out

    def offsets(self, n_bags, bag):
        """Return where each of `n_bags` bags of `bag` ids begins, and the end."""
        out = self._clock.empty((n_bags + 1,), np.int64)
        self._clock.run("data_steps", n_bags + 1, n=n_bags + 1, step=bag, out=out)
        return out
