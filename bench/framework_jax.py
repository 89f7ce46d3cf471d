"""JAX's contenders, in a process of their own: its own lookups and steps, flax's, and ours.

Kinds are "eager" and "jit", a lookup outside and inside of jax.jit, and "step": lookup, gradient
and update in one jitted function, whose old state is donated. Every call is waited for.
"""

from functools import cached_property, partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import embstore as es
from bench import framework
from bench.framework import ADAGRAD, Space, Way
from bench.workspace import LEARNING_RATE
from embstore.jax import embed, find, first_step, lookup, update
from embstore.jax.names import NamedTable

jax.config.update("jax_enable_x64", True)
es.set_num_threads(1)


class JaxSpace(Space):
    """The rows as a table, as an array, and as a module of flax."""

    @cached_property
    def array(self):
        return jnp.asarray(self.values())

    @cached_property
    def module(self):
        shape = (self.setup.n_rows, self.setup.dim)
        return nnx.Embed(*shape, embedding_init=lambda *_: self.array, rngs=nnx.Rngs(0))

    def tensor(self, ids):
        return jnp.asarray(ids)

    def way(self, kind, name):
        if kind == "step":
            return STEP[name](self, jnp.asarray(self.grads()))
        forward, state = FORWARD[name](self, kind)
        forward = jax.jit(forward) if kind == "jit" else forward
        return Way(lambda ids: jax.block_until_ready(forward(state, ids)))


def take(space, kind):
    return (lambda array, ids: jnp.take(array, ids, axis=0)), space.array


def flax_embed(space, kind):
    """Return a call of flax's module; under jit it is split outside, the fastest way to it."""
    if kind == "eager":
        return (lambda module, ids: module(ids)), space.module
    graph, state = nnx.split(space.module)
    return (lambda state, ids: nnx.merge(graph, state)(ids)), state


def our_find(space, kind):
    return (lambda _, ids: find(space.table, ids)), None


def our_lookup(space, kind):
    """Return a lookup in training, whose ticket nobody takes."""
    step = first_step(space.table)
    return (lambda step, ids: lookup(space.table, ids, step)[0]), step


FORWARD = {
    "jnp.take": take,
    "flax nnx.Embed": flax_embed,
    "embstore find": our_find,
    "embstore lookup": our_lookup,
}


class Carried:
    """A step that is waited for, and the state that it hands to the next one."""

    def __init__(self, step, state, grads):
        self.step, self.state, self.grads = step, state, grads

    def __call__(self, ids):
        self.state = jax.block_until_ready(self.step(self.state, ids, self.grads))


def weighted(rows, grads):
    """Return a loss whose gradient, with respect to the rows, is `grads`."""
    return (rows * grads).sum()


def optax_step(space, grads):
    """Return the step of a table among the parameters, with its dense gradient."""
    adagrad = optax.adagrad(
        LEARNING_RATE,
        initial_accumulator_value=ADAGRAD["initial_accumulator"],
        eps=ADAGRAD["eps"],
    )

    @partial(jax.jit, donate_argnums=0)
    def step(state, ids, grads):
        array, slots = state
        found = jax.grad(lambda array: weighted(jnp.take(array, ids, axis=0), grads))(array)
        updates, slots = adagrad.update(found, slots, array)
        return optax.apply_updates(array, updates), slots

    array = jnp.asarray(space.values())
    carried = Carried(step, (array, adagrad.init(array)), grads)
    return Way(carried, lambda: carried.state[0])


def scatter_step(space, grads):
    """Return what can be written by hand: duplicates summed, Adagrad of the batch's rows alone."""

    @partial(jax.jit, donate_argnums=0)
    def step(state, ids, grads):
        array, slots = state
        found = jax.grad(weighted)(jnp.take(array, ids, axis=0), grads)
        size = {"size": len(ids), "fill_value": len(array)}
        unique, inverse = jnp.unique(ids, return_inverse=True, **size)
        sums = jnp.zeros_like(found).at[inverse].add(found)
        slots = slots.at[unique].add(sums**2, mode="drop")
        by = LEARNING_RATE / (jnp.sqrt(slots[unique]) + ADAGRAD["eps"])
        return array.at[unique].add(-by * sums, mode="drop"), slots

    array = jnp.asarray(space.values())
    slots = jnp.full_like(array, ADAGRAD["initial_accumulator"])
    carried = Carried(step, (array, slots), grads)
    return Way(carried, lambda: carried.state[0])


def update_step(space, grads):
    """Return our step by `lookup` and `update`."""

    @jax.jit
    def step(now, ids, grads):
        rows, ticket = lookup(space.table, ids, now)
        return update(space.table, ticket, jax.grad(weighted)(rows, grads), now)

    return Way(Carried(step, first_step(space.table), grads), space.table_rows)


def embed_step(space, grads):
    """Return our step in backward, by `embed`."""

    @jax.jit
    def step(state, ids, grads):
        anchor, now = state
        found = jax.grad(lambda anchor: weighted(embed(space.table, ids, anchor, now), grads))
        return anchor - found(anchor), now + 1

    state = jnp.zeros(()), first_step(space.table)
    return Way(Carried(step, state, grads), space.table_rows)


STEP = {
    "optax adagrad, dense gradient": optax_step,
    "sparse Adagrad by hand": scatter_step,
    "embstore lookup and update": update_step,
    "embstore embed": embed_step,
}


contender = partial(framework.contender, JaxSpace)
answer = partial(framework.answer, JaxSpace)


def facts():
    """Return what a result says of this process."""
    named = NamedTable.of(JaxSpace({"n_rows": 1, "dim": 1}, 0).table, "bench")
    return {"jax": jax.__version__, "optax": optax.__version__, "native_ops": named.has_native}
