"""Training lookups as functions of autograd: forward counts and inserts, backward leaves gradients.

What backward got goes to the table's `Gradients`, for the optimizer's step; where a table is
trained in backward (fused), it is applied at once.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch.autograd.function import once_differentiable
from torch.nn.parallel import DistributedDataParallel

from embstore import ArgumentError, Batch, FeatureBatch, Store, Table
from embstore.torch.clock import Clock
from embstore.torch.crossing import floats_of, has_one_owner, keys_of, rows_of, stream_of
from embstore.torch.gradients import Bags, Lookup
from embstore.torch.inputs import Ids
from embstore.torch.parameter import TableParameter

NO_TASK = -1
_graph_task = getattr(torch._C, "_current_graph_task_id", lambda: NO_TASK)


def train_rows(table: Table, ids: torch.Tensor, step: int) -> tuple[Batch, torch.Tensor]:
    """Look up flat ids in training; return the batch, and rows (n, dim) in the table's dtype."""
    keys = keys_of(ids, table)
    batch = table.find_or_insert(keys, step, **stream_of(keys))
    rows = rows_of(batch.rows, ids)
    return batch, rows if table.dtype != "bfloat16" else rows.bfloat16()


def train_bags(
    table: Table, ids: torch.Tensor, bags: Bags, step: int
) -> tuple[Batch, torch.Tensor]:
    """Look up and pool in training; return the batch, and rows (n_bags, dim) float32."""
    keys = keys_of(ids, table)
    batch = table.pooled(keys, bags.offsets, bags.mode, bags.weights, step=step, **stream_of(keys))
    return batch, rows_of(batch.rows, ids)


def read_bags(table: Any, ids: torch.Tensor, bags: Bags) -> torch.Tensor:
    """Return pooled rows (n_bags, dim) float32; the table is not changed."""
    keys = keys_of(ids, table)
    pooled = table.pooled(keys, bags.offsets, bags.mode, bags.weights, **stream_of(keys))
    return rows_of(pooled, ids)


class RowsOf(torch.autograd.Function):
    """The rows (n, dim) of flat ids of one table."""

    @staticmethod
    def forward(
        ctx: Any, parameter: TableParameter, ids: torch.Tensor, fused: bool
    ) -> torch.Tensor:
        """Look up, and keep the ticket."""
        batch, rows = train_rows(parameter.table, ids, own_step_of(parameter.clock))
        ctx.lookup = (parameter, batch, fused)
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, None, None]:
        """Leave the gradient."""
        parameter, batch, fused = ctx.lookup
        settle(parameter, Lookup(batch, grad), fused)
        return None, None, None


class BagsOf(torch.autograd.Function):
    """The pooled rows (n_bags, dim) float32 of bags of ids of one table."""

    @staticmethod
    def forward(
        ctx: Any, parameter: TableParameter, ids: torch.Tensor, bags: Bags, fused: bool
    ) -> torch.Tensor:
        """Look up and pool, and keep the ticket."""
        batch, rows = train_bags(parameter.table, ids, bags, own_step_of(parameter.clock))
        ctx.lookup = (parameter, batch, bags, fused)
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, None, None, None]:
        """Leave the gradient."""
        parameter, batch, bags, fused = ctx.lookup
        settle(parameter, Lookup(batch, grad, (bags,)), fused)
        return None, None, None, None


class Features(NamedTuple):
    """A lookup of several features in the tables of a store: what one native call is asked."""

    store: Store
    parameters: Mapping[str, TableParameter]  # by table
    keys: dict[str, Any]
    bags: dict[str, Bags] | None  # None where nothing is pooled
    like: torch.Tensor
    fused: bool

    def tables(self) -> dict[str, list[str]]:
        """Return the features of each table, in their order."""
        by_table: dict[str, list[str]] = {}
        for feature in self.keys:
            by_table.setdefault(self.store.features[feature], []).append(feature)
        return by_table

    def train(self, step: int) -> dict[str, FeatureBatch]:
        """Look up in training, in one native call."""
        if self.bags is None:
            return self.store.find_or_insert_many(self.keys, step)
        found = self.store.pooled_many(self.keys, **self._pooling(), step=step)
        return cast(dict[str, FeatureBatch], found)

    def read(self) -> dict[str, Any]:
        """Look up and change nothing, in one native call."""
        if self.bags is None:
            return self.store.find_many(self.keys)
        return self.store.pooled_many(self.keys, **self._pooling())

    def _pooling(self) -> dict[str, Any]:
        assert self.bags is not None
        bags = self.bags
        weights = {f: b.weights for f, b in bags.items() if b.weights is not None}
        mode = next(iter(bags.values())).mode
        return {
            "offsets": {f: b.offsets for f, b in bags.items()},
            "mode": mode,
            "weights": weights,
        }


class FeaturesOf(torch.autograd.Function):
    """What the tables of a store give for several features: of each table one tensor."""

    @staticmethod
    def forward(ctx: Any, asked: Features, *weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Look up, and keep the tickets; `weights` are the tables' parameters."""
        tables = asked.tables()
        ctx.set_materialize_grads(False)
        step = own_step_of(next(iter(asked.parameters.values())).clock)
        found = asked.train(step)
        ctx.lookup = (asked, tables, found)
        return tuple(rows_of(found[names[0]].batch.rows, asked.like) for names in tables.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[None, ...]:
        """Leave the gradients."""
        asked, tables, found = ctx.lookup
        settle_many(asked, found, dict(zip(tables, grads, strict=True)))
        return (None,) * (1 + len(grads))


def settle(parameter: TableParameter, lookup: Lookup, fused: bool) -> None:
    """Keep the gradient of a lookup for the optimizer, or train with it."""
    if not fused:
        parameter.gradients.add(_owned(lookup))
        return
    parameter.take_rate()
    table = parameter.table
    grads = floats_of(lookup.grad, table)
    table.apply_gradients(lookup.batch, grads, parameter.clock.now, **stream_of(grads))
    parameter.clock.note_update()


def _owned(lookup: Lookup) -> Lookup:
    """Return the lookup with a gradient of its own.

    Autograd may have handed the same memory to a dense parameter as its ``.grad``, which is then
    clipped, unscaled and added to in place.
    """
    grad = lookup.grad
    if grad.dtype == torch.float32 and grad.is_contiguous() and has_one_owner(grad):
        return lookup
    own = torch.empty(grad.shape, dtype=torch.float32, device=grad.device).copy_(grad)
    return lookup._replace(grad=own)


def step_of(clock: Clock) -> int:
    """Return the step of a training lookup; raise inside of backward, where it would be a second.

    Activation checkpointing runs forward again there.
    """
    if _graph_task() != NO_TASK:
        raise ArgumentError(
            "a training lookup inside backward would count its ids twice: keep embedding modules "
            "out of torch.utils.checkpoint, they keep no activations"
        )
    return clock.at_lookup()


def own_step_of(clock: Clock) -> int:
    """Return the step of a training lookup in tables that are not sharded; raise inside of DDP."""
    refuse_replicas()
    return step_of(clock)


def refuse_replicas() -> None:
    """Raise in the forward pass of DDP, which would train a table apart on each rank."""
    active = getattr(DistributedDataParallel, "_active_ddp_module", None)
    if active is not None and active.process_group.size() > 1:
        raise ArgumentError(
            "DistributedDataParallel averages no gradients of tables, so that each rank's would "
            "become another: use embstore.torch's ShardedEmbedding and its like within it, or "
            "freeze the table by requires_grad_(False)"
        )


def settle_many(
    asked: Features, found: Mapping[str, FeatureBatch], grads: Mapping[str, torch.Tensor | None]
) -> None:
    """Keep the gradients of a lookup of many tables, by table, or train with them."""
    lookups = {}
    for table, features in asked.tables().items():
        grad = grads[table]
        if grad is None:
            continue
        bags = () if asked.bags is None else tuple(asked.bags[f] for f in features)
        own = {f: found[f] for f in features}
        lookups[table] = Lookup(own[features[0]].batch, grad, bags, asked.store, own)
    if asked.fused:
        _train_many([(asked.parameters[name], of) for name, of in lookups.items()])
        return
    for name, lookup in lookups.items():
        asked.parameters[name].gradients.add(_owned(lookup))


def _train_many(lookups: Sequence[tuple[TableParameter, Lookup]]) -> None:
    if lookups:
        lookups[0][0].take_rate()
        apply_many(lookups, lookups[0][0].clock.now)
        lookups[0][0].clock.note_update()


def apply_many(lookups: Sequence[tuple[TableParameter, Lookup]], step: int) -> None:
    """Train the tables of one store with a lookup of each, in one native call."""
    store = lookups[0][1].store
    assert store is not None
    batches: dict[str, FeatureBatch] = {}
    grads: dict[str, Any] = {}
    for parameter, lookup in lookups:
        whole = floats_of(lookup.grad, parameter.table)
        first = 0
        for feature, batch in lookup.features.items():
            last = first + len(batch.rows)
            batches[feature], grads[feature] = batch, whole[first:last]
            first = last
    store.apply_gradients_many(batches, grads, step)


def bags_of(ids: Ids, mode: str, padding: int | None, is_kept: bool) -> tuple[torch.Tensor, Bags]:
    """Return ids without padding, and their bags; copies of what callers own, if it `is_kept`.

    A gradient may be asked for long after the lookup, when the caller's buffers hold other things.
    """
    flat, offsets, weights = ids.flat, ids.offsets, ids.weights
    assert offsets is not None
    if padding is not None:
        is_id = flat != padding
        n_before = torch.zeros(len(flat) + 1, dtype=torch.int64, device=flat.device)
        torch.cumsum(is_id, 0, out=n_before[1:])
        offsets, flat = n_before[offsets], flat[is_id]
        weights = None if weights is None else weights.reshape(-1)[is_id]
    host = offsets.detach().cpu().numpy()
    factors = None if weights is None else weights.detach().reshape(-1).float().cpu().numpy()
    if is_kept and padding is None:
        host = host.copy()
        factors = None if factors is None else factors.copy()
    return flat, Bags(host, mode, factors)


def bags_of_one(flat: torch.Tensor, padding: int) -> tuple[torch.Tensor, Bags]:
    """Return ids without padding, and for each id given a bag that holds it, or nothing."""
    offsets = torch.arange(len(flat) + 1, device=flat.device)
    return bags_of(Ids(flat, None, offsets), "sum", padding, False)


def bags_of_each(
    given: dict[str, Ids], padding: int | None
) -> tuple[dict[str, Ids], dict[str, Bags] | None]:
    """Return ids by feature, and no bags; with padding, ids without it, and `bags_of_one`."""
    if padding is None:
        return given, None
    keys, bags = {}, {}
    for feature, ids in given.items():
        flat, bags[feature] = bags_of_one(ids.flat, padding)
        keys[feature] = ids._replace(flat=flat)
    return keys, bags


def pooled_by_torch(rows: torch.Tensor, ids: Ids, mode: str, weights: torch.Tensor) -> torch.Tensor:
    """Pool rows (n, dim) by weights that want gradients, in torch: the rule of ``Table.pooled``."""
    offsets = ids.offsets
    assert offsets is not None
    lengths = offsets.diff()
    bag = torch.repeat_interleave(torch.arange(len(lengths), device=rows.device), lengths)
    weighted = rows.float() * weights.reshape(-1, 1).float()
    pooled = weighted.new_zeros(len(lengths), rows.shape[1]).index_add(0, bag, weighted)
    divisor = lengths.clamp(min=1).to(pooled.dtype)[:, None]
    if mode == "sum":
        return pooled
    return pooled / (divisor if mode == "mean" else divisor.sqrt())
