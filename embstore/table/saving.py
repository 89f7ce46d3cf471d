"""Saving: one moment of some tables goes into a checkpoint, while others train them.

1. All tables are cut while their locks are held together; after that nobody waits for the save.
2. A table is saved by one save at a time; the next waits.
3. A save that fails leaves tables and change logs as they are, and the checkpoint before.
"""

import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from os import PathLike
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from embstore.engines.spec import N_PARTITIONS
from embstore.engines.threads import num_threads
from embstore.engines.types import Candidates, Rows
from embstore.errors import (
    ArgumentError,
    ArgumentTypeError,
    CancelledError,
    CheckpointError,
    EmbstoreWarning,
)
from embstore.policies._check import (
    INT64_MAX,
    check_float,
    check_int,
    check_optional_int,
    shown,
)
from embstore.table.base import TableBase, locked
from embstore.table.upkeep import TableUpkeep

if TYPE_CHECKING:
    from embstore.checkpoint import SaveReport
    from embstore.engines.engine import Snapshot

Path = str | PathLike[str]

LOG_SHARE = 0.1  # of a table's bytes, by default
N_AHEAD = 4  # blocks of a save that nobody trains beside


class SnapshotView:
    """What a checkpoint reads of a snapshot: the rows once, part after part."""

    def __init__(self, table: TableBase, snapshot: "Snapshot", is_delta: bool) -> None:
        self._snapshot = snapshot
        self.config: dict[str, Any] = table._spec.to_config()
        self.dim: int = table.dim
        self.dtype: str = table.dtype
        self.slots = table.slots
        self.pins: NDArray[np.int64] = table._pins
        self.bloom_bytes: int = len(table._engine.bloom_read(0))
        self.n_threads = 1
        self._is_delta = is_delta
        self._firsts: dict[bool, NDArray[np.uint64]] = {}

    def prepare(self, n_threads: int) -> None:
        """Put the rows in order, with so many threads, here and later.

        One thread stands for a save beside training, whose log will be used: its memory is taken
        now, not as writers come to it.
        """
        self.n_threads = n_threads
        self._snapshot.prepare(n_threads, n_threads == 1)

    @property
    def deleted(self) -> NDArray[np.int64] | None:
        """Keys that a delta removes; None of a whole table."""
        return self._snapshot.deleted() if self._is_delta else None

    @property
    def n_live(self) -> int:
        """Rows that the table had."""
        return self._snapshot.stats()["n_live"]

    def get_state(self) -> dict[str, Any]:
        """Return the clocks and totals."""
        return self._snapshot.state()

    def partition_counts(self, candidates: bool) -> NDArray[np.uint64]:
        """Return the rows (or candidates) of each partition."""
        return self._snapshot.counts(candidates)

    def _places(self, candidates: bool, first: int, last: int) -> tuple[int, int]:
        """Return where partitions [first, last] begin, and how much they hold."""
        if candidates not in self._firsts:
            sums = np.zeros(N_PARTITIONS + 1, np.uint64)
            np.cumsum(self._snapshot.counts(candidates), out=sums[1:])
            self._firsts[candidates] = sums
        sums = self._firsts[candidates]
        return int(sums[first]), int(sums[last + 1] - sums[first])

    def export_rows(self, first: int, last: int, part: slice) -> Rows:
        """Return a part of the rows of partitions [first, last], values as stored."""
        begin, _ = self._places(False, first, last)
        n = part.stop - part.start
        return Rows(*self._snapshot.rows(begin + part.start, n, self.n_threads))

    def export_candidates(self, first: int, last: int) -> Candidates:
        """Return the candidates of partitions [first, last]."""
        return Candidates(*self._snapshot.candidates(*self._places(True, first, last)))

    def bloom_read(self, partition: int) -> NDArray[np.uint8]:
        """Return the bytes of one sub-filter."""
        return self._snapshot.bloom(partition)


class SaveProgress(NamedTuple):
    """How far a save is, in bytes of data files; `fraction` goes from 0.0 to 1.0.

    Examples
    --------
    >>> import tempfile, embstore as es
    >>> handle = es.Table(dim=2).save_async(tempfile.mkdtemp())
    >>> _ = handle.wait()
    >>> handle.progress.fraction
    1.0
    """

    n_bytes: int
    n_bytes_total: int
    fraction: float


class SaveOptions(TypedDict, total=False):
    """Keyword arguments of every save; ``Table.save`` says what they mean."""

    delta: bool
    max_deltas: int
    keep_last: int
    io_share: float
    snapshot_bytes: int | None
    hmac_key: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveSettings:
    """The same, with defaults."""

    delta: bool = False
    max_deltas: int = 16
    keep_last: int = 1
    io_share: float = 1.0
    snapshot_bytes: int | None = None
    hmac_key: bytes | None = None

    @classmethod
    def of(cls, options: SaveOptions, where: str, tables: Iterable[TableBase]) -> Self:
        """Return the settings of a call; raise unless the tables can be saved so."""
        unknown = sorted(set(options) - {each.name for each in fields(cls)})
        if unknown:
            raise ArgumentTypeError(f"{where}: unknown arguments {unknown}")
        settings = cls(**options)
        check_int(where, "max_deltas", settings.max_deltas, 0, INT64_MAX)
        check_int(where, "keep_last", settings.keep_last, 1, INT64_MAX)
        check_optional_int(where, "snapshot_bytes", settings.snapshot_bytes, 0, INT64_MAX)
        if not 0.0 < check_float(where, "io_share", settings.io_share) <= 1.0:
            raise ArgumentError(f"{where}: io_share must be in (0, 1], got {settings.io_share!r}")
        if not isinstance(settings.delta, bool):
            raise ArgumentTypeError(
                f"{where}: delta must be True or False, got {shown(settings.delta)}"
            )
        silent = [table.name for table in tables if not table._spec.track_changes]
        if settings.delta and silent:
            raise ArgumentError(
                f"{where}: delta=True needs tables made with track_changes=True; without it are "
                f"{silent}"
            )
        return settings


@dataclass(slots=True)
class Save:
    """One save of some tables, by whichever thread runs it."""

    path: Path
    tables: Mapping[str, TableBase]
    extra: object
    store: dict[str, Any] | None
    settings: SaveSettings
    n_threads: int
    is_cut: threading.Event = field(default_factory=threading.Event)
    is_cancelled: bool = False
    progress: SaveProgress = field(default_factory=lambda: SaveProgress(0, 0, 0.0))
    _began: float = 0.0

    def run(self) -> "SaveReport":
        """Save, and let the tables know of it."""
        from embstore import checkpoint

        with saving(self.tables.values()), ExitStack() as snapshots:
            base = base_of(self.tables.values()) if self.settings.delta else None
            taken: dict[str, Snapshot] = {}

            def cut(is_delta: bool) -> dict[str, SnapshotView]:
                return self._cut(is_delta, taken, snapshots)

            report = checkpoint.save_tables(
                self.path,
                cut,
                self.extra,
                self.store,
                base=base,
                max_deltas=self.settings.max_deltas,
                keep_last=self.settings.keep_last,
                hmac_key=self.settings.hmac_key,
                pace=checkpoint.Pace(N_AHEAD if self.n_threads > 1 else 0, self._observe),
            )
            for name, table in self.tables.items():
                taken[name].end(True)
                table._note_saved(report.digest)
        self.progress = self.progress._replace(fraction=1.0)
        return report

    def _cut(
        self, is_delta: bool, taken: dict[str, "Snapshot"], snapshots: ExitStack
    ) -> dict[str, SnapshotView]:
        """Return the tables as of one moment; snapshots that are not saved end with the stack."""
        views = {}
        logs = [snapshots.enter_context(_log_file(self.path)) for _ in self.tables]
        with locked(self.tables.values()):
            for (name, table), log in zip(self.tables.items(), logs, strict=True):
                log_bytes = self.settings.snapshot_bytes
                if log_bytes is None:
                    log_bytes = int(LOG_SHARE * table.nbytes)
                snapshot = table._engine.snapshot(is_delta, log_bytes, log.fileno())
                snapshots.callback(snapshot.end, False)  # nothing, if it was saved
                taken[name] = snapshot
                views[name] = SnapshotView(table, snapshot, is_delta)
                table._begin_save()
        self.is_cut.set()
        for view in views.values():
            view.prepare(self.n_threads)
        n_bytes = sum(_bytes_of(view) for view in views.values())
        self.progress = SaveProgress(0, n_bytes, 0.0)
        self._began = time.perf_counter()
        return views

    def _observe(self, n_bytes: int) -> None:
        """Take note of a block that was written; wait as long as io_share asks."""
        total = max(self.progress.n_bytes_total, n_bytes)
        self.progress = SaveProgress(n_bytes, total, n_bytes / total)
        if self.is_cancelled:
            raise CancelledError(f"the save to {self.path} was cancelled; nothing was replaced")
        if self.settings.io_share < 1.0:
            worked = time.perf_counter() - self._began
            time.sleep(worked * (1.0 / self.settings.io_share - 1.0))
            self._began = time.perf_counter()


def _log_file(path: Path) -> IO[bytes]:
    """Return a file without a name on the disk of a directory."""
    try:
        return tempfile.TemporaryFile(dir=os.fspath(path))
    except OSError as error:
        raise CheckpointError(
            error.errno, f"cannot make a temporary file in {os.fspath(path)}: {error.strerror}"
        ) from error


def _bytes_of(view: SnapshotView) -> int:
    """Return about how many bytes a table will take in files."""
    slot_floats = sum(width for _, width in view.slots)
    row_bytes = view.dim * (4 if view.dtype == "float32" else 2) + 4 * slot_floats + 20
    n_rows, n_candidates = (int(view.partition_counts(kind).sum()) for kind in (False, True))
    return n_rows * row_bytes + n_candidates * 20 + N_PARTITIONS * view.bloom_bytes


def base_of(tables: Iterable[TableBase]) -> str:
    """Return the digest of the checkpoint that all change logs began with; "" if there is none."""
    digests = {table._base for table in tables}
    return (digests.pop() if len(digests) == 1 else None) or ""


@contextmanager
def saving(tables: Iterable[TableBase]) -> Iterator[None]:
    """Hold other saves of the same tables out."""
    with ExitStack() as held:
        for table in sorted(tables, key=id):  # one order, so that two saves cannot block each other
            held.enter_context(table._save_lock)
        yield


class SaveHandle:
    """A save that runs in a thread of its own, which the process does not end before.

    If it fails and nobody asks by `wait` or `exception`, an EmbstoreWarning says so when the
    handle goes.

    Examples
    --------
    >>> import tempfile, embstore as es
    >>> table = es.Table(dim=2)
    >>> _ = table.find_or_insert([5, 7], step=0)
    >>> handle = table.save_async(tempfile.mkdtemp())
    >>> _ = table.find_or_insert([9], step=1)  # the save does not see it
    >>> handle.wait().n_rows
    2
    """

    def __init__(self, save: Save, on_done: Callable[["SaveHandle"], object] | None) -> None:
        self._save = save
        self._on_done = on_done
        self._report: SaveReport | None = None
        self._error: BaseException | None = None
        self._is_told = True
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="embstore-save", daemon=False)

    def _start(self) -> None:
        """Begin, and return when the tables have been cut, or when that has failed."""
        self._thread.start()
        self._save.is_cut.wait()

    def _run(self) -> None:
        try:
            self._report = self._save.run()
        except BaseException as error:  # any: it is raised again where the save is waited for
            self._error, self._is_told = error, False
        finally:
            self._done.set()
            self._save.is_cut.set()
        if self._on_done is not None:
            self._on_done(self)

    @property
    def progress(self) -> SaveProgress:
        """How far the save is."""
        return self._save.progress

    def done(self) -> bool:
        """Return whether the save has ended, well or not."""
        return self._done.is_set()

    def wait(self, timeout: float | None = None) -> "SaveReport":
        """Wait until the save has ended; return its report, or raise what it failed with.

        Parameters
        ----------
        timeout
            Seconds; None waits as long as it takes.

        Raises
        ------
        TimeoutError
            If the save goes on after `timeout` seconds.
        CheckpointError
            As `Table.save`; the checkpoint before remains.
        CancelledError
            If `cancel` ended it.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        assert self._report is not None
        return self._report

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait until the save has ended; return what it failed with, or None.

        Raises
        ------
        TimeoutError
            If the save goes on after `timeout` seconds.
        """
        if not self._done.wait(timeout):
            raise TimeoutError(f"the save to {self._save.path} goes on after {timeout} s")
        self._is_told = True
        return self._error

    def cancel(self) -> None:
        """Ask the save to end without replacing anything; `wait` then raises CancelledError.

        It may be too late: a save that has written its last block succeeds.
        """
        self._save.is_cancelled = True

    def __del__(self) -> None:
        if not self._is_told:
            warnings.warn(
                f"a save to {self._save.path} failed and nobody asked: {self._error}",
                EmbstoreWarning,
                stacklevel=2,
            )

    def __repr__(self) -> str:
        state = f"{self.progress.fraction:.0%}" if not self.done() else "done"
        state = "failed" if self._error is not None else state
        return f"<embstore.SaveHandle to {self._save.path}: {state}>"


def save(
    path: Path,
    tables: Mapping[str, TableBase],
    extra: object,
    store: dict[str, Any] | None,
    options: SaveOptions,
    where: str,
) -> "SaveReport":
    """Write all `tables` as of one moment, on all threads."""
    settings = SaveSettings.of(options, where, tables.values())
    return Save(path, tables, extra, store, settings, num_threads()).run()


def save_async(
    path: Path,
    tables: Mapping[str, TableBase],
    extra: object,
    store: dict[str, Any] | None,
    options: SaveOptions,
    on_done: Callable[[SaveHandle], object] | None,
    where: str,
) -> SaveHandle:
    """Write all `tables` as of now, by one thread that goes on when this returns."""
    settings = SaveSettings.of(options, where, tables.values())
    handle = SaveHandle(Save(path, tables, extra, store, settings, n_threads=1), on_done)
    handle._start()
    return handle


class TableSaving(TableUpkeep):
    """Saving: save, save_async."""

    def save(
        self, path: Path, extra: Any = None, evict: bool = False, **options: Unpack[SaveOptions]
    ) -> "SaveReport":
        """Write a checkpoint: all rows, pending counts, pins and clocks, as of one moment.

        Other threads may go on training: they see no pause but for the cut. A checkpoint that is
        there is replaced in one step, at the end.

        Parameters
        ----------
        path
            A directory, made if need be.
        extra
            A dict of what JSON can hold, and of numpy arrays; ``Store.load`` gives it back.
        evict
            Run the table's eviction policy first.
        delta : bool, default False
            Write only what changed since the checkpoint that is there, if this table was saved to
            it or loaded from it last; otherwise, and now and then (see `max_deltas`), all of it.
            The table must have been made with ``track_changes=True``.
        max_deltas : int, default 16
            Deltas on top of a full checkpoint, after which a full one is due; one is due earlier
            if the deltas take more bytes than it.
        keep_last : int, default 1
            How many saves the directory keeps: ``Table.load(path, generation=...)``.
        io_share : float, default 1.0
            The share of the time that the save may work, in (0, 1]; it rests for the remainder.
        snapshot_bytes : int, default 0.1 of the table's bytes
            Memory for rows that are trained before they are saved; beyond it they go to a
            temporary file in `path`.
        hmac_key : bytes, optional
            A secret to sign the checkpoint with: see ``Table.load(hmac_key=...)``.

        Returns
        -------
        SaveReport

        Raises
        ------
        CheckpointError
            If the files cannot be written; what was there before stays good.
        """
        if evict:
            self.evict()
        return save(path, {self.name: self}, extra, None, options, "Table.save")

    def save_async(
        self,
        path: Path,
        extra: Any = None,
        evict: bool = False,
        *,
        on_done: Callable[[SaveHandle], object] | None = None,
        **options: Unpack[SaveOptions],
    ) -> SaveHandle:
        """Write a checkpoint of the table as it is now, while training goes on.

        Returns when the table has been cut: what is written from then on is not in it. A save of
        the same table that runs is waited for first.

        Parameters
        ----------
        path, extra, evict, **options
            As for `save`.
        on_done
            Called with the handle in the save's thread when the save has ended, well or not.

        Returns
        -------
        SaveHandle
            Its `wait` returns the SaveReport or raises the error.
        """
        if evict:
            self.evict()
        where = "Table.save_async"
        return save_async(path, {self.name: self}, extra, None, options, on_done, where)
