"""embstore.jax at its borders: what it refuses, and how its ops are built or done without."""

import contextlib
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed: embstore.jax is untested")

import jax.numpy as jnp  # noqa: E402
from contract.tools import snapshot  # noqa: E402

import embstore as es  # noqa: E402
from embstore.cli import main  # noqa: E402
from embstore.jax import (  # noqa: E402
    build_op,
    embed,
    fallback,
    find,
    first_step,
    lookup,
    names,
    pooled,
    update,
)
from embstore.jax.names import NamedTable  # noqa: E402

jax.config.update("jax_enable_x64", True)


@pytest.fixture(params=["native", "fallback"])
def table(request):
    """A table that is served by the native ops, or without."""
    with es.Table(2, optimizer=es.SGD(lr=1.0), initializer=es.Constant(1.0)) as made:
        if request.param == "fallback":
            NamedTable.of(made, "test").ops = fallback
        yield made


def test_without_x64_nothing_is_looked_up(table):
    with jax.enable_x64(False):
        for call in (
            lambda: find(table, np.array([1], np.int32)),
            lambda: lookup(table, np.array([2**40]), 0),
            lambda: pooled(table, np.array([[1]])),
            lambda: first_step(table),
            lambda: jax.jit(lambda ids: lookup(table, ids, 0)[0])(np.array([2**40])),
        ):
            with pytest.raises(es.ArgumentError, match="jax_enable_x64"):
                call()
    assert len(table) == 0


def test_a_ticket_is_good_for_one_update_of_its_table(table):
    grads = np.ones((2, 2), np.float32)
    with es.Table(2, optimizer=es.SGD(lr=1.0)) as other:
        if NamedTable.of(table, "test").ops is fallback:
            NamedTable.of(other, "test").ops = fallback
        _, ticket = lookup(table, [1, 2], 0)
        with pytest.raises(es.TicketError, match="another table"):
            update(other, ticket, grads, 0)
        assert update(table, ticket, grads, 0) == 1
        with pytest.raises(es.TicketError, match="updated already"):
            update(table, ticket, grads, 1)
    np.testing.assert_array_equal(table.find([1, 2]), np.zeros((2, 2)))


def test_the_latest_64_lookups_of_a_table_can_be_updated(table):
    tickets = [lookup(table, [1], 0)[1] for _ in range(65)]
    grads = np.ones((1, 2), np.float32)
    with pytest.raises(es.TicketError, match="64 later lookups"):
        update(table, tickets[0], grads, 0)
    for ticket in tickets[1:]:
        update(table, ticket, grads, 0)
    assert table.find([1]).tolist() == [[-63, -63]]


def test_a_ticket_of_before_a_clear_is_refused(table):
    _, ticket = lookup(table, [1], 0)
    table.clear()
    with pytest.raises(es.TicketError):
        update(table, ticket, np.ones((1, 2)), 0)


ROWS = np.ones((1, 2), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: find("user", [1]), r"find: expected an embstore.Table, got str"),
        (lambda t: jax.jit(find)(t, [1]), r"closes over its tables"),
        (lambda t: find(t, [0.5]), r"ids must be an integer array.*float64"),
        (lambda t: lookup(t, np.array([1], np.int16), 0), r"ids must be.*int16"),
        (lambda t: update(t, None, ROWS, 0), r"ticket must be the integer scalar.*object"),
        (lambda t: update(t, ROWS, ROWS, 0), r"ticket must be the integer.*float32.*\(1, 2\)"),
        (lambda t: update(t, 10**9, ROWS, 0), r"no lookup of this ticket"),
        (lambda t: update(t, 1, ROWS.astype(int), 0), r"gradients must be floats, got int64"),
        (lambda t: update(t, 1, ROWS.astype(complex), 0), r"must be floats, got complex128"),
        (lambda t: update(t, 1, np.ones((2, 3)), 0), r"\(2, 3\) are not those of rows of dim 2"),
        (lambda t: update(t, 1, ROWS, 0, lr=[0.1]), r"lr must be a number.*list.*\(1,\)"),
        (lambda t: update(t, 1, ROWS, 0, lr=lambda step: 0.1), r"lr must be.*got function"),
        (lambda t: update(t, 1, ROWS, 0, lr=float("nan")), r"lr must be a finite.*got nan"),
        (lambda t: update(t, 1, ROWS, 0, lr=jnp.inf), r"lr must be a finite.*got inf"),
        (lambda t: update(t, 1, ROWS, 0, lr=-1), r"lr must be .*at least 0, got -1"),
        (lambda t: lookup(t, [1], 0.5), r"step must be an int.*float64"),
        (lambda t: lookup(t, [1], [0, 1]), r"step must be an int.*\(2,\)"),
        (lambda t: lookup(t, [1], -1), r"step is negative|step must be"),
        (lambda t: lookup(t, [1], 0, padding_id=True), r"padding_id must be an int, got bool"),
        (lambda t: find(t, [1], padding_id=2**63), r"from -2\*\*63"),
        (lambda t: pooled(t, [1, 2]), r"\(n,\) with offsets; got \(2,\)"),
        (lambda t: pooled(t, [[1]], [0, 1]), r"offsets \(n_bags \+ 1,\)"),
        (lambda t: pooled(t, [[1]], mode="max"), r"mode must be one of.*'max'"),
        (lambda t: pooled(t, [[1]], mode=1), r"mode must be one of"),
        (lambda t: pooled(t, [[1]], weights=[1.0, 2.0]), r"\(1, 1\), got \(2,\)"),
        (lambda t: pooled(t, [1, 2], [0, 2, 1, 2]), r"go down|never decrease"),
        (lambda t: pooled(t, [1, 2], [0, 1], padding_id=0), r"number of ids, 2"),
        (lambda t: embed(t, [1], 0, 0), r"anchor must be a float scalar.*int64"),
    ],
)
def test_what_is_wrong_is_said_and_changes_nothing(table, call, message):
    lookup(table, [5], 0)
    before = snapshot(table)
    with pytest.raises(es.EmbstoreError, match=message):
        call(table)
    assert snapshot(table) == before


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
@pytest.mark.parametrize("padding_id", [None, 0])
def test_no_ids_are_no_rows_and_train_nothing(table, shape, padding_id):
    ids = np.zeros(shape, np.int64)
    rows, ticket = lookup(table, ids, 0, padding_id=padding_id)
    assert rows.shape == (*shape, 2)
    update(table, ticket, rows, 0)
    if len(shape) > 1:
        rows, ticket = pooled(table, ids, padding_id=padding_id, step=0)
        update(table, ticket, jnp.ones_like(rows), 0)
        np.testing.assert_array_equal(rows, np.zeros((shape[0], 2)))
    assert find(table, []).shape == (0, 2)
    assert pooled(table, [], [0]).shape == (0, 2)
    assert len(table) == 0


def test_gradients_that_are_not_finite_are_refused_and_take_the_ticket_with_them(table):
    _, ticket = lookup(table, [5, 6], 0)
    before = snapshot(table)
    with pytest.raises(es.NonFiniteError, match="key 6"):
        update(table, ticket, np.array([[1, 1], [1, np.nan]]), 0)
    assert snapshot(table) == before
    with pytest.raises(es.TicketError):
        update(table, ticket, np.ones((2, 2)), 0)


def test_a_closed_table_is_refused():
    table = es.Table(2)
    read = jax.jit(lambda ids: find(table, ids))
    assert not read(jnp.array([1])).any()
    table.close()
    with pytest.raises(es.ClosedTableError, match="is closed"):
        find(table, [1])
    # Of what only reads, JAX makes ValueErrors from the second call on.
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError), match="has been closed"):
        jax.block_until_ready(read(jnp.array([1])))


def test_threads_that_use_a_table_first_at_once_give_it_one_name(monkeypatch):
    table, named, both = es.Table(2), [], threading.Barrier(2)
    publish = names._publish

    def slow(table):
        named.append(table)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.2)  # for the other thread, which must not come
        return publish(table)

    monkeypatch.setattr(names, "_publish", slow)
    threads = [threading.Thread(target=find, args=(table, [1])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert named == [table]


def test_a_table_without_an_optimizer_is_not_trained():
    table = es.Table(2)
    _, ticket = lookup(table, [1], 0)
    with pytest.raises(es.ArgumentError, match="has no optimizer"):
        update(table, ticket, np.ones((1, 2)), 0, lr=1.0)
    with pytest.raises(es.ArgumentError, match="has no optimizer"):
        embed(table, [1], jnp.zeros((), jnp.float32), 0)


def test_a_table_with_on_evict_goes_without_ops_and_says_so():
    evicted = []
    table = es.Table(
        2,
        optimizer=es.SGD(lr=1.0),
        initializer=es.Constant(1.0),
        eviction=es.StepEviction(steps_to_live=1),
        evict_every=1,
        on_evict=evicted.append,
    )
    with pytest.warns(es.EmbstoreWarning, match=r"without native ops.*on_evict"):
        find(table, [1])
    for step in range(4):
        _, ticket = jax.jit(lambda ids, step: lookup(table, ids, step))(np.full(2, step), step)
        update(table, ticket, np.ones((2, 2)), step)
    assert len(evicted) > 0


def test_rows_see_what_others_do_to_the_table_meanwhile(table, tmp_path):
    read = jax.jit(lambda ids: find(table, ids))
    table.assign([7], np.full((1, 2), 5, np.float32))
    assert read(np.array([7])).tolist() == [[5, 5]]
    table.save(tmp_path / "saved")
    table.assign([7], np.full((1, 2), 6, np.float32))
    assert read(np.array([7])).tolist() == [[6, 6]]
    table.restore(tmp_path / "saved")
    assert read(np.array([7])).tolist() == [[5, 5]]


def test_the_ops_are_built_once_and_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EMBSTORE_CACHE", str(tmp_path))
    fake = tmp_path / "cxx"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho made > "$2"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    assert main(["build-jax-op", "--json"]) == 0
    path = json.loads(capsys.readouterr().out)["library"]
    assert os.path.dirname(path) == str(tmp_path / "jax-op")
    assert f"jax{jax.lib.__version__}" in path
    first = os.stat(path).st_mtime_ns
    assert build_op() == path
    assert os.stat(path).st_mtime_ns == first
    fake.write_text("#!/bin/sh\necho no such luck >&2\nexit 1\n")
    monkeypatch.setenv("CXX", f"{fake} -DOTHER")
    with pytest.raises(es.InternalError, match="no such luck"):
        build_op()
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(es.ArgumentError, match=r"no C\+\+17 compiler.*no-such-compiler"):
        build_op()
    assert main(["build-jax-op"]) == 2
    assert "no-such-compiler" in capsys.readouterr().err


ALONE = """
import warnings, jax, numpy as np
import embstore as es
jax.config.update("jax_enable_x64", True)
from embstore.jax import first_step, lookup, update
table = es.Table(2, optimizer=es.SGD(lr=1.0), initializer=es.Constant(3.0))
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")

    @jax.jit
    def train(ids, step):
        rows, ticket = lookup(table, ids, step)
        return update(table, ticket, np.ones((3, 2)), step)

    step = first_step(table)
    for _ in range(3):
        step = train(np.array([1, 1, 2**40]), step)
    jax.block_until_ready(step)
    lookup(es.Table(2, name="other"), [1], 0)
print([str(w.message) for w in said if w.category is es.EmbstoreWarning])
print(table.find([1, 2**40]).tolist())
"""


def test_without_a_compiler_it_works_and_says_so_once(tmp_path):
    env = {**os.environ, "EMBSTORE_CACHE": str(tmp_path), "CXX": "no-such-compiler"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE], env=env, capture_output=True, text=True, check=True
    )
    said, rows = done.stdout.splitlines()
    assert said.count("goes without its native ops") == 1
    assert "no-such-compiler cannot be found" in said
    assert rows == "[[-3.0, -3.0], [0.0, 0.0]]"
