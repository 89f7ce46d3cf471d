"""The training step: dedup, find_or_insert, sum of duplicate gradients and Adagrad.

Ours is two calls, find_or_insert and apply_gradients. torch's is nn.Embedding(sparse=True), its
backward pass, and torch.optim.Adagrad, which sums duplicates as well. Before the clock starts, a
small copy of each learns from the same batches and the rows are compared. All keys have rows.
"""

import os
from dataclasses import dataclass
from functools import cached_property

import numpy as np

import embstore as es
from bench import harness, targets
from bench.bench_lookup import aligned_empty
from bench.harness import Case, Contender, Ratio, Scale, product
from bench.keys import draw_batches, key_of
from bench.machine import has_module

SCALES = {
    "tiny": Scale(n_rows=2000, batch=256, rounds=2),
    "quick": Scale(n_rows=20_000, batch=4096, rounds=5),
    "default": Scale(n_rows=1_000_000, batch=131_072, rounds=15),
    "full": Scale(n_rows=10_000_000, batch=131_072, rounds=15),
}
FILL_ROWS = 1 << 17  # rows of one call while a table is filled
LEARNING_RATE = 0.05

OURS, OURS_OUT = "embstore step", "embstore step, out="
OURS_FORWARD = "embstore find_or_insert alone"
OURS_2, TORCH, TORCH_2 = "embstore step, 2 threads", "torch step", "torch step, 2 threads"


@dataclass(frozen=True)
class Setup:
    """The models of some cases, each with `n_rows` rows."""

    n_rows: int
    dim: int
    seed: int

    def build(self):
        return Workspace(self)


class Workspace:
    """The models, made when the first contender asks for them, and what all of them read."""

    def __init__(self, setup):
        self.setup = setup
        self.notes = {}
        self.step = 0
        self._batches = (None, None)
        self._grads = {}

    def batches(self, case):
        """Return the batches of a case; those of one case at a time are kept."""
        asked = (tuple(sorted(case.axes.items())), case.n_batches)
        if self._batches[0] != asked:
            self._batches = (asked, draw_batches(case.axes, case.n_batches, self.setup.seed))
            row_ids = self._batches[1].row_ids
            unique = [len(np.unique(ids)) / len(ids) for ids in row_ids[:4]]
            self.unique_share = round(float(np.mean(unique)), 4)
        self.notes["unique_share"] = self.unique_share
        return self._batches[1]

    def grads(self, batch):
        """Return (batch, dim) gradients, the same for all."""
        if batch not in self._grads:
            rng = np.random.default_rng(self.setup.seed)
            grads = rng.standard_normal((batch, self.setup.dim), np.float32) * np.float32(0.01)
            self._grads = {batch: grads}
        return self._grads[batch]

    @cached_property
    def table(self):
        return filled_table(self.setup)

    @cached_property
    def torch_model(self):
        """The torch module and its optimizer, which all torch contenders share."""
        return torch_twin(np.full((self.setup.n_rows, self.setup.dim), 0.01, np.float32))

    def next_step(self):
        self.step += 1
        return self.step


def filled_table(setup):
    """Return a table with Adagrad in which every row of the setup is born."""
    table = es.Table(
        setup.dim,
        optimizer=es.Adagrad(lr=LEARNING_RATE),
        seed=setup.seed,
        hash_seed=setup.seed,
    )
    table.reserve(setup.n_rows)
    out = np.empty((FILL_ROWS, setup.dim), np.float32)
    for start in range(0, setup.n_rows, FILL_ROWS):
        keys = key_of(np.arange(start, min(start + FILL_ROWS, setup.n_rows)), setup.seed)
        table.find_or_insert(keys, step=0, out=out[: len(keys)]).close()
    return table


def torch_twin(values):
    """Return a sparse nn.Embedding of these values, and its Adagrad."""
    import torch

    torch.sparse.check_sparse_tensor_invariants.disable()  # its default, said aloud: no warning
    weight = torch.from_numpy(values)
    module = torch.nn.Embedding.from_pretrained(weight, freeze=False, sparse=True)
    return module, torch.optim.Adagrad(module.parameters(), lr=LEARNING_RATE)


def torch_step(module, optimizer, row_ids, grads):
    optimizer.zero_grad()
    module(row_ids).backward(grads)
    optimizer.step()


def build_ours(with_out=False, with_update=True):
    def build(space, case):
        table, keys = space.table, list(space.batches(case).keys)
        grads = space.grads(case.axes["batch"])
        out = aligned_empty(grads.shape) if with_out else None
        space.notes["load_measured"] = round(table.stats()["load_factor"], 4)

        def call(turn):
            step = space.next_step()
            with table.find_or_insert(keys[turn % len(keys)], step=step, out=out) as batch:
                if with_update:
                    table.apply_gradients(batch, grads, step=step)

        return call

    return build


def build_torch(space, case):
    import torch

    module, optimizer = space.torch_model
    row_ids = [torch.from_numpy(ids) for ids in space.batches(case).row_ids]
    grads = torch.from_numpy(space.grads(case.axes["batch"]))
    return lambda turn: torch_step(module, optimizer, row_ids[turn % len(row_ids)], grads)


def check_same_learning(space, case, calls):
    """Raise unless a small copy of each model learns the same from the same batches."""
    if not has_module("torch"):
        return
    import torch

    setup = Setup(n_rows=1000, dim=space.setup.dim, seed=space.setup.seed)
    axes = dict(case.axes) | {"n_rows": setup.n_rows, "batch": 512}
    batches = draw_batches(axes, 3, setup.seed)
    grads = np.random.default_rng(1).standard_normal((512, setup.dim), np.float32)
    table = filled_table(setup)
    all_keys = key_of(np.arange(setup.n_rows), setup.seed)
    module, optimizer = torch_twin(table.find(all_keys))
    for step, (row_ids, keys) in enumerate(zip(batches.row_ids, batches.keys, strict=True)):
        with table.find_or_insert(keys, step=step) as batch:
            table.apply_gradients(batch, grads, step=step)
        torch_step(module, optimizer, torch.from_numpy(row_ids), torch.from_numpy(grads))
    ours, theirs = table.find(all_keys), module.weight.detach().numpy()
    if not np.allclose(ours, theirs, rtol=1e-4, atol=1e-5):
        worst = np.abs(ours - theirs).max()
        raise AssertionError(f"{case.name}: the two models learn differently, by {worst:g}")


def step_case(axes, seed, rounds):
    found = [
        Contender(OURS, build_ours(), is_ours=True),
        Contender(OURS_OUT, build_ours(with_out=True), is_ours=True),
        Contender(OURS_FORWARD, build_ours(with_update=False), is_ours=True),
    ]
    if has_module("torch"):
        found.append(Contender(TORCH, build_torch))
    target = targets.TRAIN_TORCH.get((axes["distribution"], axes["dim"]))
    return Case(
        name="train step",
        axes=axes,
        setup=Setup(axes["n_rows"], axes["dim"], seed),
        contenders=tuple(found),
        figures=(Ratio(OURS, TORCH, target), Ratio(OURS_OUT, TORCH)),
        check=check_same_learning,
        n_batches=32,
        rounds=rounds,
        seed=seed,
    )


def threads_case(axes, seed, rounds):
    found = [
        Contender(OURS, build_ours(), is_ours=True),
        Contender(OURS_2, build_ours(), threads=2, is_ours=True),
    ]
    if has_module("torch"):
        found.append(Contender(TORCH_2, build_torch, threads=2))
    return Case(
        name="train step, 2 threads",
        axes=axes,
        setup=Setup(axes["n_rows"], axes["dim"], seed),
        contenders=tuple(found),
        figures=(Ratio(OURS_2, OURS, targets.TRAIN_THREADS), Ratio(OURS_2, TORCH_2)),
        n_batches=32,
        rounds=rounds,
        seed=seed,
    )


def cases(scale, seed=0):
    """Yield the cases of a name in SCALES."""
    size = SCALES[scale]
    common = {"n_rows": size.n_rows, "batch": size.batch}
    for dim in (64, 16):
        for axes in product(dim=dim, distribution=("uniform", "zipf"), threads=1, **common):
            yield step_case(axes, seed, size.rounds)
        if len(os.sched_getaffinity(0)) > 1:
            for axes in product(dim=dim, distribution=("uniform", "zipf"), threads=2, **common):
                yield threads_case(axes, seed, size.rounds)


def measure(scale, seed, report, peers=None):
    """Run the cases of a scale; return their results and figures."""
    return harness.measure(cases(scale, seed), report, peers)
