"""The CUDA engine: a table in the memory of a card, the twin of `embstore.engines.cpu.CpuEngine`.

What it computes, to the bit, is docs/semantics.md; how, include/embstore/cuda and src/cuda.
"""

from collections.abc import Sequence
from functools import partial
from typing import cast

from embstore.engines.cuda.caching import CudaCaching
from embstore.engines.cuda.capture import CudaCapture
from embstore.engines.cuda.many import ManyReads, ManyWrites
from embstore.engines.cuda.placement import CudaPlacement
from embstore.engines.cuda.writing import CudaWriting, Summed
from embstore.engines.engine import JoinedBatch, Ticket
from embstore.engines.types import ApplyReport
from embstore.errors import ClosedTableError


class CudaEngine(CudaCaching, CudaWriting, CudaCapture, CudaPlacement):
    """One table on a card; see `embstore.engines.engine.Engine` for what the calls mean."""

    @staticmethod
    def find_many(batches: Sequence[JoinedBatch], missing: str) -> None:
        """Fill the rows of all parts."""
        pairs = _opened(batches)
        reads = [partial(engine._find_parts, batch.parts, missing) for batch, engine in pairs]
        if missing == "raise":  # tables before the one that lacks a key are read
            for read in reads:
                read()
        else:
            ManyReads([engine for _, engine in pairs]).run(reads)

    @staticmethod
    def find_or_insert_many(
        batches: Sequence[JoinedBatch], step: int, admit_always: bool
    ) -> list[Ticket]:
        """Count, admit and create; fill the rows of all parts; return a ticket for each batch."""
        pairs = _opened(batches)
        tickets: list[Ticket] = []
        with ManyWrites([engine for _, engine in pairs]) as call:
            try:
                for batch, engine in pairs:
                    with call.recording(engine):
                        tickets.append(engine._insert_parts(batch.parts, step, admit_always))
            finally:  # tables before one that fails keep their inserts
                call.run()
        return tickets

    @staticmethod
    def apply_many(batches: Sequence[JoinedBatch], step: int) -> list[ApplyReport]:
        """Update the rows of each batch's ticket, or, without one, of its keys."""
        pairs = _opened(batches)
        reports: list[ApplyReport] = []
        sums: list[Summed] = []
        with ManyWrites([engine for _, engine in pairs]) as call:
            try:
                for batch, engine in pairs:
                    with call.recording(engine):
                        sums.append(engine._sum_up(batch, step))
            finally:  # tables before one that fails are updated
                call.run()
                try:
                    for summed, (_, engine) in zip(sums, pairs, strict=False):
                        with call.recording(engine):
                            reports.append(engine._update(summed, step))
                finally:
                    call.run()
        return reports


def _opened(batches: Sequence[JoinedBatch]) -> list[tuple[JoinedBatch, CudaEngine]]:
    """Return the batches and their engines, none of which is closed."""
    pairs = [(batch, cast(CudaEngine, batch.engine)) for batch in batches]
    for _, engine in pairs:
        if engine._is_closed:
            raise ClosedTableError(f"{engine._where} is closed")
    return pairs
