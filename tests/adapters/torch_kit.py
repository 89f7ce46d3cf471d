"""What the tests of training by PyTorch share; import it after torch was found."""

import numpy as np
import torch

import embstore as es
from embstore.torch import Embedding

OPTIMIZERS = [
    es.SGD(lr=0.1, momentum=0.9),
    es.Adagrad(lr=0.1),
    es.RowWiseAdagrad(lr=0.1),
    es.Adam(lr=0.01),
    es.AdamW(lr=0.01),
    es.FTRL(lr=0.1),
]


def exact(shape, seed=0):
    """Return gradients whose sums are exact in any order."""
    numbers = np.random.default_rng(seed).integers(-64, 64, shape)
    return torch.from_numpy((numbers / 1024).astype(np.float32))


def sgd(lr=1.0, **parameters):
    """Return an Embedding of dim 2 whose rows, born 0, hold minus the sum of their gradients."""
    given = {"optimizer": es.SGD(lr=lr), "initializer": es.Constant(0.0)} | parameters
    return Embedding(dim=2, **given)


def rows(module, *ids):
    """Return the rows of ids as lists."""
    return module.table.find(np.array(ids, np.int64)).tolist()
