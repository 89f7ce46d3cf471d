"""What the processes of the frameworks have in common: rows, batches, calls, and small copies.

Each framework runs in a process of its own (`worker.Worker`) on one thread. Its module has a
`Space`, and by it `contender`, which a `RemoteCall` asks for, and `answer`, by which contenders are
compared before the clock starts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

import embstore as es
from bench.keys import draw_batches, key_of
from bench.workspace import LEARNING_RATE, Setup, filled_table, gradients, row_numbers

# Of every side: as TFRA's is, and Keras's and optax's can be.
ADAGRAD = {"initial_accumulator": 0.1, "eps": 1e-7}
CHECK = {"n_rows": 1000, "batch": 512}  # axes of the small copies
CHECK_BATCHES = 3


@dataclass(frozen=True)
class Way:
    """One way to do the work: a function of a batch's ids, and one that gives all rows after it."""

    once: Callable[[Any], Any]
    rows: Callable[[], Any] | None = None


class Space:
    """The rows of a setting of the axes, as our table.

    Each framework adds how it holds them itself, `tensor(ids)`, which makes a batch of its own of
    numpy's, and `way(kind, name)`, the `Way` of a contender.
    """

    def __init__(self, axes, seed):
        self.axes = dict(axes)
        self.setup = Setup(axes["n_rows"], axes["dim"], seed, is_trained=True)

    @cached_property
    def table(self):
        """Our table, all rows there."""
        return filled_table(self.setup, optimizer=es.Adagrad(lr=LEARNING_RATE, **ADAGRAD))

    def table_rows(self):
        """Return all rows of our table by row id."""
        return self.table.find(key_of(np.arange(self.setup.n_rows), self.setup.seed))

    def values(self):
        """Return new (n_rows, dim) float32 rows, those of our table before it was trained."""
        column = row_numbers(np.arange(self.setup.n_rows))[:, None]
        return np.repeat(column, self.setup.dim, axis=1)

    def grads(self):
        """Return the gradients of a batch's rows, the same for all."""
        return gradients(self.axes["batch"], self.setup.dim, self.setup.seed)

    def batches(self, name, row_ids):
        """Return batches of row ids as a contender takes them: as keys, if it is ours."""
        ids = key_of(row_ids, self.setup.seed) if name.startswith("embstore") else row_ids
        return [self.tensor(batch) for batch in ids]


def checked_ids(axes, seed, has_duplicates):
    """Return the (CHECK_BATCHES, batch) row ids that small copies are compared by."""
    if has_duplicates:
        return draw_batches(axes, CHECK_BATCHES, seed).row_ids
    rng, n_rows = np.random.default_rng(seed), axes["n_rows"]
    return np.stack([rng.permutation(n_rows)[: axes["batch"]] for _ in range(CHECK_BATCHES)])


_spaces = {}  # the one in use, by its kind and axes


def space_of(kind, axes, seed):
    """Return the space of some axes; another one is let go first."""
    asked = (kind, axes["n_rows"], axes["dim"], axes["batch"], seed)
    if asked not in _spaces:
        _spaces.clear()
        _spaces[asked] = kind(axes, seed)
    return _spaces[asked]


def contender(space_kind, kind, name, axes, n_batches, n_calls, seed):
    """Return a function of the turn that does `n_calls` calls, each of another batch."""
    space = space_of(space_kind, axes, seed)
    batches = space.batches(name, draw_batches(axes, n_batches, seed).row_ids)
    once = space.way(kind, name).once

    def call(turn):
        for i in range(turn * n_calls, (turn + 1) * n_calls):
            once(batches[i % len(batches)])

    return call


def answer(space_kind, kind, name, axes, seed, has_duplicates):
    """Return the rows that a small copy gives for a batch, or has after training by a few."""
    space = space_kind(axes, seed)
    batches, way = (
        space.batches(name, checked_ids(axes, seed, has_duplicates)),
        space.way(kind, name),
    )
    if way.rows is None:
        return np.asarray(way.once(batches[0]), np.float32).tolist()
    for ids in batches:
        way.once(ids)
    return np.asarray(way.rows(), np.float32).tolist()
