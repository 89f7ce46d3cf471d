"""``embstore top``: the rows with the greatest frequency, norm or age."""

import argparse
import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embstore.checkpoint import RowBlock
from embstore.cli._checkpoint import add_checkpoint, opened_table, rows_with_bar, step_of
from embstore.cli._options import integer
from embstore.cli._report import count, table
from embstore.cli._rows import ages, json_number, norms

MEASURES = ("freq", "norm", "age")


class Measured(NamedTuple):
    """Rows and what is measured of them, each (n,)."""

    key: NDArray[Any]
    freq: NDArray[Any]
    norm: NDArray[Any]
    age: NDArray[Any]
    step: NDArray[Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Describe the options of the command."""
    add_checkpoint(parser)
    parser.add_argument("--by", required=True, choices=MEASURES, help="what is to be greatest")
    parser.add_argument("-n", type=integer(1), default=20, help="how many rows (20)")


def run(options: argparse.Namespace) -> int:
    """Print the top rows of a table."""
    with opened_table(options) as (_, opened):
        blocks = rows_with_bar(opened, "top")
        found = greatest(blocks, options.by, options.n, step_of(opened))
        name, now = opened.name, step_of(opened)
    rows = [dict(zip(Measured._fields, row, strict=True)) for row in _plain(found)]
    if options.json:
        document = {"table": name, "by": options.by, "step": now, "rows": rows}
        print(json.dumps(document, indent=2))
    else:
        print(_shown(rows))
    return 0


def greatest(blocks: Iterable[RowBlock], by: str, n: int, now: int) -> Measured:
    """Return the `n` rows with the greatest measure, by (measure descending, key ascending)."""
    found = Measured(*(np.empty(0, t) for t in ("i8", "i8", "f4", "i8", "i8")))
    for block in blocks:
        own = _measured(block, now)
        joined = Measured(*(np.concatenate((a, b)) for a, b in zip(found, own, strict=True)))
        best = np.lexsort((joined.key, -_score(joined, by)))[:n]
        found = Measured(*(column[best] for column in joined))
    return found


def _measured(block: RowBlock, now: int) -> Measured:
    freq = block.freq.astype(np.int64)
    return Measured(block.keys, freq, norms(block.values), ages(block.step, now), block.step)


def _score(rows: Measured, by: str) -> NDArray[Any]:
    """Return what to sort by; rows that are not numbers come first, to be seen."""
    score: NDArray[Any] = getattr(rows, by)
    return np.where(np.isnan(score), np.inf, score) if by == "norm" else score


def _plain(rows: Measured) -> Iterable[tuple[Any, ...]]:
    norm = map(json_number, rows.norm)
    columns = (rows.key.tolist(), rows.freq.tolist(), norm, rows.age.tolist(), rows.step.tolist())
    return zip(*columns, strict=True)


def _shown(rows: list[dict[str, Any]]) -> str:
    lines = [list(Measured._fields)]
    for row in rows:
        norm = row["norm"] if isinstance(row["norm"], str) else f"{row['norm']:.6g}"
        numbers = [count(row["freq"]), norm, count(row["age"]), count(row["step"])]
        lines.append([str(row["key"]), *numbers])
    return table(lines)
