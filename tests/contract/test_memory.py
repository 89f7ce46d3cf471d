"""nbytes is what the process really grows by, for tables of 64 MiB and more after reserve."""

import subprocess
import sys

import pytest

GROWTH = """
import embstore as es
import numpy as np

def resident_bytes():
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss:"))

def table():
    return es.Table(dim={dim}, optimizer={optimizer}, admission={admission}, hash_seed=1)

with table() as warm:  # what the first table of a process makes beside itself
    warm.find_or_insert(np.arange(5000), step=0)
t = table()
before, held_before = resident_bytes(), t.nbytes
t.reserve({n_rows})
print(resident_bytes() - before, t.nbytes - held_before)
"""


@pytest.mark.promise("R11", "bytes told, against growth of the process")
@pytest.mark.unsanitized  # a sanitizer's shadow memory grows too
@pytest.mark.parametrize(
    ("dim", "optimizer", "admission", "n_rows"),
    [
        (16, "es.Adagrad()", None, 1_000_000),
        (64, "es.Adam()", None, 150_000),
        (8, "es.RowWiseAdagrad()", None, 1_500_000),
        (100, "None", None, 200_000),
        (4, "es.SGD(0.1)", "es.CounterAdmission(2)", 2_000_000),
    ],
)
def test_nbytes_is_what_the_process_grows_by(dim, optimizer, admission, n_rows):
    code = GROWTH.format(dim=dim, optimizer=optimizer, admission=admission, n_rows=n_rows)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    n_grown, n_told = map(int, done.stdout.split())
    assert n_told >= 64 * 2**20
    assert n_told == pytest.approx(n_grown, rel=0.05)
