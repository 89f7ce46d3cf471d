"""embstore.data: what Parquet columns become, and in which order rows come."""

import gc
import json
import threading
import time
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_kit import column_of, prefetch_threads, read_all, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embstore._prefetch import Prefetched
from embstore.data import (
    ClosedReaderError,
    ParquetReader,
    Ragged,
    Shuffle,
    hash_strings,
)
from embstore.data import files as files_module
from embstore.errors import ArgumentError, ArgumentTypeError, EmbstoreWarning

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


# What columns become.


@pytest.mark.parametrize("name", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"])
def test_integers_are_widened(tmp_path, name):
    info = np.iinfo(name)
    column = column_of(tmp_path, pa.array([info.min, 0, 1, info.max], getattr(pa, name)()))
    assert column.dtype == np.int64
    assert column.tolist() == [info.min, 0, 1, info.max]


def test_uint64_keeps_its_bits(tmp_path):
    column = column_of(tmp_path, pa.array([0, 2**63, 2**64 - 1], pa.uint64()))
    assert column.dtype == np.int64
    assert column.tolist() == [0, INT64_MIN, -1]


def test_every_int64_is_a_key(tmp_path):
    keys = [INT64_MIN, -1, 0, 1, INT64_MAX]
    assert column_of(tmp_path, pa.array(keys)).tolist() == keys


def test_booleans_are_zero_and_one(tmp_path):
    column = column_of(tmp_path, pa.array([True, False, True]))
    assert column.dtype == np.int64
    assert column.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("given", "becomes"), [("float16", "float32"), ("float32", "float32"), ("float64", "float64")]
)
def test_floats(tmp_path, given, becomes):
    values = np.array([0.5, -2.0, np.inf, np.nan], given)
    column = column_of(tmp_path, pa.array(values))
    assert column.dtype == becomes
    np.testing.assert_array_equal(column, values.astype(becomes))


LISTS = [[1, 2], [], [3], [], [4, 5, INT64_MIN]]


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])
@pytest.mark.parametrize("values", [pa.int64(), pa.uint64(), pa.int32()])
def test_lists_become_values_and_offsets(tmp_path, kind, values):
    lists = [[abs(v) % 7 for v in bag] for bag in LISTS]
    column = column_of(tmp_path, pa.array(lists, kind(values)))
    assert isinstance(column, Ragged)
    assert column.values.dtype == column.offsets.dtype == np.int64
    assert column.offsets[0] == 0
    assert len(column) == len(lists)
    assert [bag.tolist() for bag in column] == lists


def test_fixed_size_lists(tmp_path):
    lists = [[1, 2], [3, 4], [5, 6]]
    path = write(tmp_path / "f.parquet", {"c": pa.array(lists, pa.list_(pa.int64(), 2))})
    first, last = ParquetReader(path, ["c"], 2)
    assert [bag.tolist() for bag in first["c"]] == lists[:2]
    assert last["c"].values.tolist() == [5, 6]
    assert last["c"].offsets.tolist() == [0, 2]


def test_lists_of_strings_are_hashed(tmp_path):
    column = column_of(tmp_path, pa.array([["a", "b"], [], ["a"]]))
    a, b = hash_strings(["a", "b"])
    assert [bag.tolist() for bag in column] == [[a, b], [], [a]]


def test_categories_are_read_as_what_they_stand_for(tmp_path):
    strings = pa.array(["x", "y", "x"]).dictionary_encode()
    numbers = pa.DictionaryArray.from_arrays(pa.array([1, 0, 1]), pa.array([40, 50]))
    assert column_of(tmp_path, strings).tolist() == hash_strings(["x", "y", "x"]).tolist()
    assert column_of(tmp_path, numbers).tolist() == [50, 40, 50]


def test_int64_and_lists_are_not_copied():
    from embstore.data.columns import ColumnType, to_numpy

    numbers = pa.array(range(100))
    assert np.shares_memory(to_numpy(numbers, ColumnType("int64")), numbers.to_numpy())
    lists = pa.array([[1, 2], [3], [4, 5, 6]])
    cut = to_numpy(lists.slice(1), ColumnType("int64", is_list=True))
    assert np.shares_memory(cut.values, lists.values.to_numpy())
    assert cut.values.tolist() == [3, 4, 5, 6]
    assert cut.offsets.tolist() == [0, 1, 4]


def test_schema_says_what_columns_hold(tmp_path):
    columns = {"i": [1], "f": pa.array([0.5], pa.float32()), "s": ["x"], "l": [[1]], "ls": [["x"]]}
    reader = ParquetReader(write(tmp_path / "f.parquet", columns), list(columns), 1)
    assert reader.schema == {
        "i": "int64", "f": "float32", "s": "string", "l": "list of int64", "ls": "list of string"
    }  # fmt: skip


def test_float_widths_of_files_are_joined(tmp_path):
    paths = [
        write(tmp_path / f"{name}.parquet", {"c": np.array([0.1], name)})
        for name in ("float32", "float64")
    ]
    first, last = ParquetReader(paths, ["c"], 1)
    assert first["c"].dtype == last["c"].dtype == np.float64
    assert first["c"][0] == np.float32(0.1)


def test_integer_widths_of_files_may_differ(tmp_path):
    paths = [
        write(tmp_path / f"{name}.parquet", {"c": np.array([7], name)})
        for name in ("int8", "uint64", "int64")
    ]
    assert read_all(ParquetReader(paths, ["c"], 10)) == {"c": [7, 7, 7]}


# The order of rows.


def parts(total, cuts):
    """Cut `total` rows into pieces at the given places."""
    bounds = [0, *sorted(c % (total + 1) for c in cuts), total]
    return list(pairwise(bounds))


@st.composite
def layouts(draw):
    """Files of rows 0, 1, 2, ...: how many, where they are cut, and into what row groups."""
    total = draw(st.integers(0, 120))
    files = parts(total, draw(st.lists(st.integers(0, 200), max_size=4)))
    return [(a, b, draw(st.integers(1, 50))) for a, b in files]


def write_layout(folder, layout):
    paths = []
    for number, (start, stop, group) in enumerate(layout):
        rows = np.arange(start, stop)
        table = pa.table(
            {
                "i": pa.array(rows, pa.int64()),
                "f": pa.array(rows / 4, pa.float32()),
                "l": pa.array([[int(r)] * (r % 4) for r in rows], pa.list_(pa.int64())),
            }
        )
        paths.append(write(folder / f"{number}.parquet", table, row_group_size=group))
    return paths


properties = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@properties
@given(
    layout=layouts(),
    batch_size=st.integers(1, 60),
    prefetch=st.integers(0, 3),
    drop_last=st.booleans(),
    chunk=st.integers(1, 70),
)
def test_batches_are_the_rows_in_order(
    tmp_path_factory, layout, batch_size, prefetch, drop_last, chunk
):
    paths = write_layout(tmp_path_factory.mktemp("p"), layout)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files_module, "CHUNK_ROWS", chunk)
        reader = ParquetReader(
            paths, ["i", "f", "l"], batch_size, prefetch=prefetch, drop_last=drop_last
        )
        batches = list(reader)
    assert len(batches) == len(reader)
    assert all(len(batch["i"]) == batch_size for batch in batches[:-1])
    total = layout[-1][1]
    expected = range(total - total % batch_size if drop_last else total)
    assert [i for batch in batches for i in batch["i"].tolist()] == list(expected)
    assert [f for batch in batches for f in batch["f"].tolist()] == [i / 4 for i in expected]
    bags = [bag.tolist() for batch in batches for bag in batch["l"]]
    assert bags == [[i] * (i % 4) for i in expected]


@properties
@given(
    layout=layouts(),
    n_shards=st.integers(1, 6),
    buffer_rows=st.none() | st.integers(1, 60),
    epochs=st.integers(1, 3),
)
@pytest.mark.filterwarnings("ignore:shard:embstore.errors.EmbstoreWarning")
def test_every_row_belongs_to_one_shard(tmp_path_factory, layout, n_shards, buffer_rows, epochs):
    paths = write_layout(tmp_path_factory.mktemp("p"), layout)
    shuffle = None if buffer_rows is None else Shuffle(3, buffer_rows)
    shards = [
        ParquetReader(paths, ["i", "l"], 7, shard=(i, n_shards), shuffle=shuffle, prefetch=0)
        for i in range(n_shards)
    ]
    for _ in range(epochs):
        rows = [read_all(shard) for shard in shards]
        seen = [i for shard in rows for i in shard.get("i", [])]
        assert sorted(seen) == list(range(layout[-1][1]))
        bags = [bag for shard in rows for bag in shard.get("l", [])]
        assert bags == [[i] * (i % 4) for i in seen]
        if shuffle is None:
            assert all(shard.get("i", []) == sorted(shard.get("i", [])) for shard in rows)
    assert [len(shard.get("i", [])) for shard in rows] == [shard.n_rows for shard in shards]


@properties
@given(
    layout=layouts(),
    sizes=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    buffer_rows=st.none() | st.integers(1, 60),
    stop_after=st.integers(0, 30),
    prefetch=st.integers(0, 2),
)
def test_a_saved_position_continues_exactly(
    tmp_path_factory, layout, sizes, buffer_rows, stop_after, prefetch
):
    paths = write_layout(tmp_path_factory.mktemp("p"), layout)
    options = {"shuffle": buffer_rows and Shuffle(1, buffer_rows), "prefetch": prefetch}
    straight = ParquetReader(paths, ["i", "l"], sizes[0], **options)
    expected = [i for _ in range(3) for i in read_all(straight).get("i", [])]

    reader = ParquetReader(paths, ["i", "l"], sizes[0], **options)
    seen = []
    for _ in range(stop_after):  # over the end of epochs too
        batch = next(iter(reader), None)
        seen += [] if batch is None else batch["i"].tolist()
    state = json.loads(json.dumps(reader.state_dict()))
    resumed = ParquetReader(paths, ["i", "l"], sizes[1], **options)
    resumed.load_state_dict(state)
    for _ in range(3):
        seen += read_all(resumed).get("i", [])
    n = min(len(seen), len(expected))
    assert seen[:n] == expected[:n]
    assert n == len(expected) or layout[-1][1] == 0 or stop_after


def test_the_shuffle_is_pinned(tmp_path):
    """The order is part of what a saved position means, so it may not change."""
    path = write(tmp_path / "f.parquet", {"c": np.arange(12)}, row_group_size=4)
    reader = ParquetReader(path, ["c"], 12, shuffle=Shuffle(seed=7, buffer_rows=6))
    epochs = [read_all(reader)["c"] for _ in range(2)]
    assert epochs == [
        [1, 0, 4, 2, 3, 5, 11, 9, 6, 8, 10, 7],
        [3, 0, 5, 4, 2, 1, 9, 8, 10, 11, 6, 7],
    ]


def test_the_shuffle_mixes(tmp_path):
    path = write(tmp_path / "f.parquet", {"c": np.arange(20_000)}, row_group_size=500)
    orders = [
        np.array(read_all(ParquetReader(path, ["c"], 1000, shuffle=Shuffle(seed, 4000)))["c"])
        for seed in (0, 1)
    ]
    assert not np.array_equal(*orders)
    for order in orders:
        assert abs(np.corrcoef(np.arange(20_000), order)[0, 1]) < 0.5
        assert len(np.unique(order[:4000] // 500)) == 8
        assert np.abs(np.diff(order)).mean() > 500


def test_shards_are_even(tmp_path):
    sizes = [100, 1, 100, 1, 100, 1, 100, 3]
    paths = [write(tmp_path / f"{i}.parquet", {"c": np.zeros(n)}) for i, n in enumerate(sizes)]
    rows = [ParquetReader(paths, ["c"], 10, shard=(i, 2)).n_rows for i in range(2)]
    assert sorted(rows) == [202, 204]


def test_a_shard_without_rows_says_so(tmp_path):
    path = write(tmp_path / "f.parquet", {"c": [1, 2]})
    with pytest.warns(EmbstoreWarning, match=r"shard \(1, 2\) has no rows.*1 row group"):
        reader = ParquetReader(path, ["c"], 1, shard=(1, 2))
    assert list(reader) == []


def test_a_folder_stands_for_its_parquet_files(tmp_path):
    write(tmp_path / "b.parquet", {"c": [3]})
    write(tmp_path / "a.parquet", {"c": [1, 2]})
    (tmp_path / "notes.txt").write_text("not data")
    reader = ParquetReader(tmp_path, ["c"], 10)
    assert read_all(reader) == {"c": [1, 2, 3]}
    assert [path.rpartition("/")[2] for path in reader.files.paths] == ["a.parquet", "b.parquet"]


def test_a_file_without_rows(tmp_path):
    empty = write(tmp_path / "e.parquet", {"c": pa.array([], pa.int64())})
    reader = ParquetReader(empty, ["c"], 3)
    assert (list(reader), len(reader), reader.n_rows) == ([], 0, 0)
    full = write(tmp_path / "f.parquet", {"c": [1, 2]})
    assert read_all(ParquetReader([empty, full, empty], ["c"], 3)) == {"c": [1, 2]}


def test_a_loop_that_was_left_is_continued(tmp_path):
    path = write(tmp_path / "f.parquet", {"c": np.arange(10)})
    reader = ParquetReader(path, ["c"], 2)
    for batch in reader:
        if batch["c"][0] == 2:
            break
    assert (reader.epoch, reader.row) == (0, 4)
    assert read_all(reader)["c"] == [4, 5, 6, 7, 8, 9]
    assert (reader.epoch, reader.row) == (1, 0)


# Positions.


def test_a_foreign_position_is_refused(tmp_path):
    path = write(tmp_path / "f.parquet", {"c": range(100)}, row_group_size=10)
    other = write(tmp_path / "g.parquet", {"c": range(1, 101)}, row_group_size=10)
    reader = ParquetReader(path, ["c"], 10)
    next(iter(reader))
    state = reader.state_dict()
    for foreign in (
        ParquetReader(other, ["c"], 10),
        ParquetReader(path, ["c"], 10, shard=(0, 2)),
        ParquetReader(path, ["c"], 10, shuffle=Shuffle()),
    ):
        with pytest.raises(ArgumentError, match="of other data"):
            foreign.load_state_dict(state)
        assert (foreign.epoch, foreign.row) == (0, 0)
    for change in ({"row": 101}, {"row": -1}, {"epoch": -1}, {"version": 2}):
        with pytest.raises(ArgumentError):
            reader.load_state_dict({**state, **change})
    with pytest.raises(ArgumentTypeError):
        reader.load_state_dict({**state, "row": "1"})
    with pytest.raises(ArgumentTypeError, match="must be a dict"):
        reader.load_state_dict([1])
    with pytest.raises(ArgumentError, match="lacks 'data'"):
        reader.load_state_dict({"version": 1, "epoch": 0, "row": 0})
    assert (reader.epoch, reader.row) == (0, 10)


def test_a_position_survives_a_move_of_the_files(tmp_path):
    path = write(tmp_path / "f.parquet", {"c": range(100)})
    reader = ParquetReader(path, ["c"], 10)
    next(iter(reader))
    moved = (tmp_path / "f.parquet").rename(tmp_path / "g.parquet")
    resumed = ParquetReader(moved, ["c"], 30)
    resumed.load_state_dict(reader.state_dict())
    assert read_all(resumed)["c"] == list(range(10, 100))


def test_a_position_is_what_was_handed_out_not_what_was_read_ahead(tmp_path):
    path = write(tmp_path / "f.parquet", {"c": range(100)})
    reader = ParquetReader(path, ["c"], 10, prefetch=5)
    batches = iter(reader)
    next(batches)
    time.sleep(0.05)
    assert reader.state_dict()["row"] == 10
    batches.close()


# The thread that reads ahead.


@pytest.fixture
def long_file(tmp_path):
    return write(tmp_path / "f.parquet", {"c": range(100_000)}, row_group_size=1000)


def test_no_thread_is_left_when_exhausted(long_file):
    list(ParquetReader(long_file, ["c"], 1000))
    assert not prefetch_threads()


def test_no_thread_is_left_when_closed(long_file):
    with iter(ParquetReader(long_file, ["c"], 10)) as batches:
        next(batches)
        assert len(prefetch_threads()) == 1
    assert not prefetch_threads()
    batches.close()
    with pytest.raises(ClosedReaderError):
        next(batches)


def test_no_thread_is_left_when_dropped(long_file):
    reader = ParquetReader(long_file, ["c"], 10)
    batches = iter(reader)
    next(batches)
    del batches
    gc.collect()
    assert not prefetch_threads()
    for _ in reader:
        break
    gc.collect()
    assert not prefetch_threads()
    assert reader.row == 20


def test_a_new_iterator_ends_the_old_one(long_file):
    reader = ParquetReader(long_file, ["c"], 10)
    old = iter(reader)
    next(old)
    new = iter(reader)
    assert len(prefetch_threads()) == 1
    with pytest.raises(ClosedReaderError, match="another one"):
        next(old)
    assert next(new)["c"][0] == 10
    new.close()


def test_an_exhausted_iterator_stays_exhausted(tmp_path):
    reader = ParquetReader(write(tmp_path / "f.parquet", {"c": [1]}), ["c"], 1)
    batches = iter(reader)
    assert len(list(batches)) == 1
    assert list(batches) == []
    assert reader.epoch == 1


def test_at_most_depth_items_are_made_ahead():
    made = []

    def source():
        for number in range(100):
            made.append(number)
            yield number

    items = Prefetched(source(), depth=3)
    assert next(items) == 0
    deadline = time.monotonic() + 5
    while len(made) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) <= 5  # one handed out, three waiting, one in the hands of the thread
    assert list(items) == list(range(1, 100))


def test_an_error_comes_after_the_items_before_it():
    def source():
        yield 1
        raise KeyError("gone")

    items = Prefetched(source(), depth=4)
    time.sleep(0.02)
    assert next(items) == 1
    with pytest.raises(KeyError, match="gone"):
        next(items)
    assert list(items) == []
    assert not prefetch_threads()


def test_the_source_is_closed_when_the_consumer_leaves():
    closed = threading.Event()

    def source():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    items = Prefetched(source(), depth=1)
    next(items)
    items.close()
    assert closed.is_set()
    assert not prefetch_threads()


def test_ciao_is_read_whole(ciao):
    reader = ParquetReader(ciao, ["user", "item", "category", "label"], 512)
    assert reader.n_rows == 284_052
    assert len(reader) == 555
    table = pq.read_table(ciao, columns=["item", "label"])
    rows = read_all(reader)
    assert rows["item"] == table["item"].to_pylist()
    assert rows["label"] == table["label"].to_pylist()
