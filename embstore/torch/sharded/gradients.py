"""Gradients of sharded tables: from the ranks that looked up to the ranks that own the keys.

1. Backward leaves the gradient of each unique row in the `Round` of its lookup.
2. `send_gradients` exchanges all that wait, of all modules, at once; a rank without any takes part.
   An owner then has one `Lookup` for each round in the table's `Gradients`, as if it had looked up
   all ranks' keys itself, with gradients divided by the number of ranks.
3. Rounds that no rank has gradients of stay a while: zero_grad may stand between a lookup and its
   backward.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from embstore import ArgumentError, ArgumentTypeError, FeatureBatch, Table
from embstore.torch.gradients import Gradients, Lookup
from embstore.torch.parameter import TableParameter
from embstore.torch.sharded.request import bounds_of
from embstore.torch.sharded.wire import Wire

if TYPE_CHECKING:
    from embstore.torch.sharded.engine import ShardedTables

GRADIENTS = 4  # the call, as headers name it
PATIENCE = 16  # the rounds of the last lookups, which a step keeps though they had no backward
FLAGS_IN_WORD = 62


class Round:
    """A training lookup by all ranks, until its gradients are exchanged."""

    def __init__(
        self,
        number: int,
        names: list[str],
        owner: "ShardedTables",
        batches: Mapping[str, FeatureBatch],
        n_to: NDArray[np.int64],
        n_from: NDArray[np.int64],
    ) -> None:
        self.number = number
        self.names = names  # of the tables that a rank looked up
        self.batches = batches  # of the keys that this rank owns
        self.n_to, self.n_from = n_to, n_from
        self.grads: list[torch.Tensor | None] = [None] * len(owner.names)
        self.is_past = False
        self._places = [owner.names.index(name) for name in names]

    @property
    def has_gradients(self) -> bool:
        """Whether backward has given any here."""
        return any(grad is not None for grad in self.grads)

    def add(self, grads: Sequence[torch.Tensor | None]) -> None:
        """Take what backward gave for the rows of each table that was looked up."""
        if self.is_past:
            raise ArgumentError(
                "backward through a lookup in sharded tables whose gradients have been exchanged, "
                "or which is older than its owners remember; look up again after step()"
            )
        for place, grad in zip(self._places, grads, strict=True):
            if grad is None:
                continue
            own = grad.detach().float()
            before = self.grads[place]
            self.grads[place] = own if before is None else before + own


class ShardGradients(Gradients):
    """The gradients of this rank's shard of a table, and those that wait to go to other ranks."""

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        self.owners: list[ShardedTables] = []

    @classmethod
    def of(cls, parameter: TableParameter) -> "ShardGradients":
        """Return the gradients of a parameter, made such as have owners."""
        if not isinstance(parameter.gradients, cls):
            parameter.gradients = cls(parameter.table)
        return parameter.gradients

    def __bool__(self) -> bool:
        return self._is_waiting() or super().__bool__()

    def clear(self) -> None:
        """Forget all gradients, those that wait too."""
        super().clear()
        for owner in self.owners:
            owner.forget_gradients(owner.place_of(self._table))

    def sums(self) -> torch.Tensor | None:
        """Return the sums of the keys owned here, or what says that they are not known yet."""
        return _unsent() if self._is_waiting() else super().sums()

    def _is_waiting(self) -> bool:
        return any(
            each.grads[owner.place_of(self._table)] is not None
            for owner in self.owners
            for each in owner.rounds.values()
        )


class _UnsentGradient(torch.Tensor):
    """What `TableParameter.grad` is while its parts are on several ranks: not None, and no more."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Refuse everything."""
        raise ArgumentTypeError(
            "the gradient of a sharded table is on several ranks until step(); clip it by "
            "embstore.torch.clip_grad_norm_(model, max_norm). GradScaler is not supported"
        )


def _unsent() -> torch.Tensor:
    return torch.empty(0).as_subclass(_UnsentGradient)


def send_gradients(parameters: Iterable[TableParameter]) -> None:
    """Bring the gradients of sharded tables to the ranks that own the keys; all take part.

    Parameters
    ----------
    parameters
        In an order that is the same on all ranks; those that are not sharded are passed over.
    """
    owners: dict[Any, None] = {}
    for parameter in parameters:
        if isinstance(parameter.gradients, ShardGradients):
            owners.update(dict.fromkeys(parameter.gradients.owners))
    by_wire: dict[Wire, list[ShardedTables]] = {}
    for owner in owners:
        by_wire.setdefault(owner.wire, []).append(owner)
    for wire, own in by_wire.items():
        _Exchange(wire, own).run()


class _Exchange:
    """The gradients that wait in some modules, in one exchange."""

    def __init__(self, wire: Wire, owners: list["ShardedTables"]) -> None:
        self._wire = wire
        self._owners = owners
        self._rounds = [(owner, each) for owner in owners for each in owner.rounds.values()]
        self._flags = np.array(
            [grad is not None for _, each in self._rounds for grad in each.grads], bool
        )

    def run(self) -> None:
        """Take part."""
        flags = self._flags_of_ranks()
        to, of = self._sizes(flags)
        if flags.any():
            message = np.empty(sum(int(n) for n in to), np.float32)
            self._fill(message, to)
            sizes = [4 * n for n in to], [4 * n for n in of]
            received = self._wire.main.send("gradients", message.view(np.uint8), *sizes)
            self._deliver(received.view(np.float32), of, flags)
        self._let_go(flags)

    def _flags_of_ranks(self) -> NDArray[np.bool_]:
        """Return which gradients each rank has, (world_size, n)."""
        bits = self._flags
        n_words = -(-len(bits) // FLAGS_IN_WORD)
        padded = np.zeros((n_words, FLAGS_IN_WORD), np.int64)
        padded.reshape(-1)[: len(bits)] = bits
        shifts = np.arange(FLAGS_IN_WORD, dtype=np.int64)
        words = np.tile((padded << shifts).sum(axis=1), (self._wire.world_size, 1))
        numbers = [each.number for _, each in self._rounds]
        state = hash(tuple((owner.digest, owner.clock.now) for owner in self._owners))
        tags = (state, GRADIENTS, hash(tuple(numbers)), self._owners[0].clock.now)
        heard = self._wire.main.agree("step", tags, words)
        for owner in self._owners[:1]:
            owner.traffic.count_equal("sizes", self._wire.main, n_words)
        spread = (heard[:, :, None] >> shifts) & 1
        return spread.reshape(self._wire.world_size, -1)[:, : len(bits)].astype(bool)

    def _parts(self) -> Any:
        """Yield each table of each round: owner, round, place, dim."""
        for owner, each in self._rounds:
            for place, parameter in enumerate(owner.parameters.values()):
                yield owner, each, place, parameter.table.dim

    def _sizes(self, flags: NDArray[np.bool_]) -> tuple[list[int], list[int]]:
        """Return how many numbers go to each rank and come from each; count them as traffic."""
        rank, n_ranks = self._wire.rank, self._wire.world_size
        by_owner = {id(owner): np.zeros((2, n_ranks), np.int64) for owner in self._owners}
        for i, (owner, each, place, dim) in enumerate(self._parts()):
            own = by_owner[id(owner)]
            own[0] += each.n_to[:, place] * dim * flags[rank, i]
            own[1] += each.n_from[:, place] * dim * flags[:, i]
        if flags.any():
            for owner in self._owners:
                own_to, own_of = (4 * by_owner[id(owner)]).tolist()
                owner.traffic.count("gradients", self._wire.main, own_to, own_of)
        to, of = sum(by_owner.values(), np.zeros((2, n_ranks), np.int64))
        return to.tolist(), of.tolist()

    def _fill(self, message: NDArray[np.float32], to: list[int]) -> None:
        starts = [first for first, _ in bounds_of(np.array(to))]
        for _, each, place, dim in self._parts():
            grad = each.grads[place]
            if grad is None:
                continue
            numbers = grad.cpu().contiguous().numpy().reshape(-1)
            for rank, (first, last) in enumerate(bounds_of(each.n_to[:, place] * dim)):
                message[starts[rank] : starts[rank] + last - first] = numbers[first:last]
                starts[rank] += last - first

    def _deliver(
        self, received: NDArray[np.float32], of: list[int], flags: NDArray[np.bool_]
    ) -> None:
        """Give the tables what their keys got from all ranks, the average over ranks."""
        starts = [first for first, _ in bounds_of(np.array(of))]
        received *= np.float32(1 / self._wire.world_size)
        for i, (owner, each, place, dim) in enumerate(self._parts()):
            if not flags[:, i].any():
                continue
            name = owner.names[place]
            n_from = each.n_from[:, place]
            grads = np.zeros((int(n_from.sum()), dim), np.float32)
            for rank, (first, last) in enumerate(bounds_of(n_from)):
                if flags[rank, i]:
                    n = (last - first) * dim
                    own = received[starts[rank] : starts[rank] + n]
                    grads[first:last] = own.reshape(-1, dim)
                    starts[rank] += n
            batch = each.batches[name]
            lookup = Lookup(
                batch.batch, torch.from_numpy(grads), store=owner.owned, features={name: batch}
            )
            owner.parameters[name].gradients.add(lookup)

    def _let_go(self, flags: NDArray[np.bool_]) -> None:
        """Forget the rounds that were exchanged, and those of which nothing is to be expected."""
        first = 0
        for owner, each in self._rounds:
            own = flags[:, first : first + len(each.grads)]
            first += len(each.grads)
            if own.any() or each.number <= owner.n_calls - PATIENCE:
                owner.rounds.pop(each.number)
                each.is_past = True
                each.grads = [None] * len(each.grads)
