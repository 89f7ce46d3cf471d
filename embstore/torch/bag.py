"""EmbeddingBag: bags of ids to one row each, the place of ``torch.nn.EmbeddingBag``."""

from typing import Any, Self

import torch

from embstore import ArgumentError, ArgumentTypeError, Table
from embstore._adapters import Mode, check_mode, check_padding, table_of
from embstore.torch import compiled
from embstore.torch.crossing import dtype_of, read
from embstore.torch.dense import DenseEmbeddingBag, dense_rows, pretrained_table
from embstore.torch.inputs import Ids, as_ids, check_offsets, check_weights
from embstore.torch.lookup import BagsOf, RowsOf, bags_of, pooled_by_torch, read_bags
from embstore.torch.module import TableModule
from embstore.torch.parameter import TableParameter


class EmbeddingBag(TableModule):
    """Pooled rows of bags of ids, as ``torch.nn.EmbeddingBag``.

    Parameters
    ----------
    table
        A `Table`, which other modules may use too; or None, and `parameters` make one.
    mode
        "sum", "mean" (divides by the ids in the bag, padding excepted), or "sqrtn" (by the square
        root of that).
    padding_id
        An id that fills up: it is neither looked up, counted nor trained.
    include_last_offset
        Whether `offsets` end with the number of ids, as for ``torch.nn.EmbeddingBag``.
    fused, output_dtype, **parameters
        As for `Embedding`.

    Notes
    -----
    ``forward(ids, offsets=None, per_sample_weights=None)``: ids (n_bags, length) are bags of one
    length; ids (n,) need offsets; (values, offsets), jagged nested tensors and TorchRec's
    JaggedTensor carry theirs, which end with the number of ids. An empty bag is 0. Weights that
    ask for gradients get them, by a slower way.

    Examples
    --------
    >>> import torch, embstore as es
    >>> from embstore.torch import EmbeddingBag
    >>> bag = EmbeddingBag(dim=2, mode="mean", initializer=es.Constant(0.5), name="tags")
    >>> bag(torch.tensor([7, 5, 7]), offsets=torch.tensor([0, 2])).detach()
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """

    weight: TableParameter

    def __init__(
        self,
        table: Table | None = None,
        *,
        mode: Mode = "mean",
        padding_id: int | None = None,
        include_last_offset: bool = False,
        fused: bool = False,
        output_dtype: torch.dtype | None = None,
        **parameters: Any,
    ) -> None:
        super().__init__(fused, output_dtype)
        table = table_of(table, parameters, type(self).__name__, "num_embeddings")
        (self.weight,) = self._adopt([table])
        self.mode = check_mode(mode, type(self).__name__)
        self.padding_id = check_padding(padding_id, type(self).__name__)
        self.include_last_offset = bool(include_last_offset)
        self.embedding_dim = table.dim

    @classmethod
    def from_pretrained(
        cls,
        weight: torch.Tensor,
        keys: torch.Tensor | None = None,
        *,
        freeze: bool = True,
        mode: Mode = "mean",
        padding_id: int | None = None,
        include_last_offset: bool = False,
        fused: bool = False,
        output_dtype: torch.dtype | None = None,
        **parameters: Any,
    ) -> Self:
        """Return a module whose table has the rows of a tensor; see `Embedding.from_pretrained`."""
        table = pretrained_table(weight, keys, parameters, f"{cls.__name__}.from_pretrained")
        made = cls(
            table,
            mode=mode,
            padding_id=padding_id,
            include_last_offset=include_last_offset,
            fused=fused,
            output_dtype=output_dtype,
        )
        return made.requires_grad_(not freeze)

    def to_dense(self, keys: torch.Tensor | None = None) -> DenseEmbeddingBag:
        """Return rows of the table as a plain module of torch; see `Embedding.to_dense`."""
        return DenseEmbeddingBag(
            *dense_rows(self.table, keys),
            mode=self.mode,
            padding_id=self.padding_id,
            include_last_offset=self.include_last_offset,
        )

    @property
    def table(self) -> Table:
        """The table that holds the rows."""
        return self.weight.table

    def forward(
        self,
        ids: Any,
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the pooled rows, (n_bags, dim)."""
        given = self._bags(ids, offsets, per_sample_weights)
        weights = given.weights
        if torch.compiler.is_compiling():
            return self._as_output(self._compiled(given))
        if weights is not None and weights.requires_grad and torch.is_grad_enabled():
            pooled = self._weighted(given, weights)
        else:
            pooled = self._pooled(given)
        return self._as_output(pooled.to(dtype_of(self.table)))

    def _bags(self, ids: Any, offsets: torch.Tensor | None, weights: torch.Tensor | None) -> Ids:
        """Return ids with offsets that end with their number, and weights."""
        where = type(self).__name__
        given = as_ids(ids, where)
        if given.offsets is not None:
            if offsets is not None:
                raise ArgumentError(f"{where}: offsets came twice, with the ids and beside them")
        else:
            assert given.shape is not None
            given = given._replace(offsets=self._offsets(given.flat, given.shape, offsets))
        if weights is not None:
            if given.weights is not None:
                raise ArgumentError(f"{where}: weights came twice, with the ids and beside them")
            if isinstance(weights, torch.Tensor) and weights.is_nested:
                weights = weights.values()
            check_weights(weights, given.flat.shape[0], where)
            given = given._replace(weights=weights.reshape(-1))
        if self.padding_id is not None or given.weights is not None:
            assert given.offsets is not None  # both count by them before the table can refuse them
            check_offsets(given.offsets, given.flat.shape[0], where)
        return given

    def _offsets(
        self, flat: torch.Tensor, shape: torch.Size, offsets: torch.Tensor | None
    ) -> torch.Tensor:
        where = type(self).__name__
        if len(shape) == 2:
            if offsets is not None:
                raise ArgumentError(
                    f"{where}: ids {tuple(shape)} are bags already; got offsets too"
                )
            return torch.arange(shape[0] + 1, device=flat.device) * shape[1]
        if len(shape) != 1 or offsets is None:
            raise ArgumentError(
                f"{where}: ids must be (n_bags, length), or (n,) with offsets; got ids of shape "
                f"{tuple(shape)}{'' if offsets is None else ' and offsets'}"
            )
        if not isinstance(offsets, torch.Tensor):
            raise ArgumentTypeError(
                f"{where}: offsets must be a tensor, got {type(offsets).__name__}"
            )
        if offsets.dim() != 1:
            raise ArgumentError(f"{where}: offsets must be (n_bags,), got {tuple(offsets.shape)}")
        if self.include_last_offset:
            return offsets
        return torch.cat([offsets, offsets.new_full((1,), flat.shape[0])])

    def _pooled(self, given: Ids) -> torch.Tensor:
        weight, is_training = self.weight, self._is_training()
        flat, bags = bags_of(given, self.mode, self.padding_id, is_training)
        if is_training:
            return BagsOf.apply(weight, flat, bags, self.fused)
        return read_bags(weight.table, flat, bags)

    def _weighted(self, given: Ids, weights: torch.Tensor) -> torch.Tensor:
        """Pool in torch, for the gradient of the weights."""
        weight = self.weight
        if self.padding_id is not None:
            is_id = given.flat != self.padding_id
            flat, bags = bags_of(given._replace(weights=None), self.mode, self.padding_id, False)
            offsets = torch.from_numpy(bags.offsets).to(flat.device)
            given, weights = Ids(flat, None, offsets), weights[is_id]
        if self._is_training():
            rows = RowsOf.apply(weight, given.flat, self.fused)
        else:
            rows = read(weight.table, given.flat)
        return pooled_by_torch(rows, given, self.mode, weights)

    def _compiled(self, given: Ids) -> torch.Tensor:
        weights = given.weights
        if weights is not None and weights.requires_grad and torch.is_grad_enabled():
            return compiled.weighted(self, given, self.mode)
        (pooled,) = compiled.look_up(self, self._handles, [given], self.mode, self.padding_id)
        return pooled

    def _is_training(self) -> bool:
        return self.training and torch.is_grad_enabled() and bool(self.weight.is_trained)

    def extra_repr(self) -> str:
        """Return what distinguishes the module, for ``print(model)``."""
        padding = "" if self.padding_id is None else f", padding_id={self.padding_id}"
        fused = ", fused=True" if self.fused else ""
        return f"{self.table!r}, mode={self.mode!r}{padding}{fused}"
