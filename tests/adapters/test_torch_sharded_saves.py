"""Saves of sharded tables: by any number of ranks, for any number of ranks."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

if not torch.distributed.is_available():
    pytest.skip("this PyTorch has no torch.distributed", allow_module_level=True)

import torch.distributed as dist  # noqa: E402
from adapters import sharded_jobs as jobs  # noqa: E402
from adapters.sharded_kit import shared_ranks  # noqa: E402

import embstore as es  # noqa: E402
from embstore.torch import ShardedEmbedding, latest_save, load_shard  # noqa: E402

TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return shared_ranks(tmp_path_factory)


@pytest.fixture
def alone(tmp_path):
    """This process as the only rank."""
    store = dist.FileStore(str(tmp_path / "rendezvous"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def assert_same_content(found, expected, tolerance):
    for name, own in expected.items():
        for i, (mine, others) in enumerate(zip(found[name], own, strict=True)):
            is_float = i in (1, 4)  # values and slots
            np.testing.assert_allclose(mine, others, **(tolerance if is_float else {"rtol": 0}))


@pytest.fixture(scope="module")
def saves(ranks, tmp_path_factory):
    """By number of ranks: the place of a save, and what was in the tables."""
    found = {}
    for world_size in (1, 2, 3, 4):
        path = tmp_path_factory.mktemp(f"saved-by-{world_size}")
        results = ranks.run(jobs.train_and_save, world_size, str(path), 5)
        found[world_size] = path, jobs.merged([own for _, own in results])
    return found


@pytest.mark.parametrize("saved_by", [1, 2, 3, 4])
def test_a_save_is_the_same_rows_on_any_number_of_ranks(saves, saved_by):
    path, expected = saves[saved_by]
    latest = latest_save(path)
    assert (latest.world_size, latest.step, len(latest.shards)) == (saved_by, 5, saved_by)
    exact = {"rtol": 0, "atol": 0}
    for world_size in (1, 2, 3, 4):
        shards = [
            jobs.content(es.Store.load(latest.shards, shard=(rank, world_size)))
            for rank in range(world_size)
        ]
        assert_same_content(jobs.merged(shards), expected, exact)


@pytest.mark.parametrize(("saved_by", "loaded_by"), [(4, 1), (1, 2), (2, 3)])
def test_training_goes_on_as_if_it_had_not_been_interrupted(ranks, saves, saved_by, loaded_by):
    losses, content = jobs.train_alone()
    found = ranks.run(jobs.load_and_train, loaded_by, str(saves[saved_by][0]))
    for own, _ in found:
        np.testing.assert_allclose(own, losses[5:], **TOLERANCE)
    shards = jobs.merged([own for _, own in found])
    assert_same_content(shards, jobs.merged([content]), TOLERANCE)


def test_only_the_last_save_is_kept(saves):
    path, _ = saves[2]
    assert sorted(p.name for p in path.iterdir()) == ["latest.json", "save-00000001"]


def test_what_a_crash_left_is_neither_read_nor_kept(alone, tmp_path):
    model = ShardedEmbedding(dim=2, name="t", optimizer=es.SGD(lr=1.0))
    model(torch.arange(4))
    model.save(tmp_path / "saves", extra={"best": 0.5})
    left = tmp_path / "saves" / "save-00000001" / "shard-00000-of-00001"
    left.mkdir(parents=True)
    (tmp_path / "saves" / "latest.json.new").write_text("{")
    store = load_shard(tmp_path / "saves")
    assert len(store["t"]) == 4
    assert store.extra == {"best": 0.5}
    model.save(tmp_path / "saves")
    assert load_shard(tmp_path / "saves").extra is None
    names = {p.name for p in (tmp_path / "saves").iterdir()}
    assert names == {"latest.json", "save-00000001"}


def test_what_is_damaged_is_told(alone, tmp_path):
    path = tmp_path / "saves"
    with pytest.raises(es.CheckpointError, match=r"holds no save.*no latest\.json"):
        load_shard(path)
    assert latest_save(path) is None
    ShardedEmbedding(dim=2, name="t").save(path, extra={"a": torch.ones(3)})
    beside = path / "save-00000000" / "extra.pt"
    whole = beside.read_bytes()
    beside.write_bytes(whole[:-1] + b"?")
    with pytest.raises(es.CorruptCheckpointError, match=r"extra\.pt"):
        load_shard(path)
    beside.write_bytes(whole)
    found = json.loads((path / "latest.json").read_text())
    for change in ({"format": 2}, {"save": "../elsewhere"}, {"world_size": 0}, {"step": None}):
        (path / "latest.json").write_text(json.dumps(found | change))
        with pytest.raises(es.CorruptCheckpointError, match=r"latest\.json"):
            load_shard(path)


def test_an_extra_that_could_not_be_read_safely_is_refused(alone, tmp_path):
    model = ShardedEmbedding(dim=2, name="t")
    model.save(tmp_path, extra={"good": [1, 2.0, "x", None]})
    with pytest.raises(es.ArgumentTypeError, match="extra must be of tensors"):
        model.save(tmp_path, extra={"bad": np.random.default_rng(0)})
    assert load_shard(tmp_path).extra == {"good": [1, 2.0, "x", None]}
