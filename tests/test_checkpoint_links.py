"""Links that somebody planted, or made for a backup: nothing is written through them."""

import os

import checkpoint_kit as kit
import pytest

import embstore as es
from embstore import checkpoint

pytestmark = pytest.mark.promise("S4", "nothing is written through planted links")


@pytest.fixture
def victim(tmp_path):
    """A file that is none of ours."""
    victim = tmp_path / "victim"
    victim.write_text("not ours")
    yield victim
    assert victim.read_text() == "not ours"


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of generation 1."""
    checkpoint.save_tables(tmp_path / "saved", {"t": kit.memory_table()})
    return tmp_path / "saved"


@pytest.mark.parametrize("make", [os.symlink, os.link], ids=["symbolic", "hard"])
@pytest.mark.parametrize("name", ["manifest.json.tmp", "g00000002-t000-rows-00-ff.arrow"])
def test_a_link_in_the_place_of_a_file_to_come_is_removed(name, make, saved, victim):
    make(victim, saved / name)
    table = kit.memory_table(seed=1)
    checkpoint.save_tables(saved, {"t": table})
    assert kit.content_of(saved) == {"t": kit.content_of_table(table)}
    assert set(kit.files_of(saved)) == kit.names_due(saved)


def test_a_link_in_the_place_of_the_lock_is_refused(saved, victim):
    (saved / "lock").unlink()
    (saved / "lock").symlink_to(victim)
    with pytest.raises(es.CheckpointError, match="lock"):
        checkpoint.save_tables(saved, {"t": kit.memory_table()})
    checkpoint.verify(saved)


def test_a_manifest_that_is_a_link_is_not_replaced(saved, victim):
    (saved / "manifest.json").rename(saved / "elsewhere")
    (saved / "manifest.json").symlink_to(saved / "elsewhere")
    with pytest.raises(es.CorruptCheckpointError, match="nothing was saved"):
        checkpoint.save_tables(saved, {"t": kit.memory_table()})
    assert (saved / "manifest.json").is_symlink()


def test_a_backup_of_hard_links_stays_as_it_was(saved, tmp_path):
    backup = tmp_path / "backup"
    backup.mkdir()
    before = kit.files_of(saved)
    for name in before:
        os.link(saved / name, backup / name)
    for seed in range(3):
        checkpoint.save_tables(saved, {"t": kit.memory_table(seed=seed)})
    assert kit.files_of(backup) == before
    checkpoint.verify(backup)


def test_a_folder_that_is_a_link_is_where_it_leads(saved, tmp_path):
    (tmp_path / "newest").symlink_to(saved)
    table = kit.memory_table(seed=4)
    checkpoint.save_tables(tmp_path / "newest", {"t": table})
    assert kit.content_of(saved) == {"t": kit.content_of_table(table)}
