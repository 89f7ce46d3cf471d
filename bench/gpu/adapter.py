"""How this benchmark calls a table: by its verbs with arrays of the device, and by kernels alone.

`crossing` is the one place that knows whether a verb takes arrays of the device. Where one does
not, it is called with numpy arrays, and the result says that keys and rows cross the bus. `Kernels`
calls what lies under the verbs; it follows the engine's insides, and raises `NotMeasured` where
they have changed.
"""

import contextlib
import inspect

import numpy as np

import embstore as es
from bench.gpu.clock import address
from embstore.engines import kernels
from embstore.engines.cuda import pooling, storage, training
from embstore.engines.cuda.launch import Launcher, packed

VERBS = ("find", "find_or_insert", "apply_gradients", "pooled")
MOST_FORCED_LOAD = 0.95


class NotMeasured(Exception):  # noqa: N818
    """Why a row has no figure; no error of anybody."""


def probe(clock, verb):
    """Call a verb with arrays of the device on a table of its own; raise what it raises."""
    keys = clock.to_device(np.arange(4, dtype=np.int64))
    with es.Table(4, optimizer=es.SGD(lr=0.1), device=clock.name) as table:
        if verb == "find":
            rows = table.find(keys, out=clock.empty((4, 4), np.float32))
        elif verb == "find_or_insert":
            rows = table.find_or_insert(keys, step=0).rows
        elif verb == "apply_gradients":
            batch = table.find_or_insert(np.arange(4), step=0)
            rows = None
            table.apply_gradients(batch, clock.filled((4, 4), np.float32), step=0)
        else:
            offsets = clock.to_device(np.array([0, 2, 4]))
            rows = table.pooled(keys, offsets)
        if rows is not None and not hasattr(rows, "__cuda_array_interface__"):
            raise TypeError(f"{verb} gives {type(rows).__name__}")


class Crossing:
    """What the verbs of this engine take: arrays of the device where they can, numpy elsewhere."""

    def __init__(self, clock, say=print):
        self._clock = clock
        self.missing = {}
        for verb in VERBS:
            try:
                probe(clock, verb)
            except Exception as error:  # any: a verb that cannot do it may fail in any way
                self.missing[verb] = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        if self.missing:
            names = ", ".join(self.missing)
            say(f"WARNING: {names}: no arrays of the device ({next(iter(self.missing.values()))}); "
                "measured with numpy arrays, so the bus is part of the figure")  # fmt: skip

    def crossing(self, verb, array):
        """Return an array of the device as a verb takes it; numpy copies are made here, untimed."""
        return self._clock.host(array) if verb in self.missing else array

    def place(self, verb):
        """Return where the arrays of a verb lie."""
        return "host" if verb in self.missing else "device"

    def out(self, verb, shape):
        """Return memory for the rows that a verb writes."""
        empty = np.empty if verb in self.missing else self._clock.empty
        return empty(shape, np.float32)

    def insert(self, table, keys, out=None):
        """Give every key a row, and do not look at it."""
        if "find_or_insert" in self.missing:
            table._engine.find_or_insert(self._clock.host(keys), 0, None, True, None)
        else:
            table.find_or_insert(keys, step=0, out=out)


@contextlib.contextmanager
def forced_load(load):
    """Let an index be filled beyond the load at which it grows, to see how finds would do there."""
    before = storage.MOST_LOAD
    storage.MOST_LOAD = max(before, min(load + 0.02, MOST_FORCED_LOAD))
    try:
        yield
    finally:
        storage.MOST_LOAD = before


def n_cells_of(table):
    """Return the cells of a table's index."""
    return table._engine._storage.n_lines * storage.LINE_CELLS


def launch(launcher, kernel, n_threads, **fields):
    """Launch a kernel of the engine; fields that are not named are 0."""
    names = kernels.argument_fields(kernel)
    if unknown := sorted(set(fields) - set(names)):
        raise NotMeasured(f"the kernel {kernel} has no arguments {unknown} any more")
    values = dict.fromkeys(names, 0) | fields
    launcher.queue.launch(kernel, max(1, n_threads), packed(names, values, kernel))


def following_insides(function):
    """Make of a change of the engine's insides a reason why nothing was measured."""

    def wrapped(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except (AttributeError, TypeError, es.InternalError) as error:
            raise NotMeasured(f"the engine's insides have changed: {error}") from error

    return wrapped


class Kernels:
    """What lies under the verbs of a table, without the way to it."""

    def __init__(self, table):
        self._engine = table._engine
        self._launcher = self._engine._launcher
        self._dim = table.dim
        self._table = table

    @following_insides
    def find(self, keys, n, out, queue=None):
        """Find n keys, and write their rows."""
        launcher = self._launcher if queue is None else Launcher(queue)
        fields = {"table": self._engine._storage.view, "keys": address(keys), "n": n}
        launch(launcher, "find_rows", 8 * n, out=address(out), **fields)

    @following_insides
    def pooled(self, keys, n, offsets, n_bags, out):
        """Find n keys, and add up the rows of each bag."""
        launcher, view = self._launcher, self._engine._storage.view
        rows = launcher.scratch("pooled_ids", 4 * n)
        launch(launcher, "find_rows", 8 * n, table=view, keys=address(keys), n=n, rows=rows)
        at = {"offsets": address(offsets), "n_bags": n_bags, "mode": 0, "out": address(out)}
        pooling.pool(launcher, view, rows, dim=self._dim, **at)

    @following_insides
    def distinct_of(self, batch):
        """Return the distinct keys that a batch remembers."""
        return batch._ticket_of(self._table, "bench").distinct

    @following_insides
    def group(self, distinct):
        """Sort the positions of a batch by key: what backward does before it adds up."""
        training.group(self._launcher, distinct)

    @following_insides
    def summed(self, distinct, grads, n):
        """Add up the gradients of each key of a batch."""
        parts = [training.Part(n, address(grads))]
        engine = self._engine
        how = engine._config["on_nonfinite"]
        view = engine._storage.view
        return training.sum_up(self._launcher, view, distinct, parts, self._dim, how)

    @following_insides
    def update(self, distinct, sums, lr=0.01):
        """Run the optimizer over the rows of a batch."""
        engine = self._engine
        clock, how = engine._clock, engine._config["on_nonfinite"]
        powers = (clock.beta1_power, clock.beta2_power)
        step = training.Step(lr, *powers, max(1, clock.n_train_steps), 0, engine._has_row_sums, how)
        training.update(self._launcher, engine._storage.view, distinct, sums, self._dim, step)


def slot_floats(table):
    """Return the numbers of optimizer state that a row keeps."""
    return table._spec.slot_floats


def has_tiers():
    """Return whether tables can keep rows in pinned memory of the host."""
    return "hbm_bytes" in inspect.signature(es.Table).parameters


def has_capture():
    """Return whether calls of tables can be captured in CUDA graphs."""
    return hasattr(es.Table, "capturing") and hasattr(es.Table, "replaying")
