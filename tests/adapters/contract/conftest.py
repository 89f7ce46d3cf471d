"""The contract runs once for each adapter; one whose framework is not installed says so.

Keras has one backend in a process: of its adapters, that of KERAS_BACKEND runs here, and
test_keras_backends.py runs the others.
"""

import os
from importlib import import_module

import pytest

import embstore as es

from .adapters import ADAPTERS

BACKEND = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
HERE = [name for name, place in ADAPTERS.items() if place.backend in (None, BACKEND)]


@pytest.fixture(params=HERE)
def adapter_class(request):
    """The class of the adapter under test."""
    place = ADAPTERS[request.param]
    reason = f"{place.framework} is not installed: the adapter {request.param!r} is not tested"
    for package in ("keras", place.framework) if place.backend else (place.framework,):
        pytest.importorskip(package, reason=reason)
    return getattr(import_module(f".{place.module}", __package__), place.name)


@pytest.fixture
def make(adapter_class):
    """A function that makes an adapter over a new table, which it has as `table`."""
    tables = []

    def make_adapter(dim=2, padding_id=None, **parameters):
        tables.append(es.Table(dim, **{"optimizer": es.SGD(lr=0.5)} | parameters))
        return adapter_class(tables[-1], padding_id)

    yield make_adapter
    for table in tables:
        table.close()
