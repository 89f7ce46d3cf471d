"""The unique keys of a batch, in order of first occurrence, and what occurs of each."""

import numpy as np

UINT32_MAX = 2**32 - 1


def deduplicate(keys):
    """Return unique keys in order of first occurrence, and the inverse."""
    unique, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return unique[order], rank[inverse.reshape(-1)]


def count_occurrences(inverse, n_unique, counts):
    """Return the occurrences of each unique key, saturating: its `counts`, or one each."""
    occurrences = np.zeros(n_unique, np.int64)
    np.add.at(occurrences, inverse, 1 if counts is None else counts.astype(np.int64))
    return np.minimum(occurrences, UINT32_MAX)


def last_occurrence(inverse, n_unique):
    """Return where in the batch each unique key occurs last."""
    last = np.zeros(n_unique, np.int64)
    np.maximum.at(last, inverse, np.arange(len(inverse)))
    return last


def saturate(x):
    """Return counts as uint32, the greatest of which stands for more."""
    return np.minimum(x, UINT32_MAX).astype(np.uint32)
