"""DeepFM on a Parquet click log, with admission, eviction and a checkpoint of the tables.

    python docs/examples/torch_deepfm.py --rows 100000 --epochs 1

One chronological pass, each row scored before the model trains on it. Any Parquet file with the
columns user, item, category and label (0 or 1) will do: ``--parquet ratings.parquet``.
"""

import tempfile

import torch
from clicklog import log_of, options, print_auc

import embstore as es
from embstore.torch import EmbeddingCollection, ParquetDataset, dense_parameters, optimizer

FIELDS = ["user", "item", "category", "user*category"]  # the last is a cross
DIM = 16


def new_tables(seed: int) -> es.Store:
    """Return one table of dim 16 and one of dim 1 for each field."""
    tables = []
    for field in FIELDS:
        policies = {
            "admission": es.CounterAdmission(2),  # a row from the second sight of an id on
            "eviction": es.StepEviction(150),  # and none after 150 steps without it
            "optimizer": es.Adagrad(lr=0.05),
            "seed": seed,
        }
        tables.append(es.Table(DIM, name=field, initializer=es.Normal(std=0.05), **policies))
        tables.append(es.Table(1, name=f"{field}:first", initializer=es.Constant(0.0), **policies))
    return es.Store(tables)


class DeepFM(torch.nn.Module):
    """First-order weights, pairwise products of embeddings, and an MLP over them."""

    def __init__(self, tables: es.Store):
        super().__init__()
        self.embeddings = EmbeddingCollection(tables)
        self.dense = torch.nn.Sequential(
            torch.nn.Linear(DIM * len(FIELDS), 64), torch.nn.ReLU(), torch.nn.Linear(64, 1)
        )

    def forward(self, batch: dict) -> torch.Tensor:
        """Return logits (n,)."""
        ids = {field: batch[field] for field in FIELDS}
        rows = self.embeddings({**ids, **{f"{field}:first": ids[field] for field in FIELDS}})
        first = torch.cat([rows[f"{field}:first"] for field in FIELDS], dim=1).sum(1)
        fields = torch.stack([rows[field] for field in FIELDS], dim=1)  # (n, fields, dim)
        pairs = (fields.sum(1).square() - fields.square().sum(1)).sum(1) / 2
        return first + pairs + self.dense(fields.flatten(1)).squeeze(1)


def train(model: DeepFM, batches: object, *optimizers: torch.optim.Optimizer) -> tuple[list, list]:
    """Score each batch, then train on it; return labels and scores by batch."""
    labels, scores = [], []
    for batch in batches:
        logits, label = model(batch), batch["label"].float()
        torch.nn.functional.binary_cross_entropy_with_logits(logits, label).backward()
        for each in optimizers:
            each.step()
            each.zero_grad()
        labels.append(label.numpy())
        scores.append(logits.detach().numpy())
    return labels, scores


def main(folder: str) -> None:
    """Train, evict, save into the folder, reload and compare."""
    args = options(__doc__, rows=100_000)
    torch.manual_seed(args.seed)
    path = log_of(args, folder)
    loader = ParquetDataset(path, ["label"], 256, features=FIELDS).loader()
    model = DeepFM(new_tables(args.seed))
    store = model.embeddings.store
    sparse, dense = optimizer(model), torch.optim.Adam(dense_parameters(model), lr=1e-3)
    for epoch in range(args.epochs):
        print_auc(epoch, *train(model, loader, sparse, dense))
    for name, stats in store.stats().items():
        if ":first" not in name:
            print(f"{name}: {stats['n_live']} rows, {stats['n_pending']} ids pending")
    print("evicted:", {name: r.n_evicted for name, r in store.evict(step=store.step).items()})

    store.save(f"{folder}/tables", extra={"loader": loader.state_dict()})
    torch.save(model.dense.state_dict(), f"{folder}/dense.pt")
    again = DeepFM(es.Store.load(f"{folder}/tables"))
    again.dense.load_state_dict(torch.load(f"{folder}/dense.pt", weights_only=True))
    model.eval(), again.eval()
    batch = next(iter(ParquetDataset(path, [], 4096, features=FIELDS)))
    print("equal predictions after reloading:", torch.equal(model(batch), again(batch)))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
