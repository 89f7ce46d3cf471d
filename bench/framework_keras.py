"""Keras's contenders on one of its backends (KERAS_BACKEND), in a process of their own.

The kind is "step": ``train_on_batch`` of a model of an embedding and a dense layer, with numpy's
arrays.
"""

import importlib
from functools import partial

import keras
import numpy as np

import embstore as es
from bench import framework, keras_parts
from bench.framework import Space, Way

OURS = "embstore Embedding"
es.set_num_threads(1)


def use_one_thread(backend):
    """Make the backend use one thread; JAX's is set in its environment."""
    module = importlib.import_module(backend)
    if backend == "tensorflow":
        module.config.threading.set_intra_op_parallelism_threads(1)
        module.config.threading.set_inter_op_parallelism_threads(1)
    elif backend == "torch":
        module.set_num_threads(1)
    else:
        module.config.update("jax_enable_x64", True)  # of 64-bit ids
    return module


BACKEND = use_one_thread(keras.backend.backend())


class KerasSpace(Space):
    """The rows as a table, and as the weights of a layer of Keras."""

    def layer(self, name):
        if name == OURS:
            from embstore.keras import Embedding

            return Embedding(self.table)
        return keras_parts.embedding(self)

    def rows(self, layer):
        """Return all rows of a layer by row id."""
        if isinstance(layer, keras.layers.Embedding):
            return layer.get_weights()[0]
        assert layer.table is self.table  # asked for, it waits for JAX's last update
        return self.table_rows()

    def tensor(self, ids):
        return ids

    def way(self, kind, name):
        layer, dense = self.layer(name), keras.layers.Dense(1, kernel_initializer="ones")
        model = keras.Sequential([keras.Input((), dtype="int64"), layer, dense])
        model.compile(optimizer=keras_parts.adagrad(), loss="mse")
        labels = np.linspace(-1, 1, self.axes["batch"], dtype=np.float32)[:, None]
        return Way(lambda ids: model.train_on_batch(ids, labels), lambda: self.rows(layer))


contender = partial(framework.contender, KerasSpace)
answer = partial(framework.answer, KerasSpace)


def facts():
    """Return what a result says of this process."""
    return {"keras": keras.__version__, keras.backend.backend(): BACKEND.__version__}
