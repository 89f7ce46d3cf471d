"""DLRM on a Parquet click log, stopped half-way and resumed from a checkpoint to the same bits.

    python docs/examples/torch_dlrm.py --rows 80000 --epochs 1

Bags of ids beside dense columns, tables trained in backward (fused=True), items bounded by
max_rows. One chronological pass, each row scored before the model trains on it. A Parquet file
of your own (--parquet) needs the columns that clicklog.py writes.
"""

import tempfile
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from clicklog import log_of, options, print_auc

import embstore as es
from embstore.torch import EmbeddingBagCollection, ParquetDataset, dense_parameters

SPARSE, DENSE, DIM = ["user", "item", "category", "seen"], ["price", "age"], 16
TABLES = {"user": "user", "item": "item", "category": "category", "seen": "item"}


def new_tables(seed: int) -> es.Store:
    """Return the tables; `item` serves the items shown and those seen before."""
    common = {"optimizer": es.Adagrad(lr=0.05), "initializer": es.Normal(std=0.05), "seed": seed}
    bounded = {"max_rows": 500, "eviction": es.CapacityEviction(by="step")}  # the oldest go
    tables = [
        es.Table(DIM, name="user", admission=es.CounterAdmission(2), **common),
        es.Table(DIM, name="item", admission=es.CounterAdmission(3), **bounded, **common),
        es.Table(DIM, name="category", **common),
    ]
    return es.Store(tables, TABLES)


def mlp(*sizes: int) -> torch.nn.Sequential:
    """Return linear layers with ReLU between them."""
    layers: list[torch.nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [torch.nn.Linear(n_in, n_out), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


class DLRM(torch.nn.Module):
    """Embeddings and an MLP of the dense columns, all their dot products, and an MLP over those."""

    def __init__(self, tables: es.Store):
        super().__init__()
        self.embeddings = EmbeddingBagCollection(tables, mode="mean", fused=True)
        n = len(SPARSE) + 1
        self.dense = torch.nn.ModuleDict(
            {"bottom": mlp(len(DENSE), 32, DIM), "top": mlp(DIM + n * (n - 1) // 2, 64, 1)}
        )
        self.register_buffer("pairs", torch.tril_indices(n, n, offset=-1), persistent=False)

    def forward(self, batch: dict) -> torch.Tensor:
        """Return logits (n,)."""
        pooled = self.embeddings({feature: batch[feature] for feature in SPARSE})
        bottom = self.dense["bottom"](torch.stack([batch[name] for name in DENSE], dim=1))
        vectors = torch.stack([bottom, *(pooled[feature] for feature in SPARSE)], dim=1)
        dots = torch.bmm(vectors, vectors.mT)[:, self.pairs[0], self.pairs[1]]
        return self.dense["top"](torch.cat([bottom, dots], dim=1)).squeeze(1)


class Run:
    """A model, its optimizer and its place in the data: what a checkpoint holds."""

    def __init__(self, path: str, seed: int, folder: str | None = None):
        torch.manual_seed(seed)
        store = new_tables(seed) if folder is None else es.Store.load(f"{folder}/tables")
        self.model = DLRM(store)
        self.adam = torch.optim.Adam(dense_parameters(self.model), lr=1e-3)
        dataset = ParquetDataset(path, [*SPARSE, *DENSE, "label"], 256)
        self.loader = dataset.loader()
        if folder is not None:
            self.loader.load_state_dict(store.extra["loader"])
            saved = torch.load(f"{folder}/dense.pt", weights_only=True)
            self.model.dense.load_state_dict(saved["model"])
            self.adam.load_state_dict(saved["adam"])

    def save(self, folder: str) -> None:
        """Write the tables and the place in the data, and the dense part beside them."""
        extra = {"loader": self.loader.state_dict()}
        self.model.embeddings.store.save(f"{folder}/tables", extra=extra)
        dense = {"model": self.model.dense.state_dict(), "adam": self.adam.state_dict()}
        torch.save(dense, f"{folder}/dense.pt")

    def train(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield labels and scores of each batch, after the model has trained on it."""
        for batch in self.loader:
            logits, label = self.model(batch), batch["label"].float()
            self.adam.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(logits, label).backward()
            self.adam.step()  # the tables were trained in backward
            yield label.numpy(), logits.detach().numpy()


def main(folder: str) -> None:
    """Train, save into the folder half-way through the last epoch, resume there, and compare."""
    args = options(__doc__, rows=80_000)
    path = log_of(args, folder)
    run = Run(path, args.seed)
    for epoch in range(args.epochs):
        half = len(run.loader) // 2 if epoch == args.epochs - 1 else -1
        scored = []
        for n, batch in enumerate(run.train(), start=1):
            scored.append(batch)
            if n == half:
                run.save(folder)
        print_auc(epoch, *zip(*scored, strict=True))
    for name, stats in run.model.embeddings.store.stats().items():
        live, pending, evicted = (stats[n] for n in ("n_live", "n_pending", "n_evicted"))
        print(f"{name}: {live} rows, {pending} ids pending, {evicted} evicted")

    again = Run(path, args.seed, folder)
    n_batches = sum(1 for _ in again.train())
    print(f"resumed half-way, {n_batches} batches to the end")
    batch = next(iter(ParquetDataset(path, [*SPARSE, *DENSE], 4096)))
    equal = torch.equal(run.model.eval()(batch), again.model.eval()(batch))
    print("equal predictions after reloading:", equal)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
