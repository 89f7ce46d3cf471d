"""The threads that native calls may use, all tables together."""

from embstore import _core
from embstore.policies._check import check_int

MAX_THREADS = 1024


def num_threads() -> int:
    """Return the number of threads that a call may use.

    It begins as the environment variable EMBSTORE_NUM_THREADS, else as the number of processors.
    """
    return _core.num_threads()


def set_num_threads(n: int) -> None:
    """Set the number of threads that a call may use; no result depends on it.

    Parameters
    ----------
    n
        1 to 1024.

    Examples
    --------
    >>> import embstore as es
    >>> before = es.num_threads()
    >>> es.set_num_threads(1)
    >>> es.num_threads()
    1
    >>> es.set_num_threads(before)
    """
    _core.set_num_threads(check_int("set_num_threads", "n", n, 1, MAX_THREADS))
