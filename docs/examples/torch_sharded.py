"""A two-tower click model on many processes: tables sharded over them, the dense part in DDP.

    torchrun --nproc-per-node 2 docs/examples/torch_sharded.py --epochs 2 --folder run

Each process reads its part of the log and holds the rows of the ids that it owns. A save follows
each epoch, and a later start goes on from the last one, on any number of processes: run it again
with ``--epochs 3 --nproc-per-node 4``.
"""

import argparse
import os
from collections.abc import Iterable, Iterator
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from clicklog import print_auc, write_clicklog
from torch.nn.parallel import DistributedDataParallel

import embstore as es
from embstore.torch import (
    ParquetDataset,
    ShardedEmbeddingCollection,
    clip_grad_norm_,
    dense_parameters,
    latest_save,
    load_shard,
    optimizer,
)

FEATURES = ["user", "item", "category", "user*category"]
DIM = 16


def new_tables() -> es.Store:
    """Return a table for each feature; ids are admitted at their second sight, by any process."""
    common = {"optimizer": es.Adagrad(lr=0.05), "initializer": es.Normal(std=0.05)}
    tables = [es.Table(DIM, name=f, admission=es.CounterAdmission(2), **common) for f in FEATURES]
    return es.Store(tables)


class TwoTower(torch.nn.Module):
    """A vector of the user's features and one of the item's; their product is the logit."""

    def __init__(self, tables: es.Store):
        super().__init__()
        self.embeddings = ShardedEmbeddingCollection(tables)
        self.user = torch.nn.Linear(2 * DIM, DIM)
        self.item = torch.nn.Linear(2 * DIM, DIM)

    def forward(self, ids: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return logits (n,)."""
        rows = self.embeddings(ids)
        user = self.user(torch.cat([rows["user"], rows["user*category"]], dim=1))
        item = self.item(torch.cat([rows["item"], rows["category"]], dim=1))
        return (user * item).sum(dim=1)


def with_the_next(
    loader: Iterable[dict], embeddings: ShardedEmbeddingCollection
) -> Iterator[tuple[dict, torch.Tensor]]:
    """Yield ids and labels of each batch; the ids of the one behind it are on their way by then."""
    before = None
    for batch in loader:
        ids = {feature: batch[feature] for feature in FEATURES}
        embeddings.prefetch(ids)
        if before is not None:
            yield before
        before = ids, batch["label"]
    if before is not None:
        yield before


def train(model: DistributedDataParallel, loader: Iterable[dict], optimizers: list) -> list:
    """Score each batch, then train on it; return loss, labels and scores of this process."""
    found = []
    for ids, label in with_the_next(loader, model.module.embeddings):
        logits = model(ids)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, label)
        loss.backward()
        clip_grad_norm_(model, 10.0)
        for each in optimizers:
            each.step()
            each.zero_grad()
        found.append((loss.detach(), label, logits.detach()))
    return [torch.stack(column) for column in zip(*found, strict=True)]


def of_all_ranks(own: torch.Tensor) -> np.ndarray:
    """Return the numbers of all processes, one after another."""
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    return torch.cat(parts).numpy()


def state_of(model: torch.nn.Module, dense: torch.optim.Optimizer) -> dict:
    """Return what a save has beside the tables."""
    towers = {name: getattr(model, name).state_dict() for name in ("user", "item")}
    return {**towers, "dense": dense.state_dict()}


def main() -> None:
    """Train, from the last save on, and save after each epoch."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=65_536, help="of the generated log")
    parser.add_argument("--epochs", type=int, default=2, help="altogether")
    parser.add_argument("--folder", default="sharded-run", help="of the log and the saves")
    args = parser.parse_args()
    dist.init_process_group("gloo", timeout=timedelta(minutes=1))
    rank, world_size = dist.get_rank(), dist.get_world_size()
    es.set_num_threads(max(1, (os.cpu_count() or 1) // world_size))
    log, saves = f"{args.folder}/clicks.parquet", f"{args.folder}/saves"
    if rank == 0 and not os.path.exists(log):
        os.makedirs(args.folder, exist_ok=True)
        write_clicklog(log, args.rows, seed=0)
    dist.barrier()

    is_new = latest_save(saves) is None
    store = new_tables() if is_new else load_shard(saves)
    torch.manual_seed(0)
    model = DistributedDataParallel(TwoTower(store))
    sparse, dense = optimizer(model), torch.optim.Adam(dense_parameters(model), lr=1e-3)
    first = 0
    if not is_new:
        extra, first = store.extra, store.extra["n_epochs"]
        model.module.user.load_state_dict(extra["user"])
        model.module.item.load_state_dict(extra["item"])
        dense.load_state_dict(extra["dense"])
        print(f"rank {rank} of {world_size}: on from epoch {first}, {len(store['user'])} users")
    dataset = ParquetDataset(log, ["label"], 512, features=FEATURES, even=True, drop_last=True)
    for epoch in range(first, args.epochs):
        loss, label, score = train(model, dataset, [sparse, dense])
        losses, labels, scores = of_all_ranks(loss), of_all_ranks(label), of_all_ranks(score)
        if rank == 0:
            print(f"epoch {epoch}: loss {losses.mean():.4f}")
            print_auc(epoch, [labels.ravel()], [scores.ravel()])
        extra = {**state_of(model.module, dense), "n_epochs": epoch + 1}
        model.module.embeddings.save(saves, extra=extra)
    n_rows = of_all_ranks(torch.tensor([len(store[name]) for name in FEATURES]))
    if rank == 0:
        print("rows by process:", n_rows.reshape(world_size, -1).sum(axis=1).tolist())
        print("bytes:", model.module.embeddings.traffic())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
