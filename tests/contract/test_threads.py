"""Batches that are big enough for several threads: what they give is that of one thread."""

import itertools
import threading

import numpy as np
import pytest
from contract.tools import snapshot

import embstore as es

N = 20_000  # keys of a batch


@pytest.fixture
def keys():
    """A batch with many duplicates."""
    return np.random.default_rng(3).integers(-4000, 4000, N)


def first_occurrences(keys):
    """Return the distinct keys by first occurrence, and the place of each key among them."""
    distinct, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return distinct[order], place[inverse]


@pytest.mark.parametrize("n_threads", [1, 2, 3, 16])
def test_distinct_keys_are_in_order_of_first_occurrence(make_table, threads, keys, n_threads):
    threads(n_threads)
    batch = make_table().find_or_insert(keys, step=0)
    distinct, inverse = first_occurrences(keys)
    assert np.array_equal(batch.keys, distinct)
    assert np.array_equal(batch.inverse, inverse)


@pytest.mark.parametrize("n_threads", [1, 2, 3, 16])
def test_the_first_keys_get_what_room_there_is(make_table, threads, keys, n_threads):
    threads(n_threads)
    table = make_table(max_rows=1000, on_full="refuse")
    batch = table.find_or_insert(keys, step=0)
    distinct, _ = first_occurrences(keys)
    assert np.array_equal(
        table.find(distinct, missing="default")[:, 0] != 0, np.arange(len(distinct)) < 1000
    )
    assert (batch.n_inserted, batch.n_refused) == (1000, len(distinct) - 1000)


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_the_first_key_whose_gradient_is_not_finite_is_named(make_table, threads, keys, n_threads):
    threads(n_threads)
    table = make_table(optimizer=es.SGD(1.0))
    batch = table.find_or_insert(keys, step=0)
    before = snapshot(table)
    grads = np.zeros((N, 2), np.float32)
    grads[[5000, 700, 19_000]] = np.nan
    with pytest.raises(es.NonFiniteError, match=f"key {keys[700]} "):
        table.apply_gradients(batch, grads, step=0)
    assert snapshot(table) == before


@pytest.mark.parametrize(("forward", "backward"), [(1, 3), (3, 1), (2, 5)])
def test_the_number_of_threads_may_change_after_the_forward_pass(
    make_table, threads, keys, forward, backward
):
    tables = [make_table(optimizer=es.Adagrad(0.1)) for _ in range(2)]
    grads = np.random.default_rng(1).standard_normal((N, 2), np.float32)
    for table, numbers in zip(tables, [(1, 1), (forward, backward)], strict=True):
        threads(numbers[0])
        batch = table.find_or_insert(keys, step=0)
        table.erase(keys[:100])
        threads(numbers[1])
        report = table.apply_gradients(batch, grads, step=0)
        assert report.n_stale == len(np.unique(keys[:100]))
    assert snapshot(tables[0]) == snapshot(tables[1])


@pytest.mark.parametrize("n_threads", [2, 3])
def test_counts_of_duplicates_are_added(make_table, threads, keys, n_threads):
    threads(n_threads)
    table = make_table(admission=es.CounterAdmission(30))
    counts = np.random.default_rng(2).integers(1, 9, N, dtype=np.uint32)
    batch = table.find_or_insert(keys, counts=counts, step=0)
    distinct, inverse = first_occurrences(keys)
    sums = np.bincount(inverse, counts)
    assert np.array_equal(batch.status == es.KeyStatus.INSERTED, sums >= 30)
    found = table.find(distinct, with_meta=True)
    assert np.array_equal(found.freq, np.where(sums >= 30, sums, 0))


@pytest.mark.parametrize("n_threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bags_are_pooled_as_their_rows(make_table, threads, keys, n_threads, dtype):
    threads(n_threads)
    table = make_table(dim=5, dtype=dtype, initializer=es.Normal(std=1.0), default_row=0.5)
    table.find_or_insert(keys[: N // 2], step=0)
    sizes = np.r_[0, 5000, np.random.default_rng(4).integers(0, 9, 3000)]
    offsets = np.r_[0, np.cumsum(sizes)]
    bags = np.r_[keys, keys][: offsets[-1]]
    weights = np.random.default_rng(5).random(len(bags), np.float32)
    rows = np.asarray(table.find(bags), np.float32)
    for given in (None, weights):
        pooled = table.pooled(bags, offsets, mode="sum", weights=given)
        weighted = rows if given is None else rows * given[:, None]
        for bag in (0, 1, 2, len(sizes) - 1):
            whole = weighted[offsets[bag] : offsets[bag + 1]]
            assert np.allclose(pooled[bag], whole.sum(axis=0, dtype=np.float64), atol=1e-3)
    threads(1)
    assert np.array_equal(pooled, table.pooled(bags, offsets, mode="sum", weights=weights))


def test_the_number_of_threads_may_change_at_any_time(make_table, threads, keys):
    tables = [make_table(dim=3, optimizer=es.Adagrad(0.1)) for _ in range(2)]
    grads = np.random.default_rng(1).standard_normal((N, 3), np.float32)
    offsets = np.r_[0, 3000, np.arange(3000, N + 1, 10)]  # one bag is longer than any chunk

    def train(table):
        pooled = []
        for step in range(15):
            batch = table.find_or_insert(keys + 1000 * step, step=step)
            table.apply_gradients(batch, grads, step=step)
            table.assign(keys[:9000], grads[:9000], step=step)
            pooled.append(table.pooled(keys, offsets, mode="mean"))
        return np.array(pooled)

    threads(1)
    expected = train(tables[0])
    is_done = threading.Event()

    def change():
        for n_threads in itertools.cycle([1, 7, 2, 16, 3]):
            es.set_num_threads(n_threads)
            if is_done.wait(0.0002):
                return

    changer = threading.Thread(target=change)
    changer.start()
    try:
        assert np.array_equal(train(tables[1]), expected)
    finally:
        is_done.set()
        changer.join()
    assert snapshot(tables[0]) == snapshot(tables[1])


def test_rows_of_bags_are_whole_beside_a_writer(make_table, threads):
    threads(2)
    table = make_table(dim=32)
    keys = np.arange(6000)
    table.find_or_insert(keys, step=0)
    bags = np.r_[np.arange(0, 3001), 6000]  # one key each, and a long one
    is_done = threading.Event()

    def write():
        for value in itertools.cycle([1.0, 2.0]):
            table.assign(keys, np.full((len(keys), 32), value, np.float32), step=1)
            if is_done.is_set():
                return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(50):
            pooled = table.pooled(keys, bags, mode="mean")
            assert np.isin(pooled[:-1], [1.0, 2.0]).all()
            assert (pooled[:-1] == pooled[:-1, :1]).all()
            assert ((pooled[-1] >= 1.0) & (pooled[-1] <= 2.0)).all()
    finally:
        is_done.set()
        writer.join()
