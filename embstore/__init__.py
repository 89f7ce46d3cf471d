"""embstore: a dynamic store from 64-bit ids to embedding rows, as a library.

What needs the native library is imported at its first use, so that reading data, policies and
the help of the command line do not load it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from embstore._config import get_include, show_config
from embstore._version import __version__
from embstore.engines.types import (
    ApplyReport,
    AssignReport,
    BufferStats,
    Candidates,
    Changes,
    EvictReport,
    FindResult,
    KeyStatus,
    LateReport,
    PlanReport,
    PromoteReport,
    Rows,
)
from embstore.errors import (
    ArgumentError,
    ArgumentTypeError,
    CancelledError,
    CapacityError,
    CheckpointError,
    CheckpointMismatchError,
    ClosedTableError,
    CorruptCheckpointError,
    DataError,
    DeviceError,
    DistributedError,
    EmbstoreError,
    EmbstoreWarning,
    ForkError,
    InternalError,
    MissingKeyError,
    NonFiniteError,
    OutOfMemoryError,
    TicketError,
)
from embstore.policies import (
    FTRL,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Admission,
    BloomAdmission,
    CacheEviction,
    CapacityEviction,
    Constant,
    CounterAdmission,
    Eviction,
    FrequencyEviction,
    Initializer,
    L2Eviction,
    Normal,
    Optimizer,
    RowWiseAdagrad,
    StepEviction,
    TruncatedNormal,
    Uniform,
)

if TYPE_CHECKING:
    from embstore.checkpoint import SaveReport
    from embstore.engines.buffers import buffer_stats, release_buffers
    from embstore.engines.cuda.status import CudaDevice, CudaStatus, cuda_status
    from embstore.engines.threads import num_threads, set_num_threads
    from embstore.store import Store
    from embstore.table import Batch, FeatureBatch, PooledBatch, SaveHandle, SaveProgress, Table

FOUND = KeyStatus.FOUND
INSERTED = KeyStatus.INSERTED
PENDING = KeyStatus.PENDING
REFUSED = KeyStatus.REFUSED

__all__ = [
    "FOUND",
    "FTRL",
    "INSERTED",
    "PENDING",
    "REFUSED",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Admission",
    "ApplyReport",
    "ArgumentError",
    "ArgumentTypeError",
    "AssignReport",
    "Batch",
    "BloomAdmission",
    "BufferStats",
    "CacheEviction",
    "CancelledError",
    "Candidates",
    "CapacityError",
    "CapacityEviction",
    "Changes",
    "CheckpointError",
    "CheckpointMismatchError",
    "ClosedTableError",
    "Constant",
    "CorruptCheckpointError",
    "CounterAdmission",
    "CudaDevice",
    "CudaStatus",
    "DataError",
    "DeviceError",
    "DistributedError",
    "EmbstoreError",
    "EmbstoreWarning",
    "EvictReport",
    "Eviction",
    "FeatureBatch",
    "FindResult",
    "ForkError",
    "FrequencyEviction",
    "Initializer",
    "InternalError",
    "KeyStatus",
    "L2Eviction",
    "LateReport",
    "MissingKeyError",
    "NonFiniteError",
    "Normal",
    "Optimizer",
    "OutOfMemoryError",
    "PlanReport",
    "PooledBatch",
    "PromoteReport",
    "RowWiseAdagrad",
    "Rows",
    "SaveHandle",
    "SaveProgress",
    "SaveReport",
    "StepEviction",
    "Store",
    "Table",
    "TicketError",
    "TruncatedNormal",
    "Uniform",
    "__version__",
    "buffer_stats",
    "cuda_status",
    "get_include",
    "num_threads",
    "release_buffers",
    "set_num_threads",
    "show_config",
]

_HOMES = {
    "Batch": "embstore.table",
    "CudaDevice": "embstore.engines.cuda.status",
    "CudaStatus": "embstore.engines.cuda.status",
    "FeatureBatch": "embstore.table",
    "PooledBatch": "embstore.table",
    "SaveHandle": "embstore.table",
    "SaveProgress": "embstore.table",
    "SaveReport": "embstore.checkpoint",
    "Store": "embstore.store",
    "Table": "embstore.table",
    "buffer_stats": "embstore.engines.buffers",
    "cuda_status": "embstore.engines.cuda.status",
    "num_threads": "embstore.engines.threads",
    "release_buffers": "embstore.engines.buffers",
    "set_num_threads": "embstore.engines.threads",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'embstore' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
