"""Callbacks of ``model.fit``: eviction, and checkpoints of the tables."""

import os
from typing import Any

import keras

from embstore import ArgumentError, ArgumentTypeError, Store
from embstore._keras.layer import settled_tables_of, tables_of


class EvictEvery(keras.callbacks.Callback):
    """Evict from all tables of the model that have an eviction policy, every so many steps.

    Parameters
    ----------
    n_steps
        Batches between two evictions, at least 1.

    Examples
    --------
    >>> from embstore.keras import EvictEvery
    >>> callback = EvictEvery(n_steps=1000)  # model.fit(..., callbacks=[callback])
    >>> callback.n_evicted
    0
    """

    def __init__(self, n_steps: int) -> None:
        super().__init__()
        self.n_steps = positive(n_steps, "EvictEvery", "n_steps")
        self.n_evicted = 0
        self._n_seen = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Evict, if it is time."""
        self._n_seen += 1
        if self._n_seen % self.n_steps:
            return
        for named in settled_tables_of(self.model):
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
    >>> from embstore.keras import SaveTables
    >>> callback = SaveTables(tempfile.mkdtemp(), n_steps=10_000)  # model.fit(..., callbacks=[...])
    >>> callback.n_saves
    0
    """

    def __init__(self, path: "str | os.PathLike[str]", n_steps: int | None = None) -> None:
        super().__init__()
        self.path = os.fspath(path)
        self.n_steps = None if n_steps is None else positive(n_steps, "SaveTables", "n_steps")
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
        tables = tables_of(self.model)
        if not tables:
            raise ArgumentError("SaveTables: there is no table in this model")
        Store(tables).save(self.path)
        self.n_saves += 1


def positive(value: Any, where: str, name: str) -> int:
    """Return an int of at least 1; raise for others."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ArgumentTypeError(f"{where}: {name} must be an int, got {value!r}")
    if value < 1:
        raise ArgumentError(f"{where}: {name} must be at least 1, got {value}")
    return value
