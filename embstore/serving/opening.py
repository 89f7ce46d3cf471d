"""open and open_store: a checkpoint as tables that answer at once."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from os import PathLike
from typing import Literal

from embstore import Store, Table
from embstore.checkpoint import MappedCheckpoint, map_tables
from embstore.errors import ArgumentError, CheckpointMismatchError, EmbstoreError
from embstore.serving.indexing import IndexJob, start
from embstore.serving.store import ServingStore
from embstore.serving.table import ServingTable, empty_table

Path = str | PathLike[str]
Verify = Literal["lazy", "full"]
Index = Literal["background", "none"]


def open(
    path: Path,
    *,
    name: str | None = None,
    verify: Verify = "lazy",
    index: Index = "background",
    generation: int | None = None,
    allow_nonfinite: bool = False,
    device: str = "cpu",
    hbm_bytes: int | None = None,
) -> ServingTable:
    """Open a table of a checkpoint for reading; docs/serving.md tells more.

    Parameters
    ----------
    path
        The directory that a save wrote. Nothing is written there, and no lock is taken.
    name
        Which table, if there are several.
    verify
        "lazy" checks the manifest and the sizes of files now, each block at its first touch. "full"
        reads and checks all rows before it returns.
    index
        "background" builds a `Table` behind, and then answers by it. "none" goes on searching the
        files, whose memory is the page cache.
    generation
        An older save that the directory keeps; the newest by default.
    allow_nonfinite
        Take a table that had NaN or infinity when it was saved; an error otherwise, but for
        tables made with ``on_nonfinite="allow"``.
    device, hbm_bytes
        Of the table that is built behind, as for `Table`.

    Raises
    ------
    CheckpointError
        If there is no checkpoint, or it cannot be read.
    CorruptCheckpointError
        If the manifest is damaged, a file is missing or has another size; with "full", if a byte
        is not what was saved.
    CheckpointMismatchError
        If it is sound, and cannot be what was asked for.
    DeviceError
        If there is no such card.
    """
    where = "serving.open"
    _check_choices(where, verify, index)
    opened = map_tables(path, None if name is None else [name], generation)
    if len(opened.tables) != 1:
        raise ArgumentError(
            f"{where}: name is needed, since {opened.path} holds {list(opened.tables)}"
        )
    (table,) = _serve(opened, verify, index, allow_nonfinite, (device, hbm_bytes))[0].values()
    return table


def open_store(
    path: Path,
    *,
    tables: Iterable[str] | None = None,
    verify: Verify = "lazy",
    index: Index = "background",
    generation: int | None = None,
    allow_nonfinite: bool = False,
    device: str = "cpu",
    hbm_bytes: int | None = None,
) -> ServingStore:
    """Open all tables of a checkpoint for reading, as `open` does one.

    Parameters
    ----------
    tables
        Names of the tables to open; all by default. Features of the others are left out.
    path, verify, index, generation, allow_nonfinite, device, hbm_bytes
        As for `open`. Indexes are built one after another.
    """
    _check_choices("serving.open_store", verify, index)
    opened = map_tables(path, tables, generation)
    served, empties = _serve(opened, verify, index, allow_nonfinite, (device, hbm_bytes))
    features = (opened.store or {}).get("features")
    if isinstance(features, Mapping) and tables is not None:
        features = {feature: name for feature, name in features.items() if name in served}
    try:
        return ServingStore(served, Store(empties, features))
    except EmbstoreError as error:
        for table in served.values():
            table.close()
        raise CheckpointMismatchError(f"{opened.path}: {error}") from error


def _check_choices(where: str, verify: object, index: object) -> None:
    asked = (("verify", verify, ("lazy", "full")), ("index", index, ("background", "none")))
    for what, given, choices in asked:
        if not isinstance(given, str) or given not in choices:
            raise ArgumentError(f"{where}: {what} must be one of {choices}, got {given!r}")


def _serve(
    opened: MappedCheckpoint,
    verify: str,
    index: str,
    allow_nonfinite: bool,
    place: tuple[str, int | None],
) -> tuple[dict[str, ServingTable], dict[str, Table]]:
    """Return the tables of an open checkpoint, and an empty one for each."""
    device, hbm_bytes = place
    Table(1, device=device, hbm_bytes=hbm_bytes).close()  # an error of the place, not of the files
    empties: dict[str, Table] = {}
    jobs: dict[str, IndexJob] = {}
    with ExitStack() as undo:
        for name, source in opened.tables.items():
            source.check_finite(allow_nonfinite)
            empties[name] = undo.enter_context(empty_table(source, place))
            if index == "background":
                jobs[name] = IndexJob(source, place, allow_nonfinite)
            if verify == "full":
                source.verify()
        undo.pop_all()
    if jobs:
        start([*jobs.values()])
    tables = {
        name: ServingTable(source, empties[name], jobs.get(name))
        for name, source in opened.tables.items()
    }
    return tables, empties
