"""The engine on kernels that were built with sanitizers: programs of all verbs, and no report.

Under ThreadSanitizer only Tile.sync, barriers, and acquire and release order the lanes of a launch,
which is all that CUDA promises of them: a ballot or shuffle orders no memory.
"""

import pytest
from emulator.children import built, run_tests

pytestmark = pytest.mark.torture
SUITES = (
    ("test_programs.py::test_interleaved_program",),
    ("test_programs.py::test_program_in_small_memory",),
    ("test_engines.py::test_engines_agree_in_small_memory_interleaved",),
    ("test_order.py",),
    ("test_evict.py",),
    ("test_transfer.py",),
    ("test_gradients.py", "test_pooling.py"),
    ("test_update.py",),
)
NOT_UNDER_TSAN = "not four_levels and not long_bags"  # which are of one thread each, and slow


@pytest.mark.parametrize("kind", ["thread", "address,undefined"])
@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite[0].rpartition(":")[2])
def test_sanitizers_report_nothing(suite, kind, tmp_path, record):
    tally = record("R7", f"suites of the emulated CUDA engine under {kind}, no report", "suites")
    more = ("-k", NOT_UNDER_TSAN) if kind == "thread" else ()
    code, text = run_tests(suite, built(kind=kind), kind, reports=tmp_path, more=more)
    found = [path.read_text(errors="replace") for path in tmp_path.iterdir()]
    assert code == 0, text + "\n".join(found)
    assert not found
    tally.passed()
