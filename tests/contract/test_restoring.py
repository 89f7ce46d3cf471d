"""restore: a table becomes another in place, on its own engine."""

import numpy as np
import pytest
from contract.tools import ids, rows_of

import embstore as es


def train(table, step):
    batch = table.find_or_insert(ids(step, 5, 6), step=step)
    table.apply_gradients(batch, rows_of(1, 2, 4), step=step)
    return batch


@pytest.fixture
def saved(tmp_path):
    """A table of the CPU after three steps, which is saved in tmp_path."""
    with es.Table(2, optimizer=es.Adam(lr=0.1), initializer=es.Constant(1.0)) as table:
        table.pin([5])
        for step in range(3):
            train(table, step)
        table.save(tmp_path)
        yield table


def test_training_goes_on_from_what_was_saved(make_table, engine, saved, tmp_path):
    table = make_table(optimizer=es.Adam(lr=0.1))
    for step in range(9):
        train(table, step)
    table.restore(tmp_path)
    assert (len(table), table.step, table.pinned.tolist()) == (5, 2, [5])
    for step in range(3, 6):
        train(table, step)
        train(saved, step)
    for mine, theirs in zip(table.export(), saved.export(), strict=True):
        for name in ("keys", "values", "slots", "freq", "step"):
            assert np.array_equal(getattr(mine, name), getattr(theirs, name)), name
    assert (table.device, table.strict) == (engine, True)


def test_batches_of_before_a_restore_raise(make_table, saved, tmp_path):
    table = make_table(optimizer=es.Adam(lr=0.1))
    batch = train(table, 0)
    table.restore(tmp_path)
    before = table.find(ids(0, 5, 6)).tolist()
    with pytest.raises(es.TicketError):
        table.apply_gradients(batch, rows_of(1, 2, 4), step=9)
    assert table.find(ids(0, 5, 6)).tolist() == before
    assert table.step == 2


def test_a_restore_that_fails_changes_nothing(make_table, saved, tmp_path):
    table = make_table(dim=3)
    table.assign(ids(7), np.ones((1, 3), np.float32))
    with pytest.raises(es.CheckpointMismatchError, match="dim"):
        table.restore(tmp_path)
    assert table.find(ids(7)).tolist() == [[1, 1, 1]]


def test_a_table_with_captured_graphs_is_not_restored(make_table, engine, saved, tmp_path):
    if engine == "cpu":
        pytest.skip("graphs are of a card")
    table = make_table(optimizer=es.Adam(lr=0.1))
    with table.capturing():
        pass
    with pytest.raises(es.ArgumentError, match="CUDA graph"):
        table.restore(tmp_path)
