"""The tables that commands print."""

import math
from collections.abc import Mapping, Sequence

from embstore.cli._job import WINDOWS, Outcome

ROWS = {
    "auc_last_60_percent": "AUC, last 60 % of the rows",
    "auc_last_8_percent": "AUC, last 8 % of the rows",
}


def comparison(dynamic: Outcome, statics: Mapping[str, Outcome]) -> str:
    """Return a table of what came of the dynamic tables, beside static ones by name."""
    lines = [["", "dynamic"], *([ROWS[name], area(dynamic.areas[name])] for name in WINDOWS)]
    lines += [[name, text] for name, text in _sizes(dynamic).items()]
    for title, static in statics.items():
        sizes = list(_sizes(static).values())
        areas = [area(static.areas[name]) for name in WINDOWS]
        gains = [area(dynamic.areas[name] - static.areas[name], "+") for name in WINDOWS]
        columns = [[title, *areas, *sizes], ["gain", *gains, *[""] * len(sizes)]]
        lines = [[*line, *cells] for line, *cells in zip(lines, *columns, strict=True)]
    return table(lines)


def _sizes(outcome: Outcome) -> dict[str, str]:
    return {
        "rows live": count(outcome.sizes.n_live),
        "rows live at the peak": count(outcome.n_peak_rows),
        "keys pending": count(outcome.sizes.n_pending),
        "rows evicted": count(outcome.sizes.n_evicted),
        "bytes": size(outcome.sizes.nbytes),
        "rows trained per second": rate(outcome.rows_per_s),
    }


def table(lines: Sequence[Sequence[str]], is_text: bool = False) -> str:
    """Return lines of cells in columns; all but the first to the right, unless they are text."""
    n_columns = max(len(line) for line in lines)
    filled = [[*line, *[""] * (n_columns - len(line))] for line in lines]
    widths = [max(len(line[i]) for line in filled) for i in range(n_columns)]
    texts = []
    for line in filled:
        cells = [line[0].ljust(widths[0])]
        align = str.ljust if is_text else str.rjust
        cells += [align(cell, width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        texts.append("  ".join(cells).rstrip())
    return "\n".join(texts)


def area(value: float, sign: str = "") -> str:
    """Return an area under the curve, or a dash where all labels are the same."""
    return f"{value:{sign}.4f}" if math.isfinite(value) else "-"


def count(n: int) -> str:
    """Return a count with commas."""
    return f"{n:,}"


def rate(per_second: float) -> str:
    """Return a rate with commas, or a dash where there is none."""
    return f"{per_second:,.0f}" if math.isfinite(per_second) else "-"


def size(n_bytes: int) -> str:
    """Return a number of bytes in MiB."""
    return f"{n_bytes / 2**20:,.1f} MiB"
