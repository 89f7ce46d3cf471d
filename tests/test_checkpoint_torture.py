"""The long tests of checkpoints: a thousand kills, a hundred thousand flips, failing disks."""

import errno
import multiprocessing
import os
import random
import threading
import warnings

import checkpoint_kit as kit
import numpy as np
import pytest

import embstore as es
from embstore import checkpoint
from embstore.cli import _torture_model, _torture_saves
from embstore.cli._torture_damage import Damage
from embstore.cli._torture_faults import FailingDisk
from embstore.cli._torture_host import Host
from embstore.cli._torture_kills import EachCall, RandomKills
from embstore.cli._torture_seam import Seam, fail

pytestmark = pytest.mark.torture

N_KILLS = 1000
N_FLIPS = 100_000
N_FAILED_SAVES = 10_000
N_SAVES = 200
N_UPDATES = 10_000_000


@pytest.fixture
def host(tmp_path):
    """A process that forks children which save."""
    code = "from embstore.cli._torture_child import main; main()"
    with Host(tmp_path / "children.log", code, kit.environment()) as host:
        yield host


# ---- R1


@pytest.mark.parametrize("seed", range(4))
def test_a_thousand_kills(tmp_path, host, record, seed):
    tally = record("R1", "SIGKILL at random times of a process that trains and saves", "kills")
    n_before = tally.n_cases
    kills = RandomKills(tmp_path, host, seed, _torture_saves.KINDS)
    for number in range(N_KILLS // 4):
        fault = kills.kill_one()
        assert fault is None, (number, fault, kills.path)
        tally.passed()
    assert tally.n_cases - n_before == N_KILLS // 4


@pytest.mark.parametrize("kind", _torture_saves.KINDS)
@pytest.mark.parametrize("how", ["before", "halfway"])
def test_a_kill_at_each_call(tmp_path, host, record, kind, how):
    tally = record("R1", f"SIGKILL {how} each call of a save, as Python makes them", "calls")
    n_calls = EachCall(tmp_path, host, kind).run(tally, how, seed=0)
    assert tally.failures == []
    assert n_calls > 50


# ---- R3


def test_saves_beside_training_and_reading_threads(tmp_path, record, quick_disk):
    """Two tables are trained in turn, so that momentum is the step in every row of a table."""
    saves = record("R3", "saves beside one training and six reading threads", "saves")
    updates = record("R3", "rows trained meanwhile, none of them torn", "updates")
    names, keys = ("a", "b"), np.arange(2000)
    optimizer, is_over, step = es.SGD(2.0**-12, momentum=0.5), threading.Event(), 0
    with es.Store([es.Table(4, optimizer=optimizer, name=name) for name in names]) as store:
        store.find_or_insert_many(dict.fromkeys(names, keys), step=0)

        def write():
            nonlocal step
            while not is_over.is_set():
                step += 1
                grads = np.full((2000, 4), step - 0.5 * (step - 1), np.float32)
                both = dict.fromkeys(names, grads)
                store.apply_gradients_many(dict.fromkeys(names, keys), both, step=step)

        def read():
            while not is_over.is_set():
                store.find_many(dict.fromkeys(names, keys))

        threads = [threading.Thread(target=target) for target in (write, *[read] * 6)]
        for thread in threads:
            thread.start()
        try:
            while saves.n_cases < N_SAVES or 2 * len(keys) * step < N_UPDATES:
                store.save(tmp_path)
                steps = [step_of_rows(tmp_path, name) for name in names]
                assert steps[0] - steps[1] in (0, 1)
                saves.passed()
        finally:
            is_over.set()
            for thread in threads:
                thread.join()
    updates.passed(2 * len(keys) * step)


def step_of_rows(path, name):
    """Return the one step of which all rows of a table are."""
    with checkpoint.load_tables(path, [name]) as loaded:
        table = loaded.tables[name]
        rows = list(table.rows())
        steps = {*np.concatenate([block.step for block in rows]).tolist()}
        slots = {*np.concatenate([block.slots for block in rows]).ravel().tolist()}
        assert sum(map(len, rows)) == 2000
        assert steps == slots == {table.state["step"]}
        return steps.pop()


# ---- R4


def test_each_byte_and_each_length_of_a_small_checkpoint(tmp_path, record, quick_disk):
    damage = Damage(tmp_path)
    rng = random.Random(0)
    flips = record("R4", "each byte of a small checkpoint changed", "flips")
    cuts = record("R4", "a small checkpoint's files cut at each length", "truncations")
    for name, data in damage.files.items():
        if "bloom" in name:
            continue  # a filter is large and alike everywhere: its bytes are among the random ones
        for place in range(len(data)):
            changed = bytearray(data)
            changed[place] ^= rng.randint(1, 255)
            assert damage.verdict({name: bytes(changed)}) is None, (name, place)
            assert damage.verdict({name: data[:place]}) is None, (name, place)
            flips.passed()
            cuts.passed()


def test_all_exchanges_of_files(tmp_path, record):
    tally = record(
        "R4", "files dropped, swapped, doubled, replaced by those of another step", "cases"
    )
    Damage(tmp_path).exchanges(tally, seed=0)
    assert tally.failures == []
    assert tally.n_cases > 100


def test_random_flips_in_a_hundred_megabytes(tmp_path, record, quick_disk):
    """Each bit is flipped on disk, and the rows of its table are read from there."""
    tally = record("R4", "random bits of a checkpoint of 100 MB flipped", "flips")
    n_tables, rng = 100, random.Random(0)
    tables = {
        f"{i}": kit.memory_table(n=2000, n_pending=0, dim=64, seed=i) for i in range(n_tables)
    }
    checkpoint.save_tables(tmp_path, tables)
    files = [f for f in checkpoint.inspect(tmp_path)["files"] if f["kind"] == "rows"]
    assert len(files) == n_tables
    assert sum(file["bytes"] for file in files) > 100e6
    with checkpoint.load_tables(tmp_path) as loaded:
        for i in range(N_FLIPS):
            file = files[i % n_tables]
            place, mask = rng.randrange(file["bytes"]), 1 << rng.randrange(8)
            with open(tmp_path / file["name"], "r+b", buffering=0) as opened:
                byte = os.pread(opened.fileno(), 1, place)[0]
                os.pwrite(opened.fileno(), bytes([byte ^ mask]), place)
                with pytest.raises(es.CorruptCheckpointError):
                    for _ in loaded.tables[f"{file['table']}"].rows():
                        pass
                os.pwrite(opened.fileno(), bytes([byte]), place)
            tally.passed()
    checkpoint.verify(tmp_path)


# ---- R5


@pytest.mark.parametrize("kind", _torture_saves.KINDS)
def test_each_call_fails_in_each_way(tmp_path, record, quick_disk, kind):
    tally = record("R5", "each call of a save fails, calls as Python makes them", "calls x errors")
    n_cases = FailingDisk(tmp_path / "disk", kind).run(tally, seed=0)
    assert tally.failures == []
    assert n_cases > 300


def test_ten_thousand_failed_saves_leave_no_file_open(tmp_path, record, quick_disk):
    tally = record("R5", "failed saves: no file left open, none left over", "saves")
    rng, table = random.Random(0), kit.memory_table()
    checkpoint.save_tables(tmp_path, {"t": table})
    with Seam() as seam:
        checkpoint.save_tables(tmp_path, {"t": table})
    n_open, n_failed = kit.n_open_files(), 0
    while n_failed < N_FAILED_SAVES:
        at, error = rng.randint(1, seam.n_calls), rng.choice([errno.ENOSPC, errno.EIO])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Seam(at, fail(error), is_sticky=rng.random() < 0.3):
                try:
                    checkpoint.save_tables(tmp_path, {"t": table})
                except es.CheckpointError:
                    n_failed += 1
                    tally.passed()
    assert kit.n_open_files() == n_open
    checkpoint.save_tables(tmp_path, {"t": table})
    assert set(kit.files_of(tmp_path)) == kit.names_due(tmp_path)
    assert kit.content_of(tmp_path) == {"t": kit.content_of_table(table)}


# ---- R7


def test_a_million_keys_against_a_plain_dict(tmp_path, record):
    tally = record("R7", "random verbs, saves and loads against a plain dict", "key operations")
    seed = 0
    while tally.n_cases < 3_000_000:
        program = _torture_model.Program(seed, tmp_path / "model")
        assert program.run(150) is None, seed
        tally.passed(program.n_keys)
        seed += 1


# ---- S4


def writer(path, name, n_saves, outcomes):
    """Save again and again where another does the same; tell how often that was refused."""
    table = kit.memory_table(seed=len(name))
    refused = 0
    for k in range(n_saves):
        try:
            checkpoint.save_tables(path, {name: table}, {"k": np.full(50, k)})
        except es.CheckpointError as error:
            if "another save to this directory is running" not in str(error):
                raise
            refused += 1
    outcomes.put(refused)


def test_two_writers_to_one_directory(tmp_path, record):
    tally = record(
        "S4", "two processes that save to one directory: one or the other, whole", "loads"
    )
    context = multiprocessing.get_context("spawn")
    outcomes = context.SimpleQueue()
    tables = {name: kit.content_of_table(kit.memory_table(seed=len(name))) for name in ("a", "bb")}
    checkpoint.save_tables(tmp_path, {"a": kit.memory_table(seed=1)})
    writers = [
        context.Process(target=writer, args=(tmp_path, name, 2000, outcomes)) for name in tables
    ]
    for process in writers:
        process.start()
    while any(process.is_alive() for process in writers):
        try:
            found = kit.content_of(tmp_path)
        except es.CheckpointError as error:
            if "replaced by another save" not in str(error):
                raise
            continue
        ((name, content),) = found.items()
        assert content == tables[name]
        tally.passed()
    assert [process.exitcode for process in writers] == [0, 0]
    assert sum(outcomes.get() for _ in writers) > 0
    assert set(kit.files_of(tmp_path)) == kit.names_due(tmp_path)
