"""The layers of embstore.keras in models, on the backend that Keras runs on."""

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="Keras is not installed: embstore.keras is untested")

BACKEND = keras.backend.backend()
pytest.importorskip(BACKEND, reason=f"{BACKEND} is not installed: Keras on it is untested")

if BACKEND == "jax":
    import jax

    jax.config.update("jax_enable_x64", True)

from contract.tools import exported, live, snapshot  # noqa: E402
from property.pair import assert_same_rows  # noqa: E402

import embstore as es  # noqa: E402
from embstore.keras import Embedding, EmbeddingBag, SaveTables, tables_of  # noqa: E402

# What Keras says to numpy 2 where it converts variables.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

IDS = np.array([7, -5, 2**62, 7, 0, 8])
ONES = np.ones((6, 1), np.float32)
REFUSED = (es.ArgumentError, RuntimeError)  # by Keras 3.10, where it cannot build a model
FIT = {"batch_size": 2, "shuffle": False, "verbose": 0}


def layer_of(dim=2, kind=Embedding, **options):
    given = {"optimizer": es.SGD(lr=0.5), "initializer": es.Constant(1.0), **options}
    return kind(dim=dim, **given)


def model_of(layer, shape=(), **compiled):
    ids = keras.Input(shape, dtype="int64")
    rows = layer(ids)
    dense = keras.layers.Dense(1, kernel_initializer="ones")
    model = keras.Model(ids, dense(keras.layers.Flatten()(rows)))
    model.compile(**{"optimizer": "sgd", "loss": "mse", **compiled})
    return model


def rows_of(layer, ids):
    return np.asarray(layer.table.find(ids))


def test_fit_counts_and_trains_and_the_rest_only_reads():
    layer = layer_of(name="user")
    model = model_of(layer)
    model.fit(IDS, ONES, **FIT)
    assert live(layer.table) == [-5, 0, 7, 8, 2**62]
    assert (layer.step, layer.table.stats()["n_train_steps"]) == (3, 3)
    before = snapshot(layer.table)
    model.evaluate(IDS + 1, ONES, verbose=0)
    model.predict(IDS + 1, verbose=0)
    assert snapshot(layer.table) == before
    assert layer.step == 3


def test_the_rows_are_those_of_the_gradient_of_the_loss():
    layer = layer_of()
    model_of(layer).train_on_batch(np.array([3, 4, 3]), np.zeros((3, 1), np.float32))
    # d/drow of mean((row.sum())**2) is 2 * 2 / 3 in each column, twice for the id 3
    expected = [[1 - 0.5 * 8 / 3] * 2, [1 - 0.5 * 4 / 3] * 2]
    np.testing.assert_allclose(rows_of(layer, [3, 4]), expected, rtol=1e-6)


def test_lookups_of_one_model_call_are_one_step():
    layer = layer_of()
    ids = [keras.Input((), dtype="int64") for _ in range(2)]
    model = keras.Model(ids, keras.layers.Dense(1)(layer(ids[0]) + layer(ids[1])))
    model.compile(optimizer="sgd", loss="mse")
    model.fit([IDS, IDS + 1], ONES, **FIT)
    assert (layer.step, layer.table.stats()["n_train_steps"]) == (3, 3)


def test_eager_runs_train_as_compiled_ones_do():
    found = []
    for run_eagerly in (False, True):
        layer = layer_of(optimizer=es.Adagrad(lr=0.5), seed=3)
        model = model_of(layer, run_eagerly=run_eagerly)
        model.fit(IDS, ONES, epochs=2, **FIT)
        found.append((rows_of(layer, IDS), layer.step))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-5)
    assert found[0][1] == found[1][1] == 6


def test_padding_is_masked_and_left_out():
    layer = layer_of(padding_id=0)
    ids = keras.Input((3,), dtype="int64")
    model = keras.Model(ids, keras.layers.GlobalAveragePooling1D()(layer(ids)))
    model.compile(optimizer="sgd", loss="mse")
    layer.table.assign([1, 2], np.array([[1, 2], [3, 4]], np.float32))
    given = np.array([[1, 2, 0], [2, 0, 0]])
    np.testing.assert_allclose(model.predict(given, verbose=0), [[2, 3], [3, 4]])
    mask = layer.compute_mask(keras.ops.convert_to_tensor(given))
    np.testing.assert_array_equal(np.asarray(mask), given != 0)
    model.fit(given, np.zeros((2, 2)), verbose=0)
    assert live(layer.table) == [1, 2]
    assert Embedding(layer.table).compute_mask(given) is None


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
def test_bags_have_weights_and_any_number_of_axes(mode):
    layer = layer_of(3, EmbeddingBag, initializer=es.Normal(std=1.0), mode=mode, padding_id=0)
    ids = np.array([[[1, 2], [3, 0]], [[2, 2], [0, 0]]])
    weights = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    layer.table.find_or_insert(np.unique(ids), 0)
    pooled = np.asarray(layer(keras.ops.convert_to_tensor(ids), weights))
    is_id = ids.reshape(4, 2) != 0
    offsets = np.r_[0, is_id.sum(1).cumsum()]
    keys, factors = ids.reshape(4, 2)[is_id], weights.reshape(4, 2)[is_id]
    expected = layer.table.pooled(keys, offsets, mode, factors)
    np.testing.assert_array_equal(pooled.reshape(4, 3), expected)


def test_a_frozen_layer_reads_and_needs_no_optimizer():
    layer = Embedding(dim=2, default_row=3.0)
    layer.trainable = False
    model = model_of(layer)
    model.fit(IDS, ONES, **FIT)
    assert len(layer.table) == 0
    layer.trainable = True
    model.compile(optimizer="sgd", loss="mse")
    with pytest.raises(es.ArgumentError, match="has no optimizer"):
        model.fit(IDS, ONES, **FIT)


def test_training_goes_on_to_the_bit_from_a_saved_model(tmp_path):
    options = {"optimizer": es.Adam(lr=0.1), "admission": es.CounterAdmission(min_count=2)}
    whole = layer_of(name="user", seed=5, **options)
    model = model_of(whole)
    model.save(tmp_path / "empty.keras")
    model.fit(IDS, ONES, epochs=4, **FIT)
    half = keras.saving.load_model(tmp_path / "empty.keras")
    half.fit(IDS, ONES, epochs=2, **FIT)
    half.save(tmp_path / "half.keras")
    resumed = keras.saving.load_model(tmp_path / "half.keras")
    assert resumed.get_layer("user").step == 6
    resumed.fit(IDS, ONES, epochs=2, **FIT)
    assert_same_rows(exported(resumed.get_layer("user").table), exported(whole.table), "rows")
    np.testing.assert_array_equal(resumed.predict(IDS, verbose=0), model.predict(IDS, verbose=0))


def test_weights_without_their_rows_are_refused(tmp_path):
    layer = layer_of()
    model = model_of(layer)
    model.fit(IDS, ONES, **FIT)
    model.save_weights(tmp_path / "some.weights.h5")
    layer.table.save(tmp_path / "table")
    empty = layer_of()
    other = model_of(empty)
    other.load_weights(tmp_path / "some.weights.h5")
    with pytest.raises(es.ArgumentError, match=r"5 rows at step 2, and bring none of them \(it"):
        empty(keras.ops.convert_to_tensor(IDS))
    empty.table.restore(tmp_path / "table")
    np.testing.assert_array_equal(other.predict(IDS, verbose=0), model.predict(IDS, verbose=0))
    assert empty.step == 3


def test_tables_are_saved_by_the_callback(tmp_path):
    layer = layer_of(name="user")
    saves = SaveTables(tmp_path / "tables", n_steps=2)
    model_of(layer).fit(IDS, ONES, epochs=2, callbacks=[saves], **FIT)
    assert saves.n_saves == 3 + 2
    with es.Table.load(tmp_path / "tables", name="user") as table:
        assert_same_rows(exported(table), exported(layer.table), "rows")


def test_optimizers_of_the_dense_part_leave_the_anchor_alone():
    layer = layer_of()
    optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5, global_clipnorm=0.1, use_ema=True)
    model = model_of(layer, optimizer=optimizer)
    model.fit(IDS, ONES, epochs=2, **FIT)
    assert float(keras.ops.stop_gradient(layer.anchor.value)) == 0
    assert len(layer.table) == 5


def test_models_in_bfloat16_get_its_rows_and_those_in_float16_are_refused():
    layer = layer_of(dtype="mixed_bfloat16")
    rows = layer(keras.ops.convert_to_tensor(IDS), training=True)
    assert keras.backend.standardize_dtype(rows.dtype) == "bfloat16"
    with pytest.raises(es.ArgumentError, match="mixed_float16 scales the loss"):
        layer_of(dtype="mixed_float16")


def test_a_model_that_forgets_to_say_training_is_told_that_its_table_is_not_trained():
    class Forgetful(keras.Model):
        def __init__(self, layer):
            super().__init__()
            self.layer, self.dense = layer, keras.layers.Dense(1)

        def call(self, ids):
            return self.dense(self.layer(ids))

    layer = layer_of(name="forgotten")
    model = Forgetful(layer)
    model.compile(optimizer="sgd", loss="mse")
    with pytest.warns(UserWarning, match="forgotten"):
        model.fit(IDS, ONES, **FIT)
    assert len(layer.table) == 0
    layer.trainable = False
    model.compile(optimizer="sgd", loss="mse")
    model.fit(IDS, ONES, **FIT)


def test_a_full_table_and_a_bad_gradient_raise_and_the_table_goes_on():
    layer = layer_of(max_rows=2)
    model = model_of(layer, run_eagerly=True)
    model.fit(IDS[:2], ONES[:2], **FIT)
    with pytest.raises(Exception, match="do not fit"):
        model.fit(IDS[2:], ONES[2:], **FIT)
    assert live(layer.table) == [-5, 7]
    layer = Embedding(layer.table)  # on JAX, Keras has lost its variables in fit
    with pytest.raises(Exception, match=r"NaN|finite"):
        model_of(layer, run_eagerly=True).fit(IDS[:2], ONES[:2] * np.nan, **FIT)
    assert np.isfinite(rows_of(layer, [7, -5])).all()


def test_bad_input_is_refused_in_one_clear_line():
    floats = keras.ops.convert_to_tensor(np.float32([[1.5]]))
    for kind in (Embedding, EmbeddingBag):
        with pytest.raises(TypeError, match=r"int64.*got float32.*keras\.Input"):
            layer_of(kind=kind)(floats)
    with pytest.raises(es.ArgumentError, match="a float; got int64"):
        layer_of(dtype="int64")
    with pytest.raises(es.ArgumentError, match=r"\(\.\.\., length\)"):
        layer_of(kind=EmbeddingBag)(keras.ops.convert_to_tensor(IDS))
    bag = layer_of(kind=EmbeddingBag)
    with pytest.raises(es.ArgumentError, match="one for each id"):
        bag(keras.ops.convert_to_tensor(IDS.reshape(2, 3)), np.ones((3, 2), np.float32))
    with pytest.raises(es.ArgumentTypeError, match="there is no input_dim"):
        Embedding(1000)
    with pytest.raises(es.ArgumentError, match="mode must be one of"):
        layer_of(kind=EmbeddingBag, mode="max")
    layer = layer_of()
    with pytest.raises(es.ArgumentError, match="step must be"):
        layer.step = -1
    layer.step = 9
    assert layer.step == 9


@pytest.mark.parametrize("is_dynamic", [False, True])
def test_a_scaled_loss_is_refused_before_a_row_is_trained(is_dynamic):
    layer, inner = layer_of(), keras.optimizers.SGD(0.1, loss_scale_factor=8.0)
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    model = model_of(layer, optimizer=scaled if is_dynamic else inner)
    for train in (model.fit, model.train_on_batch):
        with pytest.raises(REFUSED, match=r"scales the loss.*'table'"):
            train(IDS, ONES)
    assert len(layer.table) == 0
    model.compile(optimizer="sgd", loss="mse")
    model.fit(IDS, ONES, **FIT)
    assert len(layer.table) == 5


def test_to_ask_for_the_model_of_a_call_leaves_no_call_open():
    layer = layer_of()
    layer.call(keras.ops.convert_to_tensor(IDS))
    model = model_of(layer_of(), optimizer=keras.optimizers.SGD(0.1, loss_scale_factor=8.0))
    with pytest.raises(REFUSED, match="scales the loss"):
        model.train_on_batch(IDS, ONES)


def test_layers_around_and_behind_are_free_in_what_they_do():
    class Halved(keras.layers.Layer):
        def call(self, rows):
            rows *= 0.5  # in place on PyTorch
            return rows

    layer = layer_of(kind=EmbeddingBag, mode="sum")
    ids = keras.Input((3, 2), dtype="int64")
    halved = Halved()(keras.layers.TimeDistributed(layer)(ids))
    model = keras.Model(ids, keras.layers.Flatten()(halved))
    model.compile(optimizer="sgd", loss=lambda y, rows: keras.ops.sum(rows, -1))
    assert halved.shape == (None, 3, 2)
    model.train_on_batch(np.array([[[1, 2], [3, 4], [5, 1]]]), np.zeros((1, 6), np.float32))
    np.testing.assert_allclose(rows_of(layer, [1, 2, 5]), [[0.5] * 2, [0.75] * 2, [0.75] * 2])


def test_callbacks_read_the_step_or_are_told_how():
    layer, steps = layer_of(), []
    model = model_of(layer)

    def note(batch, logs):
        if BACKEND == "jax":
            with pytest.raises(es.ArgumentError, match=r"until tables_of\(model\) is called"):
                _ = layer.step
        tables_of(model)
        steps.append((layer.step, len(layer.table)))

    noting = keras.callbacks.LambdaCallback(on_train_batch_end=note)
    model.fit(IDS, ONES, callbacks=[noting], **FIT)
    assert steps == [(1, 2), (2, 3), (3, 5)]


def test_a_layer_that_lost_its_variables_says_so_and_its_table_goes_on():
    layer = layer_of()
    model = model_of(layer)
    model.fit(IDS, ONES, **FIT)
    before = rows_of(layer, IDS)
    with pytest.raises(Exception, match=r"finite"):
        model.fit(IDS[:2], ONES[:2] * np.nan, **FIT)
    if BACKEND == "jax":
        for ask in (lambda: layer.step, lambda: layer(IDS), lambda: layer(IDS, training=True)):
            with pytest.raises(es.ArgumentError, match="Keras has the variables of the layers"):
                ask()
    again = Embedding(layer.table)
    assert again.step >= 3
    np.testing.assert_array_equal(np.asarray(again(keras.ops.convert_to_tensor(IDS))), before)


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX has functions that carry no variables")
def test_a_step_that_a_function_under_jit_would_lose_is_refused():
    layer = layer_of()
    model = model_of(layer)
    with pytest.raises(es.ArgumentError, match="stateless_call"):
        jax.jit(lambda ids: model(ids, training=True))(IDS)
    assert (len(layer.table), layer.step) == (0, 0)
    assert jax.jit(model)(IDS).shape == (6, 1)
    model.fit(IDS, ONES, **FIT)
    assert layer.step == 3


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "openvino")
    with pytest.raises(es.ArgumentError, match="on tensorflow, torch or jax; it runs on openvino"):
        layer_of()


def test_tables_of_a_model_are_found_once_and_clones_begin_anew():
    table = es.Table(dim=2, optimizer=es.SGD(lr=0.1), name="shared")
    ids = keras.Input((), dtype="int64")
    layers = [Embedding(table, name="one"), Embedding(table, name="two"), layer_of(name="three")]
    model = keras.Model(ids, keras.layers.Concatenate()([layer(ids) for layer in layers]))
    assert tables_of(model) == [table, layers[2].table]
    clone = keras.models.clone_model(model)
    assert [len(t) for t in tables_of(clone)] == [0] * len(tables_of(clone))
    assert not {id(t) for t in tables_of(clone)} & {id(t) for t in tables_of(model)}
