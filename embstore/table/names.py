"""The names by which ops of frameworks and other languages find tables in this process.

1. A name lives until it is withdrawn or its table is closed or gone; what an op holds then lives to
   the end of its call.
2. Ops write on threads that know nothing of Python's lock: a gate in the native library keeps them
   out while Python makes several native calls on one state, and Python out while they write.
"""

from typing import TYPE_CHECKING, Any, Protocol

from embstore.engines import arrays
from embstore.errors import ArgumentError, DeviceError
from embstore.table.base import TableBase

if TYPE_CHECKING:
    from embstore.engines.engine import Gate


class AnyLock(Protocol):
    """What `TableBase` asks of its lock, which a thread may take more than once."""

    def acquire(self) -> object:
        """Wait for it, and hold it."""
        ...

    def release(self) -> object:
        """Let it go."""
        ...

    def __enter__(self) -> object: ...
    def __exit__(self, *exc: Any) -> bool | None: ...


class GatedLock:
    """The lock of a table that was published: that of before, and the gate of ops behind it."""

    def __init__(self, lock: AnyLock, gate: "Gate") -> None:
        self._lock = lock
        self._gate = gate

    def acquire(self) -> None:
        """Wait for other threads of Python, then for ops that write."""
        self._lock.acquire()
        try:
            self._gate.acquire()
        except BaseException:
            self._lock.release()
            raise

    def release(self) -> None:
        """Let both go."""
        self._gate.release()
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()


class TableNames(TableBase):
    """The part of Table that gives it names."""

    def publish(self, name: str | None = None) -> str:
        """Let ops of frameworks and other languages find this table by a name, in this process.

        They call the C ABI (``es_acquire``), on any thread and without Python. From then on a
        writer of Python waits for theirs, and they for it. The name ends by `withdraw`, `close`, or
        with the table itself.

        Parameters
        ----------
        name
            The table's own by default.

        Returns
        -------
        str
            The name.

        Raises
        ------
        ArgumentError
            If another table has the name, or the table has ``on_evict``, which ops cannot call.
        DeviceError
            If the table is on a card.

        Examples
        --------
        >>> import embstore as es
        >>> with es.Table(dim=2, name="shop") as table:
        ...     table.publish()
        'shop'
        """
        where = "Table.publish"
        chosen = self.name if name is None else name
        if not isinstance(chosen, str):
            raise arrays.type_error(where, "name", chosen, "a str")
        if not chosen:
            raise ArgumentError(f"{where}: name must not be empty")
        if self._on_evict is not None:
            raise ArgumentError(
                f"{where}: table {self.name!r} has on_evict, which ops cannot call; make it without"
            )
        named = self._engine.named()
        if named is None:
            raise DeviceError(
                f"{where}: table {self.name!r} is on {self.device}; ops by name read the memory of "
                f"the host"
            )
        with self._lock:
            named[0].publish(chosen.encode())
            if self._named is None:
                self._named = named[0]
                self._lock = GatedLock(self._lock, named[1])
            self._note_rate()
        return chosen

    def withdraw(self, name: str | None = None) -> None:
        """End a name that `publish` gave; calls that run now end as usual.

        Raises
        ------
        ArgumentError
            If the table has no such name.
        """
        chosen = self.name if name is None else name
        if self._named is None:
            raise ArgumentError(f"Table.withdraw: table {self.name!r} was never published")
        self._named.withdraw(chosen.encode())
