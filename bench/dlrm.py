"""A DLRM whose dense part is small beside its embeddings, and what is timed of its training step.

It knows no engine: `Sparse` is the embeddings under test, of ours or of a peer, whose process
imports this module as well. Everything else, dense part, batches and first rows, is the same for
all and a function of a seed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench.keys import draw_row_ids

N_DENSE = 13
PATTERN_ROWS = 4096  # of different first values
DENSE_LR = 1e-3


@dataclass(frozen=True)
class Sparse:
    """Embeddings under test.

    `form(row_ids)` makes of (features, samples * bag) row ids what `embed` takes; `embed` gives
    (samples, features * dim). `trainer` is its optimizer, None where backward trains.
    """

    form: Callable[[np.ndarray], Any]
    embed: Callable[[Any], torch.Tensor]
    trainer: Any = None

    def clear(self):
        if self.trainer is not None:
            self.trainer.zero_grad()

    def train(self):
        if self.trainer is not None:
            self.trainer.step()


class Tower(torch.nn.Module):
    """What a DLRM has but for embeddings: a bottom MLP, dot products of all pairs, a top MLP.

    M. Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation
    Systems", arXiv:1906.00091.
    """

    def __init__(self, n_features, dim):
        super().__init__()
        n = n_features + 1
        self.dim = dim
        relu, linear = torch.nn.ReLU, torch.nn.Linear
        self.bottom = torch.nn.Sequential(linear(N_DENSE, 32), relu(), linear(32, dim), relu())
        self.top = torch.nn.Sequential(linear(dim + n * (n - 1) // 2, 32), relu(), linear(32, 1))
        i, j = torch.triu_indices(n, n, offset=1)
        self.register_buffer("pairs", i * n + j)

    def forward(self, dense, pooled):
        """Return a logit for each sample, of (n, 13) and (n, features * dim)."""
        own = self.bottom(dense)
        rows = torch.cat([own, pooled], 1).view(len(dense), -1, self.dim)
        products = torch.bmm(rows, rows.transpose(1, 2)).flatten(1)
        return self.top(torch.cat([own, products.index_select(1, self.pairs)], 1)).squeeze(1)


def row_values(dim):
    """Return (PATTERN_ROWS, dim) float32: row i of every table begins as row i % PATTERN_ROWS."""
    i, j = np.arange(PATTERN_ROWS), np.arange(dim)
    return (np.sin(i[:, None] * 0.7 + j * 1.3) * 0.05).astype(np.float32)


def fill(weight):
    """Write the first values into an (n, dim) tensor; return it."""
    pattern = torch.from_numpy(row_values(weight.shape[1]))
    with torch.no_grad():
        for part in weight.split(PATTERN_ROWS):
            part.copy_(pattern[: len(part)])
    return weight


def draw(axes, n_batches, seed):
    """Yield (features, samples * bag) row ids, drawn of each feature's own n_rows."""
    rng = np.random.default_rng([seed, axes["n_rows"], axes["samples"]])
    shape = (axes["features"], axes["samples"] * int(axes["bag"]))
    for _ in range(n_batches):
        size = shape[0] * shape[1]
        yield draw_row_ids(rng, axes["distribution"], axes["n_rows"], size).reshape(shape)


@dataclass(frozen=True)
class DensePart:
    """The tower, its Adam, and the dense inputs and labels of a batch."""

    tower: Tower
    optimizer: torch.optim.Optimizer
    dense: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def make(cls, axes, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            tower = Tower(axes["features"], axes["dim"])
            dense = torch.randn(axes["samples"], N_DENSE)
            labels = torch.randint(2, (axes["samples"],)).float()
        return cls(tower, torch.optim.Adam(tower.parameters(), lr=DENSE_LR), dense, labels)

    def learn(self, pooled, sparse=None):
        """Do what of a step comes after the lookup; return the loss."""
        loss_of = torch.nn.functional.binary_cross_entropy_with_logits
        self.optimizer.zero_grad()
        loss = loss_of(self.tower(self.dense, pooled), self.labels)
        loss.backward()
        self.optimizer.step()
        if sparse is not None:
            sparse.train()
        return loss


def call_of(part, sparse, axes, n_batches, seed):
    """Return a function of the turn that does a part of a training step: "step" or "sparse".

    "sparse" is the lookup, its backward pass from a gradient that is there, and the update.
    """
    inputs = [sparse.form(row_ids) for row_ids in draw(axes, n_batches, seed)]
    embed = sparse.embed
    if part == "step":
        dense = DensePart.make(axes, seed)

        def step(turn):
            sparse.clear()
            dense.learn(embed(inputs[turn % n_batches]), sparse)

        return step
    shape = (axes["samples"], axes["features"] * axes["dim"])
    generator = torch.Generator().manual_seed(seed)
    grads = torch.randn(shape, generator=generator) * 1e-4

    def alone(turn):
        sparse.clear()
        embed(inputs[turn % n_batches]).backward(grads)
        sparse.train()

    return alone


def dense_call(axes, seed):
    """Return a function of the turn that does a step's dense part, with rows that are there."""
    shape = (axes["samples"], axes["features"] * axes["dim"])
    pooled, dense = torch.full(shape, 0.01, requires_grad=True), DensePart.make(axes, seed)

    def call(turn):
        pooled.grad = None
        dense.learn(pooled)

    return call


def losses(sparse, axes, n_steps, seed):
    """Return the loss of each of some steps: two engines that learn alike have the same."""
    dense, found = DensePart.make(axes, seed), []
    for row_ids in draw(axes, n_steps, seed):
        sparse.clear()
        loss = dense.learn(sparse.embed(sparse.form(row_ids)), sparse)
        found.append(float(loss.detach()))
    return found
