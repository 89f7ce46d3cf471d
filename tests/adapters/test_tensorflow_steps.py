"""Training steps of embstore.tensorflow that fail, overlap, or are somebody else's."""

import gc
import os
import subprocess
import sys

import numpy as np
import pytest

tf = pytest.importorskip(
    "tensorflow", reason="TensorFlow is not installed: its training steps are untested"
)

import keras  # noqa: E402

import embstore as es  # noqa: E402
from embstore.tensorflow import Embedding, Optimizer, fallback  # noqa: E402


def layer_of(**options):
    given = {"optimizer": es.SGD(lr=1.0), "initializer": es.Constant(0.0), **options}
    return Embedding(es.Table(2, **given))


def test_a_step_that_a_table_refuses_leaves_the_dense_part_and_the_clock():
    ids = keras.Input((), dtype="int64")
    layer = layer_of()
    dense = keras.layers.Dense(1, kernel_initializer="ones")
    model = keras.Model(ids, dense(layer(ids)))
    model.compile(optimizer=Optimizer(keras.optimizers.SGD(0.1)), loss="mse")
    good, bad = np.ones((4, 1), np.float32), np.full((4, 1), np.nan, np.float32)
    model.fit(np.arange(4), good, verbose=0)
    before = [dense.get_weights(), layer.table.find(np.arange(4)), layer.step]
    for _ in range(3):
        with pytest.raises(tf.errors.InvalidArgumentError, match="not finite"):
            model.fit(np.arange(4), bad, verbose=0)
    after = [dense.get_weights(), layer.table.find(np.arange(4)), layer.step]
    for one, other in zip(before, after, strict=True):
        for a, b in zip(one, other, strict=True) if isinstance(one, list) else [(one, other)]:
            np.testing.assert_array_equal(a, b)
    model.fit(np.arange(4), good, verbose=0)
    assert layer.step == before[-1] + 1


@pytest.fixture(params=["native", "fallback"])
def layer(request):
    made = layer_of()
    if request.param == "fallback":
        made.named.ops, made.named.has_native = fallback, False
    elif made.named.ops is fallback:
        pytest.skip("the native ops cannot be built here")
    return made


def anchor_of(layer, n_slots):
    anchor = keras.Variable(np.zeros(n_slots, np.float32))
    anchor.constraint = layer.anchor.constraint
    return anchor


def backward(layer, anchor, keys, sources=None):
    """Look keys up in training, and return the gradients of the sum of the rows times 1."""
    one = tf.Variable(1.0)
    with tf.GradientTape() as tape:
        rows = layer.named.ops.lookup(layer.named, anchor.value, tf.constant(keys, tf.int64), False)
        loss = one * tf.reduce_sum(rows)
    return tape.gradient(loss, [one] if sources == "dense" else [anchor.value])[0]


def values_of(layer, keys):
    return layer.table.find(keys)[:, 0].tolist()


def test_gradients_that_were_asked_for_another_variable_are_in_nobodys_step(layer):
    anchor, optimizer = anchor_of(layer, 8), Optimizer("sgd")
    backward(layer, anchor, [1], "dense")
    optimizer.apply_gradients([(backward(layer, anchor, [2]), anchor)])
    assert values_of(layer, [1, 2]) == [0.0, -1.0]


def test_each_of_two_overlapping_steps_applies_its_own_gradients(layer):
    anchor, optimizer = anchor_of(layer, 8), Optimizer("sgd")
    first, second = backward(layer, anchor, [1]), backward(layer, anchor, [2])
    optimizer.apply_gradients([(second, anchor)])
    assert values_of(layer, [1, 2]) == [0.0, -1.0]
    optimizer.apply_gradients([(0.5 * first, anchor)])
    assert values_of(layer, [1, 2]) == [-0.5, -1.0]
    assert layer.step == 2


def test_each_backward_pass_of_one_lookup_has_a_scale_of_its_own(layer):
    anchor, optimizer = anchor_of(layer, 8), Optimizer("sgd")
    keys = tf.constant([1, 2], tf.int64)
    with tf.GradientTape(persistent=True) as tape:
        rows = layer.named.ops.lookup(layer.named, anchor.value, keys, False)
        losses = tf.reduce_sum(rows[0]), tf.reduce_sum(rows[1])
    grads = [tape.gradient(loss, anchor.value) for loss in losses]
    optimizer.apply_gradients([(0.25 * grads[0] + 0.5 * grads[1], anchor)])
    assert values_of(layer, [1, 2]) == [-0.25, -0.5]


def test_what_nobody_asks_for_gives_way_when_its_slot_is_needed(layer):
    anchor, optimizer = anchor_of(layer, 3), Optimizer("sgd")
    left = backward(layer, anchor, [1])
    optimizer.apply_gradients([(backward(layer, anchor, [2]), anchor)])
    grads = sum(backward(layer, anchor, [key]) for key in (3, 4, 5, 6, 7))
    optimizer.apply_gradients([(grads, anchor)])
    assert values_of(layer, [*range(1, 8)]) == [0.0, *[-1.0] * 6]
    optimizer.apply_gradients([(left, anchor)])
    assert values_of(layer, [1]) == [0.0]
    assert int(layer.named.ops.clear(layer.named)) == 0


def test_a_table_whose_layer_is_gone_keeps_its_name_from_another_one():
    if layer_of().named.ops is fallback:
        pytest.skip("the native ops cannot be built here")
    table = es.Table(2, name="alive")
    Embedding(table)
    gc.collect()
    other = Embedding(es.Table(2, name="alive"))
    assert (other.table_key, other.named.has_native) == ("alive#2", True)
    assert Embedding(table).table_key == "alive"


def test_gradients_that_wait_when_a_layer_ends_are_not_the_next_ones_of_its_name():
    for _ in range(2):
        layer = layer_of(name="heir")
        assert layer.table_key == "heir"
        assert int(layer.named.ops.clear(layer.named)) == 0
        backward(layer, layer.anchor, [1])
        del layer
        gc.collect()


NO_MEMORY = """
import tensorflow as tf
import embstore as es
from embstore.tensorflow import Embedding, load_op
import resource

layer = Embedding(es.Table(64, name="wide", optimizer=es.SGD(lr=1.0)))
ops, n = load_op(), 1_000_000
keys, grads = tf.zeros((n,), tf.int64), tf.zeros((n, 64))
common = {"table": "wide", "dim": 64}
step, lr = tf.constant(0, tf.int64), tf.constant(1.0, tf.float64)
for _ in range(2):
    ticket = ops.embstore_lookup(layer.anchor.value, keys, step, fused=False, **common)[1]
    ops.embstore_settle(ticket, grads, step, lr, fused=False, anchor=[], **common)
pages = int(open("/proc/self/statm").read().split()[0])
most = pages * resource.getpagesize() + (100 << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
try:
    ops.embstore_apply(step, lr, tf.constant(2.0), **common)
    print("applied")
except tf.errors.ResourceExhaustedError as error:
    print("exhausted", "wide" in str(error), layer.table.stats()["n_train_steps"])
"""


@pytest.mark.unsanitized
def test_memory_that_is_not_there_is_an_error_of_the_step():
    if layer_of().named.ops is fallback:
        pytest.skip("the native ops cannot be built here")
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", NO_MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["exhausted", "True", "0"]
