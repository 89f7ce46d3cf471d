"""What all embedding modules share: their tables, the step, and what a module is asked to be."""

from collections.abc import Callable, Iterable
from typing import Any, Self

import torch

from embstore import ArgumentError, ArgumentTypeError, Table
from embstore.torch.parameter import TableParameter


class TableModule(torch.nn.Module):
    """A module whose rows live in tables.

    In training (``train()``, gradients on) a lookup counts its ids, admits and inserts them; in
    ``eval()``, under no_grad, and where ``requires_grad_(False)`` froze it, it only reads.
    """

    def __init__(self, fused: bool, output_dtype: torch.dtype | None) -> None:
        super().__init__()
        if output_dtype is not None and not output_dtype.is_floating_point:
            raise ArgumentTypeError(f"output_dtype must be a floating dtype, got {output_dtype}")
        self.fused = bool(fused)
        self.output_dtype = output_dtype

    def _table_parameters(self) -> list[TableParameter]:
        return [p for p in self.parameters(recurse=True) if isinstance(p, TableParameter)]

    def _adopt(self, tables: Iterable[Table]) -> list[TableParameter]:
        """Return the parameters of tables, which are trained as this module says."""
        found = []
        for table in tables:
            if not isinstance(table, Table):
                raise ArgumentTypeError(
                    f"{type(self).__name__}: expected an embstore.Table, got {type(table).__name__}"
                )
            parameter = TableParameter.of(table)
            if self.fused and table.optimizer is None:
                raise ArgumentError(
                    f"{type(self).__name__}: fused=True trains table {table.name!r} in backward, "
                    f"but it has no optimizer"
                )
            found.append(parameter)
        return found

    @property
    def step(self) -> int:
        """The step of the next training lookup; set it to go on from another."""
        return max((p.clock.now for p in self._table_parameters()), default=0)

    @step.setter
    def step(self, step: int) -> None:
        for parameter in self._table_parameters():
            parameter.clock.set(step)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Take the dtype of ``half()`` and its like for outputs; a table does not move."""
        probe = fn(torch.empty(0))
        if probe.dtype != torch.float32:
            self.output_dtype = probe.dtype
        return self

    def _as_output(self, rows: torch.Tensor) -> torch.Tensor:
        dtype = self.output_dtype
        return rows if dtype is None or rows.dtype == dtype else rows.to(dtype)


def table_of(table: Table | None, parameters: dict[str, Any], where: str) -> Table:
    """Return the table that was given, or a new one of `parameters`."""
    if table is None:
        if "dim" not in parameters:
            raise ArgumentTypeError(
                f"{where}: give a table, or dim=... and other arguments of Table"
            )
        return Table(**parameters)
    if parameters:
        raise ArgumentTypeError(
            f"{where}: {sorted(parameters)} are parameters of a table, and one was given"
        )
    if not isinstance(table, Table):
        raise ArgumentTypeError(
            f"{where}: expected an embstore.Table, got {type(table).__name__}; rows are made by "
            f"ids, so that there is no num_embeddings: {where}(dim=16, optimizer=...)"
        )
    return table
