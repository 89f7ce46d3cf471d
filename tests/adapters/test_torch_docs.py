"""The examples of the pages about PyTorch run, one after another, in an empty folder."""

import doctest
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")

DOCS = Path(__file__).resolve().parents[2] / "docs"
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("page", ["pytorch.md", "port_torch.md"])
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(str(DOCS / page), module_relative=False, optionflags=OPTIONS)
    assert result.attempted > 0
    assert result.failed == 0
