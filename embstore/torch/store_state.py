"""Tables in the checkpoints of torch.distributed.checkpoint, beside the dense part of a model."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from embstore import ArgumentError, ArgumentTypeError, CheckpointMismatchError, Store, Table
from embstore.torch.clock import Clock
from embstore.torch.packing import pack, unpack_into
from embstore.torch.parameter import TableParameter
from embstore.torch.state import suffix_of


class StoreState:
    """A store's tables, or a model's, as ``torch.distributed.checkpoint`` saves and loads them.

    ``dcp.save({"model": dense.state_dict(), "tables": StoreState(store)}, checkpoint_id=path)``
    and ``dcp.load`` of the same: each table goes whole, and comes back in place. Of several
    processes each has its own tables, or its shards, under keys that say so; another number of
    processes does not find them: what is to be resharded is saved by the sharded modules' ``save``.
    Saving takes the memory of the tables once more, and so does loading.

    Parameters
    ----------
    tables
        A `Store`, or a module that holds embedding modules.
    process_group
        Of whose processes this is one; the default group's, where torch.distributed runs.

    Examples
    --------
    >>> import embstore as es
    >>> from embstore.torch import StoreState
    >>> store = es.Store([es.Table(dim=2, name="user")])
    >>> [*StoreState(store).state_dict()]
    ['user']
    """

    def __init__(self, tables: Store | torch.nn.Module, process_group: Any = None) -> None:
        self._shard = None
        if dist.is_available() and dist.is_initialized():
            rank, n = dist.get_rank(process_group), dist.get_world_size(process_group)
            self._shard = (rank, n) if n > 1 else None
        if isinstance(tables, Store):
            self._tables = {name: TableParameter.known(tables[name]) for name in tables}
            self._of = {name: tables[name] for name in tables}
        elif isinstance(tables, torch.nn.Module):
            parameters = [p for p in tables.parameters() if isinstance(p, TableParameter)]
            self._of = _by_name(parameters)
            self._tables = {p.table.name: p for p in parameters}
        else:
            raise ArgumentTypeError(
                f"StoreState: expected a Store or a module, got {type(tables).__name__}"
            )
        if not self._of:
            raise ArgumentError("StoreState: there is no table to save")

    def state_dict(self) -> dict[str, Any]:
        """Return each table as the bytes of a checkpoint, by its key."""
        found = {}
        for name, table in self._of.items():
            parameter = self._tables[name]
            now = (Clock.of(table) if parameter is None else parameter.clock).next
            # In a tuple it is an object of any size to them; a tensor keeps that of a template.
            found[self._key(name)] = (pack(table, now),)
        return found

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Make each table what was saved.

        Raises
        ------
        CheckpointMismatchError
            If a table is missing, or was saved by another number of processes.
        CorruptCheckpointError
            If a table's bytes are none; it is as it was, tables before it are loaded.
        """
        for name, table in self._of.items():
            key = self._key(name)
            if key not in state_dict:
                raise CheckpointMismatchError(
                    f"there is no {key!r} among {sorted(map(str, state_dict))}; what another "
                    f"number of processes saved is loaded by the save() and load() of the sharded "
                    f"modules"
                )
            saved = state_dict[key]
            if isinstance(saved, tuple) and len(saved) == 1:
                (saved,) = saved
            now = unpack_into(table, saved, repr(key))
            parameter = self._tables[name]
            if parameter is not None:
                parameter.gradients.clear()
                parameter.clock.set(now)

    def _key(self, name: str) -> str:
        return f"{name}{suffix_of(self._shard)}"


def _by_name(parameters: list[TableParameter]) -> dict[str, Table]:
    found: dict[str, Table] = {}
    for parameter in parameters:
        name = parameter.table.name
        if name in found:
            raise ArgumentError(f"StoreState: two tables of the model have the name {name!r}")
        found[name] = parameter.table
    return found
