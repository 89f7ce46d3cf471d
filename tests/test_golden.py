"""Bits that never change: of the oracle, and of the native core, against golden files."""

import json

import numpy as np
import pytest
from golden import make_core

import embstore as es
from embstore import _core

GOLDEN = json.loads(make_core.PATH.read_text())
# Known answers that were published: Random123's for Philox, Java's SplittableRandom (seed 0) for
# the fixed hash, whose increment is that of SplitMix64.
PUBLISHED_PHILOX = [
    "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    "408f276d 41c83b0e a20bc7c6 6d5451fd",
    "d16cfe09 94fdcceb 5001e420 24126ea1",
]
PUBLISHED_SPLITMIX = "e220a8397b1dcdaf"


def floats_of(words):
    return np.array(make_core.numbers_of(words), np.uint32).view(np.float32)


@pytest.mark.parametrize("part", GOLDEN)
def test_the_oracle(part):
    assert json.loads(json.dumps(make_core.core()))[part] == GOLDEN[part]


def test_published_answers():
    assert [*GOLDEN["philox4x32_10"].values()] == PUBLISHED_PHILOX
    assert GOLDEN["fixed_hash"]["0"] == PUBLISHED_SPLITMIX


def test_fixed_hash_of_the_core():
    keys = np.array([int(key) for key in GOLDEN["fixed_hash"]], np.int64)
    found = [f"{value:016x}" for value in _core.fixed_hash(keys).tolist()]
    assert found == [*GOLDEN["fixed_hash"].values()]


@pytest.mark.parametrize("where", GOLDEN["initial_rows"])
def test_initial_rows_of_the_core(where):
    kind, rest = where.split(", seed ")
    seed, name = rest.split(", name ")
    table = es.Table(
        make_core.DIM,
        initializer=make_core.INITIALIZERS[kind],
        seed=int(seed),
        name=name.strip("'"),
    )
    for key, words in GOLDEN["initial_rows"][where].items():
        row = table.find([int(key)], missing="initial")[0]
        assert make_core.bits(row) == words, key


def test_uniform_rows_of_the_core_are_philox_words():
    """Of key k and stream s: Philox of (k, column / 4, 0), keyed by s, above its low 8 bits."""
    table = es.Table(8, initializer=es.Uniform(0.0, 1.0), seed=3, name="item")
    key = 0x0123456789ABCDEF
    stream = make_core.hashing.stream_of(3, "item")
    words = []
    for block in (0, 1):
        counter = (key & 0xFFFFFFFF, key >> 32, block, 0)
        words += make_core.hashing.philox(counter, (stream & 0xFFFFFFFF, stream >> 32))
    expected = [float(int(word) >> 8) * 2.0**-24 for word in words]
    assert table.find([key], missing="initial")[0].tolist() == expected


@pytest.mark.parametrize("min_count", GOLDEN["bloom_places"])
def test_bloom_cells_of_the_core(min_count):
    policy = make_core.BLOOMS[min_count]
    golden = GOLDEN["bloom_places"][min_count]
    assert policy.blocks_per_partition == golden["blocks"]
    for key, (block, cells) in golden["places"].items():
        table = es.Table(1, admission=policy)
        table.find_or_insert([int(key)], step=0)
        partition = block // golden["blocks"]
        filled = np.unpackbits(table._engine.bloom_read(partition), bitorder="little")
        first = block % golden["blocks"] * 512
        bits = [first + cell * policy.cell_bits for cell in cells]
        assert np.flatnonzero(filled).tolist() == sorted(bits)
        table.close()


@pytest.mark.parametrize("dtype", GOLDEN["roundings"])
def test_roundings_of_the_core(dtype):
    golden = GOLDEN["roundings"][dtype]
    given = floats_of(golden["given"])
    optimizer = es.SGD(1.0)
    parameters = {"dim": len(given), "dtype": dtype, "optimizer": optimizer, "seed": 7}
    table = es.Table(**parameters, name="user", initializer=es.Constant(0.0))
    table.assign([42], given[None])
    assert make_core.bits(table.find([42])[0]) == golden["nearest"]
    table = es.Table(**parameters, name="user", initializer=es.Constant(0.0), rounding="stochastic")
    table.find_or_insert([42], step=0)
    for step in range(4):
        table.apply_gradients([], np.empty((0, len(given)), np.float32), step=step)
    table.apply_gradients([42], -given[None], step=4)  # t = 5
    assert make_core.bits(table.find([42])[0]) == golden["stochastic, key 42, t 5"]
