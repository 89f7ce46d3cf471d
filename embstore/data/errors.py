"""What can be wrong with training data beyond `embstore.errors.DataError`, which these refine."""

from embstore.errors import DataError, EmbstoreError


class DataTypeError(DataError, TypeError):
    """A column has a type that cannot be used here."""


class DataFileError(DataError, OSError):
    """A file is missing, cannot be read, or is not a whole Parquet file."""


class ClosedReaderError(EmbstoreError, ValueError):
    """An iterator over batches was closed, or its reader has started another one."""
