"""TFRA's CuckooHashTable on the CPU as a contender; imported in its own environment alone.

The training step is the one its documents recommend inside a tf.function: unique ids, a lookup
through a shadow variable, and Adagrad by DynamicEmbeddingOptimizer.
"""

import numpy as np
import tensorflow as tf
from tensorflow_recommenders_addons import dynamic_embedding as de

from bench.keys import draw_batches, key_of
from bench.worker import resident_bytes

FILL_ROWS = 1 << 17
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)
_tables = {}  # the one in use, by its shape; a second one for inserts


def new_table(n_rows, dim):
    """Return an empty table with room for n_rows."""
    new_table.n_made += 1
    return de.get_variable(
        f"table{new_table.n_made}",
        key_dtype=tf.int64,
        value_dtype=tf.float32,
        dim=dim,
        devices=["/CPU:0"],
        initializer=0.0,
        init_size=n_rows,
        kv_creator=de.CuckooHashTableCreator(),
    )


new_table.n_made = 0


def filled(n_rows, dim, seed):
    """Return a table with a row for each row id, all values 0.01."""
    table = new_table(n_rows, dim)
    for start in range(0, n_rows, FILL_ROWS):
        keys = key_of(np.arange(start, min(start + FILL_ROWS, n_rows)), seed)
        table.upsert(tf.constant(keys), tf.fill((len(keys), dim), 0.01))
    return table


def table_of(n_rows, dim, seed):
    """Return the filled table of a shape; another one is let go first."""
    if (n_rows, dim) not in _tables:
        _tables.clear()
        _tables[n_rows, dim] = filled(n_rows, dim, seed)
    return _tables[n_rows, dim]


def step_of(table, lr):
    """Return a training step as a function of keys and gradients; its Adagrad begins at 0.1."""
    name = f"shadow{new_table.n_made}"
    shadow = de.shadow_ops.ShadowVariable(table, name=name, max_norm=None, trainable=True)
    adagrad = tf.keras.optimizers.legacy.Adagrad(lr, initial_accumulator_value=0.1, epsilon=1e-7)
    optimizer = de.DynamicEmbeddingOptimizer(adagrad)

    @tf.function
    def step(keys, grads):
        unique, inverse = tf.unique(keys, out_idx=tf.int64)
        with tf.GradientTape() as tape:
            rows = tf.gather(de.shadow_ops.embedding_lookup(shadow, unique), inverse)
        found = tape.gradient(rows, [shadow], output_gradients=grads)
        optimizer.apply_gradients(zip(found, [shadow], strict=True))

    return step


def contender(kind, axes, n_batches, seed, lr, n_calls=1):
    """Return a function of the turn that does `n_calls` calls, each of another batch.

    Kinds are "find" and "find in a graph", an "insert" of new keys, and a training "step".
    """
    n_rows, dim, batch = axes["n_rows"], axes["dim"], axes["batch"]
    if kind == "insert":
        table, rows = new_table(n_batches * batch, dim), tf.fill((batch, dim), 0.01)
        new = np.arange(n_batches * batch)
        parts = [tf.constant(keys) for keys in np.split(key_of(new, seed), n_batches)]
        return lambda turn: table.upsert(parts[turn % len(parts)], rows)
    table = table_of(n_rows, dim, seed)
    parts = [tf.constant(keys) for keys in draw_batches(axes, n_batches, seed).keys]
    once = table.lookup
    if kind == "find in a graph":
        once = tf.function(table.lookup)
    elif kind == "step":
        step, grads = step_of(table, lr), tf.random.normal((batch, dim), stddev=0.01)
        once = lambda keys: step(keys, grads)  # noqa: E731

    def call(turn):
        for i in range(turn * n_calls, (turn + 1) * n_calls):
            once(parts[i % len(parts)])

    return call


def learned(values, batches, grads, lr):
    """Return the rows of a table that begins at `values` and learns from batches of row ids."""
    values = tf.constant(values, tf.float32)
    keys = tf.range(len(values), dtype=tf.int64)
    table = new_table(len(values), values.shape[1])
    table.upsert(keys, values)
    step = step_of(table, lr)
    for row_ids in batches:
        step(tf.constant(row_ids, tf.int64), tf.constant(grads, tf.float32))
    return table.lookup(keys).numpy().tolist()


def grow_process(n_rows, dim):
    """Return by how much this process grows for a table of n_rows rows."""
    filled(FILL_ROWS, dim, 0)  # what any first call brings
    before = resident_bytes()
    table = filled(n_rows, dim, 1)
    return (resident_bytes() - before) * int(table.size()) / n_rows
