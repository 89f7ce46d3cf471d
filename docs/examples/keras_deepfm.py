"""DeepFM in Keras 3 on a Parquet click log, on the backend of your choice.

    KERAS_BACKEND=jax python docs/examples/keras_deepfm.py --rows 100000 --epochs 1

One chronological pass; ``fit`` scores each batch before it trains on it, so that its AUC is that of
rows not seen before. Any Parquet file with the columns user, item, category and label (0 or 1) will
do: ``--parquet ratings.parquet``.
"""

import os
import tempfile
from collections.abc import Iterator

os.environ.setdefault("JAX_ENABLE_X64", "1")  # before JAX is imported: ids have 64 bits

import keras
import numpy as np
from clicklog import log_of, options

import embstore as es
from embstore.data import ParquetReader, cross_keys
from embstore.keras import Embedding, EvictEvery, tables_of

FIELDS = ["user", "item", "category", "user_category"]  # the last is a cross
DIM, BATCH = 16, 256


def new_layer(field: str, dim: int, initializer: object, seed: int) -> Embedding:
    """Return an embedding whose rows come with the second sight of an id, and age."""
    return Embedding(
        dim=dim,
        name=f"{field}_rows" if dim > 1 else f"{field}_weight",
        initializer=initializer,
        optimizer=es.Adagrad(lr=0.05),
        admission=es.CounterAdmission(2),
        eviction=es.StepEviction(100),
        seed=seed,
    )


def deepfm(seed: int) -> keras.Model:
    """Return first-order weights, pairwise products of embeddings, and an MLP over them."""
    ids = {field: keras.Input((), dtype="int64", name=field) for field in FIELDS}
    rows = [new_layer(f, DIM, es.Normal(std=0.05), seed)(ids[f]) for f in FIELDS]
    first = [new_layer(f, 1, es.Constant(0.0), seed)(ids[f]) for f in FIELDS]
    fields = keras.ops.stack(rows, axis=1)  # (n, fields, dim)
    sum_of_squares = keras.ops.sum(keras.ops.square(fields), axis=1)
    square_of_sum = keras.ops.square(keras.ops.sum(fields, axis=1))
    pairs = keras.ops.sum(square_of_sum - sum_of_squares, axis=1, keepdims=True) / 2
    hidden = keras.layers.Dense(64, activation="relu")(keras.layers.Flatten()(fields))
    parts = [*first, pairs, keras.layers.Dense(1)(hidden)]
    return keras.Model(ids, keras.layers.Add()(parts))


def batches(path: str) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Yield ids by field and labels, epoch after epoch."""
    reader = ParquetReader(path, ["user", "item", "category", "label"], BATCH)
    while True:
        for batch in reader:
            ids = {field: batch[field] for field in FIELDS[:3]}
            ids["user_category"] = cross_keys(ids["user"], ids["category"])
            yield ids, batch["label"].astype(np.float32)[:, None]


def main(folder: str) -> None:
    """Train, evict, save into the folder, reload and compare."""
    args = options(__doc__, rows=100_000)
    keras.utils.set_random_seed(args.seed)
    path = log_of(args, folder)
    model = deepfm(args.seed)
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.AUC(from_logits=True, num_thresholds=2000, name="auc")],
    )
    evict = EvictEvery(50)
    n_batches = len(ParquetReader(path, ["label"], BATCH))
    given = {"epochs": args.epochs, "steps_per_epoch": n_batches, "shuffle": False, "verbose": 0}
    history = model.fit(batches(path), callbacks=[evict], **given).history
    print(f"Keras {keras.__version__} on {keras.backend.backend()}")
    for epoch, auc in enumerate(history["auc"]):
        kind = "rows seen before" if epoch else "each row scored before it was trained on"
        print(f"epoch {epoch}: AUC {auc:.4f} ({kind})")
    for table in tables_of(model):
        if table.dim > 1:
            print(f"{table.name}: {len(table)} rows, {table.stats()['n_pending']} ids pending")
    print("evicted:", evict.n_evicted)

    model.save(f"{folder}/model.keras")
    again = keras.saving.load_model(f"{folder}/model.keras")
    ids, _ = next(batches(path))
    is_equal = np.array_equal(model.predict(ids, verbose=0), again.predict(ids, verbose=0))
    print("equal predictions after reloading:", is_equal)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
