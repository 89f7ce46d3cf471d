"""Training and assigning on the device: the launches that make new rows of gradients, or values.

Nothing here waits for the device, but `counted`: what a call counts stays in the device's memory.
Addresses are of arrays there; 0 is none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embstore.engines.cuda.batch import Distinct
from embstore.engines.cuda.launch import Launcher
from embstore.engines.cuda.order import SortBy, sort
from embstore.engines.native import ON_NONFINITE

COUNTS = ("n_wanted", "n_dropped", "n_stale", "n_nonfinite", "first_bad")  # UpdateCounts
BLOCK = 32  # core/reduce.h
TILE = 8
POOL_SUM = 0  # core/pooling.h


@dataclass(frozen=True)
class Part:
    """The gradients of some of a batch's positions, in order.

    Parameters
    ----------
    n
        Positions.
    rows
        (n, dim) float32, or, of bags, (n_bags, dim).
    n_bags, offsets, mode, weights
        Of bags: how many, (n_bags + 1,) int64, how they were pooled, and (n,) float32 or 0.
    """

    n: int
    rows: int
    n_bags: int = 0
    offsets: int = 0
    mode: int = POOL_SUM
    weights: int = 0

    @property
    def is_divided(self) -> bool:
        """Whether the gradients of its bags are divided before they are those of ids."""
        return self.offsets != 0 and self.mode != POOL_SUM


@dataclass(frozen=True)
class View:
    """The gradient of each position: row i of `base`, or what pointers say, times a weight."""

    dim: int
    base: int = 0
    pointers: int = 0
    weights: int = 0

    def fields(self) -> dict[str, int]:
        """Return the arguments of kernels that read gradients."""
        return {"base": self.base, "pointers": self.pointers, "weights": self.weights}


@dataclass(frozen=True)
class Runs:
    """The positions of each key, in batch order: order[starts[u] : starts[u + 1]]."""

    n: int
    n_unique: int
    inverse: int
    order: int
    starts: int


@dataclass(frozen=True)
class Step:
    """What a call of apply_gradients trains with.

    Parameters
    ----------
    lr, beta1_power, beta2_power
        The learning rate, and the powers of Adam's betas at `t`.
    t
        Training steps, this one too.
    step
        Relative to the table's step_base.
    has_row_sums
        Whether the optimizer sums along rows: RowWiseAdagrad, or any with clip_norm.
    on_nonfinite
        Of native.ON_NONFINITE. With "raise" nothing is changed if any sum is not finite.
    """

    lr: float
    beta1_power: float
    beta2_power: float
    t: int
    step: int
    has_row_sums: bool
    on_nonfinite: int
    now: int = 0


def lanes_shift(dim: int) -> int:
    """Return log2 of the threads that share a row: each takes four columns, and then more."""
    return min(5, (-(-dim // 4) - 1).bit_length())


def group(launcher: Launcher, batch: Distinct) -> Runs:
    """Sort the positions of a batch by key."""
    order = launcher.scratch("run order", 4 * batch.n)
    starts = launcher.scratch("run starts", 4 * (batch.n + 1))
    n_bits = max(1, batch.n - 1).bit_length()
    sort(launcher, batch.inverse, SortBy.WORD, batch.n, order, n_bits=n_bits)
    launcher.run("mark_runs", batch.n, inverse=batch.inverse, order=order, n=batch.n, starts=starts)
    return Runs(batch.n, batch.n_unique, batch.inverse, order, starts)


def gradient_view(launcher: Launcher, parts: Sequence[Part], dim: int) -> View:
    """Return the gradient of each position of a batch of parts, whose arrays must outlive it."""
    if len(parts) == 1 and parts[0].offsets == 0:
        return View(dim, base=parts[0].rows)
    n = sum(part.n for part in parts)
    n_divided = sum(part.n_bags for part in parts if part.is_divided)
    pointers = launcher.scratch("gradient pointers", 8 * n)
    divided = launcher.scratch("divided gradients", 4 * dim * n_divided) if n_divided else 0
    has_weights = any(part.weights != 0 for part in parts)
    weights = launcher.scratch("gradient weights", 4 * n) if has_weights else 0
    at = 0
    for part in parts:
        to = {"pointers": pointers + 8 * at, "weights": weights + 4 * at if has_weights else 0}
        if part.offsets == 0:
            launcher.run("point_rows", part.n, rows=part.rows, n=part.n, dim=dim, **to)
        else:
            point_bags(launcher, part, dim, divided, to)
        if part.is_divided:
            divided += 4 * dim * part.n_bags
        at += part.n
    return View(dim, pointers=pointers, weights=weights)


def point_bags(launcher: Launcher, part: Part, dim: int, divided: int, to: dict[str, int]) -> None:
    """Let the positions of bags point to their bag's gradient, divided where the mode says so."""
    bags = {"offsets": part.offsets, "n_bags": part.n_bags, "dim": dim}
    rows = part.rows
    if part.is_divided:
        shift = lanes_shift(dim)
        own = {"rows": rows, "pool_mode": part.mode, "out": divided, "lanes_shift": shift}
        launcher.run("divide_bags", part.n_bags << shift, **own, **bags)
        rows = divided
    launcher.run("point_bags", TILE * part.n_bags, rows=rows, given=part.weights, **bags, **to)


def add_up(
    launcher: Launcher, view: View, runs: Runs, targets: int = 0, is_bad: int = 0, counts: int = 0
) -> int:
    """Sum the gradients of each key that has a target, or of all; return where the sums are.

    Kernels read them by `sum_of_run` (gradients.h). With `is_bad` and `counts`, sums that are not
    finite are marked and counted.
    """
    shift = lanes_shift(view.dim)
    levels = range(1, 1 + sum(runs.n > BLOCK**level for level in range(1, 8)))  # a run may need
    n_partials = sum(2 * (runs.n // BLOCK**level) for level in levels)
    partials = launcher.scratch("partial sums", 4 * view.dim * n_partials)
    sums = launcher.scratch("gradient sums", 4 * view.dim * (runs.n // 2))
    common = view.fields() | {"dim": view.dim, "n": runs.n, "inverse": runs.inverse}
    common |= {"order": runs.order, "starts": runs.starts, "targets": targets}
    common |= {"partials": partials, "lanes_shift": shift}
    for level in levels:
        n_blocks = 2 * -(-runs.n // BLOCK**level)
        launcher.run("sum_blocks", n_blocks << shift, level=level, **common)
    own = {"n_unique": runs.n_unique, "sums": sums, "is_bad": is_bad, "counts": counts}
    launcher.run("sum_gradients", runs.n << shift, **own, **common)
    return sums


@dataclass(frozen=True)
class Sums:
    """The summed gradients of a batch, and where the rows are that they go to."""

    view: View
    runs: Runs
    sums: int
    is_bad: int
    counts: int
    scalars: int


def sum_up(
    launcher: Launcher,
    table: int,
    batch: Distinct,
    parts: Sequence[Part],
    dim: int,
    on_nonfinite: int,
) -> Sums:
    """Find the rows of a batch anew, and sum the gradients of each key that has one.

    `batch.rows` becomes where the rows are now. `counts` are COUNTS as uint64, good until the next
    call. Nothing of the table changes.
    """
    counts = launcher.scratch("update counts", 8 * len(COUNTS))
    is_bad = launcher.scratch("bad sums", 4 * batch.n)
    launcher.run("clear_update_counts", 1, counts=counts)
    launcher.run(
        "resolve_rows",
        batch.n,
        table=table,
        keys=batch.keys,
        n_unique=batch.n_unique,
        status=batch.status,
        rows=batch.rows,
        targets=batch.rows,
        is_bad=is_bad,
        counts=counts,
    )
    runs = group(launcher, batch)
    view = gradient_view(launcher, parts, dim)
    checked = {}
    if on_nonfinite != ON_NONFINITE["allow"]:
        checked = {"is_bad": is_bad, "counts": counts}
    sums = add_up(launcher, view, runs, batch.rows, **checked)
    scalars = launcher.scratch("update scalars", 64)  # here, for the update may not fail
    return Sums(view, runs, sums, is_bad, counts, scalars)


def update(
    launcher: Launcher, table: int, batch: Distinct, summed: Sums, dim: int, how: Step
) -> None:
    """Train the rows of a batch by its sums, unless one is not finite and that is an error."""
    launcher.run(
        "prepare_update",
        1,
        table=table,
        scalars=summed.scalars,
        lr=how.lr,
        beta1_power=how.beta1_power,
        beta2_power=how.beta2_power,
        now=how.now,
    )
    kernel, shift = "update_rows", lanes_shift(dim)
    if how.has_row_sums:
        kernel, shift = "update_rows_by_sums", 3
    launcher.run(
        kernel,
        batch.n << shift,
        table=table,
        keys=batch.keys,
        n_unique=batch.n_unique,
        targets=batch.rows,
        is_bad=summed.is_bad,
        counts=summed.counts,
        on_nonfinite=how.on_nonfinite,
        **summed.view.fields(),
        order=summed.runs.order,
        starts=summed.runs.starts,
        sums=summed.sums,
        scalars=summed.scalars,
        t=how.t,
        step=how.step,
        now=how.now,
        lanes_shift=shift,
    )
    launcher.run(
        "settle_update",
        1,
        table=table,
        counts=summed.counts,
        on_nonfinite=how.on_nonfinite,
        keys=batch.keys,
        inverse=batch.inverse,
    )


def counted(launcher: Launcher, counts: int) -> dict[str, int]:
    """Return what `apply` has counted; waits for the device."""
    values = np.empty(len(COUNTS), np.uint64)
    launcher.queue.download(counts, values)
    return dict(zip(COUNTS, values.tolist(), strict=True))


@dataclass(frozen=True)
class Vectors:
    """What each key's row shall hold, float32: row index[u] of `base`, or u without an index."""

    base: int
    index: int


def last_values(launcher: Launcher, batch: Distinct, values: int) -> Vectors:
    """Return the value of the last position of each key; `values` is (n, dim)."""
    last = launcher.scratch("last positions", 4 * batch.n)
    launcher.queue.fill(last, 0, 4 * batch.n)
    launcher.run("last_positions", batch.n, inverse=batch.inverse, n=batch.n, last=last)
    return Vectors(values, last)


def added_values(launcher: Launcher, table: int, batch: Distinct, values: int, dim: int) -> Vectors:
    """Return the row of each key, or what it would be born as, plus its `values`, (n, dim)."""
    runs = group(launcher, batch)
    sums = add_up(launcher, View(dim, base=values), runs)
    results = launcher.scratch("assigned values", 4 * dim * batch.n)
    shift = lanes_shift(dim)
    keys = {"table": table, "keys": batch.keys, "n_unique": batch.n_unique, "rows": batch.rows}
    added = {"values": values, "order": runs.order, "starts": runs.starts, "sums": sums}
    launcher.run(
        "add_values", batch.n << shift, results=results, lanes_shift=shift, **keys, **added
    )
    return Vectors(results, 0)


def check(launcher: Launcher, batch: Distinct, vectors: Vectors, dim: int) -> int:
    """Return the address of a uint64 that becomes 1 if any vector is not finite, otherwise 0."""
    has_bad = launcher.scratch("has bad", 8)
    launcher.queue.fill(has_bad, 0, 8)
    shift = lanes_shift(dim)
    fields = {"base": vectors.base, "index": vectors.index, "n_unique": batch.n_unique}
    fields |= {"dim": dim, "has_bad": has_bad, "lanes_shift": shift}
    launcher.run("check_vectors", batch.n << shift, **fields)
    return has_bad


def assign(
    launcher: Launcher, table: int, batch: Distinct, vectors: Vectors, dim: int, step: int
) -> None:
    """Write vectors into the rows of a batch; keys without a row are left out."""
    shift = lanes_shift(dim)
    fields = {"table": table, "n_unique": batch.n_unique, "rows": batch.rows, "step": step}
    fields |= {"base": vectors.base, "index": vectors.index, "lanes_shift": shift}
    launcher.run("assign_rows", batch.n << shift, **fields)
