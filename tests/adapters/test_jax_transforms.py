"""embstore.jax under JAX's transformations, devices, threads and forks: right, or refused."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed: embstore.jax is untested")

import jax.numpy as jnp  # noqa: E402
from contract.tools import meta, snapshot  # noqa: E402

import embstore as es  # noqa: E402
from embstore.jax import embed, fallback, find, first_step, lookup, pooled, update  # noqa: E402
from embstore.jax.names import NamedTable  # noqa: E402

jax.config.update("jax_enable_x64", True)

ROW = np.ones((1, 2), np.float32)
ANCHOR = jnp.zeros((), jnp.float32)


@pytest.fixture(params=["native", "fallback"])
def table(request):
    """A table that is served by the native ops, or without."""
    with es.Table(2, optimizer=es.SGD(lr=1.0), initializer=es.Constant(1.0)) as made:
        if request.param == "fallback":
            NamedTable.of(made, "test").ops = fallback
        yield made


def train(table, ids, step):
    """Train the rows of ids by gradients of 1."""
    rows, ticket = lookup(table, ids, step)
    return update(table, ticket, jnp.ones_like(rows), step)


@pytest.mark.parametrize("wrap", [lambda call: call, jax.jit], ids=["traced", "jit"])
def test_vmap_is_refused_and_says_what_to_do(table, wrap):
    ids = jnp.arange(6).reshape(3, 2)
    _, ticket = lookup(table, ids, 0)
    before = snapshot(table)
    for call, given in (
        (lambda ids: find(table, ids), ids),
        (lambda after: find(table, [1], after=after), ids),
        (lambda ids: lookup(table, ids, 1), ids),
        (lambda step: lookup(table, [1], step), jnp.arange(3)),
        (lambda ids: pooled(table, ids[None]), ids),
        (lambda offsets: pooled(table, jnp.arange(2), offsets), ids),
        (lambda grads: update(table, ticket, grads, 1), jnp.ones((3, 2, 2))),
        (lambda lr: update(table, ticket, jnp.ones((3, 2, 2)), 1, lr), jnp.ones(3)),
    ):
        with pytest.raises(es.ArgumentError, match=r"jax\.vmap.*outside of it"):
            jax.vmap(wrap(call))(given)
    assert snapshot(table) == before


def test_checkpointed_lookups_are_refused_by_jax(table):
    loss = jax.checkpoint(lambda anchor: embed(table, jnp.arange(3), anchor, 0).sum())
    with pytest.raises(NotImplementedError, match="checkpoint"):
        jax.grad(loss)(ANCHOR)
    assert len(table) == 0


def test_what_a_call_waits_for_gets_no_gradient(table):
    def loss(scale):
        weights = jnp.ones((1, 1)) * scale
        rows, ticket = lookup(table, [1], 0, after=scale)
        return (rows.sum() + pooled(table, [[1]], weights=weights, after=ticket).sum()) * scale

    assert jax.jit(jax.grad(loss))(jnp.float32(3)) == 2 + 2 * 3


def test_a_branch_that_is_not_taken_looks_nothing_up(table):
    @jax.jit
    def step_if(is_taken, ids, step):
        return jax.lax.cond(is_taken, lambda: train(table, ids, step), lambda: step)

    step = step_if(True, jnp.array([1, 1]), first_step(table))
    assert step_if(False, jnp.array([9]), step) == 1
    assert meta(table, 1) == [(2, 0)]
    assert table.find([1, 9]).tolist() == [[-1, -1], [0, 0]]


def test_loops_train_once_each_time_around(table):
    @jax.jit
    def loop(ids, step):
        return jax.lax.fori_loop(0, 5, lambda _, step: train(table, ids, step), step)

    assert loop(jnp.array([1]), first_step(table)) == 5
    assert table.find([1]).tolist() == [[-4, -4]]


@pytest.mark.parametrize("is_inner", [True, False])
def test_gradients_through_a_scan_train_the_rows_of_each_part(table, is_inner):
    ids = jnp.arange(6).reshape(3, 2)

    def loss_of(anchor, ids):
        return embed(table, ids, anchor, 0).sum()

    def by_part(anchor, ids):
        return anchor - jax.grad(loss_of)(anchor, ids), None

    def whole(anchor, ids):
        def add(sum_, ids):
            return sum_ + loss_of(anchor, ids), None

        return jax.lax.scan(add, jnp.float32(0), ids)[0]

    run = (lambda a, i: jax.lax.scan(by_part, a, i)[0]) if is_inner else jax.grad(whole)
    assert jax.jit(run)(ANCHOR, ids) == 0
    np.testing.assert_array_equal(table.find(np.arange(6)), np.zeros((6, 2)))


def test_a_donated_step_and_no_jit_at_all_train_alike(table):
    donated = jax.jit(lambda ids, step: train(table, ids, step), donate_argnums=1)
    step = first_step(table)
    for _ in range(3):
        step = donated(np.array([1]), step)
    with jax.disable_jit():
        assert donated(np.array([1]), step) == 4
    assert table.find([1]).tolist() == [[-3, -3]]


def test_what_is_only_shaped_or_compiled_changes_nothing_until_it_runs(table):
    ids = jax.ShapeDtypeStruct((3,), np.int64)
    look = jax.jit(lambda ids: lookup(table, ids, 0)[0])
    assert jax.eval_shape(look, ids).shape == (3, 2)
    compiled = look.lower(ids).compile()
    assert len(table) == 0
    compiled(jnp.arange(3))
    assert len(table) == 3


def test_functions_that_threads_run_at_once_lose_no_update(table):
    compiled = jax.jit(lambda ids, step: train(table, ids, step))
    n_threads, n_steps = 4, 25

    def run():
        step = jnp.int64(0)
        for _ in range(n_steps):
            step = compiled(np.arange(100), step)
        jax.block_until_ready(step)

    threads = [threading.Thread(target=run) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    for _ in range(n_steps):  # while Python writes, too
        table.apply_gradients(np.arange(100), np.ones((100, 2), np.float32), 0)
    for thread in threads:
        thread.join()
    expected = 1 - (n_threads + 1) * n_steps
    n_unborn = int(table.find([0])[0, 0] - expected)
    assert 0 <= n_unborn <= n_steps  # updates of Python before the rows were there
    np.testing.assert_array_equal(table.find(np.arange(100)), table.find([0] * 100))


@pytest.mark.parametrize("lr", [-1.0, np.nan, np.inf])
def test_a_rate_that_no_table_takes_is_refused_under_jit(table, lr):
    compiled = jax.jit(lambda ids, lr: update(table, lookup(table, ids, 0)[1], ROW, 0, lr))
    jax.block_until_ready(compiled(np.array([5]), 0.0))
    with pytest.raises(jax.errors.JaxRuntimeError, match="lr must be a finite number"):
        jax.block_until_ready(compiled(np.array([5]), lr))
    assert table.find([5]).tolist() == [[1, 1]]
    jax.block_until_ready(compiled(np.array([5]), 1))
    assert table.find([5]).tolist() == [[0, 0]]


def test_ftrl_takes_no_rate_of_0():
    table = es.Table(2, optimizer=es.FTRL(lr=0.1))
    _, ticket = lookup(table, [1], 0)
    with pytest.raises(es.ArgumentError, match=r"greater than 0|above 0"):
        update(table, ticket, ROW, 0, lr=0.0)
    compiled = jax.jit(lambda lr: update(table, lookup(table, [1], 0)[1], ROW, 0, lr))
    with pytest.raises(jax.errors.JaxRuntimeError, match="above 0"):
        jax.block_until_ready(compiled(0.0))


DEVICES = """
import jax, jax.numpy as jnp, numpy as np, embstore as es
from jax.sharding import NamedSharding, PartitionSpec as P
jax.config.update("jax_enable_x64", True)
from embstore.jax import fallback, find, lookup, update
from embstore.jax.names import NamedTable

mesh = jax.sharding.Mesh(jax.devices(), ("x",))
split = NamedSharding(mesh, P("x"))
ids = np.arange(4)
sharded = jax.device_put(ids, split)
for is_native in (True, False):
    table = es.Table(2, optimizer=es.SGD(lr=1.0), initializer=es.Constant(1.0))
    if not is_native:
        NamedTable.of(table, "test").ops = fallback

    def summed(ids):
        return jax.lax.psum(lookup(table, ids, 0)[0], "x")

    by_shard = jax.shard_map(summed, mesh=mesh, in_specs=P("x"), out_specs=P(), check_vma=False)
    for call in (
        lambda: by_shard(sharded),
        lambda: jax.jit(lambda ids: lookup(table, ids, 0)[0].sum())(sharded),
        lambda: jax.jit(lambda ids: find(table, ids))(sharded),
        lambda: lookup(table, sharded, 0),
    ):
        try:
            jax.block_until_ready(call())
        except es.ArgumentError as error:
            assert "2 devices compute here" in str(error)
        else:
            raise AssertionError("was not refused")
    assert len(table) == 0

    second = jax.device_put(ids, jax.devices()[1])
    rows, ticket = jax.jit(lambda ids: lookup(table, ids, 0))(second)
    loss = jax.jit(jax.grad(lambda rows: (rows**2).sum()))
    grads = loss(jax.device_put(rows, split))
    assert len(grads.devices()) == 2
    update(table, ticket, jax.device_put(grads, jax.devices()[1]), 0)
    assert table.find(ids).tolist() == [[-1.0, -1.0]] * 4
print("all of both")
"""


def test_several_devices_are_refused_and_share_what_one_has_looked_up():
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run(
        [sys.executable, "-c", DEVICES], env=env, capture_output=True, text=True, check=False
    )
    assert done.stdout == "all of both\n", done.stderr


FORKED = """
import os, warnings, numpy as np, embstore as es, jax
warnings.simplefilter("ignore", RuntimeWarning)
jax.config.update("jax_enable_x64", True)
from embstore.jax import find, lookup
table = es.Table(2, initializer=es.Constant(1.0))
lookup(table, [1], 0)
child = os.fork()
if child == 0:
    try:
        find(table, [1])
    except es.ForkError as error:
        os.write(1, f"{error}\\n".encode())
    os._exit(0)
os.waitpid(child, 0)
print(find(table, [1]).tolist())
"""


@pytest.mark.unsanitized
def test_a_forked_child_is_told_rather_than_locked_up():
    command = [sys.executable, "-c", FORKED]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    said, rows = done.stdout.splitlines()
    assert "before a fork" in said
    assert rows == "[[1.0, 1.0]]"
