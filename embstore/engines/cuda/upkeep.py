"""What is due at a step of a table on the device; docs/semantics.md, section 4, point 1.

The host decides what is due. Nothing here waits for the device but `bloom_cells_used`.
"""

from embstore.engines.cuda.launch import Launcher
from embstore.engines.cuda.row_bits import DeviceTable, download_count

LINE_CELLS = 10


def expire_candidates(launcher: Launcher, table: DeviceTable, now: int, ttl: int) -> None:
    """Drop the candidates that were not seen for `ttl` steps at epoch `now`.

    The view's candidate_epoch is still the epoch before; it becomes `now` afterwards.
    """
    n_cells = LINE_CELLS * table.n_lines
    launcher.run("expire_all_candidates", n_cells, table=table.view, now=now, ttl=ttl)


def halve_frequencies(launcher: Launcher, table: DeviceTable) -> None:
    """Halve the freq of all rows."""
    launcher.run("halve_all_frequencies", table.n_ids, table=table.view, n_ids=table.n_ids)


def advance_base(launcher: Launcher, table: DeviceTable, by: int) -> None:
    """Make the steps of all rows relative to a base that is `by` later; the view's follows."""
    launcher.run("advance_base_of_steps", table.n_ids, table=table.view, by=by, n_ids=table.n_ids)


def halve_bloom(launcher: Launcher, table: DeviceTable, n_bytes: int) -> None:
    """Halve the cells of the filter, `n_bytes` in all."""
    n_words = n_bytes // 8
    launcher.run("halve_bloom_filter", n_words, table=table.view, n_words=n_words)


def bloom_cells_used(launcher: Launcher, table: DeviceTable, n_bytes: int) -> int:
    """Return how many cells of the filter are not zero."""
    n_words = n_bytes // 8
    n_used = launcher.scratch("bloom cells used", 8)
    launcher.queue.fill(n_used, 0, 8)
    launcher.run(
        "count_bloom_cells_used", n_words, table=table.view, n_words=n_words, n_used=n_used
    )
    return download_count(launcher, n_used)
