"""CUDA graphs: finds and training steps that were captured, replayed beside the same calls.

A stream that is captured must not meet the legacy default stream, so the tables here belong to the
stream of their graphs: it is current when they are made.
"""

import numpy as np

from bench.gpu import model
from bench.gpu.adapter import Kernels, NotMeasured, has_capture, slot_floats
from bench.gpu.session import N_BATCHES, Lane

DIM, LOAD = 64, 0.75
REPLAY, PLAIN = "graph replay", "the same calls"


def of_kernels(session, filled):
    """Measure the replay of find kernels alone, which the engine need not know of."""
    n, n_calls = session.scale.batch, session.scale.n_calls
    filled.draw()
    under, rows = Kernels(filled.table), session.clock.empty((n, filled.table.dim), np.float32)
    keys = [batch.keys for batch in filled.batches]

    def queued(queue):
        for number in range(n_calls):
            under.find(keys[number % N_BATCHES], n, rows, queue)

    def plain(number):
        under.find(keys[number % N_BATCHES], n, rows)

    replay, stream = session.clock.captured(queued)
    each = model.find_bytes(filled.table.dim)
    lanes = [
        Lane(REPLAY, replay, n * n_calls, "keys", each, stream=stream),
        Lane(PLAIN, plain, n, "keys", each, n_calls=n_calls),
    ]
    session.measure("find kernels in a graph", filled.axes(LOAD), lanes, calls_in_graph=n_calls)


def measure(session, new_table, optimizer):
    """Measure Table's find and its training step in graphs; `new_table` makes a table."""
    axes = {"dim": DIM, "load": LOAD}
    with session.guarded("graphs of a table", axes):
        if not has_capture():
            raise NotMeasured("es.Table has no capturing() yet")
        if session.crossing.missing:
            raise NotMeasured("captured calls take arrays of the card alone")
        session.require_time()
        n_rows = session.rows_that_fit(8 * DIM, session.scale.n_rows // 5)
        with session.clock.own_stream() as stream:
            filled = new_table(session, DIM, n_rows, optimizer=optimizer)
        try:
            filled.fill_to(LOAD)
            filled.draw()
            session.clock.synchronize()
            find_case(session, filled, stream)
            step_case(session, filled, stream)
        finally:
            filled.table.close()


class Buffers:
    """The arrays that captured calls read and write, and what is copied into them."""

    def __init__(self, session, filled):
        self._session, self._batches = session, filled.batches
        shape = (session.scale.batch, DIM)
        self.keys = session.clock.filled(shape[:1], np.int64)
        self.out = session.clock.empty(shape, np.float32)
        self.grads = session.data.floats(shape)
        self.step = 0
        self.take(0)

    def take(self, number):
        """Let the captured keys be those of a batch; not timed."""
        clock, batch = self._session.clock, self._batches[number % N_BATCHES]
        clock.copy(self.keys, batch.keys, 8 * batch.n)
        clock.synchronize()

    def next_step(self):
        """Return the next step."""
        self.step += 1
        return self.step


def measured(session, filled, stream, name, calls, each, has_step):
    """Measure calls(keys, step, stream handle), plainly and in a graph of the stream."""
    table, n, clock = filled.table, session.scale.batch, session.clock
    buffers = Buffers(session, filled)
    handle = clock.handle(stream)

    with table.capturing():
        graph, _ = clock.captured(lambda queue: calls(buffers, buffers.keys, 0, handle), stream)

    def replay(number):
        step = buffers.next_step() if has_step else None
        with table.replaying(step=step, stream=handle):
            graph(number)

    def plain(number):
        keys = filled.batches[number % N_BATCHES].keys
        calls(buffers, keys, buffers.next_step(), handle)

    more = {"stream": stream, "prepare": buffers.take}
    lanes = [
        Lane(REPLAY, replay, n, "keys", each, **more),
        Lane(PLAIN, plain, n, "keys", each, **more),
    ]
    session.measure(name, filled.axes(LOAD), lanes)


def find_case(session, filled, stream):
    """Measure Table.find in a graph."""

    def calls(buffers, keys, step, handle):
        filled.table.find(keys, out=buffers.out, stream=handle)

    measured(session, filled, stream, "find in a graph", calls, model.find_bytes(DIM), False)


def step_case(session, filled, stream):
    """Measure find_or_insert and apply_gradients in a graph."""
    table = filled.table

    def calls(buffers, keys, step, handle):
        batch = table.find_or_insert(keys, step=step, out=buffers.out, stream=handle)
        table.apply_gradients(batch, buffers.grads, step=step, stream=handle)

    each = model.update_bytes(DIM, slot_floats(table)) + model.hit_bytes(DIM)
    measured(session, filled, stream, "training step in a graph", calls, each, True)
