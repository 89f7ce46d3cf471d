"""One save: some tables as of one moment go into a checkpoint, while others train them.

1. All tables are cut while their locks are held together; after that nobody waits for the save.
2. A table is saved by one save at a time; the next waits.
3. A save that fails leaves tables and change logs as they are, and the checkpoint before.
"""

import os
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypedDict

from embstore.engines.spec import N_PARTITIONS
from embstore.errors import ArgumentError, ArgumentTypeError, CancelledError, CheckpointError
from embstore.policies._check import (
    INT64_MAX,
    check_float,
    check_int,
    check_optional_int,
    shown,
)
from embstore.table.base import TableBase, locked
from embstore.table.snapshot import SnapshotView

if TYPE_CHECKING:
    from embstore.checkpoint import SaveReport
    from embstore.engines.engine import Snapshot

Path = str | PathLike[str]

LOG_SHARE = 0.1  # of a table's bytes, by default
N_AHEAD = 4  # blocks of a save that nobody trains beside


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
    cancelled: threading.Event = field(default_factory=threading.Event)
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

            def tell(digest: str) -> None:
                for name, table in self.tables.items():
                    taken[name].end(True)
                    table._note_saved(digest)

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
                on_saved=tell,
            )
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
                snapshot = table._engine.snapshot(is_delta, log_bytes, log)
                snapshots.callback(snapshot.end, False)  # nothing, if it was saved
                taken[name] = snapshot
                views[name] = SnapshotView(table, snapshot, is_delta)
                table._begin_save()
        self.is_cut.set()
        for view in views.values():
            view.prepare(self.n_threads, is_beside_training=self.n_threads == 1)
        n_bytes = sum(_bytes_of(view) for view in views.values())
        self.progress = SaveProgress(0, n_bytes, 0.0)
        self._began = time.perf_counter()
        return views

    def _observe(self, n_bytes: int) -> None:
        """Take note of a block that was written; wait as long as io_share asks."""
        total = max(self.progress.n_bytes_total, n_bytes)
        self.progress = SaveProgress(n_bytes, total, n_bytes / total)
        if self.settings.io_share < 1.0:
            worked = time.perf_counter() - self._began
            rest = worked / self.settings.io_share - worked
            self.cancelled.wait(min(rest, threading.TIMEOUT_MAX))
            self._began = time.perf_counter()
        if self.cancelled.is_set():
            raise CancelledError(f"the save to {self.path} was cancelled; nothing was replaced")

    def release(self) -> None:
        """Let go of the tables and of what was saved beside them."""
        self.tables, self.extra = {}, None


@contextmanager
def _log_file(path: Path) -> Iterator[int]:
    """Give the descriptor of a file without a name on the disk of a directory."""
    try:
        file = tempfile.TemporaryFile(dir=os.fspath(path))  # noqa: SIM115 (closed below)
    except OSError as error:
        raise CheckpointError(
            error.errno, f"cannot make a temporary file in {os.fspath(path)}: {error.strerror}"
        ) from error
    try:
        yield file.fileno()
    finally:
        with suppress(OSError):  # what was in it is of no use any more
            file.close()


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
