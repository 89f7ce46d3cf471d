"""embstore.data: arguments, columns and files that are refused."""

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from data_kit import prefetch_threads, write

from embstore.data import (
    DataError,
    DataFileError,
    DataTypeError,
    ParquetReader,
    Shuffle,
)
from embstore.errors import ArgumentError, ArgumentTypeError, EmbstoreError

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"columns": "c"}, ArgumentTypeError, "sequence of names"),
        ({"columns": [1]}, ArgumentTypeError, "sequence of names"),
        ({"columns": []}, ArgumentError, "empty"),
        ({"columns": ["c", "c"]}, ArgumentError, "'c' is named twice"),
        ({"columns": ["d"]}, DataError, r"has no column 'd'; it has 'c'"),
        ({"batch_size": 0}, ArgumentError, "batch_size must be at least 1, not 0"),
        ({"batch_size": 1.5}, ArgumentTypeError, "batch_size must be an int"),
        ({"batch_size": True}, ArgumentTypeError, "batch_size must be an int"),
        ({"prefetch": -1}, ArgumentError, "prefetch must be at least 0"),
        ({"shard": 1}, ArgumentTypeError, r"shard must be \(i, n\)"),
        ({"shard": (0, 0)}, ArgumentError, "at least 1"),
        ({"shard": (2, 2)}, ArgumentError, "shard 2 is not one of 2"),
        ({"shard": (-1, 2)}, ArgumentError, "at least 0"),
        ({"shard": (0.0, 2)}, ArgumentTypeError, "must be an int"),
        ({"shuffle": True}, ArgumentTypeError, "Shuffle or None"),
        ({"paths": []}, ArgumentError, "no path"),
        ({"paths": [3]}, ArgumentTypeError, "PathLike"),
        ({"paths": "missing.parquet"}, DataFileError, "there is no file missing.parquet"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, arguments, error, message):
    path = write(tmp_path / "f.parquet", {"c": [1, 2]})
    with pytest.raises(error, match=message) as caught:
        ParquetReader(**{"paths": path, "columns": ["c"], "batch_size": 1, **arguments})
    assert isinstance(caught.value, EmbstoreError)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"seed": 1.0}, ArgumentTypeError),
        ({"seed": 2**63}, ArgumentError),
        ({"buffer_rows": 0}, ArgumentError),
        ({"buffer_rows": "8"}, ArgumentTypeError),
    ],
)
def test_a_bad_shuffle_is_refused(arguments, error):
    with pytest.raises(error, match="of a shuffle must be"):
        Shuffle(**arguments)


@pytest.mark.parametrize(
    ("array", "hint"),
    [
        (pa.array([0], pa.timestamp("ms")), "cast it to int64"),
        (pa.array([0], pa.date32()), "cast it to int64"),
        (pa.array([0], pa.time64("us")), "cast it to int64"),
        (pa.array([Decimal("1.5")]), "integer or a float"),
        (pa.array([[0.5]]), "a list may hold"),
        (pa.array([[[1]]]), "a list may hold"),
        (pa.array([{"a": 1}]), "a list may hold"),
        (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), "a list may hold"),
        (pa.nulls(1), "integers, booleans"),
    ],
)
def test_other_types_are_refused(tmp_path, array, hint):
    path = write(tmp_path / "f.parquet", {"c": array})
    with pytest.raises(DataTypeError, match=f"the column 'c' of .*f.parquet is .*{hint}"):
        ParquetReader(path, ["c"], 1)


def test_types_that_differ_between_files_are_refused(tmp_path):
    a = write(tmp_path / "a.parquet", {"c": [1]})
    b = write(tmp_path / "b.parquet", {"c": [0.5]})
    with pytest.raises(DataTypeError, match=r"'c' is int64 in .*a\.parquet and float64 in .*b"):
        ParquetReader([a, b], ["c"], 1)


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["c", "c"])
    path = write(tmp_path / "f.parquet", table)
    with pytest.raises(DataError, match="2 columns of the name 'c'"):
        ParquetReader(path, ["c"], 1)


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize(
    ("values", "what", "row"),
    [
        ([1, 2, 3, 4, None, 6], "a null", 4),
        ([0.5, 1.5, 2.5, 3.5, 4.5, None], "a null", 5),
        (["a", "b", "c", "d", None, None], "a null", 4),
        ([[1], [], [2, 3], None, [4], [5]], "a null", 3),
        ([[1], [], [2, 3], [4], [5, None], [6]], "a null in the list", 4),
        ([[1], [], [None], [4], [5, None], [6]], "a null in the list", 2),
    ],
)
def test_nulls_are_refused_with_their_place(tmp_path, values, what, row, prefetch):
    path = write(tmp_path / "f.parquet", {"k": range(6), "c": values}, row_group_size=2)
    reader = ParquetReader(path, ["k", "c"], 1, prefetch=prefetch)
    with pytest.raises(DataError, match=rf"'c' of .*f.parquet has {what} at row {row};"):
        list(reader)
    shard = ParquetReader(path, ["k", "c"], 1, shard=(row // 2, 3), prefetch=prefetch)
    with pytest.raises(DataError, match=f"at row {row};"):
        list(shard)


def test_nulls_in_fixed_size_lists_are_refused(tmp_path):
    array = pa.array([[1, 2], [3, None]], pa.list_(pa.int64(), 2))
    path = write(tmp_path / "f.parquet", {"c": array})
    with pytest.raises(DataError, match="a null in the list at row 1"):
        list(ParquetReader(path, ["c"], 1))


def test_rows_before_an_error_are_handed_out(tmp_path):
    paths = [
        write(tmp_path / "a.parquet", {"c": range(10)}),
        write(tmp_path / "b.parquet", {"c": pa.array([1, None], pa.int64())}),
    ]
    reader = ParquetReader(paths, ["c"], 5)
    batches = iter(reader)
    assert [next(batches)["c"][0], next(batches)["c"][0]] == [0, 5]
    with pytest.raises(DataError, match="null"):
        next(batches)
    assert (reader.epoch, reader.row) == (0, 10)
    assert not prefetch_threads()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"PAR1",
        lambda data: b"hello, this is a text file",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1",
        lambda data: data[:-100] + bytes(92) + data[-8:],
    ],
)
def test_files_that_are_not_whole_are_refused(tmp_path, damage):
    path = write(tmp_path / "f.parquet", {"c": range(100)})
    data = damage((tmp_path / "f.parquet").read_bytes())
    (tmp_path / "f.parquet").write_bytes(data)
    with pytest.raises(DataFileError, match=r"f\.parquet") as caught:
        ParquetReader(path, ["c"], 10)
    assert isinstance(caught.value, OSError)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_damaged_page_is_noticed(tmp_path, prefetch):
    path = write(
        tmp_path / "f.parquet",
        {"c": np.random.default_rng(0).integers(0, 2**60, 10_000)},
        write_page_checksum=True,
        compression="none",
        use_dictionary=False,
    )
    data = bytearray((tmp_path / "f.parquet").read_bytes())
    data[40_000] ^= 1
    (tmp_path / "f.parquet").write_bytes(data)
    reader = ParquetReader(path, ["c"], 100, prefetch=prefetch)
    with pytest.raises(DataFileError, match=r"f\.parquet cannot be read to its end"):
        list(reader)


def test_a_file_that_goes_is_noticed(tmp_path):
    path = write(tmp_path / "f.parquet", {"c": range(100)})
    reader = ParquetReader(path, ["c"], 10)
    (tmp_path / "f.parquet").unlink()
    with pytest.raises(DataFileError, match="has gone"):
        list(reader)


def test_a_folder_without_parquet_files_is_refused(tmp_path):
    with pytest.raises(DataFileError, match="holds no file"):
        ParquetReader(tmp_path, ["c"], 1)
