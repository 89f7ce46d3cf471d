"""The memory of outputs, all tables together: what arrays leave behind waits for the next call."""

from embstore import _core
from embstore.engines.types import BufferStats


def buffer_stats() -> BufferStats:
    """Return how much memory of outputs waits, is in use, and was used again.

    Examples
    --------
    >>> import embstore as es
    >>> stats = es.buffer_stats()
    >>> stats.kept_bytes <= stats.limit_bytes
    True
    """
    return BufferStats(*_core.buffer_stats())


def release_buffers() -> None:
    """Give the memory that waits for the next outputs back to the system.

    Examples
    --------
    >>> import embstore as es
    >>> es.release_buffers()
    >>> es.buffer_stats().kept_bytes
    0
    """
    _core.release_buffers()
