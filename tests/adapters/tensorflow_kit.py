"""What the tests about TensorFlow share: a small model, and its data."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import embstore as es
from embstore.tensorflow import Embedding, EmbeddingBag

N_ROWS, BATCH = 256, 64


def layers(**options):
    """A user embedding and a bag of tags, of tables of their own."""
    common = {"dim": 4, "initializer": es.Normal(std=0.1), **options}
    user = Embedding(optimizer=es.Adagrad(lr=0.5), name="user", **common)
    tags = EmbeddingBag(optimizer=es.Adam(lr=0.05), name="tags", padding_id=0, **common)
    return user, tags


def model_of(user, tags):
    """A model of both, whose inputs are called otherwise than the layers."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((), dtype="int64", name="u"), keras.Input((3,), dtype="int64", name="t")
    rows = keras.layers.Concatenate()([user(inputs[0]), tags(inputs[1])])
    return keras.Model(list(inputs), keras.layers.Dense(1)(rows))


def data():
    """Batches of ids and labels, the same in each epoch."""
    rng = np.random.default_rng(1)
    ids, tags = rng.integers(1, 60, N_ROWS), rng.integers(0, 30, (N_ROWS, 3))
    labels = ((ids + tags[:, 0]) % 2).astype(np.float32)[:, None]
    return tf.data.Dataset.from_tensor_slices(({"u": ids, "t": tags}, labels)).batch(BATCH)


def n_users():
    """Different ids of users in the data."""
    return len({int(u) for batch, _ in data() for u in batch["u"]})


def loss():
    """The loss of the model."""
    return keras.losses.BinaryCrossentropy(from_logits=True)
