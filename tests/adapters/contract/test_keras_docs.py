"""The examples of docs/keras.md run, on the backend that Keras runs on."""

import doctest
from pathlib import Path

import pytest

keras = pytest.importorskip("keras", reason="Keras is not installed: docs/keras.md is untested")

PAGE = Path(__file__).resolve().parents[3] / "docs" / "keras.md"
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    backend = keras.backend.backend()
    pytest.importorskip(backend, reason=f"{backend} is not installed: Keras on it is untested")
    if backend == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(str(PAGE), module_relative=False, optionflags=OPTIONS)
    assert result.attempted > 0
    assert result.failed == 0
