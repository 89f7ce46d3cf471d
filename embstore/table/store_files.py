"""How the tables of a store go into one checkpoint, and come out of it; as of one moment."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

from embstore import engines
from embstore.engines import arrays
from embstore.engines.spec import Dtype, OnFull
from embstore.engines.threads import num_threads
from embstore.engines.types import EvictReport
from embstore.errors import CheckpointMismatchError, EmbstoreError
from embstore.table import saving
from embstore.table.base import EvictionSink
from embstore.table.files import Bound, LoadAdmission, LoadEviction, Saved
from embstore.table.save import Path, SaveOptions
from embstore.table.table import Table

if TYPE_CHECKING:
    from embstore.checkpoint import SaveReport
    from embstore.table.convert import LoadOptimizer, LoadSlots


class StoreFiles:
    """Files: save, save_async, load, restore."""

    _tables: dict[str, Table]
    features: dict[str, str]
    extra: Any

    if TYPE_CHECKING:  # what Store has

        def __init__(
            self, tables: Mapping[str, Table], features: Mapping[str, str] | None = None
        ) -> None: ...

        def evict(self, step: int | None = None) -> dict[str, EvictReport]:
            """Run each table's eviction policy."""

    def save(
        self,
        path: Path,
        extra: Any = None,
        evict: bool = False,
        **options: Unpack[SaveOptions],
    ) -> "SaveReport":
        """Write a checkpoint of all tables as of one moment; see ``Table.save``.

        Parameters
        ----------
        path
            A directory, made if need be.
        extra
            A dict of what JSON can hold, and of numpy arrays, that `load` gives back.
        evict
            Run the tables' eviction policies first.
        **options
            delta, max_deltas, keep_last, io_share, hmac_key and snapshot_bytes (each table) as for
            ``Table.save``.

        Returns
        -------
        SaveReport
        """
        if evict:
            self.evict()
        own = {"features": self.features}
        return saving.save(path, self._tables, extra, own, options, "Store.save")

    def save_async(
        self,
        path: Path,
        extra: Any = None,
        evict: bool = False,
        *,
        on_done: Callable[[saving.SaveHandle], object] | None = None,
        **options: Unpack[SaveOptions],
    ) -> saving.SaveHandle:
        """Write a checkpoint of all tables as they are now, while training goes on.

        Call it between two steps: all tables are cut at one moment, before it returns. See
        ``Table.save_async``.

        Parameters
        ----------
        path, extra, evict, on_done, **options
            As for `save` and ``Table.save_async``.

        Returns
        -------
        SaveHandle
        """
        if evict:
            self.evict()
        own = {"features": self.features}
        return saving.save_async(
            path, self._tables, extra, own, options, on_done, "Store.save_async"
        )

    @classmethod
    def load(
        cls,
        path: Path | Sequence[Path],
        *,
        tables: Iterable[str] | None = None,
        device: str = "cpu",
        hbm_bytes: int | None = None,
        hash_seed: int | None = None,
        optimizer: "LoadOptimizer | Mapping[str, LoadOptimizer]" = None,
        slots: "Literal['keep', 'reset'] | Mapping[str, LoadSlots] | None" = None,
        dtype: Dtype | Mapping[str, Dtype | None] | None = None,
        max_rows: Bound | Mapping[str, Bound] = "saved",
        max_bytes: Bound | Mapping[str, Bound] = "saved",
        on_full: OnFull | Saved | Mapping[str, OnFull | Saved] = "saved",
        admission: LoadAdmission | Mapping[str, LoadAdmission] = "saved",
        eviction: LoadEviction | Mapping[str, LoadEviction] = "saved",
        evict_every: Bound | Mapping[str, Bound] = "saved",
        shard: tuple[int, int] | None = None,
        on_evict: Mapping[str, EvictionSink] | None = None,
        verify: str = "full",
        generation: int | None = None,
        hmac_key: bytes | None = None,
        allow_nonfinite: bool = False,
    ) -> Self:
        """Return a new store from a checkpoint of a store, or of a table; see ``Table.load``.

        A learning rate that was a schedule is not saved: set the table's ``lr`` anew.

        Parameters
        ----------
        path
            The directory that `save` wrote, or those of the shards of one store, to be merged.
        tables
            Names of the tables to load; all by default. Features of the others are left out.
        device, hbm_bytes, hash_seed
            As for `Table`, for each of the tables.
        optimizer, slots, dtype, max_rows, max_bytes, on_full, admission, eviction, evict_every
            As in ``Table.load``: one value for all tables, or a dict from names of tables; those
            that it lacks are as saved.
        shard
            As in ``Table.load``, for all tables.
        on_evict
            From names of tables to sinks, as for `Table`.
        verify, generation, hmac_key, allow_nonfinite
            As in ``Table.load``.

        Returns
        -------
        Store
            ``extra`` is what was given to `save`.
        """
        from embstore import checkpoint
        from embstore.table import loading

        where = "Store.load"
        place = engines.check_place(device, hbm_bytes, where)
        if isinstance(tables, str):
            raise arrays.type_error(where, "tables", tables, "names of tables")
        part = None if shard is None else checkpoint.check_shard(where, shard)
        asked = {
            "optimizer": optimizer,
            "slots": slots,
            "dtype": dtype,
            "max_rows": max_rows,
            "max_bytes": max_bytes,
            "on_full": on_full,
            "admission": admission,
            "eviction": eviction,
            "evict_every": evict_every,
        }
        sinks = on_evict or {}
        opened = checkpoint.OpenShards(path, tables, verify, generation, hmac_key, num_threads())
        with opened, ExitStack() as undo:
            loading.check_names(where, "on_evict", sinks, opened.tables)
            made: dict[str, Table] = {}
            plans = loading.plan_loads(opened, asked, part, place, allow_nonfinite, where)
            for name, plan in plans.items():
                made[name] = Table._of_spec(plan.spec, place, hash_seed, sinks.get(name), where)
                undo.callback(made[name].close)
                loading.restore(made[name], plan)
            features = (opened.store or {}).get("features")
            if features is not None and tables is not None:
                features = {f: name for f, name in features.items() if name in made}
            try:
                store = cls(made, features)
            except EmbstoreError as error:
                raise CheckpointMismatchError(f"{opened.place}: {error}") from error
            store.extra = opened.take_extra()
            undo.pop_all()
        return store

    def restore(
        self,
        path: Path | Sequence[Path],
        *,
        verify: str = "full",
        generation: int | None = None,
        hmac_key: bytes | None = None,
        allow_nonfinite: bool = False,
    ) -> None:
        """Replace the content of all tables, in place, by that of a checkpoint of the store.

        Each table becomes what ``Table.restore`` makes of it, all at one moment; `extra` becomes
        what was saved. Features stay as they are. After an error all tables are as they were.

        Parameters
        ----------
        path, verify, generation, hmac_key, allow_nonfinite
            As in ``Store.load``.

        Raises
        ------
        CheckpointMismatchError
            If the checkpoint has other tables, or ``Table.restore`` would raise it for one.
        CorruptCheckpointError, CheckpointError, ArgumentError
            As ``Table.restore``.
        """
        from embstore import checkpoint
        from embstore.table.restoring import restore_in_place

        opened = checkpoint.OpenShards(path, None, verify, generation, hmac_key, num_threads())
        with opened:
            if set(opened.tables) != set(self._tables):
                raise CheckpointMismatchError(
                    f"Store.restore: {opened.place} holds tables {sorted(opened.tables)}, "
                    f"expected those of the store, {sorted(self._tables)}"
                )
            sources = [opened.tables[name] for name in self._tables]
            tables = [*self._tables.values()]
            extra = opened.take_extra()
            restore_in_place(tables, sources, allow_nonfinite, "Store.restore")
            self.extra = extra
