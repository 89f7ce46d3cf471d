"""The raw gather from Python: raw_gather.c, compiled into a temporary folder, bound by ctypes."""

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
import time
import weakref
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).resolve().parent / "raw_gather.c"
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC", "-pthread", "-std=gnu11")
DISTANCES = (4, 8, 16, 32, 64, 128)  # rows prefetched ahead, tried in turn
HUGE_PAGE_BYTES = 2 << 20


def compiler():
    """Return the command of the C compiler as a list; None where there is none."""
    named = shlex.split(os.environ.get("CC", ""))
    if named:
        return named
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    return None if found is None else [found]


@functools.cache
def library():
    """Return the compiled library; None where there is no C compiler."""
    command = compiler()
    if command is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        target = str(Path(folder) / "raw_gather.so")
        subprocess.run([*command, *FLAGS, str(SOURCE), "-o", target], check=True)
        loaded = ctypes.CDLL(target)
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    loaded.raw_alloc.argtypes = [size, ctypes.POINTER(pointer), ctypes.POINTER(size)]
    loaded.raw_alloc.restype = pointer
    loaded.raw_free.argtypes = [pointer, size]
    loaded.raw_free.restype = None
    loaded.raw_gather.argtypes = [pointer, size, pointer, size, pointer, size]
    loaded.raw_gather.argtypes += [ctypes.c_int, ctypes.c_int]
    loaded.raw_gather.restype = None
    return loaded


def huge_empty(shape):
    """Return a zeroed float32 array on huge pages, as far as the kernel gives them."""
    lib = library()
    n_bytes = int(np.prod(shape)) * 4
    mapped, mapped_bytes = ctypes.c_void_p(), ctypes.c_size_t()
    base = lib.raw_alloc(n_bytes, ctypes.byref(mapped), ctypes.byref(mapped_bytes))
    if base is None:
        raise MemoryError(f"raw_alloc: {n_bytes} bytes")
    memory = (ctypes.c_char * n_bytes).from_address(base)
    weakref.finalize(memory, lib.raw_free, mapped.value, mapped_bytes.value)
    return np.frombuffer(memory, np.float32).reshape(shape)


def huge_share(array):
    """Return the share of `array` that lies on huge pages; None where the kernel does not tell."""
    first, end = array.ctypes.data, array.ctypes.data + array.nbytes
    n_huge_bytes, is_inside = 0, False
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        head = line.split(maxsplit=1)[0]
        if "-" in head and not head.endswith(":"):
            start, stop = (int(part, 16) for part in head.split("-"))
            is_inside = start < end and stop > first
        elif is_inside and head == "AnonHugePages:":
            n_huge_bytes += int(line.split()[1]) * 1024
    return min(1.0, n_huge_bytes / array.nbytes)


class RawGather:
    """Gathers rows of one array by row id with 1 or more threads, at the best prefetch distance."""

    def __init__(self, rows, n_threads=1, is_streaming=False):
        self._lib = library()
        self._rows = rows
        self._row_bytes = rows.shape[1] * rows.itemsize
        self._n_threads = n_threads
        self._is_streaming = is_streaming and self._row_bytes % 16 == 0
        self.distance = DISTANCES[2]

    def tune(self, batches, out, n_tries=3):
        """Choose the distance whose fastest try is the fastest; return it."""
        best = {}
        for i in range(n_tries):
            for j, distance in enumerate(DISTANCES):
                self.distance = distance
                start = time.perf_counter_ns()
                self(batches[(i * len(DISTANCES) + j) % len(batches)], out)
                took = time.perf_counter_ns() - start
                best[distance] = min(took, best.get(distance, took))
        self.distance = min(best, key=best.get)
        return self.distance

    def __call__(self, row_ids, out):
        """Copy the rows of `row_ids` (n,) int64 into `out` (n, dim)."""
        self._lib.raw_gather(
            self._rows.ctypes.data,
            self._row_bytes,
            row_ids.ctypes.data,
            len(row_ids),
            out.ctypes.data,
            self.distance,
            self._is_streaming,
            self._n_threads,
        )
