"""Closed tables, bad checkpoints and bad data: name -> (call, error, parts of the message)."""

import json
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from bad_input.scene import TYPE, VALUE
from contract.tools import ids

import embstore as es
from embstore.data import DataFileError, DataTypeError, ParquetReader

CORRUPT = es.CorruptCheckpointError

CLOSED = {
    "find": lambda t: t.find(ids(1)),
    "find with meta": lambda t: t.find(ids(1), with_meta=True),
    "contains": lambda t: t.contains(ids(1)),
    "find_or_insert": lambda t: t.find_or_insert(ids(1), step=0),
    "apply_gradients": lambda t: t.apply_gradients(ids(1), np.ones((1, 2), np.float32), step=0),
    "pooled": lambda t: t.pooled(ids(1), ids(0, 1)),
    "pooled with a step": lambda t: t.pooled(ids(1), ids(0, 1), step=0),
    "assign": lambda t: t.assign(ids(1), np.ones((1, 2), np.float32)),
    "erase": lambda t: t.erase(ids(1)),
    "clear": lambda t: t.clear(),
    "export": lambda t: t.export(),
    "import_": lambda t: t.import_(
        es.Rows(
            ids(1), np.ones((1, 2), np.float32), np.ones((1, 2), np.float32),
            np.ones(1, np.uint32), ids(0),
        )
    ),
    "candidates": lambda t: t.candidates(),
    "evict": lambda t: t.evict(es.StepEviction(0), step=1),
    "pin": lambda t: t.pin(ids(1)),
    "unpin": lambda t: t.unpin(ids(1)),
    "reserve": lambda t: t.reserve(10),
    "stats": lambda t: t.stats(),
    "nbytes": lambda t: t.nbytes,
    "step": lambda t: t.step,
    "len": len,
    "changes": lambda t: t.changes(),
    "reset_changes": lambda t: t.reset_changes(),
}  # fmt: skip


def closed(use):
    """Return a call that uses a table like the scene's after it was closed."""

    def call(scene):
        with es.Table(2, optimizer=es.Adagrad(0.1), track_changes=True) as table:
            table.assign(ids(1), np.ones((1, 2), np.float32))
        use(table)

    return call


def loads(damage, **arguments):
    """Return a call that saves the scene's table, damages the files, and loads."""

    def call(scene):
        scene.table.save(scene.folder / "saved")
        damage(scene.folder / "saved")
        es.Table.load(scene.folder / "saved", **arguments)

    return call


def rewrite(folder, pattern, change):
    """Change the bytes of the first file of a pattern."""
    path = min(folder.glob(pattern))
    path.write_bytes(change(bytearray(path.read_bytes())))


def flipped(at):
    """Return a change of one bit."""

    def change(data):
        data[at % len(data)] ^= 0x10
        return data

    return change


def foreign(folder):
    """Replace the manifest by that of something else."""
    (folder / "manifest.json").write_text(json.dumps({"model": "resnet"}))


def unchanged(folder):
    """Leave everything as it is."""


def remove(pattern, folder):
    min(folder.glob(pattern)).unlink()


def empty(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()


CHECKPOINTS = {
    "no directory": (
        lambda s: es.Table.load(s.folder / "nowhere"), es.CheckpointError, ["nowhere"],
    ),
    "a path that is no path": (lambda s: es.Table.load(7), TYPE, ["path", "int"]),
    "an empty directory": (loads(empty), es.CheckpointError, ["manifest.json"]),
    "a foreign manifest": (loads(foreign), CORRUPT, ["manifest.json"]),
    "a flipped manifest": (
        loads(partial(rewrite, pattern="manifest.json", change=flipped(200))),
        CORRUPT, ["manifest.json"],
    ),
    "a cut manifest": (
        loads(partial(rewrite, pattern="manifest.json", change=lambda data: data[:-20])),
        CORRUPT, ["manifest.json"],
    ),
    "a flipped row": (
        loads(partial(rewrite, pattern="*.arrow", change=flipped(-200))), CORRUPT, [".arrow"],
    ),
    "a cut file": (
        loads(partial(rewrite, pattern="*.arrow", change=lambda data: data[:-8])),
        CORRUPT, [".arrow"],
    ),
    "a missing file": (loads(partial(remove, "*.arrow")), CORRUPT, [".arrow"]),
    "another optimizer": (
        loads(unchanged, optimizer=es.SGD(0.1)), es.CheckpointMismatchError, ["Adagrad", "SGD"],
    ),
    "another name": (
        loads(unchanged, name="item"), es.CheckpointMismatchError, ["'item'", "user"],
    ),
    "verify": (loads(unchanged, verify="some"), VALUE, ["verify", "'some'"]),
    "load hash_seed": (loads(unchanged, hash_seed=-1), VALUE, ["hash_seed"]),
    "load hbm_bytes": (
        loads(unchanged, hbm_bytes=7), VALUE, ["Table.load", "hbm_bytes=7", "device='cpu'"],
    ),
    "load device": (loads(unchanged, device="gpu"), VALUE, ["device", "'gpu'"]),
    "save extra": (lambda s: s.table.save(s.folder / "x", extra={"f": print}), TYPE, ["extra"]),
    "save into a file": (
        lambda s: ((s.folder / "file").write_text(""), s.table.save(s.folder / "file")),
        es.CheckpointError, ["file"],
    ),
    "a store of one name": (
        lambda s: (s.store.save(s.folder / "two"), es.Table.load(s.folder / "two")),
        VALUE, ["name", "user", "other"],
    ),
}  # fmt: skip


def reads(columns, wanted, **arguments):
    """Return a call that writes columns as Parquet and reads the wanted ones."""

    def call(scene):
        path = scene.folder / "data.parquet"
        pq.write_table(pa.table(columns), path)
        list(ParquetReader(path, wanted, **({"batch_size": 2} | arguments)))

    return call


GOOD = {"user": [1, 2, 3]}
DATA = {
    "missing column": (reads(GOOD, ["item"]), es.DataError, ["'item'", "'user'"]),
    "nulls": (reads({"user": [1, None, 3]}, ["user"]), es.DataError, ["'user'", "row 1"]),
    "wrong type": (
        reads({"user": [{"a": 1}] * 3}, ["user"]), DataTypeError, ["'user'", "struct"],
    ),
    "batch size": (reads(GOOD, ["user"], batch_size=0), VALUE, ["batch_size", "0"]),
    "shard": (reads(GOOD, ["user"], shard=(2, 2)), VALUE, ["shard", "2"]),
    "no file": (lambda s: ParquetReader(s.folder / "no", ["user"], 2), DataFileError, ["no"]),
}  # fmt: skip

CASES = {f"closed: {name}": (closed(use), es.ClosedTableError, []) for name, use in CLOSED.items()}
CASES |= {f"checkpoint: {name}": case for name, case in CHECKPOINTS.items()}
CASES |= {f"data: {name}": case for name, case in DATA.items()}
