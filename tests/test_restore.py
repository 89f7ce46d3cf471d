"""Table.restore and Store.restore: another content in place, or the same as before and an error."""

import threading

import numpy as np
import pytest

import embstore as es

OPTIMIZER = es.Adam(lr=0.1)


def make(name="user", **parameters):
    parameters = {"optimizer": OPTIMIZER, "admission": es.CounterAdmission(2)} | parameters
    return es.Table(dim=3, name=name, **parameters)


def trained(seed, name="user", n_steps=3, **parameters):
    table = make(name, **parameters)
    table.pin([5, seed])
    for step in range(n_steps):
        train(table, step, seed)
    return table


def train(table, step, seed=0):
    keys = np.random.default_rng((seed, step)).integers(0, 60, 100)
    batch = table.find_or_insert(keys, step=step)
    table.apply_gradients(batch, np.ones((100, table.dim), np.float32), step=step, lr=0.1)
    return batch


def columns_of(rows):
    return rows.keys, rows.values, rows.slots, rows.freq, rows.step


def contents(table):
    """All that can be seen of a table, but for the bytes of its index."""
    columns = zip(*map(columns_of, table.export(pending=True)), strict=True)
    rows = [np.concatenate(column) for column in columns]
    is_of_index = ("nbytes", "n_cells", "n_tombstones", "load_factor")
    stats = {k: v for k, v in table.stats().items() if not k.startswith(is_of_index)}
    return [*(r.tolist() for r in rows), table.pinned.tolist(), table.config(), stats]


@pytest.mark.parametrize("admission", [es.CounterAdmission(2), es.BloomAdmission(2, 1000), None])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_restored_table_is_what_load_gives_and_trains_on_to_the_bit(tmp_path, admission, dtype):
    saved = trained(1, admission=admission, dtype=dtype)
    saved.save(tmp_path)
    table = trained(2, n_steps=5, admission=admission, dtype=dtype)
    table.restore(tmp_path)
    assert contents(table) == contents(es.Table.load(tmp_path)) == contents(saved)
    for step in range(3, 6):
        train(table, step)
        train(saved, step)
    assert contents(table) == contents(saved)


def test_parameters_come_from_the_checkpoint_and_the_process_keeps_its_own(tmp_path):
    trained(1, eviction=es.StepEviction(7), max_rows=500, optimizer=es.Adagrad(lr=0.5)).save(
        tmp_path
    )
    taken = []
    table = trained(2, on_evict=taken.append, hash_seed=9)
    table.restore(tmp_path)
    assert table.config() == es.Table.load(tmp_path).config()
    assert (table.lr, table.slots) == (0.5, (("accumulator", 3),))
    report = table.evict(step=100)
    assert len(taken) == 1
    assert len(taken[0]) == report.n_evicted > 0


def test_a_schedule_of_the_table_stays_where_the_checkpoint_has_none(tmp_path):
    trained(1, optimizer=es.Adam(lr=lambda step: 0.1)).save(tmp_path / "schedule")
    trained(1).save(tmp_path / "number")

    def schedule(step):
        return 0.25

    table = trained(2, optimizer=es.Adam(lr=schedule))
    table.restore(tmp_path / "schedule")
    assert table.lr is schedule
    table.restore(tmp_path / "number")
    assert table.lr == 0.1
    table.restore(tmp_path / "schedule")
    assert table.lr is None


def test_batches_of_before_raise(tmp_path):
    trained(1, admission=None).save(tmp_path)
    table = make(admission=None)
    batch = table.find_or_insert([1, 2], step=0)
    table.restore(tmp_path)
    before = contents(table)
    with pytest.raises(es.TicketError, match=r"another table|before"):
        table.apply_gradients(batch, np.ones((2, 3), np.float32), step=9)
    assert contents(table) == before


@pytest.mark.parametrize("other", [{"name": "item"}, {"dtype": "float16"}])
def test_another_name_or_dtype_is_refused_and_nothing_changes(tmp_path, other):
    trained(1, **other).save(tmp_path)
    table = trained(2)
    before = contents(table)
    (what,) = other
    with pytest.raises(es.CheckpointMismatchError, match=rf"Table\.restore: .*{what}='"):
        table.restore(tmp_path)
    assert contents(table) == before


def test_another_dim_is_refused_and_nothing_changes(tmp_path):
    es.Table(dim=2, name="user").save(tmp_path)
    table = trained(2)
    before = contents(table)
    with pytest.raises(es.CheckpointMismatchError, match="dim=2; the table has dim=3"):
        table.restore(tmp_path)
    assert contents(table) == before


def test_a_damaged_file_is_refused_and_nothing_changes(tmp_path):
    trained(1).save(tmp_path)
    table = trained(2)
    batch = table.find_or_insert([1, 2], step=3)
    before = contents(table)
    files = [file for file in sorted(tmp_path.iterdir()) if file.stat().st_size]
    assert len(files) >= 3
    for file in files:
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[len(whole) // 2] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(es.CheckpointError):
            table.restore(tmp_path)
        file.write_bytes(whole)
        assert contents(table) == before
    table.apply_gradients(batch, np.ones((2, 3), np.float32), step=3)  # its tickets live
    table.restore(tmp_path)


def test_a_closed_table_is_not_restored(tmp_path):
    table = trained(1)
    table.save(tmp_path)
    table.close()
    with pytest.raises(es.ClosedTableError):
        table.restore(tmp_path)


def test_of_several_tables_that_of_the_same_name_is_taken(tmp_path):
    user, item = trained(1), trained(2, "item")
    es.Store({"a": user, "user": item}).save(tmp_path)
    other = trained(3, "item")
    with pytest.raises(es.ArgumentError, match=r"name is needed.*'a', 'user'"):
        other.restore(tmp_path)
    other.restore(tmp_path, name="user")
    assert contents(other) == contents(item)
    es.Store([user, item]).save(tmp_path)
    again = trained(4)
    again.restore(tmp_path)
    assert contents(again) == contents(user)


def test_deltas_go_on_from_what_was_restored(tmp_path):
    saved = trained(1, track_changes=True)
    saved.save(tmp_path)
    table = trained(2, track_changes=True)
    table.save(tmp_path / "own")
    table.restore(tmp_path)
    train(table, 3)
    assert table.save(tmp_path, delta=True).kind == "delta"
    assert contents(es.Table.load(tmp_path)) == contents(table)
    assert table.save(tmp_path / "own", delta=True).kind == "full"


def test_readers_see_one_table_or_the_other(tmp_path):
    keys = np.arange(3000)
    for value in (1.0, 2.0):
        with es.Table(dim=8, name="user") as table:
            table.assign(keys, np.full((3000, 8), value, np.float32))
            table.save(tmp_path / str(int(value)))
    table = es.Table.load(tmp_path / "1")
    is_over = threading.Event()
    faults = []

    def read():
        while not is_over.is_set():
            found = np.unique(table.find(keys)).tolist()
            exported = {
                float(v) for rows in table.export(batch_rows=100) for v in rows.values[:, 0]
            }
            if found not in ([1.0], [2.0]) or exported not in ({1.0}, {2.0}):
                faults.append((found, exported))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for n in range(10):
            table.restore(tmp_path / str(n % 2 + 1))
    finally:
        is_over.set()
        reader.join()
    assert faults == []
    assert table.find([7])[0, 0] == 2.0


def test_a_save_that_runs_is_of_the_table_that_it_cut(tmp_path):
    trained(1, track_changes=True).save(tmp_path / "other")
    table = trained(2, track_changes=True)
    before = contents(table)
    handle = table.save_async(tmp_path / "running", io_share=0.05)
    table.restore(tmp_path / "other")
    handle.wait()
    assert contents(es.Table.load(tmp_path / "running"))[:7] == before[:7]
    train(table, 3)
    assert table.save(tmp_path / "other", delta=True).kind == "delta"


def test_a_store_is_restored_at_one_moment_with_its_extra(tmp_path):
    saved = es.Store([trained(1), trained(2, "item")])
    saved.save(tmp_path, extra={"epoch": 7})
    store = es.Store([trained(3, "item"), trained(4)], features={"u": "user"})
    store.restore(tmp_path)
    assert store.extra == {"epoch": 7}
    assert store.features == {"u": "user"}
    for name in ("user", "item"):
        assert contents(store[name]) == contents(saved[name])


def test_a_store_of_which_one_table_fails_stays_whole(tmp_path):
    es.Store([trained(1), trained(2, "item", dtype="float16")]).save(tmp_path / "dtype")
    es.Store([trained(1)]).save(tmp_path / "fewer")
    store = es.Store([trained(3), trained(4, "item")])
    before = [contents(store[name]) for name in store]
    with pytest.raises(es.CheckpointMismatchError, match=r"Store\.restore: .*dtype='float16'"):
        store.restore(tmp_path / "dtype")
    with pytest.raises(es.CheckpointMismatchError, match=r"\['user'\].*\['item', 'user'\]"):
        store.restore(tmp_path / "fewer")
    assert [contents(store[name]) for name in store] == before
    assert store.extra is None
