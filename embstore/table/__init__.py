"""Table: the public object, and the batches it gives."""

from embstore.table.batch import Batch, FeatureBatch, PooledBatch
from embstore.table.saving import SaveHandle, SaveProgress
from embstore.table.table import Table

__all__ = ["Batch", "FeatureBatch", "PooledBatch", "SaveHandle", "SaveProgress", "Table"]
