"""Table: the public object, and the batches it gives."""

from embstore.table.batch import Batch, FeatureBatch, PooledBatch
from embstore.table.save import SaveProgress
from embstore.table.saving import SaveHandle
from embstore.table.table import Table

__all__ = ["Batch", "FeatureBatch", "PooledBatch", "SaveHandle", "SaveProgress", "Table"]
