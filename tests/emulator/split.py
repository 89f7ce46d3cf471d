"""Tables whose rows are split between the card and the host, with promotion in every batch."""

from embstore.engines.cuda import chunks, storage
from embstore.engines.cuda.engine import CudaEngine

CARD_ROWS = 4


class SplitEngine(CudaEngine):
    """An engine whose first four rows are on the card, and the others in the host's memory.

    Rows change places between the forward pass of each batch and its backward pass.
    """

    n_promoted = 0  # of all tables

    def __init__(self, spec, device, hash_seed, collect_evicted, hbm_bytes=None):
        if hbm_bytes is None:
            hbm_bytes = CARD_ROWS * storage.row_shape(spec).row_bytes
        super().__init__(spec, device, hash_seed, collect_evicted, hbm_bytes)

    def _insert_parts(self, parts, step, admit_always):
        ticket = super()._insert_parts(parts, step, admit_always)
        SplitEngine.n_promoted += self.promote(None).n_promoted
        return ticket


def tiny_chunks(monkeypatch, shift=2):
    """Make chunks of 2**shift rows."""
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 0)
    monkeypatch.setattr(chunks, "LEAST_SPLIT_BYTES", 0)
    monkeypatch.setattr(chunks, "PARTS_OF_BUDGET", 2**62)
    monkeypatch.setattr(chunks, "LEAST_SHIFT", shift)


def split_tables(monkeypatch):
    """Let every table of ``device="cuda"`` be a split one."""
    tiny_chunks(monkeypatch)
    monkeypatch.setattr("embstore.engines.cuda.engine.CudaEngine", SplitEngine)
