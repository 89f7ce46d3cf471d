"""Callbacks of ``model.fit``: eviction, checkpoints of the tables, and scalars for TensorBoard."""

import os
from typing import Any

import keras
import tensorflow as tf

from embstore import ArgumentError, ArgumentTypeError, Store
from embstore.tensorflow.training import named_tables_of


class EvictEvery(keras.callbacks.Callback):
    """Evict from all tables of the model that have an eviction policy, every so many steps.

    Parameters
    ----------
    n_steps
        Batches between two evictions, at least 1.

    Examples
    --------
    >>> from embstore.tensorflow import EvictEvery
    >>> callback = EvictEvery(n_steps=1000)  # model.fit(..., callbacks=[callback])
    >>> callback.n_evicted
    0
    """

    def __init__(self, n_steps: int) -> None:
        super().__init__()
        self.n_steps = _positive(n_steps, "EvictEvery", "n_steps")
        self.n_evicted = 0
        self._n_seen = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Evict, if it is time."""
        self._n_seen += 1
        if self._n_seen % self.n_steps:
            return
        for named in named_tables_of(self.model):
            if named.table.has_eviction_policy:
                self.n_evicted += named.table.evict(step=named.clock.now).n_evicted


class SaveTables(keras.callbacks.Callback):
    """Save a checkpoint of all tables of the model, as of one moment, after each epoch.

    The dense part is Keras's: ModelCheckpoint saves it, and ``.keras`` files hold both.

    Parameters
    ----------
    path
        The folder of the checkpoint; each save replaces the one before in one step.
    n_steps
        Save after so many batches, too.

    Examples
    --------
    >>> import tempfile
    >>> from embstore.tensorflow import SaveTables
    >>> callback = SaveTables(tempfile.mkdtemp(), n_steps=10_000)  # model.fit(..., callbacks=[...])
    >>> callback.n_saves
    0
    """

    def __init__(self, path: "str | os.PathLike[str]", n_steps: int | None = None) -> None:
        super().__init__()
        self.path = os.fspath(path)
        self.n_steps = None if n_steps is None else _positive(n_steps, "SaveTables", "n_steps")
        self.n_saves = 0
        self._n_seen = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Save, if it is time."""
        self._n_seen += 1
        if self.n_steps is not None and self._n_seen % self.n_steps == 0:
            self._save()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Save."""
        self._save()

    def _save(self) -> None:
        tables = [named.table for named in named_tables_of(self.model)]
        if not tables:
            raise ArgumentError("SaveTables: there is no table in this model")
        Store(tables).save(self.path)
        self.n_saves += 1


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
        self.n_steps = _positive(n_steps, "TableScalars", "n_steps")
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


def _positive(value: Any, where: str, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(f"{where}: {name} must be an int, got {value!r}")
    if value < 1:
        raise ArgumentError(f"{where}: {name} must be at least 1, got {value}")
    return value
