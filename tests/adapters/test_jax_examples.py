"""The example in Flax runs as a reader runs it, learns, and reloads what it saved."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

for needed in ("jax", "flax", "optax"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: its example is not run")

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "jax_flax.py"


def run(*arguments):
    command = [sys.executable, "-W", "error", str(EXAMPLE), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "equal predictions after reloading: True" in done.stdout
    return done.stdout


def auc_of(epoch, printed):
    return float(re.search(rf"epoch {epoch}: AUC ([.\d]+)", printed)[1])


def test_the_example_learns_evicts_and_reloads():
    printed = run("--rows", "40000", "--epochs", "2", "--seed", "1")
    assert 0.65 < auc_of(0, printed) < 0.9  # three seeds gave .687 to .691
    assert auc_of(1, printed) > auc_of(0, printed) + 0.03  # of rows that it has seen
    assert int(re.search(r"evicted: (\d+)", printed)[1]) > 0
    assert " ids pending after 314 steps" in printed
