"""What the processes of TensorFlow and of Keras have of Keras: its embedding, and its Adagrad."""

import keras

from bench.framework import ADAGRAD
from bench.workspace import LEARNING_RATE


def embedding(space):
    """Return Keras's own layer with the rows of a space."""
    layer = keras.layers.Embedding(space.setup.n_rows, space.setup.dim)
    layer.build()
    layer.set_weights([space.values()])
    return layer


def adagrad():
    """Return Keras's Adagrad as all contenders have it."""
    return keras.optimizers.Adagrad(
        LEARNING_RATE,
        initial_accumulator_value=ADAGRAD["initial_accumulator"],
        epsilon=ADAGRAD["eps"],
    )
