"""After a fork the child reads, its pool works, and its writes raise; the parent goes on.

A card cannot be used in the child at all.
"""

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

PROGRAM = """
import os, sys, threading
import numpy as np
import embstore as es

engine = sys.argv[1]
if engine == "cuda":
    from emulator.provide import provide
    provide()
es.set_num_threads(2)
keys = np.arange(20_000)
values = np.repeat(keys[:, None], 8, axis=1).astype(np.float32)
table = es.Table(8, optimizer=es.SGD(1.0), device=engine, track_changes=True)
table.assign(keys, values)
batch = table.find_or_insert(keys, step=0)
{before}
pid = os.fork()
if pid == 0:
    code = 1
    try:
{child}
        code = 0
    finally:
        os._exit(code)
assert os.waitpid(pid, 0)[1] == 0, "the child failed"
assert np.array_equal(table.find(keys), values)
assert table.apply_gradients(batch, np.ones_like(values), step=1).n_applied == len(keys)
print("fine")
"""

READS = """
assert np.array_equal(table.find(keys), values)  # with threads, in a new pool
assert table.find(keys[:3], missing="raise").shape == (3, 8)
assert table.contains(keys).all()
assert len(table) == len(keys)
assert table.pooled(keys, np.array([0, 20_000])).shape == (1, 8)
"""

WRITES = """
calls = [
    lambda: table.find_or_insert(keys, step=1),
    lambda: table.apply_gradients(batch, values, step=1),
    lambda: table.apply_gradients(keys, values, step=1),
    lambda: table.pooled(keys, np.array([0, 20_000]), step=1),
    lambda: table.assign(keys, values),
    lambda: table.erase(keys),
    lambda: table.clear(),
    lambda: table.evict(es.StepEviction(0), step=9),
    lambda: table.reserve(10),
    lambda: table.pin(keys),
    lambda: table.reset_changes(),
]
for call in calls:
    try:
        call()
    except es.ForkError as error:
        assert isinstance(error, RuntimeError) and "fork" in str(error)
    else:
        raise AssertionError("a write passed")
assert np.array_equal(table.find(keys), values)
"""

OWN = """
own = es.Table(8, optimizer=es.SGD(1.0), device=engine)
fresh = own.find_or_insert(keys, step=0)
assert own.apply_gradients(fresh, np.ones_like(values), step=0).n_applied == len(keys)
assert np.array_equal(own.find(keys), fresh.rows - 1)
"""

BUSY = """
def write():
    for step in range(200):
        table.find_or_insert(keys, step=0)
thread = threading.Thread(target=write)
thread.start()
"""


def run(engine, child, before=""):
    """Run the program, with `child` in the child, in a process of its own."""
    source = PROGRAM.format(before=before, child=textwrap.indent(child, " " * 8))
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", source, engine],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip().endswith("fine"), done.stderr


NOTHING = """
calls = [
    lambda: table.find(keys),
    lambda: table.contains(keys),
    lambda: len(table),
    lambda: table.stats(),
    lambda: table.find_or_insert(keys, step=1),
    lambda: table.apply_gradients(batch, values, step=1),
    lambda: batch.status,
    lambda: next(table.export()),
    lambda: es.Table(2, device="cuda"),
]
for call in calls:
    try:
        call()
    except es.ForkError as error:
        assert "fork" in str(error)
    else:
        raise AssertionError("a call passed")
table.close()
"""

CHILDREN = {"cpu": [READS, WRITES, OWN], "cuda": [NOTHING]}


def test_in_the_child(engine):
    for child in CHILDREN[engine]:
        run(engine, child)


@pytest.mark.unsanitized  # the forked child may hang in the sanitizer's own allocator lock
def test_a_fork_while_another_thread_writes(engine):
    run(engine, "".join(CHILDREN[engine]), before=BUSY)
