"""Compare two results: ``python -m bench.compare A B``, each a file or a folder of one run's files.

Times are those of B over A, so below 1 B is faster. A change is called one only where the ranges
from p10 to p90 do not touch; all else is noise, and so is much that is not: see README.md.
"""

import argparse
import sys

from bench import results
from bench.report import aligned, shown_axes, shown_ns, shown_value

# What may differ between two runs of one machine without making their times incomparable.
FREE_FACTS = {"commit", "has_changes", "embstore", "library_sha256", "load_average"}


def change(a, b):
    """Return what became of a range (value, low, high) of A in B, as text."""
    if a[1] <= b[2] and b[1] <= a[2]:
        return "noise"
    return f"{(b[0] / a[0] - 1) * 100:+.1f} %"


def axes_key(axes):
    """Return axes as something that compares by value."""
    return tuple(sorted(axes.items()))


def time_rows(before, after):
    """Yield a row for each contender that two results of one case hold."""
    found = {contender.name: contender for contender in before.contenders}
    for contender in after.contenders:
        if contender.name not in found:
            continue
        x, y = found[contender.name].summary_ns(), contender.summary_ns()
        what = change((x.median, x.p10, x.p90), (y.median, y.p10, y.p90))
        ratio = f"{y.median / x.median:.3f}"
        yield (contender.name, shown_ns(x.median), shown_ns(y.median), ratio, what)


def figure_rows(a, b, axes):
    """Yield a row for each figure that both runs hold at these axes."""
    found = {f.name: f for f in a.figures if f.axes == axes}
    for figure in b.figures:
        before = found.get(figure.name) if figure.axes == axes else None
        if before is None:
            continue
        ranges = [(f.value, f.low, f.high) for f in (before, figure)]
        values = [shown_value(f.value, f.unit) for f in (before, figure)]
        yield (figure.name, *values, f"{figure.value / before.value:.3f}", change(*ranges))


def table(head, rows):
    """Yield rows as an indented table with a head; nothing without rows."""
    if rows:
        yield from (f"  {line}" for line in aligned([(head, "A", "B", "B/A", "change"), *rows]))


def differing_facts(a, b):
    """Return the facts that make the times of two runs incomparable: name -> (in A, in B)."""
    names = sorted((set(a.machine) | set(b.machine)) - FREE_FACTS)
    facts = {name: (a.machine.get(name), b.machine.get(name)) for name in names}
    facts |= {"scale": (a.scale, b.scale), "seed": (a.seed, b.seed)}
    return {name: pair for name, pair in facts.items() if pair[0] != pair[1]}


def compare(a, b):
    """Yield the lines that compare run A with run B, of one concept."""
    yield f"=== {a.concept}: A {a.date} {a.label}, B {b.date} {b.label}".rstrip()
    for name, pair in differing_facts(a, b).items():
        yield f"WARNING: {name} differs: {pair[0]} and {pair[1]}"
    cases = {(case.name, axes_key(case.axes)): case for case in a.cases}
    for case in b.cases:
        before = cases.get((case.name, axes_key(case.axes)))
        if before is not None and case.contenders:
            yield f"{case.name}: {shown_axes(case.axes)}"
            yield from table("time of a call", list(time_rows(before, case)))
    for axes in {axes_key(figure.axes): figure.axes for figure in b.figures}.values():
        rows = list(figure_rows(a, b, axes))
        if rows:
            yield f"figures: {shown_axes(axes)}"
            yield from table("", rows)


def main(argv=None):
    """Compare what the command line names; print it."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    parser.add_argument("a", metavar="A", help="a result, or a folder of results")
    parser.add_argument("b", metavar="B", help="the other")
    options = parser.parse_args(argv)
    a, b = results.latest(options.a), results.latest(options.b)
    common = [concept for concept in a if concept in b]
    if not common:
        parser.error(f"nothing in common: A holds {sorted(a)}, B holds {sorted(b)}")
    for concept in common:
        print("\n".join(compare(a[concept], b[concept])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
