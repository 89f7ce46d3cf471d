"""Two-tower retrieval: in-batch sampled softmax, corrected by the frequencies that the table keeps.

    python docs/examples/torch_two_tower.py --rows 100000 --epochs 1

The items of a batch are the candidates of each of its clicks. They are a sample by popularity, so
log q(item) is taken off their logits (Yi et al., "Sampling-bias-corrected neural modeling for large
corpus item recommendations", 2019). q comes from the table's own counts, which are halved every few
steps: counts of all time would be wrong for new items, and retrieve none of them. The last tenth of
the log is kept for recall@10 among all live items. A file of your own (--parquet) needs the columns
user, item, seen and label.
"""

import tempfile

import numpy as np
import torch
from clicklog import log_of, options, print_auc

import embstore as es
from embstore.torch import (
    Embedding,
    EmbeddingBagCollection,
    ParquetDataset,
    dense_parameters,
    optimizer,
)

DIM = 16


class TwoTower(torch.nn.Module):
    """Vectors of users, from their id and what they have clicked, and vectors of items."""

    def __init__(self, users: es.Store, items: es.Table):
        super().__init__()
        self.items = Embedding(items)
        self.users = EmbeddingBagCollection(users, mode="mean")
        self.dense = torch.nn.Sequential(
            torch.nn.Linear(2 * DIM, 64), torch.nn.ReLU(), torch.nn.Linear(64, DIM)
        )

    def forward(self, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the users' vectors and the items', (n, DIM) each."""
        users = self.users({"user": batch["user"], "seen": batch["seen"]})
        return self.dense(users.values()), self.items(batch["item"])


def new_model(seed: int) -> TwoTower:
    """Return a model; items that are hardly shown any more are forgotten, and not retrieved."""
    common = {"optimizer": es.Adagrad(lr=0.1), "initializer": es.Normal(std=0.1), "seed": seed}
    # What was seen has a table of its own: the counts of `item` are of the items shown.
    user = es.Table(DIM, name="user", admission=es.CounterAdmission(2), **common)
    seen = es.Table(DIM, name="seen", **common)
    rare = es.FrequencyEviction(min_freq=2, min_age=40, halve_every=5)  # counts of the recent past
    items = es.Table(DIM, name="item", eviction=rare, evict_every=20, **common)
    return TwoTower(es.Store([user, seen]), items)


def loss_of(
    users: torch.Tensor,
    items: torch.Tensor,
    ids: torch.Tensor,
    table: es.Table,
    is_click: torch.Tensor,
) -> torch.Tensor:
    """Return the softmax loss of the clicks over the items of the batch."""
    freq = torch.from_numpy(table.find(ids.numpy(), with_meta=True).freq.astype(np.float32))
    logits = users[is_click] @ items.T - (freq / freq.sum()).log()
    place = is_click.nonzero().squeeze(1)
    is_again = ids[is_click, None] == ids[None, :]  # the clicked item, shown to others too
    is_again[torch.arange(len(place)), place] = False
    return torch.nn.functional.cross_entropy(logits.masked_fill(is_again, -1e9), place)


def recall_at_10(model: TwoTower, batches: list[dict]) -> tuple[float, int]:
    """Return the share of clicks whose item is among the user's best 10, and how many items are."""
    table = model.items.table
    live = torch.from_numpy(np.concatenate([block.keys for block in table.export()]))
    with torch.no_grad():
        vectors, n_hits, n_clicks = model.items(live), 0, 0
        for batch in batches:
            is_click = batch["label"] > 0.5
            best = (model(batch)[0][is_click] @ vectors.T).topk(10).indices
            n_hits += int((live[best] == batch["item"][is_click, None]).sum())
            n_clicks += int(is_click.sum())
    return n_hits / n_clicks, len(live)


def main(folder: str) -> None:
    """Train on nine tenths, print AUC and recall, save into the folder, reload and compare."""
    args = options(__doc__, rows=100_000)
    torch.manual_seed(args.seed)
    loader = ParquetDataset(log_of(args, folder), ["user", "item", "seen", "label"], 512).loader()
    model = new_model(args.seed)
    optimizers = optimizer(model), torch.optim.Adam(dense_parameters(model), lr=2e-3)
    for epoch in range(args.epochs):
        scored, held_out = [], []
        for n, batch in enumerate(loader):
            if n >= len(loader) * 9 // 10:
                held_out.append(batch)
                continue
            (users, items), is_click = model(batch), batch["label"] > 0.5
            loss_of(users, items, batch["item"], model.items.table, is_click).backward()
            for each in optimizers:
                each.step()
                each.zero_grad()
            scored.append((is_click.numpy(), (users * items).sum(1).detach().numpy()))
        print_auc(epoch, *zip(*scored, strict=True))
    recall, n_live = recall_at_10(model.eval(), held_out)
    print(f"recall@10 {recall:.4f} among {n_live} live items; by chance {10 / n_live:.4f}")
    tables = [model.items.table, *(model.users.store[name] for name in model.users.store)]
    for table in tables:
        stats = table.stats()
        live, pending, evicted = (stats[n] for n in ("n_live", "n_pending", "n_evicted"))
        print(f"{table.name}: {live} rows, {pending} ids pending, {evicted} evicted")

    model.users.store.save(f"{folder}/users")
    model.items.table.save(f"{folder}/items")
    again = TwoTower(es.Store.load(f"{folder}/users"), es.Table.load(f"{folder}/items")).eval()
    again.dense.load_state_dict(model.dense.state_dict())
    pairs = zip(model(held_out[0]), again(held_out[0]), strict=True)
    print("equal predictions after reloading:", all(torch.equal(a, b) for a, b in pairs))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(folder)
