"""Arrays in a card's memory, without a copy: what ``__cuda_array_interface__`` tells of them."""

import math
from typing import Any

import numpy as np

from embstore.errors import ArgumentError, ArgumentTypeError

CUDA, CUDA_MANAGED = 2, 13  # of DLDeviceType
LEGACY_STREAM = 1  # another name of stream 0, which the interface may not give


class DeviceArray:
    """A contiguous array on a card, as engines take it in place of a numpy array.

    Attributes
    ----------
    address : int
        Where it begins.
    shape, dtype
        As numpy's.
    owner : object
        The user's array, which keeps the memory.
    stream : int or None
        The stream on which its producer works, if it tells.
    """

    __slots__ = ("address", "dtype", "owner", "shape", "stream")

    def __init__(
        self,
        address: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        owner: object,
        stream: int | None,
    ) -> None:
        self.address = address
        self.shape = shape
        self.dtype = dtype
        self.owner = owner
        self.stream = stream

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, first: int, end: int) -> "DeviceArray":
        """Return rows [first, end), which share its memory."""
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        address = self.address + first * row_bytes
        owner: Any = self.owner
        shape = (end - first, *self.shape[1:])
        return DeviceArray(address, shape, self.dtype, owner[first:end], self.stream)


def is_on_device(value: object) -> bool:
    """Return whether `value` is an array on a card, to be taken by `of_interface` or by DLPack."""
    if isinstance(value, np.ndarray):
        return False
    try:
        if getattr(value, "__cuda_array_interface__", None) is not None:
            return True
    except Exception:  # what a tensor that requires grad raises tells that it is one
        return True
    device_of = getattr(value, "__dlpack_device__", None)
    return device_of is not None and device_of()[0] in (CUDA, CUDA_MANAGED)


def of_interface(value: Any, expected: str, where: str) -> DeviceArray:
    """Return an array that has ``__cuda_array_interface__``, versions 2 and 3.

    Raises
    ------
    ArgumentTypeError
        If its library does not give the interface, or the dtype is none of numpy's.
    ArgumentError
        If it is not C-contiguous, or has a mask.
    """
    try:
        interface = value.__cuda_array_interface__
        dtype = np.dtype(interface["typestr"])
    except Exception as error:  # each library raises what it likes
        raise ArgumentTypeError(
            f"{where}: {expected}, got an object of type {type(value).__name__} whose "
            f"__cuda_array_interface__ cannot be read: {error}"
        ) from error
    shape = tuple(int(n) for n in interface["shape"])
    strides = interface.get("strides")
    if interface.get("mask") is not None:
        raise ArgumentError(f"{where}: {expected}, got an array with a mask")
    if strides is not None and tuple(strides) != strides_of(shape, dtype.itemsize):
        if math.prod(shape) > 1:
            raise ArgumentError(
                f"{where}: {expected}, got {dtype} of shape {shape} that is not C-contiguous"
            )
    address, _ = interface["data"]
    stream = interface.get("stream")
    if stream == LEGACY_STREAM:
        stream = 0
    return DeviceArray(
        int(address or 0), shape, dtype, value, None if stream is None else int(stream)
    )


def strides_of(shape: tuple[int, ...], item_bytes: int) -> tuple[int, ...]:
    """Return the strides, in bytes, of a C-contiguous array."""
    strides, step = [], item_bytes
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def do_overlap(a: object, b: object) -> bool:
    """Return whether two arrays share memory."""
    if isinstance(a, DeviceArray) and isinstance(b, DeviceArray):
        return a.address < b.address + b.nbytes and b.address < a.address + a.nbytes
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.may_share_memory(a, b)
    return False
