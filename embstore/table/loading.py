"""From a checkpoint into a new table: all checks first, then the rows."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from embstore import engines
from embstore.checkpoint import OpenShards, SavedTable, Shard, TableSource, count_entries, fill
from embstore.engines.spec import TableSpec
from embstore.errors import (
    ArgumentError,
    CheckpointMismatchError,
    EmbstoreWarning,
)
from embstore.table.base import TableBase
from embstore.table.convert import Conversion, convert


class LoadPlan(NamedTuple):
    """A saved table and the spec it is to have; `n_reserved` rows are made room for at once.

    `max_bytes` is a bound that was asked for; what was saved under its bound fits into that.
    """

    spec: TableSpec
    source: TableSource
    n_reserved: int
    max_bytes: int | None


def check_names(where: str, what: str, given: Mapping[str, object], names: Iterable[str]) -> None:
    """Raise if a dict by table names others than those that are loaded."""
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ArgumentError(f"{where}: {what} names {unknown}; there are {list(names)}")


def plan_loads(
    opened: OpenShards,
    asked: Mapping[str, Any],
    shard: tuple[int, int] | None,
    place: engines.Place,
    allow_nonfinite: bool,
    where: str,
) -> dict[str, LoadPlan]:
    """Return the plan of each table; what is asked for is one value, or a dict by table."""
    for what, value in asked.items():
        if isinstance(value, Mapping):
            check_names(where, what, value, opened.tables)
    plans = {}
    for name, source in opened.tables.items():
        own: dict[str, Any] = {}
        for what, value in asked.items():
            if not isinstance(value, Mapping):
                own[what] = value
            elif name in value:
                own[what] = value[name]
        plans[name] = plan_load(source, Conversion(**own), shard, place, allow_nonfinite, where)
    return plans


def plan_load(
    source: TableSource,
    asked: Conversion,
    shard: tuple[int, int] | None,
    place: engines.Place,
    allow_nonfinite: bool,
    where: str,
) -> LoadPlan:
    """Return how a saved table is to be loaded, all being refused that cannot be.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        If a table cannot have what was asked for.
    CheckpointMismatchError
        If this one cannot be turned into that, or does not fit.
    """
    if shard is not None:
        source = Shard(source, *shard)
    spec, source = convert(source, asked, where, allow_nonfinite)
    source.check_finite(allow_nonfinite)
    _check_room(source, spec, place)
    bound = None if asked.max_bytes == "saved" else spec.max_bytes
    return LoadPlan(spec, source, 0 if shard else source.n_rows, bound)


def _check_room(source: TableSource, spec: TableSpec, place: engines.Place) -> None:
    """Raise if the rows do not fit into max_rows, or all into max_bytes."""

    def fault(n_rows: int, n_candidates: int) -> str | None:
        if spec.max_rows is not None and n_rows > spec.max_rows:
            return f"{n_rows} rows do not fit into max_rows={spec.max_rows}"
        if spec.max_bytes is None:
            return None
        n_bytes = engines.plan(spec, place, n_rows, n_candidates).resting_bytes
        if n_bytes <= spec.max_bytes:
            return None
        return f"{n_rows} rows take {n_bytes} bytes, more than max_bytes={spec.max_bytes}"

    if fault(source.n_rows, source.n_candidates):  # those are the most that there may be
        found = fault(*count_entries(source))
        if found:
            raise CheckpointMismatchError(f"{source.place}: {found}; load with a greater bound")


def restore(table: TableBase, plan: LoadPlan) -> None:
    """Fill an empty table; close it if that fails."""
    try:
        _fill(table, plan)
        table._engine.set_pins(plan.source.pins)
        table._pins = plan.source.pins
        if isinstance(plan.source, SavedTable):  # as it was saved: deltas can go on from there
            table._base = plan.source.digest
        if plan.source.dropped:
            warnings.warn(
                f"{plan.source.place}: {plan.source.dropped} were dropped, for which "
                f"admission={plan.spec.admission} has no place",
                EmbstoreWarning,
                stacklevel=3,
            )
    except BaseException:
        table.close()
        raise


def _fill(table: TableBase, plan: LoadPlan) -> None:
    """Fill a table with all but the pins."""
    fill(plan.source, table._engine, plan.n_reserved)
    stats = table._engine.stats()
    parts = ("index", "meta", "values", "slots", "bloom")
    n_bytes = sum(stats[f"nbytes_{part}"] for part in parts)
    if plan.max_bytes is not None and n_bytes > plan.max_bytes:
        raise CheckpointMismatchError(
            f"{plan.source.place}: its rows take {n_bytes} bytes as they come in, more than "
            f"max_bytes={plan.max_bytes}; load with a greater bound, or None"
        )
