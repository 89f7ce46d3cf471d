"""What the examples share: their options, AUC, and a click log as Parquet in time order.

Users like items near their own taste. Items are born, shown much while new, and fade, so that a
table that forgets has something to forget; ids are spread over all 64 bits.
"""

import argparse

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from embstore.data import fixed_hash

N_USERS, N_TASTES, N_SEEN = 3000, 8, 5


def options(description: str, rows: int) -> argparse.Namespace:
    """Read the options of an example from the command line."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=rows, help="of the generated log")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--parquet", help="read this file instead of generating a log")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def log_of(args: argparse.Namespace, folder: str) -> str:
    """Return the path of the log: the given one, or one that is written into the folder."""
    if args.parquet is not None:
        return args.parquet
    write_clicklog(f"{folder}/clicks.parquet", args.rows, args.seed)
    return f"{folder}/clicks.parquet"


def print_auc(epoch: int, labels: list[np.ndarray], scores: list[np.ndarray]) -> None:
    """Print the AUC of the batches of an epoch."""
    kind = "rows seen before" if epoch else "each row scored before it was trained on"
    value = auc(np.concatenate(labels), np.concatenate(scores))
    print(f"epoch {epoch}: AUC {value:.4f} ({kind})")


def write_clicklog(path: str, n_rows: int, seed: int) -> None:
    """Write columns user, item, category, seen (a list of items), price, age, label, time."""
    random = np.random.default_rng(seed)
    time = np.arange(n_rows)
    newest = 200 + time // 100  # an item is born every 100 rows
    user = _zipf(random, n_rows, N_USERS)
    is_near = random.random(n_rows) < 0.5  # half of what is shown fits the user
    taste = np.where(is_near, user % N_TASTES, random.integers(0, N_TASTES, n_rows))
    age = _zipf(random, n_rows, 200)
    item = np.maximum(newest - age, 0) // N_TASTES * N_TASTES + taste
    quality, readiness = (
        _normal(random, n)[i] for n, i in ((item.max() + 1, item), (N_USERS, user))
    )
    price = _normal(random, n_rows).astype(np.float32)
    fits = np.where(taste == user % N_TASTES, 1.2, -0.8)
    logit = -0.7 + fits + 0.7 * quality + 0.5 * readiness - 0.4 * price
    label = random.random(n_rows) < 1 / (1 + np.exp(-logit))
    key = (fixed_hash(n.astype(np.int64) + 1).view(np.int64) for n in (user, item + N_USERS))
    user_key, item_key = key
    columns = {
        "user": user_key,
        "item": item_key,
        "category": pa.array(taste).cast(pa.string()),
        "seen": _history(user, item_key, label),
        "price": price,
        "age": np.log1p(age).astype(np.float32),
        "label": label.astype(np.float32),
        "time": time,
    }
    pq.write_table(pa.table(columns), path, row_group_size=8192)


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the probability that a click is scored higher than what was not clicked."""
    _, ranks, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = (np.cumsum(counts) - (counts - 1) / 2)[ranks]
    n_clicks = int(labels.sum())
    n_pairs = n_clicks * (len(labels) - n_clicks)
    return float((mean_rank[labels > 0.5].sum() - n_clicks * (n_clicks + 1) / 2) / n_pairs)


def _history(user: np.ndarray, item: np.ndarray, label: np.ndarray) -> list[list[int]]:
    """Return what the user has clicked before, the latest items first."""
    clicked: dict[int, list[int]] = {}
    seen = []
    for who, what, is_click in zip(user.tolist(), item.tolist(), label.tolist(), strict=True):
        before = clicked.get(who, [])
        seen.append(before)
        if is_click:
            clicked[who] = [what, *before][:N_SEEN]
    return seen


def _zipf(random: np.random.Generator, n: int, n_ranks: int) -> np.ndarray:
    return np.minimum((10 * (n_ranks / 10 + 1) ** random.random(n) - 10).astype(int), n_ranks - 1)


def _normal(random: np.random.Generator, n: int) -> np.ndarray:
    return random.standard_normal(n)
