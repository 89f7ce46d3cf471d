"""Admission: a key gets its row at the access that brings its count to min_count, inclusive."""

import numpy as np
import pytest
from contract.tools import FOUND, INSERTED, PENDING, ids, meta, pending

import embstore as es

POLICIES = {
    "counter": es.CounterAdmission,
    "bloom": lambda n: es.BloomAdmission(n, capacity=10_000, fpr=1e-4),
}


@pytest.fixture(params=POLICIES)
def policy(request):
    """A function from min_count to an admission policy."""
    return POLICIES[request.param]


@pytest.fixture
def counted(make_table):
    """A table that admits at the third occurrence, exactly counted."""
    return make_table(admission=es.CounterAdmission(3))


def statuses(table, *keys, step=0, **kwargs):
    return table.find_or_insert(ids(*keys), step=step, **kwargs).status.tolist()


def test_without_a_policy_keys_are_admitted_at_once(make_table):
    table = make_table()
    assert statuses(table, 1, 2, 1) == [INSERTED, INSERTED]
    assert statuses(table, 1, 3) == [FOUND, INSERTED]
    assert meta(table, 1) == [(3, 0)]


@pytest.mark.parametrize("min_count", [1, 2, 3, 4, 11, 16])
def test_admitted_when_the_count_reaches_min_count(make_table, policy, min_count):
    table = make_table(admission=policy(min_count))
    for _ in range(min_count - 1):
        assert statuses(table, 7) == [PENDING]
    assert len(table) == 0
    assert statuses(table, 7) == [INSERTED]
    assert meta(table, 7) == [(min_count, 0)]


def test_occurrences_of_one_batch_count_together(make_table, policy):
    table = make_table(admission=policy(3))
    assert statuses(table, 5, 6, 5, 5) == [INSERTED, PENDING]
    assert meta(table, 5) == [(3, 0)]
    assert statuses(table, 6, 6, 6, 6) == [INSERTED]
    assert meta(table, 6) == [(5, 0)]


def test_counts_stand_for_occurrences(make_table, policy):
    table = make_table(admission=policy(4))
    counts = np.array([1, 3, 0, 2], np.uint32)
    assert statuses(table, 1, 2, 3, 1, counts=counts) == [PENDING, PENDING, PENDING]
    assert statuses(table, 1, 2) == [INSERTED, INSERTED]
    assert meta(table, 1, 2, 3) == [(4, 0), (4, 0), (0, -1)]
    assert statuses(table, 3, counts=np.array([4], np.uint32)) == [INSERTED]


def test_a_count_of_zero(make_table):
    none = np.zeros(1, np.uint32)
    assert statuses(make_table(), 1, counts=none) == [INSERTED]
    table = make_table(admission=es.CounterAdmission(1))
    assert statuses(table, 1, counts=none) == [PENDING]
    assert pending(table) == {1: 0}
    assert statuses(table, 1) == [INSERTED]
    assert statuses(table, 1, counts=none) == [FOUND]
    assert meta(table, 1) == [(1, 0)]


def test_frequencies_saturate(make_table):
    table = make_table()
    most = np.array([2**32 - 1, 5], np.uint32)
    statuses(table, 1, 1, counts=most)
    assert meta(table, 1) == [(2**32 - 1, 0)]
    statuses(table, 1)
    assert meta(table, 1) == [(2**32 - 1, 0)]


def test_admit_always(make_table, policy):
    table = make_table(admission=policy(3))
    statuses(table, 1, 1)
    assert statuses(table, 1, 2, admit="always") == [INSERTED, INSERTED]
    assert meta(table, 1, 2) == [(3, 0), (1, 0)]
    assert pending(table) == {}


def test_candidates_are_not_rows(counted):
    assert statuses(counted, 1, 2, 2) == [PENDING, PENDING]
    assert (len(counted), counted.stats()["n_pending"]) == (0, 2)
    assert pending(counted) == {1: 1, 2: 2}
    assert sum(map(len, counted.export())) == 0
    waiting = [row for rows in counted.export(pending=True) for row in rows.keys.tolist()]
    assert sorted(waiting) == [1, 2]


def test_a_birth_ends_the_candidate(counted):
    statuses(counted, 1, 1)
    statuses(counted, 1)
    assert pending(counted) == {}
    assert counted.erase(ids(1)) == 1
    assert statuses(counted, 1, 1) == [PENDING]


def test_erase_and_assign_drop_the_count(counted):
    statuses(counted, 1, 1, 2, 2)
    assert counted.erase(ids(1)) == 0
    counted.assign(ids(2), np.zeros((1, 2), np.float32))
    assert pending(counted) == {}
    assert statuses(counted, 1, 1) == [PENDING]
    assert meta(counted, 2) == [(0, 0)]


def test_an_evicted_key_starts_again_at_zero(counted):
    statuses(counted, 1, 1, 1)
    counted.evict(es.StepEviction(5), step=10)
    assert statuses(counted, 1, 1, step=10) == [PENDING]
    assert pending(counted) == {1: 2}


def test_a_candidate_expires_after_its_ttl(make_table):
    table = make_table(admission=es.CounterAdmission(5, candidate_ttl=10))
    statuses(table, 1, step=0)
    statuses(table, 2, step=4)
    statuses(table, 3, step=10)  # age of 1 is 10, not more than the ttl
    assert pending(table) == {1: 1, 2: 1, 3: 1}
    statuses(table, 3, step=11)
    assert pending(table) == {2: 1, 3: 2}
    statuses(table, 2, step=14)  # seen again in time
    statuses(table, step=24)
    assert pending(table) == {2: 2}
    assert table.stats()["n_candidates_expired"] == 2


def test_candidates_expire_to_a_grain_of_a_sixteenth(make_table):
    table = make_table(admission=es.CounterAdmission(5, candidate_ttl=160))
    statuses(table, 1, step=9)  # epoch 0: grain 10
    statuses(table, step=160)  # epoch 16: 16 * 10 is not more than 160
    assert pending(table) == {1: 1}
    statuses(table, step=169)
    assert pending(table) == {1: 1}
    statuses(table, step=170)
    assert pending(table) == {}


def test_a_step_back_makes_no_candidate_older(make_table):
    table = make_table(admission=es.CounterAdmission(5, candidate_ttl=10))
    statuses(table, 1, step=20)
    statuses(table, 1, step=3)
    statuses(table, step=30)
    assert pending(table) == {1: 2}


def test_candidates_outlive_everything_without_a_ttl(counted):
    statuses(counted, 1, step=0)
    statuses(counted, 1, 1, step=2**40)
    assert meta(counted, 1) == [(3, 2**40)]


def test_bloom_keeps_what_an_evicted_key_had(make_table):
    table = make_table(admission=POLICIES["bloom"](4))
    statuses(table, 1, 1, 1)
    assert statuses(table, 1) == [INSERTED]
    table.erase(ids(1))
    assert statuses(table, 1) == [INSERTED]


def test_bloom_has_no_false_negatives_and_few_false_positives(make_table):
    table = make_table(1, admission=es.BloomAdmission(2, capacity=20_000, fpr=0.01))
    keys = np.arange(20_000) * 7919
    first = np.concatenate([table.find_or_insert(part, 0).status for part in np.split(keys, 20)])
    admitted_early = (first == INSERTED).sum()
    assert 0 < admitted_early < 0.01 * len(keys)
    second = table.find_or_insert(keys, 0).status
    assert (second != PENDING).all()


def test_bloom_reads_all_estimates_before_it_counts(make_table):
    """One pass over many keys of a tiny filter: none profits from the others of its batch."""
    table = make_table(1, admission=es.BloomAdmission(2, capacity=10, fpr=0.5))
    keys = np.arange(5000)
    assert (table.find_or_insert(keys, 0).status == PENDING).all()
    assert (table.find_or_insert(keys, 0).status == INSERTED).all()


def test_bloom_halves_its_counts(make_table):
    table = make_table(admission=es.BloomAdmission(4, capacity=1000, fpr=1e-4, halve_every=10))
    statuses(table, 1, 1, 1, step=9)
    assert statuses(table, 1, step=10) == [PENDING]  # 3 >> 1 = 1, and one more
    assert statuses(table, 1, step=11) == [PENDING]
    assert statuses(table, 1, step=12) == [INSERTED]
    assert meta(table, 1) == [(4, 12)]


def test_bloom_stats_and_the_warning_past_capacity(make_table):
    table = make_table(1, admission=es.BloomAdmission(2, capacity=1000, fpr=0.01, halve_every=100))
    table.find_or_insert(np.arange(1000), step=0)
    stats = table.stats()
    assert stats["bloom_n_added"] == 1000
    assert 0 < stats["bloom_fill"] < 0.5
    assert 0 < stats["bloom_estimated_fpr"] < 0.02
    table.find_or_insert(np.arange(1000, 1200), step=0)
    with pytest.warns(es.EmbstoreWarning, match="capacity 1000"):
        assert table.stats()["bloom_n_added"] > 1000
    table.find_or_insert(ids(), step=100)
    assert table.stats()["bloom_n_added"] == 0
    assert make_table().stats()["bloom_fill"] is None


@pytest.mark.parametrize(("min_count", "bytes_an_id"), [(2, 1.3), (4, 2.6), (16, 5.6)])
def test_bloom_sizes(min_count, bytes_an_id):
    policy = es.BloomAdmission(min_count, capacity=10_000_000, fpr=0.01)
    assert policy.nbytes / policy.capacity <= bytes_an_id
