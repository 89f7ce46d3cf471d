"""The example of sharded tables runs under torchrun, and goes on with another number of ranks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

if not torch.distributed.is_available():
    pytest.skip("this PyTorch has no torch.distributed", allow_module_level=True)

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "torch_sharded.py"


def torchrun(n, *arguments):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, f"--nproc-per-node={n}", str(EXAMPLE), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_learns_and_goes_on_with_another_number_of_ranks(tmp_path):
    options = ["--rows", "16384", "--folder", str(tmp_path)]
    printed = torchrun(2, *options, "--epochs", "1")
    (loss,) = re.findall(r"epoch 0: loss ([.\d]+)", printed)
    (rows,) = re.findall(r"rows by process: \[(\d+), (\d+)\]", printed)
    again = torchrun(1, *options, "--epochs", "2")
    assert "rank 0 of 1: on from epoch 1" in again
    (later,) = re.findall(r"epoch 1: loss ([.\d]+)", again)
    (auc,) = re.findall(r"epoch 1: AUC ([.\d]+)", again)
    assert float(later) < float(loss)
    assert 0.6 < float(auc) < 0.95
    (whole,) = re.findall(r"rows by process: \[(\d+)\]", again)
    assert int(whole) >= sum(map(int, rows))
