"""What brings weights and no rows, and what else is refused rather than read wrongly."""

import numpy as np
import pytest

tf = pytest.importorskip(
    "tensorflow", reason="TensorFlow is not installed: its weights are untested"
)

import keras  # noqa: E402

import embstore as es  # noqa: E402
from embstore.tensorflow import Embedding, EmbeddingBag, Optimizer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
IDS, LABELS = np.arange(64) % 20, np.ones((64, 1), np.float32)


def trained_model(rate=0.1):
    layer = Embedding(dim=2, optimizer=es.Adagrad(lr=0.1), name="user")
    ids = keras.Input((), dtype="int64")
    model = keras.Model(ids, keras.layers.Dense(1)(layer(ids)))
    model.compile(optimizer=Optimizer(keras.optimizers.SGD(rate)), loss="mse")
    model.fit(IDS, LABELS, verbose=0)
    return model, layer


@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_weights_of_an_earlier_time_are_refused_by_a_model_whose_graphs_are_traced(tmp_path):
    model, layer = trained_model()
    model.save_weights(tmp_path / "early.weights.h5")
    layer.table.save(tmp_path / "early")
    early = model.predict(IDS, verbose=0)
    model.fit(IDS, LABELS, verbose=0)
    with pytest.raises(ValueError, match="bring none of them"):
        model.load_weights(tmp_path / "early.weights.h5")
    layer.table.restore(tmp_path / "early")
    model.load_weights(tmp_path / "early.weights.h5")
    np.testing.assert_array_equal(model.predict(IDS, verbose=0), early)


def test_early_stopping_that_sets_the_dense_part_back_says_that_tables_stay():
    model, _ = trained_model(rate=50.0)
    stop = keras.callbacks.EarlyStopping("loss", patience=1, restore_best_weights=True)
    with pytest.warns(es.EmbstoreWarning, match="'user' keeps"):
        model.fit(IDS, LABELS, epochs=5, verbose=0, callbacks=[stop])


def test_sparse_ids_out_of_order_are_refused():
    bag = EmbeddingBag(dim=2, default_row=1.0)
    ids = tf.SparseTensor([[1, 0], [0, 0]], tf.constant([1, 2], tf.int64), [2, 1])
    for call in (bag, tf.function(bag.__call__)):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"tf\.sparse\.reorder"):
            call(ids)
    np.testing.assert_array_equal(bag(tf.sparse.reorder(ids)), np.ones((2, 2)))


def test_weights_that_lie_elsewhere_than_the_ids_are_refused():
    bag = EmbeddingBag(dim=2, default_row=1.0)
    ids = tf.ragged.constant([[1, 2], [3]], dtype=tf.int64)
    weights = tf.ragged.constant([[1.0], [2.0, 3.0]])
    for call in (bag, tf.function(bag.__call__)):
        for given in ((ids, weights), (ids.to_sparse(), weights.to_sparse())):
            with pytest.raises(tf.errors.InvalidArgumentError, match="lie where the ids do"):
                call(*given)
    spec = tf.TensorSpec((None, None), tf.int64), tf.TensorSpec((None, None), tf.float32)
    graph = tf.function(bag.__call__, input_signature=spec)
    assert graph(tf.constant([[1, 2]], tf.int64), tf.constant([[1.0, 2.0]])).numpy().tolist() == [
        [1.5, 1.5]
    ]
    with pytest.raises(tf.errors.InvalidArgumentError, match="one for each id"):
        graph(tf.constant([[1, 2]], tf.int64), tf.zeros((0, 2)))
