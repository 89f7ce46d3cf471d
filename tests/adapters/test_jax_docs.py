"""The examples of the page about JAX run, one after another, in an empty folder."""

import doctest
from pathlib import Path

import pytest

for needed in ("jax", "optax"):
    pytest.importorskip(needed, reason=f"{needed} is not installed: the page of JAX is untested")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "jax.md"
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(str(PAGE), module_relative=False, optionflags=OPTIONS)
    assert result.attempted > 0
    assert result.failed == 0
