"""Several shards read as the one table that they are shards of.

1. Shards hold disjoint keys. A key in two of them, as a row or as a candidate, is an error.
2. Streams are merged a block of each at a time: memory does not grow with the table.
3. Sub-filters are merged cell by cell by their maximum: a key was counted in the filter of the
   one shard that owns it, so that no estimate is below the key's count.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from embstore.checkpoint.checks import STEP_SPAN
from embstore.checkpoint.content import Block, CandidateBlock, KeyBlock, RowBlock, joined
from embstore.checkpoint.fields import POWER_FIELDS, TOTAL_FIELDS, UINT64_MAX
from embstore.checkpoint.partition import partition_of
from embstore.checkpoint.source import (
    LAST,
    SavedTable,
    State,
    highest_step,
)
from embstore.errors import CheckpointMismatchError, CorruptCheckpointError, EmbstoreError
from embstore.policies import admission as admissions

OnTwice = Callable[[int, int, int], None]


class MergedTable:
    """The shards of one table, as a source."""

    dropped: str | None = None

    def __init__(self, shards: Sequence[SavedTable]) -> None:
        _check_alike(shards)
        first = shards[0]
        self.shards = shards
        self.name = first.name
        self.place = f"{', '.join(shard.path for shard in shards)}: table {first.name!r}"
        self.dim = first.dim
        self.dtype = first.dtype
        self.slots = first.slots
        self.config = first.config
        self.state = merged_state([shard.state for shard in shards])
        self.pins = np.unique(np.concatenate([shard.pins for shard in shards]))
        self.n_rows = sum(shard.n_rows for shard in shards)
        self.n_candidates = sum(shard.n_candidates for shard in shards)
        self.bloom_bytes = first.bloom_bytes
        self._cell_bits = _cell_bits(self.config, self.place) if self.bloom_bytes else 0

    def rows(self, first: int = 0, last: int = LAST) -> Iterator[RowBlock]:
        """Yield the rows of partitions [first, last]."""
        return merged([shard.rows(first, last) for shard in self.shards], self._raise_twice)

    def candidates(self, first: int = 0, last: int = LAST) -> Iterator[CandidateBlock]:
        """Yield the candidates of partitions [first, last]."""
        return merged([shard.candidates(first, last) for shard in self.shards], self._raise_twice)

    def bloom(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the 256 sub-filters; nothing without a filter."""
        if not self.bloom_bytes:
            return
        for parts in zip(*(shard.bloom() for shard in self.shards), strict=True):
            data = parts[0]
            for other in parts[1:]:
                data = greatest_cells(data, other, self._cell_bits)
            yield data

    def check_finite(self, allow_nonfinite: bool) -> None:
        """Raise CheckpointMismatchError if there is NaN or infinity and that is not allowed."""
        for shard in self.shards:
            shard.check_finite(allow_nonfinite)

    def _raise_twice(self, key: int, one: int, other: int) -> None:
        raise_twice(key, self.shards[one], self.shards[other])


def raise_twice(key: int, one: SavedTable, other: SavedTable) -> None:
    """Raise since a key is in two shards, or a row and a candidate of one."""
    if one is other:
        raise CorruptCheckpointError(f"{one.place}: key {key} has a row and is a candidate")
    raise CorruptCheckpointError(
        f"key {key} of table {one.name!r} is in {one.path} and in {other.path}; shards of a table "
        f"hold disjoint keys"
    )


def check_disjoint(shards: Sequence[SavedTable]) -> None:
    """Read shards whole; raise if a key is in two of them, or has a row and is a candidate."""
    streams: list[Iterator[KeyBlock]] = []
    for shard in shards:
        streams.append(KeyBlock(block.keys) for block in shard.rows())
        streams.append(KeyBlock(block.keys) for block in shard.candidates())
    for _ in merged(streams, lambda key, i, j: raise_twice(key, shards[i // 2], shards[j // 2])):
        pass


def _check_alike(shards: Sequence[SavedTable]) -> None:
    """Raise unless all are of one table: the learning rate alone may differ."""
    first = shards[0]
    for shard in shards[1:]:
        for what in ("dim", "dtype", "slots", "bloom_bytes"):
            mine, theirs = getattr(first, what), getattr(shard, what)
            if mine != theirs:
                raise _unlike(first, shard, what, mine, theirs)
        ours, its = _without_lr(first.config), _without_lr(shard.config)
        for name in sorted(set(ours) | set(its)):
            if ours.get(name) != its.get(name):
                raise _unlike(first, shard, name, ours.get(name), its.get(name))


def _without_lr(config: dict[str, object]) -> dict[str, object]:
    optimizer = config.get("optimizer")
    return (
        {**config, "optimizer": {**optimizer, "lr": None}}
        if isinstance(optimizer, dict)
        else config
    )


def _unlike(
    first: SavedTable, shard: SavedTable, what: str, mine: object, theirs: object
) -> CheckpointMismatchError:
    return CheckpointMismatchError(
        f"{shard.path}: table {shard.name!r} is no shard of the one in {first.path}: its {what} is "
        f"{theirs}, there it is {mine}"
    )


def merged_state(states: Sequence[State]) -> State:
    """Return clocks and totals of the table whose shards have these.

    `step` and `candidate_epoch` are the greatest. `step_base` is the least if 32 bits hold all
    rows' steps from there, else the greatest, and older rows are to be clamped. Training
    clocks are those of the shard that trained most. What is due next is due when it is in any
    shard. Totals add up.
    """
    base = min(int(state["step_base"]) for state in states)
    if max(map(highest_step, states)) - base >= STEP_SPAN:
        base = max(int(state["step_base"]) for state in states)
    most = max(states, key=lambda state: (state["n_train_steps"], state["last_train_step"]))
    trained = ("n_train_steps", "last_train_step", *POWER_FIELDS)
    least = ("next_evict", "next_freq_halve", "next_bloom_halve")
    return {
        "step": max(state["step"] for state in states),
        "step_base": base,
        "candidate_epoch": max(state["candidate_epoch"] for state in states),
        **{name: most[name] for name in trained},
        **{name: min(state[name] for state in states) for name in least},
        **{
            name: min(UINT64_MAX, sum(int(state[name]) for state in states))
            for name in TOTAL_FIELDS
        },
    }


def merged(streams: Sequence[Iterator[Block]], on_twice: OnTwice) -> Iterator[Block]:
    """Yield the blocks of sorted streams as one sorted stream.

    `on_twice` gets a key that two streams have, and their numbers; it raises.
    """
    held: list[Block | None] = [None] * len(streams)
    while True:
        for i, stream in enumerate(streams):
            block = held[i]
            if block is None or not len(block):
                held[i] = next((each for each in stream if len(each)), None)
        live = {i: block for i, block in enumerate(held) if block is not None}
        if not live:
            return
        taken = _up_to_frontier(live)
        for i, n in taken.items():
            held[i] = live[i][n:]
        parts = {i: live[i][:n] for i, n in taken.items() if n}
        yield _in_order(parts, on_twice)


def _up_to_frontier(live: dict[int, Block]) -> dict[int, int]:
    """Return how many entries of each block precede all that its stream may still hold.

    The frontier is the least of the blocks' last entries: nothing that comes later precedes it.
    """
    keys = {i: block.keys for i, block in live.items()}
    partitions = {i: partition_of(k) for i, k in keys.items()}
    partition, key = min((int(partitions[i][-1]), int(keys[i][-1])) for i in keys)
    return {
        i: int(
            np.count_nonzero(
                (partitions[i] < partition) | ((partitions[i] == partition) & (keys[i] <= key))
            )
        )
        for i in keys
    }


def _in_order(parts: dict[int, Block], on_twice: OnTwice) -> Block:
    """Return the entries of sorted parts as one sorted block."""
    block = joined(list(parts.values()))
    if len(parts) == 1:
        return block
    order = np.lexsort((block.keys, partition_of(block.keys)))
    keys = block.keys[order]
    is_twice = keys[1:] == keys[:-1]
    if is_twice.any():
        at = int(is_twice.argmax())
        owner = np.repeat(list(parts), [len(part) for part in parts.values()])[order]
        on_twice(int(keys[at]), int(owner[at]), int(owner[at + 1]))
    return block[order]


def greatest_cells(
    one: NDArray[np.uint8], other: NDArray[np.uint8], cell_bits: int
) -> NDArray[np.uint8]:
    """Return the greater of each cell of two sub-filters, whose cells have 1, 2 or 4 bits."""
    greatest = np.zeros_like(one)
    for shift in range(0, 8, cell_bits):
        mask = np.uint8(((1 << cell_bits) - 1) << shift)
        greatest |= np.maximum(one & mask, other & mask)
    return greatest


def _cell_bits(config: dict[str, object], place: str) -> int:
    admission = config.get("admission")
    try:
        policy = admissions.from_config(admission)  # type: ignore[arg-type]  # it is checked there
    except EmbstoreError as error:
        raise CheckpointMismatchError(f"{place}: {error}") from error
    if not isinstance(policy, admissions.BloomAdmission):
        raise CheckpointMismatchError(f"{place} has a bloom filter, and admission={policy}")
    return policy.cell_bits
