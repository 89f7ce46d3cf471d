"""The benchmark of scans runs, and its contenders do the work that they say."""

import numpy as np
import pytest

from bench import bench_scan

pytestmark = pytest.mark.usefixtures("own_garbage")


def test_scans_run_and_every_find_is_counted():
    found, figures = bench_scan.measure("tiny", 0, lambda *_: None)
    scans, slices = found[:6], found[6:]
    assert {(r.name, r.axes["threads"]) for r in scans} == {
        (name, n) for name in bench_scan.SCANS for n in (1, 2)
    }
    for result in slices:
        alone, beside, evictions = result.contenders
        assert len(alone.times_ns) == bench_scan.FINDS
        assert beside.times_ns
        assert evictions.times_ns
    assert all(np.isfinite(figure.value) and figure.value > 0 for figure in figures)
    assert sum(figure.target is not None for figure in figures) == 8


def test_the_evicted_rows_come_back():
    space = bench_scan.Setup(2000, 0).build()
    batches = [space.young[:10]]
    bench_scan.find_beside(space, batches, 1)
    assert space.table.contains(space.old).all()
    assert space.table.stats()["n_evicted"] == 1000
