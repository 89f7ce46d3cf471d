"""DeepFM in JAX and Flax: tables in embstore, the dense part by optax, all in one compiled step.

    python docs/examples/jax_flax.py --rows 100000 --epochs 1

One chronological pass, each row scored before the model trains on it. Any Parquet file with the
columns user, item, category and label (0 or 1) will do: ``--parquet ratings.parquet``.
"""

import tempfile
from collections.abc import Iterator

import jax
import numpy as np
import optax
from clicklog import log_of, options, print_auc
from flax import nnx

import embstore as es
from embstore.data import ParquetReader, cross_keys
from embstore.jax import find, first_step, lookup, update

jax.config.update("jax_enable_x64", True)  # ids have 64 bits

FIELDS = ["user", "item", "category", "user*category"]  # the last is a cross
DIM, BATCH = 16, 256


def new_table(seed: int) -> es.Table:
    """Return the table of all fields: a row is a weight of first order and an embedding."""
    return es.Table(
        1 + DIM,
        name="fields",
        optimizer=es.Adagrad(lr=0.05),
        initializer=es.Normal(std=0.05),
        admission=es.CounterAdmission(2),  # a row from the second sight of an id on
        eviction=es.StepEviction(150),  # and none after 150 steps without it
        seed=seed,
    )


class DeepFM(nnx.Module):
    """First-order weights, pairwise products of embeddings, and an MLP over them."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(DIM * len(FIELDS), 64, rngs=rngs)
        self.last = nnx.Linear(64, 1, rngs=rngs)

    def __call__(self, rows: jax.Array) -> jax.Array:
        """Return logits (n,) of rows (n, fields, 1 + DIM)."""
        first, fields = rows[..., 0].sum(1), rows[..., 1:]
        pairs = ((fields.sum(1) ** 2) - (fields**2).sum(1)).sum(1) / 2
        hidden = nnx.relu(self.hidden(fields.reshape(len(fields), -1)))
        return first + pairs + self.last(hidden).squeeze(1)


def loss_of(model: DeepFM, rows: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the mean loss, and the logits."""
    logits = model(rows)
    return optax.sigmoid_binary_cross_entropy(logits, label).mean(), logits


def compiled(table: es.Table) -> tuple:
    """Return a function that trains on a batch, and one that predicts."""

    @nnx.jit
    def train(model, optimizer, ids, label, step):
        rows, ticket = lookup(table, ids, step)
        gradient = nnx.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
        (_, logits), (of_model, of_rows) = gradient(model, rows, label)
        optimizer.update(model, of_model)
        return logits, update(table, ticket, of_rows, step)

    @nnx.jit
    def predict(model, ids):
        return model(find(table, ids))

    return train, predict


def batches(path: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield ids (n, fields) and labels (n,)."""
    for batch in ParquetReader(path, [*FIELDS[:3], "label"], BATCH):
        columns = [batch[field] for field in FIELDS[:3]]
        columns.append(cross_keys(batch["user"], batch["category"]))
        # One table has the ids of all fields: crossed with its number, each field has its own.
        numbered = [cross_keys(c, np.full_like(c, field)) for field, c in enumerate(columns)]
        yield np.stack(numbered, axis=1), batch["label"].astype(np.float32)


def main(folder: str) -> None:
    """Train, evict, save into the folder, reload and compare."""
    args = options(__doc__, rows=100_000)
    path = log_of(args, folder)
    table, model = new_table(args.seed), DeepFM(nnx.Rngs(args.seed))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    train, predict = compiled(table)
    step = first_step(table)
    for epoch in range(args.epochs):
        labels, scores = [], []
        for ids, label in batches(path):
            logits, step = train(model, optimizer, ids, label, step)
            labels.append(label)
            scores.append(logits)
        print_auc(epoch, labels, [np.asarray(logits) for logits in scores])
    last = int(step)  # waits for all steps: what reads the table from here on sees them
    print(f"{len(table)} rows, {table.stats()['n_pending']} ids pending after {last} steps")
    print("evicted:", table.evict(step=last).n_evicted)

    table.save(f"{folder}/table")
    again = es.Table.load(f"{folder}/table")
    ids, _ = next(batches(path))
    _, predict_again = compiled(again)
    is_equal = bool((predict(model, ids) == predict_again(model, ids)).all())
    print("equal predictions after reloading:", is_equal)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
