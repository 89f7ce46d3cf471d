"""Extra: JSON values and arrays beside the tables come back as they were, or are refused."""

import checkpoint_kit as kit
import numpy as np
import pytest

import embstore as es
from embstore import checkpoint


def test_extra_comes_back(tmp_path):
    arrays = {
        "f2": np.array([[1, 2], [3, 4]], np.float16)[:, ::-1],
        "big_endian": np.arange(5, dtype=">i4"),
        "scalar": np.array(2.5),
        "none": np.empty((0, 4)),
        "bool": np.array([True, False]),
        "large": np.arange(400_000),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }
    values = {"a": 1, "b": None, "c": [1.5, "ż", {"d": True}], "e": 2**70, "f": (1, 2), "g": ""}
    checkpoint.save_tables(tmp_path, {}, {**values, **arrays})
    with checkpoint.load_tables(tmp_path) as loaded:
        found = loaded.extra
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype.newbyteorder("=")
        found[name][...] = 0  # they are the caller's own
    assert {name: found[name] for name in values} == {**values, "f": [1, 2]}
    assert len(found) == len(values) + len(arrays)


@pytest.mark.parametrize("extra", [None, {}])
def test_no_extra(extra, tmp_path):
    checkpoint.save_tables(tmp_path, {}, extra)
    with checkpoint.load_tables(tmp_path) as loaded:
        assert loaded.extra == extra


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([1], "must be a dict or None, got list"),
        ({1: 2}, "the key 1 is not a string"),
        ({"a": {"b": {3: 4}}}, r"extra\['a'\]\['b'\]: the key 3 is not a string"),
        ({"a": [float("nan")]}, r"extra\['a'\]\[0\] is nan"),
        ({"a": {1, 2}}, r"extra\['a'\] is a set"),
        ({"a": [np.arange(3)]}, r"extra\['a'\]\[0\] is a ndarray"),
        ({"a": np.array(["x"])}, r"extra\['a'\] is an array of <U1"),
        ({"a": np.array([None])}, "is an array of object"),
        ({"a": b"x"}, "is a bytes"),
        ({"a": "\ud800"}, "is not valid Unicode"),
    ],
)
def test_extra_that_cannot_be_kept_is_refused_before_anything_is_written(extra, message, tmp_path):
    with pytest.raises(es.ArgumentTypeError, match=message):
        checkpoint.save_tables(tmp_path / "new", {"t": kit.memory_table()}, extra)
    assert not (tmp_path / "new").exists()


def test_extra_nested_without_end_is_refused(tmp_path):
    extra = []
    extra.append(extra)
    with pytest.raises(es.ArgumentTypeError, match="nested more than"):
        checkpoint.save_tables(tmp_path, {}, {"a": extra})
