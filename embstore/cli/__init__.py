"""The command ``embstore``: one file per command, imported when it runs.

Exit codes: 0 done, 1 a check failed (`verify`, `demo`) or checkpoints differ (`diff`), 2 the input
is wrong or the disk failed, 130 interrupted, 141 nobody reads what is printed.
"""

import argparse
import keyword
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import NoReturn, TypeAlias

from embstore import __version__
from embstore.errors import EmbstoreError

COMMANDS = {
    "train": "train a DeepFM on Parquet data with its embeddings in the store",
    "demo": "make a click log, train on it, evict, save, reload in a new process and compare",
    "torture": "kill, damage and starve saves on this disk, and count what was lost",
    "info": "print what a checkpoint holds",
    "verify": "read a checkpoint whole and check every block",
    "top": "print the rows with the greatest frequency, norm or age",
    "explain": "say what a checkpoint knows of a key, and what its policies would do with it",
    "diff": "compare two checkpoints",
    "export": "write the rows of a table as Parquet, CSV or npz",
    "import": "make a checkpoint of rows from Parquet, npz, TFRA, dynamicemb or PyTorch",
    "report": "draw a checkpoint on one HTML page",
    "reshard": "cut the tables of checkpoints into another number of shards",
    "compact": "write a checkpoint and the deltas on top of it as one",
    "build-tf-op": "compile the native ops for the TensorFlow that is installed",
    "build-jax-op": "compile the native ops for the JAX that is installed",
}

Run: TypeAlias = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message} (see '{self.prog} --help')\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command of embstore.

    Parameters
    ----------
    arguments
        What stands behind ``embstore`` on the command line; the process's own if None.

    Returns
    -------
    int
        The exit code; errors in the input are printed as one line and give 2.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = Parser(prog="embstore", description="A dynamic store from 64-bit ids to rows.")
    parser.add_argument("--version", action="version", version=f"embstore {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
        )
        if arguments[:1] == [name]:  # the others' options are not needed: nor are their imports
            suffix = "_" if keyword.iskeyword(name) else ""
            module = import_module(f"embstore.cli.{name.replace('-', '_')}{suffix}")
            module.add_options(command)
            command.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    return _run(options.run, options)


def _run(run: Run, options: argparse.Namespace) -> int:
    prog = f"embstore {options.command}"
    try:
        code = run(options)
        if sys.stdout is not None:  # it is where the shell closed it
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        with suppress(OSError):  # what is still held back is flushed at exit, and must go somewhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (EmbstoreError, OSError) as error:
        print(f"{prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
