"""Compute core.json, which pins what hashes, random words, initializers and roundings give.

Files and checkpoints depend on these bits: they never change. `python -m golden.make_core`, run in
tests/, writes the file anew; a difference to the one that is there is a change of the format.
"""

import json
from pathlib import Path

import numpy as np
from reference import floats, hashing
from reference.admission import Bloom
from reference.initial import initial_values

import embstore as es

PATH = Path(__file__).with_name("core.json")
KEYS = [0, 1, -1, -2, 42, 2**32, -(2**63), 2**63 - 1, 0x0123456789ABCDEF]
NAMES = ["", "table", "user", "użytkownik", "a" * 100]
DIM = 9
STREAMS = [(0, "table"), (7, "user"), (2**64 - 1, "")]
INITIALIZERS = {
    "Constant(0.1)": es.Constant(0.1),
    "Uniform(-0.05, 0.05)": es.Uniform(-0.05, 0.05),
    "Normal(0.0, 0.01)": es.Normal(0.0, 0.01),
    "TruncatedNormal(1.0, 0.5)": es.TruncatedNormal(1.0, 0.5),
}
BLOOMS = {
    "2": es.BloomAdmission(2, capacity=1_000_000),
    "4": es.BloomAdmission(4, capacity=1_000_000),
    "16": es.BloomAdmission(16, capacity=1_000_000),
}
# Random123's own known answers for philox4x32, 10 rounds (its tests/kat_vectors).
PHILOX = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0"),
]


def bits(row):
    """Return float32 numbers as words of hex digits."""
    return " ".join(f"{word:08x}" for word in np.asarray(row, np.float32).view(np.uint32).tolist())


def numbers_of(words):
    """Return words of hex digits as ints."""
    return [int(word, 16) for word in words.split()]


def hashes():
    keys = np.array(KEYS, np.int64)
    return {
        "fixed_hash": {
            str(key): f"{value:016x}"
            for key, value in zip(KEYS, hashing.fixed_hash(keys).tolist(), strict=True)
        },
        "name_hash": {name: f"{hashing.name_hash(name):016x}" for name in NAMES},
        "shard_of_7": dict(zip(map(str, KEYS), hashing.shard_of(keys, 7).tolist(), strict=True)),
    }


def philox():
    found = {}
    for counter, key in PHILOX:
        words = hashing.philox(numbers_of(counter), numbers_of(key))
        found[f"{counter} / {key}"] = " ".join(f"{int(word):08x}" for word in words)
    return found


def initial_rows():
    keys = np.array(KEYS, np.int64)
    return {
        f"{name}, seed {seed}, name {table!r}": {
            str(key): bits(row)
            for key, row in zip(
                KEYS,
                initial_values(initializer, hashing.stream_of(seed, table), keys, DIM),
                strict=True,
            )
        }
        for name, initializer in INITIALIZERS.items()
        for seed, table in (STREAMS if not name.startswith("Constant") else STREAMS[:1])
    }


def bloom_places():
    """Return block and cells of keys in filters for a million ids, by min_count."""
    found = {}
    for name, policy in BLOOMS.items():
        block, positions = Bloom(policy).places(np.array(KEYS, np.int64))
        found[name] = {
            "blocks": policy.blocks_per_partition,
            "places": {
                str(key): [b, [p for p in row if p >= 0]]
                for key, b, row in zip(KEYS, block.tolist(), positions.tolist(), strict=True)
            },
        }
    return found


def roundings():
    """Return 16-bit roundings of some numbers, to nearest and stochastic, as float32 bits."""
    x = np.array([1.001, -1.001, 3.14159265, -1e-6, 65519.0, 1e-9, 0.1, -2.71828], np.float32)
    r = hashing.uniform(hashing.words(hashing.stream_of(7, "user"), [42], 1, len(x), 5))[0]
    return {
        dtype: {
            "given": bits(x),
            "nearest": bits(floats.narrow(x, dtype)),
            "stochastic, key 42, t 5": bits(floats.narrow_stochastic(x, r, dtype)),
        }
        for dtype in ("float16", "bfloat16")
    }


def core():
    """Return everything that core.json holds."""
    with np.errstate(all="ignore"):
        return {
            **hashes(),
            "philox4x32_10": philox(),
            "initial_rows": initial_rows(),
            "bloom_places": bloom_places(),
            "roundings": roundings(),
        }


if __name__ == "__main__":
    PATH.write_text(json.dumps(core(), indent=1, ensure_ascii=False) + "\n")
    print(f"wrote {PATH}")
