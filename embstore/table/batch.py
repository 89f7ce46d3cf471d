"""Batch and PooledBatch: what a forward pass gives, and a backward pass takes back."""

from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from embstore.engines import arrays
from embstore.engines.engine import Bags, Part
from embstore.engines.types import KeyStatus
from embstore.errors import TicketError
from embstore.policies._check import check_choice, check_optional_int

if TYPE_CHECKING:
    from embstore.engines.engine import Ticket
    from embstore.table.base import TableBase

PoolMode = Literal["sum", "mean", "sqrtn"]
POOL_MODES: tuple[PoolMode, ...] = ("sum", "mean", "sqrtn")


class Batch:
    """The result of ``Table.find_or_insert``: rows, statuses, and a ticket for the gradients.

    It may be applied several times, until it is closed or the table cleared. Leaving it to the
    garbage collector closes it too.

    Attributes
    ----------
    rows : (n, dim) float32 or float16
        The rows in the keys' order: the default row for pending and refused keys.
    keys : (n_unique,) int64
        The unique keys in order of first occurrence.
    status : (n_unique,) uint8
        The `KeyStatus` of each unique key.
    inverse : (n,) uint32
        The place of each given key among the unique ones.

    Examples
    --------
    >>> import embstore as es
    >>> table = es.Table(dim=2)
    >>> with table.find_or_insert([7, 5, 7], step=0) as batch:
    ...     batch.rows.shape, batch.keys.tolist(), batch.inverse.tolist(), batch.n_inserted
    ((3, 2), [7, 5], [0, 1, 0], 2)
    """

    __slots__ = ("_table", "_ticket", "rows")

    def __init__(self, table: "TableBase", ticket: "Ticket", rows: NDArray[Any]) -> None:
        self._table = table
        self._ticket: Ticket | None = ticket
        self.rows = arrays.public(rows)

    @property
    def keys(self) -> NDArray[np.int64]:
        """The unique keys in order of first occurrence, (n_unique,) int64, read-only."""
        return self._open_ticket().arrays()[0]

    @property
    def status(self) -> NDArray[np.uint8]:
        """The `KeyStatus` of each unique key, (n_unique,) uint8, read-only."""
        return self._open_ticket().arrays()[1]

    @property
    def inverse(self) -> NDArray[np.uint32]:
        """The place of each given key among the unique ones, (n,) uint32, read-only."""
        return self._open_ticket().arrays()[2]

    @property
    def n_unique(self) -> int:
        """Number of unique keys."""
        return self._open_ticket().n_unique()

    @property
    def n_found(self) -> int:
        """Number of unique keys that had a row."""
        return self._count(KeyStatus.FOUND)

    @property
    def n_inserted(self) -> int:
        """Number of unique keys that got a row."""
        return self._count(KeyStatus.INSERTED)

    @property
    def n_pending(self) -> int:
        """Number of unique keys that are not admitted yet."""
        return self._count(KeyStatus.PENDING)

    @property
    def n_refused(self) -> int:
        """Number of unique keys for which a full table had no room."""
        return self._count(KeyStatus.REFUSED)

    def close(self) -> None:
        """Give the ticket's memory back; the rows stay."""
        self._ticket = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        state = "closed" if self._ticket is None else f"{self.n_unique} unique keys"
        return f"<{type(self).__name__} of {self._table.name!r}: rows {self.rows.shape}, {state}>"

    def _count(self, status: KeyStatus) -> int:
        return int(np.count_nonzero(self.status == status))

    def _open_ticket(self) -> "Ticket":
        if self._ticket is None:
            raise TicketError(f"{type(self).__name__}: it is closed")
        return self._ticket

    def _ticket_of(self, table: "TableBase", where: str) -> "Ticket":
        """Return the ticket, which must be of `table`."""
        if self._ticket is None:
            raise TicketError(f"{where}: the batch is closed")
        if self._table is not table:
            raise TicketError(
                f"{where}: the batch is of table {self._table.name!r}, not of this one, "
                f"{table.name!r}"
            )
        return self._ticket

    def _grad_parts(self, grads: object, where: str) -> list[Part]:
        """Return the gradients of `rows` as an engine takes them."""
        shape = (len(self.rows), self._table.dim)
        checked = arrays.as_floats(grads, shape, where, "grads", self._table.device)
        return [Part(None, checked)]


class PooledBatch(Batch):
    """The result of ``Table.pooled`` with a step: pooled rows, and a ticket for their gradients.

    Attributes
    ----------
    rows : (n_bags, dim) float32
        The pooled rows. ``apply_gradients`` takes their gradients, of the same shape.
    keys, status, inverse
        As in `Batch`, of the ids that are not padding.

    Examples
    --------
    >>> import numpy as np, embstore as es
    >>> table = es.Table(dim=2, optimizer=es.SGD(lr=1.0), initializer=es.Constant(1.0))
    >>> batch = table.pooled([7, 5, 7], offsets=[0, 2, 3], mode="mean", step=0)
    >>> batch.rows.tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    >>> _ = table.apply_gradients(batch, np.full((2, 2), 0.5, np.float32), step=0)
    >>> table.find([7, 5]).tolist()
    [[0.25, 0.25], [0.75, 0.75]]
    """

    __slots__ = ("_bags",)

    def __init__(
        self, table: "TableBase", ticket: "Ticket", rows: NDArray[np.float32], bags: list[Bags]
    ) -> None:
        super().__init__(table, ticket, rows)
        self._bags = bags  # of each feature, whose rows follow one another

    def _grad_parts(self, grads: object, where: str) -> list[Part]:
        checked = arrays.as_floats(grads, self.rows.shape, where, "grads", self._table.device)
        ends = np.cumsum([bags.n_bags for bags in self._bags]).tolist()
        return [
            Part(None, arrays.part_of(checked, end - bags.n_bags, end), bags=bags)
            for end, bags in zip(ends, self._bags, strict=True)
        ]


class FeatureBatch:
    """One feature's part of a table's `Batch`, as the Store's ``*_many`` calls give it.

    Features that share a table are one batch of it: their keys are deduplicated together and
    their gradients summed.

    Attributes
    ----------
    rows : (n, dim)
        The rows of the feature's keys; of pooled features, (n_bags, dim) float32.
    batch : Batch
        The table's batch, of all its features in the call.

    Examples
    --------
    >>> import embstore as es
    >>> store = es.Store([es.Table(dim=2, name="item")], {"shown": "item", "bought": "item"})
    >>> batches = store.find_or_insert_many({"shown": [10, 11], "bought": [11]}, step=0)
    >>> batches["bought"].rows.shape, batches["bought"].batch.n_unique
    ((1, 2), 2)
    """

    __slots__ = ("_bags", "batch", "ids", "place", "rows")

    def __init__(
        self, batch: Batch, place: int, ids: slice, rows: NDArray[Any], bags: Bags | None
    ) -> None:
        self.batch = batch
        self.place = place  # among the features of the batch
        self.ids = ids  # the feature's keys among those of the batch
        self.rows = arrays.public(rows)
        self._bags = bags

    @property
    def n_keys(self) -> int:
        """Number of the feature's keys."""
        return int(self.ids.stop - self.ids.start)

    @property
    def inverse(self) -> NDArray[np.uint32]:
        """The place of each of the feature's keys among ``batch.keys``, (n,) uint32."""
        return self.batch.inverse[self.ids]

    @property
    def status(self) -> NDArray[np.uint8]:
        """The `KeyStatus` of each of the feature's keys, (n,) uint8, in their order."""
        return self.batch.status[self.inverse]

    def grad_part(self, grads: object, where: str) -> Part:
        """Return the gradients of `rows` as an engine takes them."""
        device = self.batch._table.device
        checked = arrays.as_floats(grads, self.rows.shape, where, "grads", device)
        return Part(None, checked, bags=self._bags)

    def close(self) -> None:
        """Close the table's batch, and so the parts of all its features."""
        self.batch.close()

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<FeatureBatch: rows {self.rows.shape} of {self.batch!r}>"


def as_bags(
    keys: object,
    offsets: object,
    mode: object,
    weights: object,
    padding: object,
    where: str,
    device: str = "cpu",
) -> tuple[NDArray[np.int64], Bags]:
    """Return the checked keys without padding, and the bags that hold them.

    Offsets are looked at on the host: those of a card are copied. So are keys and weights where
    padding is to be left out.
    """
    key_array = arrays.as_keys(keys, where, device=device)
    n = len(key_array)
    bounds = arrays.as_offsets(arrays.on_host(offsets, device), n, where)
    checked_mode = check_choice(where, "mode", mode, POOL_MODES)
    factors = None
    if weights is not None:
        factors = arrays.as_floats(weights, (n,), where, "weights", device)
    pad = check_optional_int(where, "padding", padding, -(2**63), 2**63 - 1)
    if pad is not None:
        key_array = arrays.as_keys(arrays.on_host(key_array, device), where)
        factors = None if factors is None else arrays.on_host(factors, device)
        is_kept = key_array != pad
        n_kept_before = np.zeros(n + 1, np.int64)
        np.cumsum(is_kept, out=n_kept_before[1:])
        bounds = n_kept_before[bounds]
        key_array = key_array[is_kept]
        factors = None if factors is None else factors[is_kept]
    return key_array, Bags(bounds, checked_mode, factors)
