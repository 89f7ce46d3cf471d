"""The targets of the CPU engine, each with the axes at which it is meant.

A benchmark prints a figure's verdict at whatever axes it ran, and says where those are others. ROWS
is the table that ends a run: every target in its order, measured or not.
"""

from dataclasses import dataclass

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


def by_distribution(name, bounds):
    """Return the targets of a training step of dim 64, by distribution and dim."""
    return {
        (distribution, 64): at_least(
            f"train step, dim 64, {distribution}, against {name}",
            bound,
            dim=64,
            distribution=distribution,
            **_CALL,
        )
        for distribution, bound in bounds.items()
    }


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
TRAIN_TORCH = by_distribution("torch", {"uniform": 6.0, "zipf": 8.0})
TRAIN_FBGEMM = by_distribution("FBGEMM CPU TBE", {"uniform": 4.0, "zipf": 5.0})
FIND_TFRA = at_least("find against TFRA", 11.0, **_CALL)
INSERT_TFRA = at_least("insert against TFRA", 10.0, **_CALL)
TRAIN_TFRA = at_least("train step against TFRA", 14.0, **_CALL)
FIND_THREADS = at_least("find, 2 threads over 1", 1.75, **_CALL)
TRAIN_THREADS = at_least("train step, 2 threads over 1", 1.6, **_CALL)
GROWTH_P999 = at_most("inserts while growing, prefaulted, p99.9 over the median", 5.0, **_GROW)
GROWTH_MAX = at_most("inserts while growing, prefaulted, max over the median", 20.0, **_GROW)
INDEX_FULL_BYTES = at_most("index + meta a live row at load 0.7", 36.0, load=0.7)
INDEX_GROWN_BYTES = at_most("index + meta a live row right after growth", 48.0)
SAVE_NUMPY = at_least("save, fsynced, against np.save", 0.9, dim=64)
LOAD_NUMPY = at_least("load, verified, against np.load", 0.8, dim=64)
SAVING_STALL_MS = at_most("longest stall of training while a save runs", 50.0)
SAVING_SPEED = at_least("training while a save runs, against alone", 0.85)
OPEN_FIRST_ROW_S = at_most(
    "a row from a checkpoint of 10 GB that is opened with no page cached", 1.0, n_rows=36_250_000
)
FIND_ONE_US = at_most("one key by find into out=", 1.2, batch=1)
FIND_MANY = {
    "each": at_most("find, 26 features, a table each, over one", 1.15, batch=106_496),
    "shared": at_most("find, 26 features of one table, over one", 1.15, batch=106_496),
}
TRAIN_MANY = {
    "each": at_most("train step, 26 features, a table each, over one", 1.15, batch=106_496),
    "shared": at_most("train step, 26 features of one table, over one", 1.15, batch=106_496),
}
ACCOUNTING = at_most("train step with freq and step accounting over one without", 1.10, **_CALL)
NBYTES_ERROR = at_most("nbytes, off the growth of the process", 5.0)
SCAN_COPY = {
    "evict by age": at_least("evict by age, against a copy of as many bytes", 1.0),
    "evict by norm": at_least("evict by norm, dim 16, against a copy of as many bytes", 0.7),
}
EXPORT_TAKE = at_least("export, dim 16 with slots, against np.take at random", 1.0)
FIND_BESIDE_EVICTION = at_most("find beside an eviction in slices, p99 over alone", 1.5)
DLRM_BEST = {  # by whether ours is fused
    False: at_least("DLRM step in PyTorch, against the best of the others", 2.0, features=26),
    True: at_least("DLRM step in PyTorch, fused, against the best of the others", 2.0, features=26),
}
MODULE_COST = {
    kind: at_most(f"module, {kind}, over torch nn.Embedding", 1.0, batch=64)
    for kind in (
        "forward in training",
        "forward and backward",
        "forward and backward, fused",
        "step",
        "step, fused",
        "forward in eval",
    )
}
TF_OP_US = {  # by whether it is in a graph
    False: at_most("TensorFlow, find op over tf.gather", 60.0, batch=64),
    True: at_most("TensorFlow, find op over tf.gather, in a tf.function", 60.0, batch=64),
}
STEP_TFRA = {  # by whether ours is fused
    False: at_least("TensorFlow, training step against TFRA", 8.0, batch=16_384),
    True: at_least("TensorFlow, training step, fused, against TFRA", 8.0, batch=16_384),
}
JAX_FORWARD_US = {  # by kind and contender
    ("jit", "embstore find"): at_most("JAX, find under jit", 100.0, batch=64),
    ("jit", "embstore lookup"): at_most("JAX, lookup under jit", 100.0, batch=64),
    ("eager", "embstore find"): at_most("JAX, find", 100.0, batch=64),
    ("eager", "embstore lookup"): at_most("JAX, lookup", 100.0, batch=64),
}


@dataclass(frozen=True)
class Row:
    """A line of the closing table: a target, the benchmark that measures it, what that needs."""

    target: Target
    concept: str
    needs: str = ""  # a name of machine.lacks()
    unit: str = "x"


ROWS = (
    Row(FIND_TORCH[64], "lookup", "torch"),
    Row(FIND_RAW[64], "lookup", "compiler"),
    Row(FIND_TORCH[16], "lookup", "torch"),
    Row(FIND_RAW[16], "lookup", "compiler"),
    Row(FIND_FRESH[64], "lookup", "torch"),
    *(Row(target, "train", "torch") for target in TRAIN_TORCH.values()),
    *(Row(target, "peers", "fbgemm") for target in TRAIN_FBGEMM.values()),
    Row(FIND_TFRA, "peers", "tfra"),
    Row(INSERT_TFRA, "peers", "tfra"),
    Row(TRAIN_TFRA, "peers", "tfra"),
    Row(FIND_THREADS, "lookup", "two cores"),
    Row(TRAIN_THREADS, "train", "two cores"),
    Row(GROWTH_P999, "growth"),
    Row(GROWTH_MAX, "growth"),
    Row(INDEX_FULL_BYTES, "memory", unit="bytes"),
    Row(INDEX_GROWN_BYTES, "memory", unit="bytes"),
    Row(SAVE_NUMPY, "checkpoint"),
    Row(LOAD_NUMPY, "checkpoint"),
    Row(SAVING_STALL_MS, "checkpoint", "two cores", unit="ms"),
    Row(SAVING_SPEED, "checkpoint", "two cores"),
    Row(OPEN_FIRST_ROW_S, "serving_open", unit="s"),
    Row(FIND_ONE_US, "lookup", unit="us"),
    *(Row(target, "many") for target in (*FIND_MANY.values(), *TRAIN_MANY.values())),
    Row(ACCOUNTING, "accounting", "accounting"),
    Row(NBYTES_ERROR, "memory", unit="%"),
    *(Row(target, "scan") for target in SCAN_COPY.values()),
    Row(EXPORT_TAKE, "scan"),
    Row(FIND_BESIDE_EVICTION, "scan"),
    *(Row(target, "torch", "torch") for target in (*DLRM_BEST.values(), *MODULE_COST.values())),
    *(Row(target, "frameworks", unit="us") for target in TF_OP_US.values()),
    *(Row(target, "frameworks", "tfra") for target in STEP_TFRA.values()),
    *(Row(target, "frameworks", unit="us") for target in JAX_FORWARD_US.values()),
)
