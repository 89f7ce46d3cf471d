"""Files as memory: several of them mapped side by side, as one read-only array.

1. A range of addresses is reserved first, and each file begins at a page of its own in it; so an
   index into the array reaches every file, and numpy's checks of bounds hold for all.
2. The range is given back when the last array over it is gone: none is ever left without memory.
3. Files are closed once they are mapped. They stay readable if their names are removed, and ten
   thousand of them need no descriptor.

A file that is truncated while it is mapped, or a disk that fails, ends the process with SIGBUS;
no save ever changes a data file.
"""

import mmap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from embstore import _core
from embstore.checkpoint.fsio import InputFile, calls


class FileRange:
    """Room for files of these sizes, each to be mapped to its place.

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
        self._range: _core.AddressRange | None = None
        self.bytes: NDArray[np.uint8] = np.empty(0, np.uint8)
        if n_bytes:
            self._range = calls.reserve(n_bytes)
            self.bytes = self._range.array()

    def map(self, i: int, file: InputFile) -> None:
        """Let all of file i be read in its place, also when it is closed."""
        if self._range is not None:
            file.map_to(self._range, self.starts[i])
