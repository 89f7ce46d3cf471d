"""The contract runs once for each engine: `make_table` makes tables on it, and closes them.

The CUDA engine runs on a device that a CPU emulates; see tests/emulator.
"""

import gc

import pytest

import embstore as es


@pytest.fixture(params=["cpu", "cuda"])
def engine(request, monkeypatch):
    """The device of the tables under test."""
    if request.param == "cuda":
        device = request.getfixturevalue("emulated_device")
        yield request.param
        gc.collect()
        device.allocations.release()
        assert device.violations == []
    else:
        yield request.param


@pytest.fixture
def make_table(engine):
    """A function that makes tables: dim 2 and constant initial values unless told otherwise."""
    tables = []

    def make(dim=2, **parameters):
        parameters.setdefault("initializer", es.Constant(1.0))
        tables.append(es.Table(dim, device=engine, **parameters))
        return tables[-1]

    yield make
    for table in tables:
        table.close()


@pytest.fixture
def threads():
    """A function that sets the number of threads, which is what it was afterwards."""
    before = es.num_threads()
    yield es.set_num_threads
    es.set_num_threads(before)


@pytest.fixture
def size(engine):
    """A function from a number of keys to one that the engine under test does in a second."""
    return lambda n: n if engine == "cpu" else max(1, n // 16)


@pytest.fixture
def cpu_alone(engine):
    """Skip what only the CPU engine has: threads, instruction sets, readable children of forks."""
    if engine != "cpu":
        pytest.skip("of the CPU engine alone")
