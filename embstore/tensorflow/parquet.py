"""tf.data from Parquet: `embstore.data.ParquetReader` as a Dataset."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from embstore import ArgumentError, ArgumentTypeError
from embstore.data import ParquetReader, Ragged

DTYPES = {"int64": tf.int64, "float32": tf.float32, "float64": tf.float64, "string": tf.int64}


def parquet_dataset(
    paths: "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]",
    columns: Sequence[str],
    batch_size: int,
    *,
    label: str | None = None,
    **options: Any,
) -> Any:
    """Return a tf.data.Dataset of batches of Parquet files, for ``model.fit``.

    Parameters
    ----------
    paths, columns, batch_size
        As for `embstore.data.ParquetReader`.
    label
        A column that becomes the second half of ``(features, label)``; None gives features alone.
    **options
        ``shard``, ``shuffle``, ``prefetch`` and ``drop_last`` of the reader.

    Returns
    -------
    tf.data.Dataset
        Dicts by column: int64 (strings hashed), float32 or float64 tensors (n,), and
        `tf.RaggedTensor` (n, None) of lists. Each iteration reads a whole epoch, the one of
        the shuffle behind the last that was read to its end.

    Raises
    ------
    DataError, ArgumentError
        As for the reader; and if `label` is a list or is none of the columns.

    Examples
    --------
    >>> import tempfile, pyarrow as pa, pyarrow.parquet as pq
    >>> from embstore.tensorflow import parquet_dataset
    >>> path = tempfile.mkdtemp() + "/clicks.parquet"
    >>> pq.write_table(pa.table({"user": [7, 7, 9], "click": [0, 1, 1]}), path)
    >>> for features, clicks in parquet_dataset(path, ["user", "click"], 2, label="click"):
    ...     print(features["user"].numpy(), clicks.numpy())
    [7 7] [0 1]
    [9] [1]
    """
    reader = ParquetReader(paths, columns, batch_size, **options)
    schema = reader.schema
    if label is not None and not isinstance(label, str):
        raise ArgumentTypeError(f"parquet_dataset: label must be a str, got {label!r}")
    if label is not None and label not in schema:
        raise ArgumentError(
            f"parquet_dataset: label {label!r} is none of the columns {sorted(schema)}"
        )
    if label is not None and schema[label].startswith("list"):
        raise ArgumentError(f"parquet_dataset: label {label!r} holds lists")
    signature = {name: _spec(kind) for name, kind in schema.items()}

    state = reader.state_dict()

    def batches() -> Iterator[dict[str, Any]]:
        own = ParquetReader(paths, columns, batch_size, **options)
        own.load_state_dict(state)
        with iter(own) as whole:
            for batch in whole:
                yield {name: _tensor(column) for name, column in batch.items()}
        state["epoch"] += 1

    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(reader)))
    if label is None:
        return dataset
    return dataset.map(lambda batch: ({n: c for n, c in batch.items() if n != label}, batch[label]))


def _spec(kind: str) -> Any:
    if kind.startswith("list"):
        return tf.RaggedTensorSpec((None, None), tf.int64)
    return tf.TensorSpec((None,), DTYPES[kind])


def _tensor(column: Any) -> Any:
    if not isinstance(column, Ragged):
        return column
    return tf.RaggedTensor.from_row_splits(column.values, column.offsets, validate=False)
