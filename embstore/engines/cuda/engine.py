"""The CUDA engine: a table in the memory of a card, the twin of `embstore.engines.cpu.CpuEngine`.

What it computes, to the bit, is docs/semantics.md; how, include/embstore/cuda and src/cuda.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
        failures: dict[int, Exception] = {}
        with ManyWrites([engine for _, engine in pairs]) as call:
            for place, (batch, engine) in enumerate(pairs):
                with _noting(failures, place), call.recording(engine):
                    tickets.append(engine._insert_parts(batch.parts, step, admit_always))
            call.run()
        _raise_first(failures)
        return tickets

    @staticmethod
    def apply_many(batches: Sequence[JoinedBatch], step: int) -> list[ApplyReport]:
        """Update the rows of each batch's ticket, or, without one, of its keys."""
        pairs = _opened(batches)
        reports: list[ApplyReport] = []
        sums: dict[int, Summed] = {}
        failures: dict[int, Exception] = {}
        with ManyWrites([engine for _, engine in pairs]) as call:
            for place, (batch, engine) in enumerate(pairs):
                with _noting(failures, place), call.recording(engine):
                    sums[place] = engine._sum_up(batch, step)
            call.run()
            for place, summed in sums.items():
                engine = pairs[place][1]
                with _noting(failures, place), call.recording(engine):
                    reports.append(engine._update(summed, step))
            call.run()
        _raise_first(failures)
        return reports


@contextmanager
def _noting(failures: dict[int, Exception], place: int) -> Iterator[None]:
    """Keep what a table raises until the others have been served."""
    try:
        yield
    except Exception as error:
        failures[place] = error


def _raise_first(failures: dict[int, Exception]) -> None:
    if failures:
        raise failures[min(failures)]


def _opened(batches: Sequence[JoinedBatch]) -> list[tuple[JoinedBatch, CudaEngine]]:
    """Return the batches and their engines, none of which is closed."""
    pairs = [(batch, cast(CudaEngine, batch.engine)) for batch in batches]
    for _, engine in pairs:
        if engine._is_closed:
            raise ClosedTableError(f"{engine._where} is closed")
    return pairs
