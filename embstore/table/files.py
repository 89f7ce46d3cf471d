"""How tables go into a checkpoint and come out of it; the format is the checkpoint room's."""

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from embstore.engines.spec import TableSpec
from embstore.engines.types import Candidates, Rows
from embstore.errors import ArgumentError, CheckpointMismatchError, EmbstoreError
from embstore.policies.optimizer import Optimizer, Slots
from embstore.table.base import EvictionSink, TableBase, locked
from embstore.table.upkeep import TableUpkeep

if TYPE_CHECKING:
    from embstore.checkpoint import LoadedTable

Path = str | PathLike[str]


class TableView:
    """What a checkpoint reads of a table whose writers are held out."""

    def __init__(self, table: TableBase) -> None:
        self._engine = table._engine
        self.config: dict[str, Any] = table._spec.to_config()
        self.dim: int = table.dim
        self.dtype: str = table.dtype
        self.slots: Slots = table.slots
        self.pins: NDArray[np.int64] = table._pins

    def get_state(self) -> dict[str, Any]:
        """Return the clocks and totals."""
        return self._engine.get_state()

    def partition_counts(self, candidates: bool) -> NDArray[np.uint64]:
        """Return the rows (or candidates) of each partition."""
        return self._engine.partition_counts(candidates)

    def export_rows(self, first: int, last: int) -> Rows:
        """Return the rows of partitions [first, last], values as stored."""
        return self._engine.export_rows(first, last)

    def export_candidates(self, first: int, last: int) -> Candidates:
        """Return the candidates of partitions [first, last]."""
        return self._engine.export_candidates(first, last)

    def bloom_read(self, partition: int) -> NDArray[np.uint8]:
        """Return the bytes of one sub-filter."""
        return self._engine.bloom_read(partition)


def save_tables(
    path: Path, tables: Mapping[str, TableBase], extra: object, store: dict[str, Any] | None
) -> None:
    """Write all `tables` as of one moment: their writers wait meanwhile."""
    from embstore import checkpoint

    with locked(tables.values()):
        views = {name: TableView(table) for name, table in tables.items()}
        checkpoint.save_tables(path, views, extra=extra, store=store)


def loaded_spec(loaded: "LoadedTable", optimizer: Optimizer | None, where: str) -> TableSpec:
    """Return the spec of a saved table, with the learning rate of `optimizer` if it is given.

    Raises
    ------
    CheckpointMismatchError
        If the saved parameters are not understood, or `optimizer` is not the saved one but for
        its learning rate.
    """
    config = dict(loaded.config)
    if optimizer is not None:
        given, saved = optimizer.to_config(), config.get("optimizer") or {"kind": None}
        if given | {"lr": None} != saved | {"lr": None}:
            raise CheckpointMismatchError(
                f"{where}: the table was saved with optimizer {saved}; the optimizer given may "
                f"differ in lr alone, got {given}"
            )
        config["optimizer"] = given
    try:
        spec = TableSpec.from_config(config)
    except CheckpointMismatchError:
        raise
    except EmbstoreError as error:
        raise CheckpointMismatchError(f"{where}: {error}") from error
    loaded.check_fits(spec.dim, spec.dtype, spec.slots, on_what=where)
    return spec


def restore(table: TableBase, loaded: "LoadedTable", allow_nonfinite: bool) -> None:
    """Fill an empty table; close it if that fails."""
    try:
        loaded.restore(table._engine, allow_nonfinite=allow_nonfinite)
        table._engine.set_pins(loaded.pins)
        table._pins = loaded.pins
    except BaseException:
        table.close()
        raise


class TableFiles(TableUpkeep):
    """Files: save, load."""

    def save(self, path: Path, extra: Any = None, evict: bool = False) -> None:
        """Write a checkpoint: all rows, pending counts, pins and clocks, as of one moment.

        Writers wait meanwhile. A checkpoint that is there is replaced in one step, at the end.

        Parameters
        ----------
        path
            A directory, made if need be.
        extra
            A dict of what JSON can hold, and of numpy arrays; ``Store.load`` gives it back.
        evict
            Run the table's eviction policy first.

        Raises
        ------
        CheckpointError
            If the files cannot be written; what was there before stays good.
        """
        if evict:
            self.evict()
        save_tables(path, {self.name: self}, extra, store=None)

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        name: str | None = None,
        device: str = "cpu",
        hash_seed: int | None = None,
        optimizer: Optimizer | None = None,
        on_evict: EvictionSink | None = None,
        verify: str = "full",
        allow_nonfinite: bool = False,
    ) -> Self:
        """Return a new table from a checkpoint; training it goes on as if it had never stopped.

        Parameters
        ----------
        path
            The directory that `save` wrote.
        name
            Which table, if there are several.
        device, hash_seed, on_evict
            As for `Table`.
        optimizer
            The saved optimizer with another learning rate; needed where that was a schedule,
            which is not saved. (Setting `lr` does the same.)
        verify
            "full" reads and checks everything; a table is returned only if all of it is sound.
        allow_nonfinite
            Take rows with NaN or infinity, which are an error otherwise, but for tables made with
            ``on_nonfinite="allow"``.

        Raises
        ------
        CorruptCheckpointError
            If a file is damaged.
        CheckpointMismatchError
            If the checkpoint is sound but not what was asked for.
        CheckpointError
            If it cannot be read.
        """
        from embstore import checkpoint

        names = None if name is None else [name]
        with checkpoint.load_tables(path, names=names, verify=verify) as loaded:
            if len(loaded.tables) != 1:
                raise ArgumentError(
                    f"Table.load: name is needed, since {loaded.path} holds {list(loaded.tables)}"
                )
            ((found, saved),) = loaded.tables.items()
            spec = loaded_spec(saved, optimizer, f"{loaded.path}: table {found!r}")
            table = cls._of_spec(spec, device, hash_seed, on_evict, "Table.load")
            if optimizer is not None:
                table.lr = optimizer.lr
            restore(table, saved, allow_nonfinite)
        return table
