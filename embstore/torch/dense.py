"""Rows of a table as plain modules of torch, and tables from plain weights.

What leaves a table this way is a parameter like any other: trained by any optimizer, exported and
compiled without the library.
"""

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from embstore import ArgumentError, ArgumentTypeError, AssignReport, Table
from embstore.torch.crossing import dtype_of, read

N_VALUES_AT_ONCE = 1 << 22
NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class DenseEmbedding(torch.nn.Module):
    r"""Rows for ids by a sorted list of keys: plain torch, whose gradient is a dense tensor.

    `Embedding.to_dense` makes it of a table. An id that is not among the keys reads the last row,
    the default row, which is not trained unless `trains_default`.

    Parameters
    ----------
    keys : (n,) int64
        Sorted, each once.
    weight : (n + 1, dim)
        The row of each key, and the default row.
    padding_id
        An id whose row is zeros.
    trains_default
        Whether gradients of ids that are not among the keys train the default row.

    Notes
    -----
    ``forward(ids)``: int64 ids of any shape give (\*shape, dim). ``requires_grad_(False)`` freezes
    it as any module.

    Examples
    --------
    >>> import torch, embstore as es
    >>> from embstore.torch import Embedding
    >>> weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> dense = Embedding.from_pretrained(weight, keys=torch.tensor([70, -5])).to_dense()
    >>> dense(torch.tensor([[-5, 70], [9, 70]])).tolist()
    [[[3.0, 4.0], [1.0, 2.0]], [[0.0, 0.0], [1.0, 2.0]]]
    """

    keys: torch.Tensor

    def __init__(
        self,
        keys: torch.Tensor,
        weight: torch.Tensor,
        *,
        padding_id: int | None = None,
        trains_default: bool = False,
    ) -> None:
        super().__init__()
        where = type(self).__name__
        checked = _check_keys(keys, where)
        if len(checked) > 1 and not bool((checked[1:] > checked[:-1]).all()):
            raise ArgumentError(f"{where}: keys must be sorted, each once")
        rows = check_weight(weight, f"{where}: weight")
        if len(rows) != len(checked) + 1:
            raise ArgumentError(
                f"{where}: weight must have a row for each of {len(checked)} keys and the default "
                f"row, got {tuple(rows.shape)}"
            )
        self.register_buffer("keys", checked)
        self.weight = torch.nn.Parameter(rows.detach().clone())
        self.padding_id = padding_id
        self.trains_default = bool(trains_default)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the rows of ids."""
        ids = _check_ids(ids, type(self).__name__)
        rows = self._rows(ids)
        if self.padding_id is None:
            return rows
        return rows.masked_fill((ids == self.padding_id)[..., None], 0)

    def _rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the rows of ids, padding being one among them."""
        n = len(self.keys)
        if n == 0:
            place = torch.zeros_like(ids)
        else:
            place = torch.searchsorted(self.keys, ids).clamp(max=n - 1)
            place = torch.where(self.keys[place] == ids, place, n)
        no_gradient = None if self.trains_default else n
        return functional.embedding(place, self.weight, padding_idx=no_gradient)

    def write_back(self, table: Table) -> AssignReport:
        """Write the row of each key to a table, in which keys without a row get one.

        The default row is no part of it: a table's is fixed.

        Returns
        -------
        AssignReport
            Numbers of keys: replaced, inserted, refused.

        Raises
        ------
        ArgumentError
            If the table has another dim.
        NonFiniteError, CapacityError
            As ``Table.assign``.
        """
        if not isinstance(table, Table):
            raise ArgumentTypeError(
                f"{type(self).__name__}.write_back: expected an embstore.Table, got "
                f"{type(table).__name__}"
            )
        check_weight(self.weight, f"{type(self).__name__}.write_back: weight", table.dim)
        return assign_rows(table, self.keys.cpu().numpy(), self.weight[:-1])

    def extra_repr(self) -> str:
        """Return what distinguishes the module, for ``print(model)``."""
        padding = "" if self.padding_id is None else f", padding_id={self.padding_id}"
        default = ", trains_default=True" if self.trains_default else ""
        return f"{len(self.keys)} keys, dim={self.weight.shape[1]}{padding}{default}"


class DenseEmbeddingBag(DenseEmbedding):
    """Pooled rows for bags of ids by a sorted list of keys: plain torch.

    `EmbeddingBag.to_dense` makes it of a table.

    Parameters
    ----------
    keys, weight, padding_id, trains_default
        As for `DenseEmbedding`; padding is not in the bags.
    mode, include_last_offset
        As for `EmbeddingBag`.

    Notes
    -----
    ``forward(ids, offsets=None, per_sample_weights=None)``: ids (n_bags, length), or (n,) with
    offsets, give (n_bags, dim). An empty bag is 0.

    Examples
    --------
    >>> import torch
    >>> from embstore.torch import EmbeddingBag
    >>> weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> bag = EmbeddingBag.from_pretrained(weight, mode="sum").to_dense()
    >>> bag(torch.tensor([0, 1, 1]), torch.tensor([0, 2])).tolist()
    [[4.0, 6.0], [3.0, 4.0]]
    """

    def __init__(
        self,
        keys: torch.Tensor,
        weight: torch.Tensor,
        *,
        mode: str = "mean",
        padding_id: int | None = None,
        include_last_offset: bool = False,
        trains_default: bool = False,
    ) -> None:
        super().__init__(keys, weight, padding_id=padding_id, trains_default=trains_default)
        if mode not in ("sum", "mean", "sqrtn"):
            raise ArgumentError(
                f'{type(self).__name__}: mode must be "sum", "mean" or "sqrtn", got {mode!r}'
            )
        self.mode = mode
        self.include_last_offset = bool(include_last_offset)

    def forward(
        self,
        ids: torch.Tensor,
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the pooled rows, (n_bags, dim)."""
        where = type(self).__name__
        ids = _check_ids(ids, where)
        bag, n_bags = self._bags(ids, offsets)
        flat = ids.reshape(-1)
        rows = self._rows(flat)
        factors = rows.new_ones(len(flat), 1)
        if self.padding_id is not None:
            factors = (flat != self.padding_id).to(rows.dtype)[:, None]
        lengths = rows.new_zeros(n_bags, 1).index_add(0, bag, factors).clamp(min=1)
        if per_sample_weights is not None:
            if per_sample_weights.numel() != len(flat):
                raise ArgumentError(
                    f"{where}: per_sample_weights must be one for each id, {len(flat)}, got shape "
                    f"{tuple(per_sample_weights.shape)}"
                )
            factors = factors * per_sample_weights.reshape(-1, 1).to(rows.dtype)
        pooled = rows.new_zeros(n_bags, rows.shape[1]).index_add(0, bag, rows * factors)
        if self.mode == "sum":
            return pooled
        return pooled / (lengths if self.mode == "mean" else lengths.sqrt())

    def _bags(self, ids: torch.Tensor, offsets: torch.Tensor | None) -> tuple[torch.Tensor, int]:
        """Return the bag of each id, and how many there are."""
        if ids.dim() == 2 and offsets is None:
            n_bags, length = ids.shape
            return torch.arange(n_bags, device=ids.device).repeat_interleave(length), n_bags
        if ids.dim() != 1 or offsets is None or offsets.dim() != 1:
            raise ArgumentError(
                f"{type(self).__name__}: ids must be (n_bags, length), or (n,) with offsets; got "
                f"ids of shape {tuple(ids.shape)}"
                f"{'' if offsets is None else f' and offsets {tuple(offsets.shape)}'}"
            )
        starts = offsets[:-1] if self.include_last_offset else offsets
        place = torch.arange(len(ids), device=ids.device)
        return torch.searchsorted(starts.contiguous(), place, right=True) - 1, len(starts)

    def extra_repr(self) -> str:
        """Return what distinguishes the module, for ``print(model)``."""
        return f"{super().extra_repr()}, mode={self.mode!r}"


def dense_rows(table: Table, keys: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sorted keys (n,), all that have a row by default, and their rows and the default's."""
    if keys is None:
        found = [rows.keys for rows in table.export()]
        own = torch.from_numpy(np.sort(np.concatenate([np.empty(0, np.int64), *found])))
    else:
        own = _check_keys(keys, "to_dense").unique()
    with Table(
        table.dim, dtype=_name_of(dtype_of(table)), default_row=table.config()["default_row"]
    ) as empty:
        default = read(empty, torch.zeros(1, dtype=torch.int64, device="cpu"))
    return own, torch.cat([read(table, own), default])


def pretrained_table(
    weight: torch.Tensor, keys: torch.Tensor | None, parameters: dict[str, Any], where: str
) -> Table:
    """Return a new table with the rows of a tensor."""
    rows = check_weight(weight, f"{where}: weight")
    n, dim = rows.shape
    own = np.arange(n) if keys is None else _check_keys(keys, where).numpy()
    if len(own) != n:
        raise ArgumentError(f"{where}: keys must be one for each of {n} rows, got {len(own)}")
    if len(np.unique(own)) != n:
        raise ArgumentError(f"{where}: a key is there twice")
    if parameters.setdefault("dim", dim) != dim:
        raise ArgumentError(
            f"{where}: weight {tuple(rows.shape)} is not of dim={parameters['dim']}"
        )
    parameters.setdefault("dtype", _name_of(rows.dtype))
    table = Table(**parameters)
    assign_rows(table, own, rows)
    if len(table) != n:
        raise ArgumentError(f"{where}: weight has {n} rows, of which {len(table)} fit in the table")
    return table


def assign_rows(table: Table, keys: Any, rows: torch.Tensor) -> AssignReport:
    """Write rows (n, dim) of a tensor to keys (n,), in parts."""
    n_at_once = max(1, N_VALUES_AT_ONCE // table.dim)
    reports = []
    for first in range(0, len(keys), n_at_once):
        part = rows[first : first + n_at_once].detach().float().cpu().contiguous().numpy()
        reports.append(table.assign(keys[first : first + n_at_once], part))
    return AssignReport(*map(sum, zip(*reports, strict=True))) if reports else AssignReport(0, 0, 0)


def check_weight(weight: Any, what: str, dim: int | None = None) -> torch.Tensor:
    """Return the weight of an embedding, (n, dim) of a floating dtype."""
    if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
        shown = weight.dtype if isinstance(weight, torch.Tensor) else type(weight).__name__
        raise ArgumentTypeError(f"{what} must be a floating tensor (n, dim), got {shown}")
    if weight.dim() != 2 or (dim is not None and weight.shape[1] != dim):
        raise ArgumentError(
            f"{what} must be (n, {'dim' if dim is None else dim}), got {tuple(weight.shape)}"
        )
    return weight


def _check_keys(keys: Any, where: str) -> torch.Tensor:
    is_int = isinstance(keys, torch.Tensor) and keys.dtype == torch.int64
    if not is_int or keys.dim() != 1:
        shown = (
            f"{tuple(keys.shape)} {keys.dtype}" if isinstance(keys, torch.Tensor) else repr(keys)
        )
        raise ArgumentTypeError(f"{where}: keys must be an int64 tensor (n,), got {shown}")
    own: torch.Tensor = keys.detach().cpu()
    return own


def _check_ids(ids: torch.Tensor, where: str) -> torch.Tensor:
    if ids.dtype == torch.int64:
        return ids
    if ids.dtype == torch.uint64:
        return ids.view(torch.int64)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ArgumentTypeError(f"{where}: ids must be an integer tensor, got {ids.dtype}")
    return ids.long()


def _name_of(dtype: torch.dtype) -> Any:
    return NAMES.get(dtype, "float32")
