"""find: what each kind of key reads, what `missing` and the masks say, what keys may be."""

import numpy as np
import pytest
from contract.tools import INT64, ids, meta, rows_of, snapshot

import embstore as es

EVERY_BIT = [1 << i for i in range(63)] + [-(2**63)]
HOSTILE = [0, -1, -2, -3, INT64.min, INT64.max, *EVERY_BIT, *(i << 32 for i in range(2, 60))]


def test_absent_keys_read_zeros(make_table):
    rows = make_table(3).find(ids(1, -5))
    assert rows.dtype == np.float32
    assert rows.tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(("default", "row"), [(0.5, [0.5, 0.5]), ([1, -2], [1.0, -2.0])])
def test_absent_and_pending_keys_read_the_default_row(make_table, default, row):
    table = make_table(default_row=default, admission=es.CounterAdmission(2))
    assert table.find_or_insert(ids(7), step=0).rows.tolist() == [row]
    assert table.find(ids(7, 8)).tolist() == [row, row]


def test_rows_come_in_the_order_of_the_keys(make_table):
    table = make_table()
    table.assign(ids(1, 2, 3), rows_of(1, 2, 3))
    assert table.find(ids(3, 1, 9, 3)).tolist() == [[3, 3], [1, 1], [0, 0], [3, 3]]


def test_find_changes_nothing(make_table):
    table = make_table(admission=es.CounterAdmission(2), evict_every=1, eviction=es.StepEviction(0))
    table.find_or_insert(ids(1, 1, 2), step=0)
    before = snapshot(table)
    for missing in ("default", "initial"):
        table.find(ids(1, 2, 3), missing=missing, with_meta=True)
    table.contains(ids(1, 2, 3))
    assert snapshot(table) == before


def test_found_mask(make_table):
    table = make_table(admission=es.CounterAdmission(2))
    table.find_or_insert(ids(1, 1, 2), step=0)
    rows, found = table.find(ids(2, 1, 3), return_found=True)
    assert found.tolist() == [False, True, False]
    assert found.dtype == np.bool_
    assert rows.tolist() == [[0, 0], [1, 1], [0, 0]]
    assert table.contains(ids(2, 1, 3)).tolist() == [False, True, False]


def test_meta_of_present_and_absent_keys(make_table):
    table = make_table()
    table.find_or_insert(ids(1, 2, 1), step=4)
    table.find_or_insert(ids(1), step=9)
    assert meta(table, 1, 2, 3) == [(3, 4), (1, 4), (0, -1)]


def test_missing_initial_is_the_row_a_key_would_be_born_with(make_table):
    table = make_table(17, initializer=es.Normal(std=1.0), admission=es.CounterAdmission(2))
    keys = ids(5, -1, 2**40)
    table.find_or_insert(keys[:1], step=0)  # pending
    foretold = table.find(keys, missing="initial")
    born = table.find_or_insert(keys, step=0, admit="always").rows
    assert foretold.tobytes() == born.tobytes()
    assert len(np.unique(born)) == born.size


def test_missing_raise_names_the_first_missing_key(make_table):
    table = make_table()
    table.find_or_insert(ids(1), step=0)
    assert table.find(ids(1), missing="raise").tolist() == [[1, 1]]
    with pytest.raises(es.MissingKeyError, match="-77") as error:
        table.find(ids(1, -77, 5), missing="raise")
    assert isinstance(error.value, KeyError)
    assert str(error.value) == "table 'table': no row for key -77"


def test_out_is_filled_and_returned(make_table):
    table = make_table()
    table.find_or_insert(ids(1), step=0)
    out = np.full((2, 2), 9, np.float32)
    assert table.find(ids(1, 2), out=out) is out
    assert out.tolist() == [[1, 1], [0, 0]]
    rows, _ = table.find(ids(2, 1), out=out, return_found=True)
    assert rows is out
    assert out.tolist() == [[0, 0], [1, 1]]


def test_every_int64_is_a_key(make_table):
    table = make_table(1, admission=es.CounterAdmission(2))
    keys = np.unique(ids(*HOSTILE))
    values = np.arange(len(keys), dtype=np.float32)[:, None]
    table.find_or_insert(keys, step=0)
    assert len(table) == 0
    assert table.candidates().keys.size == len(keys)
    assert (table.find_or_insert(keys, step=0).status == es.KeyStatus.INSERTED).all()
    table.assign(keys, values)
    assert np.array_equal(table.find(keys), values)
    assert not table.contains(keys ^ 0x5555_0000_0000_5555).any()
    assert table.erase(keys[::2]) == len(keys[::2])
    assert table.contains(keys).tolist() == [i % 2 == 1 for i in range(len(keys))]


def test_other_integers_as_keys(make_table):
    table = make_table()
    table.assign(ids(-1, 3, -2), rows_of(1, 2, 3))
    assert table.find(np.array([2**64 - 1], np.uint64)).tolist() == [[1, 1]]
    assert table.find(np.array([-1, 3], np.int32)).tolist() == [[1, 1], [2, 2]]
    assert table.find(np.array([2**32 - 1, 3], np.uint32)).tolist() == [[0, 0], [2, 2]]
    assert table.find([-1, 3]).tolist() == [[1, 1], [2, 2]]
    assert table.find((np.int64(-2),)).tolist() == [[3, 3]]


def test_layouts_of_keys(make_table):
    table = make_table()
    table.assign(ids(1, 2, 3), rows_of(1, 2, 3))
    strided = np.arange(1, 7)[::2]
    read_only = ids(3, 2, 1)
    read_only.flags.writeable = False
    unaligned = np.frombuffer(b"\0" + ids(2).tobytes(), np.uint8)[1:].view(np.int64)
    big_endian = ids(2, 3).astype(">i8")
    assert table.find(strided).tolist() == [[1, 1], [3, 3], [0, 0]]
    assert table.find(strided[::-1]).tolist() == [[0, 0], [3, 3], [1, 1]]
    assert table.find(read_only).tolist() == [[3, 3], [2, 2], [1, 1]]
    assert table.find(unaligned).tolist() == [[2, 2]]
    assert table.find(big_endian).tolist() == [[2, 2], [3, 3]]


def test_arrays_with_dlpack(make_table):
    torch = pytest.importorskip("torch", reason="torch is not installed: DLPack is not tested")
    table = make_table()
    table.assign(torch.tensor([1, 2]), torch.tensor([[1.0, 1.0], [2.0, 2.0]]))
    out = torch.zeros(2, 2)
    table.find(torch.tensor([2, 1]), out=out.numpy())
    assert out.tolist() == [[2, 2], [1, 1]]


def test_empty_batches(make_table):
    table = make_table(optimizer=es.SGD(0.1))
    none = ids()
    assert table.find(none).shape == (0, 2)
    assert table.find([], missing="initial").shape == (0, 2)
    assert table.contains(none).shape == (0,)
    batch = table.find_or_insert(none, step=0)
    assert (batch.n_unique, batch.rows.shape) == (0, (0, 2))
    table.apply_gradients(batch, np.empty((0, 2), np.float32), step=0)
    assert table.assign(none, np.empty((0, 2), np.float32)) == (0, 0, 0)
    assert table.erase(none) == 0
    assert len(table) == 0


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 8, 15, 16, 17, 128, 1000, 4096])
def test_any_dim(make_table, dim):
    table = make_table(dim)
    keys = np.arange(50)
    values = np.arange(50 * dim, dtype=np.float32).reshape(50, dim)
    table.assign(keys, values)
    assert np.array_equal(table.find(keys[::-1].copy()), values[::-1])
