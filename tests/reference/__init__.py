"""The oracle: the whole contract of docs/semantics.md again, as dicts and numpy.

It shares no code with the engines; only the policy objects, which hold parameters, are the same.
`ReferenceTable` takes the arguments of es.Table and has its verbs.
"""

from .records import Batch, PooledBatch, State
from .rows import Rows
from .table import ReferenceTable

__all__ = ["Batch", "PooledBatch", "ReferenceTable", "Rows", "State"]
