"""Lookups in graphs: what modules do under torch.compile and torch.export.

1. A graph makes each lookup that eager would make, in the same order, at each call, and so gives
   the same rows, inserts, counts and gradients.
2. In graphs, PyTorch refuses effects within torch.utils.checkpoint: keep tables out of what is
   computed twice. ``backward(retain_graph=True)`` needs graphs compiled without donated buffers
   (``torch._functorch.config.donated_buffer = False``), as for any other module.
3. An exported graph only reads. Whoever loads it needs the operators, which `register` brings.
"""

from collections.abc import Sequence
from typing import Any

import torch

from embstore import ArgumentError, ArgumentTypeError, Table
from embstore.serving import ServingTable
from embstore.torch import operators
from embstore.torch.inputs import Ids
from embstore.torch.names import REGISTERED, Handle, Served


def register(name: str, table: Table | ServingTable | None) -> None:
    """Give a table to the exported graphs of this process that read a table of this name.

    A model that was exported holds the names of its tables and not their rows. The process that
    loads it opens the tables' checkpoint, and registers them before the first prediction. Import
    this function before ``torch.export.load`` is called: the operators of graphs come with it.

    Parameters
    ----------
    name
        As the graph has it: the name of the table at the export.
    table
        A `Table` or a table of `embstore.serving`. It is kept until the name is registered again,
        which takes effect at the next prediction, or with None, which gives it up. To close it is
        the caller's affair, as before.

    Notes
    -----
    In a process that has modules, exported graphs read their tables without being told, unless
    several have the name. What is registered goes before; the modules do not see it.

    Examples
    --------
    >>> import embstore as es
    >>> from embstore.torch import register
    >>> table = es.Table(dim=2, name="shop")
    >>> register("shop", table)
    >>> register("shop", None)
    """
    if not isinstance(name, str):
        raise ArgumentTypeError(f"register: name must be a str, got {type(name).__name__}")
    if table is None:
        REGISTERED.pop(name, None)
        return
    if not isinstance(table, Table | ServingTable):
        raise ArgumentTypeError(
            f"register: expected a Table, or a table of embstore.serving.open, for {name!r}, got "
            f"{type(table).__name__}"
        )
    REGISTERED[name] = table if isinstance(table, Table) else Served(table)


def look_up(
    module: Any, handles: Sequence[Handle], ids: Sequence[Ids], mode: str, padding: int | None
) -> list[torch.Tensor]:
    """Return rows of features in a graph, in their tables' dtypes; pooled where ids have offsets.

    `handles` are those of the features' tables.
    """
    given = [own.flat for own in ids]
    given += [own.offsets for own in ids if own.offsets is not None]
    if any(own.weights is not None for own in ids):
        given += [
            torch.empty(0, device=own.flat.device) if own.weights is None else own.weights.detach()
            for own in ids
        ]
    is_exported = torch.compiler.is_exporting()
    plans = [handle.exported_plan if is_exported else handle.plan for handle in handles]
    plan = "[" + ", ".join(plans) + "]"
    is_training = module.training and torch.is_grad_enabled()
    if is_training and not all(handle.is_frozen for handle in handles):
        if is_exported:
            raise ArgumentError(
                "a model in training cannot be exported: its lookups insert. Call model.eval()"
            )
        if not operators.HAS_EFFECTS:
            raise ArgumentError(
                f"training under torch.compile needs a newer PyTorch than {torch.__version__}, one "
                f"that keeps the effects of operators: put the tables' modules behind "
                f"torch.compiler.disable, or upgrade"
            )
        found = operators.train(handles[0].anchor, given, plan, mode, padding, module.fused)[:-1]
    else:
        found = operators.read_many(given, plan, mode, padding, is_exported)
    return [rows.to(handle.dtype) for rows, handle in zip(found, handles, strict=True)]


def weighted(module: Any, ids: Ids, mode: str) -> torch.Tensor:
    """Pool in torch, in a graph, for the gradient of the weights: the rule of ``Table.pooled``."""
    offsets, weights, padding = ids.offsets, ids.weights, module.padding_id
    assert offsets is not None
    assert weights is not None
    bag, flat = operators.bag_of_each(offsets, ids.flat)
    is_id = torch.ones_like(flat, dtype=torch.bool) if padding is None else flat != padding
    singles = None if padding is None else torch.arange(flat.shape[0] + 1, device=flat.device)
    own = ids._replace(flat=flat, offsets=singles, weights=None)
    (rows,) = look_up(module, module._handles, [own], "sum", padding)
    factors = (weights.float() * is_id).reshape(-1, 1)
    zeros = rows.new_zeros((offsets.shape[0] - 1, rows.shape[1]), dtype=torch.float32)
    pooled = zeros.index_add(0, bag, rows.float() * factors)
    if mode == "sum":
        return pooled.to(rows.dtype)
    n_ids = zeros.new_zeros(zeros.shape[0]).index_add(0, bag, is_id.float()).clamp(min=1)[:, None]
    return (pooled / (n_ids if mode == "mean" else n_ids.sqrt())).to(rows.dtype)
