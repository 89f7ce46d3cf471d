"""JAX under the contract, outside of jit: lookup and update, embed, and both without native ops."""

import jax
import jax.numpy as jnp

from embstore.jax import embed, embed_bags, fallback, find, first_step, lookup, pooled, update
from embstore.jax.names import NamedTable

from .adapters import Adapter

jax.config.update("jax_enable_x64", True)


class JaxAdapter(Adapter):
    """`lookup` and `pooled` with `update`."""

    has_no_grad = False  # `lookup` is what counts
    refused = (ValueError, TypeError)

    def __init__(self, table, padding_id=None):
        self.table = table
        self.padding_id = padding_id
        self.next_step = first_step(table)
        self.waiting = []

    @property
    def step(self):
        return int(self.next_step)

    def lookup(self, ids):
        rows, _ = lookup(self.table, ids, self.next_step, padding_id=self.padding_id)
        return jax.device_get(rows)

    def read(self, ids):
        return jax.device_get(find(self.table, ids, padding_id=self.padding_id))

    def backward(self, ids, output_grads):
        _, ticket = lookup(self.table, ids, self.next_step, padding_id=self.padding_id)
        self.waiting.append((ticket, output_grads))

    def apply(self):
        waiting, self.waiting = self.waiting, []
        now, self.next_step = self.next_step, self.next_step + 1
        for ticket, grads in waiting:
            self.next_step = update(self.table, ticket, grads, now)

    def forget(self):
        self.waiting = []

    def read_bags(self, ids, offsets, mode, weights=None):
        given = ids, offsets, weights
        rows = pooled(self.table, *given, mode=mode, padding_id=self.padding_id)
        return jax.device_get(rows)

    def backward_bags(self, ids, offsets, output_grads, mode, weights=None):
        options = {"mode": mode, "padding_id": self.padding_id, "step": self.next_step}
        _, ticket = pooled(self.table, ids, offsets, weights, **options)
        self.waiting.append((ticket, output_grads))


class EmbedJaxAdapter(JaxAdapter):
    """`embed` and `embed_bags`: trained in backward."""

    has_backward_alone = False
    anchor = jnp.zeros((), jnp.float32)

    def backward(self, ids, output_grads):
        def rows(anchor):
            return embed(self.table, ids, anchor, self.next_step, padding_id=self.padding_id)

        _, pull = jax.vjp(rows, self.anchor)
        assert pull(output_grads)[0] == 0

    def backward_bags(self, ids, offsets, output_grads, mode, weights=None):
        options = {"mode": mode, "padding_id": self.padding_id}

        def rows(anchor):
            given = {"offsets": offsets, "weights": weights, **options}
            return embed_bags(self.table, ids, anchor, self.next_step, **given)

        _, pull = jax.vjp(rows, self.anchor)
        assert pull(output_grads)[0] == 0


class FallbackJaxAdapter(JaxAdapter):
    """The same without the native ops."""

    def __init__(self, table, padding_id=None):
        super().__init__(table, padding_id)
        named = NamedTable.of(table, "FallbackJaxAdapter")
        named.ops, named.has_native = fallback, False
