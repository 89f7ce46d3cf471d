"""Random tables to run random programs on.

Everything is drawn by `choose`, a function from a list to one of its elements, so that numpy's
generators and hypothesis can both do it.
"""

import numpy as np

import embstore as es

DIMS = [1, 2, 3, 7, 8, 16, 17, 33, 64]


def schedule(step):
    """Return a learning rate that depends on the step."""
    return 0.1 / (1 + step % 7)


def optimizer_of(choose):
    common = choose(
        [
            {},
            {},
            {"weight_decay": 0.01},
            {"clip_value": 0.5},
            {"clip_norm": 1.0},
            {"clip_value": 0.7, "clip_norm": 1.5, "weight_decay": 0.1},
        ]
    )
    lr = choose([0.05, 0.3, schedule])
    kinds = [
        lambda: None,
        lambda: es.SGD(lr, **common),
        lambda: es.SGD(lr, momentum=0.9, **common),
        lambda: es.SGD(lr, momentum=0.5, nesterov=True, **common),
        lambda: es.Adagrad(lr, **common),
        lambda: es.Adagrad(lr, initial_accumulator=0.1, eps=1e-3, **common),
        lambda: es.RowWiseAdagrad(lr, initial_accumulator=0.01, **common),
        lambda: es.Adam(lr, **common),
        lambda: es.Adam(lr, betas=(0.0, 0.5), eps=1e-4, **common),
        lambda: es.AdamW(lr, **common),
        lambda: es.FTRL(lr, **common),
        lambda: es.FTRL(lr, initial_accumulator=0.5, l1=0.05, l2=0.1, beta=1.0, **common),
    ]
    return choose(kinds)()


def initializer_of(choose):
    return choose(
        [es.Constant(0.25), es.Uniform(-0.5, 1.0), es.Normal(0.1, 0.3), es.TruncatedNormal(0, 1)]
    )


def admission_of(choose):
    return choose(
        [
            None,
            None,
            es.CounterAdmission(1),
            es.CounterAdmission(2),
            es.CounterAdmission(3, candidate_ttl=5),
            es.CounterAdmission(4, candidate_ttl=100),
            es.CounterAdmission(4095),
            es.BloomAdmission(1, capacity=50),
            es.BloomAdmission(2, capacity=300),
            es.BloomAdmission(4, capacity=100, fpr=0.2, halve_every=8),
            es.BloomAdmission(11, capacity=1000, fpr=1e-4, halve_every=30),
        ]
    )


def eviction_of(choose):
    """Return the arguments that belong to eviction and capacity."""
    policy = choose(
        [
            None,
            es.StepEviction(6),
            es.L2Eviction(0.4, min_age=2),
            es.FrequencyEviction(3, min_age=3, halve_every=10),
            es.StepEviction(4) & (es.L2Eviction(0.8, 1) | es.FrequencyEviction(2, 0)),
            es.StepEviction(20) | es.L2Eviction(0.2, 0) & es.FrequencyEviction(5, 1),
        ]
    )
    args = {"eviction": policy, "evict_every": policy and choose([None, 1, 3, 7])}
    args["max_rows"] = choose([None, None, 1, 19, 60, 400])
    if args["max_rows"] is None:
        return args
    capacity = choose([None, es.CapacityEviction("step"), es.CapacityEviction("freq")])
    if capacity is None:
        return args | {"on_full": choose([None, "evict", "refuse", "raise"])}
    return args | {"eviction": capacity if policy is None else policy | capacity}


def precision_of(choose):
    dtype = choose(["float32", "float32", "float16", "bfloat16"])
    if dtype == "float32":
        return {"dtype": dtype}
    return {"dtype": dtype, "rounding": choose(["nearest", "stochastic"])}


def config_of(choose):
    """Return the arguments of a random table."""
    dim = choose(DIMS)
    return {
        "dim": dim,
        "optimizer": optimizer_of(choose),
        "initializer": initializer_of(choose),
        "admission": admission_of(choose),
        "seed": choose([0, 1, 2**64 - 1]),
        "name": choose(["table", "użytkownik", ""]),
        "hash_seed": choose([0, 1, 2**128 - 1]),
        "on_nonfinite": choose(["raise", "skip", "allow"]),
        "default_row": choose([None, 0.3, np.linspace(-1, 1, dim, dtype=np.float32)]),
        "track_changes": choose([False, True]),
        **precision_of(choose),
        **eviction_of(choose),
    }


def by_generator(rng):
    """Return the `choose` of a numpy generator."""
    return lambda options: options[rng.integers(len(options))]
