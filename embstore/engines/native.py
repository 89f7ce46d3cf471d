"""TableSpec in the words of embstore.h: the fields of ``es_config``, for both engines."""

import os
from typing import Any

from embstore.engines.spec import TableSpec
from embstore.errors import InternalError
from embstore.policies.admission import BloomAdmission, CounterAdmission
from embstore.policies.eviction import Operation, capacity_by, freq_halve_every, program
from embstore.policies.initializer import Constant, Normal, TruncatedNormal, Uniform
from embstore.policies.optimizer import FTRL, SGD, Adagrad, Adam, AdamW, RowWiseAdagrad

DTYPES = {"float32": 0, "float16": 1, "bfloat16": 2}
ROUNDINGS = {"nearest": 0, "stochastic": 1}
MISSING = {"default": 0, "initial": 1, "raise": 2}
ON_FULL = {"evict": 0, "refuse": 1, "raise": 2}
ON_NONFINITE = {"raise": 0, "skip": 1, "allow": 2}
ASSIGN_MODES = {"replace": 0, "add": 1}
CAPACITY_BY = {"step": 0, "freq": 1}
PREDICATE_OPS = {"step": 0, "l2": 1, "freq": 2, "and": 3, "or": 4}

NativePredicate = tuple[int, float, int, int]


def new_hash_seed() -> int:
    """Return 128 bits from the operating system; they are never saved or printed."""
    return int.from_bytes(os.urandom(16), "little")


def native_predicates(operations: tuple[Operation, ...]) -> list[NativePredicate]:
    """Return (op, threshold, min_freq, steps) of each operation, as ``es_predicate``."""
    return [(PREDICATE_OPS[o.op], o.threshold, o.min_freq, o.steps) for o in operations]


def native_config(spec: TableSpec, hash_seed: int, collect_evicted: bool) -> dict[str, Any]:
    """Return the fields of ``es_config`` by name; ``name`` stands for its hash."""
    predicates = native_predicates(program(spec.eviction)) if spec.evict_every else []
    return {
        "dim": spec.dim,
        "name": spec.name.encode(),
        "value_dtype": DTYPES[spec.dtype],
        "rounding": ROUNDINGS[spec.rounding],
        "seed": spec.seed,
        "hash_seed": (hash_seed & (2**64 - 1), hash_seed >> 64),
        "default_row": spec.default_values(),
        **_initializer(spec),
        **_optimizer(spec),
        **_admission(spec),
        "predicates": predicates,
        "evict_every": spec.evict_every or 0,
        "freq_halve_every": freq_halve_every(spec.eviction) or 0,
        "capacity_by": CAPACITY_BY[capacity_by(spec.eviction) or "step"],
        "on_full": ON_FULL[spec.on_full or "raise"],
        "max_rows": spec.max_rows or 0,
        "max_bytes": spec.max_bytes or 0,
        "on_nonfinite": ON_NONFINITE[spec.on_nonfinite],
        "track_changes": spec.track_changes,
        "collect_evicted": collect_evicted,
    }


def _initializer(spec: TableSpec) -> dict[str, Any]:
    match spec.initializer:
        case Constant(value):
            kind, a, b = 0, value, 0.0
        case Uniform(low, high):
            kind, a, b = 1, low, high
        case Normal(mean, std):
            kind, a, b = 2, mean, std
        case TruncatedNormal(mean, std):
            kind, a, b = 3, mean, std
        case other:
            raise InternalError(f"no native form of initializer {other!r}")
    return {"init_kind": kind, "init_a": a, "init_b": b}


def _optimizer(spec: TableSpec) -> dict[str, Any]:
    """Return the optimizer's fields; a table without one has no slots, as plain SGD."""
    p: tuple[float, ...]
    match spec.optimizer:
        case None:
            kind, p = 0, (0.0, 0.0)
        case SGD() as o:
            kind, p = 0, (o.momentum, float(o.nesterov))
        case Adagrad() as o:
            kind, p = 1, (o.initial_accumulator, o.eps)
        case RowWiseAdagrad() as o:
            kind, p = 2, (o.initial_accumulator, o.eps)
        case Adam() as o:
            kind, p = 3, (*o.betas, o.eps)
        case AdamW() as o:
            kind, p = 4, (*o.betas, o.eps)
        case FTRL() as o:
            kind, p = 5, (o.initial_accumulator, o.l1, o.l2, o.beta)
        case other:
            raise InternalError(f"no native form of optimizer {other!r}")
    common = spec.optimizer
    return {
        "optimizer_kind": kind,
        "optimizer_p": (*p, 0.0, 0.0, 0.0, 0.0)[:4],
        "clip_norm": (common.clip_norm or 0.0) if common else 0.0,
        "clip_value": (common.clip_value or 0.0) if common else 0.0,
        "weight_decay": common.weight_decay if common else 0.0,
    }


def _admission(spec: TableSpec) -> dict[str, Any]:
    fields = {
        "admission_kind": 0,
        "min_count": 1,
        "candidate_ttl": 0,
        "bloom_cell_bits": 0,
        "bloom_n_hashes": 0,
        "bloom_blocks_per_partition": 0,
        "bloom_halve_every": 0,
    }
    match spec.admission:
        case CounterAdmission(min_count, candidate_ttl):
            fields |= {"admission_kind": 1, "min_count": min_count}
            fields |= {"candidate_ttl": candidate_ttl or 0}
        case BloomAdmission() as bloom:
            fields |= {"admission_kind": 2, "min_count": bloom.min_count}
            fields |= {"bloom_cell_bits": bloom.cell_bits, "bloom_n_hashes": bloom.n_hashes}
            fields |= {"bloom_blocks_per_partition": bloom.blocks_per_partition}
            fields |= {"bloom_halve_every": bloom.halve_every or 0}
        case None:
            pass
        case other:
            raise InternalError(f"no native form of admission {other!r}")
    return fields
