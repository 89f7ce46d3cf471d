"""What a table's host counts: steps, training steps, and when upkeep is due next."""

from dataclasses import dataclass
from typing import Any

INT64_MAX = 2**63 - 1
BASE_SPAN = 2**32
BASE_KEPT = 2**31


def next_multiple(step: int, period: int) -> int:
    """Return the next multiple of a period after `step`, the greatest int64 at most."""
    return min((step // period + 1) * period, INT64_MAX)


def candidate_grain(ttl: int) -> int:
    """Return how coarse the clock of candidates is, in steps."""
    return max(1, ttl // 16)


@dataclass
class Clock:
    """The fields of ``es_state`` that no kernel counts."""

    step: int = 0
    step_base: int = 0
    n_train_steps: int = 0
    last_train_step: int = -1
    beta1_power: float = 1.0
    beta2_power: float = 1.0
    next_evict: int = 0
    next_freq_halve: int = 0
    next_bloom_halve: int = 0
    candidate_epoch: int = 0

    @classmethod
    def at_birth(cls, config: dict[str, Any]) -> "Clock":
        """Return the clock of a new table."""
        return cls(
            next_evict=config["evict_every"],
            next_freq_halve=config["freq_halve_every"],
            next_bloom_halve=config["bloom_halve_every"],
        )

    def saw(self, step: int) -> None:
        """Take note of the step of a call that succeeds."""
        self.step = max(self.step, step)

    def train(self, step: int, betas: tuple[float, float] | None) -> None:
        """Count a training step, unless it was counted before."""
        self.saw(step)
        if self.n_train_steps > 0 and step <= self.last_train_step:
            return
        self.n_train_steps += 1
        self.last_train_step = step
        if betas is not None:
            self.beta1_power *= betas[0]
            self.beta2_power *= betas[1]
