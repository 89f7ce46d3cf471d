"""The only door for foreign arrays: what users give becomes checked numpy arrays, or an error.

Accepted are numpy arrays, objects with DLPack on the CPU (torch tensors and others) without a copy
where dtype and layout allow it, and, for keys, lists and tuples of Python ints. A table on a card
(`device` other than "cpu") takes arrays of the card too: they become `DeviceArray`, which engines
of cards take wherever they take a numpy array.
"""

from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from embstore import _core
from embstore.engines.device_arrays import DeviceArray, do_overlap, is_on_device, of_interface
from embstore.errors import ArgumentError, ArgumentTypeError
from embstore.policies._check import shown

INT64 = np.dtype(np.int64)
FLOAT32 = np.dtype(np.float32)
FLOAT16 = np.dtype(np.float16)
LAYOUT: tuple[Literal["C", "A"], ...] = ("C", "A")  # contiguous, aligned; copied if need be
KEY_DTYPES = "1-D integer array (int64, uint64, int32 or uint32)"


def describe(value: object) -> str:
    """Return dtype and shape of an array, or type and value of anything else, for a message."""
    if isinstance(value, np.ndarray | DeviceArray):
        return f"{value.dtype} of shape {value.shape}"
    if isinstance(value, np.generic):
        return f"a {value.dtype} scalar"
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return shown(value)
    return f"an object of type {type(value).__name__}"


def type_error(where: str, name: str, value: object, expected: str) -> ArgumentTypeError:
    """Return the error that `name` was to be `expected` and is `value`."""
    return ArgumentTypeError(f"{where}: {name} must be {expected}, got {describe(value)}")


def as_numpy(value: object, expected: str, where: str) -> NDArray[Any]:
    """Return `value` as a numpy array over the same memory.

    Raises ArgumentTypeError, naming what was `expected`, if `value` is neither a numpy array nor
    an object with DLPack on the CPU.
    """
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ndarray):
        if isinstance(value, np.ma.MaskedArray):
            raise ArgumentTypeError(f"{where}: {expected}, got a masked array; fill it first")
        return np.asarray(value)
    if not hasattr(type(value), "__dlpack__"):
        raise ArgumentTypeError(f"{where}: {expected}, got {describe(value)}")
    try:
        return np.from_dlpack(value)  # type: ignore[arg-type]
    except Exception as error:  # each library raises what it likes
        raise ArgumentTypeError(
            f"{where}: {expected}, got {describe(value)} that numpy cannot take by DLPack: {error}"
        ) from error


def as_device(value: object, expected: str, where: str) -> DeviceArray:
    """Return an array of a card, by its interface or else by DLPack.

    Raises ArgumentTypeError, naming what was `expected`, if its library refuses.
    """
    if isinstance(value, DeviceArray):
        return value
    if not hasattr(value, "__cuda_array_interface__") and hasattr(value, "__dlpack__"):
        import cupy

        try:
            value = cupy.from_dlpack(value)
        except Exception as error:  # each library raises what it likes
            raise ArgumentTypeError(
                f"{where}: {expected}, got {describe(value)} that CuPy cannot take by DLPack: "
                f"{error}"
            ) from error
    return of_interface(value, expected, where)


def is_of_card(value: object, device: str) -> bool:
    """Return whether `value` is an array of a card, for a table on `device`."""
    return device != "cpu" and (isinstance(value, DeviceArray) or is_on_device(value))


def public(array: Any) -> Any:
    """Return an output as its user knows it."""
    return array.owner if isinstance(array, DeviceArray) else array


def part_of(array: Any, first: int, end: int) -> Any:
    """Return rows [first, end) of an array, over the same memory."""
    return array.rows(first, end) if isinstance(array, DeviceArray) else array[first:end]


def on_host(value: Any, device: str) -> Any:
    """Return an array of a card as a copy on the host, which waits; anything else as it is."""
    if value is None or not is_of_card(value, device):
        return value
    array = as_device(value, "an array of the card", "embstore")
    from embstore.engines.cuda.status import open_device

    out = np.empty(array.shape, array.dtype)
    if array.nbytes:
        open_device(device).queue(array.stream).download(array.address, out)
    return out


def _device_keys(keys: object, where: str, name: str) -> NDArray[np.int64]:
    """Return keys on a card as they are; engines widen those of 32 bits."""
    expected = f"{name} must be a {KEY_DTYPES}"
    array = as_device(keys, expected, where)
    if array.dtype.kind not in "iu" or array.dtype.itemsize not in (4, 8):
        raise ArgumentTypeError(f"{where}: {expected}, got {describe(array)}")
    if array.ndim != 1:
        raise ArgumentError(f"{where}: {expected}, got {describe(array)}")
    return cast(NDArray[np.int64], array)


def _device_array(
    value: object, shape: tuple[int, ...], dtypes: tuple[Any, ...], where: str, expected: str
) -> NDArray[Any]:
    """Return an array on a card, which must have this shape and one of these dtypes."""
    array = as_device(value, expected, where)
    if array.dtype not in [np.dtype(dtype) for dtype in dtypes]:
        raise ArgumentTypeError(f"{where}: {expected}, got {describe(array)}")
    if array.shape != shape:
        raise ArgumentError(f"{where}: {expected}, got {describe(array)}")
    return cast(NDArray[Any], array)


def as_keys(keys: object, where: str, name: str = "keys", device: str = "cpu") -> NDArray[np.int64]:
    """Return `keys` as (n,) int64: uint64 by its bits, int32 and uint32 widened."""
    if type(keys) is np.ndarray and keys.dtype is INT64 and keys.ndim == 1:
        flags = keys.flags
        return keys if flags.c_contiguous and flags.aligned else keys.copy()
    if isinstance(keys, list | tuple):
        return _keys_of_ints(keys, where, name)
    if is_of_card(keys, device):
        return _device_keys(keys, where, name)
    array = as_numpy(keys, f"{name} must be a {KEY_DTYPES}", where)
    dtype = array.dtype
    if dtype.kind not in "iu" or dtype.itemsize not in (4, 8):
        raise ArgumentTypeError(f"{where}: {name} must be a {KEY_DTYPES}, got {describe(array)}")
    if array.ndim != 1:
        raise ArgumentError(f"{where}: {name} must be a {KEY_DTYPES}, got {describe(array)}")
    if dtype.itemsize == 8 and dtype.isnative:
        return np.require(array.view(np.int64), requirements=LAYOUT)
    return np.require(array.astype(dtype.newbyteorder("=")).astype(np.int64), requirements=LAYOUT)


def _keys_of_ints(keys: list[Any] | tuple[Any, ...], where: str, name: str) -> NDArray[np.int64]:
    """Return a list or tuple of ints as keys."""
    for index, key in enumerate(keys):
        if isinstance(key, bool) or not isinstance(key, int | np.integer):
            raise ArgumentTypeError(
                f"{where}: {name} must be a {KEY_DTYPES} or a list of ints, "
                f"got {type(key).__name__} {shown(key)} at index {index}"
            )
        if not -(2**63) <= key < 2**63:
            raise ArgumentError(
                f"{where}: {name} in a list must lie from -2**63 to 2**63 - 1, "
                f"got {shown(key)} at index {index}; "
                f"a uint64 array is taken by its bits"
            )
    return np.array(keys, dtype=np.int64)


def _as_vector(
    value: object, n: int, dtype: Any, where: str, name: str, advice: str = ""
) -> NDArray[Any]:
    """Return `value` as a contiguous (n,) array that has exactly `dtype`."""
    dtype = np.dtype(dtype)
    expected = f"{name} must be {dtype} of shape ({n},)"
    array = as_numpy(value, expected, where)
    if array.dtype != dtype:
        raise ArgumentTypeError(f"{where}: {expected}, got {describe(array)}{advice}")
    if array.shape != (n,):
        raise ArgumentError(f"{where}: {expected}, got {describe(array)}")
    return np.require(array.view(dtype), requirements=LAYOUT)


def as_counts(counts: object, n: int, where: str, device: str = "cpu") -> NDArray[np.uint32]:
    """Return occurrences as (n,) uint32."""
    if is_of_card(counts, device):
        expected = f"counts must be uint32 of shape ({n},)"
        return _device_array(counts, (n,), (np.uint32,), where, expected)
    advice = "; convert by .astype(np.uint32)"
    return _as_vector(counts, n, np.uint32, where, "counts", advice)


def as_freq(freq: object, n: int, where: str) -> NDArray[np.uint32]:
    """Return frequencies as (n,) uint32."""
    return _as_vector(freq, n, np.uint32, where, "freq", "; convert by .astype(np.uint32)")


def as_steps(steps: object, n: int, where: str) -> NDArray[np.int64]:
    """Return steps as (n,) int64, none negative."""
    array = _as_vector(steps, n, np.int64, where, "step")
    if n and int(array.min()) < 0:
        raise ArgumentError(f"{where}: step must be at least 0, got {int(array.min())}")
    return array


def as_offsets(offsets: object, n_keys: int, where: str) -> NDArray[np.int64]:
    """Return bag offsets as (n_bags + 1,) int64: from 0 to `n_keys`, never decreasing."""
    array = as_keys(offsets, where, "offsets")
    if _core.are_offsets(array, n_keys):
        return array
    expected = (
        f"offsets must begin with 0, never decrease and end with {n_keys} (the number of keys)"
    )
    if len(array) == 0:
        raise ArgumentError(f"{where}: {expected}, got an empty array; of no bags they are [0]")
    if array[0] != 0 or array[-1] != n_keys:
        raise ArgumentError(f"{where}: {expected}, got first {array[0]} and last {array[-1]}")
    bag = int((array[1:] < array[:-1]).argmax())
    raise ArgumentError(
        f"{where}: {expected}, got {array[bag]} before {array[bag + 1]} at bag {bag}"
    )


def as_floats(
    value: object, shape: tuple[int, ...], where: str, name: str, device: str = "cpu"
) -> NDArray[np.float32]:
    """Return `value` as contiguous float32 of `shape`; float16 and bfloat16 are widened.

    bfloat16 means an array of ml_dtypes; float64 is refused, since narrowing loses digits.
    """
    if (
        type(value) is np.ndarray
        and value.dtype is FLOAT32
        and value.shape == shape
        and value.flags.carray
    ):
        return value
    expected = f"{name} must be float32 of shape {shape}"
    if is_of_card(value, device):
        return _device_array(value, shape, (FLOAT32, FLOAT16), where, expected)
    array = as_numpy(value, expected, where)
    is_bfloat16 = array.dtype.name == "bfloat16"
    if array.dtype not in (FLOAT32, FLOAT16) and not is_bfloat16:
        advice = "; convert by .astype(np.float32)" if array.dtype.kind in "fiu" else ""
        raise ArgumentTypeError(f"{where}: {expected}, got {describe(array)}{advice}")
    if array.shape != shape:
        raise ArgumentError(f"{where}: {expected}, got {describe(array)}")
    if is_bfloat16:
        return bfloat16_to_float32(array.view(np.uint16))
    return np.require(array, np.float32, LAYOUT)


def as_values(value: object, shape: tuple[int, ...], dtype: str, where: str) -> NDArray[Any]:
    """Return complete values as a table of `dtype` stores them, bfloat16 as its bits in uint16."""
    name = "values"
    if dtype == "bfloat16":
        array = as_numpy(value, f"{name} must be float32 of shape {shape}", where)
        if array.dtype != np.uint16:
            return float32_to_bfloat16(as_floats(array, shape, where, name))
        dtype = "uint16"
    elif dtype == "float32":
        return as_floats(value, shape, where, name)
    expected = f"{name} must be {dtype} of shape {shape}"
    array = as_numpy(value, expected, where)
    if array.dtype != np.dtype(dtype):
        raise ArgumentTypeError(f"{where}: {expected}, got {describe(array)}")
    if array.shape != shape:
        raise ArgumentError(f"{where}: {expected}, got {describe(array)}")
    return np.require(array, dtype, LAYOUT)


def as_output(
    out: object, shape: tuple[int, int], dtype: np.dtype[Any], where: str, device: str = "cpu"
) -> NDArray[Any]:
    """Return `out` as an array to write into, or a new array if `out` is None."""
    if out is None:
        return _core.new_output(*shape, dtype)
    if is_of_card(out, device):
        expected = f"out must be C-contiguous {dtype} of shape {shape}"
        return _device_array(out, shape, (dtype,), where, expected)
    expected = f"out must be C-contiguous, writeable {dtype} of shape {shape}"
    array = as_numpy(out, expected, where)
    if array.dtype != dtype:
        raise ArgumentTypeError(f"{where}: {expected}, got {describe(array)}")
    if array.shape != shape:
        raise ArgumentError(f"{where}: {expected}, got {describe(array)}")
    problem = ""
    if not array.flags.writeable:
        problem = "that is read-only"
        if not isinstance(out, np.ndarray):
            problem += " (as numpy before 2.1 takes DLPack); pass a numpy view of it"
    elif not (array.flags.c_contiguous and array.flags.aligned):
        problem = "that is not C-contiguous and aligned"
    if problem:
        raise ArgumentError(f"{where}: {expected}, got {describe(array)} {problem}")
    return array


def new_vector(n: int, dtype: Any) -> NDArray[Any]:
    """Return a new array (n,), to be filled whole."""
    return _core.new_output(n, -1, np.dtype(dtype))


def check_no_overlap(out: NDArray[Any], where: str, **inputs: NDArray[Any] | None) -> None:
    """Raise if `out` shares memory with an input that is still read while it is written."""
    for name, array in inputs.items():
        if array is not None and do_overlap(out, array):
            raise ArgumentError(f"{where}: out must not share memory with {name}")


def bfloat16_to_float32(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the float32 values that bfloat16 `bits` stand for: their upper halves."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float32_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return `values` rounded to bfloat16, to nearest even; a NaN stays a NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    narrow = (rounded >> np.uint32(16)).astype(np.uint16)
    quiet = ((bits >> np.uint32(16)) | np.uint32(0x40)).astype(np.uint16)
    return np.where(np.isnan(values), quiet, narrow)
