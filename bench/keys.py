"""Keys for benchmarks: unique random keys by row id, and batches of row ids by distribution.

Row i of every contender is the row of ``key_of(i)``, so that a static table can be asked by row id
what a dynamic one is asked by key. Everything is a function of a seed.
"""

from dataclasses import dataclass

import numpy as np

ZIPF_EXPONENT = 1.05
DISTRIBUTIONS = ("uniform", "zipf")
SCATTER = 2654435761  # a prime: rank -> rank * SCATTER mod n is a permutation, unless it divides n


def key_of(row_ids, seed=0):
    """Return the unique key of each row id, spread over all int64: the finalizer of splitmix64."""
    x = np.asarray(row_ids).astype(np.uint64)
    x += np.uint64((seed * 2 + 1) * 0x9E3779B97F4A7C15 % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x ^ (x >> np.uint64(31))).view(np.int64)


class Zipf:
    """Ranks 1..n with probability proportional to rank ** -exponent, for any exponent > 0.

    By rejection-inversion: W. Hörmann and G. Derflinger, "Rejection-inversion to generate variates
    from monotone discrete distributions", ACM TOMACS 6 (1996), with `expm1` and `log1p` so that an
    exponent of 1 is no special case. Exact, without a table of n entries.
    """

    def __init__(self, n, exponent=ZIPF_EXPONENT):
        if n < 1 or not exponent > 0:
            raise ValueError(f"Zipf: n must be >= 1 and exponent > 0, got {n} and {exponent}")
        self.n = n
        self.exponent = exponent
        self._first = self._integral(1.5) - 1.0
        self._last = self._integral(n + 0.5)
        self._shortcut = 2.0 - self._inverse(self._integral(2.5) - self._density(2.0))

    def sample(self, rng, size):
        """Return `size` ranks, int64."""
        ranks = np.empty(size, np.int64)
        n_done = 0
        while n_done < size:
            u = self._last + rng.random(size - n_done) * (self._first - self._last)
            x = self._inverse(u)
            k = np.clip(np.floor(x + 0.5), 1, self.n)
            is_taken = (k - x <= self._shortcut) | (u >= self._integral(k + 0.5) - self._density(k))
            taken = k[is_taken]
            ranks[n_done : n_done + len(taken)] = taken
            n_done += len(taken)
        return ranks

    def _density(self, x):
        return np.power(x, -self.exponent)

    def _integral(self, x):
        """Return the integral of the density from 1 to x."""
        log_x = np.log(x)
        return log_x * _ratio_at_zero(np.expm1, (1.0 - self.exponent) * log_x)

    def _inverse(self, area):
        """Return the x up to which the integral is `area`."""
        t = np.maximum(area * (1.0 - self.exponent), -1.0 + 1e-15)
        return np.exp(area * _ratio_at_zero(np.log1p, t))


def _ratio_at_zero(function, t):
    """Return function(t) / t, and its limit 1 at 0."""
    safe = np.where(np.abs(t) > 1e-12, t, 1e-12)
    return function(safe) / safe


def draw_row_ids(rng, distribution, n_rows, size):
    """Return `size` row ids in [0, n_rows); popular ones lie scattered, not side by side."""
    if distribution == "uniform":
        return rng.integers(0, n_rows, size, dtype=np.int64)
    if distribution == "zipf":
        ranks = Zipf(n_rows).sample(rng, size)
        return (ranks - 1) * SCATTER % n_rows
    raise ValueError(f"distribution must be one of {DISTRIBUTIONS}, got {distribution!r}")


@dataclass(frozen=True)
class Batches:
    """Batches for every contender of a case: (n_batches, batch) row ids, and their keys.

    With a hit rate below 1 some keys have no row; `row_ids` then holds row ids to read instead,
    for tables that cannot miss.
    """

    row_ids: np.ndarray
    keys: np.ndarray

    def __len__(self):
        return len(self.row_ids)


def draw_batches(axes, n_batches, seed):
    """Return `n_batches` batches for the axes n_rows, batch, distribution and hit_rate."""
    rng = np.random.default_rng([seed, axes["n_rows"], axes["batch"]])
    shape = (n_batches, axes["batch"])
    size = shape[0] * shape[1]
    row_ids = draw_row_ids(rng, axes["distribution"], axes["n_rows"], size)
    keys = key_of(row_ids, seed)
    hit_rate = axes.get("hit_rate", 1.0)
    if hit_rate < 1.0:
        is_miss = rng.random(size) >= hit_rate
        keys[is_miss] = key_of(row_ids[is_miss] + axes["n_rows"], seed)
    return Batches(row_ids.reshape(shape), keys.reshape(shape))
