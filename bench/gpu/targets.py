"""The targets of the CUDA engine: one H200, 100 M rows at load 0.75, a million keys a call.

A bound that is a rate or a time is for a card that copies 4.3 TB a second; `scaled` moves it to the
card that was measured, by its own copy. ROWS is the table that ends a run.
"""

from dataclasses import replace

from bench.gpu.model import NORMAL_BYTES_PER_S
from bench.targets import Row, at_least, at_most

_CALL = {"batch": 1 << 20, "n_rows": 100_000_000, "load": 0.75}
_TRAINED = {"batch": 1 << 20}

FIND = {
    dim: at_least(f"find, dim {dim}, B keys/s", bound, dim=dim, **_CALL)
    for dim, bound in {8: 8.0, 16: 8.0, 32: 6.5, 64: 4.8, 128: 2.9}.items()
}
FIND_HKV = {
    dim: at_least(f"find, dim {dim}, against HierarchicalKV", bound, dim=dim, **_CALL)
    for dim, bound in {8: 1.3, 32: 1.3, 64: 1.05}.items()
}
HITS_FIND = {
    dim: at_least(f"find_or_insert of keys that have rows, dim {dim}, against find", bound, dim=dim)
    for dim, bound in {8: 0.75, 16: 0.75, 64: 0.85, 128: 0.85}.items()
}
INSERT_HKV = {
    dim: at_least(f"find_or_insert of new keys, dim {dim}, against HierarchicalKV", 1.5, dim=dim)
    for dim in (8, 32, 64)
}
OPTIMIZERS = ("sgd", "momentum", "adagrad", "rowwise", "adam", "adamw", "ftrl")
_UPDATED = [("adagrad", dim) for dim in (8, 16, 32, 64, 128)]
_UPDATED += [(name, 64) for name in OPTIMIZERS if name != "adagrad"]
UPDATE = {
    (name, dim): at_least(
        f"{name} kernel, dim {dim}, of its floor", 0.7, dim=dim, optimizer=name, **_TRAINED
    )
    for name, dim in _UPDATED
}
BACKWARD = {
    (name, dim): at_least(
        f"backward of {name}, dim {dim}, of its floor", 0.6, dim=dim, optimizer=name, **_TRAINED
    )
    for name, dim in _UPDATED
    if dim >= 64
}
STEP_MS = at_most(
    "training step of 10 tables, dim 128, 1.05 M ids, Adam",
    1.15,
    tables=10,
    dim=128,
    batch=1_050_000,
    optimizer="adam",
)

ROWS = (
    *(Row(target, "gpu", unit="B keys/s") for target in FIND.values()),
    *(Row(target, "gpu", "hkv") for target in FIND_HKV.values()),
    *(Row(target, "gpu") for target in HITS_FIND.values()),
    *(Row(target, "gpu", "hkv") for target in INSERT_HKV.values()),
    *(Row(target, "gpu") for target in UPDATE.values()),
    *(Row(target, "gpu") for target in BACKWARD.values()),
    Row(STEP_MS, "gpu", unit="ms"),
)


def scaled(target, bytes_per_s):
    """Return a target that is a rate or a time as it is for a card that copies so much."""
    if target is None:
        return None
    share = bytes_per_s / NORMAL_BYTES_PER_S
    bound = target.bound * share if target.is_at_least else target.bound / share
    return replace(target, bound=float(f"{bound:.3g}"))
