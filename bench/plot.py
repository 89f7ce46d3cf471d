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
from bench.report import shown_axes, shown_target, shown_value
from bench.targets import GROWTH_MAX, GROWTH_P999

MEETS, MISSES, PLAIN, INK = "#3b6fb6", "#c8643c", "#9aa3ad", "#222222"
LINES = (MEETS, PLAIN, MISSES)
MEANING = {"x": "times as fast", "us": "microseconds", "ms": "milliseconds", "bytes": "bytes"}
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "savefig.dpi": 110,
    "savefig.bbox": "tight",
    "legend.frameon": False,
}


def slug(text):
    """Return text as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def pictures_of(run):
    """Return the figures of a run by picture: those of one case, dim and unit stand together."""
    found = {}
    for figure in run.figures:
        case, _, _ = figure.name.rpartition(": ")
        key = (case or run.concept, figure.axes.get("dim", 0), figure.unit)
        found.setdefault(key, []).append(figure)
    return found


def varying(figures):
    """Return the names of the axes in which figures differ."""
    names = dict.fromkeys(name for figure in figures for name in figure.axes)
    return [name for name in names if len({figure.axes.get(name) for figure in figures}) > 1]


def label_of(figure, names):
    """Return what a bar says: who against whom, and where in the axes that vary."""
    axes = shown_axes({name: figure.axes[name] for name in names if name in figure.axes})
    text = figure.name.rpartition(": ")[2].replace("embstore ", "", 1).replace(" against ", " / ")
    return f"{text}\n{axes}" if axes else text


def color_of(figure):
    if figure.target is None:
        return PLAIN
    return MEETS if figure.target.is_met_by(figure.value) else MISSES


def title_of(name, figures):
    """Return the name of a picture and the axes that all its figures share."""
    shared = {k: v for k, v in figures[0].axes.items() if k not in varying(figures)}
    return f"{name}, {shown_axes(shared)}" if shared else name


def bars(axes, figures, labels, colors, unit):
    """Draw a horizontal bar a figure, with its range, its number, and its target's line."""
    places = np.arange(len(figures))[::-1]
    values = [figure.value for figure in figures]
    axes.barh(places, values, color=colors, height=0.6)
    end = max([*values, *(f.high for f in figures), *bounds_of(figures)]) or 1.0
    for place, figure in zip(places, figures, strict=True):
        axes.plot([figure.low, figure.high], [place, place], color=INK, linewidth=1)
        if figure.target is not None:
            bound = figure.target.bound
            axes.plot([bound, bound], [place - 0.42, place + 0.42], color=INK, linewidth=2)
        text = shown_value(figure.value, unit)
        text += f"  (target {shown_target(figure.target, unit)})" if figure.target else ""
        axes.text(max(figure.high, *bounds_of([figure]), 0) + end * 0.015, place, text, va="center")
    if unit == "x":
        axes.axvline(1.0, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set_yticks(places, labels)
    axes.tick_params(axis="y", length=0)
    axes.set_xlim(0, end * 1.25)


def bounds_of(figures):
    return [0.0, *(figure.target.bound for figure in figures if figure.target is not None)]


def draw_bars(plt, name, figures, unit):
    """Return a picture of bars of one unit."""
    names = varying(figures)
    height = 0.9 + 0.42 * len(figures)
    picture, axes = plt.subplots(figsize=(8.5, height))
    labels = [label_of(figure, names) for figure in figures]
    bars(axes, figures, labels, [color_of(figure) for figure in figures], unit)
    is_less = any(f.target is not None and not f.target.is_at_least for f in figures)
    better = "lower is better" if is_less or unit != "x" else "higher is better"
    axes.set_xlabel(f"{MEANING.get(unit, unit)} ({better}); line: p10 to p90; tick: target")
    axes.set_title(title_of(name, figures))
    return picture


def draw_growth(plt, run):
    """Return a picture of the share of inserts that take longer than a time."""
    picture, axes = plt.subplots(figsize=(8.5, 4.2))
    names = [contender.name for contender in run.cases[0].contenders]
    for name, color in zip(names, LINES, strict=False):
        found = [c.times_ns for case in run.cases for c in case.contenders if c.name == name]
        times_us = np.sort(np.concatenate(found))[::-1] / 1e3
        share = (np.arange(len(times_us)) + 1) / len(times_us)
        axes.plot(share, times_us, color=color, label=name, linewidth=1.6)
        if name == names[0]:
            median = float(np.median(times_us))
    for target in (GROWTH_P999, GROWTH_MAX):
        what = target.name.rpartition(", ")[2].partition(" over")[0]
        axes.axhline(median * target.bound, color=INK, linewidth=0.8, linestyle=":")
        text = f"{what}: {target.bound:g} x the median of {names[0]!r}"
        axes.text(1.0, median * target.bound * 1.06, text, ha="right", va="bottom", fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="share of the inserts that take at least as long")
    axes.set_ylabel("microseconds an insert")
    axes.legend(loc="lower left")
    shared = {k: v for k, v in run.cases[0].axes.items() if k != "repetition"}
    axes.set_title(f"inserts into a growing table, {shown_axes(shared)}")
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
    picture, axes = plt.subplots(figsize=(8.5, 0.9 + 0.34 * len(figures)))
    bars(axes, figures, labels, colors, "bytes")
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
    else:
        for (case, dim, unit), figures in pictures_of(run).items():
            name = f"{run.concept}-{case}" if case != run.concept else case
            name += f"-dim{dim}" if dim else ""
            name += "" if unit == "x" else f"-{unit}"
            yield name, draw_bars(plt, case, figures, unit)


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
