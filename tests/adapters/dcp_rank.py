"""One of several processes that save and load their tables by torch.distributed.checkpoint.

``python dcp_rank.py rank world_size folder``: the folder holds ``alone``, a checkpoint of one
process, and gets ``together``.
"""

import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

import embstore as es
from embstore.torch import StoreState


def make_store(rank, n_rows):
    table = es.Table(dim=2, name="user", optimizer=es.Adagrad())
    table.assign(np.arange(n_rows) + 100 * rank, np.full((n_rows, 2), rank + 1, np.float32))
    return es.Store([table])


def main(rank, world_size, folder):
    store = dist.FileStore(str(folder / "ranks"), world_size)
    wait = timedelta(seconds=60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=wait)
    torch.manual_seed(0)
    dense = torch.nn.Linear(2, 1)
    saved = make_store(rank, 5 + rank)
    dcp.save(
        {"model": dense.state_dict(), "tables": StoreState(saved)},
        checkpoint_id=folder / "together",
    )
    loaded = make_store(7, 50)
    state = {"model": torch.nn.Linear(2, 1).state_dict(), "tables": StoreState(loaded)}
    dcp.load(state, checkpoint_id=folder / "together")
    assert torch.equal(state["model"]["weight"], dense.weight)
    assert len(loaded["user"]) == 5 + rank
    assert loaded["user"].find([100 * rank]).tolist() == [[rank + 1, rank + 1]]
    assert loaded["user"].config() == saved["user"].config()
    with pytest.raises(dcp.api.CheckpointException, match=r"tables\.user\.shard-"):
        dcp.load({"tables": StoreState(loaded)}, checkpoint_id=folder / "alone")
    assert len(loaded["user"]) == 5 + rank
    dist.destroy_process_group()
    print("well")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
