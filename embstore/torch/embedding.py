"""Embedding: ids of any shape to rows, the place of ``torch.nn.Embedding``."""

from typing import Any, Self

import torch

from embstore import Table
from embstore._adapters import check_padding, table_of
from embstore.torch import compiled
from embstore.torch.crossing import dtype_of, read
from embstore.torch.dense import DenseEmbedding, dense_rows, pretrained_table
from embstore.torch.inputs import as_ids
from embstore.torch.lookup import BagsOf, RowsOf, bags_of_one, read_bags
from embstore.torch.module import TableModule
from embstore.torch.parameter import TableParameter


class Embedding(TableModule):
    r"""Rows of a dynamic table for ids, as ``torch.nn.Embedding`` without a number of embeddings.

    Parameters
    ----------
    table
        A `Table`, which other modules may use too; or None, and `parameters` make one.
    padding_id
        An id that fills up: its row is zeros, it is neither looked up, counted nor trained.
    fused
        Train in backward, at once, as FBGEMM does; by default gradients wait for the step of
        ``embstore.torch.optimizer(model)``. Nothing can clip, scale or accumulate them then.
    output_dtype
        Of the rows returned; the table's by default.
    **parameters
        Of the `Table` to be made: ``dim=16, optimizer=es.Adagrad(lr=0.05), admission=...``.

    Attributes
    ----------
    weight : TableParameter
        Stands for the table among the model's parameters; ``weight.table`` is the table.

    Notes
    -----
    ``forward(ids)`` takes int64 ids, all 2**64 of them legal: a tensor of any shape gives
    (\*shape, dim); (values, offsets) and TorchRec's JaggedTensor give a `Jagged` of rows; a nested
    tensor of layout torch.jagged gives one.

    Examples
    --------
    >>> import torch, embstore as es
    >>> from embstore.torch import Embedding, optimizer
    >>> model = Embedding(dim=4, optimizer=es.Adagrad(lr=0.1), name="user")
    >>> trainer = optimizer(model)
    >>> model(torch.tensor([[7, -5], [7, 2**62]])).square().sum().backward()
    >>> trainer.step()
    >>> len(model.table), model.step
    (3, 1)
    """

    weight: TableParameter

    def __init__(
        self,
        table: Table | None = None,
        *,
        padding_id: int | None = None,
        fused: bool = False,
        output_dtype: torch.dtype | None = None,
        **parameters: Any,
    ) -> None:
        super().__init__(fused, output_dtype)
        table = table_of(table, parameters, type(self).__name__, "num_embeddings")
        (self.weight,) = self._adopt([table])
        self.padding_id = check_padding(padding_id, type(self).__name__)
        self.embedding_dim = table.dim

    @classmethod
    def from_pretrained(
        cls,
        weight: torch.Tensor,
        keys: torch.Tensor | None = None,
        *,
        freeze: bool = True,
        padding_id: int | None = None,
        fused: bool = False,
        output_dtype: torch.dtype | None = None,
        **parameters: Any,
    ) -> Self:
        """Return a module whose table has the rows of a tensor.

        Parameters
        ----------
        weight : (n, dim)
            In float32, float16 or bfloat16, which becomes the table's dtype (float64 becomes
            float32).
        keys : (n,) int64
            The id of each row; 0 to n - 1 by default.
        freeze
            Whether the table only reads; `requires_grad_` changes that.
        padding_id, fused, output_dtype, **parameters
            As for the class. Rows enter by `Table.assign`, whatever the admission.
        """
        table = pretrained_table(weight, keys, parameters, f"{cls.__name__}.from_pretrained")
        made = cls(table, padding_id=padding_id, fused=fused, output_dtype=output_dtype)
        return made.requires_grad_(not freeze)

    def to_dense(self, keys: torch.Tensor | None = None) -> DenseEmbedding:
        """Return rows of the table as a plain module of torch, which has a copy of them.

        Parameters
        ----------
        keys : (n,) int64
            Whose rows; all that the table has by default. A key without a row gets the default row.

        Returns
        -------
        DenseEmbedding
        """
        return DenseEmbedding(*dense_rows(self.table, keys), padding_id=self.padding_id)

    @property
    def table(self) -> Table:
        """The table that holds the rows."""
        return self.weight.table

    def forward(self, ids: Any) -> Any:
        """Return the rows of ids, in the form of the ids."""
        if torch.compiler.is_compiling():
            return self._compiled(ids)
        if type(ids) is torch.Tensor and self.padding_id is None and not ids.is_nested:
            if ids.dim() == 1:
                rows = self._rows(ids)
            else:
                rows = self._rows(ids.reshape(-1)).view(*ids.shape, self.embedding_dim)
            return rows if self.output_dtype is None else self._as_output(rows)
        given = as_ids(ids, type(self).__name__)
        rows = self._rows(given.flat) if self.padding_id is None else self._padded(given.flat)
        return given.like_given(self._as_output(rows))

    def _rows(self, flat: torch.Tensor) -> torch.Tensor:
        weight: Any = self._parameters["weight"]  # what self.weight gives, at a third of its time
        if self.training and torch.is_grad_enabled() and weight.is_trained:
            return RowsOf.apply(weight, flat, self.fused)
        return read(weight.table, flat)

    def _padded(self, flat: torch.Tensor) -> torch.Tensor:
        """Return rows, zeros for padding: those of bags of one id or none."""
        weight = self.weight
        assert self.padding_id is not None
        ids, bags = bags_of_one(flat, self.padding_id)
        if self.training and torch.is_grad_enabled() and weight.is_trained:
            rows = BagsOf.apply(weight, ids, bags, self.fused)
        else:
            rows = read_bags(weight.table, ids, bags)
        return rows.to(dtype_of(weight.table))

    def _compiled(self, ids: Any) -> Any:
        given = as_ids(ids, type(self).__name__)
        singles = None
        if self.padding_id is not None:
            singles = torch.arange(given.flat.shape[0] + 1, device=given.flat.device)
        own = given._replace(offsets=singles, weights=None)
        (rows,) = compiled.look_up(self, self._handles, [own], "sum", self.padding_id)
        return given.like_given(self._as_output(rows))

    def extra_repr(self) -> str:
        """Return what distinguishes the module, for ``print(model)``."""
        padding = "" if self.padding_id is None else f", padding_id={self.padding_id}"
        return f"{self.table!r}{padding}{', fused=True' if self.fused else ''}"
