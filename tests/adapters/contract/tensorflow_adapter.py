"""TensorFlow under the contract, eager: gradients that wait for `Optimizer`, and fused layers."""

import numpy as np
import tensorflow as tf

from embstore.tensorflow import Embedding, EmbeddingBag, Optimizer, clear_gradients, fallback

from .adapters import Adapter


class TensorflowAdapter(Adapter):
    """`Embedding` and `EmbeddingBag` with `Optimizer`."""

    has_no_grad = False  # training=True is what counts
    refused = (ValueError, tf.errors.InvalidArgumentError)
    is_fused = False

    def __init__(self, table, padding_id=None):
        self.options = {"padding_id": padding_id, "fused": self.is_fused}
        self.table = table
        self.module = Embedding(table, **self.options)
        self.optimizer = Optimizer("sgd")
        self.grads = None

    @property
    def step(self):
        return self.module.step

    def lookup(self, ids):
        return self.module(tf.constant(ids), training=True).numpy()

    def read(self, ids):
        return self.module(tf.constant(ids)).numpy()

    def backward(self, ids, output_grads):
        with tf.GradientTape() as tape:
            rows = self.module(tf.constant(ids), training=True)
        self._add(tape.gradient(rows, self.module.anchor.value, tf.constant(output_grads)))

    def apply(self):
        if self.grads is not None:
            self.optimizer.apply_gradients([(self.grads, self.module.anchor)])
        self.grads = None

    def forget(self):
        clear_gradients(self.module)
        self.grads = None

    def read_bags(self, ids, offsets, mode, weights=None):
        bags, weights = self._bagged(ids, offsets, weights)
        return self._bags(mode)(bags, weights).numpy()

    def backward_bags(self, ids, offsets, output_grads, mode, weights=None):
        layer = self._bags(mode)
        bags, weights = self._bagged(ids, offsets, weights)
        with tf.GradientTape() as tape:
            pooled = layer(bags, weights, training=True)
        self._add(tape.gradient(pooled, layer.anchor.value, tf.constant(output_grads)))

    def _add(self, grads):
        self.grads = grads if self.grads is None else self.grads + grads

    def _bags(self, mode):
        return EmbeddingBag(self.table, mode=mode, **self.options)

    def _bagged(self, ids, offsets, weights):
        bags = tf.RaggedTensor.from_row_splits(np.asarray(ids, np.int64), offsets)
        return bags, None if weights is None else bags.with_flat_values(weights)


class FusedTensorflowAdapter(TensorflowAdapter):
    """The same with ``fused=True``; nothing is left for the optimizer."""

    has_backward_alone = False
    is_fused = True


class FallbackTensorflowAdapter(TensorflowAdapter):
    """The same without the native ops."""

    def __init__(self, table, padding_id=None):
        super().__init__(table, padding_id)
        self.module.named.ops, self.module.named.has_native = fallback, False
