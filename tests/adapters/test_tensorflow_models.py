"""Models with tables: fit, what is saved and loads again, callbacks, and other processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

tf = pytest.importorskip(
    "tensorflow", reason="TensorFlow is not installed: its models are untested"
)

import keras  # noqa: E402

import embstore as es  # noqa: E402
from embstore.tensorflow import (  # noqa: E402
    Embedding,
    EvictEvery,
    Optimizer,
    SaveTables,
    TableScalars,
    fallback,
    parquet_dataset,
    tables_of,
)

from . import tensorflow_kit as kit  # noqa: E402

# Keras saves variables by way of h5py, which asks for arrays in a way of before numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

QUIET = {"verbose": 0}


def compiled(user, tags, optimizer=None):
    model = kit.model_of(user, tags)
    given = Optimizer(keras.optimizers.Adam(0.01)) if optimizer is None else optimizer
    model.compile(optimizer=given, loss=kit.loss())
    return model


def rows_of(layer):
    blocks = [*layer.table.export()]
    return {k: v.tolist() for b in blocks for k, v in zip(b.keys.tolist(), b.values, strict=True)}


def test_fit_trains_tables_and_dense_part_the_same_with_and_without_native_ops():
    losses, rows = [], []
    for has_native in (True, False):
        user, tags = kit.layers()
        for layer in (user, tags):
            if not has_native:
                layer.named.ops, layer.named.has_native = fallback, False
        model = compiled(user, tags)
        history = model.fit(kit.data(), epochs=4, shuffle=False, **QUIET).history["loss"]
        assert user.step == tags.step == 4 * kit.N_ROWS // kit.BATCH
        assert 0 not in rows_of(tags)
        losses.append(history)
        rows.append((rows_of(user), rows_of(tags)))
    assert losses[0] == losses[1]
    assert rows[0] == rows[1]
    assert losses[0][-1] < 0.9 * losses[0][0]
    assert len(user.table) == kit.n_users()


def test_predict_and_evaluate_insert_nothing():
    user, tags = kit.layers()
    model = compiled(user, tags)
    model.predict(kit.data(), **QUIET)
    model.evaluate(kit.data(), **QUIET)
    assert (len(user.table), len(tags.table), user.step) == (0, 0, 0)


def test_a_keras_optimizer_alone_is_refused_unless_the_layers_are_fused():
    model = compiled(*kit.layers(), optimizer="adam")
    with pytest.raises(es.ArgumentError, match=r"embstore\.tensorflow\.Optimizer"):
        model.fit(kit.data(), shuffle=False, **QUIET)
    user, tags = kit.layers(fused=True)
    model = compiled(user, tags, optimizer=keras.optimizers.AdamW())
    model.fit(kit.data(), shuffle=False, **QUIET)
    assert len(user.table) == kit.n_users()
    assert user.step == 4
    assert not np.any(user.anchor.value)


@pytest.mark.parametrize(
    ("inner", "match"),
    [
        (lambda: keras.optimizers.Adam(global_clipnorm=1.0), "global_clipnorm"),
        (lambda: keras.optimizers.SGD(gradient_accumulation_steps=2), "accumulation"),
        (lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), "LossScale"),
        (lambda: Optimizer("sgd"), "Optimizer"),
    ],
)
def test_inner_optimizers_that_would_have_to_see_tables_are_refused(inner, match):
    with pytest.raises(es.EmbstoreError, match=match):
        Optimizer(inner())


def test_a_scaled_loss_is_refused():
    with pytest.raises(es.ArgumentError, match="mixed_bfloat16"):
        keras.optimizers.LossScaleOptimizer(Optimizer("sgd"))


def test_a_keras_file_holds_everything_and_training_goes_on_alike(tmp_path):
    user, tags = kit.layers(admission=es.CounterAdmission(min_count=2))
    model = compiled(user, tags)
    model.fit(kit.data(), epochs=2, shuffle=False, **QUIET)
    before = model.predict(kit.data(), **QUIET)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(kit.data(), **QUIET), before)
    again = loaded.get_layer("user")
    assert again.table is not user.table
    assert (again.step, again.table.config()) == (8, user.table.config())
    assert again.table.stats()["n_pending"] == user.table.stats()["n_pending"]
    for each in (model, loaded):
        each.fit(kit.data(), shuffle=False, **QUIET)
    assert rows_of(again) == rows_of(user)
    assert rows_of(loaded.get_layer("tags")) == rows_of(tags)
    for one, other in zip(model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other)


def test_layers_that_share_a_table_share_it_again(tmp_path):
    table = es.Table(2, name="item", optimizer=es.SGD(lr=1.0), initializer=es.Constant(1.0))
    shown, bought = Embedding(table, name="shown"), Embedding(table, name="bought")
    inputs = keras.Input((), dtype="int64"), keras.Input((), dtype="int64")
    inner = keras.Model(inputs[0], shown(inputs[0]))
    model = keras.Model(inputs, inner(inputs[0]) + 2 * bought(inputs[1]))
    shown(tf.constant([5]), training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    (again,) = tables_of(loaded)
    assert loaded.get_layer("bought").table is again is not table
    assert len(again) == 1


def test_weights_without_rows_are_not_taken_for_a_model(tmp_path):
    user, tags = kit.layers()
    model = compiled(user, tags)
    model.fit(kit.data(), shuffle=False, **QUIET)
    model.save_weights(tmp_path / "w.weights.h5")
    user.table.save(tmp_path / "user")
    tags.table.save(tmp_path / "tags")
    other = compiled(*kit.layers())
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "w.weights.h5")
    with pytest.raises(es.ArgumentError, match="bring none of them"):
        other.predict(kit.data(), **QUIET)
    for name in ("user", "tags"):
        other.get_layer(name).table.restore(tmp_path / name)
    found = other.predict(kit.data(), **QUIET)
    np.testing.assert_array_equal(found, model.predict(kit.data(), **QUIET))
    assert other.get_layer("user").step == 4


def scalars_in(folder):
    (path,) = Path(folder).glob("events*")
    found = {}
    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            found.setdefault(value.tag, []).append(float(tf.make_ndarray(value.tensor)))
    return found


def test_callbacks_evict_save_and_report(tmp_path):
    user, tags = kit.layers(eviction=es.StepEviction(steps_to_live=1))
    model = compiled(user, tags)
    evict = EvictEvery(2)
    save = SaveTables(tmp_path / "tables", n_steps=3)
    scalars = TableScalars(tmp_path / "board", n_steps=2)
    callbacks = [scalars, evict, save]
    model.fit(kit.data(), epochs=2, shuffle=False, callbacks=callbacks, **QUIET)
    evicted = user.table.stats()["n_evicted"] + tags.table.stats()["n_evicted"]
    assert evict.n_evicted == evicted > 0
    assert save.n_saves == 2 + 2
    with es.Store.load(tmp_path / "tables") as store:
        assert sorted(store) == ["tags", "user"]
        assert len(store["user"]) == len(user.table)
    found = scalars_in(tmp_path / "board")
    user_scalars = {name for name in found if name.startswith("user/")}
    assert user_scalars == {
        f"user/{n}" for n in ("live_rows", "pending", "evicted", "bytes", "hit_rate")
    }
    assert len(found["user/live_rows"]) == 4
    assert found["user/evicted"][0] == 0
    assert found["user/bytes"][-1] > 0
    assert 0 < found["tags/hit_rate"][0] < 1


def test_hits_are_counted_by_unique_ids():
    layer = Embedding(dim=2, optimizer=es.SGD(lr=1.0))
    layer.named.ops.hits(layer.named)
    layer(tf.constant([1, 1, 2]), training=True)
    assert layer.named.ops.hits(layer.named) == (2, 0)
    layer(tf.constant([2, 2, 3]), training=True)
    assert layer.named.ops.hits(layer.named) == (2, 1)
    assert layer.named.ops.hits(layer.named) == (0, 0)


SERVE = """
import json, sys
import numpy as np
import tensorflow as tf
import embstore as es
from embstore.tensorflow import load_op, register

folder, is_whole = sys.argv[1], sys.argv[2] == "whole"
load_op()
model = tf.saved_model.load(f"{folder}/model")
inputs = {name: tf.constant(array) for name, array in np.load(f"{folder}/inputs.npz").items()}
try:
    if is_whole:
        for name, key in json.loads(sys.argv[3]).items():
            register(key, es.Table.load(f"{folder}/tables", name=name))
    (found,) = model.signatures["serving_default"](**inputs).values()
    np.save(f"{folder}/found.npy", found.numpy())
    print(json.dumps("served"))
except tf.errors.NotFoundError as error:
    print(json.dumps(str(error)))
"""


def served(folder, what, keys):
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-c", SERVE, str(folder), what, json.dumps(keys)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.unsanitized
def test_an_exported_model_predicts_the_same_in_another_process(tmp_path):
    user, tags = kit.layers()
    if user.named.ops is fallback:
        pytest.skip("the native ops cannot be built here")
    keys = {"user": user.table_key, "tags": tags.table_key}
    model = compiled(user, tags)
    model.fit(kit.data(), shuffle=False, **QUIET)
    inputs = {"u": np.arange(70), "t": np.arange(210).reshape(70, 3)}
    expected = model.predict(inputs, **QUIET)
    assert len(np.unique(expected)) > 50
    model.export(str(tmp_path / "model"), verbose=False)
    es.Store([user.table, tags.table]).save(tmp_path / "tables")
    np.savez(tmp_path / "inputs.npz", **inputs)
    assert served(tmp_path, "whole", keys) == "served"
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), expected)
    message = served(tmp_path, "bare", keys)
    assert "no table is registered as" in message
    assert "embstore.tensorflow.register(" in message


def test_a_model_without_native_ops_is_not_exported(tmp_path):
    user, tags = kit.layers()
    for layer in (user, tags):
        layer.named.ops, layer.named.has_native = fallback, False
    for layer in (user, tags):
        ids = keras.Input((3,), dtype="int64")
        model = keras.Model(ids, layer(ids))
        assert model.predict(np.ones((2, 3), np.int64), **QUIET).shape[0] == 2
        for export in (model.export, lambda path, model=model: tf.saved_model.save(model, path)):
            with pytest.raises(AssertionError, match="without_native_ops_cannot_be_exported"):
                export(str(tmp_path / "model"))
    assert not (tmp_path / "model" / "saved_model.pb").exists()


def test_parquet_feeds_fit(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    users, tags = rng.integers(0, 9, 100), [rng.integers(1, 5, n % 3).tolist() for n in range(100)]
    columns = {"u": users, "t": pa.array(tags, pa.list_(pa.int64())), "y": users % 2 * 1.0}
    pq.write_table(pa.table(columns), tmp_path / "clicks.parquet")
    path = tmp_path / "clicks.parquet"
    data = parquet_dataset(path, ["u", "t", "y"], batch_size=32, label="y")
    seen = [(features["u"], features["t"], label) for features, label in data]
    assert [len(u) for u, _, _ in seen] == [32, 32, 32, 4]
    np.testing.assert_array_equal(np.concatenate([u for u, _, _ in seen]), users)
    assert [bag for _, t, _ in seen for bag in t.to_list()] == tags
    assert seen[0][2].dtype == tf.float64
    assert len([*data]) == 4  # another epoch
    layer = Embedding(dim=2, optimizer=es.Adagrad(lr=0.1), name="user")
    inputs = keras.Input((), dtype="int64", name="u")
    model = keras.Model({"u": inputs}, keras.layers.Dense(1)(layer(inputs)))
    model.compile(optimizer=Optimizer("sgd"), loss="mse")
    one = parquet_dataset(path, ["u", "y"], batch_size=32, label="y")
    model.fit(one, epochs=2, shuffle=False, **QUIET)
    assert (len(layer.table), layer.step) == (9, 8)
    for label in ("t", "z"):
        with pytest.raises(es.ArgumentError, match="label"):
            parquet_dataset(path, ["u", "t", "y"], batch_size=32, label=label)
