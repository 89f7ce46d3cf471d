"""What the commands on checkpoints share: opening one, choosing a table, reading it with a bar."""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from embstore.checkpoint import LoadedCheckpoint, LoadedTable, RowBlock, load_tables
from embstore.cli._options import integer
from embstore.cli._progress import Bar
from embstore.errors import CheckpointMismatchError, EmbstoreError


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Describe the options of a command on one table of a checkpoint."""
    parser.add_argument("checkpoint", help="the folder of a checkpoint")
    add_table(parser)


def add_table(parser: argparse.ArgumentParser) -> None:
    """Describe the options that choose a table and its generation, and print JSON."""
    add_generation(parser, "--generation")
    add_output(parser)


def add_output(parser: argparse.ArgumentParser) -> None:
    """Describe the options that choose a table, and print JSON."""
    parser.add_argument("--table", metavar="NAME", help="which table, if there are several")
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_generation(parser: argparse.ArgumentParser, name: str) -> None:
    """Describe an option that chooses an older generation of a checkpoint."""
    parser.add_argument(
        name, type=integer(1), metavar="N", help="an older generation that was kept"
    )


@contextmanager
def opened_table(options: argparse.Namespace) -> Iterator[tuple[LoadedCheckpoint, LoadedTable]]:
    """Open the checkpoint of a command's options and one table of it: the named, or the only one.

    Raises
    ------
    CheckpointMismatchError
        If there are several tables, or none, and no name; or no table of that name.
    CheckpointError, CorruptCheckpointError
        As `load_tables`.
    """
    path = options.checkpoint
    names = None if options.table is None else [options.table]
    with load_tables(path, names=names, generation=options.generation) as loaded:
        if len(loaded.tables) != 1:
            listed = ", ".join(map(repr, loaded.tables)) or "none"
            raise CheckpointMismatchError(
                f"{path} holds {len(loaded.tables)} tables ({listed}): choose one by --table"
            )
        (table,) = loaded.tables.values()
        yield loaded, table


def rows_with_bar(table: LoadedTable, title: str) -> Iterator[RowBlock]:
    """Yield all rows of a table, block by block, beside a progress bar."""
    with Bar(title, table.n_rows, "rows") as bar:
        for block in table.rows():
            yield block
            bar.update(len(block))


@contextmanager
def understanding(table: LoadedTable) -> Iterator[None]:
    """Turn whatever parameters that nobody could have saved lead to into one error.

    A manifest holds parameters as they were saved; here they are read without making a table.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
        if isinstance(error, EmbstoreError):
            raise
        raise CheckpointMismatchError(
            f"the parameters of table {table.name!r} are not understood: {error!r}"
        ) from error


def step_of(table: LoadedTable) -> int:
    """Return the step of a table, from which ages count."""
    return int(table.state["step"])


def policy_text(config: Any) -> str:
    """Return a policy's configuration in the words that make it."""
    if not isinstance(config, Mapping):
        return str(config)
    values = dict(config)
    kind = values.pop("type", values.pop("kind", ""))
    words = (f"{name}={policy_text(v)}" for name, v in values.items() if v is not None)
    return f"{kind}({', '.join(words)})"
