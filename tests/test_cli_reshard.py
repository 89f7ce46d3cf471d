"""The commands reshard and compact."""

import json

import checkpoint_kit as kit
import numpy as np
import pytest

import embstore as es
from embstore import checkpoint
from embstore.cli import main


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of 700 rows and 3 pending keys."""
    with es.Table(2, name="t", admission=es.CounterAdmission(2)) as table:
        table.find_or_insert(np.arange(700), step=0, admit="always")
        table.find_or_insert(np.arange(700, 703), step=1)
        table.save(tmp_path / "one")
    return tmp_path / "one"


def test_reshard_there_and_back(capsys, saved, tmp_path):
    many, back = tmp_path / "many", tmp_path / "back"
    assert main(["reshard", str(saved), "--to", "3", "--out", str(many)]) == 0
    captured = capsys.readouterr()
    assert "700 rows and 3 pending keys of 1 checked and written" in captured.out
    assert captured.err == ""
    shards = sorted(map(str, many.iterdir()))
    assert shards == [str(many / f"shard-0000{i}-of-00003") for i in range(3)]
    assert all(shard in captured.out for shard in shards)
    assert main(["reshard", *shards, "--to", "1", "--out", str(back), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["sources"], report["outputs"]) == (shards, [str(back)])
    assert (report["n_rows"], report["n_candidates"], report["rows_by_output"]) == (700, 3, [700])
    assert kit.files_of(back) == kit.files_of(saved)


def test_reshard_of_what_it_cannot_use(capsys, saved, tmp_path):
    for arguments, message in (
        ([str(saved), "--to", "1", "--out", str(saved)], "is a source"),
        ([str(tmp_path / "nothing"), "--to", "2", "--out", str(tmp_path / "x")], "cannot open"),
        ([str(saved), str(saved), "--to", "2", "--out", str(tmp_path / "x")], "twice"),
    ):
        assert main(["reshard", *arguments]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["reshard", str(saved), "--to", "0", "--out", str(tmp_path / "x")])
    assert not (tmp_path / "x").exists()
    arguments = ["reshard", str(saved), "--to", "1", "--out", str(tmp_path / "y")]
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*arguments, "--force"]) == 0


def chain(path, n_deltas):
    """Write a checkpoint with deltas on top of it; return the table as it is in the end."""
    rng = np.random.default_rng(1)
    table = kit.memory_table(400, 9)
    report = checkpoint.save_tables(path, {"t": table})
    for _ in range(n_deltas):
        table, changes = kit.changed_table(table, 30, 20, rng)
        report = checkpoint.save_tables(path, lambda _, c=changes: {"t": c}, base=report.digest)
        assert report.kind == "delta"
    return table


def test_compact(capsys, tmp_path):
    table = chain(tmp_path, 3)
    expected = {"t": kit.content_of_table(table)}
    assert main(["compact", str(tmp_path), "--keep-last", "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"generation 5: {len(table.rows)} rows and ")
    assert kit.content_of(tmp_path) == expected
    assert checkpoint.generations(tmp_path) == [4, 5]
    assert main(["compact", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "generation 5: nothing to compact\n"
    assert main(["compact", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["generation"] == 5


def test_compact_of_nothing(capsys, tmp_path):
    assert main(["compact", str(tmp_path)]) == 2
    assert "embstore compact: error: " in capsys.readouterr().err


def test_chains_are_resharded_as_what_they_are_now(tmp_path):
    table = chain(tmp_path / "chain", 3)
    checkpoint.save_tables(tmp_path / "whole", {"t": table})
    for source in ("chain", "whole"):
        checkpoint.reshard(tmp_path / source, (tmp_path / f"{source} in 3", 3))
    for i in range(3):
        shards = [tmp_path / f"{s} in 3" / f"shard-0000{i}-of-00003" for s in ("chain", "whole")]
        assert kit.files_of(shards[0]) == kit.files_of(shards[1])


def test_help_names_them(capsys):
    for command in ("reshard", "compact"):
        with pytest.raises(SystemExit) as exit_:
            main([command, "--help"])
        assert exit_.value.code == 0
        assert f"usage: embstore {command}" in capsys.readouterr().out
