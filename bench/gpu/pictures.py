"""Pictures of a run on a card: find against dim with the floor, find against load, raw reads."""

COLORS = ("#3b6fb6", "#c8643c", "#4d9a6a", "#8a63a8", "#9aa3ad", "#b59b3a")
INK = "#222222"
NORMAL_LOAD = 0.75


def figures_of(run, case):
    """Return the figures of a case by contender and kind: "", "moved" or "of the floor"."""
    found = {}
    for figure in run.figures:
        name, _, rest = figure.name.partition(": ")
        if name == case and " against " not in rest:
            lane, kind = rest, ""
            for word in ("moved", "of the floor", "time"):
                if rest.endswith(f", {word}"):
                    lane, kind = rest.removesuffix(f", {word}"), word
            found.setdefault((lane, kind), []).append(figure)
    return found


def curve(axes, figures, x, label, color, style="o-"):
    """Draw figures along an axis of theirs, with their range."""
    points = sorted(((f.axes[x], f.value, f.low, f.high) for f in figures), key=lambda p: p[0])
    at, values, lows, highs = zip(*points, strict=True)
    axes.plot(at, values, style, color=color, label=label, linewidth=1.5, markersize=4)
    axes.fill_between(at, lows, highs, color=color, alpha=0.15, linewidth=0)


def card_of(run):
    """Return the name of the card, and what it copies."""
    name = run.machine.get("card", {}).get("name", "a card")
    return f"{name}, copies {run.machine.get('copy_bytes_per_s', 0) / 1e12:.2f} TB/s"


def draw_dims(plt, run):
    """Return a picture of find against dim, with the floor and the targets."""
    picture, axes = plt.subplots(figsize=(9, 4.6))
    found = {
        key: [f for f in figures if f.axes.get("load") == NORMAL_LOAD]
        for key, figures in figures_of(run, "find").items()
    }
    lanes = [lane for (lane, kind), figures in found.items() if kind == "" and figures]
    for lane, color in zip(lanes, COLORS * 2, strict=False):
        curve(axes, found[lane, ""], "dim", lane, color)
    floors, bounds = {}, {}
    for lane in lanes:
        shares = {f.axes["dim"]: f.value for f in found.get((lane, "of the floor"), [])}
        for figure in found[lane, ""]:
            dim = figure.axes["dim"]
            if lane.startswith("Table.find") and shares.get(dim):
                floors[dim] = figure.value / shares[dim]
            if figure.target is not None:
                bounds[dim] = figure.target.bound
    for values, style, label in ((floors, "--", "floor"), (bounds, "_", "target")):
        if values:
            at = sorted(values)
            heights = [values[dim] for dim in at]
            axes.plot(at, heights, style, color=INK, label=label, markersize=14, linewidth=1)
    dims = sorted({f.axes["dim"] for lane in lanes for f in found[lane, ""]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(dims, [str(dim) for dim in dims])
    axes.set(xlabel="dim", ylabel="B keys/s", ylim=(0, None))
    axes.set_title(f"find at load {NORMAL_LOAD} on {card_of(run)}")
    axes.legend(fontsize=8)
    return picture


def draw_loads(plt, run):
    """Return a picture of find against load, a curve for each dim."""
    picture, axes = plt.subplots(figsize=(9, 4.2))
    found = figures_of(run, "find")
    for lane, style in (("find kernel", "o-"), ("Table.find, out=", "s:")):
        figures = found.get((lane, ""), [])
        dims = dict.fromkeys(f.axes["dim"] for f in figures)
        for dim, color in zip(dims, COLORS, strict=False):
            own = [f for f in figures if f.axes["dim"] == dim]
            curve(axes, own, "load", f"{lane}, dim {dim}", color, style)
    axes.set(xlabel="keys per cell of the index", ylabel="B keys/s", ylim=(0, None))
    axes.set_title(f"find against load on {card_of(run)}")
    axes.legend(fontsize=8, ncols=2)
    return picture


def draw_reads(plt, run):
    """Return a picture of random reads without a table, against how far they are spread."""
    picture, axes = plt.subplots(figsize=(9, 4.2))
    lines = figures_of(run, "random lines").get(("lines", "moved"), [])
    if lines:
        curve(axes, lines, "table_gb", "line of 128 bytes", INK, "o--")
    figures = figures_of(run, "random line and row").get(("line, row", "moved"), [])
    sizes = dict.fromkeys(f.axes["row_bytes"] for f in figures)
    for row_bytes, color in zip(sizes, COLORS, strict=False):
        own = [f for f in figures if f.axes["row_bytes"] == row_bytes]
        curve(axes, own, "table_gb", f"line, then row of {row_bytes} bytes", color)
    axes.set(xlabel="gigabytes that they are spread over", ylabel="GB/s", ylim=(0, None))
    axes.set_title(f"reads at random on {card_of(run)}")
    axes.legend(fontsize=8)
    return picture


def draw(plt, run):
    """Yield (name, picture) of a run of gpu."""
    cases = {case.name for case in run.cases if case.contenders}
    if "find" in cases:
        yield "gpu-find-dims", draw_dims(plt, run)
        yield "gpu-find-loads", draw_loads(plt, run)
    if "random lines" in cases:
        yield "gpu-reads", draw_reads(plt, run)
