"""How a table comes out of a checkpoint; the format is the checkpoint room's."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Self

from embstore import engines
from embstore.engines.spec import Dtype, OnFull
from embstore.engines.threads import num_threads
from embstore.errors import ArgumentError
from embstore.policies.admission import Admission
from embstore.policies.eviction import Eviction
from embstore.table.base import EvictionSink
from embstore.table.save import Path
from embstore.table.saving import TableSaving

if TYPE_CHECKING:
    from embstore.checkpoint import TableSource
    from embstore.table.convert import LoadOptimizer, LoadSlots

Saved = Literal["saved"]
Bound = int | Saved | None
LoadAdmission = Admission | Saved | None
LoadEviction = Eviction | Saved | None


class TableFiles(TableSaving):
    """Files: save, save_async, load, restore, from_source."""

    @classmethod
    def load(
        cls,
        path: Path | Sequence[Path],
        *,
        name: str | None = None,
        device: str = "cpu",
        hbm_bytes: int | None = None,
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
        generation: int | None = None,
        hmac_key: bytes | None = None,
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
        device, hbm_bytes, hash_seed, on_evict
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
            (To read a checkpoint without loading it: `embstore.serving`.)
        generation
            An older save that the directory keeps (``save(keep_last=...)``); the newest by default.
        hmac_key
            The key that the checkpoint must have been signed with (``save(hmac_key=...)``).
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
        place = engines.check_place(device, hbm_bytes, where)
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
        names = None if name is None else [name]
        with checkpoint.OpenShards(
            path, names, verify, generation, hmac_key, num_threads()
        ) as opened:
            if len(opened.tables) != 1:
                raise ArgumentError(
                    f"{where}: name is needed, since {opened.place} holds {list(opened.tables)}"
                )
            (source,) = opened.tables.values()
            plan = plan_load(source, asked, part, place, allow_nonfinite, where)
            table = cls._of_spec(plan.spec, place, hash_seed, on_evict, where)
            restore(table, plan)
        return table

    def restore(
        self,
        path: Path | Sequence[Path],
        *,
        name: str | None = None,
        verify: str = "full",
        generation: int | None = None,
        hmac_key: bytes | None = None,
        allow_nonfinite: bool = False,
    ) -> None:
        """Replace the content of this table, in place, by that of a checkpoint.

        The table becomes what `load` returns, parameters included; device, hbm_bytes, hash_seed,
        on_evict and strict stay, and so does a learning rate that is a schedule, where the
        checkpoint has none. Both contents are in memory at once. Readers see one or the other,
        whole; batches of before raise TicketError when they are applied; a save that runs is waited
        for. After an error the table is as it was.

        Parameters
        ----------
        path, verify, generation, hmac_key, allow_nonfinite
            As for `load`.
        name
            Which table, if there are several; that of this name by default.

        Raises
        ------
        CheckpointMismatchError
            If name, dim or dtype are not those of this table.
        CorruptCheckpointError, CheckpointError
            As for `load`.
        ArgumentError
            If a CUDA graph holds calls of this table.
        """
        from embstore import checkpoint
        from embstore.table.restoring import restore_in_place

        names = None if name is None else [name]
        with checkpoint.OpenShards(
            path, names, verify, generation, hmac_key, num_threads()
        ) as opened:
            sources = opened.tables
            if len(sources) > 1 and self.name in sources:
                sources = {self.name: sources[self.name]}
            if len(sources) != 1:
                raise ArgumentError(
                    f"Table.restore: name is needed, since {opened.place} holds {list(sources)}"
                )
            restore_in_place([self], [*sources.values()], allow_nonfinite, "Table.restore")

    @classmethod
    def from_source(
        cls,
        source: "TableSource",
        *,
        device: str = "cpu",
        hbm_bytes: int | None = None,
        hash_seed: int | None = None,
        allow_nonfinite: bool = False,
    ) -> Self:
        """Return a new table with all that a source of the checkpoint room yields.

        It grows as rows come in. What the source raises comes out, and the rows are given back.

        Parameters
        ----------
        source
            An `embstore.checkpoint.TableSource`.
        device, hbm_bytes, hash_seed
            As for `Table`.
        allow_nonfinite
            As in `load`.

        Raises
        ------
        CheckpointMismatchError
            If the source cannot be a table.
        """
        from embstore.table.convert import Conversion
        from embstore.table.loading import plan_load, restore

        where = "Table.from_source"
        place = engines.check_place(device, hbm_bytes, where)
        plan = plan_load(source, Conversion(), None, place, allow_nonfinite, where)
        plan = plan._replace(n_reserved=0)
        table = cls._of_spec(plan.spec, place, hash_seed, None, where)
        restore(table, plan)
        return table
