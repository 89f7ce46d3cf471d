"""What the card's memory gives at best: copies, random lines, and random rows behind them."""

import numpy as np

from bench.gpu.data import SPAN
from bench.gpu.model import LINE
from bench.gpu.session import SPARE, Lane
from bench.harness import product

NEVER = 0x5EED5EED5EED5EED  # what no sum of zeros is
CALLS = 8  # of a million reads, in one: so long that the beginning of a launch does not count
ROW_BYTES = (32, 64, 128, 256)


def measure(session):
    """Measure the copy, which every floor is taken from, and reads at random."""
    with session.guarded("copy", {}):
        copies(session)
    for table_gb in sizes(session):
        with session.guarded("reads at random", {"table_gb": table_gb}):
            reads(session, table_gb)
        session.clock.release()


def copies(session):
    """Measure copies by the driver and by a kernel; the faster one is this card's copy."""
    clock = session.clock
    n_bytes = min(session.scale.copy_bytes, int(clock.free_bytes() * 0.4)) // 256 * 256
    source, to = (clock.filled((n_bytes,), np.uint8) for _ in range(2))

    def by_kernel(number):
        fields = {"from": source, "to": to, "n_bytes": n_bytes}
        clock.run("ceiling_copy", n_bytes // 16, **fields)

    lanes = [
        Lane("driver", lambda number: clock.copy(to, source, n_bytes), n_bytes, "bytes", 2.0),
        Lane("kernel", by_kernel, n_bytes, "bytes", 2.0),
    ]
    result = session.measure("copy", {}, lanes, n_bytes=n_bytes)
    if result is not None:
        fastest = min(c.summary_ns().median for c in result.contenders)
        session.bytes_per_s = 2 * n_bytes / (fastest / 1e9)
    session.say(f"  this card copies {session.bytes_per_s / 1e12:.3f} TB/s: floors follow from it")


def sizes(session):
    """Yield the gigabytes of the tables that fit."""
    for table_gb in session.scale.line_gb:
        if table_gb * 1e9 <= session.clock.free_bytes() * (SPARE + 0.06):
            yield table_gb
        else:
            session.skip("reads at random", {"table_gb": table_gb}, "the card has not the memory")


def reads(session, table_gb):
    """Measure reads of lines, and of rows whose place a line tells, over a table of a size."""
    clock, n = session.clock, CALLS * session.scale.batch
    n_lines = int(table_gb * 1e9) // 1024 * 8
    table, out = clock.filled((n_lines * LINE,), np.uint8), clock.filled((1,), np.uint64)
    common = {"lines": table, "n_lines": n_lines, "n": n, "never": NEVER, "out": out}

    def lines(number):
        clock.run("ceiling_lines", 8 * n, seed=seed_of(number), **common)

    session.measure(
        "random lines", {"table_gb": table_gb, "batch": n}, [lane(session, "lines", lines, LINE)]
    )
    for axes in product(table_gb=table_gb, row_bytes=ROW_BYTES, batch=n):
        row_bytes = axes["row_bytes"]
        rows = {"rows": table, "n_rows": n_lines * LINE // row_bytes, "row_bytes": row_bytes}
        to = clock.empty((n, row_bytes), np.uint8)
        each = LINE + row_bytes
        found = [
            lane(session, "line, row", behind(clock, n, common | rows, 0), each),
            lane(
                session, "line, row, written", behind(clock, n, common | rows, to), each + row_bytes
            ),
        ]
        session.measure("random line and row", axes, found)


def lane(session, name, call, bytes_each):
    """Return the contender of a ceiling."""
    n = CALLS * session.scale.batch
    return Lane(name, call, n, "reads", bytes_each, n_calls=session.scale.n_calls)


def behind(clock, n, fields, to):
    """Return a call that reads lines and the rows that they lead to, and writes those to `to`."""

    def call(number):
        clock.run("ceiling_lines_and_rows", 8 * n, seed=seed_of(number), to=to, **fields)

    return call


def seed_of(number):
    """Return the seed of a launch."""
    return (number + 1000) * SPAN % 2**64
