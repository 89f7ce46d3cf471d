"""Store: several named tables that share a step, threads and one checkpoint."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from embstore.engines import arrays
from embstore.engines.engine import Bags, JoinedBatch, Part, Ticket
from embstore.engines.types import ApplyReport, EvictReport
from embstore.errors import (
    ArgumentError,
    ArgumentTypeError,
)
from embstore.policies._check import check_choice, check_step, shown
from embstore.table.base import locked, writing
from embstore.table.batch import FeatureBatch, PoolMode, as_bags
from embstore.table.features import Joint, by_engine, items_by_feature, keys_by_feature
from embstore.table.store_files import StoreFiles
from embstore.table.table import ADMIT, MISSING, Admit, Missing, Table


class Store(StoreFiles):
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
        self._devices = {f: self._tables[name].device for f, name in self.features.items()}
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
        given = keys_by_feature(keys, where, self._devices)
        check_choice(where, "missing", missing, MISSING)
        return self._read(self._joined(given, {}, {}, where), missing, given)

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
        All arguments are checked before the first table is served. If a table
        raises then, the others on its kind of device keep their inserts, and no batch is returned.
        """
        where = "Store.find_or_insert_many"
        step = check_step(where, step)
        if admit != "policy":
            check_choice(where, "admit", admit, ADMIT)
        given = keys_by_feature(keys, where, self._devices)
        checked_counts = {
            feature: arrays.as_counts(
                c, len(given[feature]), f"{where}: {feature!r}", self._devices[feature]
            )
            for feature, c in items_by_feature(counts or {}, where, "counts", given)
        }
        return self._train(self._joined(given, checked_counts, {}, where), step, admit, given)

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
        bounds = dict(items_by_feature(offsets, where, "offsets", keys))
        factors = dict(items_by_feature(weights or {}, where, "weights", keys))
        bags: dict[str, Bags] = {}
        given: dict[str, NDArray[np.int64]] = {}
        for feature, ids in items_by_feature(keys, where, "keys"):
            if feature not in bounds:
                raise ArgumentError(f"{where}: offsets lack feature {feature!r}")
            given[feature], bags[feature] = as_bags(
                ids,
                bounds[feature],
                mode,
                factors.get(feature),
                padding,
                f"{where}: {feature!r}",
                self._devices.get(feature, "cpu"),
            )
        joints = self._joined(given, {}, bags, where)
        if step is None:
            return self._read(joints, "default", given)
        return self._train(joints, check_step(where, step), "policy", given)

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
        All arguments are checked before the first update. If a table raises then (NonFiniteError,
        or TicketError after `clear`), the others on its kind of device keep their updates.
        """
        where = "Store.apply_gradients_many"
        step = check_step(where, step)
        given_grads = dict(items_by_feature(grads, where, "grads"))
        given = dict(items_by_feature(batches, where, "batches"))
        if set(given_grads) != set(given):
            raise ArgumentError(
                f"{where}: grads must have the features of batches, {sorted(given)}, "
                f"got {sorted(given_grads)}"
            )
        updates = {
            name: self._update(name, {f: given[f] for f in features}, given_grads, step, lr, where)
            for name, features in self._by_table(given, where).items()
        }
        if not updates:
            return {}
        batches_of = [*updates.values()]
        reports: list[ApplyReport] = []
        with locked([self._tables[name] for name in updates]):
            for group in by_engine(batches_of):
                reports += group[0].engine.apply_many(group, step)
        return dict(zip(updates, reports, strict=True))

    def _update(
        self,
        name: str,
        batches: dict[str, object],
        grads: dict[str, object],
        step: int,
        lr: float | None,
        where: str,
    ) -> JoinedBatch:
        """Return the gradients of a table's features, which are all of one batch, or keys."""
        table = self._tables[name]
        rate = table._rate(lr, step, where)
        of_batch = {f: b for f, b in batches.items() if isinstance(b, FeatureBatch)}
        if not of_batch:
            parts = []
            for feature, ids in batches.items():
                keys = arrays.as_keys(ids, where, f"batches[{feature!r}]", table.device)
                shape = (len(keys), table.dim)
                checked = arrays.as_floats(
                    grads[feature], shape, where, f"grads[{feature!r}]", table.device
                )
                parts.append(Part(keys, checked))
            return JoinedBatch(table._engine, parts, None, rate)
        batch = next(iter(of_batch.values())).batch
        by_place = {b.place: f for f, b in of_batch.items() if b.batch is batch}
        if len(by_place) < len(batches):
            raise ArgumentError(
                f"{where}: features {list(batches)} of table {name!r} are not of one batch"
            )
        ticket = batch._ticket_of(table, where)
        if sum(b.n_keys for b in of_batch.values()) != ticket.n():
            raise ArgumentError(
                f"{where}: table {name!r} needs all features of its batch, got {list(batches)} only"
            )
        parts = [
            of_batch[feature].grad_part(grads[feature], f"{where}: {feature!r}")
            for _, feature in sorted(by_place.items())
        ]
        return JoinedBatch(table._engine, parts, ticket, rate)

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

    def _joined(
        self,
        keys: Mapping[str, NDArray[np.int64]],
        counts: Mapping[str, NDArray[np.uint32]],
        bags: Mapping[str, Bags],
        where: str,
    ) -> list["Joint"]:
        """Return what each table has to do: its features, and memory for their rows."""
        joints = []
        for name, features in self._by_table(keys, where).items():
            table = self._tables[name]
            sizes = [bags[f].n_bags if bags else len(keys[f]) for f in features]
            dtype = arrays.FLOAT32 if bags else table._spec.row_dtype
            rows = table._output(None, sum(sizes), where, keys[features[0]], dtype)
            parts = []
            first = 0
            for feature, size in zip(features, sizes, strict=True):
                own = arrays.part_of(rows, first, first + size)
                parts.append(Part(keys[feature], own, counts.get(feature), bags.get(feature)))
                first += size
            joints.append(Joint(table, features, rows, JoinedBatch(table._engine, parts)))
        return joints

    def _read(
        self, joints: list["Joint"], missing: Missing, order: Iterable[str]
    ) -> dict[str, NDArray[Any]]:
        """Fill the rows of all features, and return them in the `order` of the features."""
        batches = [joint.batch for joint in joints]
        for group in by_engine(batches):
            group[0].engine.find_many(group, missing)
        rows: dict[str, NDArray[Any]] = {}
        for joint in joints:
            for feature, part in zip(joint.features, joint.batch.parts, strict=True):
                rows[feature] = arrays.public(part.rows)
        return {feature: rows[feature] for feature in order}

    def _train(
        self, joints: list["Joint"], step: int, admit: Admit, order: Iterable[str]
    ) -> dict[str, FeatureBatch]:
        """Insert the keys of all features, and return their batches in the `order` of features."""
        batches = [joint.batch for joint in joints]
        tickets: list[Ticket] = []
        with writing([joint.table for joint in joints]):
            for group in by_engine(batches):
                tickets += group[0].engine.find_or_insert_many(group, step, admit != "policy")
        given: dict[str, FeatureBatch] = {}
        for joint, ticket in zip(joints, tickets, strict=True):
            batch = joint.batch_of(ticket)
            first = 0
            for place, (feature, part) in enumerate(
                zip(joint.features, joint.batch.parts, strict=True)
            ):
                ids = slice(first, first + part.n_keys)
                given[feature] = FeatureBatch(batch, place, ids, part.rows, part.bags)
                first = ids.stop
        return {feature: given[feature] for feature in order}


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
