"""The layers of embstore.tensorflow: what goes in and comes out, in graphs and at once."""

import gc

import numpy as np
import pytest

tf = pytest.importorskip(
    "tensorflow", reason="TensorFlow is not installed: its layers are untested"
)

import keras  # noqa: E402

import embstore as es  # noqa: E402
from embstore.tensorflow import Embedding, EmbeddingBag, Optimizer, fallback  # noqa: E402

IDS = np.array([[7, -5, 7], [2**62, 9, 9]])


def table_of(dim=2, **options):
    given = {"optimizer": es.SGD(lr=1.0), "initializer": es.Constant(1.0), **options}
    return es.Table(dim, **given)


def gradient_step(layer, ids, optimizer, **call):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(ids, training=True, **call))
    optimizer.apply_gradients(
        zip(tape.gradient(loss, layer.trainable_variables), layer.trainable_variables, strict=True)
    )


def test_ragged_ids_give_ragged_rows_and_sparse_ones_too():
    table = table_of(default_row=[3, 4])
    table.assign([7, 8], np.array([[7, 70], [8, 80]], np.float32))
    layer = Embedding(table)
    rows = layer(tf.ragged.constant([[7, 8], [], [9]], dtype=tf.int64))
    assert rows.to_list() == [[[7, 70], [8, 80]], [], [[3, 4]]]
    sparse = tf.SparseTensor([[0, 0], [0, 1], [2, 0]], tf.constant([7, 8, 9], tf.int64), [3, 2])
    assert layer(sparse).to_list() == rows.to_list()
    deep = tf.ragged.constant([[[7], []], [[8, 9]]], dtype=tf.int64)
    assert layer(deep).to_list() == [[[[7, 70]], []], [[[8, 80], [3, 4]]]]


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
def test_bags_of_every_form_are_the_same(mode):
    table = table_of(dim=3, initializer=es.Normal(std=1.0))
    layer = EmbeddingBag(table, mode=mode, padding_id=0)
    bags, weights = [[7, 8], [9, 0], [7, 0]], [[1.0, 2.0], [0.5, 9.0], [3.0, 9.0]]
    layer(tf.constant(bags, tf.int64), training=True)
    assert sorted(k for block in table.export() for k in block.keys.tolist()) == [7, 8, 9]
    offsets = np.array([0, 2, 3, 4])
    expected = table.pooled([7, 8, 9, 7], offsets, mode, np.array([1, 2, 0.5, 3], np.float32))
    dense = layer(tf.constant(bags, tf.int64), tf.constant(weights))
    np.testing.assert_array_equal(dense, expected)
    ragged = tf.ragged.constant([[7, 8], [9], [7]], dtype=tf.int64)
    factors = ragged.with_flat_values(tf.constant([1.0, 2.0, 0.5, 3.0]))
    np.testing.assert_array_equal(layer(ragged, factors), expected)
    sparse, sparse_factors = ragged.to_sparse(), factors.to_sparse()
    np.testing.assert_array_equal(layer(sparse, sparse_factors), expected)
    deep = layer(tf.constant([bags, bags[::-1]], tf.int64))
    assert deep.shape == (2, 3, 3)
    np.testing.assert_array_equal(deep[1, 2], layer(tf.constant(bags[:1], tf.int64))[0])


def test_an_empty_batch_and_empty_bags_are_zeros():
    layer = EmbeddingBag(table_of(), mode="mean")
    for training in (False, True):
        assert layer(tf.zeros((0, 3), tf.int64), training=training).shape == (0, 2)
        pooled = layer(tf.zeros((2, 0), tf.int64), training=training)
        np.testing.assert_array_equal(pooled, np.zeros((2, 2)))
    assert len(layer.table) == 0


@pytest.mark.parametrize("is_graph", [False, True])
@pytest.mark.parametrize("has_native", [False, True])
def test_fused_and_waiting_gradients_train_alike_in_graphs_and_at_once(is_graph, has_native):
    values = []
    for fused in (False, True):
        layer = Embedding(table_of(), fused=fused)
        if not has_native:
            layer.named.ops, layer.named.has_native = fallback, False
        elif layer.named.ops is fallback:
            pytest.skip("the native ops cannot be built here")
        optimizer = Optimizer("sgd")
        step = tf.function(gradient_step) if is_graph else gradient_step
        for _ in range(3):
            step(layer, tf.constant(IDS), optimizer)
        assert layer.step == 3
        assert layer.table.stats()["n_train_steps"] == 3
        values.append(layer.table.find([7, -5, 2**62, 9]).tolist())
    assert values[0] == values[1] == [[-5, -5], [-2, -2], [-2, -2], [-5, -5]]


def test_several_lookups_of_one_table_are_one_update():
    table = table_of(optimizer=es.Adagrad(lr=1.0), initializer=es.Constant(0.0))
    one, two, optimizer = Embedding(table), EmbeddingBag(table, mode="mean"), Optimizer("sgd")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(one(tf.constant([1, 2]), training=True))
        loss += 2 * tf.reduce_sum(two(tf.constant([[1, 3]]), training=True))
    variables = [one.anchor, two.anchor]
    grads = tape.gradient(loss, [v.value for v in variables])
    optimizer.apply_gradients(zip(grads, variables, strict=True))
    with es.Table(2, optimizer=es.Adagrad(lr=1.0), initializer=es.Constant(0.0)) as expected:
        batch = expected.find_or_insert([1, 2, 3], 0)
        grads = np.array([[2, 2], [1, 1], [1, 1]], np.float32)
        expected.apply_gradients(batch, grads, 0)
        np.testing.assert_array_equal(table.find([1, 2, 3]), expected.find([1, 2, 3]))
    assert table.stats()["n_train_steps"] == one.step == two.step == 1


def test_what_scales_the_gradients_of_a_step_scales_those_of_tables():
    layer, optimizer = Embedding(table_of(initializer=es.Constant(0.0))), Optimizer("sgd")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(tf.constant([1, 1]), training=True))
    (grad,) = tape.gradient(loss, layer.trainable_variables)
    optimizer.apply_gradients([(grad * 0.25, layer.anchor)])
    assert layer.table.find([1]).tolist() == [[-0.5, -0.5]]


def test_weights_get_gradients_if_they_are_asked_for():
    weights = tf.Variable([[2.0, 3.0]])
    table = table_of(initializer=es.Constant(0.0))
    table.assign([1, 2], np.array([[1, 2], [3, 4]], np.float32))
    for mode, by in (("sum", 1.0), ("mean", 0.5)):
        layer = EmbeddingBag(table, mode=mode, train_weights=True, fused=True)
        rows = table.find([1, 2])
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(tf.constant([[1, 2]]), weights, training=True))
        np.testing.assert_allclose(tape.gradient(loss, weights), [rows.sum(1) * by], rtol=1e-6)
    constant = EmbeddingBag(table, fused=True)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(constant(tf.constant([[1, 2]]), weights, training=True))
    assert tape.gradient(loss, weights) is None


def test_a_schedule_of_the_learning_rate_is_followed_in_graphs():
    table = table_of(initializer=es.Constant(0.0))
    table.lr = lambda step: 10.0**step
    layer, optimizer = Embedding(table), Optimizer("sgd")
    step = tf.function(gradient_step)
    for expected in (-1, -11, -111):
        step(layer, tf.constant([5]), optimizer)
        assert table.find([5]).tolist() == [[expected] * 2]


def test_a_changed_learning_rate_holds_in_a_graph_that_was_traced_before():
    layer, optimizer = Embedding(table_of(initializer=es.Constant(0.0))), Optimizer("sgd")
    step = tf.function(gradient_step)
    step(layer, tf.constant([5]), optimizer)
    layer.table.lr = 0.5
    step(layer, tf.constant([5]), optimizer)
    assert layer.table.find([5]).tolist() == [[-1.5, -1.5]]


def test_inference_and_frozen_layers_change_nothing():
    layer = Embedding(table_of(default_row=2.0))
    assert layer(tf.constant([1])).numpy().tolist() == [[2, 2]]
    layer.trainable = False
    assert layer(tf.constant([1]), training=True).numpy().tolist() == [[2, 2]]
    assert (len(layer.table), layer.trainable_variables) == (0, [])
    layer.trainable = True
    layer(tf.constant([1]), training=True)
    assert len(layer.table) == 1


def test_a_step_without_a_tables_gradient_says_so():
    layer, dense = Embedding(table_of(name="idle")), tf.keras.layers.Dense(1)
    optimizer = Optimizer("sgd")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(dense(layer(tf.constant([1]))))  # training=True was forgotten
    variables = [*layer.trainable_variables, *dense.trainable_variables]
    grads = tape.gradient(loss, variables)
    with pytest.warns(es.EmbstoreWarning, match=r"\['idle'\].*training=True"):
        optimizer.apply_gradients(zip(grads, variables, strict=True))
    assert optimizer.iterations.numpy() == 1


def test_padding_masks_what_comes_behind():
    layer = Embedding(table_of(), padding_id=-1)
    mask = layer.compute_mask(tf.constant([[3, -1]]))
    assert mask.numpy().tolist() == [[True, False]]
    pooled = keras.layers.GlobalAveragePooling1D()(layer(tf.constant([[3, -1]]), training=True))
    assert pooled.numpy().tolist() == [[1, 1]]


def test_rows_come_in_the_dtype_of_the_policy():
    with es.Table(2, dtype="bfloat16", initializer=es.Constant(1.5)) as table:
        table.find_or_insert([1], 0)
        assert Embedding(table)(tf.constant([1])).dtype == tf.float32
        half = Embedding(table, dtype="mixed_bfloat16")(tf.constant([1]))
        assert (half.dtype, half.numpy().tolist()) == (tf.bfloat16, [[1.5, 1.5]])
        with pytest.raises(es.ArgumentError, match="mixed_bfloat16"):
            Embedding(table, dtype="mixed_float16")


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (Embedding, TypeError, "dim="),
        (lambda: Embedding(1000, dim=16), TypeError, "one was given"),
        (lambda: Embedding(1000), TypeError, "no input_dim"),
        (lambda: Embedding(dim=2, padding_id=1.5), TypeError, "padding_id"),
        (lambda: Embedding(dim=2, fused=True), ValueError, "no optimizer"),
        (lambda: EmbeddingBag(dim=2, mode="max"), ValueError, "sqrtn"),
    ],
)
def test_wrong_arguments_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_wrong_calls_are_refused():
    bag, bare = EmbeddingBag(table_of()), Embedding(dim=2)
    with pytest.raises(es.ArgumentError, match="must be bags"):
        bag(tf.constant([1, 2]))
    with pytest.raises(es.ArgumentError, match=r"one for each id, \(1, 2\), got \(3,\)"):
        bag(tf.constant([[1, 2]]), tf.constant([1.0, 2.0, 3.0]))
    with pytest.raises(es.ArgumentError, match="no optimizer"):
        bare(tf.constant([1]), training=True)
    assert bare(tf.constant([1])).shape == (1, 2)


def test_compiling_with_xla_names_the_op_that_cannot():
    layer = Embedding(table_of())
    if layer.named.ops is fallback:
        pytest.skip("the native ops cannot be built here")
    assert layer.supports_jit is False
    function = tf.function(layer.__call__, jit_compile=True)
    with pytest.raises((tf.errors.InvalidArgumentError, tf.errors.UnimplementedError)) as raised:
        function(tf.constant([1]))
    assert "EmbstoreFind" in str(raised.value)


def test_a_graph_of_a_closed_table_raises_and_does_not_crash():
    layer = Embedding(table_of(name="doomed"))
    if layer.named.ops is fallback:
        pytest.skip("the native ops cannot be built here")
    function = tf.function(layer.__call__)
    function(tf.constant([1]))
    layer.table.close()
    with pytest.raises(tf.errors.NotFoundError, match=r"no table is registered as 'doomed'"):
        function(tf.constant([1]))
    with pytest.raises(es.ArgumentError, match="register"):
        layer(tf.constant([1]))


def test_a_layer_that_is_gone_gives_its_name_back():
    for _ in range(2):
        layer = Embedding(table_of(name="once"))
        assert layer.table_key == "once"
        other = Embedding(table_of(name="once"))
        assert other.table_key == "once#2"
        del layer, other
        gc.collect()


def test_a_table_with_a_sink_goes_by_python_and_says_so():
    evicted = []
    table = table_of(eviction=es.StepEviction(0), evict_every=1, on_evict=evicted.append)
    with pytest.warns(es.EmbstoreWarning, match="on_evict"):
        layer = Embedding(table)
    optimizer, step = Optimizer("sgd"), tf.function(gradient_step)
    for ids in ([1], [2], [3]):
        step(layer, tf.constant(ids), optimizer)
    assert [rows.keys.tolist() for rows in evicted] == [[1], [2]]
