"""How tables go into a checkpoint and come out of it; the format is the checkpoint room's."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from embstore.engines.spec import Dtype, OnFull
from embstore.engines.types import Candidates, Rows
from embstore.errors import ArgumentError
from embstore.policies.admission import Admission
from embstore.policies.eviction import Eviction
from embstore.policies.optimizer import Slots
from embstore.table.base import EvictionSink, TableBase, locked
from embstore.table.upkeep import TableUpkeep

if TYPE_CHECKING:
    from embstore.table.convert import LoadOptimizer, LoadSlots

Path = str | PathLike[str]
Saved = Literal["saved"]
Bound = int | Saved | None
LoadAdmission = Admission | Saved | None
LoadEviction = Eviction | Saved | None


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
        path: Path | Sequence[Path],
        *,
        name: str | None = None,
        device: str = "cpu",
        hash_seed: int | None = None,
        optimizer: "LoadOptimizer" = None,
        slots: "LoadSlots" = None,
        dtype: Dtype | None = None,
        max_rows: Bound = "saved",
        max_bytes: Bound = "saved",
        on_full: OnFull | Saved = "saved",
        admission: LoadAdmission = "saved",
        eviction: LoadEviction = "saved",
        evict_every: Bound = "saved",
        shard: tuple[int, int] | None = None,
        on_evict: EvictionSink | None = None,
        verify: str = "full",
        allow_nonfinite: bool = False,
    ) -> Self:
        """Return a new table from a checkpoint; training it goes on as if it had never stopped.

        docs/checkpoints.md says what each conversion keeps.

        Parameters
        ----------
        path
            The directory that `save` wrote, or those of the shards of one table, to be merged.
        name
            Which table, if there are several.
        device, hash_seed, on_evict
            As for `Table`.
        optimizer
            None or "keep" takes the saved one. "reset" takes it with its state as at birth. An
            optimizer replaces it; it is needed where the learning rate was a schedule, which is
            not saved. (Setting `lr` does the same.)
        slots
            What becomes of the state under an optimizer that differs in more than lr: "reset",
            "keep" (slots of the same name and width; others as at birth), or a dict from its
            slots to saved ones of the same width.
        dtype
            Another dtype; values are rounded to nearest even.
        max_rows, max_bytes, on_full, admission, eviction, evict_every
            As for `Table`; "saved" takes what was saved.
        shard
            (i, n) takes the keys that shard i of n owns, with their pins and pending counts.
        verify
            "full" reads and checks everything; a table is returned only if all of it is sound.
        allow_nonfinite
            Take rows with NaN or infinity, which are an error otherwise, but for tables made with
            ``on_nonfinite="allow"``; and values that another dtype makes infinite.

        Raises
        ------
        CorruptCheckpointError
            If a file is damaged, or a key is in two shards.
        CheckpointMismatchError
            If the checkpoint is sound but cannot be what was asked for.
        CheckpointError
            If it cannot be read.

        Warns
        -----
        EmbstoreWarning
            If pending counts were dropped, for which the new admission policy has no place.
        """
        from embstore import checkpoint
        from embstore.table.convert import Conversion
        from embstore.table.loading import plan_load, restore

        where = "Table.load"
        part = None if shard is None else checkpoint.check_shard(where, shard)
        asked = Conversion(
            optimizer=optimizer,
            slots=slots,
            dtype=dtype,
            max_rows=max_rows,
            max_bytes=max_bytes,
            on_full=on_full,
            admission=admission,
            eviction=eviction,
            evict_every=evict_every,
        )
        with checkpoint.OpenShards(path, None if name is None else [name], verify) as opened:
            if len(opened.tables) != 1:
                raise ArgumentError(
                    f"{where}: name is needed, since {opened.place} holds {list(opened.tables)}"
                )
            (source,) = opened.tables.values()
            plan = plan_load(source, asked, part, device, allow_nonfinite, where)
            table = cls._of_spec(plan.spec, device, hash_seed, on_evict, where)
            restore(table, plan)
        return table
