"""StoreState: tables in the checkpoints of torch.distributed.checkpoint."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import embstore as es

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

import torch.distributed.checkpoint as dcp  # noqa: E402
from torch.distributed.checkpoint.stateful import Stateful  # noqa: E402

from embstore.torch import Embedding, EmbeddingCollection, StoreState, optimizer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")  # it need not


def make_table(name="user", **parameters):
    parameters = {"optimizer": es.Adam(lr=0.1), "admission": es.CounterAdmission(2)} | parameters
    return es.Table(dim=3, name=name, **parameters)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.many = EmbeddingCollection([make_table(), make_table("item")])
        self.one = Embedding(make_table("page"))
        self.dense = torch.nn.Linear(3, 1)


def train(model, steps):
    trainer = optimizer(model)
    for step in steps:
        ids = torch.from_numpy(np.random.default_rng(step).integers(0, 30, 20))
        many = model.many({"user": ids, "item": ids + 1})
        (many["user"] + many["item"] + model.one(ids)).square().sum().backward()
        trainer.step()
        trainer.zero_grad()


def contents(table):
    found = []
    for rows in table.export(pending=True):
        found += [rows.keys, rows.values, rows.slots, rows.freq, rows.step]
    return [*(array.tolist() for array in found), table.config(), table.step]


def tables_of(model):
    return [model.one.table, *(model.many.store[name] for name in model.many.store)]


def dense_of(model):
    return {k: v for k, v in model.state_dict().items() if k.startswith("dense.")}


def test_a_model_and_its_tables_go_through_one_checkpoint(tmp_path):
    model, other = Model(), Model()
    train(model, range(3))
    assert isinstance(StoreState(model), Stateful)
    dcp.save({"model": dense_of(model), "tables": StoreState(model)}, checkpoint_id=tmp_path)
    train(other, range(9))
    state = {"model": dense_of(other), "tables": StoreState(other)}
    dcp.load(state, checkpoint_id=tmp_path)
    assert torch.equal(state["model"]["dense.weight"], model.dense.weight)
    assert [contents(t) for t in tables_of(other)] == [contents(t) for t in tables_of(model)]
    assert other.one.step == other.many.step == model.one.step == 3
    for each in (model, other):
        train(each, range(3, 6))
    assert [contents(t) for t in tables_of(other)] == [contents(t) for t in tables_of(model)]


def test_a_store_without_modules_goes_too(tmp_path):
    store, other = es.Store([make_table()]), es.Store([make_table()])
    store["user"].assign([1, 2], np.ones((2, 3), np.float32))
    dcp.save({"tables": StoreState(store)}, checkpoint_id=tmp_path)
    dcp.load({"tables": StoreState(other)}, checkpoint_id=tmp_path)
    assert contents(other["user"]) == contents(store["user"])
    assert len(other["user"]) == 2


def test_what_another_number_of_processes_saved_is_refused():
    state = StoreState(es.Store([make_table()]))
    saved = {f"user.shard-0000{i}-of-00002": None for i in range(2)}
    with pytest.raises(
        es.CheckpointMismatchError, match=r"no 'user' among .*of-00002.*save\(\) and load\(\)"
    ):
        state.load_state_dict(saved)


def test_damage_is_one_clear_error():
    state = StoreState(es.Store([make_table()]))
    with pytest.raises(es.CorruptCheckpointError, match="'user': expected a table"):
        state.load_state_dict({"user": "no table"})
    with pytest.raises(es.CorruptCheckpointError, match="'user' holds no table"):
        state.load_state_dict({"user": (torch.zeros(9, dtype=torch.uint8),)})


def test_what_has_no_tables_is_refused():
    with pytest.raises(es.ArgumentError, match="no table to save"):
        StoreState(torch.nn.Linear(2, 1))
    with pytest.raises(es.ArgumentTypeError, match="expected a Store or a module, got dict"):
        StoreState({})
    twice = torch.nn.ModuleList([Embedding(make_table()), Embedding(make_table())])
    with pytest.raises(es.ArgumentError, match="two tables of the model have the name 'user'"):
        StoreState(twice)


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)
def test_two_processes_save_and_load_their_own_tables(tmp_path):
    alone = es.Store([make_table()])
    dcp.save({"tables": StoreState(alone)}, checkpoint_id=tmp_path / "alone")
    script = Path(__file__).parent / "dcp_rank.py"
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), "2", str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    told = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(told)
    assert all(text.splitlines()[-1] == "well" for text in told)
    with pytest.raises(dcp.api.CheckpointException, match=r"tables\.user"):
        dcp.load({"tables": StoreState(alone)}, checkpoint_id=tmp_path / "together")


def test_the_functions_of_torch_for_state_dicts_follow_the_keys():
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    model, other = Model(), Model()
    train(model, range(3))
    state = get_model_state_dict(model)
    assert sorted(state) == sorted(model.state_dict())
    assert "many.table.item" in state
    set_model_state_dict(other, state)
    assert [contents(t) for t in tables_of(other)] == [contents(t) for t in tables_of(model)]
