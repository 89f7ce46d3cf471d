"""embstore.data: what Parquet columns become, in which order rows come, and what is refused."""

import gc
import hashlib
import json
import threading
import time
from decimal import Decimal
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embstore.data import (
    ClosedReaderError,
    DataError,
    DataFileError,
    DataTypeError,
    Feature,
    ParquetReader,
    Ragged,
    Shuffle,
    cross_keys,
    fixed_hash,
    hash_strings,
    parse_features,
)
from embstore.data import files as files_module
from embstore.data.prefetch import Prefetched
from embstore.errors import ArgumentError, ArgumentTypeError, EmbstoreError, EmbstoreWarning

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


def write(path, columns, row_group_size=None, **options):
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, path, row_group_size=row_group_size, **options)
    return str(path)


def read_all(reader):
    """All batches of an epoch as Python lists, one list of rows per column."""
    rows = {}
    for batch in reader:
        for name, column in batch.items():
            values = (
                [bag.tolist() for bag in column] if isinstance(column, Ragged) else column.tolist()
            )
            rows.setdefault(name, []).extend(values)
    return rows


def column_of(tmp_path, array, **options):
    """What one Arrow array becomes."""
    path = write(tmp_path / "one.parquet", {"c": array})
    (batch,) = ParquetReader(path, ["c"], max(len(array), 1), **options)
    return batch["c"]


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


# Strings and crosses.


def reference_key(data):
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


GOLDEN_STRINGS = {
    "": -5426141060434712860,
    "a": 3405396810240292928,
    "shoes": 2069200323341772933,
    "Größe 42": 5071836360176194102,
}


def test_string_keys_are_pinned():
    assert hash_strings(list(GOLDEN_STRINGS)).tolist() == list(GOLDEN_STRINGS.values())


@given(st.lists(st.text(max_size=20), max_size=30))
def test_string_keys_are_blake2b(texts):
    expected = [reference_key(text.encode("utf-8", "surrogatepass")) for text in texts]
    assert hash_strings(pa.array(texts, pa.string())).tolist() == expected


@pytest.mark.parametrize(
    "kind", ["string", "large_string", "binary", "large_binary", "string_view", "binary_view"]
)
def test_every_string_type_gives_the_same_keys(kind):
    texts = ["x", "yy", "x", ""]
    array = pa.array(texts, getattr(pa, kind)())
    assert hash_strings(array).tolist() == hash_strings(texts).tolist()
    assert hash_strings(array.slice(1, 2)).tolist() == hash_strings(texts[1:3]).tolist()


def test_other_containers_give_the_same_keys():
    keys = hash_strings(["x", "yy"]).tolist()
    assert hash_strings(np.array(["x", "yy"])).tolist() == keys
    assert hash_strings(np.array(["x", "yy"], object)).tolist() == keys
    assert hash_strings([b"x", b"yy"]).tolist() == keys
    assert hash_strings(pa.array([b"xx"], pa.binary(2))).tolist() == hash_strings(["xx"]).tolist()
    assert hash_strings([]).tolist() == []


def test_each_distinct_string_is_hashed_once(monkeypatch):
    from embstore.data import strings

    calls = []

    def counting(text, digest_size):
        calls.append(text)
        return hashlib.blake2b(text, digest_size=digest_size)

    monkeypatch.setattr(strings, "blake2b", counting)
    strings.hash_strings(["x", "y"] * 1000)
    assert calls == [b"x", b"y"]


@pytest.mark.parametrize("bad", ["text", b"bytes", [1, 2], [1.5], [object()], ["x", 1]])
def test_what_is_not_strings_is_refused(bad):
    with pytest.raises(ArgumentTypeError, match="string"):
        hash_strings(bad)


def test_a_null_string_is_refused():
    with pytest.raises(ArgumentError, match="null: value 1 of 3"):
        hash_strings(["x", None, "y"])


def reference_hash(z):
    mask = 2**64 - 1
    z = (z + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
    return z ^ z >> 31


def reference_cross(*keys):
    h = reference_hash(keys[0] % 2**64)
    for key in keys[1:]:
        h = reference_hash((h + key) % 2**64)
    return h - 2**64 if h >= 2**63 else h


int64s = st.integers(INT64_MIN, INT64_MAX)


@given(st.lists(st.lists(int64s, min_size=2, max_size=4), min_size=1, max_size=5))
def test_crosses_follow_their_formula(rows):
    width = len(rows[0])
    rows = [(row * 4)[:width] for row in rows]
    columns = np.array(rows, np.int64).T
    assert cross_keys(*columns).tolist() == [reference_cross(*row) for row in rows]


def test_crosses_are_pinned():
    a, b = np.array([7, 7, 0, -1]), np.array([1, 2, 0, 5])
    assert cross_keys(a, b).tolist() == [
        *(2875738036014693257, -2317588740234443029),
        *(-6411193824288604561, 3846658174030194800),
    ]
    assert fixed_hash(np.array([0, 1, -1])).tolist() == [
        *(16294208416658607535, 10451216379200822465, 16490336266968443936),
    ]


def test_crosses_depend_on_the_order_and_do_not_collide():
    user, item = (grid.ravel() for grid in np.meshgrid(np.arange(1000), np.arange(1000)))
    crosses = [
        cross_keys(user, item),
        cross_keys(user + 1000, -item),
        cross_keys(user << 32, ~item),
    ]
    assert len(np.unique(np.concatenate(crosses))) == 3_000_000
    swapped = cross_keys(item, user)
    assert np.flatnonzero(swapped == crosses[0]).tolist() == np.flatnonzero(user == item).tolist()


def test_bad_crosses_are_refused():
    keys = np.arange(3)
    with pytest.raises(ArgumentError, match="two or more"):
        cross_keys(keys)
    with pytest.raises(ArgumentTypeError, match="column 1 is float64"):
        cross_keys(keys, keys / 2)
    with pytest.raises(ArgumentError, match=r"\(3,\), \(2,\)"):
        cross_keys(keys, keys[:2])
    with pytest.raises(ArgumentError, match="shape"):
        cross_keys(keys.reshape(3, 1), keys.reshape(3, 1))


def test_features_are_columns_and_crosses():
    batch = {
        "user": np.array([1, 2]),
        "item": np.array([3, 4]),
        "price": np.array([0.5, 1.5]),
        "tags": Ragged(np.array([9, 8, 7]), np.array([0, 2, 3])),
        "words": Ragged(np.array([6]), np.array([0, 0, 1])),
    }
    user, cross = parse_features("user", "user * item")
    assert (user.name, cross.name) == ("user", "user*item")
    assert user.keys(batch) is batch["user"]
    assert cross.keys(batch).tolist() == cross_keys(batch["user"], batch["item"]).tolist()
    assert Feature(("tags",)).keys(batch) is batch["tags"]
    bags = Feature(("tags", "user")).keys(batch)
    assert bags.offsets.tolist() == [0, 2, 3]
    assert bags.values.tolist() == cross_keys(np.array([9, 8, 7]), np.array([1, 1, 2])).tolist()
    with pytest.raises(DataError, match="'nothing'; there are user, item"):
        Feature(("nothing",)).keys(batch)
    with pytest.raises(DataTypeError, match="'price' is float64"):
        Feature.parse("user*price").keys(batch)
    with pytest.raises(DataError, match="2 list columns"):
        Feature.parse("tags*words").keys(batch)


@pytest.mark.parametrize(
    ("features", "crosses", "message"),
    [
        ("", "", "no feature"),
        ("user,,item", "", "names of columns"),
        ("user,item,user", "", "'user' is given twice"),
        ("user", "user*", "names of columns"),
        ("user", "user*user", "names a column twice"),
    ],
)
def test_bad_features_are_refused(features, crosses, message):
    with pytest.raises(ArgumentError, match=message):
        parse_features(features, crosses)


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


def prefetch_threads():
    return [t for t in threading.enumerate() if t.name == "embstore-prefetch"]


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
