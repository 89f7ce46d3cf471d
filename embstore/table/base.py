"""What all parts of a Table share: its engine, its parameters, and the lock of its writers."""

import math
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from embstore import engines
from embstore.engines import Place, arrays, streams
from embstore.engines.device_arrays import DeviceArray
from embstore.engines.spec import TableSpec
from embstore.engines.types import Rows
from embstore.errors import ArgumentError
from embstore.policies._check import FLOAT32_MAX
from embstore.policies.eviction import program
from embstore.policies.optimizer import LearningRate, Optimizer, Slots

if TYPE_CHECKING:
    from embstore.engines.engine import Engine, Named
    from embstore.table.names import AnyLock

EvictionSink = Callable[[Rows], object]
_NO_STREAM = nullcontext()


class TableBase:
    """State and small properties of a Table.

    Writers hold `_lock` for the whole of a call, so that a save, or a call that consists of
    several native ones, is never interleaved with another. find takes no lock.
    """

    def __init__(
        self,
        spec: TableSpec,
        place: Place,
        hash_seed: int | None,
        on_evict: EvictionSink | None,
        where: str,
    ) -> None:
        hash_seed = engines.check_hash_seed(hash_seed, where)
        if on_evict is not None and not callable(on_evict):
            raise arrays.type_error(where, "on_evict", on_evict, "a callable that takes Rows")
        self._spec = spec
        self._place = place
        self._device = place.device
        self._on_evict = on_evict
        # As given, where nothing that prints can see it.
        self._hash_seed: Callable[[], int | None] = lambda: hash_seed
        self._engine: Engine = engines.create(spec, place, hash_seed, on_evict is not None)
        self._find_fast = self._engine.find_fast
        self._strict = False
        self._pins: NDArray[np.int64] = np.empty(0, np.int64)
        self._lr = None if spec.optimizer is None else spec.optimizer.lr
        self._is_bloom_past_capacity = False
        self._base: str | None = None  # digest of the checkpoint with which the change log began
        self._n_resets = 0  # of the change log by hand
        self._n_resets_at_cut = 0
        self._named: Named | None = None  # once it was published
        self._make_lock()
        _TABLES.add(self)

    @classmethod
    def _of_spec(
        cls,
        spec: TableSpec,
        place: Place,
        hash_seed: int | None,
        on_evict: EvictionSink | None,
        where: str,
    ) -> Self:
        """Return an empty table of a spec and a place that were checked."""
        table = cls.__new__(cls)
        TableBase.__init__(table, spec, place, hash_seed, on_evict, where)
        return table

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        *,
        device: str = "cpu",
        hbm_bytes: int | None = None,
        hash_seed: int | None = None,
        on_evict: EvictionSink | None = None,
    ) -> Self:
        """Return an empty table with the parameters that `config` returned.

        A learning rate that was a schedule is not in it: set `lr` anew.
        """
        where = "Table.from_config"
        spec = TableSpec.from_config(config)
        place = engines.check_place(device, hbm_bytes, where)
        return cls._of_spec(spec, place, hash_seed, on_evict, where)

    def _make_lock(self) -> None:
        self._lock: AnyLock = threading.RLock()
        self._save_lock = threading.Lock()  # taken before _lock

    def _begin_save(self) -> None:
        """Take note of the cut of a save, which begins a new change log."""
        self._n_resets_at_cut = self._n_resets

    def _note_saved(self, digest: str) -> None:
        """Take note of the checkpoint that was saved since the cut."""
        with self._lock:
            self._base = digest if self._n_resets == self._n_resets_at_cut else None

    def _take_content(self, other: "TableBase") -> None:
        """Become what another table is, which nobody else has; the caller holds both locks.

        Readers of now go on with the engine of before, which lives until the last lets it go.
        """
        named = other._engine.named() if self._named is not None else None
        if named is not None:
            named[0].take_names(self._named)
            self._named = named[0]
        self._spec, self._lr = other._spec, other._lr
        self._note_rate()
        self._engine, self._find_fast = other._engine, other._find_fast
        self._pins, self._base = other._pins, other._base
        self._is_bloom_past_capacity = False

    @property
    def _writing(self) -> AbstractContextManager[Any]:
        """The lock for calls that may evict: the table's sink gets the rows after it opened."""
        return self._lock if self._on_evict is None else writing([self])

    @property
    def name(self) -> str:
        """The table's name; initial values depend on it."""
        return self._spec.name

    @property
    def dim(self) -> int:
        """Values of a row."""
        return self._spec.dim

    @property
    def dtype(self) -> str:
        """The dtype of values as stored: float32, float16 or bfloat16."""
        return self._spec.dtype

    @property
    def device(self) -> str:
        """Where the table is: "cpu", "cuda" or "cuda:N"; what "auto" has found."""
        return self._place.device

    @property
    def hbm_bytes(self) -> int | None:
        """The most bytes of rows in the card's memory, None without such a bound."""
        return self._place.hbm_bytes

    @property
    def strict(self) -> bool:
        """Whether calls wait for the card even where all their arrays are of it; see `check`."""
        return self._strict

    @strict.setter
    def strict(self, is_strict: bool) -> None:
        self._strict = bool(is_strict)
        self._engine.set_strict(self._strict)

    def check(self) -> None:
        """Wait for the card, and raise what went wrong in calls that did not wait.

        On a card, find, find_or_insert and apply_gradients do not wait where all their arrays are
        of it and `strict` is False. A sum of gradients that is not finite (with
        ``on_nonfinite="raise"``) then changes no row, and is raised by the next check, stats, save
        or call that waits; the clock of the optimizer has counted the step. On the CPU there is
        never anything to raise.

        Raises
        ------
        NonFiniteError
            If that has happened.
        """
        self._engine.check()

    @property
    def slots(self) -> Slots:
        """Name and width, in float32, of each slot of a row."""
        return self._spec.slots

    @property
    def step(self) -> int:
        """The greatest step that any call has seen."""
        return int(self._engine.get_state()["step"])

    @property
    def nbytes(self) -> int:
        """Bytes that the table holds, wherever: rows, slots, index, candidates and filter."""
        stats = self._engine.stats()
        return sum(value for name, value in stats.items() if name.startswith("nbytes_"))

    def __len__(self) -> int:
        return len(self._engine)

    def close(self) -> None:
        """Give the memory back; every later call raises ClosedTableError.

        Calls of other threads that run now end as usual, and the last of them frees the memory.
        """
        self._engine.close()

    def config(self) -> dict[str, Any]:
        """Return the table's parameters as a dict for JSON, for `from_config`.

        Device, hbm_bytes, hash_seed and on_evict are of the process and not among them; a schedule
        of the learning rate is None.
        """
        return self._spec.to_config()

    @property
    def has_eviction_policy(self) -> bool:
        """Whether the table has an eviction policy that selects rows."""
        return bool(program(self._spec.eviction))

    @property
    def optimizer(self) -> Optimizer | None:
        """The optimizer, with the present learning rate."""
        return self._spec.optimizer

    @property
    def lr(self) -> LearningRate:
        """The learning rate: a number, a callable of the step, or None (give it to each call)."""
        return self._lr

    @lr.setter
    def lr(self, lr: LearningRate) -> None:
        optimizer = self._spec.optimizer
        if optimizer is None:
            raise ArgumentError("Table.lr: the table has no optimizer")
        if lr is not None and not callable(lr):
            lr = optimizer.check_lr(lr, "Table.lr")
        changed: Any = {"lr": lr}
        self._spec = replace(self._spec, optimizer=replace(optimizer, **changed))
        self._lr = lr
        self._note_rate()

    def _note_rate(self) -> None:
        """Tell those who update by name the learning rate; they cannot call a schedule."""
        if self._named is not None:
            lr = self._lr
            self._named.set_rate(math.nan if lr is None or callable(lr) else float(lr))

    def _rate(self, lr: object, step: int, where: str) -> float:
        """Return the learning rate of a call at `step`."""
        optimizer = self._spec.optimizer
        if optimizer is None:
            raise ArgumentError(f"{where}: the table was made without an optimizer")
        if lr is None:
            own = self._lr
            if type(own) is float:
                return own
            if own is None:
                raise ArgumentError(
                    f"{where}: the table has no learning rate (a schedule is not saved with it); "
                    f"pass lr=, or set table.lr to a number or a callable of the step"
                )
            lr = own(step) if callable(own) else own
            where = f"{where}: the schedule at step {step}"
        elif type(lr) is float and 0.0 < lr <= FLOAT32_MAX:
            return lr
        return optimizer.check_lr(lr, where)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        head = f"<embstore.Table {self.name!r}: dim={self.dim}, {self.dtype}"
        try:
            return f"{head}, {len(self):,} rows, {self.nbytes:,} bytes, {self.device}>"
        except ValueError:
            return f"{head}, closed>"

    def _output(
        self,
        out: object,
        n: int,
        where: str,
        like: object = None,
        dtype: np.dtype[Any] | None = None,
    ) -> NDArray[Any]:
        """Return `out`, checked, or a new array for n rows, where `like` is: host or card."""
        dtype = self._spec.row_dtype if dtype is None else dtype
        if out is None and isinstance(like, DeviceArray):
            return self._engine.new_output((n, self.dim), dtype)
        return arrays.as_output(out, (n, self.dim), dtype, where, self._device)

    def _vector(self, n: int, dtype: Any, like: object) -> NDArray[Any]:
        """Return a new array (n,), to be filled whole, where `like` is."""
        if isinstance(like, DeviceArray):
            return self._engine.new_output((n,), np.dtype(dtype))
        return arrays.new_vector(n, dtype)

    def _on_stream(
        self, stream: object, where: str, *given: object
    ) -> AbstractContextManager[None]:
        """Queue a call on a stream of a card: the one asked for, or that of the arrays given."""
        if self._device != "cpu":
            return streams.chosen(stream, where, *given)
        if stream is not None:
            raise ArgumentError(f"{where}: stream is for tables on a card; this one is on the cpu")
        return _NO_STREAM

    def _public_rows(self, rows: Rows) -> Rows:
        """Return rows as stored in the form that crosses numpy: bfloat16 as float32."""
        if self._spec.dtype != "bfloat16":
            return rows
        values = arrays.bfloat16_to_float32(rows.values)
        return Rows(rows.keys, values, rows.slots, rows.freq, rows.step)


@contextmanager
def locked(tables: Iterable[TableBase]) -> Iterator[None]:
    """Hold the writers of `tables` out."""
    held = []
    try:
        for table in sorted(tables, key=id):  # one order, so that two calls cannot block each other
            table._lock.acquire()
            held.append(table._lock)
        yield
    finally:
        for lock in held:
            lock.release()


@contextmanager
def writing(tables: Sequence[TableBase]) -> Iterator[None]:
    """Hold other writers out; what was evicted goes to the tables' sinks after the locks opened."""
    with ExitStack() as deliveries:
        with locked(tables):
            try:
                yield
            finally:
                for table in tables:
                    if table._on_evict is not None:
                        rows = table._engine.take_evicted()
                        if len(rows):
                            deliveries.callback(table._on_evict, table._public_rows(rows))


_TABLES: weakref.WeakSet[TableBase] = weakref.WeakSet()


def _renew_locks() -> None:
    """Replace locks that another thread may have held when this child was forked."""
    for table in list(_TABLES):
        table._make_lock()


os.register_at_fork(after_in_child=_renew_locks)
