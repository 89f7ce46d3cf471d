"""Features of a store: what callers give by feature, and the features of a table as one batch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embstore.engines import arrays
from embstore.engines.engine import JoinedBatch, Ticket
from embstore.errors import ArgumentError
from embstore.table.batch import Batch, PooledBatch
from embstore.table.table import Table


class Joint(NamedTuple):
    """A table's part of a call: its features, one after another in one batch."""

    table: Table
    features: list[str]
    rows: NDArray[Any]
    batch: JoinedBatch

    def batch_of(self, ticket: Ticket) -> Batch:
        """Return what the user gets for the table."""
        bags = [part.bags for part in self.batch.parts if part.bags is not None]
        if bags:
            return PooledBatch(self.table, ticket, self.rows, bags)
        return Batch(self.table, ticket, self.rows)


def by_engine(batches: Sequence[JoinedBatch]) -> Iterator[list[JoinedBatch]]:
    """Yield runs of batches that one engine call serves: of tables on one kind of device."""
    for _, group in groupby(batches, key=lambda batch: type(batch.engine)):
        yield list(group)


def keys_by_feature(
    keys: object, where: str, devices: Mapping[str, str]
) -> dict[str, NDArray[np.int64]]:
    """Return the checked keys of each feature; `devices` are those of the features' tables."""
    return {
        f: arrays.as_keys(k, where, f"keys[{f!r}]", devices.get(f, "cpu"))
        for f, k in items_by_feature(keys, where, "keys")
    }


def items_by_feature(
    mapping: object, where: str, name: str, among: Iterable[str] | None = None
) -> Iterable[tuple[str, object]]:
    """Return the items of a dict by feature, whose features must be `among` those."""
    if not isinstance(mapping, Mapping):
        raise arrays.type_error(where, name, mapping, "a dict by feature")
    unknown = [] if among is None else [f for f in mapping if f not in set(among)]
    if unknown:
        raise ArgumentError(f"{where}: {name} has features that keys lack: {unknown}")
    return mapping.items()
