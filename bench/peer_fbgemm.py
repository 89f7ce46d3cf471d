"""FBGEMM's CPU table-batched embedding as a contender; imported in its own environment alone.

A static table of `n_rows` rows, exact Adagrad fused into its backward pass. Bags of one id each,
summed: for sequences its CPU code is several times slower.
"""

import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from bench.keys import draw_batches

torch.set_num_threads(1)
_tables = {}  # the one in use, by its shape


def new_table(n_rows, dim, lr):
    """Return a table of zeros."""
    shape = (n_rows, dim, EmbeddingLocation.HOST, ComputeDevice.CPU)
    return SplitTableBatchedEmbeddingBagsCodegen(
        [shape],
        optimizer=EmbOptimType.EXACT_ADAGRAD,
        learning_rate=lr,
        eps=1e-10,
        pooling_mode=PoolingMode.SUM,
    )


def table_of(n_rows, dim, lr):
    """Return the table of a shape, every page of it touched; another one is let go first."""
    if (n_rows, dim) not in _tables:
        _tables.clear()
        _tables[n_rows, dim] = new_table(n_rows, dim, lr)
        _tables[n_rows, dim].split_embedding_weights()[0].fill_(0.01)
    return _tables[n_rows, dim]


def contender(kind, axes, n_batches, seed, lr):
    """Return a function of the turn: a "find", the forward pass, or a "step" with its update."""
    table = table_of(axes["n_rows"], axes["dim"], lr)
    row_ids = [torch.from_numpy(ids) for ids in draw_batches(axes, n_batches, seed).row_ids]
    offsets = torch.arange(axes["batch"] + 1)
    grads = torch.randn(axes["batch"], axes["dim"]) * 0.01

    def find(turn):
        with torch.no_grad():
            return table(row_ids[turn % len(row_ids)], offsets)

    def step(turn):
        table(row_ids[turn % len(row_ids)], offsets).backward(grads)

    return {"find": find, "step": step}[kind]


def learned(values, batches, grads, lr):
    """Return the rows of a table that begins at `values` and learns from batches of row ids."""
    values = np.asarray(values, np.float32)
    table = new_table(*values.shape, lr)
    table.split_embedding_weights()[0].copy_(torch.from_numpy(values))
    for row_ids in batches:
        rows = table(torch.tensor(row_ids), torch.arange(len(row_ids) + 1))
        rows.backward(torch.tensor(grads, dtype=torch.float32))
    return table.split_embedding_weights()[0].tolist()
