"""The calls of checkpoints to the system: counted, and at the n-th failing or deadly."""

import os
import signal
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Protocol, Self

from embstore.checkpoint import fsio

READING = frozenset({"pread", "fstat", "listdir"})

Call = Callable[..., Any]
Act = Callable[[str, Call, tuple[Any, ...], dict[str, Any]], Any]


class Counter(Protocol):
    """Counts calls to the system while it is entered, and may do something at one of them."""

    n_calls: int

    def __enter__(self) -> object: ...
    def __exit__(self, *exc: object) -> object: ...


class Seam:
    """While it is entered, every call to the system passes here; the n-th meets `act`.

    Parameters
    ----------
    at
        Which call, from 1; 0 for none.
    act
        What happens instead of it: called with its name, the call itself, and its arguments.
    is_sticky
        Whether all later calls meet `act` too.
    ignored
        Names of calls that do not count.
    """

    def __init__(
        self,
        at: int = 0,
        act: Act | None = None,
        is_sticky: bool = False,
        ignored: frozenset[str] = frozenset(),
    ) -> None:
        self.n_calls = 0
        self.names: list[str] = []
        self._at, self._act, self._is_sticky, self._ignored = at, act, is_sticky, ignored
        self._outer: SimpleNamespace = fsio.calls

    def __enter__(self) -> Self:
        self._outer = fsio.calls
        calls = {name: self._wrapped(name, call) for name, call in vars(self._outer).items()}
        fsio.calls = SimpleNamespace(**calls)
        return self

    def __exit__(self, *exc: object) -> None:
        fsio.calls = self._outer

    def _wrapped(self, name: str, call: Call) -> Call:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if name in self._ignored:
                return call(*args, **kwargs)
            self.n_calls += 1
            self.names.append(name)
            is_later = self._is_sticky and self.n_calls > self._at
            if self._act is not None and self._at and (self.n_calls == self._at or is_later):
                return self._act(name, call, args, kwargs)
            return call(*args, **kwargs)

        return wrapper


def die() -> None:
    """Kill this process as the system would: nothing is flushed, closed or undone."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_before(name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Die before the call."""
    die()


def die_halfway(name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Die after half of the bytes were written; after the call, if it writes none."""
    if name == "write":
        call(args[0], args[1][: len(args[1]) // 2])
    else:
        call(*args, **kwargs)
    die()


def fail(error: int) -> Act:
    """Return an act that fails with an errno; what is to be closed is closed all the same."""

    def act(name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if name == "close":
            call(*args, **kwargs)
        raise OSError(error, os.strerror(error))

    return act


def write_short(name: str, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Write or read half of the bytes, as a call that is interrupted may."""
    if name == "write":
        return call(args[0], args[1][: max(1, len(args[1]) // 2)])
    if name == "pread":
        return call(args[0], max(1, args[1] // 2), args[2])
    return call(*args, **kwargs)
