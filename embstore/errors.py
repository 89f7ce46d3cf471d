"""Every error that embstore raises; each is also the builtin class that it is a case of."""


class EmbstoreError(Exception):
    """The base of every error of embstore.

    Examples
    --------
    >>> import embstore as es
    >>> try:
    ...     es.Table(dim=0)
    ... except es.EmbstoreError as error:
    ...     print(error)
    Table: dim must be an integer from 1 to 4096, got 0
    """


class ArgumentError(EmbstoreError, ValueError):
    """An argument has a value, a shape or a length that is not allowed."""


class ArgumentTypeError(EmbstoreError, TypeError):
    """An argument has a type or a dtype that is not allowed."""


class NonFiniteError(EmbstoreError, ValueError):
    """A summed gradient or a value to assign is NaN or infinite; nothing was changed."""


class MissingKeyError(EmbstoreError, KeyError):
    """A key has no row, and ``missing="raise"`` was asked for."""

    def __str__(self) -> str:
        """Return the plain message; ``KeyError`` would quote it."""
        return str(self.args[0]) if self.args else ""


class CapacityError(EmbstoreError, MemoryError):
    """The batch does not fit under ``max_rows`` or ``max_bytes``; nothing was counted or made."""


class OutOfMemoryError(EmbstoreError, MemoryError):
    """The system gave no memory; the table is as it was."""


class DeviceError(EmbstoreError, RuntimeError):
    """A device that was asked for is not there, or embstore cannot run on it."""


class DistributedError(EmbstoreError, RuntimeError):
    """Ranks could not exchange what they had to: one is dead, late, or does something else."""


class TicketError(EmbstoreError, ValueError):
    """A batch is closed, belongs to another table, or was made before a ``clear()``."""


class ClosedTableError(EmbstoreError, ValueError):
    """The table has been closed."""


class ForkError(EmbstoreError, RuntimeError):
    """A write was tried in a forked child, where a table can only be read."""


class InternalError(EmbstoreError, RuntimeError):
    """A defect of embstore; please report it with its message."""


class DataError(EmbstoreError, ValueError):
    """Input data lacks a column, has nulls, or has a type that is not allowed."""


class CheckpointError(EmbstoreError, OSError):
    """A checkpoint cannot be written or read."""


class CorruptCheckpointError(CheckpointError):
    """A file of a checkpoint is damaged, truncated, or not the one its manifest names."""


class CheckpointMismatchError(CheckpointError, ValueError):
    """A checkpoint is sound but does not fit what it is to be loaded into."""


class CancelledError(EmbstoreError, RuntimeError):
    """What was asked to end before it was done has done so."""


class EmbstoreWarning(UserWarning):
    """Something works, but not as well as was asked for."""
