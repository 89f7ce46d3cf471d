"""Where the embeddings live: a table of the store per feature, or one static table for all.

Both turn the keys of a batch into rows (n, n_features, dim) and take gradients of that shape. A
list feature is the mean of its keys' rows; an empty list, and a key that is not admitted, is zeros.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import embstore as es
from embstore.cli._static import StaticLayout
from embstore.data import Ragged

Floats = npt.NDArray[np.float32]
Keys = npt.NDArray[np.int64]
FeatureKeys: TypeAlias = "Mapping[str, Keys | Ragged]"
Eviction: TypeAlias = Any  # of policies joined by & and |; it has no public name


@dataclass(frozen=True)
class TableOptions:
    """What all tables of a run share; the policies are those of the dynamic ones."""

    dim: int
    lr: float
    eps: float
    seed: int
    admission: "es.CounterAdmission | es.BloomAdmission | None" = None
    eviction: Eviction = None
    evict_every: int = 50
    max_rows: int | None = None
    device: str = "cpu"

    def describe(self) -> dict[str, Any]:
        """Return the options as JSON holds them."""
        return {name: _plain(value) for name, value in self.__dict__.items()}


@dataclass(frozen=True)
class Sizes:
    """How large the tables are now."""

    n_live: int
    n_pending: int
    n_evicted: int
    nbytes: int

    def describe(self) -> dict[str, int]:
        """Return the sizes by name."""
        return asdict(self)


class Tables:
    """Tables of a store, read and trained by feature: `DynamicTables` or `StaticTables`."""

    def __init__(self, store: "es.Store", features: Sequence[str]) -> None:
        self.store = store
        self.features = list(features)
        self._batches: Any = None
        self._offsets: list[Keys | None] = []

    def find_or_insert(self, keys: FeatureKeys, step: int) -> Floats:
        """Return the rows (n, n_features, dim) of a batch that is going to be trained."""
        flat, self._offsets = self._flatten(keys)
        self._batches = self.store.find_or_insert_many(flat, step=step)
        return _stack([self._batches[name].rows for name in self.features], self._offsets)

    def apply_gradients(self, gradients: Floats, step: int) -> None:
        """Update the rows of the last batch by (n, n_features, dim)."""
        spread = _unstack(gradients, self._offsets)
        by_name = dict(zip(self.features, spread, strict=True))
        self.store.apply_gradients_many(self._batches, by_name, step=step)

    def find(self, keys: FeatureKeys) -> Floats:
        """Return the rows (n, n_features, dim) of a batch; nothing changes."""
        flat, offsets = self._flatten(keys)
        rows = self.store.find_many(flat)
        return _stack([rows[name] for name in self.features], offsets)

    def n_rows(self) -> int:
        """Return the rows that are live now; cheap."""
        return sum(len(self.store[name]) for name in self.store)

    def sizes(self) -> Sizes:
        """Return all sizes now."""
        stats = [self.store[name].stats() for name in self.store]
        live, pending, evicted, nbytes = (
            sum(int(s[key]) for s in stats)
            for key in ("n_live", "n_pending", "n_evicted", "nbytes")
        )
        return Sizes(live, pending, evicted, nbytes)

    def evict(self, step: int) -> int:
        """Evict by the tables' policy; return how many rows went."""
        return sum(report.n_evicted for report in self.store.evict(step=step).values())

    def _keys(self, feature: str, keys: Keys) -> Keys:
        """Return the keys under which the store knows the keys of a feature."""
        return keys

    def _flatten(self, keys: FeatureKeys) -> tuple[dict[str, Keys], list[Keys | None]]:
        """Return the keys of each feature in one array, and the offsets of those that are lists."""
        flat: dict[str, Keys] = {}
        offsets: list[Keys | None] = []
        for name in self.features:
            column = keys[name]
            values = column.values if isinstance(column, Ragged) else column
            flat[name] = self._keys(name, values)
            offsets.append(column.offsets if isinstance(column, Ragged) else None)
        return flat, offsets


class DynamicTables(Tables):
    """A table per feature: keys get rows as they are admitted, and lose them as they age."""

    @classmethod
    def create(cls, features: Sequence[str], options: TableOptions) -> "DynamicTables":
        """Make empty tables, named like the features."""
        eviction = options.eviction
        if options.max_rows is not None:
            by_age = es.CapacityEviction(by="step")
            eviction = by_age if eviction is None else eviction | by_age
        tables = [
            es.Table(
                dim=options.dim,
                name=name,
                optimizer=es.RowWiseAdagrad(lr=options.lr, eps=options.eps),
                initializer=es.Normal(std=0.01),
                seed=options.seed,
                admission=options.admission,
                eviction=eviction,
                evict_every=None if options.eviction is None else options.evict_every,
                max_rows=options.max_rows,
                device=options.device,
            )
            for name in features
        ]
        return cls(es.Store(tables), features)


class StaticTables(Tables):
    """One table of a fixed number of rows for all features; keys are folded onto its rows.

    Its rows lie in the store too, so that optimizer and initial values are the same. All of them
    count, used or not, as in an array made beforehand.
    """

    def __init__(
        self, layout: StaticLayout, features: Sequence[str], options: TableOptions
    ) -> None:
        table = es.Table(
            dim=options.dim,
            name="static",
            optimizer=es.RowWiseAdagrad(lr=options.lr, eps=options.eps),
            initializer=es.Normal(std=0.01),
            seed=options.seed,
            device=options.device,
        )
        super().__init__(es.Store([table], dict.fromkeys(features, "static")), features)
        self.layout = layout
        self._row_bytes = 4 * (options.dim + 1)

    def n_rows(self) -> int:
        """Return the rows of the table, used or not."""
        return self.layout.n_rows

    def sizes(self) -> Sizes:
        """Return the size of an array of all rows and their optimizer state."""
        return Sizes(self.layout.n_rows, 0, 0, self.layout.n_rows * self._row_bytes)

    def _keys(self, feature: str, keys: Keys) -> Keys:
        return self.layout.places(feature, keys)


def _stack(rows: Sequence[Floats], offsets: Sequence["Keys | None"]) -> Floats:
    """Put the features' rows side by side, lists as their means."""
    fields = [r if o is None else _means(r, o) for r, o in zip(rows, offsets, strict=True)]
    return np.stack(fields, axis=1)


def _unstack(gradients: Floats, offsets: Sequence["Keys | None"]) -> list[Floats]:
    """Take the gradients of features apart; those of a list go to its keys in equal shares."""
    spread = []
    for feature, bounds in enumerate(offsets):
        gradient = np.ascontiguousarray(gradients[:, feature])
        if bounds is not None:
            lengths = np.diff(bounds)
            gradient = gradient / np.maximum(lengths, 1).astype(np.float32)[:, None]
            gradient = np.repeat(gradient, lengths, axis=0)
        spread.append(gradient)
    return spread


def _means(rows: Floats, offsets: Keys) -> Floats:
    lengths = np.diff(offsets)
    means = np.zeros((len(lengths), rows.shape[1]), np.float32)
    filled = np.flatnonzero(lengths)
    if len(filled):
        sums = np.add.reduceat(rows, offsets[filled], axis=0)
        means[filled] = sums / lengths[filled].astype(np.float32)[:, None]
    return means


def _plain(value: object) -> object:
    return value if isinstance(value, int | float | str | None) else repr(value)
