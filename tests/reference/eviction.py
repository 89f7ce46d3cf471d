"""Which rows an eviction policy selects, docs/semantics.md, section 7."""

import numpy as np

from embstore.policies import CapacityEviction, FrequencyEviction, L2Eviction, StepEviction
from embstore.policies.eviction import And

from .floats import row_norm


def leaves(policy):
    """Yield the policies that are joined in `policy`."""
    if policy is None:
        return
    if hasattr(policy, "left"):
        yield from leaves(policy.left)
        yield from leaves(policy.right)
    else:
        yield policy


def is_selective(policy):
    """Whether a policy selects rows by itself; CapacityEviction does not."""
    return not isinstance(policy, CapacityEviction)


def first_of(policy, kind, name):
    """Return the parameter `name` of the first policy of a kind that has one, or None."""
    found = (getattr(leaf, name) for leaf in leaves(policy) if isinstance(leaf, kind))
    return next((value for value in found if value is not None), None)


def is_evictable(policy, age, freq, values):
    """Return which rows `policy` selects, from their ages, frequencies and values."""
    if policy is None or isinstance(policy, CapacityEviction):
        return np.zeros(len(age), bool)
    if isinstance(policy, StepEviction):
        return age > policy.steps_to_live
    if isinstance(policy, L2Eviction):
        return (row_norm(values) < np.float32(policy.threshold)) & (age >= policy.min_age)
    if isinstance(policy, FrequencyEviction):
        return (freq < policy.min_freq) & (age >= policy.min_age)
    left = is_evictable(policy.left, age, freq, values)
    right = is_evictable(policy.right, age, freq, values)
    return left & right if isinstance(policy, And) else left | right
