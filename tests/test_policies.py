"""Policies: their checks, how they are written as dicts, and how the bloom filter is sized."""

import dataclasses
import json
import math

import numpy as np
import pytest

import embstore as es
from embstore.policies import admission, eviction, initializer, optimizer
from embstore.policies.eviction import And, Operation, Or, program

STEP = es.StepEviction(300)
L2 = es.L2Eviction(1e-3, min_age=50)
FREQ = es.FrequencyEviction(2, min_age=10, halve_every=1000)

SAMPLES = [
    (optimizer, es.SGD(lr=0.5, momentum=0.9, nesterov=True, clip_norm=1)),
    (optimizer, es.Adagrad(lr=0.05, initial_accumulator=0.1, weight_decay=0.01)),
    (optimizer, es.RowWiseAdagrad(clip_value=2.0)),
    (optimizer, es.Adam(betas=(0.8, 0.9))),
    (optimizer, es.AdamW(lr=None)),
    (optimizer, es.FTRL(l1=0.1, l2=0.2, beta=1)),
    (initializer, es.Constant(0.5)),
    (initializer, es.Uniform(-1, 1)),
    (initializer, es.Normal(std=0.01)),
    (initializer, es.TruncatedNormal(mean=1.0)),
    (admission, es.CounterAdmission(3, candidate_ttl=100)),
    (admission, es.BloomAdmission(4, capacity=1000, fpr=0.05, halve_every=10)),
    (eviction, STEP | L2),
    (eviction, (STEP & FREQ) | L2 | es.CapacityEviction(by="freq")),
    (eviction, (STEP & FREQ) | es.CacheEviction(by="freq")),
    (eviction, es.CacheEviction()),
]


@pytest.mark.parametrize(("room", "policy"), SAMPLES, ids=lambda p: type(p).__name__)
def test_a_policy_comes_back_from_its_config(room, policy):
    config = json.loads(json.dumps(policy.to_config()))
    assert room.from_config(config) == policy


def test_policies_are_frozen_and_hashable():
    for _, policy in SAMPLES:
        field = dataclasses.fields(policy)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(policy, field, 1)
        hash(policy)


@pytest.mark.parametrize("room", [optimizer, initializer, admission, eviction])
@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"kind": "Nothing"}, es.ArgumentError),
        ({"kind": 3}, es.ArgumentTypeError),
        ({}, es.ArgumentTypeError),
        (None, es.ArgumentTypeError),
        ("Adam", es.ArgumentTypeError),
    ],
)
def test_a_foreign_config_is_a_typed_error(room, config, error):
    with pytest.raises(error, match="from_config"):
        room.from_config(config)


def test_an_unknown_or_missing_parameter_of_a_config_is_named():
    with pytest.raises(es.ArgumentError, match="rate"):
        optimizer.from_config({"kind": "Adam", "rate": 1})
    with pytest.raises(es.ArgumentError, match="min_count"):
        admission.from_config({"kind": "CounterAdmission"})


BAD = [
    (lambda: es.SGD(lr=-1.0), es.ArgumentError, "SGD: lr must be .* at least 0, got -1.0"),
    (lambda: es.SGD(lr="0.1"), es.ArgumentTypeError, "lr must be a number, got '0.1' of type str"),
    (lambda: es.SGD(lr=True), es.ArgumentTypeError, "lr must be a number"),
    (lambda: es.SGD(lr=math.nan), es.ArgumentError, "lr must be a finite number"),
    (lambda: es.SGD(lr=1e39), es.ArgumentError, "lr must be a finite number"),
    (lambda: es.SGD(lr=10**400), es.ArgumentError, "lr must be a finite number"),
    (lambda: es.SGD(lr=np.ones(2)), es.ArgumentTypeError, "lr must be a number, got an array"),
    (lambda: es.SGD(lr=1j), es.ArgumentTypeError, "lr must be a number"),
    (lambda: es.SGD(0.1, nesterov=True), es.ArgumentError, "nesterov needs a momentum"),
    (lambda: es.SGD(0.1, 0.9, nesterov=1), es.ArgumentTypeError, "nesterov must be True or False"),
    (lambda: es.FTRL(lr=0.0), es.ArgumentError, "lr must be .* greater than 0, got 0.0"),
    (lambda: es.Adam(betas=(0.9, 1.0)), es.ArgumentError, "betas must be less than 1"),
    (lambda: es.Adam(betas=0.9), es.ArgumentTypeError, "betas must be a pair"),
    (lambda: es.Adagrad(clip_norm=0), es.ArgumentError, "clip_norm must be .* greater than 0"),
    (lambda: es.Adagrad(eps=-1e-8), es.ArgumentError, "eps must be"),
    (lambda: es.Uniform(1.0, -1.0), es.ArgumentError, "low must not exceed high"),
    (lambda: es.Uniform(-3e38, 3e38), es.ArgumentError, "high - low must be a finite number"),
    (lambda: es.Normal(std=-0.1), es.ArgumentError, "Normal: std must be .* at least 0"),
    (lambda: es.TruncatedNormal(std=math.inf), es.ArgumentError, "TruncatedNormal: std"),
    (lambda: es.CounterAdmission(0), es.ArgumentError, "min_count must be .* from 1 to 4095"),
    (lambda: es.CounterAdmission(4096), es.ArgumentError, "min_count must be .* from 1 to 4095"),
    (lambda: es.CounterAdmission(2.0), es.ArgumentTypeError, "min_count must be an integer"),
    (lambda: es.CounterAdmission(2, 0), es.ArgumentError, "candidate_ttl must be"),
    (lambda: es.BloomAdmission(17, 10), es.ArgumentError, "min_count must be .* from 1 to 16"),
    (lambda: es.BloomAdmission(2, 0), es.ArgumentError, "capacity must be"),
    (lambda: es.BloomAdmission(2, 10, fpr=0), es.ArgumentError, "fpr must be"),
    (lambda: es.StepEviction(-1), es.ArgumentError, "steps_to_live must be"),
    (lambda: es.StepEviction(2**63), es.ArgumentError, "from 0 to 2\\*\\*63 - 1"),
    (lambda: es.L2Eviction(0.0, 1), es.ArgumentError, "threshold must be"),
    (lambda: es.FrequencyEviction(0, 1), es.ArgumentError, "min_freq must be"),
    (lambda: es.CapacityEviction("age"), es.ArgumentError, "by must be 'step' or 'freq'"),
    (lambda: STEP & es.CapacityEviction(), es.ArgumentError, r"by \| only"),
    (lambda: (STEP | es.CapacityEviction()) & L2, es.ArgumentError, r"by \| only"),
    (
        lambda: es.CapacityEviction() | STEP | es.CapacityEviction(),
        es.ArgumentError,
        "one CapacityEviction at most",
    ),
    (lambda: es.CacheEviction("age"), es.ArgumentError, "CacheEviction: by must be 'step' or"),
    (lambda: STEP & es.CacheEviction(), es.ArgumentError, r"CacheEviction joins .* by \| only"),
    (
        lambda: es.CacheEviction() | es.CapacityEviction(),
        es.ArgumentError,
        "one CapacityEviction or CacheEviction at most, got 2",
    ),
    (lambda: es.CacheEviction() | es.CacheEviction(), es.ArgumentError, "one CacheEviction at"),
    (
        lambda: FREQ | es.FrequencyEviction(1, 1, halve_every=5),
        es.ArgumentError,
        "halve_every must be one number",
    ),
    (lambda: Or(STEP, 3), es.ArgumentTypeError, "expected an eviction policy, got 3"),
]


@pytest.mark.parametrize(("make", "error", "message"), BAD)
def test_a_bad_parameter_is_a_typed_error_that_names_it(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_l2_and_frequency_eviction_have_no_default_age():
    with pytest.raises(TypeError):
        es.L2Eviction(1e-3)
    with pytest.raises(TypeError):
        es.FrequencyEviction(2)


def test_numbers_of_numpy_are_taken_as_plain_ones():
    policy = es.Adagrad(lr=np.float32(0.5), eps=np.float64(1e-8), weight_decay=np.int64(0))
    assert [type(v) for v in (policy.lr, policy.eps, policy.weight_decay)] == [float] * 3
    assert type(es.StepEviction(np.int32(3)).steps_to_live) is int


def test_a_schedule_is_written_as_null():
    assert es.Adam(lr=lambda step: 0.1).to_config()["lr"] is None


@pytest.mark.parametrize(
    ("policy", "slots"),
    [
        (es.SGD(0.1), ()),
        (es.SGD(0.1, momentum=0.9), (("momentum", 8),)),
        (es.Adagrad(), (("accumulator", 8),)),
        (es.RowWiseAdagrad(), (("accumulator", 1),)),
        (es.Adam(), (("exp_avg", 8), ("exp_avg_sq", 8))),
        (es.AdamW(), (("exp_avg", 8), ("exp_avg_sq", 8))),
        (es.FTRL(), (("accumulator", 8), ("linear", 8))),
    ],
)
def test_slots_match_the_native_rows(policy, slots):
    assert policy.slots(8) == slots
    with es.Table(dim=8, optimizer=policy) as table:
        table.find_or_insert([1], step=0)
        (rows,) = table.export()
        assert rows.slots.shape == (1, sum(width for _, width in slots))


def test_a_predicate_is_postfix_and_leaves_capacity_out():
    policy = (STEP & L2) | es.CapacityEviction() | FREQ
    assert program(policy) == (
        Operation("step", steps=300),
        Operation("l2", threshold=1e-3, steps=50),
        Operation("and"),
        Operation("freq", min_freq=2, steps=10),
        Operation("or"),
    )
    assert program(es.CapacityEviction()) == ()
    assert program(None) == ()
    assert eviction.capacity_by(policy) == "step"
    assert eviction.freq_halve_every(policy) == 1000
    assert eviction.freq_halve_every(STEP) is None


def test_a_cache_makes_room_and_selects_no_rows():
    policy = STEP | es.CacheEviction("freq")
    assert program(policy) == program(STEP)
    assert eviction.capacity_by(policy) == "freq"
    assert [eviction.is_cache(p) for p in (policy, es.CapacityEviction(), STEP, None)] == [
        *(True, False, False, False)
    ]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "CacheEviction needs max_rows"),
        ({"max_bytes": 1 << 20}, "CacheEviction needs max_rows"),
        ({"max_rows": 9, "max_bytes": 1 << 20}, "bounded by max_rows, got max_bytes=1048576"),
        ({"max_rows": 9, "on_full": "refuse"}, 'CacheEviction needs on_full="evict"'),
        ({"max_rows": 9, "admission": es.CounterAdmission(2)}, "no cells for candidates"),
        ({"max_rows": 9}, 'device="cpu" has no CacheEviction: use CapacityEviction'),
    ],
)
def test_a_table_cannot_be_such_a_cache(parameters, message):
    with pytest.raises(es.ArgumentError, match=f"^Table: .*{message}"):
        es.Table(dim=2, eviction=es.CacheEviction(), **parameters)


def test_a_cache_is_planned_for_cards_alone():
    parameters = {"dim": 8, "eviction": es.CacheEviction(), "max_rows": 10**6}
    with pytest.raises(es.ArgumentError, match=r'^Table.plan: device="cpu"'):
        es.Table.plan(1000, **parameters)
    report = es.Table.plan(1000, device="cuda", **parameters)
    assert report.resting_bytes == report.peak_bytes > 10**6 * (32 + 16 + 12)


def test_evict_takes_no_cache_policy():
    with es.Table(dim=2) as table, pytest.raises(es.ArgumentError, match="CacheEviction acts on"):
        table.evict(es.CacheEviction(), step=0)


def test_a_predicate_has_at_most_32_operations():
    policy = STEP
    for _ in range(15):
        policy = And(policy, L2)
    assert len(program(policy)) == 31
    with pytest.raises(es.ArgumentError, match="at most 32 operations"):
        policy | STEP


# The bloom filter


@pytest.mark.parametrize(("min_count", "bytes_an_id"), [(2, 1.3), (4, 2.6), (16, 5.6)])
def test_a_filter_takes_about_the_bytes_that_the_design_names(min_count, bytes_an_id):
    policy = es.BloomAdmission(min_count, capacity=10_000_000, fpr=0.01)
    assert 0.93 * bytes_an_id < policy.nbytes / 10_000_000 < bytes_an_id


@pytest.mark.parametrize("min_count", range(1, 17))
def test_cells_are_as_wide_as_min_count_needs(min_count):
    cell_bits = es.BloomAdmission(min_count, capacity=100).cell_bits
    assert cell_bits == (1 if min_count <= 2 else 2 if min_count <= 4 else 4)


@pytest.mark.parametrize("capacity", [1, 100, 5_000, 70_000, 3_000_000])
@pytest.mark.parametrize("fpr", [0.3, 0.01, 1e-4])
def test_a_filter_keeps_its_rate_with_no_block_more_than_it_needs(capacity, fpr):
    policy = es.BloomAdmission(2, capacity=capacity, fpr=fpr)
    n_blocks, k = 256 * policy.blocks_per_partition, policy.n_hashes
    assert 1 <= k <= 16
    assert admission.bloom_fpr(capacity, n_blocks, 512, k) <= fpr
    if policy.blocks_per_partition > 1:
        for other in range(1, 17):
            assert admission.bloom_fpr(capacity, n_blocks - 256, 512, other) > fpr


def simulated_fpr(n_ids, n_blocks, cells, k, seed):
    """Fill a blocked filter with random ids, and ask for as many others."""
    rng = np.random.default_rng(seed)

    def positions(n):
        block = rng.integers(0, n_blocks, n)
        distinct = np.argpartition(rng.random((n, cells), np.float32), k, axis=1)[:, :k]
        return block[:, None] * cells + distinct

    used = np.zeros(n_blocks * cells, bool)
    used[positions(n_ids)] = True
    return used[positions(n_ids)].all(axis=1).mean(), int(used.sum())


@pytest.mark.parametrize(("min_count", "fpr"), [(2, 0.01), (4, 0.01), (16, 0.01), (2, 0.2)])
def test_the_rate_of_a_simulated_filter_is_as_computed(min_count, fpr):
    n_ids = 20_000
    policy = es.BloomAdmission(min_count, capacity=n_ids, fpr=fpr)
    cells, n_blocks = 512 // policy.cell_bits, 256 * policy.blocks_per_partition
    simulated, n_used = simulated_fpr(n_ids, n_blocks, cells, policy.n_hashes, seed=min_count)
    computed = admission.bloom_fpr(n_ids, n_blocks, cells, policy.n_hashes)
    noise = math.sqrt(computed / n_ids)
    assert abs(simulated - computed) < 5 * noise
    assert policy.estimated_fpr(n_used) == pytest.approx(computed, rel=0.05)


def test_the_rate_in_a_table_is_as_promised():
    n_ids = 50_000
    policy = es.BloomAdmission(2, capacity=n_ids, fpr=0.01)
    with es.Table(dim=1, admission=policy) as table:
        table.find_or_insert(np.arange(n_ids), step=0)
        n_early = len(table)
        stats = table.stats()
        table.find_or_insert(np.arange(n_ids, 2 * n_ids), step=0)
        rate = len(table) / n_ids
    assert n_early == 0  # one batch reads all estimates first
    assert stats["bloom_n_added"] == n_ids
    assert stats["bloom_estimated_fpr"] <= 0.0105
    assert rate == pytest.approx(stats["bloom_estimated_fpr"], rel=0.2)


def test_an_estimate_of_a_filter_is_0_when_empty_and_1_when_full():
    policy = es.BloomAdmission(2, capacity=1000)
    assert policy.estimated_fpr(0) == 0.0
    assert policy.estimated_fpr(policy.nbytes * 8) == 1.0
