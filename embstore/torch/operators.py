"""Lookups as operators of torch, for torch.compile and torch.export.

1. A graph holds names or keys of tables; the operators find them in this process at each call.
2. The operators are functional, as autograd asks of them. What a training lookup does beside
   giving rows, and what its gradient does, are effects that the compiler keeps in their order:
   none is dropped, merged with its like, or made twice.
3. A training lookup gives rows and a ticket, (1,) int64, whose memory owns what backward needs: a
   lookup that sees no backward is forgotten with its ticket.
4. The gradient comes to the operator of an anchor, which has none itself: zeros.
5. What is `given` is ids of n features, (n_ids,) each; then, where they are pooled, offsets of
   each; then, if any has them, weights of each, none for those without.
"""

import itertools
import json
import sys
import weakref
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import library as torch_library

from embstore import ArgumentError, Store, Table, TicketError
from embstore.torch.crossing import DTYPES, keys_of, read, rows_of
from embstore.torch.gradients import Bags, Lookup
from embstore.torch.inputs import Ids, check_offsets
from embstore.torch.lookup import (
    Features,
    bags_of,
    read_bags,
    refuse_replicas,
    settle,
    settle_many,
    train_bags,
    train_rows,
)
from embstore.torch.names import table_by_name
from embstore.torch.parameter import TableParameter, parameter_by_key

Grads = Sequence[torch.Tensor | None]


class _Feature(NamedTuple):
    """A feature as a graph has it."""

    table: str
    dim: int
    dtype: str


class _Asked(NamedTuple):
    """Features and their ids, as an operator gets them."""

    features: tuple[_Feature, ...]
    flat: list[torch.Tensor]
    bags: list[Bags] | None


class _Ticket(bytearray):
    """The memory of a ticket's tensor: 8 bytes, the number of the ticket."""

    __slots__ = ("__weakref__", "leave")

    leave: Callable[[Grads], None]


@torch_library.custom_op(
    "embstore::train",
    mutates_args=(),
    schema="(Tensor anchor, Tensor[] given, str plan, str mode, int? padding, bool fused) "
    "-> Tensor[]",
)
def train(
    anchor: torch.Tensor,
    given: list[torch.Tensor],
    plan: str,
    mode: str,
    padding: int | None,
    fused: bool,
) -> list[torch.Tensor]:
    """Look up in training: the rows of each feature, and a ticket."""
    asked = _asked(given, plan, mode, padding, is_kept=True)
    parameters = {f.table: parameter_by_key(f.table) for f in asked.features}
    states = {p.is_trained for p in parameters.values()}
    if states == {False}:
        rows = _read(asked, {key: p.table for key, p in parameters.items()})
        return [*rows, torch.zeros(1, dtype=torch.int64, device="cpu")]
    if len(states) > 1:
        raise ArgumentError(
            f"some of the tables {list(parameters)} are frozen and some are not; put them into a "
            f"collection of their own"
        )
    refuse_replicas()
    if len(asked.features) == 1:
        (parameter,) = parameters.values()
        return _train_one(asked, parameter, fused)
    return _train_many(asked, parameters, fused)


@torch_library.custom_op(
    "embstore::leave",
    mutates_args=(),
    schema="(Tensor ticket, Tensor[] grads, int[] places, Tensor anchor) -> Tensor",
)
def leave(
    ticket: torch.Tensor, grads: list[torch.Tensor], places: list[int], anchor: torch.Tensor
) -> torch.Tensor:
    """Leave the gradients of a training lookup; return that of the anchor."""
    number = int(ticket)
    known = _OPEN.get(number)
    if number == 0:  # the table was frozen at the lookup
        return torch.zeros_like(anchor)
    if known is None:
        raise TicketError(
            f"the ticket {number} of a compiled lookup is of no lookup in this process; its "
            f"tensor was copied, or came from elsewhere"
        )
    by_place: list[torch.Tensor | None] = [None] * (1 + max(places, default=-1))
    for place, grad in zip(places, grads, strict=True):
        by_place[place] = grad
    known.leave(by_place)
    return torch.zeros_like(anchor)


@torch_library.custom_op(
    "embstore::read",
    mutates_args=(),
    schema="(Tensor[] given, str plan, str mode, int? padding, bool by_name) -> Tensor[]",
)
def read_many(
    given: list[torch.Tensor],
    plan: str,
    mode: str,
    padding: int | None,
    by_name: bool,
) -> list[torch.Tensor]:
    """Look up and change nothing: the rows of each feature."""
    asked = _asked(given, plan, mode, padding, is_kept=False)
    names = dict.fromkeys(f.table for f in asked.features)
    if not by_name:
        return _read(asked, {key: parameter_by_key(key).table for key in names})
    tables = {name: table_by_name(name) for name in names}
    for feature in asked.features:
        _check(feature, tables[feature.table])
    return _read(asked, tables)


@torch_library.custom_op(
    "embstore::bag_of_each",
    mutates_args=(),
    schema="(Tensor offsets, Tensor ids) -> (Tensor, Tensor)",
)
def bag_of_each(offsets: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the bag of each id, (n,) int64, and the ids, which are so known to have bags."""
    check_offsets(offsets, len(ids), "EmbeddingBag")
    bags = torch.arange(len(offsets) - 1, device=ids.device)
    return torch.repeat_interleave(bags, offsets.diff()), ids.clone()


@train.register_fake
def _(
    anchor: torch.Tensor,
    given: list[torch.Tensor],
    plan: str,
    mode: str,
    padding: int | None,
    fused: bool,
) -> list[torch.Tensor]:
    ticket = torch.empty(1, dtype=torch.int64, device="cpu")
    return [*_fake_rows(given, plan), ticket]


@leave.register_fake
def _(
    ticket: torch.Tensor, grads: list[torch.Tensor], places: list[int], anchor: torch.Tensor
) -> torch.Tensor:
    return torch.empty_like(anchor)


@read_many.register_fake
def _(
    given: list[torch.Tensor],
    plan: str,
    mode: str,
    padding: int | None,
    by_name: bool,
) -> list[torch.Tensor]:
    return _fake_rows(given, plan)


@bag_of_each.register_fake
def _(offsets: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(ids, dtype=torch.int64), torch.empty_like(ids)


def _fake_rows(given: list[torch.Tensor], plan: str) -> list[torch.Tensor]:
    features = _features(plan)
    n = len(features)
    if len(given) == n:
        return [
            flat.new_empty((flat.shape[0], f.dim), dtype=DTYPES[f.dtype])
            for f, flat in zip(features, given, strict=True)
        ]
    return [
        bounds.new_empty((bounds.shape[0] - 1, f.dim), dtype=torch.float32, device=flat.device)
        for f, flat, bounds in zip(features, given[:n], given[n : 2 * n], strict=True)
    ]


def _keep_ticket(ctx: Any, inputs: tuple[Any, ...], output: list[torch.Tensor]) -> None:
    anchor, given, *_ = inputs
    ctx.save_for_backward(output[-1], anchor)
    ctx.set_materialize_grads(False)
    ctx.n_given = len(given)


def _backward(ctx: Any, grads: Grads) -> tuple[Any, ...]:
    ticket, anchor = ctx.saved_tensors
    places = [place for place, grad in enumerate(grads[:-1]) if grad is not None]
    left = [grads[place] for place in places]
    of_anchor = torch.ops.embstore.leave(ticket, left, places, anchor) if places else None
    return of_anchor, [None] * ctx.n_given, None, None, None, None


train.register_autograd(_backward, setup_context=_keep_ticket)


@cache
def _features(plan: str) -> tuple[_Feature, ...]:
    return tuple(_Feature(*feature) for feature in json.loads(plan))


def _asked(
    given: list[torch.Tensor], plan: str, mode: str, padding: int | None, *, is_kept: bool
) -> _Asked:
    """Return what is asked, without padding; weights without elements are none."""
    features = _features(plan)
    n = len(features)
    ids, offsets, weights = given[:n], given[n : 2 * n], given[2 * n :]
    if not offsets:
        return _Asked(features, ids, None)
    flat, bags = [], []
    for i, (own, bounds) in enumerate(zip(ids, offsets, strict=True)):
        factors = weights[i] if weights and weights[i].numel() else None
        if padding is not None or factors is not None:
            check_offsets(bounds, len(own), features[i].table)
        kept, of = bags_of(Ids(own, None, bounds, factors), mode, padding, is_kept)
        flat.append(kept)
        bags.append(of)
    return _Asked(features, flat, bags)


def _train_one(asked: _Asked, parameter: TableParameter, fused: bool) -> list[torch.Tensor]:
    table, (flat,) = parameter.table, asked.flat
    step = parameter.clock.at_lookup()
    if asked.bags is None:
        of: tuple[Bags, ...] = ()
        batch, rows = train_rows(table, flat, step)
    else:
        (bags,) = of = tuple(asked.bags)
        batch, rows = train_bags(table, flat, bags, step)

    def leave_to(grads: Grads) -> None:
        (grad,) = grads
        assert grad is not None
        settle(parameter, Lookup(batch, grad, of), fused)

    return [rows, _ticket(leave_to)]


def _train_many(
    asked: _Asked, parameters: dict[str, TableParameter], fused: bool
) -> list[torch.Tensor]:
    tables = {name: p.table for name, p in parameters.items()}
    lookup = _as_features(asked, tables, parameters, fused)
    names = [*lookup.keys]
    found = lookup.train(next(iter(parameters.values())).clock.at_lookup())
    rows = _rows_of(asked, [found[f].rows for f in names])
    shapes = dict(zip(names, (own.shape for own in rows), strict=True))

    def leave_to(grads: Grads) -> None:
        given = dict(zip(names, grads, strict=False))
        by_table = {
            table: _joined([given.get(f) for f in features], [shapes[f] for f in features])
            for table, features in lookup.tables().items()
        }
        settle_many(lookup, found, by_table)

    return [*rows, _ticket(leave_to)]


def _joined(grads: Grads, shapes: Sequence[torch.Size]) -> torch.Tensor | None:
    """Return the gradients of a table's features as one; zeros for those that the loss passed."""
    present = [grad for grad in grads if grad is not None]
    if not present or len(grads) == 1:
        return present[0] if present else None
    return torch.cat(
        [
            present[0].new_zeros(shape) if grad is None else grad
            for grad, shape in zip(grads, shapes, strict=True)
        ]
    )


def _as_features(
    asked: _Asked, tables: dict[str, Table], parameters: dict[str, TableParameter], fused: bool
) -> Features:
    """Return a lookup in a store whose features are places in a graph's list."""
    store = Store(tables, {str(place): f.table for place, f in enumerate(asked.features)})
    names = [*store.features]
    keys = {f: keys_of(i, store[store.features[f]]) for f, i in zip(names, asked.flat, strict=True)}
    bags = None if asked.bags is None else dict(zip(names, asked.bags, strict=True))
    return Features(store, parameters, keys, bags, asked.flat[0], fused)


def _rows_of(asked: _Asked, given: Sequence[Any]) -> list[torch.Tensor]:
    """Return what tables gave for the features: rows in their dtypes, or float32 of bags."""
    rows = [rows_of(own, asked.flat[0]) for own in given]
    if asked.bags is not None:
        return rows
    return [own.to(DTYPES[f.dtype]) for own, f in zip(rows, asked.features, strict=True)]


def _read(asked: _Asked, tables: dict[str, Any]) -> list[torch.Tensor]:
    if len(asked.features) > 1 and all(isinstance(table, Table) for table in tables.values()):
        return _read_many(asked, tables)
    found = []
    for place, (f, flat) in enumerate(zip(asked.features, asked.flat, strict=True)):
        table = tables[f.table]
        if asked.bags is None:
            found.append(read(table, flat))
            continue
        found.append(read_bags(table, flat, asked.bags[place]))
    return found


def _read_many(asked: _Asked, tables: dict[str, Table]) -> list[torch.Tensor]:
    lookup = _as_features(asked, tables, {}, False)
    found = lookup.read()
    return _rows_of(asked, [found[f] for f in lookup.keys])


def _check(feature: _Feature, table: Any) -> None:
    """Raise if a table is not what the graph was made for."""
    if (table.dim, table.dtype) != (feature.dim, feature.dtype):
        raise ArgumentError(
            f"the graph was made for a table {feature.table!r} of dim {feature.dim} and "
            f"{feature.dtype}; the one of this name has dim {table.dim} and {table.dtype}"
        )


def _ticket(leave_to: Callable[[Grads], None]) -> torch.Tensor:
    number = next(_NUMBERS)
    memory = _Ticket(number.to_bytes(8, sys.byteorder))
    memory.leave = leave_to
    _OPEN[number] = memory
    return torch.frombuffer(memory, dtype=torch.int64)


_NUMBERS = itertools.count(1)
_OPEN: weakref.WeakValueDictionary[int, _Ticket] = weakref.WeakValueDictionary()

HAS_EFFECTS = hasattr(train, "register_effect")  # older ones may drop and merge training lookups

if HAS_EFFECTS:
    from torch._library.effects import EffectType

    for _op in (train, leave):
        _op.register_effect(EffectType.ORDERED)
