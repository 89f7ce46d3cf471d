"""TensorFlow's contenders, in a process of their own: its own lookups and steps, Keras's, and ours.

Kinds are "eager" and "graph", a lookup outside and inside of a tf.function, and "step": lookup,
gradient and update in one tf.function.
"""

from functools import cached_property, partial

import keras
import numpy as np
import tensorflow as tf

import embstore as es
from bench import framework, keras_parts
from bench.framework import ADAGRAD, Space, Way
from bench.workspace import LEARNING_RATE
from embstore.tensorflow import Embedding, Optimizer

tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
es.set_num_threads(1)


class TensorFlowSpace(Space):
    """The rows as a table, as a variable, and as a layer of Keras."""

    @cached_property
    def layer(self):
        return Embedding(self.table)

    @cached_property
    def variable(self):
        return tf.Variable(self.values())

    @cached_property
    def keras_layer(self):
        return keras_parts.embedding(self)

    def tensor(self, ids):
        return tf.constant(ids)

    def way(self, kind, name):
        if kind == "step":
            return STEP[name](self)
        forward = FORWARD[name](self)
        return Way(forward if kind == "eager" else tf.function(forward))


def gather(space):
    variable = space.variable
    return lambda ids: tf.gather(variable, ids)


def embedding_lookup(space):
    variable = space.variable
    return lambda ids: tf.nn.embedding_lookup(variable, ids)


def find_op(space):
    named = space.layer.named
    return lambda ids: named.ops.find(named, ids)


def training_layer(space):
    layer = space.layer
    return lambda ids: layer(ids, training=True)


FORWARD = {
    "tf.gather": gather,
    "tf.nn.embedding_lookup": embedding_lookup,
    "Keras Embedding": lambda space: space.keras_layer,
    "embstore find op": find_op,
    "embstore Embedding": lambda space: space.layer,
    "embstore Embedding, training=True": training_layer,
}


def layer_step(space, layer, optimizer):
    """Return a training step of a layer by an optimizer of Keras or ours."""
    grads, variables = tf.constant(space.grads()), layer.trainable_variables
    optimizer.build(variables)

    @tf.function
    def step(ids):
        with tf.GradientTape() as tape:
            rows = layer(ids, training=True)
        found = tape.gradient(rows, variables, output_gradients=grads)
        optimizer.apply_gradients(zip(found, variables, strict=True))

    return step


def keras_step(space):
    layer = space.keras_layer
    return Way(layer_step(space, layer, keras_parts.adagrad()), lambda: layer.get_weights()[0])


def raw_step(space):
    """Return the least that TensorFlow alone can do: duplicates summed, its sparse Adagrad."""
    variable, grads = space.variable, tf.constant(space.grads())
    slots = tf.Variable(tf.fill(variable.shape, ADAGRAD["initial_accumulator"]))

    @tf.function
    def step(ids):
        with tf.GradientTape() as tape:
            rows = tf.gather(variable, ids)
        found = tape.gradient(rows, variable, output_gradients=grads)
        unique, inverse = tf.unique(found.indices)
        sums = tf.math.unsorted_segment_sum(found.values, inverse, tf.size(unique))
        tf.raw_ops.ResourceSparseApplyAdagradV2(
            var=variable.handle,
            accum=slots.handle,
            lr=LEARNING_RATE,
            epsilon=ADAGRAD["eps"],
            grad=sums,
            indices=unique,
        )

    return Way(step, variable.numpy)


def waiting_step(space):
    """Return our step by `Optimizer`."""
    return Way(layer_step(space, space.layer, Optimizer("sgd")), space.table_rows)


def fused_step(space):
    """Return our step in backward; Keras's SGD steps over the layer's anchor."""
    layer = Embedding(space.table, fused=True)
    return Way(layer_step(space, layer, keras.optimizers.SGD()), space.table_rows)


STEP = {
    "Keras Embedding and Adagrad": keras_step,
    "tf.gather and sparse Adagrad": raw_step,
    "embstore Embedding and Optimizer": waiting_step,
    "embstore Embedding, fused": fused_step,
}


contender = partial(framework.contender, TensorFlowSpace)
answer = partial(framework.answer, TensorFlowSpace)


def facts():
    """Return what a result says of this process."""
    return {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "native_ops": TensorFlowSpace({"n_rows": 1, "dim": 1}, 0).layer.named.has_native,
    }
