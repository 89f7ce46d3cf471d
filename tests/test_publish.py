"""Tables by name: what ops and other languages find through the C ABI, and when they do not."""

import ctypes
import gc
import threading
from pathlib import Path

import numpy as np
import pytest

import embstore as es

LIBRARY = Path(es.__file__).parent / "libembstore.so"
ES_INVALID, ES_UNKNOWN_NAME = 1, 10


class Abi:
    """The functions of embstore.h that an op calls."""

    def __init__(self):
        self.c = ctypes.CDLL(str(LIBRARY))
        self.c.es_last_error.restype = ctypes.c_char_p
        for name in ("es_table_len", "es_table_dim"):
            getattr(self.c, name).argtypes = [ctypes.c_void_p]
        self.c.es_table_len.restype = ctypes.c_uint64
        self.c.es_table_rate.restype = ctypes.c_double
        self.c.es_table_rate.argtypes = [ctypes.c_void_p]
        for name in ("es_table_release", "es_table_lock", "es_table_unlock"):
            getattr(self.c, name).argtypes = [ctypes.c_void_p]
        self.c.es_find.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_uint64, ctypes.c_void_p]
        self.c.es_find.argtypes += [ctypes.c_int32] * 2 + [ctypes.c_void_p] * 3

    def acquire(self, name):
        handle, text = ctypes.c_void_p(), name.encode()
        n_bytes = ctypes.c_uint64(len(text))
        status = self.c.es_acquire(text, n_bytes, ctypes.byref(handle))
        return status, handle

    def find(self, handle, key):
        keys, rows = np.array([key]), np.empty((1, self.c.es_table_dim(handle)), np.float32)
        data = keys.ctypes.data, 1, rows.ctypes.data
        assert self.c.es_find(handle, *data, 0, 0, None, None, None) == 0
        return rows[0].tolist()


@pytest.fixture(scope="module")
def abi():
    return Abi()


def table_of(name="shop", **options):
    table = es.Table(2, name=name, optimizer=es.SGD(lr=0.5), **options)
    table.assign([1], np.full((1, 2), 7, np.float32))
    return table


def test_a_published_table_is_found_by_its_name_and_no_other(abi):
    with table_of() as table:
        assert table.publish() == "shop"
        assert table.publish("second") == "second"
        assert table.publish() == "shop"
        for name in ("shop", "second"):
            status, handle = abi.acquire(name)
            assert (status, abi.find(handle, 1)) == (0, [7.0, 7.0])
            abi.c.es_table_release(handle)
        assert abi.acquire("Shop")[0] == ES_UNKNOWN_NAME
        assert b"'Shop'" in abi.c.es_last_error()
        table.withdraw("second")
        assert abi.acquire("second")[0] == ES_UNKNOWN_NAME
        with pytest.raises(es.ArgumentError, match="second"):
            table.withdraw("second")
    assert abi.acquire("")[0] == ES_INVALID


def test_a_name_ends_with_its_table_and_is_free_again(abi):
    table = table_of()
    table.publish()
    table.close()
    assert abi.acquire("shop")[0] == ES_UNKNOWN_NAME
    with pytest.raises(es.ClosedTableError):
        table.publish()
    other = table_of()
    other.publish()
    del other
    gc.collect()
    assert abi.acquire("shop")[0] == ES_UNKNOWN_NAME


def test_what_was_acquired_outlives_the_table(abi):
    table = table_of()
    table.publish()
    _, handle = abi.acquire("shop")
    table.close()
    assert abi.find(handle, 1) == [7.0, 7.0]
    abi.c.es_table_release(handle)


def test_two_tables_cannot_have_one_name(abi):
    with table_of() as table, table_of() as other:
        table.publish()
        with pytest.raises(es.ArgumentError, match="another table is registered as 'shop'"):
            other.publish()
        assert other.publish("other") == "other"


def test_names_go_on_after_a_restore_with_the_rows_of_the_checkpoint(abi, tmp_path):
    with table_of() as table:
        table.publish()
        table.save(tmp_path)
        table.assign([1], np.zeros((1, 2), np.float32))
        table.lr = 0.25
        _, before = abi.acquire("shop")
        table.restore(tmp_path)
        _, after = abi.acquire("shop")
        assert abi.find(before, 1) == [0.0, 0.0]
        assert abi.find(after, 1) == [7.0, 7.0]
        assert abi.c.es_table_rate(after) == 0.5
        abi.c.es_table_release(before)
        abi.c.es_table_release(after)
        assert table.find_or_insert([1, 2], step=0).n_inserted == 1


def test_the_learning_rate_is_known_by_name_unless_it_is_a_schedule(abi):
    with table_of() as table:
        table.publish()
        _, handle = abi.acquire("shop")
        assert abi.c.es_table_rate(handle) == 0.5
        table.lr = 0.125
        assert abi.c.es_table_rate(handle) == 0.125
        table.lr = lambda step: 1.0
        assert np.isnan(abi.c.es_table_rate(handle))
        abi.c.es_table_release(handle)


@pytest.mark.parametrize("call", [lambda t: [*t.export()], lambda t: t.find_or_insert([5], 1)])
def test_writers_and_exports_wait_for_an_op_that_holds_the_gate(abi, call):
    with table_of() as table:
        table.publish()
        _, handle = abi.acquire("shop")
        assert abi.c.es_table_lock(handle) == 0
        ended = threading.Event()
        thread = threading.Thread(target=lambda: (call(table), ended.set()))
        thread.start()
        assert table.find([1]).tolist() == [[7.0, 7.0]]  # readers do not wait
        assert not ended.wait(0.1)
        abi.c.es_table_unlock(handle)
        assert ended.wait(30)
        thread.join()
        abi.c.es_table_release(handle)


def test_what_ops_cannot_serve_is_not_published():
    with table_of(on_evict=print) as table:
        with pytest.raises(es.ArgumentError, match="on_evict"):
            table.publish()
    with table_of() as table:
        with pytest.raises(es.ArgumentError, match="empty"):
            table.publish("")
        with pytest.raises(es.ArgumentTypeError, match="name"):
            table.publish(3)
        with pytest.raises(es.ArgumentError, match="never published"):
            table.withdraw()
