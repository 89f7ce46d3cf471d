"""Store: several named tables that share a step, threads and one checkpoint."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from embstore.engines import arrays
from embstore.engines.types import ApplyReport, EvictReport
from embstore.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointMismatchError,
    EmbstoreError,
)
from embstore.policies._check import check_step, shown
from embstore.table import files
from embstore.table.base import EvictionSink
from embstore.table.batch import Bags, FeatureBatch, PoolMode, as_bags
from embstore.table.table import Admit, Missing, Table


class Store:
    """Several named tables, read and trained by feature.

    Parameters
    ----------
    tables
        Tables, which go by their own names, or a dict from names to tables.
    features
        From each feature to the name of its table; by default each table is a feature.

    Examples
    --------
    >>> import numpy as np, embstore as es
    >>> tables = [es.Table(dim=2, name=n, optimizer=es.Adagrad()) for n in ("user", "item")]
    >>> store = es.Store(tables, features={"user": "user", "shown": "item", "bought": "item"})
    >>> ids = {"user": [1], "shown": [10, 11], "bought": [11]}
    >>> batches = store.find_or_insert_many(ids, step=0)
    >>> grads = {f: np.ones_like(b.rows) for f, b in batches.items()}
    >>> reports = store.apply_gradients_many(batches, grads, step=0)
    >>> {name: report.n_applied for name, report in reports.items()}
    {'user': 1, 'item': 2}
    >>> {name: len(store[name]) for name in store}
    {'user': 1, 'item': 2}
    """

    def __init__(
        self,
        tables: Mapping[str, Table] | Iterable[Table],
        features: Mapping[str, str] | None = None,
    ) -> None:
        self._tables = _named(tables)
        if features is not None and not isinstance(features, Mapping):
            raise arrays.type_error("Store", "features", features, "a dict from features to tables")
        self.features: dict[str, str] = (
            {name: name for name in self._tables} if features is None else dict(features)
        )
        for feature, name in self.features.items():
            if not isinstance(name, str) or name not in self._tables:
                raise ArgumentError(
                    f"Store: feature {feature!r} is of table {shown(name)}, which is none of "
                    f"{list(self._tables)}"
                )
        self.extra: Any = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tables."""
        return tuple(self._tables)

    @property
    def step(self) -> int:
        """The greatest step that any table has seen."""
        return max((table.step for table in self._tables.values()), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes that all tables hold."""
        return sum(table.nbytes for table in self._tables.values())

    def __getitem__(self, name: str) -> Table:
        if name not in self._tables:
            raise ArgumentError(f"Store: no table {shown(name)}; there are {list(self._tables)}")
        return self._tables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    def find_many(
        self, keys: Mapping[str, object], missing: Missing = "default"
    ) -> dict[str, NDArray[Any]]:
        """Read the rows of each feature, as ``Table.find``.

        Parameters
        ----------
        keys
            From features to (n,) int64.
        missing
            As in ``Table.find``.

        Returns
        -------
        dict
            From features to (n, dim).
        """
        where = "Store.find_many"
        given = {
            f: arrays.as_keys(k, where, f"keys[{f!r}]") for f, k in _items(keys, where, "keys")
        }
        rows: dict[str, NDArray[Any]] = {}
        for name, joint in self._joined(given, where).items():
            found = self._tables[name].find(joint.keys, missing=missing)
            rows |= {feature: found[part] for feature, part in joint.parts.items()}
        return {feature: rows[feature] for feature in keys}

    def find_or_insert_many(
        self,
        keys: Mapping[str, object],
        step: int,
        counts: Mapping[str, object] | None = None,
        admit: Admit = "policy",
    ) -> dict[str, FeatureBatch]:
        """Read rows for training, as ``Table.find_or_insert``; features of a table are one batch.

        Parameters
        ----------
        keys
            From features to (n,) int64.
        step
            Now.
        counts
            From features to (n,) uint32; ones for the features it lacks.
        admit
            As in ``Table.find_or_insert``.

        Returns
        -------
        dict
            From features to `FeatureBatch`.

        Notes
        -----
        Tables are served one after another: if one raises, those before it keep their inserts.
        """
        where = "Store.find_or_insert_many"
        step = check_step(where, step)
        given = {
            f: arrays.as_keys(k, where, f"keys[{f!r}]") for f, k in _items(keys, where, "keys")
        }
        checked_counts = {
            feature: arrays.as_counts(c, len(given[feature]), f"{where}: {feature!r}")
            for feature, c in _items(counts or {}, where, "counts", given)
        }
        batches: dict[str, FeatureBatch] = {}
        for name, joint in self._joined(given, where).items():
            joint_counts = _joint_counts(joint, checked_counts)
            batch = self._tables[name].find_or_insert(joint.keys, step, joint_counts, admit)
            for feature, part in joint.parts.items():
                batches[feature] = FeatureBatch(batch, part, batch.rows[part])
        return {feature: batches[feature] for feature in keys}

    def pooled_many(
        self,
        keys: Mapping[str, object],
        offsets: Mapping[str, object],
        mode: PoolMode = "sum",
        weights: Mapping[str, object] | None = None,
        step: int | None = None,
        padding: int | None = None,
    ) -> dict[str, FeatureBatch] | dict[str, NDArray[np.float32]]:
        """Reduce the bags of each feature, as ``Table.pooled``.

        Parameters
        ----------
        keys, offsets
            From features to (n,) int64 and to (n_bags + 1,) int64.
        mode, padding
            As in ``Table.pooled``, for all features.
        weights
            From features to (n,) float32; ones for the features it lacks.
        step
            None only reads. A step trains, features of a table being one batch.

        Returns
        -------
        dict
            From features to (n_bags, dim) float32, or, with a step, to `FeatureBatch`.
        """
        where = "Store.pooled_many"
        bounds = dict(_items(offsets, where, "offsets", keys))
        factors = dict(_items(weights or {}, where, "weights", keys))
        bags: dict[str, Bags] = {}
        given: dict[str, NDArray[np.int64]] = {}
        for feature, ids in _items(keys, where, "keys"):
            if feature not in bounds:
                raise ArgumentError(f"{where}: offsets lack feature {feature!r}")
            given[feature], bags[feature] = as_bags(
                ids, bounds[feature], mode, factors.get(feature), padding, f"{where}: {feature!r}"
            )
        if step is None:
            rows = self.find_many(given)
            return {f: bags[f].pool(rows[f]) for f in keys}
        batches = self.find_or_insert_many(given, step)
        return {f: batches[f].pooled(bags[f]) for f in keys}

    def apply_gradients_many(
        self,
        batches: Mapping[str, object],
        grads: Mapping[str, object],
        step: int,
        lr: float | None = None,
    ) -> dict[str, ApplyReport]:
        """Update the rows of each feature, as ``Table.apply_gradients``.

        Parameters
        ----------
        batches
            From features to what find_or_insert_many or pooled_many gave, all features of a
            table's batch, or to (n,) int64 keys.
        grads
            From the same features to (n, dim) float32, of pooled features (n_bags, dim).
        step
            Now.
        lr
            The learning rate of this call for all tables, instead of their own.

        Returns
        -------
        dict
            From the names of the tables to `ApplyReport`.

        Notes
        -----
        Tables are updated one after another: if one raises, those before it keep their updates.
        Shapes and dtypes are checked before the first update.
        """
        where = "Store.apply_gradients_many"
        step = check_step(where, step)
        given_grads = dict(_items(grads, where, "grads"))
        given = dict(_items(batches, where, "batches"))
        if set(given_grads) != set(given):
            raise ArgumentError(
                f"{where}: grads must have the features of batches, {sorted(given)}, "
                f"got {sorted(given_grads)}"
            )
        updates = [
            (name, *self._update(name, {f: given[f] for f in features}, given_grads, where))
            for name, features in self._by_table(given, where).items()
        ]
        return {
            name: self._tables[name].apply_gradients(target, joint_grads, step, lr)
            for name, target, joint_grads in updates
        }

    def _update(
        self, name: str, batches: dict[str, object], grads: dict[str, object], where: str
    ) -> tuple[object, NDArray[np.float32]]:
        """Return a table's batch, or keys, and its gradients (n, dim)."""
        features = [b for b in batches.values() if isinstance(b, FeatureBatch)]
        if not features:
            keys = {f: arrays.as_keys(k, where, f"batches[{f!r}]") for f, k in batches.items()}
            shapes = {f: (len(k), self._tables[name].dim) for f, k in keys.items()}
            parts = [
                arrays.as_floats(grads[f], s, where, f"grads[{f!r}]") for f, s in shapes.items()
            ]
            return np.concatenate(list(keys.values())), np.concatenate(parts)
        batch = features[0].batch
        if len(features) < len(batches) or any(f.batch is not batch for f in features):
            raise ArgumentError(
                f"{where}: features {list(batches)} of table {name!r} are not of one batch"
            )
        if sum(f.n_keys for f in features) != len(batch):
            raise ArgumentError(
                f"{where}: table {name!r} needs all features of its batch, got {list(batches)} only"
            )
        joint = np.empty((len(batch), self._tables[name].dim), np.float32)
        for feature, part in batches.items():
            assert isinstance(part, FeatureBatch)
            joint[part.ids] = part.key_grads(grads[feature], f"{where}: {feature!r}")
        return batch, joint

    def evict(self, step: int | None = None) -> dict[str, EvictReport]:
        """Run each table's eviction policy; tables without one are passed over.

        Parameters
        ----------
        step
            Now, for ages; the store's step by default.

        Returns
        -------
        dict
            From the names of the tables to `EvictReport`.
        """
        now = self.step if step is None else check_step("Store.evict", step)
        return {
            name: table.evict(step=now)
            for name, table in self._tables.items()
            if table.has_eviction_policy
        }

    def save(self, path: files.Path, extra: Any = None, evict: bool = False) -> None:
        """Write a checkpoint of all tables as of one moment; see ``Table.save``.

        Parameters
        ----------
        path
            A directory, made if need be.
        extra
            A dict of what JSON can hold, and of numpy arrays, that `load` gives back.
        evict
            Run the tables' eviction policies first.
        """
        if evict:
            self.evict()
        files.save_tables(path, self._tables, extra, store={"features": self.features})

    @classmethod
    def load(
        cls,
        path: files.Path,
        *,
        device: str = "cpu",
        hash_seed: int | None = None,
        on_evict: Mapping[str, EvictionSink] | None = None,
        verify: str = "full",
        allow_nonfinite: bool = False,
    ) -> Self:
        """Return a new store from a checkpoint of a store, or of a table; see ``Table.load``.

        A learning rate that was a schedule is not saved: set the table's ``lr`` anew.

        Parameters
        ----------
        path
            The directory that `save` wrote.
        device, hash_seed
            As for `Table`, for all tables.
        on_evict
            From names of tables to sinks, as for `Table`.
        verify, allow_nonfinite
            As in ``Table.load``.

        Returns
        -------
        Store
            ``extra`` is what was given to `save`.
        """
        from embstore import checkpoint

        sinks = dict(on_evict or {})
        tables: dict[str, Table] = {}
        with checkpoint.load_tables(path, verify=verify) as loaded, ExitStack() as undo:
            unknown = sorted(set(sinks) - set(loaded.tables))
            if unknown:
                raise ArgumentError(
                    f"Store.load: on_evict names {unknown}; there are {list(loaded.tables)}"
                )
            for name, saved in loaded.tables.items():
                where = f"{loaded.path}: table {name!r}"
                spec = files.loaded_spec(saved, None, where)
                table = Table._of_spec(spec, device, hash_seed, sinks.get(name), "Store.load")
                undo.callback(table.close)
                files.restore(table, saved, allow_nonfinite)
                tables[name] = table
            try:
                store = cls(tables, (loaded.store or {}).get("features"))
            except EmbstoreError as error:
                raise CheckpointMismatchError(f"{loaded.path}: {error}") from error
            store.extra = loaded.extra
            undo.pop_all()
        return store

    def stats(self) -> dict[str, dict[str, Any]]:
        """Return ``Table.stats`` of each table, by name."""
        return {name: table.stats() for name, table in self._tables.items()}

    def close(self) -> None:
        """Close all tables."""
        for table in self._tables.values():
            table.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<embstore.Store of {len(self)} tables: {', '.join(self._tables)}>"

    def _by_table(self, features: Iterable[str], where: str) -> dict[str, list[str]]:
        """Return the features of each table, in the order given."""
        by_table: dict[str, list[str]] = {}
        for feature in features:
            if feature not in self.features:
                raise ArgumentError(
                    f"{where}: unknown feature {shown(feature)}; there are {list(self.features)}"
                )
            by_table.setdefault(self.features[feature], []).append(feature)
        return by_table

    def _joined(self, keys: Mapping[str, NDArray[np.int64]], where: str) -> dict[str, "_Joint"]:
        """Return the keys of each table: those of its features one after another."""
        joined = {}
        for name, features in self._by_table(keys, where).items():
            ends = np.cumsum([len(keys[f]) for f in features]).tolist()
            parts = {
                feature: slice(end - len(keys[feature]), end)
                for feature, end in zip(features, ends, strict=True)
            }
            joined[name] = _Joint(np.concatenate([keys[f] for f in features]), parts)
        return joined


class _Joint(NamedTuple):
    """The keys of a table's features in one array, and where each feature's lie."""

    keys: NDArray[np.int64]
    parts: dict[str, slice]


def _joint_counts(
    joint: _Joint, counts: Mapping[str, NDArray[np.uint32]]
) -> NDArray[np.uint32] | None:
    """Return the counts of a table's features in one array, or None if none has any."""
    if not any(feature in counts for feature in joint.parts):
        return None
    joined = np.ones(len(joint.keys), np.uint32)
    for feature, part in joint.parts.items():
        if feature in counts:
            joined[part] = counts[feature]
    return joined


def _items(
    mapping: object, where: str, name: str, among: Iterable[str] | None = None
) -> Iterable[tuple[str, object]]:
    """Return the items of a dict by feature, whose features must be `among` those."""
    if not isinstance(mapping, Mapping):
        raise arrays.type_error(where, name, mapping, "a dict by feature")
    unknown = [] if among is None else [f for f in mapping if f not in set(among)]
    if unknown:
        raise ArgumentError(f"{where}: {name} has features that keys lack: {unknown}")
    return mapping.items()


def _named(tables: Mapping[str, Table] | Iterable[Table]) -> dict[str, Table]:
    """Return the tables by name, each of them a Table, no name twice."""
    expected = "Store: tables must be a dict from names to Tables, or Tables"
    if isinstance(tables, Mapping):
        pairs = list(tables.items())
    elif isinstance(tables, Iterable) and not isinstance(tables, str | bytes):
        pairs = [(getattr(table, "name", ""), table) for table in tables]
    else:
        raise ArgumentTypeError(f"{expected}, got {arrays.describe(tables)}")
    named: dict[str, Table] = {}
    for name, table in pairs:
        if not isinstance(name, str) or not isinstance(table, Table):
            raise ArgumentTypeError(f"{expected}, got {shown(name)}: {arrays.describe(table)}")
        if name in named:
            raise ArgumentError(f"Store: two tables have the name {name!r}")
        if any(table is other for other in named.values()):
            raise ArgumentError(f"Store: table {name!r} is there twice; map features to it instead")
        named[name] = table
    return named
