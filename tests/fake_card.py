"""A stand-in for CuPy whose kernels the emulator runs: the device of CuPy, without a card.

It goes through the code of a card, line by line, and shows nothing of its speed or its order.
"""

import contextlib
import importlib.machinery
import itertools
import types

import fake_cupy
import numpy as np

ONE_STREAM = 1  # the number of the default stream in the interface of arrays


class Array:
    """As much of a ``cupy.ndarray`` as is used."""

    def __init__(self, values):
        self.values = values
        self.shape, self.dtype = values.shape, values.dtype

    @property
    def __cuda_array_interface__(self):
        data = (self.values.ctypes.data, False)
        shared = {"shape": self.shape, "typestr": self.dtype.str, "data": data}
        return shared | {"version": 3, "strides": None, "stream": ONE_STREAM}

    def __len__(self):
        return len(self.values)

    def __getitem__(self, at):
        return Array(self.values[at])

    def view(self, dtype):
        return Array(self.values.view(dtype))


class FakeCard(fake_cupy.FakeCupy):
    """The module, on a machine with a card whose kernels `emulators` run.

    Parameters
    ----------
    emulators
        `emulator.device.Emulator` each.
    """

    def __init__(self, emulators):
        super().__init__(limit=2 << 30, n_devices=1)
        self.ndarray, self.__version__ = Array, "14.0"
        self.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
        for emulator in emulators:
            for name in emulator.kernels():
                self.kernels[name] = self._launched(emulator, name)
        self.captured = None  # what is queued while a stream is captured
        fake, numbers = self, itertools.count(1000)
        plain_stream, plain_event = self.cuda.Stream, self.cuda.Event

        class Stream(plain_stream):
            def __init__(self, ptr=None, non_blocking=False):
                super().__init__(next(numbers) if ptr is None else ptr)

            def __enter__(self):
                super().__enter__()
                return self

            def begin_capture(self):
                assert self.ptr not in (0, 1, 2), "the default stream is never captured"
                fake.captured = []

            def end_capture(self):
                calls, fake.captured = fake.captured, None
                return types.SimpleNamespace(launch=lambda stream: [call() for call in calls])

        class Event(plain_event):
            def __init__(self, disable_timing=True):
                super().__init__(disable_timing=True)

        self.cuda.Stream, self.cuda.Event = Stream, Event
        self.cuda.Device.use = lambda device: None
        self.cuda.get_current_stream = self.current_stream
        self.cuda.get_elapsed_time = lambda begin, end: 0.5
        self.cuda.runtime.streamIsCapturing = lambda stream: fake.captured is not None
        self.cuda.runtime.getDevice = lambda: 0

    def _launched(self, emulator, name):
        def launch(n_blocks, args):
            copied = np.array(args)
            self.do(lambda: emulator.launch(name, n_blocks, copied))

        return launch

    def do(self, call):
        """Do something now, or, while a stream is captured, in each replay."""
        if self.captured is None:
            call()
        else:
            self.captured.append(call)

    def current_stream(self, index=0):
        """The stream of the innermost context."""
        inner = self.stack()[-1][1] if self.stack() else None
        return self.cuda.Stream(inner or 0)

    def memcpy(self, to, source, n_bytes, kind, stream):
        plain = super().memcpy
        self.do(lambda: plain(to, source, n_bytes, kind, stream))

    def memset(self, to, byte, n_bytes, stream):
        plain = super().memset
        self.do(lambda: plain(to, byte, n_bytes, stream))

    def empty(self, shape, dtype):
        """An array of garbage."""
        assert self.captured is None, "memory is asked for while a stream is captured"
        values = np.empty(shape, np.dtype(dtype))
        values.reshape(-1).view(np.uint8)[:] = 0xAB
        return Array(values)

    @staticmethod
    def asnumpy(array):
        return array.values.copy()

    @staticmethod
    def asarray(values):
        return Array(np.array(values))

    @staticmethod
    def get_default_memory_pool():
        return types.SimpleNamespace(free_bytes=lambda: 7, free_all_blocks=lambda: None)


@contextlib.contextmanager
def installed(monkeypatch, emulators):
    """Let `import cupy` give a `FakeCard`, and embstore believe in it."""
    import sys

    import embstore as es
    from embstore.engines import kernels
    from embstore.engines.cuda import cupy_device, status

    fake = FakeCard(emulators)
    device = status.CudaDevice(0, "a stand-in", (9, 0), 2 << 30)
    found = es.CudaStatus(True, "", "", "14.0", "13.0", "13.0", "13.0", (device,))
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(es, "cuda_status", lambda: found)
    monkeypatch.setattr(
        kernels, "cubins", lambda arch, sources: {unit.stem: b"\x7fELF" for unit in sources.units()}
    )
    monkeypatch.setattr(
        kernels, "resources", lambda arch: {"find_rows": kernels.Resources(50, 8, 0)}
    )
    monkeypatch.setattr(cupy_device, "BLOCKS_PER_MULTIPROCESSOR", 1)  # fibers are slow
    card = cupy_device.CupyDevice(0)
    monkeypatch.setattr(status, "PROVIDER", lambda name: card)
    yield fake
