"""The chunks that a table's rows lie in: on the card until a budget is spent, then pinned.

1. A chunk's home follows from its number, so that one number tells rows of the card from those of
   the host: ids below `n_card_rows` are on the card.
2. Meta records are on the card always.
3. The first chunk grows by copying until it is full; after that chunks are added. Growing is done
   whole, or raises and changes nothing.
"""

from typing import NamedTuple

import numpy as np

from embstore.engines.cuda.device import Device, Memory
from embstore.engines.cuda.launch import Launcher

CHUNK_BYTES = 64 << 20  # of rows, at most
LEAST_SPLIT_BYTES = 4 << 20  # of chunks, where they are smaller for the sake of the budget
PARTS_OF_BUDGET = 8  # at least, of a budget that is large enough: what is rounded off is less
LEAST_SHIFT = 5
FIRST_ROWS = 64
FIRST_CHUNKS = 16  # that there are addresses for
META_BYTES = 16


def round_up(n: int, unit: int) -> int:
    """Return the least multiple of `unit` that is at least n."""
    return -(-n // unit) * unit


class RowShape(NamedTuple):
    """Where values and slots lie in a row, and rows in chunks."""

    slots_at: int
    row_bytes: int
    chunk_shift: int

    @property
    def chunk_rows(self) -> int:
        """Rows of a full chunk."""
        return 1 << self.chunk_shift

    def capacity_for(self, n_rows: int) -> int:
        """Return the rows that there is memory for, once n have been asked for."""
        if n_rows > self.chunk_rows:
            return round_up(n_rows, self.chunk_rows)
        capacity = min(FIRST_ROWS, self.chunk_rows)
        while capacity < n_rows:
            capacity *= 2
        return capacity

    def card_rows_for(self, hbm_bytes: int | None) -> int | None:
        """Return the row ids that are on the card at most: whole chunks; None is all."""
        if hbm_bytes is None:
            return None
        return hbm_bytes // (self.row_bytes * self.chunk_rows) * self.chunk_rows

    def host_bytes_for(self, n_rows: int, hbm_bytes: int | None) -> int:
        """Return the bytes of the host's memory that n rows of capacity take."""
        n_card = self.card_rows_for(hbm_bytes)
        return 0 if n_card is None else max(0, n_rows - n_card) * self.row_bytes


def chunk_shift_for(row_bytes: int, hbm_bytes: int | None) -> int:
    """Return log2 of the rows of a chunk."""
    most = CHUNK_BYTES
    if hbm_bytes:
        most = min(most, max(hbm_bytes // PARTS_OF_BUDGET, min(hbm_bytes, LEAST_SPLIT_BYTES)))
    shift = LEAST_SHIFT
    while (row_bytes << (shift + 1)) <= most:
        shift += 1
    return shift


def list_bytes_for(n_chunks: int) -> int:
    """Return the bytes of the addresses of chunks: places for a power of two of them, twice."""
    return 2 * 8 * max(FIRST_CHUNKS, 1 << (n_chunks - 1).bit_length())


class Chunk(NamedTuple):
    """Memory of some rows, and of their records."""

    rows: Memory
    metas: Memory
    n_rows: int


class RowChunks:
    """All chunks of a table, and the list of their addresses on the card."""

    def __init__(
        self, launcher: Launcher, device: Device, shape: RowShape, hbm_bytes: int | None
    ) -> None:
        self._launcher = launcher
        self._device = device
        self._shape = shape
        self._hbm_bytes = hbm_bytes
        self._held: list[Chunk] = []
        self._addresses = launcher.queue.alloc(list_bytes_for(1))

    @property
    def n_card_rows(self) -> int | None:
        """Row ids below it are on the card; None is all of them."""
        return self._shape.card_rows_for(self._hbm_bytes)

    @property
    def n_rows(self) -> int:
        """Rows that there is memory for."""
        return sum(chunk.n_rows for chunk in self._held)

    @property
    def host_bytes(self) -> int:
        """Bytes of rows in pinned memory of the host."""
        return self._shape.host_bytes_for(self.n_rows, self._hbm_bytes)

    @property
    def rows_address(self) -> int:
        """Where the addresses of the chunks' rows begin."""
        return self._addresses.address

    @property
    def metas_address(self) -> int:
        """Where the addresses of the chunks' records begin."""
        return self._addresses.address + self._addresses.n_bytes // 2

    @property
    def list_bytes(self) -> int:
        """Bytes of the addresses."""
        return self._addresses.n_bytes

    def grow(self, n_rows: int) -> None:
        """Make memory for so many rows, a number of `RowShape.capacity_for`.

        Raises
        ------
        OutOfMemoryError
            If the card, or the host, has none left.
        """
        chunks, full = list(self._held), self._shape.chunk_rows
        if chunks and chunks[0].n_rows < full:
            chunks[0] = self._grown(chunks[0], min(n_rows, full))
        first = full * len(chunks) if chunks else 0
        for at in range(first, n_rows, full):
            chunks.append(self._new_chunk(at, min(full, n_rows - at)))
        addresses = self._listed(chunks)
        self._held, self._addresses = chunks, addresses

    def _new_chunk(self, first_row: int, n_rows: int) -> Chunk:
        n_bytes = n_rows * self._shape.row_bytes
        n_card, queue = self.n_card_rows, self._launcher.queue
        rows: Memory
        if n_card is None or first_row < n_card:
            rows = queue.alloc(n_bytes)
        else:
            rows = self._device.alloc_pinned(n_bytes)
        return Chunk(rows, queue.alloc(n_rows * META_BYTES), n_rows)

    def _grown(self, old: Chunk, n_rows: int) -> Chunk:
        """Return a copy of the first chunk with room for more rows."""
        chunk, queue = self._new_chunk(0, n_rows), self._launcher.queue
        queue.copy(chunk.rows.address, old.rows.address, old.n_rows * self._shape.row_bytes)
        queue.copy(chunk.metas.address, old.metas.address, old.n_rows * META_BYTES)
        return chunk

    def _listed(self, chunks: list[Chunk]) -> Memory:
        """Return the addresses of chunks, with room for more, in memory of the card."""
        values = np.zeros((2, list_bytes_for(len(chunks)) // 16), np.uint64)
        values[0, : len(chunks)] = [chunk.rows.address for chunk in chunks]
        values[1, : len(chunks)] = [chunk.metas.address for chunk in chunks]
        memory = self._launcher.queue.alloc(values.nbytes)
        self._launcher.queue.upload(memory.address, values)
        return memory
