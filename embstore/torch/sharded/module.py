"""What the sharded modules share: tables over many ranks, prefetch, traffic and saves."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional

from embstore import ArgumentError, Store
from embstore.torch.crossing import dtype_of
from embstore.torch.gradients import Bags
from embstore.torch.inputs import Ids
from embstore.torch.module import TableModule
from embstore.torch.parameter import TableParameter
from embstore.torch.sharded.engine import ShardedTables
from embstore.torch.sharded.saving import save_shards
from embstore.torch.sharded.wire import Wire

NOT_IN_GRAPHS = "sharded tables exchange keys and rows, which no graph can hold"


class ShardedModule(TableModule):
    """A module whose rows lie on all ranks of a process group: a rank has the keys that it owns.

    All ranks make it with the same tables, and make the same calls of it in the same order, each
    with its own ids, which may be none. A failure of one is DistributedError on the others, at the
    latest after the time-out of the process group. Limits of a table (max_rows, max_bytes) are
    those of each shard.
    """

    _has_shards = True
    _shards: ShardedTables

    @property
    def _shard(self) -> tuple[int, int]:  # type: ignore[override]
        """Which part of the rows is here, as (rank, number of ranks): of keys in state dicts."""
        wire = self._shards.wire
        return wire.rank, wire.world_size

    def _share(self, store: Store, process_group: Any) -> None:
        """Make the tables of a store, which were adopted, shards."""
        where = type(self).__name__
        parameters = {name: TableParameter.of(store[name], is_shard=True) for name in store}
        wire = Wire.of(process_group, where)
        self._shards = ShardedTables(store, parameters, wire, where)
        self._shared_store = store

    def _split(self, *given: Any) -> tuple[dict[str, Ids], dict[str, Bags] | None]:
        """Return flat ids without padding by feature, and their bags; without, rows of each id."""
        raise NotImplementedError

    def _served_rows(self, given: tuple[Any, ...], *split: Any) -> dict[str, torch.Tensor]:
        """Return the rows, or the pooled rows, of each feature, in the table's dtype."""
        keys: dict[str, Ids]
        keys, bags = split
        shards = self._shards
        flat = {f: ids.flat for f, ids in keys.items()}
        found = shards.look_up(given, flat, self._is_training())
        rows = {}
        for feature, ids in keys.items():
            name = shards.features[feature]
            unique, inverse = found.rows[name], found.inverse[feature]
            if bags is None:
                own = functional.embedding(inverse, unique)
            else:
                own = pooled(unique, inverse, bags[feature], ids.weights)
            rows[feature] = own.to(dtype_of(shards.parameters[name].table))
        return rows

    def prefetch(self, *given: Any) -> None:
        """Begin the lookup of a later batch in the background, while this one is computed.

        Its keys are made unique and sent to their owners; rows are read when the module is called
        with the same objects, so that results are those without prefetch, to the bit. All ranks
        prefetch, or none.

        Parameters
        ----------
        *given
            What the module will be called with, by position.
        """
        keys, _ = self._split(*given)
        flat = {f: ids.flat for f, ids in keys.items()}
        self._shards.prefetch(given, flat, self._is_training())

    def forget_prefetched(self) -> None:
        """Give up what was prefetched, at the end of an epoch say; all ranks do, or none."""
        self._shards.forget_prefetched()

    def traffic(self) -> dict[str, dict[str, int]]:
        """Return what this rank has exchanged with others, by kind.

        Returns
        -------
        dict
            From "sizes", "keys", "rows" and "gradients" to ``n``, ``sent_bytes`` and
            ``received_bytes``.
        """
        return self._shards.traffic.snapshot()

    def save(self, path: "str | os.PathLike[str]", extra: Any = None) -> None:
        """Save the shards of all ranks as one checkpoint; all ranks take part.

        A save is in force when all of it is on the disk; until then, and after a crash, that is the
        one before. `load_shard` reads it on any number of ranks.

        Parameters
        ----------
        path
            A directory that all ranks see; a module has its own.
        extra
            What rank 0 saves beside the tables: tensors, numbers, strings, and dicts and lists of
            them, such as the ``state_dict()`` of the dense part.

        Raises
        ------
        DistributedError
            If another rank could not save; the save before is in force.
        """
        save_shards(path, self._shared_store, self._shards.wire, self._shards.clock.now, extra)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self._shards.__deepcopy__(memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._shards.__reduce__()


def refuse_fused(fused: bool, where: str) -> None:
    """Raise if a sharded module is to train in backward."""
    if fused:
        raise ArgumentError(
            f"{where}: fused=True trains in backward, which ranks reach at different times; train "
            f"sharded tables by embstore.torch.optimizer(model)"
        )


def pooled(
    unique: torch.Tensor, inverse: torch.Tensor, bags: Bags, weights: torch.Tensor | None
) -> torch.Tensor:
    """Pool unique rows (n_unique, dim), by the rule of ``Table.pooled``; (n_bags, dim) float32."""
    offsets = torch.as_tensor(bags.offsets, dtype=torch.int64, device=unique.device)
    if weights is None and bags.weights is not None:
        weights = torch.as_tensor(bags.weights, device=unique.device)
    factors = None if weights is None else weights.float()
    sums = functional.embedding_bag(
        inverse, unique, offsets, mode="sum", per_sample_weights=factors, include_last_offset=True
    )
    if bags.mode == "sum":
        return sums
    n = offsets.diff().clamp(min=1).to(sums.dtype)[:, None]
    return sums / (n if bags.mode == "mean" else n.sqrt())


def features_of(shards: ShardedTables, features: Mapping[str, Any]) -> None:
    """Raise if a feature is none of the module's."""
    for feature in features:
        if feature not in shards.features:
            raise ArgumentError(
                f"{shards.where}: unknown feature {feature!r}; there are {[*shards.features]}"
            )
