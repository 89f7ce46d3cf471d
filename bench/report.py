"""What a run prints: each case as a table of times, and all figures with targets and verdicts."""

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


def shown_value(figure, value):
    """Return a figure's number with its unit."""
    digits = f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
    return f"{digits}{figure.unit}" if figure.unit in ("x", "%") else f"{digits} {figure.unit}"


def shown_target(figure):
    """Return the bound of a figure's target; empty without one."""
    if figure.target is None:
        return ""
    sign = ">=" if figure.target.is_at_least else "<="
    return f"{sign} {shown_value(figure, figure.target.bound)}"


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
                value = shown_value(figure, figure.value)
                rows.append((figure.name, value, shown_spread(figure)))
        yield from (f"  {line}" for line in aligned(rows))


def target_lines(figures):
    """Yield the figures that have a target: its bound, the verdict, and the axes it is meant at."""
    rows = [("target", "bound", "figure", "p10 .. p90", "verdict")]
    places = [""]
    for figure in figures:
        if figure.target is None:
            continue
        value = shown_value(figure, figure.value)
        row = (shown_target(figure), value, shown_spread(figure), figure.verdict())
        rows.append((figure.target.name, *row))
        here = {name: figure.axes[name] for name in PLACE if name in figure.axes}
        others = figure.elsewhere()
        meant = f"; the target is meant at {shown_axes(others)}" if others else ""
        places.append(f"  at {shown_axes(here)}{meant}")
    return [line + place for line, place in zip(aligned(rows), places, strict=True)]
