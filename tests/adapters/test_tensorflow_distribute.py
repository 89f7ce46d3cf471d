"""Strategies of tf.distribute, real ones: those of one replica serve, all others are refused."""

import json
import os
import socket
import subprocess
import sys

import pytest

tf = pytest.importorskip(
    "tensorflow", reason="TensorFlow is not installed: its strategies are untested"
)

TIMEOUT_S = 120

PRELUDE = """
import json, os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf

def refusal_of(call):
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["nothing was raised", ""]
"""

# Keras's fit, and a step of the user's own, under strategies over two devices of one process.
LOCAL = """
cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, numpy as np
import embstore as es
from embstore.tensorflow import Embedding, Optimizer

def fit(strategy):
    keras.utils.set_random_seed(1)
    table = es.Table(4, optimizer=es.Adagrad(lr=0.1), initializer=es.Normal(std=0.1))
    with strategy.scope():
        ids = keras.Input((), dtype="int64")
        model = keras.Model(ids, keras.layers.Dense(1)(Embedding(table)(ids)))
        model.compile(optimizer=Optimizer("sgd"), loss="mse")
    data = np.arange(32) % 20, np.ones((32, 1), np.float32)
    history = model.fit(*data, batch_size=16, epochs=2, verbose=0).history
    return history["loss"], len(table), table.stats()["n_train_steps"]

def run(strategy, table):
    with strategy.scope():
        layer = Embedding(table)
    ids = tf.constant([1, 2])
    strategy.run(tf.function(lambda: layer(ids, training=True), autograph=False))

both = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
table = es.Table(4, optimizer=es.Adagrad(lr=0.1))
print(json.dumps({
    "none": fit(tf.distribute.get_strategy()),
    "mirrored": fit(tf.distribute.MirroredStrategy(["CPU:1"])),
    "one device": fit(tf.distribute.OneDeviceStrategy("CPU:1")),
    "refused": [refusal_of(lambda: fit(both)), refusal_of(lambda: run(both, table))],
    "n_rows": len(table),
}))
"""

WORKER = """
strategy = tf.distribute.MultiWorkerMirroredStrategy()
import embstore as es
from embstore.tensorflow import Embedding

table = es.Table(4, optimizer=es.Adagrad(lr=0.1))

def run():
    with strategy.scope():
        layer = Embedding(table)
    step = tf.function(lambda: layer(tf.constant([1, 2]), training=True), autograph=False)
    strategy.run(step)

print(json.dumps({"refused": refusal_of(run), "n_rows": len(table)}))
"""


def start(code, **env):
    command = [sys.executable, "-c", PRELUDE + code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **env}, **pipes)


def answer_of(process):
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == 0, err[-2000:]
    return json.loads(out.splitlines()[-1])


def is_clear(refusal):
    name, message = refusal
    return name == "ArgumentError" and "2 replicas" in message and "embstore.torch" in message


@pytest.mark.unsanitized
def test_strategies_of_one_replica_train_as_none_and_two_are_refused():
    found = answer_of(start(LOCAL))
    losses, n_rows, n_steps = found["none"]
    assert (n_rows, n_steps) == (20, 4)
    assert losses[1] < losses[0]
    assert found["mirrored"] == found["one device"] == found["none"]
    assert all(map(is_clear, found["refused"])), found["refused"]
    assert found["n_rows"] == 0


@pytest.mark.unsanitized
def test_two_workers_are_refused_on_each_and_end():
    sockets = [socket.create_server(("localhost", 0)) for _ in range(2)]
    cluster = {"worker": [f"localhost:{s.getsockname()[1]}" for s in sockets]}
    for each in sockets:
        each.close()
    tasks = [{"cluster": cluster, "task": {"type": "worker", "index": rank}} for rank in range(2)]
    workers = [start(WORKER, TF_CONFIG=json.dumps(task)) for task in tasks]
    try:
        answers = [answer_of(worker) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for answer in answers:
        assert is_clear(answer["refused"]), answer["refused"]
        assert answer["n_rows"] == 0
