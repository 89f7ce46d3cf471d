"""The gradients of one table, from backward to the optimizer's step.

1. What backward gives is kept as it came, an entry for each lookup, with its ticket.
2. Where somebody asks for the gradient as a tensor (clip_grad_norm_, GradScaler), or where several
   lookups came together, they become one row for each key, and are trained by their keys.
3. A key that had no row at its lookup has no part in either.
4. Any number of threads may run backward at once; one steps, when they have ended.
"""

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from embstore import (
    FOUND,
    INSERTED,
    SGD,
    ApplyReport,
    Batch,
    Constant,
    FeatureBatch,
    Store,
    Table,
)
from embstore.torch.crossing import floats_of, on_host, stream_of

MOST_LOOKUPS = 64  # kept as they came, of a table that is not stepped: sums do not grow with calls


class Bags(NamedTuple):
    """How a lookup pooled one feature's keys; there is no padding among them."""

    offsets: Any
    mode: Any = "sum"
    weights: Any = None


class Lookup(NamedTuple):
    """A training lookup of one table, and the gradient of what it gave, (n, dim) or (n_bags, dim).

    `bags` say what was pooled, feature by feature. Of a lookup of many tables, `features` are the
    table's part of what `store` gave.
    """

    batch: Batch
    grad: torch.Tensor
    bags: tuple[Bags, ...] = ()
    store: Store | None = None
    features: Mapping[str, FeatureBatch] = {}


class Gradients:
    """The gradients that a table is to be trained with."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.lookups: list[Lookup] = []
        self._keys: Any = None  # (n_unique,) of the sums, in their order
        self._sums: torch.Tensor | None = None  # (n_unique, dim)
        self._adder: Table | None = None
        self._adding = threading.Lock()

    def __bool__(self) -> bool:
        return bool(self.lookups) or self._sums is not None

    def add(self, lookup: Lookup) -> None:
        """Take what backward gave for a lookup."""
        with self._adding:
            self.lookups.append(lookup)
            if len(self.lookups) > MOST_LOOKUPS:
                self._add_up()

    def clear(self) -> None:
        """Forget all gradients."""
        self.lookups.clear()
        self._keys = self._sums = None

    def only_lookup(self) -> Lookup | None:
        """Return the lookup whose gradient is all there is, if it is so."""
        return self.lookups[0] if self._sums is None and len(self.lookups) == 1 else None

    def sums(self) -> torch.Tensor | None:
        """Return the gradient of each key, (n_unique, dim) float32, or None if there are none.

        What is done to the tensor in place counts at the next `apply`.
        """
        with self._adding:
            if self.lookups:
                self._add_up()
            return self._sums

    def apply(self, step: int) -> ApplyReport | None:
        """Train the table with the gradients, which stay until `clear`."""
        table, only = self._table, self.only_lookup()
        if only is not None:
            own = floats_of(only.grad, table)
            return table.apply_gradients(only.batch, own, step, **stream_of(own))
        if self.lookups and self._sums is None and not any(each.bags for each in self.lookups):
            parts = [self._by_key(each) for each in self.lookups]
            keys, grads = (np.concatenate(part) for part in zip(*parts, strict=True))
            return table.apply_gradients(keys, grads, step)
        sums = self.sums()
        if sums is None:
            return None
        return table.apply_gradients(self._keys, floats_of(sums, table), step)

    def _by_key(self, lookup: Lookup) -> tuple[Any, Any]:
        """Return the keys of a lookup that had rows, as they came, and their gradients."""
        batch = lookup.batch
        has_row = np.isin(on_host(batch.status), (FOUND, INSERTED))
        inverse, grads = on_host(batch.inverse), on_host(floats_of(lookup.grad, self._table))
        if has_row.all():
            return on_host(batch.keys)[inverse], grads
        is_kept = has_row[inverse]
        return on_host(batch.keys)[inverse[is_kept]], grads[is_kept]

    def _add_up(self) -> None:
        """Sum the gradients of each key, by the engine itself.

        A table whose rows are born 0 and trained by SGD at the rate 1 holds minus their sum.
        """
        adder = self._adder_table()
        adder.clear()
        if self._sums is not None:
            adder.assign(self._keys, -on_host(floats_of(self._sums, self._table)))
        for lookup in self.lookups:
            self._train(adder, lookup)
        blocks = [*adder.export()]
        self._keys = np.concatenate([np.empty(0, np.int64), *(b.keys for b in blocks)])
        empty = np.empty((0, adder.dim), np.float32)
        sums = torch.from_numpy(-np.concatenate([empty, *(b.values for b in blocks)]))
        self._sums = sums.to(self.lookups[0].grad.device)
        self.lookups.clear()

    def _train(self, adder: Table, lookup: Lookup) -> None:
        if not lookup.bags:
            keys, grads = self._by_key(lookup)
            adder.apply_gradients(adder.find_or_insert(keys, step=0), grads, step=0)
            return
        batch = lookup.batch
        has_row = np.isin(on_host(batch.status), (FOUND, INSERTED))
        unique, inverse = on_host(batch.keys), on_host(batch.inverse)
        keys, grads = unique[inverse], on_host(floats_of(lookup.grad, self._table))
        rowless = unique[~has_row]
        strangers = rowless[~adder.contains(rowless)]
        first = first_bag = 0
        for bags in lookup.bags:
            last, last_bag = first + int(bags.offsets[-1]), first_bag + len(bags.offsets) - 1
            weights = bags.weights
            if len(rowless):
                is_kept = has_row[inverse[first:last]].astype(np.float32)
                weights = is_kept if weights is None else is_kept * weights
            pooled = adder.pooled(keys[first:last], bags.offsets, bags.mode, weights, step=0)
            adder.apply_gradients(pooled, grads[first_bag:last_bag], step=0)
            first, first_bag = last, last_bag
        adder.erase(strangers)

    def _adder_table(self) -> Table:
        if self._adder is None:
            self._adder = Table(
                self._table.dim,
                optimizer=SGD(lr=1.0),
                initializer=Constant(0.0),
                name="sums",
                on_nonfinite="allow",
            )
        return self._adder
