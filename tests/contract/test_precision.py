"""Rows of 16 bits: how they are rounded, how they cross, and that nothing is flushed to zero."""

import numpy as np
import pytest
from contract.tools import ids
from property.pair import exported

import embstore as es

BF16_ULP = 2.0**-7  # at 1
F16_ULP = 2.0**-10


def stored(make_table, values, **parameters):
    """Return what a table with these parameters stores for `values`, as float32."""
    table = make_table(len(values), **parameters)
    table.assign(ids(1), np.array([values], np.float32))
    return table.find(ids(1))[0].astype(np.float32).tolist()


@pytest.mark.parametrize(("dtype", "ulp"), [("bfloat16", BF16_ULP), ("float16", F16_ULP)])
def test_to_nearest_even(make_table, dtype, ulp):
    given = [1 + ulp / 2, 1 + ulp * 0.51, 1 + ulp * 1.5, 1 + ulp * 2.49, -1 - ulp / 2, -0.0]
    expected = [1, 1 + ulp, 1 + 2 * ulp, 1 + 2 * ulp, -1, 0]
    assert stored(make_table, given, dtype=dtype) == expected


def test_float16_limits(make_table):
    given = [65504, 65519.9, 65520, -1e9, 2.0**-24, 2.0**-25, 3 * 2.0**-25, 1e-12]
    expected = [65504, 65504, np.inf, -np.inf, 2.0**-24, 0, 2.0**-23, 0]
    assert stored(make_table, given, dtype="float16", on_nonfinite="allow") == expected


def test_bfloat16_limits(make_table):
    given = [3.38e38, 3.4e38, 1e-40, -1e-45]
    values = stored(make_table, given, dtype="bfloat16", on_nonfinite="allow")
    assert values[0] == pytest.approx(3.38e38, rel=1e-2)
    assert values[1:] == [np.inf, pytest.approx(1e-40, rel=1e-2), 0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_initial_and_default_rows_are_rounded(make_table, dtype):
    third = {"float16": np.float32(np.float16(1 / 3)), "bfloat16": np.float32(0.333984375)}[dtype]
    table = make_table(dtype=dtype, initializer=es.Constant(1 / 3), default_row=1 / 3)
    assert table.find(ids(1)).astype(np.float32).tolist() == [[third] * 2]
    assert table.find(ids(1), missing="initial").astype(np.float32).tolist() == [[third] * 2]
    assert table.find_or_insert(ids(1), 0).rows.astype(np.float32).tolist() == [[third] * 2]


def test_dtypes_that_cross(make_table):
    for dtype, crosses in [("float16", np.float16), ("bfloat16", np.float32)]:
        table = make_table(dtype=dtype)
        assert table.find_or_insert(ids(1), 0).rows.dtype == crosses
        assert table.find(ids(1)).dtype == crosses
        assert exported(table).values.dtype == crosses
        out = np.empty((1, 2), crosses)
        assert table.find(ids(1), out=out) is out
        assert table.dtype == dtype


def test_raw_gives_the_bits_of_bfloat16(make_table):
    table = make_table(dtype="bfloat16")
    table.assign(ids(1), np.array([[1.0, -2.5]], np.float32))
    bits = table.find(ids(1, 2), raw=True)
    assert bits.dtype == np.uint16
    assert bits.tolist() == [[0x3F80, 0xC020], [0, 0]]
    assert make_table().find(ids(1), raw=True).dtype == np.float32


def test_torch_bfloat16_gradients_and_rows(make_table):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: not tested")
    table = make_table(dtype="bfloat16", optimizer=es.SGD(1.0))
    table.find_or_insert(ids(1), 0)
    table.apply_gradients(ids(1), np.array([[0.5, 2]], ml_dtypes.bfloat16), step=0)
    assert table.find(ids(1)).tolist() == [[0.5, -1]]


def test_updates_are_made_in_float32(make_table):
    """256 + 2 * 0.75: each step of 0.75 alone is lost in bfloat16, their sum is not."""
    table = make_table(1, dtype="bfloat16", optimizer=es.SGD(1.0), initializer=es.Constant(-256.0))
    table.find_or_insert(ids(1, 2), 0)
    table.apply_gradients(ids(1, 1), np.full((2, 1), 0.75, np.float32), step=0)
    for step in range(2):
        table.apply_gradients(ids(2), np.full((1, 1), 0.75, np.float32), step=step)
    assert table.find(ids(1, 2)).tolist() == [[-258], [-256]]


@pytest.mark.parametrize(("dtype", "ulp"), [("bfloat16", BF16_ULP), ("float16", F16_ULP)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("part", [0.25, 0.5, 0.9])
def test_stochastic_rounding_keeps_the_mean(make_table, dtype, ulp, sign, part):
    n, dim = 2000, 8
    table = make_table(
        dim, dtype=dtype, rounding="stochastic", optimizer=es.SGD(1.0),
        initializer=es.Constant(sign),
    )  # fmt: skip
    keys = np.arange(n)
    table.find_or_insert(keys, 0)
    table.apply_gradients(keys, np.full((n, dim), -sign * part * ulp, np.float32), step=0)
    moved = (table.find(keys).astype(np.float64) - sign) / (sign * ulp)
    assert set(np.unique(moved)) == {0.0, 1.0}
    assert abs(moved.mean() - part) < 5 * np.sqrt(part * (1 - part) / moved.size)
    assert abs(np.corrcoef(moved.T) - np.eye(dim)).max() < 0.12


def test_stochastic_rounding_is_a_function_of_seed_key_column_and_t(make_table):
    def train(keys, seed=0, n_steps=1):
        table = make_table(
            8, dtype="bfloat16", rounding="stochastic", optimizer=es.SGD(1.0), seed=seed
        )
        table.find_or_insert(keys, 0)
        for step in range(n_steps):
            table.assign(keys, np.ones((len(keys), 8), np.float32))
            grads = np.full((len(keys), 8), -0.5 * BF16_ULP, np.float32)
            table.apply_gradients(keys, grads, step=step)
        return table.find(np.arange(500)).tobytes()

    keys = np.arange(500)
    assert train(keys) == train(keys[::-1].copy())
    assert train(keys) != train(keys, seed=1)
    assert train(keys) != train(keys, n_steps=2)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_exact_values_stay_under_stochastic_rounding(make_table, dtype):
    table = make_table(
        4, dtype=dtype, rounding="stochastic", optimizer=es.SGD(0.0), initializer=es.Normal(std=1)
    )
    keys = np.arange(300)
    before = table.find_or_insert(keys, 0).rows.tobytes()
    table.apply_gradients(keys, np.ones((300, 4), np.float32), step=0)
    assert table.find(keys).tobytes() == before


def test_birth_and_assign_round_to_nearest_even_so(make_table):
    near = np.full((500, 2), 1 + BF16_ULP * 0.4, np.float32)
    table = make_table(
        dtype="bfloat16", rounding="stochastic", initializer=es.Constant(1 + BF16_ULP * 0.4)
    )
    assert set(table.find_or_insert(np.arange(500), 0).rows.ravel().tolist()) == {1}
    table.assign(np.arange(500), near)
    assert set(table.find(np.arange(500)).ravel().tolist()) == {1}


def test_subnormal_numbers_are_kept(make_table):
    table = make_table(1, optimizer=es.SGD(1.0), initializer=es.Constant(0.0))
    table.assign(ids(1), np.array([[1e-40]], np.float32))
    table.apply_gradients(ids(1), np.array([[2e-40]], np.float32), step=0)
    expected = np.float32(1e-40) - np.float32(2e-40)
    assert table.find(ids(1))[0, 0] == expected
    assert expected != 0
