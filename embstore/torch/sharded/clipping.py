"""Clipping by the norm of all gradients: of the dense part, and of tables on all ranks."""

import numpy as np
import torch

from embstore import ArgumentError
from embstore.torch.parameter import TableParameter
from embstore.torch.sharded.gradients import ShardGradients, send_gradients

CLIP = 6  # the call, as headers name it


def clip_grad_norm_(
    model: torch.nn.Module, max_norm: float, norm_type: float = 2.0
) -> torch.Tensor:
    """Scale all gradients of a model so that their norm is at most `max_norm`.

    As ``torch.nn.utils.clip_grad_norm_``, and sharded tables count with the gradients of their keys
    on all ranks, duplicates summed and averaged over ranks. All ranks take part and get one norm,
    given that their dense gradients are equal, as DDP makes them.

    Parameters
    ----------
    model
        With sharded tables or without.
    max_norm
        The norm that is allowed, more than 0.
    norm_type
        The order of the norm; infinity is the largest absolute value.

    Returns
    -------
    () float32
        The norm before.

    Examples
    --------
    >>> import torch, embstore as es
    >>> from embstore.torch import Embedding, clip_grad_norm_
    >>> embedding = Embedding(dim=2, optimizer=es.SGD(lr=1.0), name="item")
    >>> embedding(torch.tensor([7, 5, 7])).sum().backward()
    >>> clip_grad_norm_(embedding, 1.0), embedding.weight.grad.norm()
    (tensor(3.1623), tensor(1.0000))
    """
    if not (max_norm > 0 and norm_type > 0):
        raise ArgumentError(
            f"clip_grad_norm_: max_norm and norm_type must be more than 0, got {max_norm} and "
            f"{norm_type}"
        )
    parameters = [*model.parameters()]
    tables = [p for p in parameters if isinstance(p, TableParameter)]
    send_gradients(tables)
    shards = [p for p in tables if isinstance(p.gradients, ShardGradients)]
    others = [p for p in parameters if not getattr(p, "is_shard", False)]
    powers = [_power([p.grad for p in others], norm_type)]
    powers += _over_ranks(shards, norm_type)
    is_largest = norm_type == float("inf")
    total = max(powers) if is_largest else sum(powers) ** (1.0 / norm_type)
    scale = min(1.0, max_norm / (total + 1e-6))  # as torch has it
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.detach().mul_(scale)
    return torch.tensor(total)


def _power(grads: list[torch.Tensor | None], norm_type: float) -> float:
    """Return the sum of ``|g| ** norm_type``, or the largest ``|g|``."""
    own = [g for g in grads if g is not None and g.numel()]
    norms = [float(torch.linalg.vector_norm(g.detach().float(), norm_type)) for g in own]
    if norm_type == float("inf"):
        return max(norms, default=0.0)
    return sum(norm**norm_type for norm in norms)


def _over_ranks(shards: list[TableParameter], norm_type: float) -> list[float]:
    """Return `_power` of the tables of each wire: of each rank, in the order of the ranks."""
    by_wire: dict[object, list[TableParameter]] = {}
    for parameter in shards:
        assert isinstance(parameter.gradients, ShardGradients)
        for owner in parameter.gradients.owners[:1]:
            by_wire.setdefault(owner.wire, []).append(parameter)
    powers: list[float] = []
    for own in by_wire.values():
        gradients = own[0].gradients
        assert isinstance(gradients, ShardGradients)
        wire = gradients.owners[0].wire
        word = np.array([_power([p.grad for p in own], norm_type)], np.float64).view(np.int64)
        words = np.tile(word, (wire.world_size, 1))
        heard = wire.main.agree("clip_grad_norm_", (CLIP, CLIP, 0, own[0].clock.now), words)
        powers += heard.view(np.float64).reshape(-1).tolist()
    return powers
