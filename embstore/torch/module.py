"""What all embedding modules share: their tables, the step, and what a module is asked to be."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import torch

from embstore import ArgumentError, ArgumentTypeError, EmbstoreWarning, Table
from embstore.torch.names import Handle
from embstore.torch.parameter import TableParameter
from embstore.torch.state import load_table, places_of, save_table


class TableModule(torch.nn.Module):
    """A module whose rows live in tables.

    In training (``train()``, gradients on) a lookup counts its ids, admits and inserts them; in
    ``model.eval()``, under no_grad, and where ``requires_grad_(False)`` froze it, it only reads.

    Its ``state_dict()`` holds each table whole, as one tensor of bytes that takes the memory of a
    checkpoint; ``load_state_dict()`` replaces the table, or leaves it as it was and says why. As
    every save it begins the change log anew, so that the next delta elsewhere is a full save. The
    state dict of a ``torch.nn.Embedding`` of n rows makes the table one of the ids 0 to n - 1.
    Tables that are larger than half of the memory are saved by ``table.save(path)``, beside a state
    dict without them.

    Attributes
    ----------
    tables_in_state_dict : bool
        True; False leaves the tables out of state dicts, which warns once.
    """

    tables_in_state_dict: bool = True

    _handles: tuple[Handle, ...]
    _has_shards = False  # of which DDP passes over the parameters
    _shard: tuple[int, int] | None = None  # (rank, number of ranks) of what has a part of the rows
    _has_warned = False

    def __init__(self, fused: bool, output_dtype: torch.dtype | None) -> None:
        super().__init__()
        is_dtype = isinstance(output_dtype, torch.dtype) and output_dtype.is_floating_point
        if output_dtype is not None and not is_dtype:
            raise ArgumentTypeError(f"output_dtype must be a floating dtype, got {output_dtype!r}")
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
            parameter = TableParameter.of(table, self._has_shards)
            if self.fused and table.optimizer is None:
                raise ArgumentError(
                    f"{type(self).__name__}: fused=True trains table {table.name!r} in backward, "
                    f"but it has no optimizer"
                )
            found.append(parameter)
        self._handles = tuple(parameter.handle for parameter in found)
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
        asked = {fn(torch.empty(0, dtype=d)).dtype for d in (torch.float32, torch.float16)}
        if len(asked) == 1:  # of both, so that it is a dtype that is asked for and not a device
            (self.output_dtype,) = asked
        return self

    def _named_tables(self) -> Mapping[Any, TableParameter]:
        """Return the tables by their names, or the only one by None."""
        return {None: self.weight}

    def _is_training(self) -> bool:
        """Return whether a lookup now counts, inserts and asks for gradients."""
        if not (self.training and torch.is_grad_enabled()):
            return False
        states = {p.is_trained for p in self._named_tables().values()}
        if len(states) > 1:
            raise ArgumentError(
                f"{type(self).__name__}: some of its tables are frozen and some are not; put them "
                f"into a collection of their own"
            )
        return states == {True}

    def _placeholders(self) -> list[str]:
        """Return the names of the parameters that stand for the tables."""
        return [n for n, p in self._parameters.items() if isinstance(p, TableParameter)]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self._placeholders():
            del destination[f"{prefix}{name}"]
        for parameter, place in places_of(self._named_tables(), prefix, self._shard):
            if self.tables_in_state_dict:
                save_table(parameter, destination, place.full)
        if not (self.tables_in_state_dict or self._has_warned):
            self._has_warned = True
            warnings.warn(
                f"{type(self).__name__}: tables_in_state_dict=False leaves its tables out of the "
                f"state dict; save them by table.save(path)",
                EmbstoreWarning,
                stacklevel=4,
            )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = {f"{prefix}{name}" for name in self._placeholders()}
        for parameter, place in places_of(self._named_tables(), prefix, self._shard):
            own.update((place.full, *place.dense, *place.others(state_dict)))
            if place.full in state_dict:
                unexpected_keys.extend(key for key in place.dense if key in state_dict)
            if place.is_in(state_dict):
                error = load_table(parameter, place, state_dict)
                error_msgs.extend([] if error is None else [error])
            elif self.tables_in_state_dict:
                missing_keys.append(place.full)
        rest = {key: value for key, value in state_dict.items() if key not in own}
        missing: list[str] = []
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing, unexpected_keys, error_msgs
        )
        missing_keys.extend(key for key in missing if key not in own)

    def _as_output(self, rows: torch.Tensor) -> torch.Tensor:
        dtype = self.output_dtype
        return rows if dtype is None or rows.dtype == dtype else rows.to(dtype)
