"""Steps of many ranks, one after another, where ranks differ and wait for each other.

The model's stages with noise: each stage of each rank takes its time times a lognormal factor, and
now and then a rank stalls. An exchange begins when the last rank has come to it; so does the sum of
the dense gradients, which ends the dense part. With `is_ahead` a rank sends the keys of the next
batch as soon as it has the rows of this one, beside its dense part. The network carries one
exchange at a time.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Noise:
    """What makes ranks differ: `spread` of the logarithm, and stalls.

    A stage of a rank stalls with probability `stall_share` and then takes `stall` times as long;
    the `n_slow` first ranks are slower by `slow` in all they do.
    """

    spread: float = 0.05
    stall_share: float = 0.0
    stall: float = 1.0
    n_slow: int = 0
    slow: float = 1.0


QUIET = Noise(spread=0.0)


class _Draw:
    """Times of a stage by rank."""

    def __init__(self, stages, noise, n_ranks, seed):
        self._stages, self._noise, self._n = stages, noise, n_ranks
        self._rng = np.random.default_rng(seed)
        self._speed = np.where(np.arange(n_ranks) < noise.n_slow, noise.slow, 1.0)
        self._free = 0.0  # when the network is

    def work(self, stage):
        """Return the seconds of a stage, (n_ranks,)."""
        noise = self._noise
        factor = np.exp(self._rng.normal(0.0, noise.spread, self._n)) * self._speed
        is_stalled = self._rng.random(self._n) < noise.stall_share
        return self._stages[stage] * np.where(is_stalled, factor * noise.stall, factor)

    def together(self, ready, stage):
        """Return when an exchange has ended, for all ranks: it begins with the last of them."""
        self._free = max(ready.max(), self._free) + self.work(stage).max()
        return np.full(self._n, self._free)


def step_times(stages, n_ranks, n_steps, noise=QUIET, is_ahead=True, seed=0):
    """Return the seconds of each step, (n_steps,), from the end of one to that of the next.

    Parameters
    ----------
    stages
        What `model.stages` gives.
    n_ranks, n_steps
        How many are simulated.
    noise
        `Noise`.
    is_ahead
        Whether the keys of the next batch are sent beside the dense part.
    seed
        Of the noise.
    """
    draw = _Draw(stages, noise, n_ranks, seed)
    now = np.zeros(n_ranks)
    asked = draw.together(now + draw.work("dedup"), "keys")  # when the owners have the keys
    ends = np.empty(n_steps + 1)
    ends[0] = 0.0
    for step in range(n_steps):
        ready = np.maximum(now, asked) + draw.work("find")
        has_rows = draw.together(ready, "rows")
        if is_ahead:
            asked = draw.together(has_rows + draw.work("dedup"), "keys")
        learned = has_rows + draw.work("dense")
        given = draw.together(np.full(n_ranks, learned.max()), "gradients")
        now = given + draw.work("apply")
        if not is_ahead:
            asked = draw.together(now + draw.work("dedup"), "keys")
        ends[step + 1] = now.max()
    return np.diff(ends)[1:] if n_steps > 1 else np.diff(ends)
