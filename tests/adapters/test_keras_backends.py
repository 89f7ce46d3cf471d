"""Keras has one backend in a process: the contract runs once on each, and all train one model."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BACKENDS = [name for name in ("tensorflow", "torch", "jax") if find_spec(name) is not None]

if find_spec("keras") is None or not BACKENDS:
    pytest.skip("Keras or a backend is not installed: it is untested", allow_module_level=True)


def start(backend, *command):
    """Start a process of Python under a backend."""
    environment = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_ENABLE_X64": "1"}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait(process):
    """Wait for a process, which must end well."""
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output[-4000:]
    return output


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_contract_holds_on_a_backend(backend):
    if backend not in BACKENDS:
        pytest.skip(f"{backend} is not installed: Keras on it is untested")
    contract = ("-m", "pytest", "-q", "-k", f"keras-{backend}", HERE / "contract")
    output = wait(start(backend, *contract, "-p", "no:cacheprovider"))
    print(output.splitlines()[-1])
    assert " passed" in output


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What each backend makes of one saved model."""
    folder = tmp_path_factory.mktemp("keras")
    model, first = folder / "model.keras", BACKENDS[0]
    outs = {backend: folder / f"{backend}.json" for backend in BACKENDS}
    wait(start(first, HERE / "keras_run.py", "make", model, outs[first]))
    others = [start(b, HERE / "keras_run.py", "load", model, outs[b]) for b in BACKENDS[1:]]
    for process in others:
        wait(process)
    return {backend: json.loads(out.read_text()) for backend, out in outs.items()}


def test_one_model_trains_alike_on_all_backends(runs):
    first, *others = runs.values()
    assert first["losses"][-1] < 0.8 * first["losses"][0]
    assert first["n_evicted"] > 0
    assert first["steps"] == [32, 32, 32]
    for other in others:
        for name in ("losses", "evaluated", "predicted"):
            np.testing.assert_allclose(other[name], first[name], rtol=1e-4, atol=1e-5)
        assert [other["n_evicted"], other["steps"]] == [first["n_evicted"], first["steps"]]
        for table in ("user", "item"):
            for name in ("keys", "freq", "step", "n_train_steps"):
                assert other[table][name] == first[table][name]
            values = other[table]["values"], first[table]["values"]
            np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-5)


def test_a_model_that_was_saved_predicts_the_same_and_shares_what_it_shared(runs):
    for run in runs.values():
        assert run["reloaded"] == run["predicted"]
        assert run["is_shared"]


def test_the_example_learns_evicts_and_reloads():
    example = ROOT / "docs" / "examples" / "keras_deepfm.py"
    printed = wait(start(BACKENDS[-1], example, "--rows", "40000", "--seed", "1"))
    auc, n_evicted = re.search(r"epoch 0: AUC ([.\d]+).*evicted: (\d+)", printed, re.S).groups()
    assert 0.64 < float(auc) < 0.9
    assert int(n_evicted) > 0
    assert "equal predictions after reloading: True" in printed
