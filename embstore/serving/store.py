"""ServingStore: the tables of one checkpoint, read by feature."""

import time
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from embstore import FindResult, Store
from embstore.errors import ArgumentError
from embstore.serving.table import Missing, ServingTable, as_int64


class ServingStore:
    """The tables of a checkpoint, read-only; `embstore.serving.open_store` makes it.

    Attributes
    ----------
    features : dict
        From each feature to the name of its table.

    Examples
    --------
    >>> import tempfile, embstore as es, embstore.serving
    >>> folder = tempfile.mkdtemp()
    >>> with es.Store([es.Table(dim=1, name="user"), es.Table(dim=2, name="item")]) as store:
    ...     _ = store.save(folder)
    >>> with es.serving.open_store(folder) as store:
    ...     {feature: rows.shape for feature, rows in store.find_many({"item": [7, 8]}).items()}
    {'item': (2, 2)}
    """

    def __init__(self, tables: dict[str, ServingTable], empty: Store) -> None:
        self._tables = tables
        self._empty = empty
        self.features = dict(empty.features)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tables."""
        return tuple(self._tables)

    @property
    def step(self) -> int:
        """The greatest step of any table."""
        return max((table.step for table in self._tables.values()), default=0)

    @property
    def is_indexed(self) -> bool:
        """Whether all tables are answered from memory."""
        return all(table.is_indexed for table in self._tables.values())

    def wait_indexed(self, timeout: float | None = None) -> bool:
        """Wait for all indexes, or until seconds are over; return `is_indexed`."""
        end = None if timeout is None else time.monotonic() + timeout
        for table in self._tables.values():
            table.wait_indexed(None if end is None else max(0.0, end - time.monotonic()))
        return self.is_indexed

    def __getitem__(self, name: str) -> ServingTable:
        if name not in self._tables:
            raise ArgumentError(f"ServingStore: no table {name!r}; there are {list(self._tables)}")
        return self._tables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    def find_many(
        self, keys: Mapping[str, object], missing: Missing = "default"
    ) -> dict[str, NDArray[Any]]:
        """Read the rows of each feature, as ``Store.find_many``.

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
        is_strict = isinstance(missing, str) and missing == "raise"
        rows = self._empty.find_many(keys, "default" if is_strict else missing)
        for feature, own in rows.items():
            table = self._tables[self.features[feature]]
            given = as_int64(keys[feature])
            if table.is_indexed:
                table.find(given, out=own, missing=missing)
            else:
                none = np.zeros(0, np.int64)
                found = np.zeros(len(given), np.bool_)
                result = FindResult(own, found, none.astype(np.uint32), none)
                table.fill(given, result, is_strict, with_meta=False)
        return rows

    def stats(self) -> dict[str, dict[str, int]]:
        """Return ``ServingTable.stats`` of each table, by name."""
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
        return f"<embstore.serving.ServingStore of {len(self)} tables: {', '.join(self._tables)}>"
