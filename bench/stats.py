"""Statistics of samples: medians, quantiles, ratios paired by round, verdicts on targets.

A figure is a median with the range from p10 to p90; nothing here is a mean, which one stall of a
shared machine moves.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Summary:
    """What a list of samples comes to, in the unit of the samples."""

    n: int
    median: float
    min: float
    p10: float
    p90: float
    max: float


@dataclass(frozen=True)
class Target:
    """A bound that a figure should keep, and the axes at which the bound is meant."""

    name: str
    bound: float
    is_at_least: bool
    axes: dict[str, object]

    def is_met_by(self, value):
        return value >= self.bound if self.is_at_least else value <= self.bound

    def differing_axes(self, axes):
        """Return the axes of the target that `axes` has with another value, or lacks."""
        return {name: value for name, value in self.axes.items() if axes.get(name) != value}


def quantile(samples, q):
    """Return the smallest sample that at least the share `q` of samples does not exceed."""
    return float(np.quantile(np.asarray(samples, np.float64), q, method="inverted_cdf"))


def summarize(samples):
    """Return the `Summary` of at least one sample."""
    if len(samples) == 0:
        raise ValueError("summarize: there are no samples")
    return Summary(
        n=len(samples),
        median=float(np.median(samples)),
        min=float(np.min(samples)),
        p10=quantile(samples, 0.1),
        p90=quantile(samples, 0.9),
        max=float(np.max(samples)),
    )


def paired_ratios(reference, ours):
    """Return reference / ours for each round: how many times as fast ours was in that round."""
    if len(reference) != len(ours):
        raise ValueError(f"paired_ratios: {len(reference)} rounds against {len(ours)}")
    return np.asarray(reference, np.float64) / np.asarray(ours, np.float64)


def verdict(target, value, low, high):
    """Return what `target` says of a figure with the range from `low` to `high`."""
    is_unsure = target.is_met_by(low) != target.is_met_by(high)
    share = value / target.bound
    if target.is_met_by(value):
        text = "meets"
    elif share < 2:
        distance = abs(share - 1) * 100
        text = f"misses by {distance:.0f} %" if distance >= 1 else f"misses by {distance:.1f} %"
    else:
        text = f"misses, {share:.1f} times the bound"
    return f"{text} (within the spread)" if is_unsure else text
