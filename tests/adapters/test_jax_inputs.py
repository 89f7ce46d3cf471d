"""embstore.jax at its borders: what it refuses, and how its ops are built or done without."""

import os
import subprocess
import sys

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed: embstore.jax is untested")

import jax.numpy as jnp  # noqa: E402
from contract.tools import snapshot  # noqa: E402

import embstore as es  # noqa: E402
from embstore.jax import (  # noqa: E402
    build_op,
    embed,
    fallback,
    find,
    first_step,
    lookup,
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


def test_vmap_is_refused_and_says_what_to_do(table):
    ids = jnp.arange(6).reshape(3, 2)
    grads = jnp.ones((3, 2, 2))
    _, ticket = lookup(table, ids, 0)
    before = snapshot(table)
    for call, given in (
        (lambda ids: find(table, ids), ids),
        (lambda ids: lookup(table, ids, 1), ids),
        (lambda ids: pooled(table, ids[None]), ids),
        (lambda grads: update(table, ticket, grads, 1), grads),
    ):
        with pytest.raises(es.ArgumentError, match=r"jax\.vmap.*outside of it"):
            jax.vmap(call)(given)
    assert snapshot(table) == before


def test_checkpointed_lookups_are_refused_by_jax(table):
    loss = jax.checkpoint(lambda anchor: embed(table, jnp.arange(3), anchor, 0).sum())
    with pytest.raises(NotImplementedError, match="checkpoint"):
        jax.grad(loss)(jnp.zeros((), jnp.float32))
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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: find("user", [1]), r"find: expected an embstore.Table, got str"),
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


def test_the_ops_are_built_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("EMBSTORE_CACHE", str(tmp_path))
    fake = tmp_path / "cxx"
    fake.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho made > "$2"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    path = build_op()
    assert os.path.dirname(path) == str(tmp_path / "jax-op")
    assert f"jax{jax.__version__}" in path
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


SHARDED = """
import jax, numpy as np, embstore as es
from jax.sharding import NamedSharding, PartitionSpec as P
jax.config.update("jax_enable_x64", True)
from embstore.jax import lookup
table = es.Table(2)
mesh = jax.make_mesh((2,), ("x",))
look = jax.shard_map(
    lambda ids: lookup(table, ids, 0)[0],
    mesh=mesh,
    in_specs=P("x"),
    out_specs=P("x"),
    check_vma=False,
)
try:
    jax.block_until_ready(look(jax.device_put(np.arange(4), NamedSharding(mesh, P("x")))))
except Exception as error:
    print(str(error))
"""


def test_a_computation_of_two_devices_is_refused():
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], env=env, capture_output=True, text=True, check=True
    )
    assert "run lookups on the first device alone" in done.stdout
