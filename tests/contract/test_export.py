"""Export of many rows: the order of files, and whole rows, whatever the number of threads."""

import numpy as np
import pytest
from contract.tools import INT64, ids
from property.pair import assert_same_rows, exported
from reference.hashing import partition_of

import embstore as es

N = 120_000  # about 470 rows of each partition


def many_keys():
    """Return distinct keys, some dense and some over all int64, and the extremes."""
    rng = np.random.default_rng(3)
    keys = [rng.integers(INT64.min, INT64.max, N // 2), np.arange(-N // 4, N // 4)]
    return np.unique(np.concatenate([*keys, ids(INT64.min, INT64.max)]))


def in_file_order(keys):
    """Return keys by (partition, key)."""
    return keys[np.lexsort((keys, partition_of(keys)))]


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("batch_rows", [5000, 10**9])
def test_rows_come_whole_by_partition_and_key(make_table, threads, n_threads, batch_rows):
    threads(n_threads)
    keys = in_file_order(many_keys())
    rng = np.random.default_rng(4)
    wanted = es.Rows(
        keys,
        rng.standard_normal((len(keys), 3), np.float32),
        rng.standard_normal((len(keys), 1), np.float32) ** 2,
        rng.integers(0, 2**32, len(keys), np.uint32),
        rng.integers(0, 1000, len(keys)),
    )
    table = make_table(3, optimizer=es.RowWiseAdagrad(0.1))
    table.import_(wanted[rng.permutation(len(keys))])
    assert_same_rows(exported(table, batch_rows), wanted, "exported")


def test_an_export_sees_what_was_written_before_its_next_batch(make_table):
    table = make_table()
    keys = in_file_order(many_keys())
    table.find_or_insert(keys, step=0)
    batches = table.export(batch_rows=5000)
    first = next(batches).keys
    table.erase(keys[-10:])
    rest = np.concatenate([rows.keys for rows in batches])
    assert np.array_equal(np.concatenate([first, rest]), keys[:-10])
