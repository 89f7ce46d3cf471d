"""From checkpoints into tables that are there: new engines take the place of the old ones.

1. Nothing of a table changes before all of the new ones are whole.
2. The engines of all tables are exchanged while their locks are held together; a reader works on
   the engine that it found, old or new, to its end.
3. A save that runs is waited for: it ends with the table that it cut.
"""

from collections.abc import Sequence
from contextlib import ExitStack

from embstore.checkpoint import TableSource
from embstore.errors import ArgumentError, CheckpointMismatchError
from embstore.table.base import TableBase, locked
from embstore.table.convert import Conversion
from embstore.table.loading import LoadPlan, plan_load, restore
from embstore.table.save import saving


def restore_in_place(
    tables: Sequence[TableBase],
    sources: Sequence[TableSource],
    allow_nonfinite: bool,
    where: str,
) -> None:
    """Replace the content of tables by that of saved ones, at one moment; or raise, and do nothing.

    Raises
    ------
    ArgumentError
        If a CUDA graph holds calls of a table: it would go on with the rows of before.
    CheckpointMismatchError
        If name, dim or dtype of a saved table are not those of the table.
    """
    plans = [
        _plan(table, source, allow_nonfinite, where)
        for table, source in zip(tables, sources, strict=True)
    ]
    with ExitStack() as undo:
        made = []
        for table, plan in zip(tables, plans, strict=True):
            made.append(_filled(table, plan, where))
            undo.callback(made[-1].close)
        with saving(tables), locked(tables):
            for table, other in zip(tables, made, strict=True):
                table._take_content(other)
        undo.pop_all()


def _plan(table: TableBase, source: TableSource, allow_nonfinite: bool, where: str) -> LoadPlan:
    len(table)  # raises if it is closed
    if table._engine.has_graphs:
        raise ArgumentError(
            f"{where}: a CUDA graph was captured of table {table.name!r}, and would go on with the "
            f"rows of before; load a new table, and capture anew"
        )
    plan = plan_load(source, Conversion(), None, table._place, allow_nonfinite, where)
    for what in ("name", "dim", "dtype"):
        saved, own = getattr(plan.spec, what), getattr(table, what)
        if saved != own:
            raise CheckpointMismatchError(
                f"{where}: {source.place} was saved with {what}={saved!r}; the table has "
                f"{what}={own!r}"
            )
    return plan


def _filled(table: TableBase, plan: LoadPlan, where: str) -> TableBase:
    """Return a new table of what was saved, with what is of this process from `table`."""
    other = TableBase._of_spec(plan.spec, table._place, table._hash_seed(), table._on_evict, where)
    restore(other, plan)
    other.strict = table.strict
    if callable(table.lr) and plan.spec.optimizer is not None and plan.spec.optimizer.lr is None:
        other.lr = table.lr
    return other
