"""Tables in the state dicts of modules: each whole, under a key of its own.

1. ``<prefix>table`` holds the table of a module, ``<prefix>table.<name>`` one of a collection; of a
   sharded module the key says which shard it is, of how many.
2. Modules that share a table share one tensor.
3. A table is loaded whole or not at all; what is wrong is one line.
"""

import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from embstore import ArgumentError, EmbstoreError, Table
from embstore.torch.dense import assign_rows, check_weight
from embstore.torch.packing import pack, unpack_into
from embstore.torch.parameter import TableParameter

KEY = "table"


class Place(NamedTuple):
    """Where a state dict has a table: as `pack` gave it, or as a dense weight of another module."""

    key: str  # without what says which shard it is
    shard: str
    dense: tuple[str, ...]

    @property
    def full(self) -> str:
        """The key."""
        return f"{self.key}{self.shard}"

    def is_in(self, keys: Mapping[str, Any]) -> bool:
        """Return whether a state dict has the table in any form."""
        return any(key in keys for key in (self.full, *self.dense)) or bool(self.others(keys))

    def others(self, keys: Mapping[str, Any]) -> list[str]:
        """Return keys under which the table stands as another shard, or as none."""
        marked = f"{self.key}.shard-"
        return sorted(k for k in keys if k != self.full and (k == self.key or k.startswith(marked)))


def suffix_of(shard: tuple[int, int] | None) -> str:
    """Return what the key of a table says of the shard that it is; "" of a whole one."""
    return "" if shard is None else f".shard-{shard[0]:05d}-of-{shard[1]:05d}"


def save_table(parameter: TableParameter, destination: dict[str, Any], key: str) -> None:
    """Put a table into a state dict: the tensor that it has there already, or a new one."""
    table = parameter.table
    known = _PACKED.get(table)
    if known is not None:
        of, state, packed = known
        is_there = of != key and destination.get(of) is packed() and packed() is not None
        if is_there and state == _state_of(parameter):
            destination[key] = destination[of]
            return
    packed_now = pack(table, parameter.clock.next)
    destination[key] = packed_now
    _PACKED[table] = (key, _state_of(parameter), weakref.ref(packed_now))


def load_table(
    parameter: TableParameter, place: Place, state_dict: Mapping[str, Any]
) -> str | None:
    """Load a table from the place where a state dict has it; return what is wrong, or None."""
    table = parameter.table
    try:
        if place.full in state_dict:
            now = unpack_into(table, state_dict[place.full], f"{place.full!r}")
        else:
            others = place.others(state_dict)
            if others:
                return _not_of_this_process(parameter, place, others)
            (dense,) = [key for key in place.dense if key in state_dict][:1]
            now = 0
            _load_dense(table, state_dict[dense], dense)
    except EmbstoreError as error:
        return f"table {table.name!r} is as it was: {str(error).strip()}"
    parameter.gradients.clear()  # of lookups in the rows of before
    parameter.clock.set(now)
    return None


def _load_dense(table: Table, weight: Any, what: str) -> None:
    """Make a table one of the ids 0 to n - 1, with the rows of a dense embedding."""
    checked = check_weight(weight, f"{what!r}", table.dim)
    with Table.from_config(table.config(), device=table.device) as made:
        assign_rows(made, np.arange(len(checked)), checked)
        if len(made) != len(checked):
            raise ArgumentError(
                f"{what!r} has {len(checked)} rows, of which {len(made)} fit into the table"
            )
        unpack_into(table, pack(made, 0), what)


def _not_of_this_process(parameter: TableParameter, place: Place, others: list[str]) -> str:
    own = "whole" if not place.shard else place.shard.lstrip(".")
    return (
        f"table {parameter.table.name!r} is {own} here, and the state dict has "
        f"{', '.join(map(repr, others))}; what another number of processes saved is loaded by the "
        f"save() and load() of the sharded module"
    )


def _state_of(parameter: TableParameter) -> tuple[Any, ...]:
    """Return numbers that differ if a table was trained in between."""
    stats = parameter.table.stats()
    return parameter.clock.next, *stats.values()


def places_of(
    tables: Mapping[str | None, TableParameter], prefix: str, shard: tuple[int, int] | None
) -> list[tuple[TableParameter, Place]]:
    """Return tables of a module and their places; None is the name of the only one.

    A dense weight is at the place of ``torch.nn.Embedding``, or of TorchRec's collections.
    """
    found = []
    for name, parameter in tables.items():
        if name is None:
            place = Place(f"{prefix}{KEY}", suffix_of(shard), (f"{prefix}weight",))
        else:
            dense = [f"{prefix}{kind}.{name}.weight" for kind in ("embedding_bags", "embeddings")]
            key = f"{prefix}{KEY}.{attribute_of(name)}"
            place = Place(key, suffix_of(shard), tuple(dense))
        found.append((parameter, place))
    return found


def attribute_of(name: str) -> str:
    """Return a table's name without dots, which part the names of modules."""
    return name.replace(".", "/")


_PACKED: weakref.WeakKeyDictionary[Table, tuple[str, Any, Any]] = weakref.WeakKeyDictionary()
