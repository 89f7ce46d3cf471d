"""Training through an adapter is training the table: held against the oracle, bit for bit."""

import numpy as np
import pytest
from contract.tools import INT64, exported, live, meta, pending, snapshot
from property.pair import assert_same, assert_same_rows
from reference import ReferenceTable

import embstore as es

OPTIMIZERS = [
    es.SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    es.Adagrad(lr=0.1, initial_accumulator=0.1),
    es.RowWiseAdagrad(lr=0.1),
    es.Adam(lr=0.01, clip_norm=1.0),
    es.AdamW(lr=0.01, weight_decay=0.1),
    es.FTRL(lr=0.1, l1=0.01),
]
POLICIES = [
    {},
    {"admission": es.CounterAdmission(min_count=3)},
    {"admission": es.BloomAdmission(min_count=2, capacity=1000, fpr=0.01)},
    {"eviction": es.StepEviction(steps_to_live=3), "evict_every": 2},
    {"max_rows": 25, "on_full": "refuse"},
    {"max_rows": 40, "eviction": es.CapacityEviction(by="freq")},
]


class Twin:
    """An adapter and the oracle, told the same."""

    def __init__(self, make, padding_id=None, **config):
        self.adapter = make(padding_id=padding_id, **config)
        self.model = ReferenceTable(**config)
        self.padding_id = padding_id
        self.step = 0

    def train(self, ids, grads):
        self.adapter.train(ids, grads)
        flat, grads = ids.reshape(-1), grads.reshape(-1, self.model.dim)
        if self.padding_id is not None:
            grads, flat = grads[flat != self.padding_id], flat[flat != self.padding_id]
        batch = self.model.find_or_insert(flat, self.step)
        self.model.apply_gradients(batch, grads, self.step)
        self.step += 1

    def train_bags(self, ids, offsets, grads, mode, weights):
        self.adapter.train_bags(ids, offsets, grads, mode, weights)
        options = {"step": self.step, "padding": self.padding_id}
        batch = self.model.pooled(ids, offsets, mode, weights, **options)
        self.model.apply_gradients(batch, grads, self.step)
        self.step += 1

    def check(self):
        table = self.adapter.table
        rows = exported(table)
        assert len(table) == len(self.model) > 0
        assert_same_rows(rows, self.model.export(), "rows")
        state, stats = self.model.get_state(), table.stats()
        for name in ("n_train_steps", "n_inserted", "n_evicted", "n_refused", "n_grads_dropped"):
            assert stats[name] == getattr(state, name), name
        assert self.adapter.step == self.step


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: type(o).__name__)
def test_optimizers_train_as_the_oracle_does(make, optimizer):
    rng = np.random.default_rng(1)
    twin = Twin(make, dim=5, optimizer=optimizer)
    for shape in [(64,), (8, 5), (0,), (3, 1, 2), (1,), (), (200,)] * 2:
        ids = rng.integers(-9, 9, shape)
        twin.train(ids, rng.standard_normal((*shape, 5), np.float32))
        twin.check()


@pytest.mark.parametrize("policies", POLICIES, ids=lambda p: "-".join(p) or "none")
def test_policies_act_as_the_oracle_says(make, policies):
    rng = np.random.default_rng(2)
    twin = Twin(make, dim=2, optimizer=es.Adam(lr=0.05), padding_id=7, **policies)
    for k in range(20):
        ids = rng.zipf(1.5, (8, 3)).clip(1, 2**40) + 5 * k
        twin.train(ids, rng.standard_normal((8, 3, 2), np.float32))
        twin.check()


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize("padding_id", [None, 0])
def test_bags_train_as_the_oracle_says(make, mode, padding_id):
    rng = np.random.default_rng(3)
    admission = es.CounterAdmission(min_count=4)
    config = {"dim": 3, "optimizer": es.Adagrad(lr=0.1), "admission": admission}
    twin = Twin(make, padding_id, **config)
    for k in range(12):
        offsets = np.r_[0, rng.integers(0, 4, 10).cumsum()]
        ids = rng.integers(0, 12, offsets[-1])
        weights = rng.standard_normal(len(ids), np.float32) if k % 2 else None
        grads = rng.standard_normal((10, 3), np.float32)
        twin.train_bags(ids, offsets, grads, mode, weights)
        assert_same(
            twin.adapter.read_bags(ids, offsets, mode, weights),
            twin.model.pooled(ids, offsets, mode, weights, padding=padding_id),
            "pooled",
        )
    twin.check()


def test_gradients_of_duplicates_are_summed(make):
    embedding = make(initializer=es.Constant(0.0), optimizer=es.SGD(lr=1.0))
    ids = np.array([INT64.min, 3, INT64.min, INT64.min])
    embedding.train(ids, np.array([[1, 2], [5, 5], [10, 20], [100, 200]], np.float32))
    rows = embedding.table.find(np.array([INT64.min, 3]))
    np.testing.assert_array_equal(rows, [[-111, -222], [-5, -5]])


def test_the_gradient_of_an_id_without_a_row_is_dropped(make):
    embedding = make(
        initializer=es.Constant(0.0),
        optimizer=es.SGD(lr=1.0),
        admission=es.CounterAdmission(min_count=2),
    )
    embedding.train(np.array([1, 2, 2]), np.ones((3, 2), np.float32))
    assert (live(embedding.table), pending(embedding.table)) == ([2], {1: 1})
    assert embedding.table.stats()["n_grads_dropped"] == 1
    embedding.train(np.array([1]), np.full((1, 2), 10, np.float32))
    np.testing.assert_array_equal(embedding.table.find([1, 2]), [[-10, -10], [-2, -2]])


def test_an_empty_batch_is_a_step_that_changes_no_row(make):
    embedding = make()
    embedding.train(np.array([1]), np.ones((1, 2), np.float32))
    before = snapshot(embedding.table)
    embedding.train(np.empty(0, np.int64), np.empty((0, 2), np.float32))
    embedding.train(np.empty((3, 0), np.int64), np.empty((3, 0, 2), np.float32))
    assert snapshot(embedding.table)[:2] == before[:2]
    assert embedding.step == 3


@pytest.mark.parametrize("shape", [(1, 2), (4, 2), (3, 1), (3,), (2, 3)])
def test_gradients_of_another_shape_are_refused(make, shape):
    embedding = make()
    ids = np.array([1, 2, 3])
    embedding.lookup(ids)
    rows = embedding.table.find(ids)
    with pytest.raises((es.EmbstoreError, *embedding.refused)):
        embedding.train(ids, np.ones(shape, np.float32))
    np.testing.assert_array_equal(embedding.table.find(ids), rows)
    assert embedding.table.stats()["n_train_steps"] == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_raises_and_changes_no_row(make, bad):
    embedding = make()
    embedding.train(np.array([1, 2]), np.ones((2, 2), np.float32))
    rows = exported(embedding.table)
    with pytest.raises(es.NonFiniteError):
        embedding.train(np.array([1, 2]), np.array([[1, 1], [1, bad]], np.float32))
    now = exported(embedding.table)
    for name in ("keys", "values", "slots", "step"):
        np.testing.assert_array_equal(getattr(now, name), getattr(rows, name))
    assert embedding.table.stats()["n_train_steps"] == 1
    embedding.forget()
    embedding.train(np.array([1, 2]), np.ones((2, 2), np.float32))
    assert embedding.table.stats()["n_train_steps"] == 2


def test_gradients_wait_for_the_step_and_can_be_given_up(make):
    embedding = make(initializer=es.Constant(0.0), optimizer=es.SGD(lr=1.0))
    if not embedding.has_backward_alone:
        pytest.skip("this adapter trains in backward: there is nothing that waits")
    ids, ones = np.array([1, 2]), np.ones((2, 2), np.float32)
    embedding.backward(ids, ones)
    assert not embedding.table.find(ids).any()
    embedding.forget()
    embedding.apply()
    assert not embedding.table.find(ids).any()
    embedding.backward(ids, ones)
    embedding.backward(ids[:1], 10 * ones[:1])
    embedding.apply()
    np.testing.assert_array_equal(embedding.table.find(ids), [[-11, -11], [-1, -1]])


def test_steps_are_those_of_training_and_birth(make):
    embedding = make()
    for ids in ([1, 2], [1], [3], [1]):
        embedding.train(np.array(ids), np.ones((len(ids), 2), np.float32))
    assert meta(embedding.table, 1, 2, 3) == [(3, 3), (1, 0), (1, 2)]


def test_a_saved_table_goes_on_to_the_bit(make, adapter_class, tmp_path):
    rng = np.random.default_rng(4)
    config = {"dim": 4, "optimizer": es.Adam(lr=0.01), "seed": 5}
    config["admission"] = es.CounterAdmission(min_count=2)
    batches = [
        (rng.integers(0, 30, (8, 2)), rng.standard_normal((8, 2, 4), np.float32)) for _ in range(10)
    ]
    whole, begun = make(**config), make(**config)
    for ids, grads in batches:
        whole.train(ids, grads)
    for ids, grads in batches[:5]:
        begun.train(ids, grads)
    begun.table.save(tmp_path / "saved")
    with es.Table.load(tmp_path / "saved") as table:
        resumed = adapter_class(table)
        assert resumed.step == 5
        for ids, grads in batches[5:]:
            resumed.train(ids, grads)
        assert_same_rows(exported(table), exported(whole.table), "rows")
        assert pending(table) == pending(whole.table)
        assert table.stats()["n_train_steps"] == 10
