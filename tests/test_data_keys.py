"""embstore.data: strings, crosses and features as keys."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embstore.data import (
    DataError,
    DataTypeError,
    Feature,
    Ragged,
    cross_keys,
    fixed_hash,
    hash_strings,
    parse_features,
)
from embstore.errors import ArgumentError, ArgumentTypeError

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


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
