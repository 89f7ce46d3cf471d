"""pooled: bags of ids reduced to one row each, and the gradients that go back to the ids."""

import numpy as np
import pytest
from contract.tools import ids, live, meta, rows_of

import embstore as es

OFFSETS = ids(0, 3, 3, 4)  # bags of 3, 0 and 1 ids


@pytest.fixture
def table(make_table):
    """Rows 1 -> 1, 2 -> 2, 4 -> 4, and a default row of 10."""
    table = make_table(default_row=10.0, optimizer=es.SGD(1.0), initializer=es.Constant(0.0))
    table.assign(ids(1, 2, 4), rows_of(1, 2, 4))
    return table


@pytest.mark.parametrize(
    ("mode", "weights", "expected"),
    [
        ("sum", None, [7, 0, 2]),
        ("mean", None, [f"{7 / 3:.7g}", 0, 2]),
        ("sqrtn", None, [7 / np.sqrt(3), 0, 2]),
        ("sum", [1, 0.5, 2, -1], [1 + 1 + 8, 0, -2]),
        ("mean", [1, 0.5, 2, -1], [10 / 3, 0, -2]),
        ("sqrtn", [1, 0.5, 2, -1], [10 / np.sqrt(3), 0, -2]),
    ],
)
def test_modes(table, mode, weights, expected):
    weights = None if weights is None else np.array(weights, np.float32)
    bags = table.pooled(ids(1, 2, 4, 2), OFFSETS, mode=mode, weights=weights)
    assert bags.dtype == np.float32
    assert np.allclose(bags, np.array(expected, np.float32)[:, None], rtol=1e-6)


def test_missing_ids_count_and_bring_the_default_row(table):
    bags = table.pooled(ids(1, 77), ids(0, 2), mode="mean")
    assert bags.tolist() == [[5.5, 5.5]]
    assert live(table) == [1, 2, 4]


@pytest.mark.parametrize(("mode", "expected"), [("sum", 3), ("mean", 1.5)])
def test_padding_is_as_if_absent(table, mode, expected):
    keys = ids(0, 1, 0, 2, 0, 0)
    bags = table.pooled(keys, ids(0, 4, 5, 6), mode=mode, padding=0)
    assert bags.tolist() == [[expected] * 2, [0, 0], [0, 0]]
    batch = table.pooled(keys, ids(0, 4, 5, 6), mode=mode, padding=0, step=1)
    assert batch.rows.tolist() == bags.tolist()
    assert batch.keys.tolist() == [1, 2]
    assert live(table) == [1, 2, 4]


def test_with_a_step_ids_are_counted_and_born(table):
    batch = table.pooled(ids(1, 9, 1), ids(0, 2, 3), step=5)
    assert batch.rows.tolist() == [[1, 1], [1, 1]]
    assert (batch.keys.tolist(), batch.inverse.tolist()) == ([1, 9], [0, 1, 0])
    assert meta(table, 1, 9) == [(2, 0), (1, 5)]


def test_pending_ids_bring_the_default_row_and_drop_their_gradient(make_table):
    table = make_table(default_row=10.0, optimizer=es.SGD(1.0), admission=es.CounterAdmission(2))
    batch = table.pooled(ids(1, 1, 2), ids(0, 3), mode="mean", step=0)
    assert batch.rows.tolist() == [[4, 4]]
    assert table.apply_gradients(batch, rows_of(3.0), step=0) == (1, 1, 0, 0)
    assert table.find(ids(1, 2)).tolist() == [[-1, -1], [10, 10]]


@pytest.mark.parametrize(
    ("mode", "divisor"), [("sum", 1.0), ("mean", 4.0), ("sqrtn", 2.0)], ids=str
)
@pytest.mark.parametrize("is_weighted", [False, True])
def test_gradients_of_ids(table, mode, divisor, is_weighted):
    weights = np.array([1, 2, 0.5, 4, 8], np.float32) if is_weighted else None
    w = weights if is_weighted else np.ones(5, np.float32)
    keys = ids(1, 2, 1, 4, 2)  # bags (1, 2, 1, 4) and (2)
    batch = table.pooled(keys, ids(0, 4, 5), mode=mode, weights=weights, step=0)
    report = table.apply_gradients(batch, rows_of(8.0, 1.0), step=0)
    assert report == (3, 0, 0, 0)
    part = 8.0 / divisor
    expected = [1 - part * (w[0] + w[2]), 2 - part * w[1] - w[4], 4 - part * w[3]]
    assert table.find(ids(1, 2, 4))[:, 0].tolist() == expected


def test_out(table):
    out = np.full((3, 2), 99, np.float32)
    assert table.pooled(ids(1, 2, 4, 2), OFFSETS, out=out) is out
    assert out.tolist() == [[7, 7], [0, 0], [2, 2]]


def test_no_bags_and_empty_bags(table):
    assert table.pooled(ids(), ids(0)).shape == (0, 2)
    assert table.pooled(ids(), ids(0, 0, 0), mode="mean").tolist() == [[0, 0], [0, 0]]
    batch = table.pooled(ids(), ids(0, 0), mode="sqrtn", step=0)
    assert table.apply_gradients(batch, rows_of(1.0), step=0).n_applied == 0


def test_sums_go_in_blocks_of_32(make_table):
    """As the sums of gradients: 1 and many numbers too small to change it one by one."""
    table = make_table(1)
    tiny = np.float32(2.0**-24)
    table.assign(ids(1, 2), np.array([[1], [tiny]], np.float32))
    keys = np.array([1] + [2] * 63)
    assert table.pooled(keys, ids(0, 64)).tolist() == [[np.float32(1 + 32 * 2.0**-24)]]
    assert table.pooled(keys[:32], ids(0, 32)).tolist() == [[1]]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_rows_are_pooled_in_float32(make_table, dtype):
    table = make_table(dtype=dtype)
    table.assign(ids(1, 2), rows_of(256, 0.25))
    assert table.pooled(ids(1, 2), ids(0, 2)).tolist() == [[256.25, 256.25]]


def test_a_read_only_call_changes_nothing(table):
    table.pooled(ids(1, 9), ids(0, 2))
    assert meta(table, 1) == [(0, 0)]
    assert live(table) == [1, 2, 4]
