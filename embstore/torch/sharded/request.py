"""What ranks ask of one another: each key once, with its count, sent to the rank that owns it."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from embstore import ArgumentTypeError, Table
from embstore.checkpoint import shard_of
from embstore.torch.crossing import keys_of
from embstore.torch.sharded.traffic import Traffic
from embstore.torch.sharded.wire import Channel

Keys = NDArray[np.int64]
Counts = NDArray[np.uint32]
Sizes = NDArray[np.int64]  # (world_size, n_tables): keys to or of each rank
KEY_BYTES, COUNT_BYTES = 8, 4
IS_ASKED = 1  # the lowest bit of a size on the wire: whether the table is looked up at all


class Unique(NamedTuple):
    """One table's keys without duplicates, those of rank 0 first."""

    keys: Keys
    counts: Counts
    n_to: Keys  # (world_size,)

    @classmethod
    def of(cls, ids: Keys, world_size: int) -> tuple["Unique", Keys]:
        """Return the unique keys of ids, and the place of each id among them."""
        found, places, n = torch.unique(
            torch.from_numpy(ids), return_inverse=True, return_counts=True
        )
        keys, inverse, counts = found.numpy(), places.numpy(), n.numpy()
        if world_size == 1:
            n_to = np.array([len(keys)], np.int64)
            return cls(keys, counts.astype(np.uint32), n_to), inverse
        owners = shard_of(keys, world_size).astype(np.uint16)
        order = np.argsort(owners, kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        n_to = np.bincount(owners, minlength=world_size).astype(np.int64)
        return cls(keys[order], counts[order].astype(np.uint32), n_to), place[inverse]


class Asked(NamedTuple):
    """What this rank looks up."""

    tables: list[Unique]
    n_to: Sizes
    is_asked: list[bool]  # by table
    inverse: dict[str, Keys]  # by feature: the place of each id among its table's keys

    @classmethod
    def of(
        cls,
        keys: Mapping[str, torch.Tensor],
        tables: Mapping[str, Table],
        features: Mapping[str, str],
        world_size: int,
    ) -> "Asked":
        """Return the unique keys of flat ids by feature, all features of a table together."""
        by_table: dict[str, dict[str, Keys]] = {name: {} for name in tables}
        for feature, ids in keys.items():
            name = features[feature]
            by_table[name][feature] = _as_keys(ids, tables[name])
        found, inverse = [], {}
        for own in by_table.values():
            joined = np.concatenate([np.empty(0, np.int64), *own.values()])
            unique, places = Unique.of(joined, world_size)
            found.append(unique)
            for feature, ids, end in zip(
                own, own.values(), accumulate(map(len, own.values())), strict=True
            ):
                inverse[feature] = places[end - len(ids) : end]
        n_to = np.stack([unique.n_to for unique in found], axis=1)
        return cls(found, n_to, [bool(own) for own in by_table.values()], inverse)


class Request(NamedTuple):
    """What all ranks look up, as this one knows it: its own, and the keys that it owns."""

    call: int
    number: int
    asked: Asked
    n_from: Sizes
    is_asked: list[bool]  # by table: on any rank
    keys: list[Keys]  # by table: those of rank 0 first
    counts: list[Counts]


def exchange_keys(
    channel: Channel, tags: Sequence[int], asked: Asked, traffic: Traffic, has_counts: bool
) -> Request:
    """Tell the owners which keys are looked up here, and hear which are elsewhere."""
    words = asked.n_to << 1 | np.array(asked.is_asked, np.int64) * IS_ASKED
    heard = channel.agree("lookup", tags, words)
    traffic.count_equal("sizes", channel, words.shape[1])
    n_from = heard >> 1
    is_asked = [bool(column.any()) for column in (heard & IS_ASKED).T]
    width = KEY_BYTES + has_counts * COUNT_BYTES
    to, of = (asked.n_to.sum(axis=1) * width).tolist(), (n_from.sum(axis=1) * width).tolist()
    received = channel.send("keys", _packed(asked, channel.world_size, has_counts), to, of)
    traffic.count("keys", channel, to, of)
    keys, counts = _unpacked(received, n_from, has_counts)
    return Request(tags[1], tags[2], asked, n_from, is_asked, keys, counts)


def _packed(asked: Asked, world_size: int, has_counts: bool) -> NDArray[np.uint8]:
    """Return for each rank the keys of all tables, and then their counts."""
    parts: list[Any] = [np.empty(0, np.uint8)]
    bounds = [bounds_of(unique.n_to) for unique in asked.tables]
    for rank in range(world_size):
        owns = [slice(*ends[rank]) for ends in bounds]
        parts += [u.keys[own].view(np.uint8) for u, own in zip(asked.tables, owns, strict=True)]
        if has_counts:
            parts += [
                u.counts[own].view(np.uint8) for u, own in zip(asked.tables, owns, strict=True)
            ]
    return np.concatenate(parts)


def _unpacked(
    received: NDArray[np.uint8], n_from: Sizes, has_counts: bool
) -> tuple[list[Keys], list[Counts]]:
    n_tables = n_from.shape[1]
    keys: list[list[Keys]] = [[] for _ in range(n_tables)]
    counts: list[list[Counts]] = [[] for _ in range(n_tables)]
    first = 0
    for sizes in n_from.tolist():
        for own, n in zip(keys, sizes, strict=True):
            own.append(received[first : first + KEY_BYTES * n].view(np.int64))
            first += KEY_BYTES * n
        for tally, n in zip(counts, sizes if has_counts else [0] * n_tables, strict=True):
            tally.append(received[first : first + COUNT_BYTES * n].view(np.uint32))
            first += COUNT_BYTES * n
    return [np.concatenate(own) for own in keys], [np.concatenate(tally) for tally in counts]


def bounds_of(sizes: Keys) -> list[tuple[int, int]]:
    """Return the first and last place of each of consecutive parts."""
    return [*pairwise(_ends(sizes.tolist()))]


def _ends(sizes: list[int]) -> Iterator[int]:
    return accumulate(sizes, initial=0)


def _as_keys(ids: torch.Tensor, table: Table) -> Keys:
    """Return flat ids as int64 of the host: uint64 by its bits, smaller integers widened."""
    keys_of(ids[:0], table)  # raises if they are no integers
    host = ids.detach().cpu().contiguous().numpy()
    if host.dtype.itemsize not in (4, 8):
        raise ArgumentTypeError(
            f"ids must be an integer tensor (int64, or int32 and uint64), got {ids.dtype}"
        )
    return host.view(np.int64) if host.dtype == np.uint64 else host.astype(np.int64, copy=False)
