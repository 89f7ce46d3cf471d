"""The examples of the pages about TensorFlow run, one after another, in an empty folder."""

import doctest
from pathlib import Path

import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed: its pages are untested")

DOCS = Path(__file__).resolve().parents[2] / "docs"
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # h5py's
@pytest.mark.parametrize("page", ["tensorflow.md", "port_tensorflow.md"])
def test_the_examples_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(str(DOCS / page), module_relative=False, optionflags=OPTIONS)
    assert result.attempted > 0
    assert result.failed == 0
