"""pooled: the rows of a bag summed or averaged in one call, beside torch's EmbeddingBag.

A bag holds 1 to 20 ids, on average 10.5. Reading is `Table.pooled` against the functional
embedding_bag of a static tensor; training is `pooled` with a step and apply_gradients against
EmbeddingBag(sparse=True), its backward pass, and torch.optim.Adagrad.
"""

import numpy as np

from bench import harness
from bench.harness import Case, Contender, Ratio, Scale, product
from bench.machine import has_module
from bench.workspace import LEARNING_RATE, Setup

LEAST_IDS, MOST_IDS = 1, 20
SCALES = {
    "tiny": Scale(n_rows=2000, batch=256, rounds=2),
    "quick": Scale(n_rows=20_000, batch=4096, rounds=5),
    "small": Scale(n_rows=1_000_000, batch=131_072, rounds=15),
    "default": Scale(n_rows=4_000_000, batch=131_072, rounds=15),
}
OURS, TORCH = "embstore pooled", "torch embedding_bag"
OURS_STEP, TORCH_STEP = "embstore pooled step", "torch EmbeddingBag step"


def offsets_of(n_ids, seed):
    """Return where each bag begins, and n_ids at the end: bags of 1 to 20 ids that share n_ids."""
    rng = np.random.default_rng(seed)
    ends = np.cumsum(rng.integers(LEAST_IDS, MOST_IDS + 1, n_ids))
    return np.concatenate([[0], ends[ends < n_ids], [n_ids]])


def build_ours(space, case):
    keys, offsets = list(space.batches(case).keys), offsets_of(case.axes["batch"], case.seed)
    table, pooling = space.table, case.axes["pooling"]
    out = np.empty((len(offsets) - 1, space.setup.dim), np.float32)
    return lambda turn: table.pooled(keys[turn % len(keys)], offsets, pooling, out=out)


def build_torch(space, case):
    import torch

    weight, pooling = space.static, case.axes["pooling"]
    row_ids = [torch.from_numpy(ids) for ids in space.batches(case).row_ids]
    offsets = torch.from_numpy(offsets_of(case.axes["batch"], case.seed)[:-1])
    bag = torch.nn.functional.embedding_bag

    def call(turn):
        with torch.no_grad():
            return bag(row_ids[turn % len(row_ids)], weight, offsets, mode=pooling)

    return call


def build_ours_step(space, case):
    keys, offsets = list(space.batches(case).keys), offsets_of(case.axes["batch"], case.seed)
    table, pooling, grads = space.table, case.axes["pooling"], space.grads(len(offsets) - 1)

    def call(turn):
        step = space.next_step()
        with table.pooled(keys[turn % len(keys)], offsets, pooling, step=step) as batch:
            table.apply_gradients(batch, grads, step=step)

    return call


def build_torch_step(space, case):
    import torch

    pooling = case.axes["pooling"]
    row_ids = [torch.from_numpy(ids) for ids in space.batches(case).row_ids]
    offsets = torch.from_numpy(offsets_of(case.axes["batch"], case.seed)[:-1])
    grads = torch.from_numpy(space.grads(len(offsets)))
    torch.sparse.check_sparse_tensor_invariants.disable()  # its default, said aloud: no warning
    make = torch.nn.EmbeddingBag.from_pretrained
    module = make(space.static, freeze=False, mode=pooling, sparse=True)
    optimizer = torch.optim.Adagrad(module.parameters(), lr=LEARNING_RATE)

    def call(turn):
        optimizer.zero_grad()
        module(row_ids[turn % len(row_ids)], offsets).backward(grads)
        optimizer.step()

    return call


def check_same_bags(space, case, calls):
    """Raise unless both give the same bags, but for the order of their sums."""
    if TORCH not in calls:
        return
    ours, theirs = np.asarray(calls[OURS](0)), np.asarray(calls[TORCH](0))
    if not np.allclose(ours, theirs, rtol=1e-5, atol=1e-5):
        raise AssertionError(f"{case.name}: the bags differ by {np.abs(ours - theirs).max():g}")


def pooled_case(axes, size, seed, is_trained):
    """Return the case of reading bags, or of training by them."""
    builders = {OURS: build_ours, TORCH: build_torch}
    if is_trained:
        builders = {OURS_STEP: build_ours_step, TORCH_STEP: build_torch_step}
    ours, theirs = builders
    found = [Contender(ours, builders[ours], is_ours=True)]
    if has_module("torch"):
        found.append(Contender(theirs, builders[theirs]))
    return Case(
        name="pooled step" if is_trained else "pooled",
        axes=axes,
        setup=Setup(axes["n_rows"], axes["dim"], seed, is_trained=is_trained),
        contenders=tuple(found),
        figures=(Ratio(ours, theirs),),
        check=None if is_trained else check_same_bags,
        n_batches=32,
        rounds=size.rounds,
        seed=seed,
    )


def cases(scale, seed=0):
    """Yield the cases of a name in SCALES."""
    size = SCALES[scale]
    common = {"n_rows": size.n_rows, "dim": 64, "batch": size.batch, "distribution": "zipf"}
    common |= {"threads": 1, "bag": f"{LEAST_IDS}..{MOST_IDS}"}
    for is_trained in (False, True):
        for axes in product(pooling=("sum", "mean"), **common):
            yield pooled_case(axes, size, seed, is_trained)


def measure(scale, seed, report, twins=None):
    """Run the cases of a scale; return their results and figures."""
    return harness.measure(cases(scale, seed), report, twins)
