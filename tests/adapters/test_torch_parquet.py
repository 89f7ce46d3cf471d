"""ParquetDataset: each row on one worker of one rank, and a loader that resumes at any batch."""

import json
import os
import pickle
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embstore as es
from embstore.data import (
    ClosedReaderError,
    DataError,
    DataFileError,
    DataTypeError,
    Shuffle,
    cross_keys,
    hash_strings,
)

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch.utils.data import DataLoader  # noqa: E402

from embstore.torch import Jagged, ParquetDataset, ParquetLoader  # noqa: E402

# Newer Pythons warn of any fork beside threads, and torch of more workers than cores.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
]

N_ROWS = 1000


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Two files of 1000 rows in row groups of 60: ids that count, floats, lists, strings."""
    folder = tmp_path_factory.mktemp("log")
    ids = np.arange(N_ROWS)
    tags = [list(range(i, i + i % 3)) for i in range(N_ROWS)]
    table = pa.table(
        {
            "id": ids,
            "label": pa.array((ids % 2).astype(np.float32)),
            "price": ids / 7,
            "tags": tags,
            "city": [f"city-{i % 10}" for i in range(N_ROWS)],
        }
    )
    pq.write_table(table[:400], folder / "0.parquet", row_group_size=60)
    pq.write_table(table[400:], folder / "1.parquet", row_group_size=60)
    return folder


def ids_of(batches):
    return [batch["id"].tolist() for batch in batches]


def flat(batches):
    return [i for batch in batches for i in batch]


def test_columns_become_tensors_of_their_kind(log):
    dataset = ParquetDataset(log, ["id", "label", "price", "tags", "city"], 300)
    first = next(iter(dataset))
    assert first["id"].dtype == torch.int64
    assert first["id"].tolist() == list(range(300))
    assert first["label"].dtype == first["price"].dtype == torch.float32
    assert torch.equal(first["price"], (torch.arange(300) / 7.0))
    assert isinstance(first["tags"], Jagged)
    assert first["tags"].lengths().tolist() == [i % 3 for i in range(300)]
    assert first["tags"].values[:4].tolist() == [1, 2, 3, 4]
    cities = hash_strings(pa.array([f"city-{i % 10}" for i in range(300)]))
    assert first["city"].tolist() == cities.tolist()


def test_floats_stay_as_they_are_on_demand(log):
    batch = next(iter(ParquetDataset(log, ["label", "price"], 10, float_dtype=None)))
    assert (batch["label"].dtype, batch["price"].dtype) == (torch.float32, torch.float64)
    assert batch["price"][3].item() == 3 / 7


def test_tensors_may_be_written_to(log):
    dataset = ParquetDataset(log, ["id", "tags"], 50)
    for batch in dataset:  # torch warns, and warnings are errors, if a tensor is read-only
        batch["id"].zero_()
        batch["tags"].values.zero_()
    assert flat(ids_of(dataset)) == list(range(N_ROWS))


def test_features_are_crossed_and_columns_only_they_need_are_not_yielded(log):
    dataset = ParquetDataset(log, ["label"], 100, features="id,id*city,city*tags")
    batch = next(iter(dataset))
    assert list(batch) == ["label", "id", "id*city", "city*tags"]
    cities = hash_strings(pa.array([f"city-{i % 10}" for i in range(100)]))
    assert batch["id*city"].tolist() == cross_keys(np.arange(100), cities).tolist()
    assert batch["city*tags"].lengths().tolist() == [i % 3 for i in range(100)]
    listed = ParquetDataset(log, [], 100, features=["id", "id*city"])
    assert list(next(iter(listed))) == ["id", "id*city"]


@pytest.mark.parametrize("shuffle", [None, Shuffle(seed=3, buffer_rows=100)])
def test_two_ranks_of_three_workers_read_each_row_once(log, shuffle):
    read = []
    for rank in range(2):
        dataset = ParquetDataset(
            log, ["id"], 32, rank=rank, world_size=2, shuffle=shuffle, even=False
        )
        mine = flat(ids_of(DataLoader(dataset, batch_size=None, num_workers=3)))
        assert mine == flat(ids_of(dataset.loader(num_workers=3)))
        read.append(mine)
    assert min(map(len, read)) >= 420
    assert sorted(read[0] + read[1]) == list(range(N_ROWS))


def test_even_gives_all_ranks_as_many_batches_and_counts_what_it_leaves_out(log):
    n_batches, n_read, n_left = [], 0, 0
    for rank in range(3):
        dataset = ParquetDataset(log, ["id"], 16, rank=rank, world_size=3, even=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            batches = ids_of(dataset)
        n_left += sum(int(str(w.message).split()[3]) for w in caught)
        n_read += len(flat(batches))
        n_batches.append(len(batches))
        assert len(batches) == dataset.n_batches()
        assert dataset.epoch == 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", es.EmbstoreWarning)
            assert ids_of(dataset) == batches  # the next epoch, whole again
    assert len(set(n_batches)) == 1
    assert n_left > 0
    assert n_read + n_left == N_ROWS


def test_even_holds_for_workers_too(log):
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("PYTHONWARNINGS", "ignore")
        warnings.simplefilter("ignore", es.EmbstoreWarning)
        loaders = [
            ParquetDataset(log, ["id"], 16, rank=r, world_size=3, even=True).loader(2)
            for r in range(3)
        ]
        read = [ids_of(loader) for loader in loaders]
    assert len({len(batches) for batches in read}) == 1
    assert [len(loader) for loader in loaders] == [len(batches) for batches in read]
    together = flat(flat(read))
    assert len(together) == len(set(together)) > 900


def test_ranks_that_differ_in_batches_are_warned_of(log):
    dataset = ParquetDataset(log, ["id"], 16, rank=0, world_size=3)
    with pytest.warns(es.EmbstoreWarning, match="will wait for ever"):
        list(dataset)
    lost = ParquetDataset(log, ["id"], 16, rank=0, world_size=30, even=True)
    with pytest.raises(DataError, match="write more row groups, at least 30"):
        list(lost)


def test_torchrun_without_initialised_ranks_is_refused(log, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(es.ArgumentError, match="distributed is not initialised"):
        list(ParquetDataset(log, ["id"], 16))
    assert len(list(ParquetDataset(log, ["id"], 1000, rank=0, world_size=1))) == 1


def test_ranks_come_from_torch_distributed(log, tmp_path):
    dataset = ParquetDataset(log, ["id"], 16)
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert dataset.state_dict()["world_size"] == 1
        assert flat(ids_of(dataset)) == list(range(N_ROWS))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_loader_resumes_at_the_very_next_batch(log, num_workers, drop_last):
    def made():
        dataset = ParquetDataset(
            log, ["id"], 64, shuffle=Shuffle(seed=1, buffer_rows=128), drop_last=drop_last
        )
        return dataset.loader(num_workers)

    whole = made()
    epochs = [ids_of(whole), ids_of(whole)]
    assert epochs[0] != epochs[1]
    assert len(epochs[0]) == len(whole)
    for n_done in (1, 3, len(whole) - 1, len(whole)):
        loader = made()
        batches = iter(loader)
        head = [next(batches)["id"].tolist() for _ in range(n_done)]
        state = json.loads(json.dumps(loader.state_dict()))
        batches.close()
        assert head == epochs[0][:n_done]
        again = made()
        again.load_state_dict(state)
        assert again.state_dict() == state
        assert ids_of(again) == epochs[0][n_done:]
    assert again.epoch == 1
    assert ids_of(again) == epochs[1]


def test_a_loop_that_is_left_early_is_continued_by_the_next(log):
    loader = ParquetDataset(log, ["id"], 64).loader(2, persistent_workers=True)
    whole = ids_of(loader)
    seen = []
    for batch in loader:
        seen.append(batch["id"].tolist())
        if len(seen) == 3:
            break
    seen += ids_of(loader)
    assert seen == whole
    first = iter(loader)
    next(first)
    next(iter(loader))
    with pytest.raises(ClosedReaderError, match="begun another"):
        next(first)
    moved = iter(loader)
    next(moved)
    loader.load_state_dict(loader.state_dict())
    with pytest.raises(ClosedReaderError, match="was moved"):
        next(moved)


def test_spawned_workers_read_the_same(log):
    dataset = ParquetDataset(log, ["id", "tags"], 64, features="id*city")
    dataset.set_epoch(2)
    forked = dataset.loader(2, multiprocessing_context="fork")
    spawned = dataset.loader(2, multiprocessing_context="spawn")
    for one, other in zip(forked, spawned, strict=True):
        assert torch.equal(one["id*city"], other["id*city"])
        assert torch.equal(one["tags"].offsets, other["tags"].offsets)
    assert forked.state_dict() == spawned.state_dict()
    assert forked.epoch == 3


def test_a_dataset_resumes_without_workers(log):
    def made(**options):
        return ParquetDataset(log, ["id"], 64, shuffle=Shuffle(seed=5), **options)

    whole = ids_of(made())
    dataset = made()
    batches = iter(dataset)
    for _ in range(4):
        next(batches)
    state = json.loads(json.dumps(dataset.state_dict()))
    again = made()
    again.load_state_dict(state)
    assert ids_of(again) == whole[4:]
    again.set_epoch(0)
    assert ids_of(again) == whole
    with pytest.raises(es.ArgumentError, match="make the loader first"):
        dataset.loader()
    with pytest.raises(es.ArgumentError, match="number of workers") as raised:
        list(DataLoader(dataset, batch_size=None, num_workers=2))
    # Its frames hold the loader: freed with other garbage, it waits 5 s for each worker.
    raised.value.__traceback__ = None
    del raised
    for match, other in {
        "batch_size 64": ParquetDataset(log, ["id"], 32, shuffle=Shuffle(seed=5)),
        "shuffle": ParquetDataset(log, ["id"], 64),
        "is_even": made(even=True),
        "world_size 1": made(rank=0, world_size=2),
        "data": ParquetDataset(log / "0.parquet", ["id"], 64, shuffle=Shuffle(seed=5)),
    }.items():
        with pytest.raises(es.ArgumentError, match=match):
            other.load_state_dict(state)


def test_a_pickled_dataset_keeps_its_place_and_its_rank(log, monkeypatch):
    dataset = ParquetDataset(log, ["id"], 64, even=False)
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_rank", lambda: 1)
        patch.setattr(torch.distributed, "get_world_size", lambda: 2)
        whole = ids_of(dataset)
        dataset.set_epoch(0)
        batches = iter(dataset)
        assert [next(batches)["id"].tolist(), next(batches)["id"].tolist()] == whole[:2]
        pickled = pickle.dumps(dataset)
        state = dataset.state_dict()
    copied = pickle.loads(pickled)
    assert copied.state_dict() == state
    assert (state["rank"], state["world_size"]) == (1, 2)
    assert ids_of(copied) == whole[2:]


def test_an_epoch_of_a_bare_dataloader_is_what_was_set(log):
    dataset = ParquetDataset(log, ["id"], 100, shuffle=Shuffle(seed=5))
    ours = dataset.loader(2)
    expected = [ids_of(ours), ids_of(ours)]
    bare = DataLoader(dataset, batch_size=None, num_workers=2)
    for epoch in (1, 0):
        dataset.set_epoch(epoch)
        assert ids_of(bare) == expected[epoch]


@pytest.mark.filterwarnings("ignore:.*set_vital.*:UserWarning")  # torchdata's own
@pytest.mark.parametrize("num_workers", [0, 2])
def test_torchdata_resumes_a_dataset(log, num_workers):
    loaders = pytest.importorskip(
        "torchdata.stateful_dataloader", reason="torchdata is not installed"
    )

    def made():
        dataset = ParquetDataset(log, ["id"], 64, shuffle=Shuffle(seed=5))
        return loaders.StatefulDataLoader(dataset, batch_size=None, num_workers=num_workers)

    whole = ids_of(made())
    loader = made()
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    state = loader.state_dict()
    again = made()
    again.load_state_dict(state)
    assert ids_of(again) == whole[3:]


def test_a_state_of_another_loader_is_refused_and_changes_nothing(log):
    loader = ParquetDataset(log, ["id"], 64).loader(2)
    state = loader.state_dict()
    for match, changed in {
        "num_workers 3": {"num_workers": 3},
        "one for each of 2": {"rows": [0]},
        "the state's row ": {"rows": [0, -1]},
        "at rows": {"rows": [0, 10**6]},
        "that of a worker": {"turn": 2},
        "the state's epoch": {"epoch": None},
    }.items():
        with pytest.raises(es.ArgumentError, match=match):
            loader.load_state_dict({**state, **changed})
    with pytest.raises(es.ArgumentError, match="lacks 'data'"):
        loader.load_state_dict({k: v for k, v in state.items() if k != "data"})
    with pytest.raises(es.ArgumentTypeError, match="must be a dict"):
        loader.load_state_dict([1])
    assert loader.state_dict() == state


@pytest.mark.parametrize(
    ("error", "match", "columns", "options"),
    [
        (es.ArgumentError, "batch_size must be at least 1", ["id"], {"batch_size": 0}),
        (es.ArgumentTypeError, "columns must be", "id", {}),
        (es.ArgumentError, "columns is empty", [], {}),
        (es.ArgumentTypeError, "features must be", ["id"], {"features": 7}),
        (es.ArgumentError, "names a column twice", ["id"], {"features": "id*id"}),
        (DataTypeError, "needs keys", ["id"], {"features": "id*price"}),
        (DataError, "nosuch", ["id"], {"features": "nosuch"}),
        (es.ArgumentTypeError, "float_dtype", ["id"], {"float_dtype": torch.int64}),
        (es.ArgumentTypeError, "even", ["id"], {"even": 1}),
        (es.ArgumentTypeError, "world_size must be", ["id"], {"rank": 0}),
        (es.ArgumentError, "got 2 of 2", ["id"], {"rank": 2, "world_size": 2}),
        (es.ArgumentTypeError, "Shuffle", ["id"], {"shuffle": True}),
    ],
)
def test_wrong_arguments_are_named(log, error, match, columns, options):
    with pytest.raises(error, match=match):
        ParquetDataset(log, columns, **{"batch_size": 8, **options})


def test_a_missing_file_and_wrong_options_of_a_loader_are_named(log):
    with pytest.raises(DataFileError, match="there is no file"):
        ParquetDataset(os.fspath(log / "2.parquet"), ["id"], 8)
    dataset = ParquetDataset(log, ["id"], 8)
    for match, options in {
        "'batch_size', 'shuffle'": {"batch_size": 4, "shuffle": True},
        "in_order": {"in_order": False},
        "num_workers": {"num_workers": -1},
    }.items():
        with pytest.raises(es.ArgumentError, match=match):
            dataset.loader(**options)
    with pytest.raises(es.ArgumentTypeError, match="expected a ParquetDataset"):
        ParquetLoader([1])
    with pytest.raises(es.ArgumentError, match="at least 0"):
        dataset.set_epoch(-1)
