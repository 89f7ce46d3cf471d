"""Serving: checkpoints that are opened at once and answer at once, to be read and not trained."""

from embstore.serving.opening import open, open_store
from embstore.serving.store import ServingStore
from embstore.serving.table import ServingTable

__all__ = ["ServingStore", "ServingTable", "open", "open_store"]
