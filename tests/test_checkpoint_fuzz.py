"""Mutated checkpoints with right checksums: a typed error, or what the page of the format says."""

import subprocess
import sys
from pathlib import Path

import checkpoint_kit as kit
import pytest

import embstore as es
from embstore import checkpoint

FUZZER = Path(__file__).parent / "fuzz_checkpoint.py"


def fuzz(folder, seed, first, n_cases):
    """Run cases in a process of their own; return how many were refused and how many loaded."""
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, FUZZER, folder, str(seed), str(first), str(n_cases)],
        env=kit.environment(),
        check=False,
        capture_output=True,
        text=True,
    )
    current = folder / "current"
    case = current.read_text().strip() if current.exists() else "none"
    told = f"seed {seed}, case {case}, {folder / 'case'}\n{done.stderr[-3000:]}"
    assert done.returncode == 0, told
    counts = {"refused": 0, "loaded": 0}
    for line in done.stdout.splitlines():
        counts[line.split()[-1]] += int(line.split()[0])
    assert sum(counts.values()) == n_cases
    return counts


@pytest.mark.unsanitized
def test_some_mutated_checkpoints(tmp_path):
    counts = fuzz(tmp_path / "fuzz", seed=0, first=0, n_cases=300)
    assert counts["refused"] > 100
    assert counts["loaded"] > 10


@pytest.mark.parametrize("member", ["sections", "files", "tables"])
def test_a_hundred_thousand_of_a_member_are_refused(tmp_path, member):
    checkpoint.save_tables(tmp_path, {"t": kit.memory_table()})
    document = kit.read_manifest(tmp_path)
    holder = document["files"][0] if member == "sections" else document
    holder[member] *= 100_000 // len(holder[member])
    kit.write_manifest(tmp_path, document)
    with pytest.raises(es.CorruptCheckpointError):
        checkpoint.verify(tmp_path)


@pytest.mark.torture
@pytest.mark.unsanitized
@pytest.mark.parametrize("part", range(20))
def test_many_mutated_checkpoints(tmp_path, part, record):
    tally = record(
        "S2", "mutated manifests and Arrow messages, checksums right, memory limited", "cases"
    )
    fuzz(tmp_path / "fuzz", seed=1, first=1000 * part, n_cases=1000)
    tally.passed(1000)
