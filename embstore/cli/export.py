"""``embstore export``: the rows of a table as Parquet, CSV or npz."""

import argparse
import json
import os
from collections.abc import Iterator

from embstore.checkpoint import LoadedTable, RowBlock
from embstore.cli._checkpoint import add_checkpoint, opened_table
from embstore.cli._columns import blocks_of, columns_of, n_rows_of
from embstore.cli._formats import write_csv, write_npz, write_parquet
from embstore.cli._options import names
from embstore.cli._output import check_output, new_file
from embstore.cli._progress import Bar
from embstore.cli._report import count, size

FORMATS = ("parquet", "csv", "npz")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the options of the command."""
    add_checkpoint(parser)
    add = parser.add_argument
    add("--to", required=True, choices=FORMATS, help="the format")
    add("--out", required=True, metavar="FILE", help="the file to make")
    add("--pending", action="store_true", help="the pending keys too, with step -1")
    add("--columns", type=names, metavar="NAMES", help="such as key,values; all by default")
    add("--force", action="store_true", help="replace the file if it exists")


def run(options: argparse.Namespace) -> int:
    """Export a table."""
    check_output(options.out, options.force)
    with opened_table(options) as (_, table):
        n_rows = _export(table, options)
        name = table.name
    n_bytes = os.path.getsize(options.out)
    if options.json:
        document = {"table": name, "rows": n_rows, "out": options.out, "bytes": n_bytes}
        print(json.dumps(document, indent=2))
    else:
        print(f"{count(n_rows)} rows of {name!r} in {options.out}, {size(n_bytes)}")
    return 0


def _export(table: LoadedTable, options: argparse.Namespace) -> int:
    columns = columns_of(table, options.columns, is_split=options.to != "npz")
    n_rows = n_rows_of(table, options.pending)
    n_passes = len(columns) if options.to == "npz" else 1
    bar = Bar("export", n_passes * n_rows, "rows")
    with bar, new_file(options.out, options.force) as file:

        def blocks() -> Iterator[RowBlock]:
            for block in blocks_of(table, options.pending):
                yield block
                bar.update(len(block))

        if options.to == "parquet":
            return write_parquet(file, columns, blocks, table)
        if options.to == "csv":
            return write_csv(file, columns, blocks)
        return write_npz(file, columns, blocks, n_rows)
