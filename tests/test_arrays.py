"""The door for foreign arrays: what it takes without a copy, what it converts, what it refuses."""

import numpy as np
import pytest

from embstore.engines import arrays
from embstore.errors import ArgumentError, ArgumentTypeError

KEYS = np.array([0, -1, 2**63 - 1, -(2**63)])


class Dlpack:
    """An object that has DLPack and nothing else."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **kwargs):
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_int64_keys_are_taken_as_they_are():
    assert arrays.as_keys(KEYS, "t") is KEYS
    read_only = KEYS.copy()
    read_only.flags.writeable = False
    assert arrays.as_keys(read_only, "t") is read_only
    empty = np.empty(0, np.int64)
    assert arrays.as_keys(empty, "t") is empty


@pytest.mark.parametrize("dtype", [np.longlong, np.uint64, np.ulonglong])
def test_other_64_bit_keys_are_views(dtype):
    keys = KEYS.astype(dtype)
    taken = arrays.as_keys(keys, "t")
    assert np.shares_memory(taken, keys)
    assert taken.dtype is np.dtype(np.int64)
    assert taken.tolist() == KEYS.tolist()


@pytest.mark.parametrize("dtype", [np.int32, np.uint32])
def test_32_bit_keys_are_widened(dtype):
    keys = np.array([0, 1, np.iinfo(dtype).max, np.iinfo(dtype).min], dtype)
    assert arrays.as_keys(keys, "t").tolist() == keys.tolist()


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.repeat(KEYS, 2)[::2],
        lambda: KEYS[::-1].copy()[::-1],
        lambda: KEYS.astype(">i8"),
        lambda: KEYS.astype("<u8"),
        lambda: np.frombuffer(b"x" + KEYS.tobytes(), np.int64, offset=1),
        lambda: Dlpack(KEYS),
        KEYS.tolist,
        lambda: tuple(KEYS),
        lambda: KEYS.view(type("Sub", (np.ndarray,), {})),
    ],
)
def test_keys_of_any_layout_become_contiguous(make):
    taken = arrays.as_keys(make(), "t")
    assert type(taken) is np.ndarray
    assert taken.dtype is np.dtype(np.int64)
    assert taken.flags.c_contiguous
    assert taken.flags.aligned
    assert taken.tolist() == KEYS.tolist()


@pytest.mark.parametrize(
    ("keys", "got"),
    [
        (np.ones((3, 2), np.float32), r"float32 of shape \(3, 2\)"),
        (np.ones(3), r"float64 of shape \(3,\)"),
        (np.ones(3, bool), "bool of shape"),
        (np.ones(3, np.int16), "int16"),
        (np.array([1, 2], object), "object"),
        (np.array(["a"]), "<U1"),
        (np.array(["2020-01-01"], "M8[ns]"), "datetime64"),
        (np.int64(3), "a int64 scalar"),
        (3, "got 3"),
        (None, "got None"),
        ("12", "got '12'"),
        (b"12", "got b'12'"),
        ({1, 2}, "type set"),
        (iter([1]), "type list_iterator"),
        ([1, 2.0], "float 2.0 at index 1"),
        ([1, True], "bool True at index 1"),
        ([[1]], "list .* at index 0"),
        ([None], "NoneType"),
        (np.ma.masked_array([1, 2], [0, 1]), "masked array"),
    ],
)
def test_keys_of_another_type_are_refused(keys, got):
    with pytest.raises(ArgumentTypeError, match=f"^t: keys must be .*{got}"):
        arrays.as_keys(keys, "t")


@pytest.mark.parametrize("shape", [(), (2, 2), (4, 1)])
def test_keys_of_another_rank_are_refused(shape):
    expected = r"1-D integer array \(int64, uint64, int32 or uint32\), got int64 of shape"
    with pytest.raises(ArgumentError, match=expected):
        arrays.as_keys(np.zeros(shape, np.int64), "t")


@pytest.mark.parametrize("key", [2**63, -(2**63) - 1, 10**400])
def test_ints_in_a_list_must_fit(key):
    with pytest.raises(ArgumentError, match="at index 1"):
        arrays.as_keys([0, key], "t")


def test_an_object_whose_dlpack_fails_is_a_typed_error():
    class Broken:
        def __dlpack__(self, **kwargs):
            raise RuntimeError("on a device that is not there")

        def __dlpack_device__(self):
            return (1, 0)

    with pytest.raises(ArgumentTypeError, match="not there"):
        arrays.as_keys(Broken(), "t")


def test_floats_are_taken_or_widened():
    grads = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert arrays.as_floats(grads, (3, 2), "t", "grads") is grads
    for other in (grads.astype(np.float16), np.asfortranarray(grads), Dlpack(grads)):
        taken = arrays.as_floats(other, (3, 2), "t", "grads")
        assert taken.dtype == np.float32
        assert taken.flags.c_contiguous
        assert taken.tolist() == grads.tolist()


def test_bfloat16_of_ml_dtypes_is_widened():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    grads = np.array([[1.5, -2.0]], ml_dtypes.bfloat16)
    assert arrays.as_floats(grads, (1, 2), "t", "grads").tolist() == [[1.5, -2.0]]


@pytest.mark.parametrize(
    ("grads", "error", "message"),
    [
        (np.ones((3, 2)), ArgumentTypeError, r"got float64 of shape \(3, 2\); convert by"),
        (np.ones((3, 2), np.int32), ArgumentTypeError, "got int32"),
        (np.ones((2, 3), np.float32), ArgumentError, r"of shape \(3, 2\), got float32 of shape"),
        (np.ones(6, np.float32), ArgumentError, r"of shape \(6,\)"),
        ([[1.0, 2.0]], ArgumentTypeError, "type list"),
        (1.0, ArgumentTypeError, "got 1.0"),
    ],
)
def test_other_floats_are_refused(grads, error, message):
    with pytest.raises(error, match=f"^t: grads must be float32 .*{message}"):
        arrays.as_floats(grads, (3, 2), "t", "grads")


def test_counts_are_uint32_and_nothing_else():
    counts = np.array([1, 2], np.uint32)
    assert np.shares_memory(arrays.as_counts(counts, 2, "t"), counts)
    with pytest.raises(ArgumentTypeError, match=r"got int64 .*\.astype\(np\.uint32\)"):
        arrays.as_counts(np.array([1, 2]), 2, "t")
    with pytest.raises(ArgumentError, match=r"shape \(3,\), got uint32 of shape \(2,\)"):
        arrays.as_counts(counts, 3, "t")


@pytest.mark.parametrize(
    ("offsets", "got"),
    [
        ([], "empty array"),
        ([1, 3], "first 1 and last 3"),
        ([0, 2], "first 0 and last 2"),
        ([0, 2, 1, 3], "got 2 before 1 at bag 1"),
        ([0, -1, 3], "got 0 before -1 at bag 0"),
    ],
)
def test_offsets_run_from_0_to_the_number_of_keys(offsets, got):
    with pytest.raises(ArgumentError, match=f"offsets must .*{got}"):
        arrays.as_offsets(offsets, 3, "t")
    assert arrays.as_offsets([0, 0, 3, 3], 3, "t").tolist() == [0, 0, 3, 3]


def test_out_is_written_into_and_never_copied():
    out = np.empty((2, 3), np.float32)
    assert arrays.as_output(out, (2, 3), arrays.FLOAT32, "t") is out
    assert arrays.as_output(None, (2, 3), arrays.FLOAT32, "t").shape == (2, 3)
    if np.lib.NumpyVersion(np.__version__) >= "2.1.0":
        taken = arrays.as_output(Dlpack(out), (2, 3), arrays.FLOAT32, "t")
        assert np.shares_memory(taken, out)


def read_only():
    out = np.empty((2, 3), np.float32)
    out.flags.writeable = False
    return out


@pytest.mark.parametrize(
    ("out", "error", "got"),
    [
        (np.empty((2, 3)), ArgumentTypeError, "float64"),
        (np.empty((2, 3), ">f4"), ArgumentTypeError, ">f4"),
        (np.empty((3, 2), np.float32), ArgumentError, r"\(3, 2\)"),
        (np.empty((3, 2), np.float32).T, ArgumentError, "not C-contiguous"),
        (np.empty((2, 6), np.float32)[:, ::2], ArgumentError, "not C-contiguous"),
        (read_only(), ArgumentError, "read-only"),
        ([[0.0] * 3] * 2, ArgumentTypeError, "type list"),
    ],
)
def test_another_out_is_refused(out, error, got):
    with pytest.raises(error, match=f"^t: out must be C-contiguous, writeable float32.*{got}"):
        arrays.as_output(out, (2, 3), arrays.FLOAT32, "t")


def test_torch_tensors_come_in_without_a_copy():
    torch = pytest.importorskip("torch")
    keys = torch.tensor([5, 7])
    assert arrays.as_keys(keys, "t").ctypes.data == keys.data_ptr()
    with pytest.raises(ArgumentTypeError, match="detach"):
        arrays.as_floats(torch.ones(2, 3, requires_grad=True), (2, 3), "t", "grads")
    with pytest.raises(ArgumentTypeError, match="bool"):
        arrays.as_keys(torch.tensor([True]), "t")


def test_bfloat16_bits_round_to_nearest_even():
    values = np.array(
        [0.0, -0.0, 1.0, 1.00390625, 1.01171875, 3.4e38, np.inf, -np.inf, 1e-40], np.float32
    )
    bits = arrays.float32_to_bfloat16(values)
    assert [hex(b) for b in bits] == [
        *("0x0", "0x8000", "0x3f80", "0x3f80", "0x3f82", "0x7f80", "0x7f80", "0xff80", "0x1")
    ]
    nan = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(arrays.bfloat16_to_float32(arrays.float32_to_bfloat16(nan))).all()
    every = np.arange(65536, dtype=np.uint16)
    wide = arrays.bfloat16_to_float32(every)
    back = arrays.float32_to_bfloat16(wide)
    assert (back == every)[~np.isnan(wide)].all()
