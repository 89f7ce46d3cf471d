"""Files as memory: several of them mapped side by side, as one read-only array.

1. A range of addresses is reserved first, and each file begins at a page of its own in it; so an
   index into the array reaches every file, and numpy's checks of bounds hold for all.
2. The range is given back when the last array over it is gone: none is ever left without memory.
3. Files are closed once they are mapped. They stay readable if their names are removed, and ten
   thousand of them need no descriptor.

A file that is truncated while it is mapped, or a disk that fails, ends the process with SIGBUS;
no save ever changes a data file.
"""

import ctypes
import mmap
import os
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAP_FIXED = 0x10  # of Linux; module mmap does not name it
MAP_NORESERVE = 0x4000
PROT_NONE = 0

_libc = ctypes.CDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_munmap = _libc.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value


def _mapped(address: int | None, n_bytes: int, protection: int, flags: int, fd: int) -> int:
    found = _mmap(address, n_bytes, protection, flags, fd, 0)
    if found is None or found == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(found)


def reserve(n_bytes: int) -> int:
    """Return the first of `n_bytes` addresses that nothing else will use."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    return _mapped(None, n_bytes, PROT_NONE, flags, -1)


def map_file(fd: int, n_bytes: int, address: int) -> None:
    """Let a file be read at an address that `reserve` gave."""
    _mapped(address, n_bytes, mmap.PROT_READ, mmap.MAP_SHARED | MAP_FIXED, fd)


class _Range:
    """Reserved addresses, as numpy takes them; an array over them keeps this alive."""

    def __init__(self, n_bytes: int) -> None:
        self.address = reserve(n_bytes)
        self.__array_interface__: dict[str, Any] = {
            "data": (self.address, True),
            "shape": (n_bytes,),
            "typestr": "|u1",
            "version": 3,
        }
        weakref.finalize(self, _munmap, self.address, n_bytes).atexit = False


class FileRange:
    """Room for files of these sizes; `place` tells the address of each, to be mapped to it.

    Attributes
    ----------
    bytes : (n,) uint8
        The memory of all files, read-only.
    starts : list of int
        Where each file begins in it.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.starts: list[int] = []
        n_bytes = 0
        for size in sizes:
            self.starts.append(n_bytes)
            n_bytes += -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.bytes: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._address = 0
        if n_bytes:
            reserved = _Range(n_bytes)
            self._address = reserved.address
            self.bytes = np.asarray(reserved)

    def address(self, i: int) -> int:
        """Return the address of file i."""
        return self._address + self.starts[i]
