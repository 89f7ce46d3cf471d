"""Sharded tables: 1, 2 and 4 ranks compute what one process without ranks does."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

if not torch.distributed.is_available():
    pytest.skip("this PyTorch has no torch.distributed", allow_module_level=True)

from adapters import sharded_jobs as jobs  # noqa: E402
from adapters.sharded_kit import shared_ranks  # noqa: E402

import embstore as es  # noqa: E402

# Only the order of float32 sums differs: of duplicates, and of the mean over a batch.
TOLERANCE = {"rtol": 2e-5, "atol": 2e-6}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return shared_ranks(tmp_path_factory)


def assert_same(found, expected, tolerance=TOLERANCE):
    """The losses of each rank, and the content of all shards."""
    alone, whole = expected
    for losses, *_ in found:
        np.testing.assert_allclose(losses, alone, **tolerance)
    shards = jobs.merged([own for _, own, *_ in found])
    assert_same_content(shards, jobs.merged([whole]), tolerance)


def assert_same_content(shards, whole, tolerance=TOLERANCE):
    for name in whole:
        keys, values, freq, step, slots = shards[name]
        np.testing.assert_array_equal(keys, whole[name][0])
        np.testing.assert_array_equal(freq, whole[name][2])
        np.testing.assert_array_equal(step, whole[name][3])
        np.testing.assert_allclose(values, whole[name][1], **tolerance)
        np.testing.assert_allclose(slots, whole[name][4], **tolerance)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_train_as_one_process_does(ranks, world_size):
    expected = jobs.train_alone()
    found = ranks.run(jobs.train, world_size)
    assert_same(found, expected)
    is_pending = expected[1]["user"][3] == -1
    assert 0 < is_pending.sum() < len(is_pending)  # the batches had both kinds of keys


def test_each_key_lives_on_the_rank_that_owns_it(ranks):
    from embstore.checkpoint import shard_of

    found = ranks.run(jobs.train, 2, 2)
    for rank, (_, own, _) in enumerate(found):
        for keys, *_ in own.values():
            assert len(keys)
            assert (shard_of(keys, 2) == rank).all()


def test_bytes_on_the_wire_are_those_of_unique_keys(ranks):
    found = ranks.run(jobs.train, 2, 1)
    ids, label = jobs.batches(1)[0]
    from embstore.checkpoint import shard_of

    for rank, (_, _, traffic) in enumerate(found):
        own, _ = jobs.part(ids, label, rank, 2)
        n = {"user": 0, "item": 0}
        for table, features in (("user", ["user"]), ("item", ["shown", "liked"])):
            unique = np.unique(np.concatenate([own[f].numpy().ravel() for f in features]))
            n[table] = int((shard_of(unique, 2) != rank).sum())
        assert [traffic[kind]["n"] for kind in traffic] == [2, 1, 1, 1]
        assert traffic["keys"]["sent_bytes"] == 12 * (n["user"] + n["item"])
        assert traffic["rows"]["received_bytes"] == 8 + 24 * n["user"] + 16 * n["item"]
        assert traffic["gradients"]["sent_bytes"] == 24 * n["user"] + 16 * n["item"]


def test_accumulated_gradients_are_those_of_one_process(ranks):
    options = {"n_accumulated": 2}
    found = ranks.run(jobs.train, 2, jobs.N_STEPS, "float32", 2)
    assert_same(found, jobs.train_alone(**options))


def test_norms_and_clipped_gradients_are_those_of_one_process(ranks):
    found = ranks.run(jobs.train, 2, jobs.N_STEPS, "float32", 1, 0.05)
    alone = jobs.train_alone(max_norm=0.05)
    assert max(alone[0][1::2]) > 0.05  # something was clipped
    assert_same(found, alone)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_rows_travel_as_they_are(ranks, dtype):
    found = ranks.run(jobs.train, 2, 3, dtype)
    ulps = {"rtol": 2e-2, "atol": 2e-3}  # a sum that differs in float32 may round to the next
    assert_same(found, jobs.train_alone(3, dtype), ulps)


def test_prefetch_changes_no_bit(ranks):
    plain = ranks.run(jobs.train, 2)
    ahead = ranks.run(jobs.train, 2, jobs.N_STEPS, "float32", 1, None, True)
    for (losses, own, traffic), (ahead_losses, ahead_own, ahead_traffic) in zip(
        plain, ahead, strict=True
    ):
        assert losses == ahead_losses
        assert ahead_traffic.pop("sizes")["n"] > traffic.pop("sizes")["n"]  # a header more
        assert traffic == ahead_traffic
        assert_same_content(own, ahead_own, {"rtol": 0, "atol": 0})


def test_a_group_is_needed():
    with pytest.raises(es.ArgumentError, match="init_process_group"):
        es_torch().ShardedEmbedding(dim=2, name="lone")


def test_fused_is_refused():
    with pytest.raises(es.ArgumentError, match=r"fused=True.*optimizer\(model\)"):
        es_torch().ShardedEmbedding(dim=2, name="fused", fused=True)


def es_torch():
    import embstore.torch

    return embstore.torch
