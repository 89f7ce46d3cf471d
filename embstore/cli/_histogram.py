"""Histograms of streams of numbers whose range nobody knows before."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

N_PARTS = 256  # of each octave
LEAST_EXPONENT = -160  # float32 goes down to 2**-149
N_OCTAVES = 320
N_BARS = 64


@dataclass
class Histogram:
    """Counts numbers >= 0 in 256 bins an octave: integers to 512 exactly, others to 1/256.

    Bars are at least `least_width` wide: 1 for integers.
    """

    least_width: float = 0.0
    counts: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(N_OCTAVES * N_PARTS, np.int64)
    )
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
        if len(finite):
            self.greatest = max(self.greatest, float(finite.max()))
            fractions, exponents = np.frexp(finite)
            parts = (fractions * (2 * N_PARTS)).astype(np.int64) - N_PARTS
            places = (exponents - LEAST_EXPONENT).astype(np.int64) * N_PARTS + parts
            places[finite == 0] = 0
            self.counts += np.bincount(places, minlength=len(self.counts))

    def _least(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the least number of each bin."""
        octaves, parts = np.divmod(places, N_PARTS)
        fractions = (parts + N_PARTS) / (2.0 * N_PARTS)
        return np.where(places == 0, 0.0, np.ldexp(fractions, octaves + LEAST_EXPONENT))

    def quantile(self, share: float) -> float:
        """Return a number that about this share of those counted does not exceed."""
        if not self.n:
            return 0.0
        at = np.searchsorted(np.cumsum(self.counts), share * self.n)
        return float(self._least(np.array([at]))[0])

    def bars(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the edges of at most 65 bars of one width, (n + 1,), and their counts, (n,)."""
        width = 1.0
        if self.greatest > 0:
            width = max(2.0 ** math.ceil(math.log2(self.greatest / N_BARS)), self.least_width)
        used = np.flatnonzero(self.counts)
        bars = (self._least(used) / width).astype(np.int64)
        n_bars = int(self.greatest / width) + 1
        joined = np.zeros(n_bars, np.int64)
        np.add.at(joined, bars, self.counts[used])
        return np.arange(n_bars + 1, dtype=np.float64) * width, joined


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
    least = 2 ** (index - 1)
    return f"{least:,}+" if least < 10**5 else f"{short(least)}+"


def short(number: float) -> str:
    """Return a number in few characters: 1.2k, 34M."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= factor:
            return f"{number / factor:.3g}{letter}"
    return f"{number:.3g}"


def short_bytes(n_bytes: int) -> str:
    """Return a number of bytes in the unit that suits it."""
    number = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1024
    return f"{number:,.3g} TiB"
