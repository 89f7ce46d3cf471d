"""Saving a table: save, save_async, and the handle of a save that goes on."""

import threading
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from embstore.engines.threads import num_threads
from embstore.errors import CancelledError, EmbstoreWarning
from embstore.table.base import TableBase
from embstore.table.save import Path, Save, SaveOptions, SaveProgress, SaveSettings
from embstore.table.upkeep import TableUpkeep

if TYPE_CHECKING:
    from embstore.checkpoint import SaveReport


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
            self._error = error
            self._is_told = isinstance(error, CancelledError) and self._save.cancelled.is_set()
        finally:
            self._save.release()
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
        self._save.cancelled.set()

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
    """Write all `tables` as of one moment, on all threads.

    A thread of its own does it, to which no KeyboardInterrupt comes: one cancels the save, and
    waits for it; after another the save ends by itself.
    """
    settings = SaveSettings.of(options, where, tables.values())
    handle = SaveHandle(Save(path, tables, extra, store, settings, num_threads()), None)
    try:
        handle._thread.start()
        handle._thread.join()
    except BaseException:
        handle.cancel()
        if handle._thread.ident is not None:
            handle._thread.join()
        raise
    return handle.wait()


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
    own = _with_own_arrays(extra)
    handle = SaveHandle(Save(path, tables, own, store, settings, n_threads=1), on_done)
    handle._start()
    return handle


def _with_own_arrays(extra: object) -> object:
    """Return `extra` with copies of its arrays: those go on being trained."""
    if not isinstance(extra, Mapping):
        return extra
    return {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in extra.items()}


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
            As for `save`. The arrays of `extra` are copied.
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
