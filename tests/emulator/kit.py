"""A launcher on an emulated card, arrays on it, and the checks that every test of it ends with."""

from collections.abc import Mapping

import numpy as np

from embstore.engines import kernels
from embstore.engines.cuda.launch import Launcher, packed

from .device import EmulatedDevice

SEEDS = (0, 1, 2)  # 0 is fast, the others interleave
DOUBLES = {"lr", "beta1_power", "beta2_power"}


class NamedLauncher(Launcher):
    """Where the fields of a kernel are names alone."""

    def run(self, kernel, n_threads, **fields):
        names = kernels.argument_fields(kernel)
        if not isinstance(names, Mapping):
            names = {name: "double" if name in DOUBLES else "uint64_t" for name in names}
        self.queue.launch(kernel, max(1, n_threads), packed(names, fields, kernel))


class Card:
    """An emulated device, and arrays in its memory by their addresses."""

    def __init__(self, seed=0, max_blocks=4):
        self.device = EmulatedDevice(seed=seed, max_blocks=max_blocks)
        self.queue = self.device.queue()
        self.launcher = NamedLauncher(self.queue)
        self._held = []

    def put(self, values, dtype=None):
        """Return the address of a copy of an array."""
        values = np.ascontiguousarray(values, dtype)
        memory = self.queue.alloc(values.nbytes)
        self._held.append(memory)
        if values.nbytes:
            self.queue.upload(memory.address, values)
        return memory.address

    def room(self, shape, dtype):
        """Return the address of an uninitialized array."""
        memory = self.queue.alloc(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        self._held.append(memory)
        return memory.address

    def get(self, address, shape, dtype):
        """Return a copy of an array of the device."""
        out = np.empty(shape, dtype)
        if out.nbytes:
            self.queue.download(address, out)
        return out

    def check(self):
        """Raise AssertionError if anything wrote where it may not."""
        for memory in (*self._held, *self.launcher._scratch.values()):
            memory.check()
        assert self.device.violations == []
