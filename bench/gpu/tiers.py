"""Rows in pinned memory of the host: find by their share."""

from bench.gpu.adapter import NotMeasured, has_tiers
from bench.gpu.reading import find_lanes, new_table

SHARES = (0.0, 0.5, 1.0)
DIM, LOAD = 64, 0.75


def measure(session):
    """Measure finds on tables of which a share of the rows lies in the memory of the host."""
    for share in SHARES:
        axes = {"dim": DIM, "host_share": share}
        with session.guarded("rows on the host", axes):
            if not has_tiers():
                raise NotMeasured("es.Table has no hbm_bytes= yet")
            measure_share(session, share)
        session.clock.release()


def measure_share(session, share):
    """Measure one share, on a fifth of the rows."""
    n_rows = session.rows_that_fit(4 * DIM, session.scale.n_rows // 5)
    on_card = None if share == 0 else int((1 - share) * n_rows * 4 * DIM)
    filled = new_table(session, DIM, n_rows, hbm_bytes=on_card)
    try:
        filled.fill_to(LOAD)
        axes = filled.axes(LOAD, host_share=share, rows_in=session.crossing.place("find"))
        stats = filled.table.stats()
        notes = {name: n for name, n in stats.items() if "host" in name or "hbm" in name}
        session.measure("rows on the host", axes, find_lanes(session, filled), **notes)
    finally:
        filled.table.close()
