"""Draw results: ``python -m bench.plot [RESULTS...]``, files or folders of results (bench/results).

One picture a figure, into results/plots: bars of ratios with their range and the target's line, the
tails of growing tables as curves, bytes a row beside other stores.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np

from bench import results
from bench.bench_memory import ROW, WAITING
from bench.gpu import pictures
from bench.report import shown_axes, shown_target, shown_value
from bench.targets import GROWTH_MAX, GROWTH_P999

MEETS, MISSES, PLAIN, INK = "#3b6fb6", "#c8643c", "#9aa3ad", "#222222"
BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}  # of text on lines
MOST_BARS = 24  # of one picture; more are split by dim
WORDS = ("distribution", "pooling", "optimizer")  # axes whose values speak for themselves
UNITS = {
    "x": "times the time: lower is better",
    "s": "seconds: lower is better",
    "us": "microseconds: lower is better",
    "ms": "milliseconds: lower is better",
    "GB/s": "GB/s: higher is better",
    "samples/s": "samples a second: higher is better",
    "M/s": "million samples a second: higher is better",
    "ns/key": "nanoseconds a key: lower is better",
    "MB": "megabytes: lower is better",
    "bytes": "bytes: lower is better",
    "G": "billions",
    "M": "millions",
    "%": "percent",
    "times": "times",
    "": "number",
}
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "savefig.dpi": 110,
    "savefig.bbox": "tight",
    "legend.frameon": False,
}


def slug(text):
    """Return text as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def varying(figures):
    """Return the names of the axes in which figures differ."""
    names = dict.fromkeys(name for figure in figures for name in figure.axes)
    return [name for name in names if len({figure.axes.get(name) for figure in figures}) > 1]


def label_of(figure, names):
    """Return what a bar says: who against whom, and where in the axes that vary."""
    sides = figure.name.rpartition(": ")[2].replace("embstore ", "").split(" against ")
    is_time = figure.target is not None and not figure.target.is_at_least
    text = " / ".join(reversed(sides) if is_time else sides)
    axes = {name: figure.axes[name] for name in names if name in figure.axes}
    words = [str(axes.pop(name)) for name in WORDS if name in axes]
    return ", ".join([text, *words, *([shown_axes(axes)] if axes else [])])


def color_of(figure):
    if figure.target is None:
        return PLAIN
    return MEETS if figure.target.is_met_by(figure.value) else MISSES


def bounds_of(figures):
    return [0.0, *(figure.target.bound for figure in figures if figure.target is not None)]


def bars(axes, figures, labels, colors):
    """Draw a horizontal bar a figure, with its range, its number, and its target's tick."""
    places = np.arange(len(figures))[::-1]
    axes.barh(places, [figure.value for figure in figures], color=colors, height=0.62)
    end = max([*(max(f.value, f.high) for f in figures), *bounds_of(figures)]) or 1.0
    for place, figure in zip(places, figures, strict=True):
        if figure.low < figure.high:
            axes.plot([figure.low, figure.high], [place, place], color=INK, linewidth=1)
        text = shown_value(figure.value, figure.unit)
        if figure.target is not None:
            bound = figure.target.bound
            axes.plot([bound, bound], [place - 0.42, place + 0.42], color=INK, linewidth=2)
            text += f"  (target {shown_target(figure.target, figure.unit)})"
        at = max(figure.value, figure.high, *bounds_of([figure])) + end * 0.015
        axes.text(at, place, text, va="center", fontsize=8, bbox=BEHIND)
    if figures[0].unit == "x":
        axes.axvline(1.0, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set_yticks(places, labels)
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, end * 1.3), ylim=(-0.7, len(figures) - 0.3))


def panel(axes, case, figures):
    """Draw the figures of one case and unit; the title names the axes that they share."""
    names, unit = varying(figures), figures[0].unit
    colors = [color_of(figure) for figure in figures]
    bars(axes, figures, [label_of(figure, names) for figure in figures], colors)
    is_less = any(f.target is not None and not f.target.is_at_least for f in figures)
    axes.set_xlabel(UNITS[unit] if is_less or unit != "x" else "times as fast: higher is better")
    shared = {name: value for name, value in figures[0].axes.items() if name not in names}
    axes.set_title(f"{case}: {shown_axes(shared)}")


def draw_bars(plt, figures):
    """Return a picture of figures, those of one case and unit in a panel of their own."""
    panels = {}
    for figure in figures:
        case = figure.name.rpartition(": ")[0] or figure.name
        panels.setdefault((case, figure.unit), []).append(figure)
    sizes = [len(found) + 2.6 for found in panels.values()]
    picture, all_axes = plt.subplots(
        len(panels),
        figsize=(9, 0.27 * sum(sizes)),
        gridspec_kw={"height_ratios": sizes},
        squeeze=False,
        layout="constrained",
    )
    for axes, ((case, _), found) in zip(all_axes[:, 0], panels.items(), strict=True):
        panel(axes, case, found)
    return picture


def draw_growth(plt, run):
    """Return a picture of the share of inserts that take longer than a time."""
    picture, axes = plt.subplots(figsize=(9, 4.2))
    times_us = {}
    for case in run.cases:
        for contender in case.contenders:
            times_us.setdefault(contender.name, []).extend(t / 1e3 for t in contender.times_ns)
    for (name, times), color in zip(times_us.items(), (MEETS, PLAIN), strict=True):
        share = (np.arange(len(times)) + 1) / len(times)
        axes.plot(share, sorted(times, reverse=True), color=color, label=name, linewidth=1.6)
    first, *_ = times_us
    for target in (GROWTH_P999, GROWTH_MAX):
        bound = float(np.median(times_us[first])) * target.bound
        what = target.name.rpartition(", ")[2].partition(" over")[0]
        text = f"target of {what}: {target.bound:g} times the median of {first!r}"
        axes.axhline(bound, color=INK, linewidth=0.8, linestyle=":")
        axes.text(1.0, bound * 1.06, text, ha="right", va="bottom", fontsize=8)
    axes.set(xscale="log", yscale="log", ylabel="microseconds an insert")
    axes.set_xlabel("share of the inserts that take at least as long (0.001: p99.9)")
    axes.legend(loc="lower left")
    shared = {name: value for name, value in run.cases[0].axes.items() if name != "repetition"}
    axes.set_title(f"inserts into a growing table: {shown_axes(shared)}")
    return picture


def own_rows(run):
    """Return what a row costs in embstore, as figures to stand beside those of other stores."""
    return [f for f in run.figures if f.name.startswith("index + meta") and f.axes["dim"] == 16]


def draw_memory(plt, run, what, own):
    """Return a picture of bytes a row, or an id that waits: embstore and others."""
    others = [f for f in run.figures if f.name.startswith(what)]
    figures = [*own, *others]
    labels = [
        f.name.removeprefix(f"{what}: ").replace("index + meta a live row", "embstore")
        for f in figures
    ]
    colors = [MEETS if label.startswith("embstore") else PLAIN for label in labels]
    picture, axes = plt.subplots(figsize=(9, 0.9 + 0.3 * len(figures)))
    bars(axes, figures, labels, colors)
    for patch, label in zip(axes.patches, labels, strict=True):
        if "quoted" in label:
            patch.set(hatch="//", edgecolor="white")
    axes.set_xlabel("bytes; hatched: quoted from documents, not measured; tick: target")
    axes.set_title(what)
    return picture


def draw(plt, run):
    """Yield (name, picture) for all that a run holds."""
    if run.concept == "growth":
        yield "growth-tails", draw_growth(plt, run)
    elif run.concept == "memory":
        yield "memory-rows", draw_memory(plt, run, ROW, own_rows(run))
        yield "memory-waiting", draw_memory(plt, run, WAITING, [])
    elif run.concept == "gpu":
        yield from pictures.draw(plt, run)
    elif not run.figures:
        print(f"SKIPPED: {run.concept}: there are no figures to draw")
    elif len(run.figures) <= MOST_BARS:
        yield run.concept, draw_bars(plt, run.figures)
    else:
        for dim in dict.fromkeys(figure.axes.get("dim") for figure in run.figures):
            own = [figure for figure in run.figures if figure.axes.get("dim") == dim]
            name = run.concept if dim is None else f"{run.concept}-dim{dim}"
            yield name, draw_bars(plt, own)


def write(runs, folder):
    """Draw all runs into `folder`; return the paths."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with plt.rc_context(STYLE):
        for run in runs:
            for name, picture in draw(plt, run):
                paths.append(folder / f"{slug(name)}.png")
                picture.savefig(paths[-1], metadata={"Software": None})
                plt.close(picture)
    return paths


def main(argv=None):
    """Draw what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__)
    parser.add_argument("results", nargs="*", type=Path, metavar="RESULTS", help="bench/results")
    parser.add_argument("--out", type=Path, default=results.FOLDER / "plots", help="results/plots")
    options = parser.parse_args(argv)
    runs = {}
    for path in options.results or [results.FOLDER]:
        runs |= results.latest(path)
    for path in write(runs.values(), options.out):
        print(path.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
