"""Calls that are captured in a graph, and replayed after the table has grown."""

import numpy as np
import pytest
from emulator.card_kit import DIM, get, put, table_on
from property.pair import assert_same_rows, exported

import embstore as es

STREAM, OTHER = 100, 101
N = 200


def batches(n_steps, n_keys=3000):
    rng = np.random.default_rng(5)
    for step in range(n_steps):
        yield step, rng.integers(0, n_keys, N), rng.standard_normal((N, DIM), np.float32)


class Step:
    """A training step, captured: find_or_insert, apply_gradients, and a find of the same keys."""

    def __init__(self, card, table):
        self.card, self.table = card, table
        self.keys = put(card, np.zeros(N, np.int64), STREAM)
        self.grads = put(card, np.zeros((N, DIM), np.float32), STREAM)
        self.out = put(card, np.zeros((N, DIM), np.float32), STREAM)
        self.found = put(card, np.zeros((N, DIM), np.float32), STREAM)
        queue = card.queue(STREAM)
        with table.capturing():
            self.run()
            queue.begin_capture()
            self.run()
            self.graph = queue.end_capture()

    def run(self):
        batch = self.table.find_or_insert(self.keys, step=0, out=self.out, stream=STREAM)
        self.table.apply_gradients(batch, self.grads, step=0, stream=STREAM)
        self.table.find(self.keys, out=self.found, stream=STREAM)

    def replay(self, step, keys, grads, lr=None):
        queue = self.card.queue(STREAM)
        queue.upload(self.keys.memory.address, keys)
        queue.upload(self.grads.memory.address, grads)
        with self.table.replaying(step=step, lr=lr, stream=STREAM):
            self.graph()


OPTIMIZERS = [
    es.Adam(lr=0.1),
    es.Adagrad(lr=lambda step: 0.1 / (1 + step)),
    es.SGD(0.1, momentum=0.9),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=["adam", "schedule", "momentum"])
@pytest.mark.parametrize("admission", [None, es.CounterAdmission(2), es.BloomAdmission(2, 9000)])
def test_a_captured_step_is_the_step(card, optimizer, admission):
    more = {"optimizer": optimizer, "admission": admission}
    here, there = table_on("cpu", **more), table_on("cuda", **more)
    zeros = np.zeros(N, np.int64)
    batch = here.find_or_insert(zeros, step=0)
    here.apply_gradients(batch, np.zeros((N, DIM), np.float32), step=0)
    captured = Step(card, there)
    for step, keys, grads in batches(12):
        expected = here.find_or_insert(keys, step=step)
        here.apply_gradients(expected, grads, step=step)
        captured.replay(step, keys, grads)
        np.testing.assert_array_equal(get(card, captured.out), expected.rows)
        np.testing.assert_array_equal(get(card, captured.found), here.find(keys))
        if step == 5:  # calls without a graph go between, and the table grows
            others = np.arange(5000, 9000)
            for table in (here, there):
                table.find_or_insert(others, step=step)
    assert_same_rows(exported(there), exported(here), "rows")
    ours, theirs = there._engine.get_state(), here._engine.get_state()
    for name in ("step", "n_train_steps", "n_inserted", "beta1_power", "n_grads_dropped"):
        assert ours[name] == theirs[name], name


def test_a_replay_beside_a_save(card, tmp_path):
    there = table_on("cuda")
    captured = Step(card, there)
    for step, keys, grads in batches(3):
        captured.replay(step, keys, grads)
    before = exported(there)
    snapshot = there._engine.snapshot(False, 1 << 20, -1)
    for step, keys, grads in batches(6):
        captured.replay(step + 3, keys, grads)
    n = snapshot.stats()["n_rows"]
    found = es.Rows(*snapshot.rows(0, n, 1))
    assert_same_rows(found, before, "the cut")
    snapshot.end(True)


def test_what_is_due_is_done_before_a_replay(card):
    more = {"eviction": es.StepEviction(2), "evict_every": 3}
    here, there = table_on("cpu", **more), table_on("cuda", **more)
    batch = here.find_or_insert(np.zeros(N, np.int64), step=0)
    here.apply_gradients(batch, np.zeros((N, DIM), np.float32), step=0)
    captured = Step(card, there)
    for step, keys, grads in batches(12):
        here.apply_gradients(here.find_or_insert(keys, step=step), grads, step=step)
        captured.replay(step, keys, grads)
    assert here.stats()["n_evicted"] > 0
    assert_same_rows(exported(there), exported(here), "rows")


def test_a_captured_find(card):
    there = table_on("cuda")
    keys, out = put(card, np.arange(N), STREAM), put(card, np.zeros((N, DIM), np.float32), STREAM)
    queue = card.queue(STREAM)
    with there.capturing():
        there.find(keys, out=out, stream=STREAM)
        queue.begin_capture()
        there.find(keys, out=out, stream=STREAM)
        graph = queue.end_capture()
    for step in range(3):
        there.assign(np.arange(N), np.full((N, DIM), step, np.float32))
        with there.replaying(stream=STREAM):
            graph()
        assert (get(card, out) == step).all()


def test_what_cannot_be_captured_is_refused(card):
    there = table_on("cuda", max_rows=250)
    queue = card.queue(STREAM)
    keys = put(card, np.arange(N), STREAM)
    queue.begin_capture()
    with pytest.raises(es.ArgumentError, match="capturing"):
        there.find_or_insert(keys, step=0, stream=STREAM)
    queue.end_capture()
    with there.capturing():
        there.find_or_insert(keys, step=0, stream=STREAM)
        queue.begin_capture()
        with pytest.raises(es.ArgumentError, match="arrays of the card"):
            there.find_or_insert(np.arange(N), step=0, stream=STREAM)
        out = put_captured(card, keys, there)
        graph = queue.end_capture()
        with pytest.raises(es.ArgumentError, match="inside another"):
            with there.capturing():
                pass
    assert out is not None
    with pytest.raises(es.ArgumentError, match="max_rows"):
        with there.replaying(step=1, stream=STREAM):
            graph()
    for verb in ("capturing", "replaying"):
        with pytest.raises(es.ArgumentError, match="on the cpu"):
            with getattr(table_on("cpu"), verb)():
                pass


def put_captured(card, keys, table):
    """Capture an insert into memory that was there before."""
    queue = card.queue(STREAM)
    graph, queue.graph = queue.graph, None
    out = put(card, np.zeros((N, DIM), np.float32), STREAM)
    queue.graph = graph
    return table.find_or_insert(keys, step=0, out=out, stream=STREAM)
