"""The CUDA engine: a table in the memory of a card, the twin of `embstore.engines.cpu.CpuEngine`.

What it computes, to the bit, is docs/semantics.md; how, include/embstore/cuda and src/cuda.
"""

from collections.abc import Sequence
from typing import cast

from embstore.engines.cuda.caching import CudaCaching
from embstore.engines.cuda.capture import CudaCapture
from embstore.engines.cuda.writing import CudaWriting
from embstore.engines.engine import JoinedBatch, Ticket
from embstore.engines.types import ApplyReport
from embstore.errors import ClosedTableError


class CudaEngine(CudaCaching, CudaWriting, CudaCapture):
    """One table on a card; see `embstore.engines.engine.Engine` for what the calls mean."""

    @staticmethod
    def find_many(batches: Sequence[JoinedBatch], missing: str) -> None:
        """Fill the rows of all parts."""
        for batch, engine in _opened(batches):
            engine._find_parts(batch.parts, missing)

    @staticmethod
    def find_or_insert_many(
        batches: Sequence[JoinedBatch], step: int, admit_always: bool
    ) -> list[Ticket]:
        """Count, admit and create; fill the rows of all parts; return a ticket for each batch."""
        tickets: list[Ticket] = []
        for batch, engine in _opened(batches):
            with engine._writing():
                tickets.append(engine._insert_parts(batch.parts, step, admit_always))
        return tickets

    @staticmethod
    def apply_many(batches: Sequence[JoinedBatch], step: int) -> list[ApplyReport]:
        """Update the rows of each batch's ticket, or, without one, of its keys."""
        return [engine._apply(batch, step) for batch, engine in _opened(batches)]


def _opened(batches: Sequence[JoinedBatch]) -> list[tuple[JoinedBatch, CudaEngine]]:
    """Return the batches and their engines, none of which is closed."""
    pairs = [(batch, cast(CudaEngine, batch.engine)) for batch in batches]
    for _, engine in pairs:
        if engine._is_closed:
            raise ClosedTableError(f"{engine._where} is closed")
    return pairs
