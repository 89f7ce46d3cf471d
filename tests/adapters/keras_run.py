"""A small model that is made or loaded, trained and asked; run once for each backend of Keras.

KERAS_BACKEND=jax python keras_run.py make|load model.keras out.json
"""

import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["JAX_ENABLE_X64"] = "1"

import keras
import numpy as np

import embstore as es
from embstore.keras import Embedding, EmbeddingBag, EvictEvery, tables_of

N_ROWS, BATCH, N_EPOCHS = 512, 64, 4


def model():
    """Users and tags, a table that two layers share, padding, and every kind of policy."""
    common = {"dim": 4, "initializer": es.Normal(std=0.1), "seed": 5}
    admission = es.CounterAdmission(min_count=2)
    user = Embedding(optimizer=es.Adagrad(lr=0.5), admission=admission, name="user", **common)
    items = es.Table(
        optimizer=es.SGD(lr=1.0),
        name="item",
        eviction=es.StepEviction(steps_to_live=5),
        **common,
    )
    item, bought = Embedding(items, name="clicked"), EmbeddingBag(items, padding_id=0, mode="sqrtn")
    inputs = [keras.Input(shape, dtype="int64") for shape in ((), (), (3,))]
    rows = [layer(ids) for layer, ids in zip((user, item, bought), inputs, strict=True)]
    hidden = keras.layers.Dense(8, activation="tanh")(keras.layers.Concatenate()(rows))
    return keras.Model(inputs, keras.layers.Dense(1)(hidden))


def data():
    """Ids of each input, and labels that follow from them."""
    rng = np.random.default_rng(1)
    users, items = rng.zipf(1.3, N_ROWS).clip(max=2**62), rng.integers(-300, 300, N_ROWS)
    bought = rng.integers(-5, 40, (N_ROWS, 3))
    labels = ((users % 2 + items % 3 + bought[:, 0] % 2) > 1).astype(np.float32)[:, None]
    return [users, items, bought], labels


def main(how, path, out):
    if how == "make":
        keras.utils.set_random_seed(3)
        made = model()
        made.save(path)
    made = keras.saving.load_model(path)
    made.compile(
        optimizer=keras.optimizers.Adam(0.01),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
    )
    (ids, labels), evict = data(), EvictEvery(8)
    fitted = {"batch_size": BATCH, "epochs": N_EPOCHS, "shuffle": False, "verbose": 0}
    history = made.fit(ids, labels, callbacks=[evict], **fitted)
    before = {table.name: len(table) for table in tables_of(made)}
    found = {
        "losses": history.history["loss"],
        "evaluated": made.evaluate(ids, labels, batch_size=BATCH, verbose=0),
        "predicted": made.predict(ids, verbose=0).tolist(),
        "n_evicted": evict.n_evicted,
        "steps": [layer.step for layer in made.layers if hasattr(layer, "table")],
    }
    for table in tables_of(made):
        assert before[table.name] == len(table)
        block = next(iter(table.export()))
        order = np.argsort(block.keys)
        found[table.name] = {
            "keys": block.keys[order].tolist(),
            "freq": block.freq[order].tolist(),
            "step": block.step[order].tolist(),
            "values": block.values[order].tolist(),
            "n_train_steps": table.stats()["n_train_steps"],
        }
    again = f"{path}.{keras.backend.backend()}.keras"
    made.save(again)
    loaded = keras.saving.load_model(again)
    found["reloaded"] = loaded.predict(ids, verbose=0).tolist()
    found["is_shared"] = loaded.get_layer("clicked").table is tables_of(loaded)[1]
    with open(out, "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
