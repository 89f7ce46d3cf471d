"""load under another optimizer, dtype, limit or policy: against the model, and what is refused."""

import warnings

import checkpoint_kit as kit
import numpy as np
import pytest
from conversion_kit import go_on, program_on, reload_as
from reference import floats

import embstore as es
from embstore import checkpoint, engines
from embstore.checkpoint import RowBlock
from embstore.table.values import convert_values

ADAM = es.Adam(0.05)
MOMENTUM = es.SGD(0.05, momentum=0.9)

# Saved optimizer, the one given, what becomes of its slots.
OPTIMIZERS = {
    "lr alone": (ADAM, es.Adam(0.3), None),
    "lr alone, reset": (ADAM, es.Adam(0.3), "reset"),
    "reset": (ADAM, "reset", None),
    "reset of an accumulator": (es.Adagrad(0.1, initial_accumulator=0.2), "reset", None),
    "other betas": (ADAM, es.Adam(0.05, betas=(0.5, 0.99), eps=1e-4), "keep"),
    "Adam to AdamW": (ADAM, es.AdamW(0.02), "keep"),
    "one moment": (ADAM, es.Adam(0.05, eps=1e-3), {"exp_avg_sq": "exp_avg_sq"}),
    "moments exchanged": (ADAM, es.Adam(0.05), {"exp_avg": "exp_avg_sq", "exp_avg_sq": "exp_avg"}),
    "no moment": (ADAM, es.AdamW(0.05), {}),
    "momentum to a moment": (MOMENTUM, ADAM, {"exp_avg": "momentum"}),
    "a moment to momentum": (ADAM, MOMENTUM, {"momentum": "exp_avg"}),
    "accumulator to a moment": (es.Adagrad(0.1), ADAM, {"exp_avg_sq": "accumulator"}),
    "FTRL to Adagrad": (es.FTRL(0.1), es.Adagrad(0.1, initial_accumulator=0.3), "keep"),
    "Adagrad to FTRL": (es.Adagrad(0.1), es.FTRL(0.1, l1=0.01), "keep"),
    "Adagrad to row-wise": (es.Adagrad(0.1), es.RowWiseAdagrad(0.1, 0.5), "reset"),
    "none to Adam": (None, ADAM, "reset"),
    "Adam to plain SGD": (ADAM, es.SGD(0.1), "reset"),
    "plain SGD to another": (es.SGD(0.1), es.SGD(0.1, weight_decay=0.1), "keep"),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_under_another_optimizer(name):
    saved, given, slots = OPTIMIZERS[name]
    with program_on(7, optimizer=saved) as program:
        reload_as(program.pair, optimizer=given, slots=slots)
        go_on(program)


@pytest.mark.parametrize(
    ("slots", "step"),
    # A moment that begins anew may be trained at the step of the last training: it counts anew.
    [("keep", 5), ("reset", 5), ("reset", 4), ({"exp_avg": "exp_avg"}, 4), ({}, 4)],
)
def test_bias_correction_is_exact_under_other_betas(tmp_path, slots, step):
    """Under one constant gradient every step of Adam is lr * g / |g|, whatever the betas were."""
    table = es.Table(2, optimizer=es.Adam(0.5, eps=0.0), initializer=es.Constant(0.0))
    gradient = np.array([[2.0, -0.25]], np.float32)
    table.assign([1], np.zeros((1, 2), np.float32))
    for each in range(5):
        table.apply_gradients([1], gradient, step=each)
    table.save(tmp_path)
    other = es.Adam(0.5, betas=(0.3, 0.7), eps=0.0)
    with es.Table.load(tmp_path, optimizer=other, slots=slots) as loaded:
        expected = table.find([1])
        for _ in range(3):
            loaded.apply_gradients([1], gradient, step=step)
            expected = expected - np.array([[0.5, -0.5]], np.float32)
            step += 1
            np.testing.assert_allclose(loaded.find([1]), expected, rtol=2e-6)
    table.close()


DTYPES = ["float32", "float16", "bfloat16"]


@pytest.mark.parametrize("new", DTYPES)
@pytest.mark.parametrize("old", DTYPES)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_any_dtype_becomes_any_other(old, new, rounding):
    rounding = "nearest" if old == "float32" else rounding
    with program_on(11, optimizer=ADAM, dtype=old, rounding=rounding) as program:
        reload_as(program.pair, dtype=new)
        go_on(program)


@pytest.mark.parametrize(("old", "new"), [("float16", "bfloat16"), ("bfloat16", "float16")])
def test_all_values_of_16_bits_are_rounded_to_nearest_even(old, new):
    bits = np.arange(2**16, dtype=np.uint32).astype(np.uint16).reshape(-1, 16)
    values = bits.view(np.float16) if old == "float16" else bits
    keys = np.arange(len(bits))
    none = np.empty((len(bits), 0), np.float32)
    rows = RowBlock(keys, values, none, keys.astype(np.uint32), keys)
    made = convert_values(rows, old, new, "there", allow_overflow=True)
    with np.errstate(over="ignore"):
        expected = floats.to_bits16(floats.narrow(floats.from_bits16(bits, old), new), new)
    is_nan = np.isnan(floats.from_bits16(bits, old))
    assert np.array_equal(made.view(np.uint16)[~is_nan], expected[~is_nan])
    assert np.isnan(floats.from_bits16(made.view(np.uint16), new)[is_nan]).all()


@pytest.mark.parametrize(("value", "dtype"), [(65520.0, "float16"), (3.3961775e38, "bfloat16")])
def test_a_value_that_overflows_is_an_error_that_names_it(tmp_path, value, dtype, no_engine_left):
    with es.Table(2, name="t") as table:
        values = np.array([[1, 2], [3, np.nextafter(np.float32(value), np.float32(0))]], np.float32)
        table.assign([5, 7], values)
        table.save(tmp_path / "fits")
        values[1, 1] = value
        table.assign([5, 7], values)
        table.save(tmp_path / "does not")
    with es.Table.load(tmp_path / "fits", dtype=dtype) as loaded:
        assert np.isfinite(loaded.find([7])).all()
    with pytest.raises(es.CheckpointMismatchError, match=r"key 7 has the value .* column 1"):
        es.Table.load(tmp_path / "does not", dtype=dtype)
    with es.Table.load(tmp_path / "does not", dtype=dtype, allow_nonfinite=True) as loaded:
        assert loaded.find([5, 7]).tolist() == [[1, 2], [3, np.inf]]


COUNTER = es.CounterAdmission(4)
AGING = es.CounterAdmission(4, candidate_ttl=100)
BLOOM = es.BloomAdmission(3, capacity=300)
PENDING, FILTER = "pending keys and their counts were dropped", "the counts of its bloom filter"

# Saved admission, the one given, what the warning says.
ADMISSIONS = {
    "a lower min_count": (COUNTER, es.CounterAdmission(2), None),
    "min_count 1": (COUNTER, es.CounterAdmission(1), None),
    "a higher min_count": (COUNTER, es.CounterAdmission(9), None),
    "a finer ttl": (AGING, es.CounterAdmission(4, candidate_ttl=10), None),
    "a coarser ttl": (AGING, es.CounterAdmission(5, candidate_ttl=1000), None),
    "no ttl": (AGING, COUNTER, None),
    "a ttl": (COUNTER, AGING, None),
    "counter to none": (COUNTER, None, PENDING),
    "counter to bloom": (AGING, BLOOM, PENDING),
    "none to counter": (None, AGING, None),
    "none to bloom": (None, BLOOM, None),
    "a filter of the same shape": (BLOOM, es.BloomAdmission(4, 300, halve_every=20), None),
    "a larger filter": (BLOOM, es.BloomAdmission(3, capacity=90_000), FILTER),
    "wider cells": (BLOOM, es.BloomAdmission(11, capacity=300), FILTER),
    "bloom to counter": (BLOOM, AGING, FILTER),
    "bloom to none": (es.BloomAdmission(3, 300, halve_every=9), None, FILTER),
}


@pytest.mark.parametrize("name", ADMISSIONS)
def test_admission_goes_on_under_another_policy(name):
    saved, given, drops = ADMISSIONS[name]
    with program_on(5, optimizer=ADAM, admission=saved) as program:
        program.pair.find_or_insert(np.arange(5000, 5040), program.step)
        reload_as(program.pair, drops, admission=given)
        go_on(program)


def test_what_was_dropped_is_counted(tmp_path):
    with es.Table(2, admission=es.CounterAdmission(3)) as table:
        table.find_or_insert(np.arange(17), step=0)
        table.save(tmp_path)
    with pytest.warns(es.EmbstoreWarning, match="17 pending keys") as caught:
        es.Table.load(tmp_path, admission=None).close()
    assert caught[0].filename == __file__


def test_nothing_is_said_of_an_empty_filter(tmp_path):
    with es.Table(2, admission=es.BloomAdmission(3, 100)) as table:
        table.save(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        es.Table.load(tmp_path, admission=None).close()


# What the table was made with, and what it is loaded as.
LIMITS = {
    "more rows": ({"max_rows": 400}, {"max_rows": 1000}),
    "fewer rows": ({}, {"max_rows": 430, "on_full": "refuse"}),
    "no bound": ({"max_rows": 400, "on_full": "refuse"}, {"max_rows": None}),
    "another on_full": ({"max_rows": 60, "on_full": "refuse"}, {"on_full": "evict"}),
    "an eviction": ({}, {"eviction": es.StepEviction(6), "evict_every": 3}),
    "another eviction": (
        {"eviction": es.StepEviction(6), "evict_every": 3},
        {"eviction": es.FrequencyEviction(3, 3, halve_every=10)},
    ),
    "another period": ({"eviction": es.StepEviction(6), "evict_every": 7}, {"evict_every": 3}),
    "no period": ({"eviction": es.StepEviction(6), "evict_every": 7}, {"evict_every": None}),
    "no eviction": (
        {"eviction": es.FrequencyEviction(3, 3, halve_every=10), "evict_every": 3},
        {"eviction": None, "evict_every": None},
    ),
    "capacity": (
        {"max_rows": 300},
        {"eviction": es.CapacityEviction("freq"), "on_full": "evict", "max_rows": 310},
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_and_eviction_may_be_others(name):
    saved, given = LIMITS[name]
    with program_on(3, optimizer=ADAM, **saved) as program:
        reload_as(program.pair, **given)
        go_on(program)


def test_a_period_ends_with_the_eviction_that_it_was_for(tmp_path):
    with es.Table(2, eviction=es.StepEviction(6), evict_every=3) as table:
        table.save(tmp_path)
    with es.Table.load(tmp_path, eviction=None) as table:
        assert (table.config()["eviction"], table.config()["evict_every"]) == (None, None)


def test_max_bytes_may_be_another(tmp_path):
    with es.Table(8, max_bytes=10**6) as table:
        table.find_or_insert(np.arange(1000), step=0)
        table.save(tmp_path)
    for bound in (None, 10**7):
        with es.Table.load(tmp_path, max_bytes=bound) as table:
            assert (len(table), table.config()["max_bytes"]) == (1000, bound)


def test_all_at_once():
    saved = {"optimizer": ADAM, "dtype": "bfloat16", "rounding": "stochastic"}
    with program_on(2, admission=COUNTER, **saved) as program:
        reload_as(
            program.pair,
            optimizer=es.AdamW(0.02, betas=(0.8, 0.9)),
            slots="keep",
            dtype="float16",
            max_rows=500,
            on_full="refuse",
            admission=es.CounterAdmission(2, candidate_ttl=50),
            eviction=es.StepEviction(9),
            evict_every=4,
        )
        go_on(program)


# What is refused.


@pytest.fixture
def no_engine_left(monkeypatch):
    """Counts the engines that are made; all of them must have been closed at the end."""
    made = []
    create = engines.create

    def counted(*args):
        made.append(create(*args))
        return made[-1]

    monkeypatch.setattr(engines, "create", counted)
    yield made
    for engine in made:
        with pytest.raises(es.ClosedTableError):
            len(engine)


MISMATCH = es.CheckpointMismatchError
ARGUMENT, TYPE = es.ArgumentError, es.ArgumentTypeError
REFUSED = {
    "another optimizer": ({"optimizer": es.Adam(eps=1)}, MISMATCH, "may differ in lr alone"),
    "no slot fits": (
        {"optimizer": es.Adagrad(), "slots": "keep"},
        MISMATCH,
        r"the saved slots are exp_avg \(2\), exp_avg_sq \(2\), those of the optimizer given "
        r"accumulator \(2\)",
    ),
    "no slot is left": ({"optimizer": es.SGD(1.0), "slots": "keep"}, MISMATCH, "given none"),
    "no such new slot": (
        {"optimizer": es.Adagrad(), "slots": {"exp_avg": "exp_avg"}},
        MISMATCH, "'exp_avg' cannot be",
    ),
    "no such saved slot": (
        {"optimizer": es.Adagrad(), "slots": {"accumulator": "momentum"}},
        MISMATCH, "saved 'momentum'",
    ),
    "another width": (
        {"optimizer": es.RowWiseAdagrad(), "slots": {"accumulator": "exp_avg"}},
        MISMATCH, r"accumulator \(1\)",
    ),
    "slots of numbers": ({"optimizer": es.Adagrad(), "slots": {1: 2}}, TYPE, "names of slots"),
    "slots alone": ({"slots": "reset"}, ARGUMENT, "needs the optimizer"),
    "other slots": ({"optimizer": es.Adam(), "slots": "drop"}, ARGUMENT, "'keep' or 'reset'"),
    "an unknown optimizer": ({"optimizer": "adam"}, ARGUMENT, "'keep' or 'reset'"),
    "a class": ({"optimizer": es.Adam}, TYPE, "optimizer must be"),
    "an unknown dtype": ({"dtype": "float64"}, ARGUMENT, "dtype must be"),
    "too few rows": ({"max_rows": 9}, MISMATCH, "10 rows do not fit into max_rows=9"),
    "too few bytes": ({"max_bytes": 1000}, MISMATCH, r"10 rows take \d+ bytes.*max_bytes=1000"),
    "a negative bound": ({"max_rows": -1}, ARGUMENT, "max_rows must be"),
    "a word for a bound": ({"max_rows": "all"}, TYPE, "max_rows must be an integer"),
    "an unknown on_full": ({"on_full": "wait"}, ARGUMENT, "on_full must be"),
    "no policy": ({"admission": 3}, TYPE, "admission must be"),
    "capacity without a bound": (
        {"eviction": es.CapacityEviction(), "on_full": "evict"}, ARGUMENT, "needs max_rows",
    ),
    "a period for nothing": ({"evict_every": 3}, ARGUMENT, "needs an eviction policy"),
    "a shard beyond": ({"shard": (2, 2)}, ARGUMENT, "from 0 to 1"),
    "a shard of none": ({"shard": (0, 0)}, ARGUMENT, "n of shard"),
    "a shard of a word": ({"shard": "0/2"}, TYPE, r"pair \(i, n\)"),
    "a device": ({"device": "abacus"}, ARGUMENT, "load: device"),
    "no path": ({"path": []}, ARGUMENT, "got none"),
    "a number for a path": ({"path": [7]}, TYPE, "path must be"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_before_a_table_is_made(name, tmp_path, no_engine_left):
    given, error, message = REFUSED[name]
    with es.Table(2, name="t", optimizer=es.Adam()) as table:
        table.find_or_insert(np.arange(10), step=0)
        table.save(tmp_path)
    del no_engine_left[:]
    before = kit.files_of(tmp_path)
    with pytest.raises(error, match=message):
        es.Table.load(**{"path": tmp_path, **given})
    if isinstance(given.get("slots"), dict):
        given = given | {"slots": {"t": given["slots"]}}
    with pytest.raises(error, match=message):
        es.Store.load(**{"path": tmp_path, **given})
    assert not no_engine_left
    assert kit.files_of(tmp_path) == before


@pytest.mark.parametrize("on_full", ["refuse", "evict"])
def test_a_table_that_is_full_to_its_max_bytes_comes_back(on_full, tmp_path):
    """Whatever room its import takes: the rows fitted, and go on fitting."""
    for max_bytes in range(40_000, 400_000, 45_000):
        with es.Table(3, max_bytes=max_bytes, on_full=on_full) as table:
            for step in range(30):
                table.find_or_insert(np.arange(200) + 200 * step, step=step)
            table.save(tmp_path)
            n_rows = len(table)
            with es.Table.load(tmp_path) as loaded:
                assert len(loaded) == n_rows
                loaded.find_or_insert(np.arange(200) - 500, step=99)
                assert len(loaded) <= n_rows + 200


def test_a_table_that_grows_past_max_bytes_on_the_way_in_is_closed(tmp_path, no_engine_left):
    with es.Table(2) as table:
        table.find_or_insert(np.arange(5000), step=0)
        table.save(tmp_path)
    bound = es.Table.plan(5000, dim=2).resting_bytes
    with pytest.raises(es.CheckpointMismatchError, match=f"more than max_bytes={bound}"):
        es.Table.load(tmp_path, max_bytes=bound)


def test_rows_that_are_not_finite_are_refused_before_a_table_is_made(tmp_path, no_engine_left):
    with es.Table(1, on_nonfinite="skip") as table:
        table.assign([1], np.array([[np.inf]], np.float32))
        with pytest.warns(es.EmbstoreWarning, match="NaN or infinity"):
            table.save(tmp_path)
    del no_engine_left[:]
    with pytest.raises(es.CheckpointMismatchError, match="allow_nonfinite=True"):
        es.Table.load(tmp_path, dtype="float16")
    assert not no_engine_left
    with es.Table.load(tmp_path, dtype="float16", allow_nonfinite=True) as table:
        assert np.isinf(table.find([1])).all()


# Stores.


@pytest.fixture
def saved_store(tmp_path):
    """A store of two tables, and a feature of each and one of both."""
    with es.Table(2, name="user", optimizer=es.Adam()) as user, es.Table(3, name="item") as item:
        store = es.Store([user, item], {"u": "user", "seen": "item", "bought": "item"})
        store.find_or_insert_many({"u": [1, 2], "seen": [3], "bought": [4]}, step=0)
        store.save(tmp_path / "store")
    return tmp_path / "store"


def test_a_store_is_converted_table_by_table(saved_store):
    with es.Store.load(
        saved_store,
        dtype={"item": "bfloat16"},
        max_rows=50,
        optimizer={"user": es.Adagrad(0.3)},
        slots={"user": "reset"},
        eviction={"item": es.StepEviction(3)},
    ) as store:
        user, item = store["user"], store["item"]
        assert [user.dtype, item.dtype] == ["float32", "bfloat16"]
        assert [t.config()["max_rows"] for t in (user, item)] == [50, 50]
        assert (user.optimizer, item.optimizer) == (es.Adagrad(0.3), None)
        assert [user.has_eviction_policy, item.has_eviction_policy] == [False, True]
        assert [len(user), len(item)] == [2, 2]


def test_some_tables_of_a_store_are_loaded_alone(saved_store):
    with es.Store.load(saved_store, tables=["item"]) as store:
        assert store.names == ("item",)
        assert store.features == {"seen": "item", "bought": "item"}
    with pytest.raises(es.CheckpointMismatchError, match="no table 'movie'"):
        es.Store.load(saved_store, tables=["movie"])
    with pytest.raises(es.ArgumentTypeError, match="names of tables, got 'item'"):
        es.Store.load(saved_store, tables="item")


def test_a_store_is_made_whole_or_not_at_all(saved_store, no_engine_left):
    for given in ({"movie": "float16"}, {"movie": None}):
        with pytest.raises(es.ArgumentError, match=r"dtype names \['movie'\]"):
            es.Store.load(saved_store, dtype=given)
    with pytest.raises(es.CheckpointMismatchError, match="2 rows do not fit into max_rows=1"):
        es.Store.load(saved_store, max_rows={"item": 1})
    assert not no_engine_left
    names = [file["name"] for file in kit.read_manifest(saved_store)["files"]]
    path = saved_store / names[-1]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(es.CorruptCheckpointError):
        es.Store.load(saved_store)
    assert len(no_engine_left) == 2


def test_what_is_converted_is_saved_as_it_is(tmp_path):
    """A converted table saves what a table saves that was always so."""
    with es.Table(2, name="t", dtype="bfloat16", initializer=es.Constant(0.5)) as table:
        table.find_or_insert(np.arange(300), step=0)
        table.save(tmp_path / "a")
    with es.Table.load(tmp_path / "a", dtype="float32") as table:
        table.save(tmp_path / "b")
    with es.Table(2, name="t", initializer=es.Constant(0.5)) as table:
        table.find_or_insert(np.arange(300), step=0)
        table.save(tmp_path / "c")
    assert kit.files_of(tmp_path / "b") == kit.files_of(tmp_path / "c")
    assert checkpoint.verify(tmp_path / "b").n_rows == 300
