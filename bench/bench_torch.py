"""torch: the training step of a DLRM end to end, and what a module costs a small batch.

26 features with a table each; bags of 1 id, or of 5. Beside `embstore.torch` stand torch.nn's
sparse modules, and TorchRec's in a process and an environment of their own (peer_torchrec.py); the
dense part and the batches are the same for all (dlrm.py). Sides of a ratio train their embeddings
by the same optimizer, the dense part is trained by Adam. All rows exist before the clock starts,
and the losses of a small copy of each model are compared. The figure that matters is set against
the best of the others in that very run.
"""

import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

import embstore as es
from bench import harness, targets
from bench.harness import Case, Contender, Ratio, Scale, axes_of
from bench.keys import key_of
from bench.machine import has_module
from bench.module_cost import module_cases
from bench.peers import TORCHREC
from bench.report import shown_axes
from bench.stats import paired_ratios
from bench.worker import RemoteCall, peer_worker
from bench.workspace import FILL_ROWS, LEARNING_RATE

N_FEATURES = 26
# n_rows are those of a table of dim 16, batch are samples; all dims have the same bytes.
SCALES = {
    "tiny": Scale(n_rows=1000, batch=32, rounds=2),
    "quick": Scale(n_rows=100_000, batch=2048, rounds=5),
    "small": Scale(n_rows=100_000, batch=4096, rounds=9),
    "default": Scale(n_rows=500_000, batch=4096, rounds=11),
}
CHECK = {"n_rows": 300, "samples": 64}
CHECK_STEPS = 4
N_BATCHES = 22  # of each lane two
OPTIMIZERS = {"adagrad": es.Adagrad, "rowwise_adagrad": es.RowWiseAdagrad, "adam": es.Adam}

OURS, OURS_FUSED = "embstore EBC", "embstore EBC, fused"  # EmbeddingBagCollection
BAGS, ROWS = "torch EmbeddingBag, sparse", "torch Embedding, sparse"
DENSE = "dense part alone"
PEERS = {
    "EBC": "TorchRec EBC, sparse",
    "FusedEBC": "TorchRec FusedEBC",
    "managed EBC": "TorchRec managed EBC",
    "managed FusedEBC": "TorchRec managed FusedEBC",
}
PARTS = {"step": "DLRM step", "sparse": "sparse part of a DLRM step"}


@dataclass(frozen=True)
class DlrmSetup:
    """The tables of some cases: all rows of all features, ours and torch's."""

    n_rows: int
    dim: int
    optimizer: str
    seed: int

    def build(self):
        return DlrmSpace(self)


class DlrmSpace:
    """What the contenders of this process share; each thing is made when first asked for."""

    def __init__(self, setup):
        self.setup = setup
        self.notes = {}

    @cached_property
    def store(self):
        """A store of a table for each feature, every row of it there."""
        from bench import dlrm

        setup = self.setup
        n = setup.n_rows
        pattern = np.tile(dlrm.row_values(setup.dim), (FILL_ROWS // dlrm.PATTERN_ROWS, 1))
        chosen = OPTIMIZERS[setup.optimizer]
        tables = []
        for i in range(N_FEATURES):
            table = es.Table(
                setup.dim,
                optimizer=chosen(lr=LEARNING_RATE),
                name=f"feature{i}",
                seed=setup.seed,
                hash_seed=setup.seed,
            )
            table.reserve(n)
            for first in range(0, n, FILL_ROWS):
                keys = key_of(np.arange(first, min(first + FILL_ROWS, n)))
                table.assign(keys, pattern[: len(keys)])
            tables.append(table)
        return es.Store(tables)

    @cached_property
    def weights(self):
        """The same rows as parameters of torch, and the optimizer that its modules share."""
        import torch

        from bench import dlrm

        torch.sparse.check_sparse_tensor_invariants.disable()  # its default, said aloud: no warning
        shape = (self.setup.n_rows, self.setup.dim)
        found = [torch.nn.Parameter(dlrm.fill(torch.empty(shape))) for _ in range(N_FEATURES)]
        is_adam = self.setup.optimizer == "adam"
        chosen = torch.optim.SparseAdam if is_adam else torch.optim.Adagrad
        return found, chosen(found, lr=LEARNING_RATE)


def ours(space, bag, is_fused):
    """Return our collection as `dlrm.Sparse`."""
    import torch

    from bench import dlrm
    from embstore.torch import EmbeddingBagCollection, optimizer

    module = EmbeddingBagCollection(space.store, fused=is_fused)

    def form(row_ids):
        ids = torch.from_numpy(key_of(row_ids))
        return {f"feature{i}": own if bag == 1 else own.view(-1, bag) for i, own in enumerate(ids)}

    trainer = None if is_fused else optimizer(module)
    return dlrm.Sparse(form, lambda ids: module(ids).values(), trainer)


def torch_modules(space, bag, is_pooled):
    """Return torch's sparse modules, one for each feature, as `dlrm.Sparse`."""
    import torch

    from bench import dlrm

    weights, trainer = space.weights
    if is_pooled:
        make = torch.nn.EmbeddingBag
        modules = [make(*w.shape, mode="sum", sparse=True, _weight=w) for w in weights]
    else:
        modules = [torch.nn.Embedding(*w.shape, sparse=True, _weight=w) for w in weights]
    for module, weight in zip(modules, weights, strict=True):
        module.weight = weight

    def form(row_ids):
        return [own.view(-1, bag) if is_pooled else own for own in torch.from_numpy(row_ids)]

    def embed(ids):
        return torch.cat([module(own) for module, own in zip(modules, ids, strict=True)], 1)

    return dlrm.Sparse(form, embed, trainer)


def sparse_of(space, name, bag):
    """Return a contender of this process as `dlrm.Sparse`."""
    if name in (OURS, OURS_FUSED):
        return ours(space, bag, name == OURS_FUSED)
    return torch_modules(space, bag, name == BAGS)


def build_local(name, part):
    def build(space, case):
        from bench import dlrm

        sparse = sparse_of(space, name, int(case.axes["bag"]))
        return dlrm.call_of(part, sparse, case.axes, case.n_batches, case.seed)

    return build


def build_dense(space, case):
    from bench import dlrm

    return dlrm.dense_call(case.axes, case.seed)


def build_remote(worker, kind, part):
    def build(space, case):
        asked = (kind, part, dict(case.axes), case.n_batches, case.seed, LEARNING_RATE)
        place = f"{case.name}, {shown_axes(case.axes)}"
        return RemoteCall(worker, place, kind, TORCHREC.module, "contender", *asked)

    return build


def check_with(worker):
    """Return a check that small copies of all models have the same losses."""

    def check(space, case, calls):
        from bench import dlrm

        axes = dict(case.axes) | CHECK
        small = replace(space.setup, n_rows=axes["n_rows"])
        found = {}
        for name in calls:
            if name in (OURS, OURS_FUSED, BAGS, ROWS):
                sparse = sparse_of(small.build(), name, int(axes["bag"]))
                found[name] = dlrm.losses(sparse, axes, CHECK_STEPS, case.seed)
        for kind, name in PEERS.items():
            if name in calls:
                asked = (kind, axes, CHECK_STEPS, case.seed, LEARNING_RATE)
                found[name] = worker.ask(TORCHREC.module, "learned", *asked)
        raise_unless_alike(case.name, found)

    return check


def raise_unless_alike(place, losses):
    """Raise unless all contenders, by name, have the losses of the first."""
    first, *others = losses
    for name in others:
        if not np.allclose(losses[name], losses[first], rtol=1e-4, atol=0):
            raise AssertionError(
                f"{place}: the losses of {name!r} are {losses[name]}, those of {first!r} "
                f"{losses[first]}"
            )


def names_of(axes, worker):
    """Return the names of the contenders at some axes, but for ours; those of a peer by kind."""
    local, kinds = [], dict(PEERS) if worker is not None else {}
    if axes["optimizer"] != "rowwise_adagrad":
        local = [BAGS] if int(axes["bag"]) > 1 else [BAGS, ROWS]
        return local, kinds if axes["optimizer"] == "adagrad" else {}
    return local, {k: name for k, name in kinds.items() if k.endswith("FusedEBC")}


def dlrm_case(part, axes, size, seed, worker):
    """Return the case of a part of the step: "step" or "sparse"."""
    local, kinds = names_of(axes, worker)
    threads = axes["threads"]
    contenders = [
        Contender(name, build_local(name, part), threads) for name in (OURS, OURS_FUSED, *local)
    ]
    contenders += [Contender(n, build_remote(worker, k, part)) for k, n in kinds.items()]
    if part == "step":
        contenders.append(Contender(DENSE, build_dense, threads))
    pairs = [(OURS, BAGS), (OURS_FUSED, PEERS["FusedEBC"]), (OURS_FUSED, PEERS["managed FusedEBC"])]
    return Case(
        name=PARTS[part],
        axes=axes,
        setup=DlrmSetup(axes["n_rows"], axes["dim"], axes["optimizer"], seed),
        contenders=tuple(contenders),
        figures=tuple(Ratio(*pair) for pair in pairs),
        check=check_with(worker),
        n_batches=N_BATCHES,
        n_warmups=2,
        rounds=size.rounds,
        max_seconds=20.0,
        seed=seed,
    )


def choices(scale):
    """Yield (dim, samples, distribution, bag, optimizer) of the DLRM's cases."""
    samples = SCALES[scale].batch
    if scale in ("tiny", "quick"):
        yield 16, samples, "zipf", 1, "adagrad"
        yield 16, samples, "uniform", 5, "adagrad" if scale == "quick" else "adam"
        if scale == "tiny":
            yield 16, samples, "zipf", 1, "rowwise_adagrad"
        return
    for n in (2048, 4096, 16384):
        yield 16, n, "zipf", 1, "adagrad"
    yield 16, samples, "uniform", 1, "adagrad"
    for dim in (64, 128):
        yield dim, samples, "zipf", 1, "adagrad"
    yield 16, samples, "zipf", 5, "adagrad"
    yield 64, samples, "zipf", 1, "adam"
    yield 64, samples, "zipf", 1, "rowwise_adagrad"


def cases(scale, seed=0, worker=None):
    """Yield the cases of a name in SCALES; `worker` is TorchRec's, if it is there."""
    size = SCALES[scale]
    for dim, samples, distribution, bag, optimizer in choices(scale):
        axes = axes_of(
            n_rows=size.n_rows * 16 // dim,
            dim=dim,
            batch=samples * N_FEATURES * bag,
            samples=samples,
            distribution=distribution,
            threads=1 if scale == "tiny" else len(os.sched_getaffinity(0)),
            bag=str(bag),
            features=N_FEATURES,
            optimizer=optimizer,
        )
        for part in PARTS:
            yield dlrm_case(part, axes, size, seed, worker)


def best_figures(result):
    """Return how ours do against the best of the others, and samples a second; note who it was."""
    times = {c.name: c.times_ns for c in result.contenders}
    others = [name for name in times if name not in (OURS, OURS_FUSED, DENSE)]
    if not others:
        return []
    best = min(others, key=lambda name: np.median(times[name]))
    result.notes["best other"] = best
    is_meant = result.name == PARTS["step"] and result.axes["optimizer"] == "adagrad"
    figures = []
    for name in (OURS, OURS_FUSED):
        target = targets.DLRM_BEST.get(name == OURS_FUSED) if is_meant else None
        ratios = paired_ratios(times[best], times[name])
        title = f"{result.name}: {name} against the best other"
        figures.append(harness.figure_of(title, result.axes, ratios, "x", target))
    for name in (OURS, OURS_FUSED, best):
        rates = [result.axes["samples"] / t * 1e9 for t in times[name]]
        title = f"{result.name}: {name}"
        figures.append(harness.figure_of(title, result.axes, rates, "samples/s"))
    return figures


def measure(scale, seed, report, twins=None):
    """Run the cases of a scale; say what is not there."""
    if not has_module("torch"):
        print("SKIPPED: torch: it is not installed")
        return [], []
    figures = []

    def report_with_best(result, found):
        more = best_figures(result) if result.name in PARTS.values() else []
        figures.extend((*found, *more))
        report(result, [*found, *more])

    with ExitStack() as stack:
        worker = None
        if why := TORCHREC.why_not():
            print(f"SKIPPED: {TORCHREC.title}: {why}")
        else:
            worker = stack.enter_context(peer_worker(TORCHREC))
        own = [*module_cases(SCALES[scale], scale, seed)]
        results, _ = harness.measure([*cases(scale, seed, worker), *own], report_with_best)
    return results, figures
