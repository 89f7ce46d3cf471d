"""save_tables: a checkpoint of several tables, as of one moment, whole or as a delta."""

import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Self

from embstore.checkpoint import commit
from embstore.checkpoint.commit import History, Stored
from embstore.checkpoint.fsio import Directory
from embstore.checkpoint.manifest import is_signed
from embstore.checkpoint.output import AS_IT_COMES, FileWriter, Pace
from embstore.checkpoint.paths import Path, path_of
from embstore.checkpoint.signing import checked_key
from embstore.checkpoint.writer import Beside, DataWriter, Views
from embstore.errors import ArgumentError, CheckpointError, EmbstoreWarning

Cut = Callable[[bool], Views]
OnSaved = Callable[[str], object]


class SaveReport(NamedTuple):
    """What a save wrote.

    Attributes
    ----------
    kind : str
        "full" or "delta".
    reason : str
        Why a delta was not written though one was asked for; else "".
    generation : int
        The number of the save.
    digest : str
        The SHA-256 of the new manifest, in hexadecimal: the `base` of the next delta.
    n_rows, n_deleted : int
        Rows and removed keys written.
    n_bytes : int
        Bytes written, of data files and manifest.
    n_deltas : int
        Deltas on top of the last full save, this one included.
    seconds : float

    Examples
    --------
    >>> import tempfile, embstore as es
    >>> table, folder = es.Table(dim=2, track_changes=True), tempfile.mkdtemp()
    >>> for step in range(2):
    ...     _ = table.find_or_insert([step], step=step)
    ...     report = table.save(folder, delta=True)
    ...     report.kind, report.n_rows, report.reason
    ('full', 1, 'the directory has no checkpoint')
    ('delta', 1, '')
    """

    kind: str
    reason: str
    generation: int
    digest: str
    n_rows: int
    n_deleted: int
    n_bytes: int
    n_deltas: int
    seconds: float


class CommitOptions(NamedTuple):
    """How a checkpoint is written, full or not."""

    keep_last: int
    hmac_key: bytes | None
    pace: Pace = AS_IT_COMES
    on_saved: OnSaved | None = None

    @classmethod
    def of(
        cls,
        keep_last: object,
        hmac_key: object,
        pace: Pace = AS_IT_COMES,
        on_saved: OnSaved | None = None,
    ) -> Self:
        """Return what a caller gives; raise ArgumentError if it cannot be."""
        return cls(check_count("keep_last", keep_last, 1), checked_key(hmac_key), pace, on_saved)


def save_tables(
    path: Path,
    cut: Views | Cut,
    extra: Any = None,
    store: Mapping[str, Any] | None = None,
    *,
    base: str | None = None,
    max_deltas: int = 16,
    keep_last: int = 1,
    hmac_key: bytes | None = None,
    pace: Pace = AS_IT_COMES,
    on_saved: OnSaved | None = None,
) -> SaveReport:
    """Write a checkpoint of tables into a directory, replacing the one that is there at the end.

    The same content gives the same bytes, whatever the engine, its threads and its hash_seed.
    With `base` a delta is written: what changed since the checkpoint there. A full one is written
    instead if the checkpoint there is another, if it has `max_deltas` deltas already, or if these
    take more bytes than the full one under them.

    Parameters
    ----------
    path
        A directory, made if need be.
    cut
        The tables by name, whole, to which nobody writes until this returns; or a function that is
        called once, when all that can be known beforehand is known, with whether a delta will be
        written, and returns them: as `DeltaView` for a delta.
    extra
        By name, JSON values (None, bools, ints, finite floats, strings, lists, dicts with string
        keys) and numpy arrays of bools, ints and floats.
    store
        The parameters of the Store, as JSON; None for a table alone.
    base
        The digest of the checkpoint that changes are counted from; None for a full save.
    max_deltas
        Deltas that may lie on top of a full save.
    keep_last
        How many generations stay loadable, the new one included.
    hmac_key
        A secret to sign the checkpoint with, so that whoever loads it with the key knows it to be
        of someone who has it. A delta is then written only to what is signed with the same key.
    pace
        How blocks are exported, and who is told of those that are written.
    on_saved
        Called with the digest once the new checkpoint is the directory's; what comes after that, a
        warning above all, may still raise.

    Returns
    -------
    SaveReport

    Raises
    ------
    ArgumentTypeError
        If `extra` holds something else; nothing was written.
    CheckpointError
        If another save to the directory is running, or the disk fails. The checkpoint before
        remains; ``errno`` tells what the system said.
    CorruptCheckpointError, CheckpointMismatchError
        If the directory's manifest is damaged, foreign, or of a later version: it is left alone.
        CheckpointMismatchError too if the tables of a delta are not those of its base.

    Warns
    -----
    EmbstoreWarning
        If rows have NaN or infinity; they are saved. If a kept generation cannot be read.
    """
    begin = time.perf_counter()
    check_count("max_deltas", max_deltas, 0)
    options = CommitOptions.of(keep_last, hmac_key, pace, on_saved)
    beside = Beside.of(extra, store)
    take = cut if callable(cut) else _whole(cut, base)
    with Directory(path_of(path), create=True) as directory, directory.locked():
        history = commit.read_history(directory)
        reason = _reason_for_full(history.newest, base, max_deltas, options)
        report = save_after(directory, history, take, beside, reason, options)
    return report._replace(seconds=time.perf_counter() - begin)


def check_count(name: str, value: object, least: int) -> int:
    """Return `value`, which must be an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"{name} must be an integer of at least {least}, got {value!r}")
    return value


def _whole(tables: Views, base: str | None) -> Cut:
    if base is not None:
        raise ArgumentError("base is given, so that the tables must be a function of is_delta")
    return lambda is_delta: tables


def _reason_for_full(
    newest: Stored | None, base: str | None, max_deltas: int, options: CommitOptions
) -> str | None:
    """Return why a full save is due, "" if that is what was asked for; None for a delta."""
    if base is None:
        return ""
    if newest is None:
        return "the directory has no checkpoint"
    before, key = newest.manifest, options.hmac_key
    reasons = {
        "the directory's checkpoint is not the base": before.digest != base,
        "the base is not signed with the key": not (key is None or is_signed(newest.data, key)),
        "the base has no tables": not before.tables,
        f"{before.n_deltas} deltas already": before.n_deltas >= max_deltas,
        "deltas outgrew their base": before.layer_bytes(True) > before.layer_bytes(False),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def save_after(
    directory: Directory,
    history: History,
    cut: Cut,
    beside: Beside,
    reason: str | None,
    options: CommitOptions,
) -> SaveReport:
    """Write the generation after those of `history` into a locked directory.

    It is a delta if no `reason` for a full save is given. The report has no seconds.
    """
    commit.remove_leftovers(directory, history)
    base = history.manifest if reason is None else None
    has_key = options.hmac_key is not None
    files = FileWriter(directory, history.next_generation, has_key, options.pace)
    save = DataWriter(files, base)
    try:
        manifest = save.write(cut(save.is_delta), beside)
        if options.keep_last > 1:
            commit.keep_newest(directory, history)
        stored = commit.prepare(directory, manifest, options.hmac_key)
    except BaseException:
        with suppress(CheckpointError):  # what remains is removed by the next save
            commit.remove_leftovers(directory, history)
        raise
    commit.publish(directory)
    if options.on_saved is not None:
        options.on_saved(stored.manifest.digest)
    n_threads = 2 if options.pace.n_ahead else 1
    commit.remove_replaced(directory, history, manifest, options.keep_last, n_threads)
    layers = [manifest.layers(index)[-1] for index in range(len(manifest.tables))]
    for table, layer in zip(manifest.tables, layers, strict=True):
        _warn_of_nonfinite(table.name, layer.n_nonfinite_rows)
    return SaveReport(
        kind="delta" if save.is_delta else "full",
        reason=reason or "",
        generation=files.generation,
        digest=stored.manifest.digest,
        n_rows=sum(layer.n_rows for layer in layers),
        n_deleted=sum(layer.n_deleted for layer in layers),
        n_bytes=files.n_bytes + len(stored.data),
        n_deltas=manifest.n_deltas,
        seconds=0.0,
    )


def _warn_of_nonfinite(name: str, n_rows: int) -> None:
    if n_rows:
        warnings.warn(
            f"table {name!r}: {n_rows} of the saved rows have NaN or infinity; loading them must "
            f"be allowed expressly",
            EmbstoreWarning,
            stacklevel=5,
        )
