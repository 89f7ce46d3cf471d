"""The names of tables, by which graphs find them.

1. A graph that was compiled lives with its modules. It has the key of their parameter, which is of
   this process: the name, with a number behind it if several tables share it.
2. A graph that was exported has the name itself, and reads what was registered by it.
"""

import json
import weakref
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from embstore import SGD, ArgumentError, Constant, Table
from embstore.serving import ServingTable
from embstore.torch.crossing import DTYPES


class Handle:
    """What a graph holds of a table: its name, how its rows look, what carries their gradient.

    Modules keep it beside the parameter, which graphs do not touch.
    """

    def __init__(self, key: str, table: Table, anchor: torch.Tensor) -> None:
        self.key = key
        self.plan = json.dumps([key, table.dim, table.dtype])
        self.exported_plan = json.dumps([table.name, table.dim, table.dtype])
        self.dtype = DTYPES[table.dtype]
        self.anchor = anchor
        self.is_frozen = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "Handle":
        copied: Handle = OF_MODULES[self.key].__deepcopy__(memo).handle
        return copied


class Served:
    """A serving table that pools too, by the rule of ``Table.pooled`` and with its bits."""

    device = "cpu"

    def __init__(self, table: ServingTable) -> None:
        self.table = table
        self.dim, self.dtype = table.dim, table.dtype

    def find(self, keys: Any, **options: Any) -> Any:
        """Return the rows of keys, as ``Table.find``."""
        return self.table.find(keys, **options)

    def pooled(
        self, keys: NDArray[Any], offsets: Any, mode: Any, weights: Any
    ) -> NDArray[np.float32]:
        """Return the pooled rows of bags, as ``Table.pooled``."""
        unique = np.unique(keys)
        with Table(self.dim, optimizer=SGD(lr=0.0), initializer=Constant(0.0)) as rows:
            rows.assign(unique, np.asarray(self.table.find(unique), np.float32))
            return rows.pooled(keys, offsets, mode, weights)


def table_by_name(name: str) -> Any:
    """Return the table that an exported graph names: as registered, or as a module here has it."""
    table = REGISTERED.get(name)
    if table is not None:
        return table
    known = {id(p.table): p.table for p in [*OF_MODULES.values()] if p.table.name == name}
    if len(known) == 1:
        return known.popitem()[1]
    asked = f"call embstore.torch.register({name!r}, table)"
    if known:
        raise ArgumentError(
            f"{len(known)} tables of this process have the name {name!r}, which a graph reads: "
            f"{asked} for the one that is meant"
        )
    raise ArgumentError(
        f"no table is known by the name {name!r} in this process, which a graph reads: open its "
        f"checkpoint, as by embstore.serving.open(path), and {asked}; registered are "
        f"{sorted(REGISTERED)}"
    )


def free_key(name: str) -> str:
    """Return the name, or with a number behind it if another table's parameter has it."""
    key, n = name, 1
    while key in OF_MODULES:
        n += 1
        key = f"{name}#{n}"
    return key


OF_MODULES: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
REGISTERED: dict[str, Any] = {}
