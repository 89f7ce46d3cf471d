"""The Python examples of the README run as they stand, each in a process of its own."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
NEEDED = ("torch", "tensorflow", "keras", "jax", "optax", "cupy")


def needs_of(block):
    """The packages, of those that may be missing, which an example imports."""
    return [name for name in NEEDED if re.search(rf"^(import|from) {name}\b", block, re.MULTILINE)]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: ",".join(needs_of(block)) or "numpy")
def test_an_example_runs(block, tmp_path):
    missing = [name for name in needs_of(block) if find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if "keras" in needs_of(block) and find_spec("tensorflow") is None:
        pytest.skip("not installed: TensorFlow, on which Keras runs if it is not told otherwise")
    if "cupy" in needs_of(block):
        pytest.skip("the example needs a card")
    command = [sys.executable, "-c", block]
    done = subprocess.run(
        command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_has_an_example_for_each_adapter_with_a_page():
    found = {name for block in BLOCKS for name in needs_of(block)}
    assert {"torch", "tensorflow", "jax", "keras"} <= found
