"""Sets of rows on the device, a bit for each row id, and the lists that are made of them."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from embstore.engines.cuda.launch import Launcher
from embstore.engines.cuda.order import scan

WORD_ROWS = 32


class RowList(NamedTuple):
    """Row ids on the device: the address of (n,) uint32."""

    address: int
    n: int


class DeviceTable(NamedTuple):
    """A table as the steps of this engine see it; addresses are of the device.

    Attributes
    ----------
    view : int
        Of its TableView.
    live : int
        Of its set of live rows, (n_ids,) bits.
    n_ids : int
        Row ids that were ever given out.
    n_lines : int
        Lines of the index.
    protect : callable or None
        Called with a list of rows before they leave the table; for snapshots.
    """

    view: int
    live: int
    n_ids: int
    n_lines: int
    protect: Callable[[RowList], None] | None = None


def set_bytes(n_rows: int) -> int:
    """Return the bytes of a set of rows."""
    return -(-n_rows // WORD_ROWS) * 4


def download_count(launcher: Launcher, address: int) -> int:
    """Return a uint64 of the device; waits for it."""
    out = np.empty(1, np.uint64)
    launcher.queue.download(address, out)
    return int(out[0])


def list_set(
    launcher: Launcher, bits: int, first_row: int, end_row: int, name: str = "listed rows"
) -> RowList:
    """Return the rows of a set from `first_row`, a multiple of 32, to `end_row`, ascending.

    Waits for their number. They lie in the scratch memory `name`.
    """
    n_words = -(-end_row // WORD_ROWS) - first_row // WORD_ROWS
    if n_words <= 0:
        return RowList(launcher.scratch(name, 4), 0)
    places = launcher.scratch("places of words", 4 * n_words)
    total = launcher.scratch("number of rows", 8)
    words = {"set": bits, "first_row": first_row, "end_row": end_row}
    launcher.run("count_words_of_rows", n_words, **words, counts=places)
    scan(launcher, places, n_words, places, total)
    n = download_count(launcher, total)
    rows = launcher.scratch(name, 4 * n)
    if n > 0:
        launcher.run("list_rows_of_words", n_words, **words, places=places, rows=rows)
    return RowList(rows, n)
