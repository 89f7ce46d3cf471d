"""The contract runs once for each adapter; one whose framework is not installed says so."""

from importlib import import_module

import pytest

import embstore as es

from .adapters import ADAPTERS


@pytest.fixture(params=ADAPTERS)
def adapter_class(request):
    """The class of the adapter under test."""
    place = ADAPTERS[request.param]
    reason = f"{place.framework} is not installed: the adapter {request.param!r} is not tested"
    pytest.importorskip(place.framework, reason=reason)
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
