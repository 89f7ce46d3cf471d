"""The examples of the page about TensorFlow run, one after another, in an empty folder."""

import doctest
from pathlib import Path

import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed: its page is untested")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tensorflow.md"
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # h5py's
def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(str(PAGE), module_relative=False, optionflags=OPTIONS)
    assert result.attempted > 0
    assert result.failed == 0
