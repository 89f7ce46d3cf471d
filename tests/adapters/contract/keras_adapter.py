"""Keras under the contract, on the backend that it runs on: layers that are trained in backward."""

import keras
import numpy as np
from contract.tools import INT64

from embstore.keras import Embedding, EmbeddingBag

from .adapters import Adapter

if keras.backend.backend() == "jax":
    import jax

    jax.config.update("jax_enable_x64", True)

FILL = INT64.min + 99  # fills up bags where nothing is padding


def backward_on_tensorflow(layer, given, output_grads):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        rows = layer(*given, training=True)
    grad = tape.gradient(rows, layer.anchor.value, tf.constant(output_grads))
    assert float(grad) == 0


def backward_on_torch(layer, given, output_grads):
    import torch

    layer(*given, training=True).backward(torch.from_numpy(output_grads))
    assert float(layer.anchor.value.grad) == 0


def backward_on_jax(layer, given, output_grads):
    def rows(trained):
        state = [v.value for v in layer.non_trainable_variables]
        return layer.stateless_call(trained, state, *given, training=True)

    trained = [v.value for v in layer.trainable_variables]
    _, pull, state = jax.vjp(rows, trained, has_aux=True)
    grads = jax.block_until_ready(pull(output_grads))
    for variable, value in zip(layer.non_trainable_variables, state, strict=True):
        variable.assign(value)
    assert [float(grad) for grad in grads[0]] == [0]


BACKWARD_ON = {
    "tensorflow": backward_on_tensorflow,
    "torch": backward_on_torch,
    "jax": backward_on_jax,
}


def as_numpy(rows):
    return rows.detach().numpy() if keras.backend.backend() == "torch" else np.asarray(rows)


def as_tensor(array):
    if keras.backend.backend() != "torch":
        return keras.ops.convert_to_tensor(array)
    import torch

    return torch.from_numpy(array)  # uint64 too, which Keras refuses to convert


class KerasAdapter(Adapter):
    """`Embedding` and `EmbeddingBag` of embstore.keras."""

    has_no_grad = False  # training=True is what counts
    has_backward_alone = False
    refused = (ValueError, TypeError, RuntimeError)

    def __init__(self, table, padding_id=None):
        self.table = table
        self.padding_id = padding_id
        self.layer = Embedding(table, padding_id=padding_id)
        self._backward = BACKWARD_ON[keras.backend.backend()]
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            self.refused = (*self.refused, tf.errors.InvalidArgumentError)

    @property
    def step(self):
        return self.layer.step

    def lookup(self, ids):
        step = self.step
        rows = as_numpy(self.layer(as_tensor(ids), training=True))
        self.layer.step = step  # what is not trained on is no step
        return rows

    def read(self, ids):
        return as_numpy(self.layer(as_tensor(ids)))

    def backward(self, ids, output_grads):
        self._backward(self.layer, [as_tensor(ids)], output_grads)

    def apply(self):
        pass

    def forget(self):
        pass

    def read_bags(self, ids, offsets, mode, weights=None):
        layer, given = self._bags(ids, offsets, mode, weights)
        return as_numpy(layer(*given))

    def backward_bags(self, ids, offsets, output_grads, mode, weights=None):
        layer, given = self._bags(ids, offsets, mode, weights)
        self._backward(layer, given, output_grads)

    def _bags(self, ids, offsets, mode, weights):
        """Return a layer, and bags as it takes them: all of one length, filled up."""
        fill = FILL if self.padding_id is None else self.padding_id
        lengths = np.diff(offsets)
        is_id = np.arange(lengths.max(initial=0)) < lengths[:, None]
        filled, factors = np.full(is_id.shape, fill, np.int64), np.zeros(is_id.shape, np.float32)
        filled[is_id] = ids
        given = [as_tensor(filled)]
        if weights is not None:
            factors[is_id] = weights
            given.append(as_tensor(factors))
        return EmbeddingBag(self.table, mode=mode, padding_id=fill), given
