"""save and load from the front: what comes back with a table, and what has to be given again."""

import threading

import numpy as np
import pytest

import embstore as es


def trained(optimizer=None, **parameters):
    """A table after two steps, with rows, pending keys and pins."""
    parameters = {"name": "user", "admission": es.CounterAdmission(2), "seed": 3} | parameters
    table = es.Table(dim=3, optimizer=optimizer or es.Adam(lr=0.1), **parameters)
    table.pin([5])
    for step in range(2):
        train(table, step)
    return table


def train(table, step):
    keys = np.random.default_rng(step).integers(0, 50, 100)
    batch = table.find_or_insert(keys, step=step)
    return table.apply_gradients(batch, np.ones((100, 3), np.float32), step=step, lr=0.1)


def contents(table):
    rows = [np.concatenate(c) for c in zip(*map(columns, table.export(pending=True)), strict=True)]
    return [*map(np.ndarray.tolist, rows), table.pinned.tolist(), table.config(), table.stats()]


def columns(rows):
    return rows.keys, rows.values, rows.slots, rows.freq, rows.step


@pytest.mark.promise("R2", "training after a load, against training that never stopped")
@pytest.mark.parametrize("admission", [None, es.CounterAdmission(2), es.BloomAdmission(2, 100)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_training_goes_on_as_if_it_had_never_stopped(tmp_path, admission, dtype):
    table = trained(admission=admission, dtype=dtype, eviction=es.StepEviction(3), evict_every=2)
    table.save(tmp_path)
    with es.Table.load(tmp_path) as again:
        for step in range(2, 6):
            assert train(again, step) == train(table, step)
        for mine, theirs in zip(contents(again)[:-1], contents(table)[:-1], strict=True):
            assert mine == theirs
        assert again.step == table.step
    table.close()


def test_a_schedule_is_given_again(tmp_path):
    with trained(es.Adam(lr=lambda step: 0.1)) as table:
        table.save(tmp_path)
    with es.Table.load(tmp_path) as table:
        assert table.lr is None
        with pytest.raises(es.ArgumentError, match="no learning rate"):
            table.apply_gradients([1], np.ones((1, 3), np.float32), step=9)
    schedule = es.Adam(lr=lambda step: 0.25)
    with es.Table.load(tmp_path, optimizer=schedule) as table:
        assert table.lr is schedule.lr
        table.apply_gradients([1], np.ones((1, 3), np.float32), step=9)
    with es.Table.load(tmp_path, optimizer=es.Adam(lr=0.5)) as table:
        assert table.config()["optimizer"]["lr"] == 0.5
    for other in (es.Adam(eps=1e-3), es.Adagrad()):
        with pytest.raises(es.CheckpointMismatchError, match="may differ in lr alone"):
            es.Table.load(tmp_path, optimizer=other)


def test_a_table_of_a_store_is_loaded_by_name(tmp_path):
    with trained() as user, es.Table(dim=2, name="item") as item:
        es.Store([user, item]).save(tmp_path)
        with pytest.raises(es.ArgumentError, match=r"name is needed.*\['user', 'item'\]"):
            es.Table.load(tmp_path)
        with pytest.raises(es.CheckpointMismatchError, match="movie"):
            es.Table.load(tmp_path, name="movie")
        with es.Table.load(tmp_path, name="user") as again:
            assert contents(again)[:5] == contents(user)[:5]


def test_a_store_comes_back_with_features_and_extra(tmp_path):
    extra = {"epoch": 3, "auc": [0.5, 0.75], "dense.w": np.arange(6.0).reshape(2, 3)}
    tables = [trained(), es.Table(dim=2, name="item")]
    with es.Store(tables, {"u": "user", "shown": "item", "bought": "item"}) as store:
        store.save(tmp_path, extra=extra)
        taken = []
        with es.Store.load(tmp_path, on_evict={"user": taken.append}) as again:
            assert again.features == store.features
            assert again.names == store.names
            assert (again.extra["epoch"], again.extra["auc"]) == (3, [0.5, 0.75])
            assert np.array_equal(again.extra["dense.w"], extra["dense.w"])
            assert again["user"].find([1]).tolist() == store["user"].find([1]).tolist()
            again["user"].evict(es.StepEviction(0), step=100)
            assert len(taken) == 1
        with pytest.raises(es.ArgumentError, match=r"on_evict names \['movie'\]"):
            es.Store.load(tmp_path, on_evict={"movie": taken.append})


def test_a_store_of_one_table_is_made_from_its_checkpoint(tmp_path):
    with trained() as table:
        table.save(tmp_path, extra={"epoch": 1})
    with es.Store.load(tmp_path) as store:
        assert store.features == {"user": "user"}
        assert store.extra == {"epoch": 1}


def test_save_evicts_first_if_asked(tmp_path):
    with trained(eviction=es.StepEviction(0)) as table:
        n_before = len(table)
        table.save(tmp_path)
        assert len(table) == n_before
        table.save(tmp_path, evict=True)
        with es.Table.load(tmp_path) as again:
            assert 0 < len(again) == len(table) < n_before
    with trained() as table:
        with pytest.raises(es.ArgumentError, match="where is needed"):
            table.save(tmp_path, evict=True)


def test_a_hash_seed_is_not_saved(tmp_path):
    secret = 0x0123456789ABCDEF0123456789ABCDEF
    with trained(hash_seed=secret) as table:
        table.save(tmp_path / "a")
    with trained(hash_seed=1) as table:
        table.save(tmp_path / "b")
    files = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert files
    for data in files.values():
        for form in (secret.to_bytes(16, "little"), secret.to_bytes(16, "big"), b"%d" % secret):
            assert form not in data
    with es.Table.load(tmp_path / "a", hash_seed=7) as a, es.Table.load(tmp_path / "b") as b:
        assert contents(a)[:5] == contents(b)[:5]


@pytest.mark.promise("R3", "saves beside a training thread")
def test_a_save_is_one_moment_beside_writers(tmp_path):
    """Rows of two tables that are written together in turn are never two steps apart."""
    optimizer = es.SGD(lr=1.0)
    names = ("a", "b")
    keys = np.arange(500)
    tables = [
        es.Table(dim=1, name=n, optimizer=optimizer, initializer=es.Constant(0.0)) for n in names
    ]
    with es.Store(tables) as store:
        store.find_or_insert_many(dict.fromkeys(names, keys), step=0)
        is_over = threading.Event()

        def write():
            grads = dict.fromkeys(names, np.full((500, 1), -1.0, np.float32))
            step = 0
            while not is_over.is_set():
                step += 1
                store.apply_gradients_many(dict.fromkeys(names, keys), grads, step=step)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for n in range(5):
                store.save(tmp_path / str(n))
        finally:
            is_over.set()
            writer.join()
        for n in range(5):
            with es.Store.load(tmp_path / str(n)) as saved:
                a, b = (np.unique(saved[name].find(keys)) for name in names)
                assert len(a) == len(b) == 1  # no row of another step
                assert a[0] - b[0] in (0, 1)
                assert (saved["a"].step, saved["b"].step) == (a[0], b[0])


def test_a_step_far_beyond_the_rows_loads(tmp_path):
    """An eviction moves the table's step, and not the base that the steps of rows are kept by."""
    table = es.Table(2)
    table.find_or_insert(np.array([7]), step=3)
    table.evict(es.StepEviction(0), step=2**40, max_rows=0)
    table.save(tmp_path / "far")
    loaded = es.Table.load(tmp_path / "far")
    assert (loaded.step, loaded.find(np.array([7]), with_meta=True).step.tolist()) == (2**40, [3])
