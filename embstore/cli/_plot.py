"""The picture of a run: the area under the curve and the size of the tables over time."""

import os
from itertools import pairwise
from typing import Any

import numpy as np

from embstore.cli._job import Job
from embstore.cli._metrics import auc

N_WINDOWS = 40


def draw(path: "str | os.PathLike[str]", dynamic: Job, static: "Job | None") -> None:
    """Draw a run, and its baseline, into a file; the suffix says the format."""
    from matplotlib.figure import Figure  # not pyplot: it would look for a display

    figure = Figure(figsize=(8, 6.5), dpi=150, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    _draw_areas(top, dynamic, static)
    _draw_sizes(bottom, dynamic, static)
    bottom.set_xlabel("rows of the log, in time order (millions)")
    for axes in (top, bottom):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _draw_areas(axes: Any, dynamic: Job, static: "Job | None") -> None:
    jobs = {"dynamic": dynamic} | ({"static": static} if static is not None else {})
    for name, job in jobs.items():
        bounds = np.linspace(0, job.n_done, N_WINDOWS + 1).astype(int)
        windows = [slice(a, b) for a, b in pairwise(bounds)]
        areas = [auc(job.labels[w], job.logits[w]) for w in windows]
        style = (
            {"color": "C0", "lw": 2} if job is dynamic else {"color": "C1", "lw": 1.5, "ls": "--"}
        )
        axes.plot((bounds[:-1] + bounds[1:]) / 2e6, areas, label=name, **style)
    axes.set_ylabel(f"AUC of 1/{N_WINDOWS} of the rows")
    axes.set_title("Predicted before trained", loc="left", fontsize=10)
    axes.legend(frameon=False, loc="lower right")


def _draw_sizes(axes: Any, dynamic: Job, static: "Job | None") -> None:
    done, live, pending = np.array(dynamic.samples, np.int64).reshape(-1, 3).T
    axes.plot(done / 1e6, live / 1e3, color="C0", lw=2, label="dynamic: rows live")
    if pending.any():
        axes.plot(
            done / 1e6, pending / 1e3, color="C2", lw=1.5, ls=":", label="dynamic: keys pending"
        )
    if static is not None:
        rows = static.tables.n_rows() / 1e3
        axes.axhline(rows, color="C1", lw=1.5, ls="--", label="static: rows")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("thousands")
    axes.set_title("Table size", loc="left", fontsize=10)
    axes.legend(frameon=False, loc="lower right")
