"""What the layers compute on PyTorch: the modules of embstore.torch, trained in backward."""

import weakref
from functools import cache
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from embstore import ArgumentError, Table
from embstore.torch import Embedding, EmbeddingBag, TableParameter

SUPPORTS_JIT = False


class Clock:
    """The step of a table's parameter."""

    def __init__(self, parameter: TableParameter) -> None:
        self._parameter = parameter

    @property
    def now(self) -> int:
        """The step of the next training lookup."""
        return self._parameter.clock.next

    def set(self, now: int) -> None:
        """Set the step."""
        self._parameter.clock.set(now)


class Named:
    """A table, and the modules that look up in it; one for each table, as long as it is used.

    Layers do not have the modules as attributes: Keras would take them for parts of the model.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.key = table.name
        self.clock = Clock(TableParameter.of(table))
        self.rows_by = cache(self._rows_by)
        self.bags_by = cache(self._bags_by)

    def _rows_by(self, padding_id: int | None, is_training: bool) -> torch.nn.Module:
        return Embedding(self.table, padding_id=padding_id, fused=is_training).train(is_training)

    def _bags_by(self, mode: Any, padding_id: int | None, is_training: bool) -> torch.nn.Module:
        module = EmbeddingBag(self.table, mode=mode, padding_id=padding_id, fused=is_training)
        return module.train(is_training)


class _Anchored(torch.autograd.Function):
    """Rows as they are, and 0 for the anchor, since Keras expects a gradient of each variable."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
        """Return the rows, as what layers behind this one may change in place."""
        return rows.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of the rows, and 0."""
        return grads, grads.new_zeros(())


def check(where: str) -> None:
    """Raise where layers cannot work: nowhere."""


def name_of(table: Table) -> Named:
    """Return what a table has had or gets now."""
    known = _NAMED.get(id(table))
    if known is None:
        known = _NAMED[id(table)] = Named(table)
    return known


def state_of(named: Named) -> list[Any]:
    """Return nothing: the step is of this process, as the table."""
    return []


def rows(layer: Any, ids: torch.Tensor, is_training: bool) -> torch.Tensor:
    """Return the rows (*shape, dim) of ids."""
    found = layer.named.rows_by(layer.padding_id, is_training)(ids)
    return _as_output(layer, found, is_training)


def bags(layer: Any, ids: torch.Tensor, weights: Any, is_training: bool) -> torch.Tensor:
    """Return the pooled rows (..., dim) of bags along the last axis."""
    where = type(layer).__name__
    if ids.dim() < 2:
        raise ArgumentError(
            f"{where}: ids must be bags, (..., length), got a tensor of shape {tuple(ids.shape)}"
        )
    shape = (ids.shape[:-1].numel(), ids.shape[-1])
    if weights is not None:
        weights = torch.as_tensor(weights).detach()
        if weights.shape != ids.shape:
            raise ArgumentError(
                f"{where}: weights must be one for each id, {tuple(ids.shape)}, got "
                f"{tuple(weights.shape)}"
            )
        weights = weights.reshape(shape)
    pool = layer.named.bags_by(layer.mode, layer.padding_id, is_training)
    pooled = pool(ids.reshape(shape), None, weights)
    return _as_output(layer, pooled.view(*ids.shape[:-1], layer.embedding_dim), is_training)


def mask(layer: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return where ids are not padding."""
    return ids.to(torch.int64) != layer.padding_id


def _as_output(layer: Any, rows: torch.Tensor, is_training: bool) -> torch.Tensor:
    if is_training:
        rows = _Anchored.apply(rows, layer.anchor.value)
    return rows.to(getattr(torch, layer.compute_dtype))


# By id, which is nobody else's: a Named holds its table.
_NAMED: weakref.WeakValueDictionary[int, Named] = weakref.WeakValueDictionary()
