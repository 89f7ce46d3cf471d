"""Histograms of streams: of numbers whose range nobody knows before, and of counts by octave."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

N_BINS = 4096
N_BARS = 64


@dataclass
class Histogram:
    """Counts numbers >= 0 in 4096 bins from 0 on, whose width doubles when a number lies beyond.

    `width` is the first width: 1 for integers.
    """

    width: float = 2.0**-40
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(N_BINS, np.int64))
    n_nonfinite: int = 0
    greatest: float = 0.0

    @property
    def n(self) -> int:
        """How many finite numbers were counted."""
        return int(self.counts.sum())

    def add(self, numbers: NDArray[Any]) -> None:
        """Count numbers."""
        finite = numbers[np.isfinite(numbers)].astype(np.float64)
        self.n_nonfinite += len(numbers) - len(finite)
        if not len(finite):
            return
        self.greatest = max(self.greatest, float(finite.max()))
        while self.greatest >= self.width * N_BINS:
            self.counts = np.append(
                self.counts.reshape(-1, 2).sum(axis=1), np.zeros(N_BINS // 2, np.int64)
            )
            self.width *= 2
        places = (finite / self.width).astype(np.int64)
        self.counts += np.bincount(places, minlength=N_BINS)

    def quantile(self, share: float) -> float:
        """Return a number that about this share of those counted does not exceed."""
        if not self.n:
            return 0.0
        sums = np.cumsum(self.counts)
        at = int(np.searchsorted(sums, share * self.n))
        return min((at + 1) * self.width if self.width < 1 else at * self.width, self.greatest)

    def bars(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the edges of at most 64 bars, (n + 1,), and their counts, (n,)."""
        n_used = int(self.greatest / self.width) + 1
        n_joined = 1
        while n_used > N_BARS * n_joined:
            n_joined *= 2
        n_bars = -(-n_used // n_joined)
        joined: NDArray[np.int64] = self.counts.reshape(-1, n_joined).sum(axis=1)[:n_bars]
        edges = np.arange(n_bars + 1, dtype=np.float64) * (self.width * n_joined)
        return edges, joined


@dataclass
class Octaves:
    """Counts integers by the power of two below: 0, 1, 2 to 3, 4 to 7, ..."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(65, np.int64))

    def add(self, numbers: NDArray[Any]) -> None:
        """Count integers >= 0."""
        _, exponents = np.frexp(numbers.astype(np.float64))
        self.counts += np.bincount(exponents, minlength=len(self.counts))

    def bars(self) -> tuple[list[str], NDArray[np.int64]]:
        """Return the names of the octaves from the first to the last one in use, and counts."""
        used = np.flatnonzero(self.counts)
        if not len(used):
            return [], self.counts[:0]
        first, last = int(used[0]), int(used[-1])
        return [octave(i) for i in range(first, last + 1)], self.counts[first : last + 1]


def octave(index: int) -> str:
    """Return the numbers of an octave as a label."""
    if index < 2:
        return str(index)
    return f"{short(2 ** (index - 1))}+"


def short(number: float) -> str:
    """Return a number in few characters: 1.2k, 34M."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= factor:
            return f"{number / factor:.3g}{letter}"
    return f"{number:.3g}"
