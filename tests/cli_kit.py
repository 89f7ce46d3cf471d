"""What the tests of the tools share: checkpoints to look at, and the tools run on them."""

import json

import numpy as np
from checkpoint_kit import MemoryTable, in_order, memory_table, with_rows

import embstore as es
from embstore import checkpoint
from embstore.cli import main

EXTREMES = [-(2**63), 2**63 - 1, -1, 0, 1]


def save(path, **tables):
    """Save MemoryTables by name, and return the path as a string."""
    checkpoint.save_tables(path, tables)
    return str(path)


def extreme_table(dtype="float32", **options):
    """Return a table of a few rows whose keys are the ends of the range."""
    table = memory_table(len(EXTREMES), 3, dtype=dtype, **options)
    return with_rows(table, keys=in_order(EXTREMES))


def run(capsys, *arguments):
    """Run a tool, and return its code, standard output and standard error."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def document(capsys, *arguments, code=0):
    """Run a tool with --json, which must end with `code`; return what it prints, parsed."""
    found, out, err = run(capsys, *arguments, "--json")
    assert (found, err) == (code, "")
    return json.loads(out, parse_constant=lambda name: 1 / 0)  # NaN is no JSON


def refused(capsys, *arguments):
    """Run a tool that must refuse its input in one line with code 2; return the line."""
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"embstore {arguments[0]}: error: ")
    assert err.count("\n") == 1
    return err


def widened(values):
    """Return values as stored in float32, the long way for the bits of bfloat16."""
    if values.dtype == np.uint16:
        return np.array(
            [np.array([0, bits], "<u2").view("<f4")[0] for bits in values.reshape(-1)], np.float32
        ).reshape(values.shape)
    return values.astype(np.float32)


def rows_of(table):
    """Return all rows of a table as arrays by name."""
    parts = list(table.export())
    names = ("keys", "values", "slots", "freq", "step")
    return {name: np.concatenate([getattr(p, name) for p in parts]) for name in names}


def imported(capsys, tmp_path, *arguments):
    """Import, and return what was said and the table."""
    out = tmp_path / "imported"
    found = document(capsys, "import", *arguments, "--out", out, "--force")
    table = es.Table.load(out)
    assert (found["rows"], found["dim"], found["dtype"]) == (len(table), table.dim, table.dtype)
    assert (found["table"], found["out"]) == (table.name, str(out))
    return table


def check_import(capsys, tmp_path, message, *arguments):
    """Check that an import is refused and makes nothing."""
    out = tmp_path / "never"
    assert message in refused(capsys, "import", *arguments, "--out", out)
    assert not out.exists()


__all__ = [
    "MemoryTable",
    "check_import",
    "document",
    "extreme_table",
    "imported",
    "memory_table",
    "refused",
    "rows_of",
    "run",
    "save",
]
