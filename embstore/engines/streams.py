"""The stream that a call is queued on: the one asked for, or that of the arrays' producer."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from embstore.engines.device_arrays import DeviceArray
from embstore.errors import ArgumentTypeError
from embstore.policies._check import shown

_CURRENT: ContextVar[int | None] = ContextVar("stream", default=None)


def current() -> int | None:
    """Return the stream of this call, a ``cudaStream_t``; None is the device's current one."""
    return _CURRENT.get()


def handle_of(stream: object, where: str) -> int:
    """Return the number of a stream: an int, or a stream of CuPy, PyTorch or ``__cuda_stream__``.

    Raises
    ------
    ArgumentTypeError
        If it is none of them.
    """
    if isinstance(stream, int) and not isinstance(stream, bool) and stream >= 0:
        return stream
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        _, handle = protocol()
        return int(handle)
    for name in ("ptr", "cuda_stream"):  # CuPy, PyTorch
        handle = getattr(stream, name, None)
        if isinstance(handle, int):
            return handle
    raise ArgumentTypeError(
        f"{where}: stream must be a stream of CuPy or PyTorch, an object with __cuda_stream__, or "
        f"the number of a cudaStream_t, got {shown(stream)}"
    )


@contextmanager
def chosen(stream: object, where: str, *arrays: object) -> Iterator[None]:
    """Queue the calls inside on a stream; without one, on that of the first array to name one."""
    if stream is not None:
        handle: int | None = handle_of(stream, where)
    else:
        of_arrays = (a.stream for a in arrays if isinstance(a, DeviceArray))
        handle = next((s for s in of_arrays if s is not None), None)
    token = _CURRENT.set(handle)
    try:
        yield
    finally:
        _CURRENT.reset(token)
