"""The training step: dedup, find_or_insert, sum of duplicate gradients and Adagrad.

Ours is two calls, find_or_insert and apply_gradients. torch's is nn.Embedding(sparse=True), its
backward pass, and torch.optim.Adagrad, which sums duplicates as well. Before the clock starts, a
small copy of each learns from the same batches and the rows are compared. All keys have rows.
"""

import os

import numpy as np

from bench import harness, targets
from bench.harness import Case, Contender, Ratio, Scale, product
from bench.keys import draw_batches, key_of
from bench.machine import has_module
from bench.workspace import Setup, aligned_empty, filled_table, gradients, torch_twin

SCALES = {
    "tiny": Scale(n_rows=2000, batch=256, rounds=2),
    "quick": Scale(n_rows=20_000, batch=4096, rounds=5),
    "small": Scale(n_rows=1_000_000, batch=131_072, rounds=15),
    "default": Scale(n_rows=4_000_000, batch=131_072, rounds=15),
}
CHECK_ROWS, CHECK_BATCH = 1000, 512

OURS, OURS_OUT = "embstore step", "embstore step, out="
OURS_FORWARD = "embstore find_or_insert alone"
OURS_2, TORCH, TORCH_2 = "embstore step, 2 threads", "torch step", "torch step, 2 threads"


def torch_step(module, optimizer, row_ids, grads):
    optimizer.zero_grad()
    module(row_ids).backward(grads)
    optimizer.step()


def build_ours(with_out=False, with_update=True):
    def build(space, case):
        table, keys = space.table, list(space.batches(case).keys)
        grads = space.grads(case.axes["batch"])
        out = aligned_empty(grads.shape) if with_out else None
        space.note_load()
        space.note_unique(case)

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


def small_problem(case, seed):
    """Return (setup, batches, gradients) of a few steps that two engines can be compared by."""
    setup = Setup(CHECK_ROWS, case.axes["dim"], seed, is_trained=True)
    axes = dict(case.axes) | {"n_rows": setup.n_rows, "batch": CHECK_BATCH}
    return setup, draw_batches(axes, 3, seed), gradients(CHECK_BATCH, setup.dim, seed)


def learned(setup, batches, grads, **options):
    """Return the rows of a table, in the order of their row ids, that has learned from batches."""
    table = filled_table(setup, **options)
    for step, keys in enumerate(batches.keys):
        with table.find_or_insert(keys, step=step) as batch:
            table.apply_gradients(batch, grads, step=step)
    return table.find(key_of(np.arange(setup.n_rows), setup.seed))


def raise_unless_alike(case, ours, theirs):
    """Raise unless two models hold the same rows, but for the order of their sums."""
    if not np.allclose(ours, theirs, rtol=1e-4, atol=1e-5):
        worst = np.abs(ours - theirs).max()
        raise AssertionError(f"{case.name}: the two models learn differently, by {worst:g}")


def check_same_learning(space, case, calls):
    """Raise unless a small copy of each model learns the same from the same batches."""
    if not has_module("torch"):
        return
    import torch

    setup, batches, grads = small_problem(case, space.setup.seed)
    module, optimizer = torch_twin(setup.build().static)
    for row_ids in batches.row_ids:
        torch_step(module, optimizer, torch.from_numpy(row_ids), torch.from_numpy(grads))
    raise_unless_alike(case, learned(setup, batches, grads), module.weight.detach().numpy())


def train_case(name, axes, size, contenders, figures, seed, **more):
    """Return a case that trains the rows which its axes name."""
    return Case(
        name=name,
        axes=axes,
        setup=Setup(axes["n_rows"], axes["dim"], seed, is_trained=True),
        contenders=tuple(contenders),
        figures=figures,
        n_batches=32,
        rounds=size.rounds,
        seed=seed,
        **more,
    )


def step_case(axes, size, seed):
    found = [
        Contender(OURS, build_ours(), is_ours=True),
        Contender(OURS_OUT, build_ours(with_out=True), is_ours=True),
        Contender(OURS_FORWARD, build_ours(with_update=False), is_ours=True),
    ]
    if has_module("torch"):
        found.append(Contender(TORCH, build_torch))
    target = targets.TRAIN_TORCH.get((axes["distribution"], axes["dim"]))
    figures = (Ratio(OURS, TORCH, target), Ratio(OURS_OUT, TORCH))
    more = {"check": check_same_learning}
    return train_case("train step", axes, size, found, figures, seed, **more)


def threads_case(axes, size, seed):
    found = [
        Contender(OURS, build_ours(), is_ours=True),
        Contender(OURS_2, build_ours(), threads=2, is_ours=True),
    ]
    if has_module("torch"):
        found.append(Contender(TORCH_2, build_torch, threads=2))
    figures = (Ratio(OURS_2, OURS, targets.TRAIN_THREADS), Ratio(OURS_2, TORCH_2))
    return train_case("train step, 2 threads", axes, size, found, figures, seed)


def cases(scale, seed=0):
    """Yield the cases of a name in SCALES."""
    size = SCALES[scale]
    choices = {"distribution": ("uniform", "zipf"), "n_rows": size.n_rows, "batch": size.batch}
    for dim in (64, 16):
        for axes in product(dim=dim, threads=1, **choices):
            yield step_case(axes, size, seed)
        if len(os.sched_getaffinity(0)) > 1:
            for axes in product(dim=dim, threads=2, **choices):
                yield threads_case(axes, size, seed)


def measure(scale, seed, report, twins=None):
    """Run the cases of a scale; return their results and figures."""
    return harness.measure(cases(scale, seed), report, twins)
