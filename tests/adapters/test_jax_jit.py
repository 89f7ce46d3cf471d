"""embstore.jax under jit: what is compiled does what Python would, in the same order."""

import gc

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="JAX is not installed: embstore.jax is untested")

import jax.numpy as jnp  # noqa: E402
from contract.tools import exported, meta, snapshot  # noqa: E402
from property.pair import assert_same_rows  # noqa: E402

import embstore as es  # noqa: E402
from embstore.jax import (  # noqa: E402
    embed,
    embed_bags,
    fallback,
    find,
    first_step,
    lookup,
    pooled,
    update,
)
from embstore.jax.names import NamedTable  # noqa: E402

jax.config.update("jax_enable_x64", True)

SHAPE, DIM = (6, 3), 4


def table_of(dim=DIM, **options):
    given = {"optimizer": es.Adam(lr=0.05), "initializer": es.Normal(std=0.1), **options}
    return es.Table(dim, **given)


def batches(n=40):
    rng = np.random.default_rng(7)
    ids = rng.integers(-12, 12, (n, *SHAPE))
    return ids, rng.standard_normal((n, *SHAPE, DIM), np.float32)


def trained_by_python(**options):
    """The rows after the batches, and what each lookup gave."""
    table, seen = table_of(**options), []
    for step, (ids, grads) in enumerate(zip(*batches(), strict=True)):
        batch = table.find_or_insert(ids.reshape(-1), step)
        seen.append(np.array(batch.rows).reshape(*SHAPE, DIM))
        table.apply_gradients(batch, grads.reshape(-1, DIM), step)
    return exported(table), np.stack(seen)


POLICIES = {"admission": es.CounterAdmission(min_count=3), "max_rows": 15, "on_full": "refuse"}


@pytest.mark.parametrize("is_native", [True, False], ids=["native", "fallback"])
def test_steps_that_nobody_waits_for_train_as_python_does(is_native):
    table = table_of(**POLICIES)
    if not is_native:
        NamedTable.of(table, "test").ops = fallback
    n_traces = []

    @jax.jit
    def train(ids, grads, step):
        n_traces.append(1)
        rows, ticket = lookup(table, ids, step)
        return rows, update(table, ticket, grads, step)

    step, seen = first_step(table), []
    for ids, grads in zip(*batches(), strict=True):
        rows, step = train(ids, grads, step)
        seen.append(rows)
    assert int(step) == 40
    rows, expected = trained_by_python(**POLICIES)
    assert_same_rows(exported(table), rows, "rows")
    np.testing.assert_array_equal(np.stack(seen), expected)
    assert len(n_traces) == 1


def test_a_scan_over_steps_trains_as_python_does():
    table = table_of(**POLICIES)

    def body(step, batch):
        rows, ticket = lookup(table, batch[0], step)
        return update(table, ticket, batch[1], step), rows

    step, seen = jax.jit(lambda step, of: jax.lax.scan(body, step, of))(0, batches())
    rows, expected = trained_by_python(**POLICIES)
    assert int(step) == 40
    assert_same_rows(exported(table), rows, "rows")
    np.testing.assert_array_equal(seen, expected)


def test_embed_in_the_loop_of_an_optimizer_trains_as_lookup_and_update():
    optax = pytest.importorskip("optax", reason="optax is not installed: no loop with it is run")
    ids, targets = batches(20)
    dense = optax.adam(0.01)

    def loss_of(params, rows, target):
        return jnp.mean((rows * params["scale"] - target) ** 2)

    by_embed, by_hand = table_of(name="user"), table_of(name="user")

    @jax.jit
    def embed_step(params, state, ids, target, step):
        def loss(params):
            return loss_of(params, embed(by_embed, ids, params["anchor"], step), target)

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = dense.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    @jax.jit
    def hand_step(params, state, ids, target, step):
        rows, ticket = lookup(by_hand, ids, step)
        value, grads = jax.value_and_grad(loss_of, (0, 1))(params, rows, target)
        updates, state = dense.update(grads[0], state, params)
        step = update(by_hand, ticket, grads[1], step)
        return optax.apply_updates(params, updates), state, value, step

    params = {"scale": jnp.ones(DIM, jnp.float32), "anchor": jnp.zeros((), jnp.float32)}
    other = {"scale": params["scale"]}
    state, other_state, next_step = dense.init(params), dense.init(other), first_step(by_hand)
    losses = []
    for step in range(20):
        params, state, value = embed_step(params, state, ids[step], targets[step], step)
        other, other_state, expected, next_step = hand_step(
            other, other_state, ids[step], targets[step], next_step
        )
        losses.append((float(value), float(expected)))
    np.testing.assert_allclose(*np.transpose(losses), rtol=1e-6)
    assert len({first for first, _ in losses}) == 20
    rows, expected = exported(by_embed), exported(by_hand)
    np.testing.assert_array_equal(rows.keys, expected.keys)
    np.testing.assert_allclose(rows.values, expected.values, rtol=1e-5, atol=1e-6)
    assert params["anchor"] == 0
    assert by_embed.stats()["n_train_steps"] == 20


@pytest.mark.parametrize("ops", ["native", "fallback"])
def test_lookups_are_neither_dropped_nor_merged(ops):
    table = table_of()
    if ops == "fallback":
        NamedTable.of(table, "test").ops = fallback

    @jax.jit
    def count(ids, step):
        lookup(table, ids, step)
        _, ticket = lookup(table, ids, step)
        lookup(table, ids, step, after=ticket)
        return step

    jax.block_until_ready(count(jnp.array([5, 5]), 0))
    jax.effects_barrier()
    assert meta(table, 5) == [(6, 0)]


def test_find_reads_what_the_update_before_it_left():
    table = table_of(dim=2, optimizer=es.SGD(lr=1.0), initializer=es.Constant(0.0))

    @jax.jit
    def train_and_read(ids, step):
        before = find(table, ids)
        rows, ticket = lookup(table, ids, step, after=before)
        step = update(table, ticket, jnp.ones_like(rows), step)
        return before, find(table, ids, after=step), step

    before, after, _ = train_and_read(jnp.array([1, 2]), 0)
    np.testing.assert_array_equal(before, np.zeros((2, 2)))
    np.testing.assert_array_equal(after, -np.ones((2, 2)))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("padding_id", [None, 0])
def test_rows_come_in_the_dtype_of_the_table(dtype, padding_id):
    ids, grads = np.array([[3, 0], [0, 9]]), np.full((2, 2, 3), 0.25, np.float32)
    native, python = (table_of(3, dtype=dtype, name="user") for _ in range(2))
    NamedTable.of(python, "test").ops = fallback
    seen = []
    for table in (native, python):

        @jax.jit
        def train(ids, grads, step, table=table):
            rows, ticket = lookup(table, ids, step, padding_id=padding_id)
            return rows, update(table, ticket, grads.astype(rows.dtype), step)

        rows, _ = train(ids, grads, 0)
        assert rows.dtype == dtype
        seen.append((rows, find(table, ids, padding_id=padding_id)))
    np.testing.assert_array_equal(*(np.asarray(rows, np.float32) for rows, _ in seen))
    np.testing.assert_array_equal(*(np.asarray(found, np.float32) for _, found in seen))
    is_zero = not np.any(np.asarray(seen[0][0], np.float32)[ids == 0])
    assert is_zero == (padding_id == 0)
    assert_same_rows(exported(native), exported(python), "rows")
    assert len(native) == (2 if padding_id == 0 else 3)


@pytest.mark.parametrize("mode", ["sum", "mean", "sqrtn"])
def test_bags_along_the_last_axis_are_those_of_offsets(mode):
    tables = [table_of(name="tags") for _ in range(3)]
    ids = np.array([[[1, 2, 0], [0, 0, 0]], [[3, 0, 3], [2, 2, 9]]])
    weights = np.arange(12, dtype=np.float32).reshape(ids.shape) / 4
    flat, kept = ids.reshape(-1), ids.reshape(-1) != 0
    offsets = np.array([0, 2, 2, 4, 7])
    grads = np.random.default_rng(2).standard_normal((2, 2, DIM), np.float32)
    NamedTable.of(tables[1], "test").ops = fallback
    pooled_rows = []
    for table in tables[:2]:

        @jax.jit
        def train(ids, weights, step, table=table):
            options = {"mode": mode, "padding_id": 0, "step": step}
            rows, ticket = pooled(table, ids, None, weights, **options)
            return rows, update(table, ticket, grads, step)

        pooled_rows.append(train(ids, weights, 0)[0])
    table = tables[2]
    batch = table.pooled(flat[kept], offsets, mode, weights.reshape(-1)[kept], step=0)
    table.apply_gradients(batch, grads.reshape(-1, DIM), 0)
    for rows in pooled_rows:
        np.testing.assert_array_equal(rows.reshape(-1, DIM), batch.rows)
    for other in tables[:2]:
        assert_same_rows(exported(other), exported(table), "rows")
    np.testing.assert_array_equal(
        jax.jit(lambda i, w: pooled(tables[0], i, None, w, mode=mode, padding_id=0))(ids, weights),
        pooled(table, flat[kept], offsets, weights.reshape(-1)[kept], mode=mode).reshape(2, 2, -1),
    )


def test_embed_bags_gives_its_weights_no_gradient_and_trains_the_rows():
    table = table_of(2, optimizer=es.SGD(lr=1.0), initializer=es.Constant(1.0))

    @jax.jit
    def grads(anchor, weights):
        def loss(anchor, weights):
            ids = jnp.array([[7, 8], [8, 0]])
            given = {"weights": weights, "mode": "sum", "padding_id": 0}
            return embed_bags(table, ids, anchor, 0, **given).sum()

        return jax.grad(loss, (0, 1))(anchor, weights)

    anchor, weights = grads(jnp.zeros((), jnp.float32), jnp.array([[1.0, 2.0], [3.0, 4.0]]))
    assert anchor == 0
    assert not weights.any()
    np.testing.assert_array_equal(table.find([7, 8]), [[0, 0], [-4, -4]])


@pytest.mark.parametrize("ops", ["native", "fallback"])
def test_errors_of_compiled_functions_leave_the_table_as_it_was(ops):
    table = table_of(max_rows=2)
    if ops == "fallback":
        NamedTable.of(table, "test").ops = fallback
    train = jax.jit(lambda ids, step: lookup(table, ids, step))
    jax.block_until_ready(train(jnp.array([1, 2]), 0))
    before = snapshot(table)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"2 rows|at most 2"):
        jax.block_until_ready(train(jnp.array([3, 4]), 1))
    assert snapshot(table) == before
    jax.block_until_ready(train(jnp.array([1, 2]), 1))


@pytest.mark.parametrize("is_compiled", [True, False])
def test_schedules_of_the_table_and_rates_of_the_call_count(is_compiled):
    by_table = table_of(
        1, optimizer=es.SGD(lr=lambda step: 1.0 + step), initializer=es.Constant(0.0)
    )
    by_call = table_of(1, optimizer=es.SGD(lr=9.0), initializer=es.Constant(0.0))
    by_number = table_of(1, optimizer=es.SGD(lr=1.0), initializer=es.Constant(0.0))

    def train(step):
        for table, lr in ((by_table, None), (by_call, 1.0 + step), (by_number, None)):
            rows, ticket = lookup(table, jnp.array([1]), step)
            last = update(table, ticket, jnp.ones_like(rows), step, lr)
        return last

    run = jax.jit(train) if is_compiled else train
    for step in range(3):
        by_number.lr = 1.0 + step
        jax.block_until_ready(run(step))
        jax.effects_barrier()
    for table in (by_table, by_call, by_number):
        assert table.find([1]).item() == -6


def test_a_schedule_that_takes_the_place_of_another_counts_at_once():
    table = table_of(1, optimizer=es.SGD(lr=lambda step: 1.0), initializer=es.Constant(0.0))
    train = jax.jit(lambda ids: update(table, lookup(table, ids, 0)[1], jnp.ones((1, 1)), 0))
    jax.block_until_ready(train(jnp.array([1])))
    table.lr = lambda step: 10.0
    jax.block_until_ready(train(jnp.array([1])))
    assert table.find([1]).item() == -11


def test_a_compiled_function_outlives_its_table_and_touches_no_other():
    tables = {"user": table_of(name="user", initializer=es.Constant(1.0))}
    count = jax.jit(lambda ids: lookup(tables["user"], ids, 0)[0])
    assert count(jnp.array([1])).all()
    del tables["user"]
    gc.collect()
    other = table_of(name="user")
    assert find(other, [1]).shape == (1, DIM)
    with pytest.raises(jax.errors.JaxRuntimeError, match="no table is registered as 'jax:user"):
        jax.block_until_ready(count(jnp.array([1])))
    assert len(other) == 0
