"""The oracle itself, against the plainest loops: one number at a time, one rounding at a time."""

import numpy as np
import pytest
from reference import ReferenceTable, floats, hashing, initial
from reference.admission import Bloom

import embstore as es

F = np.float32


def sum_in_order(numbers):
    total = numbers[0]
    for number in numbers[1:]:
        total = F(total + number)
    return total


def block_sum(numbers):
    """Section 3 of docs/semantics.md as it is written."""
    if len(numbers) <= 32:
        return sum_in_order(numbers)
    return block_sum([sum_in_order(numbers[i : i + 32]) for i in range(0, len(numbers), 32)])


@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 64, 65, 1000, 1024, 1025, 5000])
def test_sums_of_duplicates(n):
    x = np.random.default_rng(n).standard_normal((n + 3, 2)).astype(F) * F(1e3)
    sums = floats.reduce_blocks(x, np.array([1, n, 2]))
    assert sums.dtype == F
    for column in range(2):
        assert sums[1, column] == block_sum([*x[1 : n + 1, column]])
        assert sums[2, column] == F(x[n + 1, column] + x[n + 2, column])


@pytest.mark.parametrize("dim", [1, 2, 7, 15, 16, 17, 33, 64, 100])
def test_sums_along_a_row(dim):
    x = np.random.default_rng(dim).standard_normal((5, dim)).astype(F) * F(1e3)
    sums = floats.row_sum(x)
    assert sums.dtype == F
    for row, actual in zip(x, sums, strict=True):
        p = [F(0)] * 16
        for j, number in enumerate(row):
            p[j % 16] = F(p[j % 16] + number)
        for half in (8, 4, 2, 1):
            p = [F(p[i] + p[i + half]) for i in range(half)]
        assert actual == p[0]


def test_that_float32_shows():
    """Were a sum made in float64 anywhere, it would be exact here."""
    x = np.array([[2.0**24], [1.0], [1.0]], F)
    assert floats.reduce_blocks(x, np.array([3]))[0, 0] == 2.0**24
    row = np.zeros((1, 33), F)
    row[0, [0, 16, 32]] = [2.0**24, 1, 1]
    assert floats.row_sum(row)[0] == 2.0**24


def test_an_update_rounds_after_each_operation():
    """w - lr * g with one rounding (a fused multiply-add) differs from two for many numbers."""
    rng = np.random.default_rng(0)
    w, g = (rng.standard_normal((1, 1000)).astype(F) for _ in range(2))
    table = ReferenceTable(1000, optimizer=es.SGD(0.1), initializer=es.Constant(0.0))
    table.assign(np.array([1]), w)
    table.apply_gradients(np.array([1]), g, step=0)
    fused = (w.astype(np.longdouble) - F(0.1) * g.astype(np.longdouble)).astype(F)
    expected = [F(a - F(F(0.1) * b)) for a, b in zip(w[0], g[0], strict=True)]
    assert table.find(np.array([1]))[0][0].tolist() == [float(x) for x in expected]
    assert (fused[0] != np.array(expected)).sum() > 50


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_against_all_neighbours(dtype):
    """Every finite 16-bit number, and the numbers just beside the middle to the next one."""
    bits = np.arange(0, 0x7C00 if dtype == "float16" else 0x7F80, 7, dtype=np.uint16)
    low, high = floats.from_bits16(bits, dtype), floats.from_bits16(bits + np.uint16(1), dtype)
    low, high = low[np.isfinite(high)], high[np.isfinite(high)]
    middle = ((low.astype(float) + high) / 2).astype(F)
    is_even = floats.to_bits16(low, dtype) % 2 == 0
    for sign in (F(1), F(-1)):
        assert np.array_equal(floats.narrow(sign * low, dtype), sign * low)
        nearest = floats.narrow(sign * middle, dtype)
        assert np.array_equal(nearest, sign * np.where(is_even, low, high))
        below = np.nextafter(middle, F(0))
        assert np.array_equal(floats.narrow(sign * below, dtype), sign * low)
        for r, expected in [(F(0.49), high), (F(0.51), low)]:
            rounded = floats.narrow_stochastic(sign * middle, np.full_like(middle, r), dtype)
            assert np.array_equal(rounded, sign * expected)


def test_mulhi():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2**64, (2, 1000), np.uint64)
    a[:2], b[:2] = 2**64 - 1, [2**64 - 1, 0]
    expected = [int(x) * int(y) >> 64 for x, y in zip(a, b, strict=True)]
    assert hashing.mulhi(a, b).tolist() == expected


@pytest.mark.parametrize("function", [np.log, np.cos, np.sin], ids=lambda f: f.__name__)
def test_polynomials(function):
    words = np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint32)
    u = ((words >> 8).astype(F) + F(1)) * F(2.0**-24)
    if function is np.log:
        actual, exact = initial.log(u), np.log(u.astype(float))
    else:
        turn = 2 * np.pi * (words >> 8) * 2.0**-24
        actual, exact = initial.turn(words)[function is np.sin], function(turn)
    assert np.abs(actual - exact).max() < 4e-7 * np.maximum(np.abs(exact), 1).max()


def positions_of(key, policy):
    """Section 5 of docs/semantics.md for one key, in Python's integers."""
    z = int(hashing.fixed_hash(np.array([key]))[0])
    b = (512 // policy.cell_bits).bit_length() - 1
    g, left, n_refills, positions = hashing.fixed_hash_of_int(z), 64, 0, []
    for _ in range(policy.n_hashes):
        if left < b:
            n_refills += 1
            g, left = hashing.fixed_hash_of_int((z + n_refills) % 2**64), 64
        if g % 2**b not in positions:
            positions.append(g % 2**b)
        g, left = g >> b, left - b
    return positions


@pytest.mark.parametrize(("min_count", "fpr"), [(2, 0.01), (2, 1e-6), (4, 1e-5), (16, 1e-6)])
def test_positions_in_the_filter(min_count, fpr):
    policy = es.BloomAdmission(min_count, capacity=1000, fpr=fpr)
    keys = np.arange(-300, 300) * 7919
    _, positions = Bloom(policy).places(keys)
    for key, row in zip(keys.tolist(), positions.tolist(), strict=True):
        assert [p for p in row if p >= 0] == positions_of(key, policy)
