"""Arrays of users on their way to kernels: of the host, copied; of the card, as they are.

What is copied lies in scratch memory, under a name, until the next call asks for that name.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore.engines.cuda.launch import Launcher
from embstore.engines.device_arrays import DeviceArray


def array_at(launcher: Launcher, name: str, array: NDArray[Any]) -> int:
    """Return the address of an array: of the card itself, or of scratch that holds a copy."""
    if isinstance(array, DeviceArray):
        return array.address
    address = launcher.scratch(name, array.nbytes)
    put(launcher, address, array)
    return address


def put(launcher: Launcher, to: int, array: NDArray[Any]) -> None:
    """Copy an array of the host or of a card to an address."""
    if isinstance(array, DeviceArray):
        launcher.queue.copy(to, array.address, array.nbytes)
    elif array.nbytes:
        launcher.queue.upload(to, array)


def floats_at(launcher: Launcher, name: str, array: NDArray[Any]) -> int:
    """Return the address of numbers as float32; those of 16 bits on a card are widened."""
    if isinstance(array, DeviceArray) and array.dtype == np.float16:
        wide = launcher.scratch(name, 2 * array.nbytes)
        n = array.size
        launcher.run("widen_halves", n, halves=array.address, n=n, out=wide)
        return wide
    return array_at(launcher, name, array)


def put_keys(launcher: Launcher, to: int, keys: NDArray[Any]) -> None:
    """Write keys of the host or of a card to an address, widened to 64 bits."""
    if not isinstance(keys, DeviceArray) or keys.dtype.itemsize == 8:
        put(launcher, to, keys)
        return
    n, is_signed = len(keys), keys.dtype.kind == "i"
    launcher.run("widen_keys", n, keys=keys.address, n=n, is_signed=is_signed, out=to)


def keys_at(launcher: Launcher, name: str, keys: NDArray[Any]) -> int:
    """Return the address of keys of 64 bits: of the card's own, or of scratch that holds them."""
    if isinstance(keys, DeviceArray) and keys.dtype.itemsize == 8:
        return keys.address
    to = launcher.scratch(name, 8 * len(keys))
    put_keys(launcher, to, keys)
    return to


def is_late(strict: bool, *given: object) -> bool:
    """Return whether a call may return before the card is done: all its arrays are of the card."""
    return not strict and all(a is None or isinstance(a, DeviceArray) for a in given)
