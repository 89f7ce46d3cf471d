"""Bad parameters of tables and policies: name -> (call, error, parts of the message)."""

import numpy as np
from bad_input.scene import TYPE, VALUE

import embstore as es

# name: (parameters of a table of dim 2, error, parts of the message)
TABLES = {
    "dim 0": ({"dim": 0}, VALUE, ["dim", "1 to 4096", "0"]),
    "dim 4097": ({"dim": 4097}, VALUE, ["dim", "4097"]),
    "dim float": ({"dim": 16.0}, TYPE, ["dim", "16.0"]),
    "dim bool": ({"dim": True}, TYPE, ["dim", "True"]),
    "optimizer name": ({"optimizer": "adam"}, TYPE, ["optimizer", "'adam'"]),
    "optimizer class": ({"optimizer": es.Adam}, TYPE, ["optimizer", "not the class itself"]),
    "initializer": ({"initializer": 0.0}, TYPE, ["initializer", "0.0"]),
    "initializer None": ({"initializer": None}, TYPE, ["initializer", "None"]),
    "admission": ({"admission": 2}, TYPE, ["admission", "2"]),
    "eviction": ({"eviction": 100}, TYPE, ["eviction", "100"]),
    "seed negative": ({"seed": -1}, VALUE, ["seed", "-1"]),
    "seed large": ({"seed": 2**64}, VALUE, ["seed", "2**64 - 1"]),
    "hash_seed": ({"hash_seed": 2**128}, VALUE, ["hash_seed", "2**128 - 1"]),
    "hash_seed float": ({"hash_seed": 0.5}, TYPE, ["hash_seed"]),
    "name": ({"name": 7}, TYPE, ["name", "7"]),
    "name surrogate": ({"name": "\ud800"}, VALUE, ["name", "Unicode"]),
    "dtype": ({"dtype": "float64"}, VALUE, ["dtype", "'float32'", "'float64'"]),
    "dtype of numpy": ({"dtype": np.float32}, TYPE, ["dtype", "'float32'"]),
    "rounding": ({"rounding": "up"}, VALUE, ["rounding", "'up'"]),
    "rounding float32": ({"rounding": "stochastic"}, VALUE, ["rounding", "16-bit", "float32"]),
    "evict_every 0": (
        {"eviction": es.StepEviction(1), "evict_every": 0}, VALUE, ["evict_every", "0"],
    ),
    "evict_every alone": ({"evict_every": 5}, VALUE, ["evict_every=5", "policy"]),
    "max_rows 0": ({"max_rows": 0}, VALUE, ["max_rows", "0"]),
    "max_bytes": ({"max_bytes": -5}, VALUE, ["max_bytes", "-5"]),
    "on_full": ({"on_full": "drop"}, VALUE, ["on_full", "'evict'", "'drop'"]),
    "on_nonfinite": ({"on_nonfinite": "clip"}, VALUE, ["on_nonfinite", "'clip'"]),
    "default_row length": ({"default_row": [1.0]}, VALUE, ["default_row", "(2,)", "(1,)"]),
    "default_row ragged": ({"default_row": [[1], [1, 2]]}, VALUE, ["default_row", "(2,)"]),
    "default_row nan": ({"default_row": [1.0, np.nan]}, VALUE, ["default_row", "finite"]),
    "default_row string": ({"default_row": "zeros"}, VALUE, ["default_row"]),
    "track_changes": ({"track_changes": 1}, TYPE, ["track_changes", "1"]),
    "on_evict": ({"on_evict": []}, TYPE, ["on_evict", "callable"]),
    "device": ({"device": "gpu"}, VALUE, ["device", "'gpu'"]),
    "device int": ({"device": 0}, TYPE, ["device", "0"]),
    "hbm_bytes on the CPU": (
        {"hbm_bytes": 0}, VALUE, ["hbm_bytes=0", "on a card", "device='cpu'"],
    ),
    "hbm_bytes negative": ({"device": "cuda", "hbm_bytes": -1}, VALUE, ["hbm_bytes", "-1"]),
    "hbm_bytes float": ({"device": "cuda", "hbm_bytes": 1e9}, TYPE, ["hbm_bytes", "1000000000.0"]),
    "capacity of no bound": (
        {"eviction": es.CapacityEviction("step")}, VALUE, ["CapacityEviction", "max_rows"],
    ),
    "capacity refused": (
        {"eviction": es.CapacityEviction("step"), "max_rows": 5, "on_full": "refuse"},
        VALUE, ["CapacityEviction", "on_full", "'refuse'"],
    ),
}  # fmt: skip
NAN, INF = float("nan"), float("inf")
POLICIES = {
    "SGD lr": (lambda: es.SGD(-1.0), VALUE, ["SGD", "lr", "-1.0"]),
    "SGD lr nan": (lambda: es.SGD(NAN), VALUE, ["SGD", "lr", "nan"]),
    "SGD lr string": (lambda: es.SGD("0.1"), TYPE, ["SGD", "lr", "'0.1'"]),
    "SGD lr array": (lambda: es.SGD(np.ones(2)), TYPE, ["SGD", "lr", "array"]),
    "SGD lr huge": (lambda: es.SGD(1e39), VALUE, ["SGD", "lr", "1e+39"]),
    "SGD momentum": (lambda: es.SGD(0.1, momentum=-0.5), VALUE, ["momentum", "-0.5"]),
    "SGD nesterov": (lambda: es.SGD(0.1, nesterov=True), VALUE, ["nesterov", "momentum"]),
    "SGD nesterov int": (lambda: es.SGD(0.1, 0.9, nesterov=1), TYPE, ["nesterov", "1"]),
    "weight_decay": (lambda: es.Adam(weight_decay=-1), VALUE, ["weight_decay", "-1"]),
    "clip_norm": (lambda: es.Adagrad(clip_norm=0), VALUE, ["clip_norm", "greater than 0", "0"]),
    "clip_value": (lambda: es.FTRL(clip_value=INF), VALUE, ["clip_value", "inf"]),
    "Adagrad eps": (lambda: es.Adagrad(eps=-1e-8), VALUE, ["eps"]),
    "RowWiseAdagrad": (
        lambda: es.RowWiseAdagrad(initial_accumulator=-1), VALUE, ["initial_accumulator", "-1"],
    ),
    "Adam betas": (lambda: es.Adam(betas=(0.9, 1.0)), VALUE, ["betas", "1.0"]),
    "Adam one beta": (lambda: es.Adam(betas=0.9), TYPE, ["betas", "pair", "0.9"]),
    "AdamW beta": (lambda: es.AdamW(betas=(-0.1, 0.9)), VALUE, ["betas[0]", "-0.1"]),
    "FTRL lr 0": (lambda: es.FTRL(lr=0.0), VALUE, ["FTRL", "lr", "greater than 0"]),
    "FTRL l1": (lambda: es.FTRL(l1=-1), VALUE, ["l1", "-1"]),
    "Constant": (lambda: es.Constant(NAN), VALUE, ["Constant", "value", "nan"]),
    "Constant None": (lambda: es.Constant(None), TYPE, ["Constant", "value", "None"]),
    "Uniform": (lambda: es.Uniform(1.0, -1.0), VALUE, ["low", "high", "1.0", "-1.0"]),
    "Uniform too wide": (lambda: es.Uniform(-3e38, 3e38), VALUE, ["high - low"]),
    "Normal": (lambda: es.Normal(std=-0.1), VALUE, ["Normal", "std", "-0.1"]),
    "TruncatedNormal": (lambda: es.TruncatedNormal(mean="0"), TYPE, ["mean", "'0'"]),
    "Counter 0": (lambda: es.CounterAdmission(0), VALUE, ["min_count", "1 to 4095", "0"]),
    "Counter 4096": (lambda: es.CounterAdmission(4096), VALUE, ["min_count", "4096"]),
    "Counter ttl": (lambda: es.CounterAdmission(2, candidate_ttl=0), VALUE, ["candidate_ttl", "0"]),
    "Bloom 17": (lambda: es.BloomAdmission(17, 100), VALUE, ["min_count", "1 to 16", "17"]),
    "Bloom capacity": (lambda: es.BloomAdmission(2, 0), VALUE, ["capacity", "0"]),
    "Bloom fpr": (lambda: es.BloomAdmission(2, 100, fpr=1.0), VALUE, ["fpr", "1.0"]),
    "Bloom halve": (lambda: es.BloomAdmission(2, 9, halve_every=-1), VALUE, ["halve_every", "-1"]),
    "Step": (lambda: es.StepEviction(-1), VALUE, ["steps_to_live", "-1"]),
    "Step float": (lambda: es.StepEviction(1.5), TYPE, ["steps_to_live", "1.5"]),
    "L2": (lambda: es.L2Eviction(0.0, min_age=1), VALUE, ["threshold", "greater than 0"]),
    "L2 age": (lambda: es.L2Eviction(0.1, min_age=-1), VALUE, ["min_age", "-1"]),
    "Frequency": (lambda: es.FrequencyEviction(0, 1), VALUE, ["min_freq", "0"]),
    "Capacity": (lambda: es.CapacityEviction("age"), VALUE, ["by", "'step'", "'age'"]),
    "Capacity in &": (
        lambda: es.CapacityEviction("step") & es.StepEviction(1), VALUE, ["CapacityEviction", "&"],
    ),
    "two capacities": (
        lambda: es.CapacityEviction("step") | es.CapacityEviction("freq"), VALUE, ["one", "2"],
    ),
    "two halvings": (
        lambda: es.FrequencyEviction(1, 1, 5) | es.FrequencyEviction(1, 1, 6),
        VALUE, ["halve_every", "[5, 6]"],
    ),
}  # fmt: skip


def table_of(parameters):
    """Return a call that makes a table."""
    return lambda scene: es.Table(**({"dim": 2} | parameters))


def policy_of(make):
    """Return a call that makes a policy."""
    return lambda scene: make()


CASES = {f"Table: {name}": (table_of(case[0]), *case[1:]) for name, case in TABLES.items()}
CASES |= {name: (policy_of(case[0]), *case[1:]) for name, case in POLICIES.items()}
