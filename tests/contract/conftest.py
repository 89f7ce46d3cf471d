"""The contract runs once for each engine: `make_table` makes tables on it, and closes them.

The CUDA engine runs on a device that a CPU emulates (tests/emulator); with EMBSTORE_TEST_DEVICE on
a card, and then it alone. Some modules run a third time, "cuda-split", on tables whose rows lie
partly in the host's memory and change places there and back in every batch: that changes no result.
"""

import card_kit
import pytest

import embstore as es

OF_SPLIT_TABLES = {
    *("test_tickets", "test_eviction", "test_snapshots", "test_optimizers", "test_changes"),
    "test_assign_erase",
}
OF_LARGE_TABLES = {"test_reserve_changes_nothing_that_can_be_seen"}  # of too many tiny chunks


def pytest_generate_tests(metafunc):
    if "engine" in metafunc.fixturenames:
        has_split = metafunc.module.__name__.rpartition(".")[2] in OF_SPLIT_TABLES
        has_split &= metafunc.function.__name__ not in OF_LARGE_TABLES
        engines = [*([] if card_kit.is_real() else ["cpu"]), "cuda"]
        engines += ["cuda-split"] if has_split else []
        metafunc.parametrize("engine", engines, indirect=True)


@pytest.fixture
def engine(request):
    """The device of the tables under test."""
    if request.param.startswith("cuda"):
        if request.param == "cuda-split":
            request.getfixturevalue("split_tables")
        with card_kit.device_under_test():
            yield "cuda"
    else:
        yield request.param


@pytest.fixture
def make_table(engine):
    """A function that makes tables: dim 2 and constant initial values unless told otherwise."""
    tables = []

    def make(dim=2, **parameters):
        parameters = {"initializer": es.Constant(1.0), "strict": True} | parameters
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
    return lambda n: n if engine == "cpu" or card_kit.is_real() else max(1, n // 16)


@pytest.fixture
def cpu_alone(engine):
    """Skip what only the CPU engine has: threads, instruction sets, readable children of forks."""
    if engine != "cpu":
        pytest.skip("of the CPU engine alone")
