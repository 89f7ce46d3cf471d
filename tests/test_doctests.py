"""The examples in the docstrings run, and each public class has one."""

import doctest
import importlib
import pkgutil

import pytest

import embstore

FRAMEWORKS = ("torch", "tensorflow", "jax", "keras")
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(embstore.__path__, "embstore.")
    if not module.name.endswith(("__main__", "libembstore"))
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name, tmp_path, monkeypatch):
    framework = name.split(".")[1].lstrip("_")
    if framework in FRAMEWORKS:
        pytest.importorskip(framework)
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(importlib.import_module(name), optionflags=OPTIONS).failed == 0


def test_each_public_class_has_an_example():
    public = [getattr(embstore, name) for name in embstore.__all__]
    classes = [c for c in public if isinstance(c, type) and not issubclass(c, BaseException)]
    assert [c.__name__ for c in classes if ">>>" not in (c.__doc__ or "")] == []
