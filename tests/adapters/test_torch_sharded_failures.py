"""Sharded tables where something fails: an error on every rank, and no table is garbage."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

if not torch.distributed.is_available():
    pytest.skip("this PyTorch has no torch.distributed", allow_module_level=True)

from adapters import sharded_failures as jobs  # noqa: E402
from adapters.sharded_kit import Ranks, shared_ranks  # noqa: E402


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return shared_ranks(tmp_path_factory)


@pytest.fixture(scope="module")
def mortals(tmp_path_factory):
    """Four ranks, of which each test may lose the last."""
    made = Ranks(4, tmp_path_factory.mktemp("mortals"))
    yield made
    made.close()


@pytest.mark.parametrize(("when", "world_size"), [("lookup", 4), ("rows", 3), ("step", 2)])
def test_a_lost_rank_is_an_error_on_the_others(mortals, when, world_size):
    *living, dead = mortals.run(jobs.lose_a_rank, world_size, when, timeout_s=4)
    assert dead is None
    for rank, (first, later) in enumerate(living):
        name, message = first
        assert name == "DistributedError"
        what = "gradients|step" if when == "step" else "keys|rows|lookup"
        assert message.startswith(f"rank {rank} of {world_size}: the exchange of ")
        assert any(w in message for w in what.split("|"))
        assert later == first  # the group is not used again


def test_a_late_rank_is_an_error_after_the_time_out(ranks):
    (error, _) = ranks.run(jobs.be_late, 2, 3, timeout_s=1)
    assert error[0] == "DistributedError"
    assert "rank 0 of 2" in error[1]


@pytest.mark.parametrize("job", [jobs.disagree_in_tables, jobs.disagree_in_features])
def test_ranks_with_other_tables_are_told_on_all(ranks, job):
    for rank, (name, message) in enumerate(ranks.run(job, 2)):
        assert name == "DistributedError"
        assert message.startswith(f"rank {rank} of 2: the ranks are not at one Sharded")
        assert "the tables" in message


def test_ranks_at_other_steps_are_told_on_all_and_insert_nothing(ranks):
    for (name, message), n_rows in ranks.run(jobs.disagree_in_step, 2):
        assert name == "DistributedError"
        assert "the step is [5, 6]" in message
        assert n_rows == 0


def test_training_beside_evaluation_is_told_on_all(ranks):
    for (name, message), n_rows in ranks.run(jobs.disagree_in_mode, 2):
        assert name == "DistributedError"
        assert "the call" in message
        assert n_rows == 0


def test_modules_in_another_order_are_told_on_all(ranks):
    for name, message in ranks.run(jobs.disagree_in_order, 2):
        assert name == "DistributedError"
        assert "the tables" in message


def test_a_full_shard_is_an_error_on_all_and_breaks_nothing(ranks):
    here, there = ranks.run(jobs.fill_one_shard, 2)
    assert here[0][0] == "DistributedError"
    assert "ranks [1] could not serve" in here[0][1]
    assert there[0][0] == "CapacityError"
    assert here[1] == there[1] == (2, 2)
    assert there[2] <= 3


def test_a_prefetched_batch_must_be_the_next(ranks):
    for error, in_eval, shape in ranks.run(jobs.prefetch_other_ids, 2):
        assert error[0] == in_eval[0] == "ArgumentError"
        assert "prefetch was given other objects" in error[1]
        assert "prefetched for training" in in_eval[1]
        assert shape == (4, 2)


def test_what_was_prefetched_can_be_given_up(ranks):
    found = ranks.run(jobs.forget_prefetched, 2)
    assert all(shape == (4, 2) for shape, _ in found)
    assert sorted(found[0][1] + found[1][1]) == [20, 21, 22, 23]


@pytest.mark.parametrize("other", ["step", "lookup"])
def test_a_rank_that_does_not_go_on_with_its_prefetch_is_told_on_all(ranks, other):
    for (name, message), n_rows in ranks.run(jobs.disagree_in_prefetched, 2, other):
        assert name == "DistributedError"
        assert "the ranks are not at one" in message
        assert n_rows == 0


def test_ddp_refuses_to_train_tables_that_are_not_sharded(ranks):
    for found in ranks.run(jobs.replicate, 2):
        for (name, message), n_rows in found:
            assert name == "ArgumentError"
            assert "use embstore.torch's ShardedEmbedding" in message
            assert n_rows == 0


def test_a_gradient_that_lies_on_many_ranks_is_not_read_as_one(ranks):
    for clipped, scaled, is_gone, rows in ranks.run(jobs.read_grad_early, 2):
        for name, message in (clipped, scaled):
            assert name == "ArgumentTypeError"
            assert "embstore.torch.clip_grad_norm_(model, max_norm)" in message
        assert is_gone
        initial = jobs.table().find_or_insert(np.arange(4), 0).rows
        assert {tuple(r) for r in rows.tolist()} <= {tuple(r) for r in initial.tolist()}


def test_backward_after_the_exchange_is_an_error(ranks):
    for name, message in ranks.run(jobs.backward_too_late, 2):
        assert name == "ArgumentError"
        assert "look up again" in message


def test_sharded_modules_are_neither_copied_nor_pickled(ranks):
    for copied, pickled in ranks.run(jobs.copy_and_pickle, 2):
        assert copied[0] == pickled[0] == "ArgumentTypeError"


def test_a_save_that_fails_on_one_rank_leaves_the_one_before(ranks, tmp_path):
    from embstore.torch import latest_save

    here, there = ranks.run(jobs.save_with_a_failure, 2, str(tmp_path))
    assert here[1][0] == "DistributedError"
    assert "ranks [1] failed" in here[1][1]
    assert there[1] == ("CheckpointError", "the disk is full")
    latest = latest_save(tmp_path)
    assert (latest.world_size, latest.step) == (2, 0)
    import embstore as es

    for i, (before, _) in enumerate((here, there)):
        own = es.Store.load(latest.shards[i])
        for name, blocks in before.items():
            np.testing.assert_array_equal(jobs.jobs.content(own)[name][0], blocks[0])


def test_a_rank_that_dies_in_a_save_leaves_no_save(tmp_path_factory):
    from embstore.torch import latest_save

    pair = Ranks(2, tmp_path_factory.mktemp("pair"))
    path = tmp_path_factory.mktemp("saves")
    here, _ = pair.run(jobs.die_in_save, 2, str(path), timeout_s=4)
    pair.close()
    assert here[0] == "DistributedError"
    assert latest_save(path) is None
