"""The figures of a report, as SVG that stands in the page itself."""

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from embstore.cli._histogram import Histogram, Octaves, short

BLUE, ORANGE, GREY, INK = "#2563a8", "#c2571a", "#8a94a3", "#1f2733"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "embstore",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.axisbelow": True,
}
SIZE = (5.6, 2.7)


def drawn(draw: Callable[[Any], None], alternative: str, size: tuple[float, float] = SIZE) -> str:
    """Return a figure as an SVG element; `draw` is given the axes.

    `alternative` says in words what is to be seen.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure  # not pyplot: it would look for a display

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        stream = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return _inline(stream.getvalue(), alternative)


def _inline(svg: str, alternative: str) -> str:
    """Return the element of an SVG file with a text for those who cannot see it."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    label = html.escape(alternative, quote=True)
    element = re.sub(r'\s(width|height)="[^"]*"', "", element, count=2)
    return element.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()


def _ticks(axis: Any) -> None:
    axis.set_major_formatter(lambda value, place: short(value))


def histogram(found: Histogram, label: str, alternative: str) -> str:
    """Return the figure of a histogram; counts on a log scale where they differ much."""

    def draw(axes: Any) -> None:
        edges, counts = found.bars()
        axes.stairs(counts, edges, fill=True, color=BLUE)
        axes.set_xlim(edges[0], edges[-1])
        positive = counts[counts > 0]
        if len(positive) and positive.max() > 200 * positive.min():
            axes.set_yscale("log")
            axes.set_ylim(bottom=0.6)
        _ticks(axes.yaxis)
        _ticks(axes.xaxis)
        axes.set_xlabel(label)
        axes.set_ylabel("rows")
        axes.grid(axis="y", alpha=0.25)

    return drawn(draw, alternative)


def octaves(found: Octaves, label: str, alternative: str) -> str:
    """Return the figure of counts by powers of two."""

    def draw(axes: Any) -> None:
        names, counts = found.bars()
        axes.bar(range(len(names)), counts, width=0.86, color=BLUE)
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.6)
        _ticks(axes.yaxis)
        every = -(-len(names) // 10) or 1
        axes.set_xticks(range(0, len(names), every), names[::every])
        axes.set_xlabel(label)
        axes.set_ylabel("rows")
        axes.grid(axis="y", alpha=0.25)

    return drawn(draw, alternative)


def bars(numbers: Mapping[str, float], names: Sequence[str], alternative: str) -> str:
    """Return horizontal bars, each with its number beside it as `names` writes it."""

    def draw(axes: Any) -> None:
        places, values = np.arange(len(numbers)), [float(n) for n in numbers.values()]
        axes.barh(places, values, height=0.7, color=BLUE)
        axes.set_yticks(places, list(numbers))
        axes.invert_yaxis()
        for place, value, name in zip(places, values, names, strict=True):
            axes.annotate(
                name, (value, place), xytext=(4, 0), textcoords="offset points", va="center"
            )
        axes.set_xlim(0, max([*values, 1.0]) * 1.22)
        axes.spines["bottom"].set_visible(False)
        axes.set_xticks([])
        axes.tick_params(axis="y", length=0)

    return drawn(draw, alternative, (SIZE[0], 0.55 + 0.27 * max(1, len(numbers))))


def growth(points: Sequence[Mapping[str, Any]], alternative: str) -> str:
    """Return rows and bytes over the steps of saves."""

    def draw(axes: Any) -> None:
        steps = [point["step"] for point in points]
        axes.plot(steps, [point["rows"] for point in points], color=BLUE, marker="o", label="rows")
        axes.set_ylim(bottom=0)
        _ticks(axes.yaxis)
        _ticks(axes.xaxis)
        axes.set_xlabel("step of the save")
        axes.set_ylabel("rows", color=BLUE)
        right = axes.twinx()
        sizes = [point["bytes"] / 2**20 for point in points]
        right.plot(steps, sizes, color=ORANGE, marker="s", ls="--", label="MiB")
        right.set_ylim(bottom=0)
        right.set_ylabel("MiB on disk", color=ORANGE)
        right.spines["top"].set_visible(False)
        axes.grid(axis="y", alpha=0.25)

    return drawn(draw, alternative)
