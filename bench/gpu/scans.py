"""Scans over all rows: eviction by step and by norm, and export."""

import embstore as es
from bench.gpu import model
from bench.gpu.session import Lane

POLICIES = {"by step": es.StepEviction(1 << 40), "by norm": es.L2Eviction(1e-30, min_age=0)}
LOAD = 0.75


def measure(session, filled):
    """Measure scans that select nothing over a table, and the export of a smaller one."""
    table, axes = filled.table, filled.axes(LOAD)
    n = len(table)
    lanes = [
        Lane(
            f"Table.evict, {name}",
            lambda number, policy=policy: table.evict(policy, step=0, dry_run=True),
            n,
            "rows",
            model.scan_bytes(table.dim, name == "by norm"),
        )
        for name, policy in POLICIES.items()
    ]
    session.measure("eviction scan", axes, lanes)
    with session.guarded("export", axes):
        export(session, table.dim)


def export(session, dim):
    """Measure the export of a table: rows of the host, so the bus is part of it."""
    n = session.scale.export_rows
    with es.Table(dim, seed=session.seed, hash_seed=0, device=session.clock.name) as table:
        for first in range(0, n, session.scale.batch):
            part = min(session.scale.batch, n - first)
            session.crossing.insert(table, session.data.following(first, part))

        def call(number):
            n_found = sum(len(rows.keys) for rows in table.export(batch_rows=1 << 20))
            assert n_found == n, f"{n_found} rows of {n} were exported"

        each = 4 * dim + model.META_BYTES
        axes = {"n_rows": n, "dim": dim, "rows_in": "host"}
        session.measure("export", axes, [Lane("Table.export", call, n, "rows", each)])
