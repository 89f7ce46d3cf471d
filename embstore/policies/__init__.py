"""Policies: small frozen objects that hold, check and describe their own parameters."""

from embstore.policies.admission import Admission, BloomAdmission, CounterAdmission
from embstore.policies.eviction import (
    CacheEviction,
    CapacityEviction,
    Eviction,
    FrequencyEviction,
    L2Eviction,
    StepEviction,
)
from embstore.policies.initializer import (
    Constant,
    Initializer,
    Normal,
    TruncatedNormal,
    Uniform,
)
from embstore.policies.optimizer import (
    FTRL,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Optimizer,
    RowWiseAdagrad,
)

__all__ = [
    "FTRL",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Admission",
    "BloomAdmission",
    "CacheEviction",
    "CapacityEviction",
    "Constant",
    "CounterAdmission",
    "Eviction",
    "FrequencyEviction",
    "Initializer",
    "L2Eviction",
    "Normal",
    "Optimizer",
    "RowWiseAdagrad",
    "StepEviction",
    "TruncatedNormal",
    "Uniform",
]
