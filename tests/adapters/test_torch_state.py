"""The state of modules: state dicts, copies, pickles, workers, distributed checkpoints."""

import copy
import io
import pickle
import tarfile
import warnings

import numpy as np
import pytest

import embstore as es

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

from embstore.torch import (  # noqa: E402
    Embedding,
    EmbeddingBag,
    EmbeddingBagCollection,
    EmbeddingCollection,
    dense_parameters,
    optimizer,
)


def make_table(name="user", dim=3, **parameters):
    parameters = {"optimizer": es.Adam(lr=0.1), "admission": es.CounterAdmission(2)} | parameters
    return es.Table(dim=dim, name=name, **parameters)


class Model(torch.nn.Module):
    """Two modules that share a table, a collection, and a dense part."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        user = make_table()
        self.user, self.bag = Embedding(user), EmbeddingBag(user, mode="mean")
        self.many = EmbeddingCollection([make_table("item"), make_table("a.b", dtype="bfloat16")])
        self.dense = torch.nn.Linear(12, 1)

    def forward(self, ids):
        many = self.many({"item": ids, "a.b": ids % 7})
        bags = self.bag(ids[:, None] + torch.arange(2))
        return self.dense(torch.cat([self.user(ids), bags, many["item"], many["a.b"].float()], 1))

    @property
    def tables(self):
        return [self.user.table, *(self.many.store[n] for n in self.many.store)]


def ids_at(step):
    return torch.from_numpy(np.random.default_rng(step).integers(0, 40, 30))


def train(model, steps, trainers=None):
    trainers = trainers or (optimizer(model), torch.optim.SGD(dense_parameters(model), lr=0.1))
    losses = []
    for step in steps:
        loss = model(ids_at(step)).square().mean()
        loss.backward()
        for trainer in trainers:
            trainer.step()
            trainer.zero_grad()
        losses.append(loss.item())
    return losses


def contents(table):
    """All that can be seen of a table, but for the bytes of its index."""
    found = []
    for rows in table.export(pending=True):
        found += [rows.keys, rows.values, rows.slots, rows.freq, rows.step]
    is_of_index = ("nbytes", "n_cells", "n_tombstones", "load_factor")
    stats = {k: v for k, v in table.stats().items() if not k.startswith(is_of_index)}
    return [*(array.tolist() for array in found), table.config(), stats]


def through_file(state, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(state, path)
    return torch.load(path, weights_only=True)


def test_a_state_dict_has_each_table_once_and_no_placeholder():
    model = Model()
    state = model.state_dict()
    assert sorted(state) == [
        *("bag.table", "dense.bias", "dense.weight"),
        *("many.table.a/b", "many.table.item", "user.table"),
    ]
    assert state["user.table"] is state["bag.table"]
    assert (state["user.table"].dtype, state["user.table"].dim()) == (torch.uint8, 1)
    train(model, range(1))
    assert not torch.equal(model.state_dict()["user.table"], state["user.table"])


def test_a_model_goes_on_to_the_bit_after_a_file(tmp_path):
    model = Model()
    trainers = (optimizer(model), torch.optim.SGD(dense_parameters(model), lr=0.1))
    train(model, range(4), trainers)
    state = through_file(model.state_dict(), tmp_path)
    assert state["user.table"].data_ptr() == state["bag.table"].data_ptr()
    other = Model(seed=1)
    train(other, range(9))
    trainers_of_other = (optimizer(other), torch.optim.SGD(dense_parameters(other), lr=0.1))
    other(ids_at(3)).sum().backward()  # a gradient of rows that go
    for trainer in trainers_of_other:
        trainer.zero_grad()
    result = other.load_state_dict(state)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert other.user.step == other.many.step == model.user.step == 4
    assert [contents(t) for t in other.tables] == [contents(t) for t in model.tables]
    assert model.user.table.stats()["n_pending"] > 0
    assert train(other, range(4, 8), trainers_of_other) == train(model, range(4, 8), trainers)
    assert [contents(t) for t in other.tables] == [contents(t) for t in model.tables]


def test_gradients_of_before_a_load_train_nothing():
    model = Embedding(make_table(admission=None))
    trainer = optimizer(model)
    model(torch.tensor([1, 2])).sum().backward()
    state = model.state_dict()
    model.load_state_dict(state)
    before = model.table.find([1, 2]).tolist()
    assert model.weight.grad is None
    trainer.step()
    assert model.table.find([1, 2]).tolist() == before


def test_the_step_of_a_fused_module_is_kept():
    model = Embedding(make_table(admission=None), fused=True)
    for _ in range(3):
        model(torch.tensor([1])).sum().backward()
    other = Embedding(make_table(admission=None), fused=True)
    other.load_state_dict(model.state_dict())
    for each in (model, other):
        each(torch.tensor([1])).sum().backward()
    assert contents(other.table) == contents(model.table)
    assert other.table.step == 3


def test_a_missing_table_is_a_missing_key():
    model = Model()
    train(model, range(2))
    before = [contents(t) for t in model.tables]
    state = model.state_dict()
    del state["many.table.item"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\).*"many.table.item"'):
        model.load_state_dict(state)
    assert model.load_state_dict(state, strict=False).missing_keys == ["many.table.item"]
    assert [contents(t) for t in model.tables] == before
    state["user.other"] = torch.zeros(1)
    assert model.load_state_dict(state, strict=False).unexpected_keys == ["user.other"]


def damaged(packed, where):
    packed = packed.clone()
    packed[where] ^= 1
    return packed


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda packed: packed[:100], "holds no table"),
        (lambda packed: packed[:1500], "holds no table|unexpected end"),
        (lambda packed: packed[:0], "holds no table"),
        (lambda packed: packed.float(), r"expected a table as \(n_bytes,\) uint8"),
        (lambda packed: packed.reshape(2, -1), r"expected a table as \(n_bytes,\) uint8"),
        (lambda packed: "a table", "expected a table as .* got str"),
        (lambda packed: torch.zeros(10240, dtype=torch.uint8), "there is no manifest"),
        (lambda packed: damaged(packed, 3 * len(packed) // 4), "'table'"),
    ],
)
def test_a_damaged_table_is_one_line_and_the_table_is_as_it_was(spoil, expected):
    model = Embedding(make_table(admission=None))
    for step in range(3):
        train_one(model, step, range(200))
    state = {"table": spoil(model.state_dict()["table"])}
    train_one(model, 3, range(300))
    before = contents(model.table)
    with pytest.raises(RuntimeError, match=f"table 'user' is as it was: .*({expected})") as caught:
        model.load_state_dict(state)
    assert len(str(caught.value).splitlines()) == 2  # torch's own, and ours
    assert "/embstore-" not in str(caught.value)
    assert contents(model.table) == before


def train_one(model, step, ids):
    trainer = optimizer(model)
    model(torch.tensor([*ids])).sum().backward()
    trainer.step()


def test_every_byte_of_a_packed_table_is_checked_or_does_not_matter():
    model = Embedding(make_table(admission=None))
    train_one(model, 0, range(50))
    packed, before = model.state_dict()["table"], contents(model.table)
    refused = 0
    for place in range(0, len(packed), 97):
        other = Embedding(make_table(admission=None))
        try:
            other.load_state_dict({"table": damaged(packed, place)})
        except RuntimeError:
            refused += 1
            assert len(other.table) == 0
        else:
            assert contents(other.table) == before
    assert refused > 20


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/b", "..", "link", "twice"])
def test_a_forged_tar_writes_nowhere(name):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo(name)
        if name == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        else:
            member.size = 4
        for _ in range(2 if name == "twice" else 1):
            tar.addfile(member, io.BytesIO(b"evil"))
    forged = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    model = Embedding(make_table())
    with pytest.raises(RuntimeError, match=f"{name!r} is no file of a table"):
        model.load_state_dict({"table": forged})


@pytest.mark.parametrize("other", [{"dim": 2}, {"dtype": "float16"}, {"name": "item"}])
def test_a_table_of_another_kind_is_refused(other):
    state = Embedding(make_table(**other)).state_dict()
    model = Embedding(make_table())
    (what,) = other
    with pytest.raises(RuntimeError, match=f"table 'user' is as it was: .*{what}="):
        model.load_state_dict(state)


def test_a_module_without_tables_in_its_state_dict_says_so_once():
    model = Model()
    train(model, range(2))
    before = [contents(t) for t in model.tables]
    model.user.tables_in_state_dict = model.bag.tables_in_state_dict = False
    with pytest.warns(es.EmbstoreWarning, match="tables_in_state_dict=False.*table.save") as told:
        state = model.state_dict()
    assert len(told) == 2
    assert "user.table" not in state
    assert "many.table.item" in state
    assert "user.weight" not in state
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.state_dict()
    model.load_state_dict(state)
    assert [contents(t) for t in model.tables] == before


@pytest.mark.parametrize("kind", [torch.nn.Embedding, torch.nn.EmbeddingBag])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dense_embedding_loads_as_rows_0_to_n(kind, dtype):
    dense = kind(50, 3)
    own = Embedding if kind is torch.nn.Embedding else EmbeddingBag
    model = own(make_table(dtype=dtype, eviction=es.StepEviction(9)))
    model.table.assign([1000, 1], np.ones((2, 3), np.float32))
    config = model.table.config()
    model.load_state_dict(dense.state_dict())
    rows = torch.from_numpy(model.table.find(np.arange(50)))
    expected = dense.weight.detach().to(torch.float32 if dtype == "float32" else torch.bfloat16)
    assert torch.equal(rows, expected.float())
    assert len(model.table) == 50
    assert not model.table.contains([1000]).any()
    assert model.table.config() == config
    assert model.step == 0


def test_a_dense_embedding_that_does_not_fit_changes_nothing():
    model = Embedding(make_table(max_rows=10, on_full="refuse"))
    model.table.assign([1000], np.ones((1, 3), np.float32))
    before = contents(model.table)
    for weight, expected in (
        (torch.zeros(50, 3), "has 50 rows, of which 10 fit"),
        (torch.zeros(5, 4), r"must be \(n, 3\), got \(5, 4\)"),
        (torch.full((5, 3), torch.nan), "NaN|finite"),
        (torch.zeros(5, 3, dtype=torch.int64), "floating tensor"),
    ):
        with pytest.raises(RuntimeError, match=f"table 'user' is as it was: .*({expected})"):
            model.load_state_dict({"weight": weight})
        assert contents(model.table) == before


def test_a_state_dict_of_torchrec_loads_into_a_collection():
    model = EmbeddingBagCollection([make_table(), make_table("item")])
    weights = {n: torch.randn(20, 3) for n in ("user", "item")}
    model.load_state_dict({f"embedding_bags.{n}.weight": w for n, w in weights.items()})
    for name, weight in weights.items():
        assert torch.equal(torch.from_numpy(model.store[name].find(np.arange(20))), weight)


def test_a_table_of_any_name_has_a_key_of_its_own():
    names = ["table", "step", "a.b", "weight", "half"]
    model = EmbeddingCollection([make_table(name) for name in names])
    state = model.state_dict()
    assert [*state] == ["table.table", "table.step", "table.a/b", "table.weight", "table.half"]
    other = EmbeddingCollection([make_table(name) for name in reversed(names)])
    for place, name in enumerate(names):
        model.store[name].assign([place], np.ones((1, 3), np.float32))
    other.load_state_dict(model.state_dict())
    for place, name in enumerate(names):
        assert other.store[name].contains([place]).all()


def test_a_table_and_a_dense_weight_for_it_do_not_go_together():
    model = Embedding(make_table())
    state = model.state_dict() | torch.nn.Embedding(4, 3).state_dict()
    assert model.load_state_dict(state, strict=False).unexpected_keys == ["weight"]
    assert len(model.table) == 0


def test_a_shard_is_not_loaded_as_a_whole():
    model = Embedding(make_table())
    state = {"table.shard-00001-of-00004": model.state_dict()["table"]}
    with pytest.raises(RuntimeError, match=r"is whole here.*shard-00001-of-00004.*sharded module"):
        model.load_state_dict(state)


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)
def test_a_shard_says_which_it_is_and_is_loaded_as_that_alone():
    from torch import distributed

    from embstore.torch import ShardedEmbedding

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = ShardedEmbedding(make_table(admission=None))
        trainer = optimizer(model)
        model(torch.tensor([5, 6])).sum().backward()
        trainer.step()
        state = model.state_dict()
        assert [*state] == ["table.shard-00000-of-00001"]
        other = ShardedEmbedding(make_table(admission=None))
        other.load_state_dict(state)
        assert contents(other.table) == contents(model.table)
        assert other.step == model.step == 1
        (packed,) = state.values()
        for key in ("table", "table.shard-00000-of-00002"):
            expected = f"is shard-00000-of-00001 here.*{key}'.*sharded module"
            with pytest.raises(RuntimeError, match=expected):
                other.load_state_dict({key: packed})
        assert contents(other.table) == contents(model.table)
    finally:
        distributed.destroy_process_group()


def test_a_copy_of_a_model_has_its_own_tables_which_its_modules_share():
    model = Model()
    train(model, range(3))
    model.many.requires_grad_(False)
    copied = copy.deepcopy(model)
    model.many.requires_grad_(True)
    assert copied.user.table is copied.bag.table is not model.user.table
    assert copied.user.weight is copied.bag.weight
    assert copied.many.store["item"] is copied.many.get_parameter("item").table
    assert not copied.many.get_parameter("item").is_trained
    copied.many.requires_grad_(True)
    clocks = {id(p.clock) for p in copied.parameters() if hasattr(p, "clock")}
    assert len(clocks) == 1
    assert [contents(t) for t in copied.tables] == [contents(t) for t in model.tables]
    before = [contents(t) for t in copied.tables]
    losses = train(model, range(3, 6))
    assert [contents(t) for t in copied.tables] == before
    assert train(copied, range(3, 6)) == losses
    assert [contents(t) for t in copied.tables] == [contents(t) for t in model.tables]


def test_an_averaged_model_averages_the_dense_part_and_copies_tables_once():
    from torch.optim.swa_utils import AveragedModel

    model = Model()
    averaged = AveragedModel(model)
    before = [contents(t) for t in averaged.module.tables]
    weights = []
    for step in range(2):
        train(model, [step])
        averaged.update_parameters(model)
        weights.append(model.dense.weight.detach().clone())
    torch.testing.assert_close(averaged.module.dense.weight, sum(weights) / 2)
    assert [contents(t) for t in averaged.module.tables] == before
    averaged.module.many.load_state_dict(model.many.state_dict())
    assert contents(averaged.module.tables[1]) == contents(model.tables[1])


def test_pickling_is_one_clear_line(tmp_path):
    model = Model()
    expected = "table 'user' cannot be pickled.*state_dict.*table.save.*serving.open"
    for attempt in (
        lambda: pickle.dumps(model),
        lambda: torch.save(model, tmp_path / "model.pt"),
        lambda: pickle.dumps(model.user.weight),
    ):
        with pytest.raises(es.ArgumentTypeError, match=expected):
            attempt()


class Looked(torch.utils.data.Dataset):
    """What a worker reads, or what it meets when it trains."""

    def __init__(self, model, trains):
        self.model, self.trains = model, trains

    def __len__(self):
        return 2

    def __getitem__(self, place):
        if not self.trains:
            with torch.no_grad():
                return self.model(torch.tensor([place]))[0]
        try:
            self.model(torch.tensor([place]))
        except es.ForkError as error:
            return str(error)
        return "trained"


def loader(model, trains, how):
    return torch.utils.data.DataLoader(
        Looked(model, trains), batch_size=None, num_workers=1, multiprocessing_context=how
    )


@pytest.mark.unsanitized
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_worker_reads_and_does_not_train():
    model = Embedding(make_table(admission=None))
    model.table.assign([0, 1], np.array([[1, 2, 3], [4, 5, 6]], np.float32))
    assert [rows.tolist() for rows in loader(model, False, "fork")] == [[1, 2, 3], [4, 5, 6]]
    told = [*loader(model, True, "fork")]
    assert len(told) == 2
    assert all("fork" in line for line in told)
    assert len(model.table) == 2


@pytest.mark.filterwarnings("ignore:Got pickle error:UserWarning")  # torch's, before ours
def test_a_spawned_worker_is_refused_by_one_clear_line():
    model = Embedding(make_table())
    with pytest.raises(es.ArgumentTypeError, match="cannot be pickled"):
        [*loader(model, False, "spawn")]
