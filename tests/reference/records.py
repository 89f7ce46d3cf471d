"""What the verbs of the model return, and its counters."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass
class State:
    """The counters of `es_state` in embstore.h."""

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
    n_inserted: int = 0
    n_evicted: int = 0
    n_erased: int = 0
    n_refused: int = 0
    n_candidates_expired: int = 0
    n_grads_dropped: int = 0
    n_grads_stale: int = 0
    n_nonfinite: int = 0
    n_steps_clamped: int = 0
    n_bloom_added: int = 0


@dataclass
class Batch:
    """What find_or_insert returns; `clears` tells how often the table had been cleared."""

    table: object
    rows: np.ndarray
    keys: np.ndarray
    status: np.ndarray
    inverse: np.ndarray
    clears: int

    @property
    def n_unique(self):
        return len(self.keys)


@dataclass
class PooledBatch:
    """What pooled(step=...) returns: the bags' rows, and what their gradients need."""

    rows: np.ndarray
    batch: Batch
    offsets: np.ndarray
    weights: np.ndarray | None
    divisor: np.ndarray


class ApplyReport(NamedTuple):
    n_applied: int
    n_dropped: int
    n_stale: int
    n_nonfinite: int


class AssignReport(NamedTuple):
    n_replaced: int
    n_inserted: int
    n_refused: int


class EvictReport(NamedTuple):
    n_scanned: int
    n_selected: int
    n_evicted: int
    is_complete: bool
    rows: object
