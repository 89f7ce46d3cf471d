"""The targets of the CPU engine, each with the axes at which it is meant.

A benchmark prints a figure's verdict at whatever axes it ran, and says where those are others.
"""

from bench.stats import Target

_FIND = {"n_rows": 10_000_000, "batch": 131_072, "distribution": "uniform", "threads": 1}
_CALL = {"batch": 131_072}
_GROW = {"n_rows": 20_000_000, "batch": 4096}


def at_least(name, bound, **axes):
    """Return a target that larger figures meet."""
    return Target(name, bound, True, axes)


def at_most(name, bound, **axes):
    """Return a target that smaller figures meet."""
    return Target(name, bound, False, axes)


FIND_TORCH = {
    64: at_least("find, dim 64, against torch.index_select(out=)", 1.3, dim=64, **_FIND),
    16: at_least("find, dim 16, against torch.index_select(out=)", 1.6, dim=16, **_FIND),
}
FIND_RAW = {
    64: at_least("find, dim 64, against a raw gather (bound 0.78)", 0.70, dim=64, **_FIND),
    16: at_least("find, dim 16, against a raw gather (bound 0.47)", 0.42, dim=16, **_FIND),
}
FIND_FRESH = {
    64: at_least("find, fresh output, dim 64, against torch.index_select", 3.0, dim=64, **_CALL),
}
FIND_THREADS = at_least("find, 2 threads over 1", 1.75, **_CALL)
FIND_ONE_US = at_most("one key by find into out=", 1.2, batch=1)
TRAIN_TORCH = {
    ("uniform", 64): at_least(
        "train step, dim 64, uniform, against torch", 6.0, dim=64, distribution="uniform", **_CALL
    ),
    ("zipf", 64): at_least(
        "train step, dim 64, Zipf, against torch", 8.0, dim=64, distribution="zipf", **_CALL
    ),
}
TRAIN_THREADS = at_least("train step, 2 threads over 1", 1.6, **_CALL)
GROWTH_P999 = at_most("inserts while growing, prefaulted, p99.9 over the median", 5.0, **_GROW)
GROWTH_MAX = at_most("inserts while growing, prefaulted, max over the median", 20.0, **_GROW)
INDEX_FULL_BYTES = at_most("index + meta a live row at load 0.7", 36.0, load=0.7)
INDEX_GROWN_BYTES = at_most("index + meta a live row right after growth", 48.0)
NBYTES_ERROR = at_most("nbytes, off the growth of the process", 5.0)
SCAN_COPY = {
    "evict by age": at_least("evict by age, against a copy of as many bytes", 1.0),
    "evict by norm": at_least("evict by norm, dim 16, against a copy of as many bytes", 0.7),
}
EXPORT_TAKE = at_least("export, dim 16 with slots, against np.take at random", 1.0)
FIND_BESIDE_EVICTION = at_most("find beside an eviction in slices, p99 over alone", 1.5)
