"""The front of Table: arguments, results, batches, schedules, sinks, closing; not the semantics."""

import gc
import json
import weakref

import numpy as np
import pytest

import embstore as es

IDS = np.array([7, 5, 7, -1])


@pytest.fixture
def table():
    with es.Table(dim=4, optimizer=es.SGD(lr=0.5), initializer=es.Constant(1.0)) as made:
        yield made


def ones(*shape):
    return np.ones(shape, np.float32)


# Parameters


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"dim": 0}, es.ArgumentError, "dim must be an integer from 1 to 4096, got 0"),
        ({"dim": 4097}, es.ArgumentError, "got 4097"),
        ({"dim": 4.0}, es.ArgumentTypeError, "dim must be an integer, got 4.0 of type float"),
        ({"dim": True}, es.ArgumentTypeError, "dim must be an integer"),
        ({"name": 3}, es.ArgumentTypeError, "name must be a string"),
        ({"name": "\ud800"}, es.ArgumentError, "valid Unicode"),
        ({"dtype": "float64"}, es.ArgumentError, "dtype must be 'float32' or 'float16'"),
        ({"dtype": np.float32}, es.ArgumentTypeError, "dtype must be"),
        ({"rounding": "up"}, es.ArgumentError, "rounding must be"),
        ({"rounding": "stochastic"}, es.ArgumentError, "needs a 16-bit dtype"),
        ({"seed": -1}, es.ArgumentError, "seed must be"),
        ({"optimizer": "adam"}, es.ArgumentTypeError, "must be an optimizer policy, got 'adam'"),
        ({"optimizer": es.Adam}, es.ArgumentTypeError, "not the class itself"),
        ({"initializer": None}, es.ArgumentTypeError, "initializer"),
        ({"admission": 2}, es.ArgumentTypeError, "admission"),
        ({"eviction": es.SGD(0.1)}, es.ArgumentTypeError, "eviction"),
        ({"evict_every": 5}, es.ArgumentError, "needs an eviction policy"),
        (
            {"evict_every": 5, "eviction": es.CapacityEviction(), "max_rows": 5},
            es.ArgumentError,
            "needs an eviction policy that selects rows",
        ),
        ({"eviction": es.CapacityEviction()}, es.ArgumentError, "needs max_rows or max_bytes"),
        (
            {"eviction": es.CapacityEviction(), "max_rows": 5, "on_full": "raise"},
            es.ArgumentError,
            'needs on_full="evict"',
        ),
        ({"on_full": "grow"}, es.ArgumentError, "on_full must be"),
        ({"max_rows": 0}, es.ArgumentError, "max_rows must be"),
        ({"default_row": [1.0]}, es.ArgumentError, r"\(4,\) numbers, got float64 of shape \(1,\)"),
        ({"default_row": np.nan}, es.ArgumentError, "default_row must be a finite"),
        ({"default_row": [1, 2, 3, 1e39]}, es.ArgumentError, "finite in float32"),
        ({"default_row": "zeros"}, es.ArgumentError, "default_row"),
        ({"default_row": [[1], [2, 3]]}, es.ArgumentError, "default_row"),
        ({"hash_seed": 2**128}, es.ArgumentError, "from 0 to 2\\*\\*128 - 1"),
        ({"on_evict": 3}, es.ArgumentTypeError, "on_evict must be a callable"),
        ({"track_changes": 1}, es.ArgumentTypeError, "track_changes must be True or False"),
        ({"device": "tpu"}, es.ArgumentError, "device must be"),
        ({"device": None}, es.ArgumentTypeError, "device must be"),
    ],
)
def test_a_bad_parameter_is_named(parameters, error, message):
    with pytest.raises(error, match=f"^Table: .*{message}"):
        es.Table(**{"dim": 4} | parameters)


def test_a_hash_seed_is_nowhere_to_be_seen():
    secret = 0x0123456789ABCDEF0123456789ABCDEF
    with es.Table(dim=2, hash_seed=secret) as table:
        shown = repr(table) + json.dumps(table.config()) + str(table.stats()) + str(vars(table))
    with pytest.raises(es.ArgumentError) as refused:
        es.Table(dim=2, hash_seed=-secret)
    with pytest.raises(es.ArgumentTypeError) as untyped:
        es.Table(dim=2, hash_seed=str(secret))
    shown += str(refused.value) + str(untyped.value)
    assert str(secret) not in shown
    assert f"{secret:x}" not in shown


def test_a_table_comes_back_from_its_config():
    parameters = {
        "optimizer": es.Adam(lr=lambda step: 0.1, clip_norm=1.0),
        "initializer": es.Uniform(-1, 1),
        "seed": 2**64 - 1,
        "name": "user*item é",
        "dtype": "bfloat16",
        "rounding": "stochastic",
        "admission": es.BloomAdmission(3, 1000),
        "eviction": es.StepEviction(9) | es.CapacityEviction(by="freq"),
        "evict_every": 3,
        "max_rows": 100,
        "on_nonfinite": "skip",
        "default_row": [0.1, 0.2, 0.3],
        "track_changes": True,
    }
    with es.Table(dim=3, **parameters) as table:
        config = json.loads(json.dumps(table.config()))
        with es.Table.from_config(config) as again:
            assert again.config() == table.config()
            assert again.lr is None
            assert config["on_full"] == "evict"
            batch = again.find_or_insert([1], step=0)
            with pytest.raises(es.ArgumentError, match=r"no learning rate .* pass lr="):
                again.apply_gradients(batch, ones(1, 3), step=0)
            again.apply_gradients(batch, ones(1, 3), step=0, lr=0.1)
    with pytest.raises(es.ArgumentError, match="got \\['dim', 'size'\\]"):
        es.Table.from_config({"dim": 3, "size": 4})
    with pytest.raises(es.ArgumentTypeError):
        es.Table.from_config(None)


def test_a_repr_tells_what_the_table_is(table):
    table.find_or_insert(np.arange(2000), step=0)
    assert repr(table).startswith("<embstore.Table 'table': dim=4, float32, 2,000 rows, ")
    table.close()
    assert repr(table) == "<embstore.Table 'table': dim=4, float32, closed>"


# find


def test_find_by_its_fast_and_its_general_path_are_the_same(table):
    table.find_or_insert(IDS, step=0)
    keys = np.array([5, 6, -1])
    expected = [[1.0] * 4, [0.0] * 4, [1.0] * 4]
    out = np.full((3, 4), 9, np.float32)
    assert table.find(keys, out=out) is out
    assert out.tolist() == expected
    for given in (keys, keys.tolist(), keys.astype(np.int32), np.repeat(keys, 2)[::2]):
        assert table.find(given).tolist() == expected
        rows, found = table.find(given, return_found=True)
        assert rows.tolist() == expected
        assert found.tolist() == [True, False, True]
        assert found.dtype == bool
    result = table.find(keys, with_meta=True)
    assert (result.freq.tolist(), result.step.tolist()) == ([1, 0, 1], [0, -1, 0])
    assert len(table) == 3


def test_find_of_many_keys_releases_the_gil_and_is_the_same(table):
    keys = np.arange(50_000)
    batch = table.find_or_insert(keys, step=0)
    assert np.array_equal(table.find(keys), batch.rows)


def test_missing_keys(table):
    table.find_or_insert([1], step=0)
    assert table.find([2], missing="initial").tolist() == [[1.0] * 4]
    with pytest.raises(es.MissingKeyError, match="2") as raised:
        table.find([1, 2], missing="raise")
    assert not str(raised.value).startswith("'")
    with pytest.raises(es.ArgumentError, match="missing must be 'default' or 'initial' or 'raise'"):
        table.find([1], missing="zero")


@pytest.mark.parametrize("verb", ["find", "find_or_insert"])
def test_out_must_fit_and_not_overlap(table, verb):
    def call(keys, out):
        return table.find(keys, out) if verb == "find" else table.find_or_insert(keys, 0, out=out)

    with pytest.raises(es.ArgumentError, match=rf"Table.{verb}: out must be .* of shape \(2, 4\)"):
        call(np.arange(2), np.empty((3, 4), np.float32))
    memory = np.zeros(64, np.int64)
    with pytest.raises(es.ArgumentError, match="out must not share memory with keys"):
        call(memory[:2], memory[1:5].view(np.float32).reshape(2, 4))
    assert len(table) == 0


@pytest.mark.parametrize(("dtype", "crosses"), [("float16", "float16"), ("bfloat16", "float32")])
def test_16_bit_rows_cross_numpy(dtype, crosses):
    with es.Table(dim=3, dtype=dtype, initializer=es.Normal(std=1.0)) as table:
        batch = table.find_or_insert([1, 2], step=0)
        rows = table.find([1, 2])
        assert batch.rows.dtype == rows.dtype == crosses
        assert np.array_equal(batch.rows, rows)
        raw = table.find([1, 2], raw=True)
        if dtype == "bfloat16":
            assert raw.dtype == np.uint16
            assert np.array_equal(rows.view(np.uint32) >> 16, raw)
        else:
            assert np.array_equal(raw, rows)


# Batches


def test_a_batch_tells_about_its_unique_keys(table):
    batch = table.find_or_insert(IDS, step=0)
    assert batch.keys.tolist() == [7, 5, -1]
    assert batch.inverse.tolist() == [0, 1, 0, 2]
    assert batch.status.tolist() == [es.INSERTED] * 3
    assert (batch.n_unique, batch.n_inserted, batch.n_found) == (3, 3, 0)
    assert (batch.n_pending, batch.n_refused, len(batch)) == (0, 0, 4)
    assert repr(batch) == "<Batch of 'table': rows (4, 4), 3 unique keys>"
    with pytest.raises(ValueError, match="read-only"):
        batch.keys[0] = 1


def test_the_arrays_of_a_batch_outlive_it_and_the_table(table):
    batch = table.find_or_insert(IDS, step=0)
    keys, inverse = batch.keys, batch.inverse
    batch.close()
    table.close()
    del batch
    gc.collect()
    assert keys.tolist() == [7, 5, -1]
    assert inverse.tolist() == [0, 1, 0, 2]


def test_a_batch_is_of_one_table_and_ends(table):
    with es.Table(dim=4, name="other", optimizer=es.SGD(0.1)) as other:
        batch = other.find_or_insert(IDS, step=0)
        with pytest.raises(es.TicketError, match="of table 'other', not of this one, 'table'"):
            table.apply_gradients(batch, ones(4, 4), step=0)
        other.clear()
        with pytest.raises(es.TicketError):
            other.apply_gradients(batch, ones(4, 4), step=0)
    with table.find_or_insert(IDS, step=0) as batch:
        pass
    for use in (lambda: batch.keys, lambda: table.apply_gradients(batch, ones(4, 4), 0)):
        with pytest.raises(es.TicketError, match="closed"):
            use()
    assert "closed" in repr(batch)
    assert batch.rows.shape == (4, 4)


def test_a_batch_may_be_applied_several_times(table):
    batch = table.find_or_insert([7], step=0)
    for _ in range(2):
        table.apply_gradients(batch, ones(1, 4), step=0)
    assert table.find([7]).tolist() == [[0.0] * 4]


def test_tickets_and_tables_are_freed():
    table = es.Table(dim=4, on_evict=lambda rows: None)
    batch = table.find_or_insert(IDS, step=0)
    gone = weakref.ref(table)
    del table
    assert gone() is not None  # the batch holds it
    del batch
    gc.collect()
    assert gone() is None


# Learning rates


def test_a_schedule_is_asked_with_the_step():
    steps = []

    def schedule(step):
        steps.append(step)
        return 0.5 if step < 10 else 0.25

    optimizer = es.SGD(lr=schedule)
    with es.Table(dim=1, optimizer=optimizer, initializer=es.Constant(1.0)) as table:
        table.find_or_insert([1], step=0)
        table.apply_gradients([1], ones(1, 1), step=3)
        table.apply_gradients([1], ones(1, 1), step=10)
        assert table.find([1]).tolist() == [[0.25]]
        table.apply_gradients([1], ones(1, 1), step=11, lr=0.125)
        assert table.find([1]).tolist() == [[0.125]]
        assert steps == [3, 10]
        table.lr = 1
        assert (table.lr, table.optimizer.lr, table.config()["optimizer"]["lr"]) == (1.0, 1.0, 1.0)
        table.apply_gradients([1], ones(1, 1), step=12)
        assert table.find([1]).tolist() == [[-0.875]]


def test_a_bad_learning_rate_changes_nothing(table):
    table.find_or_insert([1], step=0)
    with pytest.raises(es.ArgumentError, match=r"lr must be .* at least 0, got -1"):
        table.apply_gradients([1], ones(1, 4), step=1, lr=-1.0)
    with pytest.raises(es.ArgumentTypeError, match="lr must be a number"):
        table.lr = "fast"
    table.lr = lambda step: float("nan")
    with pytest.raises(es.ArgumentError, match="the schedule at step 1: lr must be a finite"):
        table.apply_gradients([1], ones(1, 4), step=1)
    assert table.find([1]).tolist() == [[1.0] * 4]
    assert table.step == 0
    with es.Table(dim=4, optimizer=es.FTRL()) as ftrl:
        with pytest.raises(es.ArgumentError, match="greater than 0"):
            ftrl.apply_gradients([1], ones(1, 4), step=1, lr=0.0)


def test_a_table_without_an_optimizer_only_serves():
    with es.Table(dim=4) as table:
        batch = table.find_or_insert([1], step=0)
        assert table.slots == ()
        assert table.lr is None
        with pytest.raises(es.ArgumentError, match="without an optimizer"):
            table.apply_gradients(batch, ones(1, 4), step=0)
        with pytest.raises(es.ArgumentError, match="no optimizer"):
            table.lr = 0.1


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (-1, es.ArgumentError),
        (2**63, es.ArgumentError),
        (1.0, es.ArgumentTypeError),
        (True, es.ArgumentTypeError),
        ("1", es.ArgumentTypeError),
    ],
)
def test_a_bad_step_is_refused(table, step, error):
    for call in (
        lambda: table.find_or_insert([1], step=step),
        lambda: table.apply_gradients([1], ones(1, 4), step=step),
        lambda: table.pooled([1], [0, 1], step=step),
        lambda: table.evict(es.StepEviction(1), step=step),
        lambda: table.assign([1], ones(1, 4), step=step),
    ):
        with pytest.raises(error, match="step must be"):
            call()
    assert len(table) == 0
    table.find_or_insert([1], step=np.int32(5))
    assert table.step == 5


# Content


def test_export_comes_in_batches_and_import_takes_them(table):
    table.find_or_insert(np.arange(5000), step=3)
    parts = list(table.export(batch_rows=700))
    assert max(map(len, parts)) <= 700
    assert sum(map(len, parts)) == 5000
    with es.Table(dim=4, optimizer=es.SGD(0.1)) as other:
        for part in parts:
            other.import_(part)
        assert np.array_equal(other.find(np.arange(5000)), table.find(np.arange(5000)))
        with pytest.raises(es.ArgumentError, match="values must be float32 of shape"):
            other.import_(es.Rows(part.keys, part.values[:, :3], part.slots, part.freq, part.step))
        with pytest.raises(es.ArgumentTypeError, match=r"rows must be embstore\.Rows"):
            other.import_({})
        twice = parts[0][:1].keys.repeat(2)
        with pytest.raises(es.ArgumentError):
            other.import_(
                es.Rows(twice, ones(2, 4), ones(2, 0), np.zeros(2, np.uint32), np.zeros(2, int))
            )


def test_pending_keys_are_exported_on_request():
    with es.Table(dim=2, admission=es.CounterAdmission(3), default_row=0.5) as table:
        table.find_or_insert([1, 1, 1, 2, 2], step=4)
        (row,) = table.export()
        assert row.keys.tolist() == [1]
        row, pending = table.export(pending=True)
        assert (pending.keys.tolist(), pending.freq.tolist()) == ([2], [2])
        assert (pending.values.tolist(), pending.step.tolist()) == ([[0.5, 0.5]], [-1])
        with pytest.raises(es.ArgumentError, match="step must be at least 0, got -1"):
            table.import_(pending)
        candidates = table.candidates()
        assert (candidates.keys.tolist(), candidates.counts.tolist()) == ([2], [2])
    with es.Table(dim=2) as table:
        assert len(table.candidates()) == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_rows_survive_export_and_import(dtype):
    with es.Table(dim=5, dtype=dtype, initializer=es.Normal(std=3.0)) as table:
        rows = table.find_or_insert(np.arange(100), step=0).rows
        with es.Table(dim=5, dtype=dtype) as other:
            for part in table.export():
                other.import_(part)
            assert np.array_equal(other.find(np.arange(100)), rows)


def test_pins_spare_rows(table):
    table.find_or_insert(np.arange(10), step=0)
    table.pin([3, 5, 77])
    table.pin([5, 4])
    table.unpin([4, 99])
    assert table.pinned.tolist() == [3, 5, 77]
    assert table.evict(es.StepEviction(0), step=1, pins=[9]).n_evicted == 7
    assert table.contains([3, 5, 9, 4]).tolist() == [True, True, True, False]


def test_evict_needs_a_policy_that_selects_rows(table):
    with pytest.raises(es.ArgumentError, match="where is needed"):
        table.evict(step=1)
    with pytest.raises(es.ArgumentError, match="acts on full tables alone"):
        table.evict(es.CapacityEviction(), step=1)
    with pytest.raises(es.ArgumentError, match="halve_every"):
        table.evict(es.FrequencyEviction(1, 1, halve_every=5), step=1)
    with pytest.raises(es.ArgumentTypeError, match="where must be an eviction policy, got 300"):
        table.evict(300)
    with pytest.raises(es.ArgumentError, match="max_seconds must be"):
        table.evict(es.StepEviction(1), max_seconds=0)


def test_changes_need_tracking(table):
    for call in (table.changes, table.reset_changes):
        with pytest.raises(es.ArgumentError, match="track_changes=False"):
            call()


def test_a_plan_is_of_a_class_or_of_a_table(table):
    of_class = es.Table.plan(10_000, dim=4, optimizer=es.SGD(lr=0.5))
    assert table.plan(10_000) == of_class
    assert table.plan(20_000).resting_bytes > of_class.resting_bytes
    with pytest.raises(es.ArgumentTypeError, match="dim is needed"):
        es.Table.plan(10)
    with pytest.raises(es.ArgumentError, match="n_rows must be"):
        table.plan(-1)


def test_stats_are_plain_numbers(table):
    table.find_or_insert(np.arange(1000), step=7)
    stats = table.stats()
    assert json.loads(json.dumps(stats)) == stats
    assert (stats["n_live"], stats["step"], stats["n_inserted"]) == (1000, 7, 1000)
    assert (
        stats["nbytes"]
        == table.nbytes
        == sum(value for name, value in stats.items() if name.startswith("nbytes_"))
    )
    assert 0 < stats["load_factor"] <= 1
    assert stats["bloom_fill"] is None


def test_a_filter_past_its_capacity_warns_once_for_each_time():
    bloom = es.BloomAdmission(2, capacity=100, halve_every=10)
    with es.Table(dim=1, admission=bloom, name="user") as table:
        table.find_or_insert(np.arange(100), step=0)
        table.stats()
        table.find_or_insert(np.arange(100, 400), step=1)
        with pytest.warns(es.EmbstoreWarning, match="'user': its bloom filter .* capacity 100"):
            table.stats()
        table.stats()
        table.find_or_insert([1], step=10)  # halves
        table.stats()
        table.find_or_insert(np.arange(1000, 1400), step=11)
        with pytest.warns(es.EmbstoreWarning):
            table.stats()


# The sink of evictions


def test_the_sink_gets_every_evicted_row_after_the_call():
    taken = []

    def sink(rows):
        taken.append(rows)
        assert not table.contains(rows.keys).any()
        len(table)

    table = es.Table(
        dim=2,
        eviction=es.StepEviction(5) | es.CapacityEviction(),
        evict_every=10,
        max_rows=20,
        on_evict=sink,
    )
    table.find_or_insert([1, 2], step=0)
    table.find_or_insert([3], step=10)  # automatic
    assert sorted(taken.pop().keys.tolist()) == [1, 2]
    report = table.evict(step=16, dry_run=True, return_rows=True)  # a dry run removes nothing
    assert (report.rows.keys.tolist(), taken) == ([3], [])
    report = table.evict(step=16, return_rows=True)
    assert report.rows.keys.tolist() == taken.pop().keys.tolist() == [3]
    table.find_or_insert(np.arange(100, 120), step=17)
    table.find_or_insert([500], step=18)  # full
    assert len(taken.pop()) == 2
    table.evict(es.StepEviction(0), step=100)
    assert len(taken.pop()) == 19
    assert table.evict(step=100).rows is None
    assert taken == []
    table.close()


def test_what_a_sink_raises_comes_out_when_the_work_is_done():
    def sink(rows):
        raise RuntimeError("disk full")

    with es.Table(dim=2, eviction=es.StepEviction(5), evict_every=10, on_evict=sink) as table:
        table.find_or_insert([1], step=0)
        with pytest.raises(RuntimeError, match="disk full"):
            table.find_or_insert([2], step=10)
        assert table.contains([1, 2]).tolist() == [False, True]
        table.find_or_insert([2], step=11)
        with pytest.raises(RuntimeError, match="disk full"):
            table.evict(step=100)
        assert len(table) == 0


def test_the_sink_gets_rows_that_a_failing_call_evicted():
    taken = []
    with es.Table(
        dim=2, eviction=es.StepEviction(5), evict_every=10, max_rows=3, on_evict=taken.append
    ) as table:
        table.find_or_insert([1], step=0)
        with pytest.raises(es.CapacityError):
            table.find_or_insert(np.arange(10, 20), step=10)
        assert taken.pop().keys.tolist() == [1]


# Pooling


def test_pooled_leaves_padding_out(table):
    weights = np.array([1, 2, 3, 4, 5], np.float32)
    keys, offsets = [7, 0, 5, 0, 7], [0, 3, 3, 5]
    batch = table.pooled(keys, offsets, mode="sum", weights=weights, step=0, padding=0)
    assert batch.rows.tolist() == [[4.0] * 4, [0.0] * 4, [5.0] * 4]
    assert batch.keys.tolist() == [7, 5]
    assert len(table) == 2
    mean = table.pooled(keys, offsets, mode="mean", padding=0)
    assert mean.tolist() == [[1.0] * 4, [0.0] * 4, [1.0] * 4]
    table.apply_gradients(batch, ones(3, 4), step=0)
    assert table.find([7, 5]).tolist() == [[1 - 0.5 * 6] * 4, [1 - 0.5 * 3] * 4]
    with pytest.raises(es.ArgumentError, match=r"grads must be float32 of shape \(3, 4\)"):
        table.apply_gradients(batch, ones(5, 4), step=0)


def test_pooled_into_out(table):
    table.find_or_insert([1, 2], step=0)
    out = np.empty((2, 4), np.float32)
    assert table.pooled([1, 2, 1], [0, 1, 3], out=out) is out
    assert out.tolist() == [[1.0] * 4, [2.0] * 4]
    with pytest.raises(es.ArgumentError, match="mode must be 'sum' or 'mean' or 'sqrtn'"):
        table.pooled([1], [0, 1], mode="max")
    with pytest.raises(es.ArgumentError, match=r"weights must be float32 of shape \(1,\)"):
        table.pooled([1], [0, 1], weights=ones(2))
