"""The columns of an export: what each is called, and what it takes of a block of rows."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embstore.checkpoint import LoadedTable, RowBlock
from embstore.cli._checkpoint import understanding
from embstore.cli._rows import rounded_bfloat16, widened
from embstore.errors import ArgumentError

Array = NDArray[Any]


class Column(NamedTuple):
    """One column; `width` numbers in a row, or one (None)."""

    name: str
    dtype: np.dtype[Any]
    width: int | None
    take: Callable[[RowBlock], Array]


def columns_of(
    table: LoadedTable, wanted: Sequence[str] | None, is_split: bool = True
) -> list[Column]:
    """Return the columns of a table's rows: all, or those wanted, in that order.

    Parameters
    ----------
    table
        The table.
    wanted
        Names; ``slots`` stands for each slot of the table. None is all.
    is_split
        Give each slot a column of its own; else there is one, ``slots``.

    Raises
    ------
    ArgumentError
        If there is no column of a name, or a name comes twice.
    """
    slots = _slot_columns(table) if is_split else [_all_slots(table)]
    columns = [
        Column("key", np.dtype("i8"), None, lambda block: block.keys),
        Column("values", value_dtype(table), table.dim, lambda block: public_values(block.values)),
        *slots,
        Column("freq", np.dtype("u4"), None, lambda block: block.freq),
        Column("step", np.dtype("i8"), None, lambda block: block.step),
    ]
    if wanted is None:
        return _checked(columns, table)
    by_name = {column.name: [column] for column in columns} | {"slots": slots}
    for name in wanted:
        if name not in by_name:
            listed = ", ".join(by_name)
            raise ArgumentError(f"table {table.name!r} has no column {name!r}; it has {listed}")
    if not wanted:
        raise ArgumentError("--columns names no column")
    return _checked([column for name in wanted for column in by_name[name]], table)


def _checked(columns: list[Column], table: LoadedTable) -> list[Column]:
    names = [column.name for column in columns]
    for name in names:
        if names.count(name) > 1:
            raise ArgumentError(f"table {table.name!r} would have two columns {name!r}")
    return columns


def _slot_columns(table: LoadedTable) -> list[Column]:
    columns, begin = [], 0
    for name, width in table.slots:
        part = slice(begin, begin + width)
        columns.append(Column(name, np.dtype("f4"), width, _slot_taker(part)))
        begin += width
    return columns


def _slot_taker(part: slice) -> Callable[[RowBlock], Array]:
    return lambda block: block.slots[:, part]


def _all_slots(table: LoadedTable) -> Column:
    width = sum(width for _, width in table.slots)
    return Column("slots", np.dtype("f4"), width, lambda block: block.slots)


def value_dtype(table: LoadedTable) -> np.dtype[Any]:
    """Return the dtype of values outside of the store: float16 of such tables, else float32."""
    return np.dtype("f2" if table.dtype == "float16" else "f4")


def public_values(values: Array) -> Array:
    """Return values as stored in that dtype."""
    return values if values.dtype == np.float16 else widened(values)


def blocks_of(table: LoadedTable, is_pending: bool) -> Iterator[RowBlock]:
    """Yield the rows, and then the pending keys if wanted, as ``Table.export`` has them."""
    yield from table.rows()
    if is_pending:
        row = _default_row(table)
        n_slots = sum(width for _, width in table.slots)
        for block in table.candidates():
            n = len(block)
            slots = np.zeros((n, n_slots), np.float32)
            never = np.full(n, -1, np.int64)
            yield RowBlock(block.keys, np.tile(row, (n, 1)), slots, block.counts, never)


def n_rows_of(table: LoadedTable, is_pending: bool) -> int:
    """Return how many rows `blocks_of` yields."""
    return table.n_rows + (table.n_candidates if is_pending else 0)


def _default_row(table: LoadedTable) -> Array:
    """Return what keys without a row read, (dim,), as `public_values` would give it."""
    row = np.zeros(table.dim, np.float32)
    with understanding(table):
        row[:] = table.config.get("default_row") or 0.0
    if table.dtype == "bfloat16":
        return rounded_bfloat16(row)
    return row.astype(value_dtype(table))
