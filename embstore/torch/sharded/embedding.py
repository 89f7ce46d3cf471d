"""ShardedEmbedding and ShardedEmbeddingBag: one table over many ranks."""

from typing import Any

import torch

from embstore import Store, Table
from embstore._adapters import Mode
from embstore.torch.bag import EmbeddingBag
from embstore.torch.embedding import Embedding
from embstore.torch.gradients import Bags
from embstore.torch.inputs import Ids, as_ids, check_offsets
from embstore.torch.lookup import bags_of, bags_of_each
from embstore.torch.sharded.module import NOT_IN_GRAPHS, ShardedModule, refuse_fused


class ShardedEmbedding(ShardedModule, Embedding):
    """An `Embedding` whose rows lie on all ranks of a process group.

    Parameters
    ----------
    table, padding_id, output_dtype, **parameters
        As for `Embedding`; the table of a rank holds the rows of the keys that the rank owns.
    fused
        Refused: ranks reach backward at different times.
    process_group
        Of torch.distributed; the default one by default.

    Raises
    ------
    DistributedError
        If the ranks make it with different tables.

    Examples
    --------
    >>> import torch, torch.distributed as dist, embstore as es
    >>> from embstore.torch import ShardedEmbedding, optimizer
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> model = ShardedEmbedding(dim=4, optimizer=es.Adagrad(lr=0.1), name="user")
    >>> trainer = optimizer(model)
    >>> model(torch.tensor([[7, -5], [7, 2**62]])).square().sum().backward()
    >>> trainer.step()
    >>> len(model.table), model.traffic()["rows"]["sent_bytes"]
    (3, 0)
    >>> dist.destroy_process_group()
    """

    def __init__(
        self,
        table: Table | None = None,
        *,
        padding_id: int | None = None,
        fused: bool = False,
        output_dtype: torch.dtype | None = None,
        process_group: Any = None,
        **parameters: Any,
    ) -> None:
        refuse_fused(fused, type(self).__name__)
        Embedding.__init__(
            self, table, padding_id=padding_id, output_dtype=output_dtype, **parameters
        )
        self._share(Store([self.table]), process_group)

    @torch.compiler.disable(reason=NOT_IN_GRAPHS)
    def forward(self, ids: Any) -> Any:
        """Return the rows of ids, in the form of the ids; all ranks take part."""
        given = as_ids(ids, type(self).__name__)
        (rows,) = self._served_rows((ids,), *self._keys_of(given)).values()
        return given.like_given(self._as_output(rows))

    def _split(self, *given: Any) -> tuple[dict[str, Ids], dict[str, Bags] | None]:
        (ids,) = given
        return self._keys_of(as_ids(ids, type(self).__name__))

    def _keys_of(self, ids: Ids) -> tuple[dict[str, Ids], dict[str, Bags] | None]:
        return bags_of_each({self.table.name: ids._replace(weights=None)}, self.padding_id)


class ShardedEmbeddingBag(ShardedModule, EmbeddingBag):
    """An `EmbeddingBag` whose rows lie on all ranks of a process group.

    Parameters
    ----------
    table, mode, padding_id, include_last_offset, output_dtype, **parameters
        As for `EmbeddingBag`.
    fused, process_group
        As for `ShardedEmbedding`.

    Examples
    --------
    >>> import torch, torch.distributed as dist, embstore as es
    >>> from embstore.torch import ShardedEmbeddingBag
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> bag = ShardedEmbeddingBag(dim=2, initializer=es.Constant(0.5), mode="sum", name="tags")
    >>> bag(torch.tensor([7, 5, 7]), torch.tensor([0, 2])).detach()
    tensor([[1.0000, 1.0000],
            [0.5000, 0.5000]])
    >>> dist.destroy_process_group()
    """

    def __init__(
        self,
        table: Table | None = None,
        *,
        mode: Mode = "mean",
        padding_id: int | None = None,
        include_last_offset: bool = False,
        fused: bool = False,
        output_dtype: torch.dtype | None = None,
        process_group: Any = None,
        **parameters: Any,
    ) -> None:
        refuse_fused(fused, type(self).__name__)
        EmbeddingBag.__init__(
            self,
            table,
            mode=mode,
            padding_id=padding_id,
            include_last_offset=include_last_offset,
            output_dtype=output_dtype,
            **parameters,
        )
        self._share(Store([self.table]), process_group)

    @torch.compiler.disable(reason=NOT_IN_GRAPHS)
    def forward(
        self,
        ids: Any,
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the pooled rows, (n_bags, dim); all ranks take part."""
        given = tuple(g for g in (ids, offsets, per_sample_weights) if g is not None)
        split = self._split(ids, offsets, per_sample_weights)
        (rows,) = self._served_rows(given, *split).values()
        return self._as_output(rows)

    def prefetch(
        self,
        ids: Any,
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> None:
        """Begin the lookup of a later batch; see ``ShardedEmbedding.prefetch``."""
        keys, _ = self._split(ids, offsets, per_sample_weights)
        given = tuple(g for g in (ids, offsets, per_sample_weights) if g is not None)
        flat = {f: own.flat for f, own in keys.items()}
        self._shards.prefetch(given, flat, self._is_training())

    def _split(self, *given: Any) -> tuple[dict[str, Ids], dict[str, Bags] | None]:
        own = self._bags(*given)
        assert own.offsets is not None
        check_offsets(own.offsets, len(own.flat), type(self).__name__)
        weights = own.weights  # as they are, for their gradients
        if weights is not None and self.padding_id is not None:
            weights = weights[own.flat != self.padding_id]
        unweighted = own._replace(weights=None)
        flat, bags = bags_of(unweighted, self.mode, self.padding_id, self._is_training())
        name = self.table.name
        return {name: own._replace(flat=flat, weights=weights)}, {name: bags}
