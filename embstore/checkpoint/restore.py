"""From a source into an empty table; the one way, whatever was changed before."""

from embstore.checkpoint.content import TableSink
from embstore.checkpoint.source import TableSource, clamp_steps, drop_expired, settled_state
from embstore.checkpoint.union import check_disjoint
from embstore.errors import ArgumentError, CorruptCheckpointError


def fill(source: TableSource, sink: TableSink, n_reserved: int = 0) -> None:
    """Put everything but the pins into an empty table; after an error, drop that table.

    Raises
    ------
    CorruptCheckpointError
        If a byte is not what was saved, or the table refuses what it is given.
    """
    sink.set_restoring(True)
    try:
        if n_reserved:
            sink.reserve(n_reserved)
        sink.set_state(dict(source.state))  # for step_base; importing rows changes the rest
        n_clamped = _fill_rows(source, sink)
        n_expired = _fill_candidates(source, sink)
        for partition, data in enumerate(source.bloom()):
            sink.bloom_write(partition, data)
    except ArgumentError as error:
        check_disjoint(source.shards)  # it names the key, if that is the fault
        raise CorruptCheckpointError(f"{source.place}: {error}") from error
    sink.set_state(settled_state(source.state, n_clamped, n_expired))
    sink.reset_changes()
    sink.set_restoring(False)


def _fill_rows(source: TableSource, sink: TableSink) -> int:
    """Import the rows; return how many were older than the base."""
    n_clamped = 0
    for block in source.rows():
        rows, n_older = clamp_steps(block, source.state)
        n_clamped += n_older
        sink.import_rows(rows)
    return n_clamped


def _fill_candidates(source: TableSource, sink: TableSink) -> int:
    """Import the candidates; return how many were too old."""
    n_expired = 0
    for block in source.candidates():
        candidates, n_older = drop_expired(block, source.config, source.state)
        n_expired += n_older
        sink.import_candidates(candidates)
    return n_expired
