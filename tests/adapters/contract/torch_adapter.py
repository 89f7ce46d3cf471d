"""PyTorch under the contract: gradients that wait for the step, and training in backward."""

import torch

from embstore.torch import Embedding, EmbeddingBag, optimizer

from .adapters import Adapter


class TorchAdapter(Adapter):
    """`Embedding` and `EmbeddingBag` with `optimizer`."""

    refused = (RuntimeError,)  # gradients of another shape or dtype are stopped by autograd
    is_fused = False

    def __init__(self, table, padding_id=None):
        self.options = {"padding_id": padding_id, "fused": self.is_fused}
        self.table = table
        self.module = Embedding(table, **self.options)
        self.optimizer = optimizer(self.module)

    @property
    def step(self):
        return self.module.step

    def lookup(self, ids):
        return self.module(torch.from_numpy(ids)).detach().numpy()

    def read(self, ids):
        self.module.eval()
        try:
            rows = self.module(torch.from_numpy(ids))
        finally:
            self.module.train()
        assert not rows.requires_grad
        return rows.numpy()

    def read_without_gradients(self, ids):
        with torch.no_grad():
            return self.module(torch.from_numpy(ids)).numpy()

    def backward(self, ids, output_grads):
        self.module(torch.from_numpy(ids)).backward(torch.from_numpy(output_grads))

    def apply(self):
        self.optimizer.step()
        self.optimizer.zero_grad()

    def forget(self):
        self.optimizer.zero_grad()

    def read_bags(self, ids, offsets, mode, weights=None):
        return self._bags(mode).eval()(*self._bagged(ids, offsets, weights)).numpy()

    def backward_bags(self, ids, offsets, output_grads, mode, weights=None):
        pooled = self._bags(mode)(*self._bagged(ids, offsets, weights))
        pooled.backward(torch.from_numpy(output_grads))

    def _bags(self, mode):
        return EmbeddingBag(self.table, mode=mode, include_last_offset=True, **self.options)

    def _bagged(self, ids, offsets, weights):
        given = ids, offsets, *([] if weights is None else [weights])
        return [torch.from_numpy(array) for array in given]


class FusedTorchAdapter(TorchAdapter):
    """The same with ``fused=True``; nothing is left for the optimizer but the clock."""

    has_backward_alone = False
    is_fused = True
