"""What every test shares: hypothesis profiles, the data set of ratings, the name of the build."""

import os
from pathlib import Path

import card_kit
import fault_table
import garbage
import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
CIAO = ROOT.parent / "shared" / "data" / "ciao.parquet"

# No deadlines: the machine's other work must not fail a test. CI is reproducible; `dev` wanders.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.register_profile(
    "sanitize",
    parent=settings.get_profile("ci"),
    max_examples=15,
    stateful_step_count=15,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


def pytest_report_header():
    import embstore

    config = embstore.show_config(quiet=True)
    build = f"path {config['cpu_path']}, {config['threads']} threads"
    return f"embstore {config['version']} at {Path(embstore.__file__).parent}, {build}"


def pytest_collection_modifyitems(items):
    has_card = bool(card_kit.asked_for())
    for item in items:
        if not has_card and item.get_closest_marker("card"):
            item.add_marker(pytest.mark.skip(reason=card_kit.WHY_SKIPPED))
        if "ciao" in item.fixturenames:
            item.add_marker("needs_ciao")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    fault_table.after_test(item, report)
    return report


def pytest_terminal_summary(terminalreporter, config):
    lines = fault_table.tallies_of(config).lines()
    if lines and config.option.markexpr.startswith("torture"):
        terminalreporter.section("promises")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="module")
def own_garbage():
    """Let a collection look at what the tests of a module have made: benchmarks often collect."""
    with garbage.of_its_own():
        yield


@pytest.fixture
def record(request):
    """A function from a promise, a test and its unit to the tally that counts its cases."""

    def tally_of(promise, test, unit):
        tally = fault_table.tallies_of(request.config).of(promise, test, unit)
        request.node.stash.setdefault(fault_table.OF_TEST, []).append(tally)
        return tally

    return tally_of


@pytest.fixture(scope="session")
def ciao():
    """The path of the Parquet file of ratings, which lies beside the repository and not in it."""
    if not CIAO.exists():
        pytest.skip(f"the data set is not there: {os.path.relpath(CIAO, ROOT)}")
    return CIAO


@pytest.fixture
def quick_disk(monkeypatch):
    """Spare the fsyncs, which are most of the time."""
    monkeypatch.setattr("embstore.checkpoint.fsio.calls.fsync", lambda fd: None)


@pytest.fixture
def small_blocks(monkeypatch):
    """Make blocks and files so small that little tables have many."""
    monkeypatch.setattr("embstore.checkpoint.writer.BLOCK_BYTES", 400)
    monkeypatch.setattr("embstore.checkpoint.writer.FILE_BYTES", 4000)


@pytest.fixture
def emulated_device(monkeypatch):
    """The device behind ``device="cuda"``: one that a CPU emulates."""
    from emulator.device import EmulatedDevice

    from embstore.engines.cuda import status

    device = EmulatedDevice()
    monkeypatch.setattr(status, "PROVIDER", lambda name: device)
    return device


@pytest.fixture
def split_tables(monkeypatch):
    """Let every table of ``device="cuda"`` have rows in both memories, which change places."""
    from emulator import split

    split.split_tables(monkeypatch)
