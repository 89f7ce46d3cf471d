"""What a module costs a batch of 64 ids in eager mode: torch's nn.Embedding, and ours."""

from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec

import numpy as np

import embstore as es
from bench import targets
from bench.harness import Case, Contender, Ratio, axes_of
from bench.keys import key_of
from bench.workspace import LEARNING_RATE

BATCH, DIM, N_ROWS = 64, 16, 10_000
N_CALLS = 300
OURS, FUSED = "embstore Embedding", "embstore Embedding, fused"
COMPILED, TORCH_COMPILED = "embstore Embedding, compiled", "torch nn.Embedding, compiled"
OF_TORCH = ("torch nn.Embedding", "torch nn.Embedding, sparse", TORCH_COMPILED)
DENSE, SPARSE = "torch nn.Embedding", "torch nn.Embedding, sparse"
# Of each kind of call, the contenders beside ours; the first of them is what ours are set against.
KINDS = {
    "forward in training": (DENSE, SPARSE),
    "forward and backward": (SPARSE,),
    "step": (SPARSE,),
    "forward in eval": (DENSE, SPARSE),
}


@dataclass(frozen=True)
class ModuleSetup:
    """A table of few rows, in the cache: what is measured is the way to it."""

    seed: int

    def build(self):
        return ModuleSpace(self)


class ModuleSpace:
    """Modules over the same rows, ours over one table, and their optimizers."""

    def __init__(self, setup):
        self.setup = setup
        self.notes = {}

    @cached_property
    def table(self):
        table = es.Table(
            DIM,
            optimizer=es.Adagrad(lr=LEARNING_RATE),
            seed=self.setup.seed,
            hash_seed=self.setup.seed,
            name="module",
        )
        keys = key_of(np.arange(N_ROWS))
        table.assign(keys, np.full((N_ROWS, DIM), 0.01, np.float32))
        return table

    def module(self, name):
        """Return a contender's module and its optimizer, None where backward trains."""
        import torch

        if name in OF_TORCH:
            torch.sparse.check_sparse_tensor_invariants.disable()  # its default: no warning
            module = torch.nn.Embedding(N_ROWS, DIM, sparse=name == SPARSE)
            if name == TORCH_COMPILED:
                module = torch.compile(module, fullgraph=True)
            return module, torch.optim.Adagrad(module.parameters(), lr=LEARNING_RATE)
        from embstore.torch import Embedding, optimizer

        module = Embedding(self.table, fused=name == FUSED)
        trainer = None if name == FUSED else optimizer(module)
        if name == COMPILED:
            return torch.compile(module, fullgraph=True), trainer
        return module, trainer

    def ids(self, name, n):
        """Return n batches of ids: row ids for torch, keys for ours."""
        import torch

        rng = np.random.default_rng(self.setup.seed)
        row_ids = rng.integers(0, N_ROWS, (n, BATCH))
        return [*torch.from_numpy(row_ids if name in OF_TORCH else key_of(row_ids))]


def build(name, kind, n_calls):
    """Return a builder of a contender's calls of one kind."""

    def make(space, case):
        import torch

        module, trainer = space.module(name)
        module.train(kind != "forward in eval")
        batches, grads = space.ids(name, 32), torch.full((BATCH, DIM), 1e-4)

        def forward(ids):
            module(ids)

        def backward(ids):
            if trainer is not None:
                trainer.zero_grad()
            module(ids).backward(grads)

        def step(ids):
            backward(ids)
            if trainer is not None:
                trainer.step()

        once = {"forward and backward": backward, "step": step}.get(kind, forward)

        def call(turn):
            with torch.set_grad_enabled(kind != "forward in eval"):
                for i in range(turn, turn + n_calls):
                    once(batches[i % len(batches)])

        return call

    return make


def why_not_compiled():
    """Return why torch.compile does not work here; empty where it does."""
    import torch

    if find_spec("embstore.torch.compiled") is None:
        return "embstore.torch cannot be compiled yet"
    try:
        torch.compile(torch.nn.Embedding(4, 2), fullgraph=True)(torch.tensor([1]))
    except Exception as error:  # whatever the backend lacks: a compiler, headers
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return ""


def module_cases(size, scale, seed):
    """Yield a case for each kind of call; compiled modules are passed over in tiny runs."""
    n_calls = N_CALLS if size.rounds > 2 else 2
    axes = axes_of(n_rows=N_ROWS, dim=DIM, batch=BATCH, distribution="uniform", threads=1)
    is_compiled = scale != "tiny"
    if is_compiled and (why := why_not_compiled()):
        print(f"SKIPPED: compiled modules: {why}")
        is_compiled = False
    for kind, others in KINDS.items():
        is_forward = kind.startswith("forward in")
        mine = [OURS] if is_forward else [OURS, FUSED]
        cost = targets.MODULE_COST
        pairs = [Ratio(others[0], OURS, cost[kind])]
        if not is_forward:
            pairs.append(Ratio(others[0], FUSED, cost[f"{kind}, fused"]))
        names = [*mine, *others]
        if is_compiled and is_forward:
            names += [COMPILED, TORCH_COMPILED]
        yield Case(
            name=f"module, {kind}",
            axes=axes,
            setup=ModuleSetup(seed),
            contenders=tuple(
                Contender(name, build(name, kind, n_calls), n_calls=n_calls) for name in names
            ),
            figures=tuple(pairs),
            n_batches=32,
            rounds=size.rounds,
            max_seconds=10.0,
            seed=seed,
        )
