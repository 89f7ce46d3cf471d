"""TableScalars: numbers about the tables of a model, for TensorBoard."""

import os
from typing import Any

import keras
import tensorflow as tf

from embstore._keras.callbacks import positive
from embstore._keras.layer import named_tables_of


class TableScalars(keras.callbacks.Callback):
    """Write numbers about each table for TensorBoard.

    Of a table "user": ``user/live_rows``, ``user/pending``, ``user/evicted`` (in all),
    ``user/bytes``, and ``user/hit_rate``, the share of the distinct ids of training lookups since
    the last time that had a row.

    Parameters
    ----------
    log_dir
        The folder that TensorBoard reads.
    n_steps
        Batches between two writes, at least 1.

    Examples
    --------
    >>> import tempfile
    >>> from embstore.tensorflow import TableScalars
    >>> callback = TableScalars(tempfile.mkdtemp(), n_steps=100)  # model.fit(..., callbacks=[...])
    """

    def __init__(self, log_dir: "str | os.PathLike[str]", n_steps: int = 100) -> None:
        super().__init__()
        self.log_dir = os.fspath(log_dir)
        self.n_steps = positive(n_steps, "TableScalars", "n_steps")
        self._writer: Any = None
        self._n_seen = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Begin to count hits."""
        self._writer = tf.summary.create_file_writer(self.log_dir)
        for named in named_tables_of(self.model):
            named.ops.hits(named)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Write, if it is time."""
        self._n_seen += 1
        if self._n_seen % self.n_steps:
            return
        with self._writer.as_default(step=self._n_seen):
            for named in named_tables_of(self.model):
                stats, name = named.table.stats(), named.key
                _write(f"{name}/live_rows", stats["n_live"])
                _write(f"{name}/pending", stats["n_pending"])
                _write(f"{name}/evicted", stats["n_evicted"])
                _write(f"{name}/bytes", stats["nbytes"])
                n_unique, n_found = named.ops.hits(named)
                if n_unique:
                    _write(f"{name}/hit_rate", n_found / n_unique)

    def on_train_end(self, logs: Any = None) -> None:
        """Write what is held back, and close the file."""
        if self._writer is not None:
            self._writer.close()


def _write(name: str, value: float) -> None:
    """Write a scalar as ``tf.summary.scalar`` does, which needs TensorBoard to be installed."""
    metadata = tf.compat.v1.SummaryMetadata(data_class=1)  # DATA_CLASS_SCALAR
    metadata.plugin_data.plugin_name = "scalars"
    tf.summary.write(name, tf.constant(value, tf.float32), metadata=metadata)
