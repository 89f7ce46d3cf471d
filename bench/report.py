"""What a run prints: each case as a table of times, and all figures with targets and verdicts."""

from bench import targets

LARGE = ("n_rows", "batch")
PLACE = ("n_rows", "dim", "distribution")


def shown_axes(axes):
    """Return axes as ``dim=64 batch=131,072``."""
    shown = {name: f"{value:,}" if name in LARGE else value for name, value in axes.items()}
    return " ".join(f"{name}={value}" for name, value in shown.items())


def shown_ns(ns):
    """Return a time in a unit that gives it three or four digits."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}" if ns / size < 1000 else f"{ns / size:.0f} {unit}"
    return f"{ns:.3g} ns"


def shown_value(value, unit):
    """Return a number with its unit."""
    digits = f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
    return f"{digits}{unit}" if unit in ("x", "%") else f"{digits} {unit}"


def shown_target(target, unit):
    """Return the bound of a target."""
    return f"{'>=' if target.is_at_least else '<='} {shown_value(target.bound, unit)}"


def aligned(rows):
    """Yield rows of strings as lines, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells]).rstrip()


def case_lines(result):
    """Yield the lines of one case: who took how long."""
    yield f"{result.name}: {shown_axes(result.axes)}, {result.rounds} rounds"
    batch = result.axes.get("batch")
    rows = [("", "median", "min", "p90", "a key")]
    for contender in result.contenders:
        s = contender.summary_ns()
        key = shown_ns(s.median / batch) if batch else ""
        rows.append((contender.name, shown_ns(s.median), shown_ns(s.min), shown_ns(s.p90), key))
    if len(rows) > 1:
        yield from (f"  {line}" for line in aligned(rows))
    if result.notes:
        yield "  " + ", ".join(f"{name} {value}" for name, value in result.notes.items())


def shown_spread(figure):
    """Return a figure's range; empty for one that was counted, not sampled."""
    return "" if figure.low == figure.high else f"{figure.low:.2f} .. {figure.high:.2f}"


def figure_lines(figures):
    """Yield all figures, those of equal axes together."""
    for axes in dict.fromkeys(tuple(f.axes.items()) for f in figures):
        yield shown_axes(dict(axes))
        rows = [("", "value", "p10 .. p90")]
        for figure in figures:
            if tuple(figure.axes.items()) == axes:
                value = shown_value(figure.value, figure.unit)
                rows.append((figure.name, value, shown_spread(figure)))
        yield from (f"  {line}" for line in aligned(rows))


def target_row(figure):
    """Return a figure's line of the closing table, and where it was measured."""
    value = shown_value(figure.value, figure.unit)
    bound = shown_target(figure.target, figure.unit)
    row = (figure.target.name, bound, value, shown_spread(figure), figure.verdict())
    here = {name: figure.axes[name] for name in PLACE if name in figure.axes}
    others = figure.elsewhere()
    meant = f"; the target is meant at {shown_axes(others)}" if others else ""
    return row, f"  at {shown_axes(here)}{meant}"


def missing_row(row, concepts, lacks):
    """Return the line of a target that no figure has, and why."""
    is_asked = row.concept in concepts
    why = "no figure" if is_asked else f"not asked for: python -m bench {row.concept}"
    bound = shown_target(row.target, row.unit)
    return (row.target.name, bound, "-", "", "not measured"), f"  {lacks.get(row.needs) or why}"


def closing_lines(runs, lacks, target_rows=targets.ROWS):
    """Yield every target in the order of `target_rows`: bound, figure, verdict and where.

    A target that no run has measured is there too, with the reason; `lacks` is machine.lacks().
    """
    figures = [f for run in runs for f in run.figures if f.target is not None]
    concepts = {run.concept for run in runs}
    found = []
    for row in target_rows:
        own = [f for f in figures if f.target.name == row.target.name]
        figures = [f for f in figures if f.target.name != row.target.name]
        found += [target_row(f) for f in own] or [missing_row(row, concepts, lacks)]
    found += [target_row(f) for f in figures]
    rows = [("target", "bound", "figure", "p10 .. p90", "verdict"), *(row for row, _ in found)]
    places = ["", *(place for _, place in found)]
    yield from (line + place for line, place in zip(aligned(rows), places, strict=True))
