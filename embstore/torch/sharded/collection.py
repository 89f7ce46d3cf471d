"""Sharded collections: many features over tables on many ranks, by one exchange for all."""

from collections.abc import Mapping
from typing import Any

import torch

from embstore._adapters import Mode
from embstore.torch.collection import EmbeddingBagCollection, EmbeddingCollection, Tables, as_bags
from embstore.torch.gradients import Bags
from embstore.torch.inputs import Ids, KeyedTensor, ids_by_feature
from embstore.torch.lookup import bags_of, bags_of_each
from embstore.torch.sharded.module import NOT_IN_GRAPHS, ShardedModule, features_of, refuse_fused


class ShardedEmbeddingCollection(ShardedModule, EmbeddingCollection):
    """An `EmbeddingCollection` whose rows lie on all ranks of a process group.

    Parameters
    ----------
    tables, features, padding_id, output_dtype
        As for `EmbeddingCollection`.
    fused, process_group
        As for `ShardedEmbedding`.

    Notes
    -----
    All features are looked up by one exchange of sizes, one of keys and one of rows, and trained by
    one of gradients, whatever their number.

    Examples
    --------
    >>> import torch, torch.distributed as dist, embstore as es
    >>> from embstore.torch import ShardedEmbeddingCollection
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> tables = [es.Table(dim=4, name=n, optimizer=es.Adagrad()) for n in ("user", "item")]
    >>> model = ShardedEmbeddingCollection(tables, {"user": "user", "shown": "item"})
    >>> rows = model({"user": torch.tensor([1, 2]), "shown": torch.tensor([[10, 11], [10, 12]])})
    >>> {feature: tuple(own.shape) for feature, own in rows.items()}
    {'user': (2, 4), 'shown': (2, 2, 4)}
    >>> dist.destroy_process_group()
    """

    def __init__(
        self,
        tables: Tables,
        features: Mapping[str, str] | None = None,
        *,
        padding_id: int | None = None,
        fused: bool = False,
        output_dtype: torch.dtype | None = None,
        process_group: Any = None,
    ) -> None:
        refuse_fused(fused, type(self).__name__)
        EmbeddingCollection.__init__(
            self, tables, features, padding_id=padding_id, output_dtype=output_dtype
        )
        self._share(self.store, process_group)

    @torch.compiler.disable(reason=NOT_IN_GRAPHS)
    def forward(self, ids: Any) -> dict[str, Any]:
        """Return the rows of each feature, in the form of its ids; all ranks take part."""
        given = ids_by_feature(ids, type(self).__name__)
        rows = self._served_rows((ids,), *self._keys_of(given))
        return {f: own.like_given(self._as_output(rows[f])) for f, own in given.items()}

    def _split(self, *given: Any) -> tuple[dict[str, Ids], dict[str, Bags] | None]:
        return self._keys_of(ids_by_feature(given[0], type(self).__name__))

    def _keys_of(self, given: dict[str, Ids]) -> tuple[dict[str, Ids], dict[str, Bags] | None]:
        features_of(self._shards, given)
        own = {f: ids._replace(weights=None) for f, ids in given.items()}
        return bags_of_each(own, self.padding_id)


class ShardedEmbeddingBagCollection(ShardedModule, EmbeddingBagCollection):
    """An `EmbeddingBagCollection` whose rows lie on all ranks of a process group.

    Parameters
    ----------
    tables, features, mode, padding_id, output_dtype
        As for `EmbeddingBagCollection`.
    fused, process_group
        As for `ShardedEmbedding`.

    Examples
    --------
    >>> import torch, torch.distributed as dist, embstore as es
    >>> from embstore.torch import ShardedEmbeddingBagCollection
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> tables = [es.Table(dim=4, name=n, optimizer=es.Adagrad()) for n in ("user", "tags")]
    >>> model = ShardedEmbeddingBagCollection(tables, mode={"user": "sum", "tags": "mean"})
    >>> tags = (torch.tensor([5, 6, 7]), torch.tensor([0, 2, 3]))
    >>> model({"user": torch.tensor([1, 2]), "tags": tags}).values().shape
    torch.Size([2, 8])
    >>> dist.destroy_process_group()
    """

    def __init__(
        self,
        tables: Tables,
        features: Mapping[str, str] | None = None,
        *,
        mode: Mode | Mapping[str, Mode] = "sum",
        padding_id: int | None = None,
        fused: bool = False,
        output_dtype: torch.dtype | None = None,
        process_group: Any = None,
    ) -> None:
        refuse_fused(fused, type(self).__name__)
        EmbeddingBagCollection.__init__(
            self, tables, features, mode=mode, padding_id=padding_id, output_dtype=output_dtype
        )
        self._share(self.store, process_group)

    @torch.compiler.disable(reason=NOT_IN_GRAPHS)
    def forward(self, ids: Any) -> KeyedTensor:
        """Return the pooled rows of each feature; all ranks take part."""
        rows = self._served_rows((ids,), *self._split(ids))
        return KeyedTensor({f: self._as_output(own) for f, own in rows.items()})

    def _split(self, *given: Any) -> tuple[dict[str, Ids], dict[str, Bags] | None]:
        where = type(self).__name__
        own = ids_by_feature(given[0], where)
        features_of(self._shards, own)
        is_training = self._is_training()
        keys, bags = {}, {}
        for feature, ids in own.items():
            bagged = as_bags(ids, f"{where}: {feature!r}", checks=True)
            flat, bags[feature] = bags_of(bagged, self.modes[feature], self.padding_id, is_training)
            keys[feature] = ids._replace(flat=flat, weights=None)
        return keys, bags
