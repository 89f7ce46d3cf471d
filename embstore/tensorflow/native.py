"""Lookups and updates by the native ops (src/tensorflow), and the gradients of the ops.

The gradient of a lookup settles with the table: it waits for `Optimizer`, or trains at once. To the
anchor, the variable of the layer that makes TensorFlow ask for it, it gives a 1 in the slot where
it waits: so `Optimizer` knows it, and what scales the 1 on its way there scales the gradient.
"""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from embstore._adapters import ERROR_OF_STATUS
from embstore.tensorflow.op_library import load_op

if TYPE_CHECKING:
    from embstore.tensorflow.names import NamedTable

STATUS_PAYLOAD = b"embstore.status"
DECORATION = re.compile(r"^\{\{.*?\}\} | \[Op:\w+\].*$", re.DOTALL)  # what TensorFlow adds


def find(table: "NamedTable", ids: Any) -> Any:
    """Return the rows (*shape, dim) of ids; the table is not changed."""
    return _call(load_op().embstore_find, ids, table=table.key, dim=table.table.dim)


def lookup(table: "NamedTable", anchor: Any, ids: Any, fused: bool) -> Any:
    """Return the rows (*shape, dim) of ids, which are counted, admitted and inserted."""
    step = table.clock.variable
    op = load_op().embstore_lookup
    return _call(op, anchor, ids, step, table=table.key, dim=table.table.dim, fused=fused)[0]


def pooled(table: "NamedTable", ids: Any, offsets: Any, weights: Any, mode: str) -> Any:
    """Return the pooled rows (n_bags, dim); the table is not changed."""
    op = load_op().embstore_pooled
    return _call(op, ids, offsets, weights, table=table.key, dim=table.table.dim, mode=mode)


def pooled_lookup(
    table: "NamedTable", anchor: Any, ids: Any, offsets: Any, weights: Any, mode: str, fused: bool
) -> Any:
    """Return the pooled rows (n_bags, dim) of ids, which are counted, admitted and inserted."""
    step, op = table.clock.variable, load_op().embstore_pooled_lookup
    attributes = {"table": table.key, "dim": table.table.dim, "mode": mode, "fused": fused}
    return _call(op, anchor, ids, offsets, weights, step, **attributes)[0]


def apply(table: "NamedTable", scale: Any) -> Any:
    """Train with the gradients whose slots in `scale` are not 0, times that; return the report."""
    step = table.clock.variable.read_value()
    op, rate = load_op().embstore_apply, table.rate(step)
    return _call(op, step, rate, scale, table=table.key, dim=table.table.dim)


def clear(table: "NamedTable") -> Any:
    """Forget the gradients that wait; return of how many lookups they were."""
    return load_op().embstore_clear(table=table.key)


def hits(table: "NamedTable") -> tuple[int, int]:
    """Return (unique keys, found ones) of the training lookups since the last call."""
    n_unique, n_found = load_op().embstore_hits(table=table.key).numpy()
    return int(n_unique), int(n_found)


def _call(op: Callable[..., Any], *inputs: Any, **attributes: Any) -> Any:
    """Run an op; outside of graphs, its errors are embstore's."""
    try:
        return op(*inputs, **attributes)
    except tf.errors.OpError as error:
        status = error.experimental_payloads.get(STATUS_PAYLOAD)
        if status is None:
            raise
        raise ERROR_OF_STATUS[int(status)](DECORATION.sub("", error.message)) from None


def _settle(op: Any, grads: Any, step: Any) -> Any:
    """Return the anchor's gradient, after those of the rows were left with the table."""
    from embstore.tensorflow.names import named

    key, fused = op.get_attr("table"), op.get_attr("fused")
    table = named(key.decode() if isinstance(key, bytes) else key)
    settled = _call(
        load_op().embstore_settle,
        op.outputs[1],
        tf.convert_to_tensor(grads),
        step,
        table.rate(step),
        table=table.key,
        dim=table.table.dim,
        fused=fused,
        anchor=op.inputs[0].shape,
    )
    if fused:
        with tf.control_dependencies([settled]):
            table.clock.go_behind(step)
    return settled


def _gradient_of_lookup(op: Any, grads: Any, _: Any) -> list[Any]:
    return [_settle(op, grads, op.inputs[2]), None, None]


def _gradient_of_pooled_lookup(op: Any, grads: Any, _: Any) -> list[Any]:
    return [_settle(op, grads, op.inputs[4]), None, None, None, None]


def register_gradients() -> None:
    """Tell TensorFlow the gradients of the ops, once in a process."""
    tf.RegisterGradient("EmbstoreLookup")(_gradient_of_lookup)
    tf.RegisterGradient("EmbstorePooledLookup")(_gradient_of_pooled_lookup)
    for op in ("EmbstoreFind", "EmbstorePooled"):
        tf.no_gradient(op)
