"""The tables that commands print."""

import math
from collections.abc import Sequence

from embstore.cli._job import WINDOWS, Outcome

ROWS = {
    "auc_last_60_percent": "AUC, last 60 % of the rows",
    "auc_last_8_percent": "AUC, last 8 % of the rows",
}


def comparison(dynamic: Outcome, static: "Outcome | None", static_name: str = "static") -> str:
    """Return a table of what came of the dynamic tables, beside a static one."""
    outcomes = [dynamic] if static is None else [dynamic, static]
    lines = [["", "dynamic", static_name, "difference"][: 1 + len(outcomes) + (len(outcomes) > 1)]]
    for name in WINDOWS:
        areas = [outcome.areas[name] for outcome in outcomes]
        gain = [f"{areas[0] - areas[1]:+.4f}"] if static is not None else []
        lines.append([ROWS[name], *(f"{area:.4f}" for area in areas), *gain])
    lines += [
        ["rows live", *(count(o.sizes.n_live) for o in outcomes)],
        ["rows live at the peak", *(count(o.n_peak_rows) for o in outcomes)],
        ["keys pending", *(count(o.sizes.n_pending) for o in outcomes)],
        ["rows evicted", *(count(o.sizes.n_evicted) for o in outcomes)],
        ["bytes", *(size(o.sizes.nbytes) for o in outcomes)],
        ["rows trained per second", *(rate(o.rows_per_s) for o in outcomes)],
    ]
    return table(lines)


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


def count(n: int) -> str:
    """Return a count with commas."""
    return f"{n:,}"


def rate(per_second: float) -> str:
    """Return a rate with commas, or a dash where there is none."""
    return f"{per_second:,.0f}" if math.isfinite(per_second) else "-"


def size(n_bytes: int) -> str:
    """Return a number of bytes in MiB."""
    return f"{n_bytes / 2**20:,.1f} MiB"
