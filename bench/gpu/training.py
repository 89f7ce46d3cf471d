"""Training: every optimizer by its verb, its sort and its kernel alone; duplicates; whole steps."""

import numpy as np

import embstore as es
from bench.gpu import graphs, model, targets
from bench.gpu.adapter import Kernels, slot_floats
from bench.gpu.reading import new_table
from bench.gpu.session import Lane
from bench.harness import axes_of

LOAD = 0.75
OPTIMIZERS = {
    "sgd": es.SGD(lr=0.01),
    "momentum": es.SGD(lr=0.01, momentum=0.9),
    "adagrad": es.Adagrad(lr=0.01),
    "rowwise": es.RowWiseAdagrad(lr=0.01),
    "adam": es.Adam(lr=0.001),
    "adamw": es.AdamW(lr=0.001),
    "ftrl": es.FTRL(lr=0.01),
}
SLOT_VECTORS = {"sgd": 0, "momentum": 1, "adagrad": 1, "rowwise": 0, "adam": 2, "adamw": 2}
EXPONENTS = (0.8, 1.05, 1.2)
N_TICKETS = 3
N_TABLES, STEP_IDS, STEP_DIM, STEP_ROWS = 10, 1_050_000, 128, 4_000_000
APPLY, SORT, UPDATE = "Table.apply_gradients", "its sort", "its optimizer kernel"


def measure(session):
    """Measure Adagrad at all dims, the others at dim 64, duplicates, a step of ten tables."""
    dims = session.scale.dims
    for dim in dims:
        with session.guarded("backward", {"dim": dim, "optimizer": "adagrad"}):
            backward(session, "adagrad", dim, session.scale.n_rows, with_zipf=dim == 64)
        session.clock.release()
    for name in OPTIMIZERS:
        if name == "adagrad":
            continue
        with session.guarded("backward", {"dim": 64, "optimizer": name}):
            backward(session, name, 64, session.scale.n_rows // 5)
        session.clock.release()
    graphs.measure(session, new_table, OPTIMIZERS["adagrad"])
    session.clock.release()
    with session.guarded("step of ten tables", {"dim": STEP_DIM, "optimizer": "adam"}):
        step_of_tables(session)
    session.clock.release()


def backward(session, name, dim, n_rows, with_zipf=False):
    """Measure the backward pass of one optimizer."""
    session.require_time()
    floats = dim * (1 + SLOT_VECTORS.get(name, 2))
    fitting = session.rows_that_fit(4 * floats, n_rows)
    filled = new_table(session, dim, fitting, optimizer=OPTIMIZERS[name])
    try:
        filled.fill_to(LOAD)
        axes = filled.axes(LOAD, optimizer=name, distribution="uniform")
        n = session.scale.batch
        batches = [session.data.uniform(n, filled.n_rows, turn) for turn in range(N_TICKETS)]
        backward_case(session, filled, axes, batches, name)
        for exponent in EXPONENTS if with_zipf else ():
            batches = [
                session.data.zipf(n, filled.n_rows, turn, exponent) for turn in range(N_TICKETS)
            ]
            axes = filled.axes(LOAD, optimizer=name, distribution="zipf", exponent=exponent)
            backward_case(session, filled, axes, batches)
    finally:
        filled.table.close()


class Tickets:
    """Batches that a table has given rows for, and gradients of theirs."""

    def __init__(self, session, table, batches):
        crossing, n = session.crossing, session.scale.batch
        self.keys = [crossing.crossing("find_or_insert", batch.keys) for batch in batches]
        self.out = crossing.out("find_or_insert", (n, table.dim))
        self.batches = [table.find_or_insert(keys, step=0, out=self.out) for keys in self.keys]
        self.grads = session.data.floats((n, table.dim))
        self.given = crossing.crossing("apply_gradients", self.grads)
        self.step = 0

    def __getitem__(self, number):
        return self.batches[number % N_TICKETS]

    def next_step(self):
        self.step += 1
        return self.step


def backward_case(session, filled, axes, batches, name=""):
    """Measure apply_gradients, the sort within, the optimizer's kernel, and the forward pass.

    The model counts distinct keys: with duplicates there is no floor, and `name` is empty.
    """
    table, n, under = filled.table, session.scale.batch, Kernels(filled.table)
    tickets, sums = Tickets(session, table, batches), [None, None]

    def apply(number):
        table.apply_gradients(tickets[number], tickets.given, step=tickets.next_step())

    def sort(number):
        under.group(under.distinct_of(tickets[number]))

    def add_up(number):
        distinct = under.distinct_of(tickets[number])
        sums[:] = distinct, under.summed(distinct, tickets.grads, n)

    def update(number):
        under.update(*sums)

    def step(number):
        at = tickets.next_step()
        keys = tickets.keys[number % N_TICKETS]
        with table.find_or_insert(keys, step=at, out=tickets.out) as batch:
            table.apply_gradients(batch, tickets.given, step=at)

    key = (name, table.dim)
    each = model.update_bytes(table.dim, slot_floats(table)) if name else None
    whole = None if each is None else each + model.hit_bytes(table.dim)
    whole_of, kernel_of = targets.BACKWARD.get(key), targets.UPDATE.get(key)
    more = {"n_calls": session.scale.n_calls}
    here = {} if session.crossing.place("apply_gradients") == "host" else more
    lanes = [
        Lane(APPLY, apply, n, "keys", each, of_floor=whole_of, **here),
        Lane(SORT, sort, n, **more),
        Lane(UPDATE, update, n, "keys", each, of_floor=kernel_of, prepare=add_up),
        Lane("step: find_or_insert, apply_gradients", step, n, "keys", whole, **here),
    ]
    n_unique = len(np.unique(session.clock.host(batches[0].ids)))
    notes = {"unique_share": round(n_unique / n, 4), "slot_floats": slot_floats(table)}
    result = session.measure(
        "backward", axes | {"rows_in": session.crossing.place("apply_gradients")}, lanes, **notes
    )
    if result is not None:
        times = {c.name: c.summary_ns().median for c in result.contenders}
        if SORT in times and APPLY in times:
            session.say(f"  the sort is {times[SORT] / times[APPLY]:.0%} of {APPLY}")
    for batch in tickets.batches:
        batch.close()


def step_of_tables(session):
    """Measure a training step at the shape that dynamicemb publishes: ten tables, Adam."""
    n_rows = session.rows_that_fit(12 * STEP_DIM, min(STEP_ROWS, session.scale.n_rows) * N_TABLES)
    n_ids = min(STEP_IDS, session.scale.batch * N_TABLES) // N_TABLES
    found, parts = [], []
    try:
        for number in range(N_TABLES):
            name = f"table {number}"
            options = {"optimizer": OPTIMIZERS["adam"], "name": name}
            filled = new_table(session, STEP_DIM, n_rows // N_TABLES, **options)
            found.append(filled)
            filled.fill_to(LOAD)
            keys = [session.data.uniform(n_ids, filled.n_rows, turn).keys for turn in range(3)]
            parts.append([session.crossing.crossing("find_or_insert", k) for k in keys])
        grads = session.crossing.crossing("apply_gradients", session.data.floats((n_ids, STEP_DIM)))
        out = session.crossing.out("find_or_insert", (n_ids, STEP_DIM))
        at = [0]

        def step(number):
            at[0] += 1
            for filled, keys in zip(found, parts, strict=True):
                with filled.table.find_or_insert(keys[number % 3], step=at[0], out=out) as batch:
                    filled.table.apply_gradients(batch, grads, step=at[0])

        n = n_ids * N_TABLES
        axes = axes_of(
            n_rows=n_rows, dim=STEP_DIM, batch=n, tables=N_TABLES, load=LOAD, optimizer="adam",
            rows_in=session.crossing.place("apply_gradients"),
        )  # fmt: skip
        each = model.update_bytes(STEP_DIM, 2 * STEP_DIM) + model.hit_bytes(STEP_DIM)
        lane = Lane("step, one table after another", step, n, "keys", each, time_ms=targets.STEP_MS)
        session.measure("step of ten tables", axes, [lane])
    finally:
        for filled in found:
            filled.table.close()
