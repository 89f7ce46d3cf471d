"""ShardedTables: tables whose rows lie on many ranks, looked up and trained by all of them.

A training lookup reads down this file: keys go to their owners, rows come back, and what backward
gives waits in a `Round` for the optimizer's step (embstore.torch.sharded.gradients).
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd.function import once_differentiable

from embstore import ArgumentError, ArgumentTypeError, DistributedError, Store, Table
from embstore.torch.clock import Clock
from embstore.torch.crossing import dtype_of, rows_of
from embstore.torch.lookup import step_of
from embstore.torch.parameter import TableParameter
from embstore.torch.sharded.gradients import Round, ShardGradients
from embstore.torch.sharded.request import Asked, Request, bounds_of, exchange_keys
from embstore.torch.sharded.traffic import Traffic
from embstore.torch.sharded.wire import NO_STEP, Channel, Wire

READ, TRAIN, BEGIN = 1, 2, 3  # calls, as headers name them
AHEAD = 8  # added to a call whose keys were sent by prefetch
MOST_ROUNDS = 1024  # training lookups without a step that owners remember
PART = 8  # bytes to which parts of a message are rounded up, so that each is aligned
STATUS = 8  # bytes before the rows that a rank sends: whether it could not find them


class Found(NamedTuple):
    """What a lookup gave: unique rows by table, and the place of each id among them by feature."""

    rows: dict[str, torch.Tensor]  # (n_unique, dim) float32
    inverse: dict[str, torch.Tensor]  # (n,) int64


class _Ahead(NamedTuple):
    """A lookup that was begun by prefetch."""

    given: tuple[Any, ...]
    call: int
    request: "Future[Request]"


class ShardedTables:
    """The tables of one module over the ranks of a wire; a rank has the rows of the keys it owns.

    Rank r of n owns the keys of shard r of n of a checkpoint.
    """

    def __init__(
        self, store: Store, parameters: Mapping[str, TableParameter], wire: Wire, where: str
    ) -> None:
        if not parameters:
            raise ArgumentError(f"{where}: there is no table")
        self.parameters = dict(parameters)
        self.features = dict(store.features)
        self.owned = Store({name: p.table for name, p in parameters.items()})
        self.wire = wire
        self.where = where
        self.traffic = Traffic()
        self.rounds: dict[int, Round] = {}
        self.n_calls = 0  # of look_up and prefetch, equal on all ranks
        self._ahead: list[_Ahead] = []
        self.digest = self._digest()
        self._begin()
        for parameter in parameters.values():
            ShardGradients.of(parameter).owners.append(self)

    @property
    def names(self) -> list[str]:
        """The tables."""
        return [*self.parameters]

    @property
    def clock(self) -> Clock:
        """The step of all tables."""
        return next(iter(self.parameters.values())).clock

    def look_up(
        self, given: tuple[Any, ...], keys: Mapping[str, torch.Tensor], is_training: bool
    ) -> Found:
        """Return the rows of flat ids by feature; all ranks take part.

        `given` is what the caller of the module gave: what `prefetch` was given goes on with that.
        """
        call = TRAIN if is_training else READ
        step = step_of(self.clock) if is_training else self.clock.now
        if self._ahead:
            request = self._taken(given, call, step)
        else:
            tags = (self.digest, call, self._next_number(), step)
            asked = self._asked(keys)
            request = exchange_keys(self.wire.main, tags, asked, self.traffic, is_training)
        device = next((ids.device for ids in keys.values()), torch.device("cpu"))
        rows = self._rows(request, step)
        rows = {name: own.to(device) for name, own in rows.items()}
        inverse = {
            f: torch.from_numpy(places).to(device) for f, places in request.asked.inverse.items()
        }
        return Found(rows, inverse)

    def prefetch(
        self, given: tuple[Any, ...], keys: Mapping[str, torch.Tensor], is_training: bool
    ) -> None:
        """Begin a lookup in the background: send the keys to their owners."""
        call = TRAIN if is_training else READ
        tags = (self.digest, call, self._next_number(), NO_STEP)
        copies = {f: ids.detach().clone() for f, ids in keys.items()}

        def begin(channel: Channel) -> Request:
            asked = self._asked(copies)
            return exchange_keys(channel, tags, asked, self.traffic, is_training)

        self._ahead.append(_Ahead(given, call, self.wire.ahead(begin)))

    def place_of(self, table: Table) -> int:
        """Return the place of a table among those of the module."""
        return [p.table for p in self.parameters.values()].index(table)

    def forget_gradients(self, place: int) -> None:
        """Forget what backward has given for a table since the last step."""
        for each in self.rounds.values():
            each.grads[place] = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "ShardedTables":
        raise ArgumentTypeError(
            f"{self.where}: sharded tables cannot be copied; make another module, of other tables"
        )

    def __reduce__(self) -> Any:
        raise ArgumentTypeError(
            f"{self.where}: sharded tables cannot be pickled; save them by save(path)"
        )

    def _digest(self) -> int:
        """Return a number that only equal tables on as many ranks have."""
        lines = [self.where, str(self.wire.world_size), repr(sorted(self.features.items()))]
        for name, parameter in self.parameters.items():
            config = parameter.table.config()
            optimizer = parameter.table.optimizer
            same = [config.get(k) for k in ("dim", "name", "dtype", "seed", "initializer")]
            lines.append(repr([name, *same, config.get("admission"), type(optimizer).__name__]))
        digest = hashlib.sha256("\n".join(lines).encode()).digest()
        return int.from_bytes(digest[:8], "little", signed=True)

    def _begin(self) -> None:
        """See that all ranks have the same tables, and give them one step: the latest."""
        now = max(parameter.clock.now for parameter in self.parameters.values())
        words = np.full((self.wire.world_size, 1), now, np.int64)
        tags = (self.digest, BEGIN, 0, NO_STEP)
        heard = self.wire.main.agree(f"{self.where} of the same tables", tags, words)
        clock = Clock(int(heard.max()))
        for parameter in self.parameters.values():
            parameter.clock = clock

    def _next_number(self) -> int:
        self.n_calls += 1
        return self.n_calls

    def _asked(self, keys: Mapping[str, torch.Tensor]) -> Asked:
        tables = {name: p.table for name, p in self.parameters.items()}
        return Asked.of(keys, tables, self.features, self.wire.world_size)

    def forget_prefetched(self) -> None:
        """Give up the lookups that were begun, when their keys have come."""
        while self._ahead:
            self._ahead.pop(0).request.exception()

    def _taken(self, given: tuple[Any, ...], call: int, step: int) -> Request:
        """Return the request that was begun for what is given now, if all ranks go on with it."""
        ahead = self._ahead[0]
        is_same = len(given) == len(ahead.given)
        if not is_same or any(a is not b for a, b in zip(given, ahead.given, strict=True)):
            raise ArgumentError(
                f"{self.where}: prefetch was given other objects than this lookup; look up what "
                f"was prefetched, in its order, before anything else, or call forget_prefetched()"
            )
        if call != ahead.call:
            raise ArgumentError(
                f"{self.where}: prefetched {'for' if ahead.call == TRAIN else 'without'} training, "
                f"and looked up otherwise; the mode must not change between"
            )
        self._ahead.pop(0)
        request = ahead.request.result()
        tags = (self.digest, call + AHEAD, request.number, step)
        self.wire.main.agree("lookup", tags, np.empty((self.wire.world_size, 0), np.int64))
        self.traffic.count_equal("sizes", self.wire.main, 0)
        return request

    def _rows(self, request: Request, step: int) -> dict[str, torch.Tensor]:
        """Serve the keys that this rank owns; return the rows of those that it asked for."""
        is_training = request.call == TRAIN
        failure: Exception | None = None
        batches: Any = {}
        rows: list[Any] = [None] * len(self.names)
        try:
            rows, batches = self._served(request, step)
        except Exception as error:  # raised when the others know
            failure = error
        unique = self._exchange_rows(request, rows, failure)
        if not is_training:
            return unique
        names = [n for n, is_asked in zip(self.names, request.is_asked, strict=True) if is_asked]
        own = Round(request.number, names, self, batches, request.asked.n_to, request.n_from)
        self._remember(own)
        anchors = [self.parameters[name].anchor for name in names]
        found = _RowsOfShards.apply(own, [unique[name] for name in names], *anchors)
        return dict(zip(names, found, strict=True))

    def _served(self, request: Request, step: int) -> tuple[list[Any], Any]:
        """Return the rows of the keys that ranks asked of this one, and their batches."""
        asked = [n for n, is_asked in zip(self.names, request.is_asked, strict=True) if is_asked]
        keys = dict(zip(self.names, request.keys, strict=True))
        given = {name: keys[name] for name in asked}
        if request.call == READ:
            found = self.owned.find_many(given)
            return [found.get(name) for name in self.names], {}
        counts = dict(zip(self.names, request.counts, strict=True))
        own = {name: counts[name] for name in asked}
        batches = self.owned.find_or_insert_many(given, step, counts=own)
        return [batches[n].rows if n in batches else None for n in self.names], batches

    def _exchange_rows(
        self, request: Request, rows: list[Any], failure: Exception | None
    ) -> dict[str, torch.Tensor]:
        """Send rows to those who asked; return what was asked here, (n_unique, dim) float32."""
        channel = self.wire.main
        widths = [p.table.dim * dtype_of(p.table).itemsize for p in self.parameters.values()]
        to, of = (
            [STATUS + sum(_padded(n * w) for n, w in zip(s, widths, strict=True)) for s in sizes]
            for sizes in (request.n_from.tolist(), request.asked.n_to.tolist())
        )
        message = np.zeros(sum(to), np.uint8)
        starts = [first for first, _ in bounds_of(np.array(to))]
        for start in starts:
            message[start : start + STATUS].view(np.int64)[:] = failure is not None
        if failure is None:
            self._fill(message, starts, rows, request.n_from, widths)
        received = channel.send("rows", message, to, of)
        self.traffic.count("rows", channel, to, of)
        starts = [first for first, _ in bounds_of(np.array(of))]
        self._check_status(received, starts, failure)
        return self._unique_rows(received, starts, request.asked.n_to, widths)

    def _fill(
        self,
        message: NDArray[np.uint8],
        starts: list[int],
        rows: list[Any],
        n_from: NDArray[np.int64],
        widths: list[int],
    ) -> None:
        """Lay rows into a message, to each rank those of all tables."""
        places = [start + STATUS for start in starts]
        for t, (parameter, width) in enumerate(zip(self.parameters.values(), widths, strict=True)):
            if rows[t] is None or not len(rows[t]):
                continue
            stored = (
                rows_of(rows[t], torch.empty(0, device="cpu"))
                .to(dtype_of(parameter.table))
                .contiguous()
            )
            as_bytes = stored.cpu().view(torch.uint8).numpy().reshape(-1)
            for rank, (first, last) in enumerate(bounds_of(n_from[:, t])):
                n_bytes = (last - first) * width
                begin = places[rank]
                message[begin : begin + n_bytes] = as_bytes[first * width : last * width]
                places[rank] += _padded(n_bytes)

    def _unique_rows(
        self,
        received: NDArray[np.uint8],
        starts: list[int],
        n_to: NDArray[np.int64],
        widths: list[int],
    ) -> dict[str, torch.Tensor]:
        places = [start + STATUS for start in starts]
        whole = torch.from_numpy(received)
        found = {}
        for t, (name, parameter) in enumerate(self.parameters.items()):
            table = parameter.table
            rows = torch.empty(int(n_to[:, t].sum()), table.dim, dtype=torch.float32, device="cpu")
            for rank, (first, last) in enumerate(bounds_of(n_to[:, t])):
                n_bytes = (last - first) * widths[t]
                own = whole[places[rank] : places[rank] + n_bytes].view(dtype_of(table))
                rows[first:last] = own.view(last - first, table.dim)
                places[rank] += _padded(n_bytes)
            found[name] = rows
        return found

    def _check_status(
        self, received: NDArray[np.uint8], starts: list[int], failure: Exception | None
    ) -> None:
        """Raise what failed here, or that something failed elsewhere."""
        if failure is not None:
            raise failure
        failed = [r for r, s in enumerate(starts) if received[s : s + STATUS].view(np.int64)[0]]
        if failed:
            raise DistributedError(
                f"{self.wire.main}: ranks {failed} could not serve the keys that they own; their "
                f"own errors say why"
            )

    def _remember(self, own: Round) -> None:
        """Keep a round until a step has exchanged its gradients."""
        self.rounds[own.number] = own
        if len(self.rounds) > MOST_ROUNDS:
            oldest = self.rounds.pop(next(iter(self.rounds)))
            if oldest.has_gradients:
                raise ArgumentError(
                    f"{self.where}: {MOST_ROUNDS} lookups were trained without a step; call "
                    f"step() of embstore.torch.optimizer(model)"
                )
            oldest.is_past = True


class _RowsOfShards(torch.autograd.Function):
    """Rows that came from other ranks; their gradients wait in the round."""

    @staticmethod
    def forward(
        ctx: Any, own: Round, rows: list[torch.Tensor], *anchors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Give the rows to autograd."""
        ctx.set_materialize_grads(False)
        ctx.own = own
        return tuple(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[None, ...]:
        """Leave the gradients."""
        ctx.own.add(grads)
        return (None,) * (2 + len(grads))


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // PART) * PART
