"""TorchRec's modules on a CPU as contenders; imported in its own environment alone.

Where there is a choice it is what is faster for them. The bags of EmbeddingBagCollection are made
sparse (it has no argument for it: with its dense gradients a step touches every row). Managed
collisions know all ids beforehand, and neither evict nor sort their maps while the clock runs.
"""

import warnings

import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torchrec
    from torch.distributed.optim import _apply_optimizer_in_backward
    from torchrec.modules import mc_modules
    from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
    from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection

from bench import dlrm
from bench.keys import key_of

CPU = torch.device("cpu")
MOST_STEPS = 64  # of a managed collision module between two evictions
OPTIMIZERS = {
    "adagrad": (torch.optim.Adagrad, {"eps": 1e-10}),
    "rowwise_adagrad": (torchrec.optim.RowWiseAdagrad, {"eps": 1e-10}),
    "adam": (torch.optim.Adam, {"eps": 1e-8}),
}
SPARSE_OPTIMIZERS = {"adagrad": (torch.optim.Adagrad, {}), "adam": (torch.optim.SparseAdam, {})}
KINDS = ("EBC", "FusedEBC", "managed EBC", "managed FusedEBC")

_models = {}  # the one in use, by what `Models` takes


class Models:
    """All modules of a shape; those with managed collisions hold the rows of those without."""

    def __init__(self, n_features, n_rows, dim, bag, optimizer, lr):
        self.features = [f"feature{i}" for i in range(n_features)]
        self.n_rows, self.dim, self.bag = n_rows, dim, bag
        self.optimizer, self.lr = optimizer, lr
        self._made = {}

    def tables(self):
        """Return the configs, with one more row each, which is that of unknown ids."""
        return [
            torchrec.EmbeddingBagConfig(
                num_embeddings=self.n_rows + 1,
                embedding_dim=self.dim,
                name=name,
                feature_names=[name],
                init_fn=dlrm.fill,
            )
            for name in self.features
        ]

    def plain(self):
        """Return EmbeddingBagCollection with sparse gradients, which backward trains."""
        found = torchrec.EmbeddingBagCollection(tables=self.tables(), device=CPU)
        for bag in found.embedding_bags.values():
            bag.sparse = True
        chosen, options = SPARSE_OPTIMIZERS[self.optimizer]
        _apply_optimizer_in_backward(chosen, found.parameters(), {"lr": self.lr} | options)
        return found

    def fused(self):
        """Return FusedEmbeddingBagCollection, which is FBGEMM's tables."""
        chosen, options = OPTIMIZERS[self.optimizer]
        found = FusedEmbeddingBagCollection(
            tables=self.tables(),
            optimizer_type=chosen,
            optimizer_kwargs={"lr": self.lr} | options,
            device=CPU,
        )
        for weight in found.state_dict().values():
            dlrm.fill(weight)
        return found

    def maps(self):
        """Return the managed collisions of all tables, which know the keys of all rows."""
        keys, row_ids = torch.from_numpy(key_of(range(self.n_rows))).sort()
        modules = {}
        for name in self.features:
            module = mc_modules.MCHManagedCollisionModule(
                zch_size=self.n_rows + 1,
                device=CPU,
                eviction_policy=mc_modules.DistanceLFU_EvictionPolicy(),
                eviction_interval=MOST_STEPS,
            )
            module._mch_sorted_raw_ids[:-1] = keys
            module._mch_remapped_ids_mapping[:-1] = row_ids
            modules[name] = module
        return mc_modules.ManagedCollisionCollection(modules, self.tables())

    def part(self, name):
        """Return one of "plain", "fused" and "maps", made when first asked for."""
        if name not in self._made:
            self._made[name] = getattr(self, name)()
        return self._made[name]

    def sparse(self, kind):
        """Return a kind as `dlrm.Sparse`."""
        by = self.part("fused" if kind.endswith("FusedEBC") else "plain")
        if not kind.startswith("managed"):
            return dlrm.Sparse(self.batch_of_row_ids, lambda batch: by(batch()).values())
        maps = self.maps()  # of this call alone: it keeps a history of what it saw
        if kind == "managed EBC":
            module = ManagedCollisionEmbeddingBagCollection(by, maps)
            return dlrm.Sparse(self.batch_of_keys, lambda batch: module(batch())[0].values())
        return dlrm.Sparse(self.batch_of_keys, lambda batch: by(maps(batch())).values())

    def batch_of_row_ids(self, row_ids):
        """Return what makes a KeyedJaggedTensor, which keeps what it computes: a new one a step."""
        values = torch.from_numpy(row_ids.reshape(-1))
        n_bags = len(values) // self.bag
        lengths = torch.full((n_bags,), self.bag, dtype=torch.int64)
        offsets = torch.arange(n_bags + 1) * self.bag
        make = torchrec.KeyedJaggedTensor
        return lambda: make(self.features, values, lengths=lengths, offsets=offsets)

    def batch_of_keys(self, row_ids):
        return self.batch_of_row_ids(key_of(row_ids))


def models_of(axes, lr):
    """Return the models of a shape; others are let go first."""
    asked = (axes["features"], axes["n_rows"], axes["dim"], int(axes["bag"]), axes["optimizer"], lr)
    if asked not in _models:
        _models.clear()
        _models[asked] = Models(*asked)
    return _models[asked]


def contender(kind, part, axes, n_batches, seed, lr):
    """Return a function of the turn that does a part of a training step."""
    torch.set_num_threads(axes["threads"])
    return dlrm.call_of(part, models_of(axes, lr).sparse(kind), axes, n_batches, seed)


def learned(kind, axes, n_steps, seed, lr):
    """Return the losses of a model of its own."""
    asked = (axes["features"], axes["n_rows"], axes["dim"], int(axes["bag"]), axes["optimizer"], lr)
    return dlrm.losses(Models(*asked).sparse(kind), axes, n_steps, seed)
