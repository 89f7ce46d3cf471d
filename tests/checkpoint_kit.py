"""What the tests of checkpoints share: tables in memory, forged checkpoints, content to compare."""

import gc
import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from reference.hashing import partition_of

import embstore
from embstore import checkpoint
from embstore.checkpoint import fsio, layout
from embstore.checkpoint.blocks import BlockWriter
from embstore.engines.types import Candidates, Rows

STATE = {
    "step": 40,
    "step_base": 0,
    "n_train_steps": 7,
    "last_train_step": 40,
    "next_evict": 50,
    "next_freq_halve": 0,
    "next_bloom_halve": 0,
    "candidate_epoch": 9,
    "beta1_power": 0.9**7,
    "beta2_power": 0.999**7,
    "n_inserted": 2**64 - 1,
    **dict.fromkeys(("n_evicted", "n_erased", "n_refused", "n_candidates_expired"), 1),
    **dict.fromkeys(("n_grads_dropped", "n_grads_stale", "n_nonfinite"), 2),
    **dict.fromkeys(("n_steps_clamped", "n_bloom_added"), 3),
}


def environment():
    """Return the environment of a process that imports what these tests do."""
    folders = [Path(__file__).parent, Path(embstore.__file__).parent.parent]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}


def in_order(keys):
    """Return `keys` by (partition, key)."""
    keys = np.asarray(keys, np.int64)
    return keys[np.lexsort((keys, partition_of(keys)))]


@dataclass
class MemoryTable:
    """A table to save and to restore into, that holds just what it is given."""

    dim: int = 2
    dtype: str = "float32"
    slots: tuple = (("accumulator", 2),)
    rows: Rows | None = None
    pending: Candidates | None = None
    bloom: np.ndarray | None = None  # (256, bytes) uint8
    pins: np.ndarray | None = None
    state: dict | None = None
    config: dict | None = None

    def get_state(self):
        return self.state

    def partition_counts(self, candidates):
        keys = (self.pending if candidates else self.rows).keys
        return np.bincount(partition_of(keys), minlength=256).astype(np.uint64)

    def export_rows(self, first, last, part):
        p = partition_of(self.rows.keys)
        return self.rows[(p >= first) & (p <= last)][part]

    @property
    def bloom_bytes(self):
        return 0 if self.bloom is None else self.bloom.shape[1]

    def export_candidates(self, first, last):
        p = partition_of(self.pending.keys)
        part, found = (p >= first) & (p <= last), self.pending
        return Candidates(found.keys[part], found.counts[part], found.epochs[part])

    def bloom_read(self, partition):
        return np.empty(0, np.uint8) if self.bloom is None else self.bloom[partition]


def memory_table(n=20, n_pending=5, dim=2, dtype="float32", slots=None, bloom_blocks=0, seed=0):
    """Return a table with random content; its keys are distinct."""
    rng = np.random.default_rng(seed)
    slots = (("accumulator", dim),) if slots is None else slots
    keys = rng.choice(2**40, n + n_pending, replace=False).astype(np.int64) - 2**39
    live, waiting = in_order(keys[:n]), in_order(keys[n:])
    values = rng.normal(size=(n, dim)).astype(np.float32)
    if dtype == "float16":
        values = values.astype(np.float16)
    if dtype == "bfloat16":
        values = (values.view(np.uint32) >> 16).astype(np.uint16)
    floats = rng.normal(size=(n, sum(width for _, width in slots))).astype(np.float32)
    freq = rng.integers(0, 2**32, n).astype(np.uint32)
    rows = Rows(live, values, floats, freq, rng.integers(0, 41, n))
    pending = Candidates(
        waiting, rng.integers(0, 9, n_pending).astype(np.uint32), rng.integers(0, 9, n_pending)
    )
    bloom = rng.integers(0, 256, (256, 64 * bloom_blocks)).astype(np.uint8)
    return MemoryTable(
        dim=dim,
        dtype=dtype,
        slots=slots,
        rows=rows,
        pending=pending,
        bloom=bloom if bloom_blocks else None,
        pins=np.sort(keys[::7]),
        state=dict(STATE),
        config={"dim": dim, "on_nonfinite": "raise", "optimizer": {"kind": "Adagrad", "lr": 0.1}},
    )


class Sink:
    """Takes what a checkpoint restores."""

    def __init__(self, bloom_bytes=0):
        self.rows, self.candidates, self.bloom = [], [], {}
        self.bloom_bytes = bloom_bytes
        self.states, self.n_reserved, self.is_reset = [], None, False

    def set_restoring(self, is_restoring):
        assert not self.is_reset or not is_restoring

    def reserve(self, n_rows):
        self.n_reserved = n_rows

    def import_rows(self, rows):
        assert len(self.states) == 1, "step_base is set before rows are imported"
        self.rows.append(Rows(rows.keys, rows.values, rows.slots, rows.freq, rows.step))

    def import_candidates(self, found):
        self.candidates.append(Candidates(found.keys, found.counts, found.epochs))

    def bloom_read(self, partition):
        return np.empty(self.bloom_bytes, np.uint8)

    def bloom_write(self, partition, data):
        self.bloom[partition] = data

    def set_state(self, state):
        self.states.append(state)

    def reset_changes(self):
        self.is_reset = True


def joined(parts, names):
    """Return the arrays `names` of all parts, one after another, as (dtype, shape, bytes)."""
    arrays = [np.concatenate([getattr(part, name) for part in parts]) for name in names]
    return [(a.dtype.str, a.shape, a.tobytes()) for a in arrays]


ROW_NAMES = ("keys", "values", "slots", "freq", "step")
CANDIDATE_NAMES = ("keys", "counts", "epochs")


def content_of_table(table):
    """Return all of a MemoryTable in a form to compare; tables without rows have none."""
    return {
        "rows": joined([table.rows], ROW_NAMES) if len(table.rows) else [],
        "candidates": joined([table.pending], CANDIDATE_NAMES) if len(table.pending) else [],
        "bloom": None if table.bloom is None else table.bloom.tobytes(),
        "pins": np.sort(table.pins).tolist(),
        "state": table.state,
        "config": table.config,
        "shape": (table.dim, table.dtype, tuple(table.slots)),
    }


def restore(path, table, sink, allow_nonfinite=False):
    """Put a loaded table into a sink."""
    source = checkpoint.SavedTable(path, table)
    source.check_finite(allow_nonfinite)
    checkpoint.fill(source, sink, table.n_rows)


def content_of(path, names=None, allow_nonfinite=False, generation=None):
    """Return all of a checkpoint in the same form, by table."""
    found = {}
    with checkpoint.load_tables(path, names, generation=generation) as loaded:
        for name, table in loaded.tables.items():
            sink = Sink(table.bloom_bytes)
            restore(loaded.path, table, sink, allow_nonfinite)
            assert sink.is_reset
            assert (sink.n_reserved or 0) == table.n_rows == sum(map(len, sink.rows))
            bloom = b"".join(sink.bloom[p].tobytes() for p in sorted(sink.bloom))
            found[name] = {
                "rows": joined(sink.rows, ROW_NAMES) if sink.rows else [],
                "candidates": joined(sink.candidates, CANDIDATE_NAMES) if sink.candidates else [],
                "bloom": bloom or None,
                "pins": table.pins.tolist(),
                "state": sink.states[-1],
                "config": table.config,
                "shape": (table.dim, table.dtype, table.slots),
            }
    return found


def n_open_files():
    """Return how many files this process has open."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def files_of(path):
    """Return the bytes of all files of a directory by name, but for the lock."""
    return {p.name: p.read_bytes() for p in Path(path).iterdir() if p.name != fsio.LOCK_NAME}


def read_manifest(path, name="manifest.json"):
    """Return a manifest as a dict, nothing checked."""
    return json.loads((Path(path) / name).read_bytes())


def names_due(path):
    """Return the names of the files that the generations of a directory need, and no others."""
    kept = [p.name for p in Path(path).glob("g*-manifest.json")]
    manifests = ["manifest.json", *kept]
    return {*manifests, *(f["name"] for m in manifests for f in read_manifest(path, m)["files"])}


def write_manifest(path, document):
    """Write a manifest with a right SHA-256, whatever it says."""
    document = {name: value for name, value in document.items() if name != "sha256"}
    body = json.dumps(document)[:-1].encode()
    digest = hashlib.sha256(body).hexdigest().encode()
    (Path(path) / "manifest.json").write_bytes(body + b',\n"sha256":"' + digest + b'"\n}\n')


def forge_manifest(path, change):
    """Change a manifest by `change(document)` and sign it anew."""
    document = read_manifest(path)
    change(document)
    write_manifest(path, document)


def first_file(path, kind="rows"):
    """Return the path of the first file of a kind."""
    names = [f["name"] for f in read_manifest(path)["files"] if f["kind"] == kind]
    return Path(path) / names[0]


def columns_of(table, kind):
    """Return the columns of a file from the manifest's table."""
    slots = tuple((name, width) for name, width in table["slots"])
    return {
        "rows": layout.row_columns(table["dim"], table["dtype"], slots),
        "candidates": layout.CANDIDATE_COLUMNS,
        "bloom": layout.BLOOM_COLUMNS,
        "pins": layout.PIN_COLUMNS,
        "deleted": layout.PIN_COLUMNS,
    }[kind]


def list_sections(path, entry, sections):
    """Put the sections of a rewritten file into the manifest, with right sums everywhere."""
    document = read_manifest(path)
    listed = next(file for file in document["files"] if file["name"] == entry["name"])
    listed["sections"] = [[s.n_bytes, s.n_rows, f"{s.crc:08x}"] for s in sections]
    listed["rows"] = sum(s.n_rows for s in sections)
    listed["bytes"] = sum(s.n_bytes for s in sections)
    if entry["table"] is not None and entry["kind"] != "bloom":
        table, layer = document["tables"][entry["table"]], entry.get("layer", 0)
        is_layered = "layers" in table and entry["kind"] in ("rows", "deleted")
        member = table["layers"][layer] if is_layered else table
        files = [f for f in document["files"] if f["table"] == entry["table"]]
        files = [f for f in files if f.get("layer", 0) == layer]
        total = sum(f["rows"] for f in files if f["kind"] == entry["kind"])
        member[entry["kind"]] = total
    write_manifest(path, document)


def forge_file(path, kind, blocks, columns=None, layer=0):
    """Write the first file of a kind anew with these blocks of arrays; all checksums are right."""
    document = read_manifest(path)
    files = [file for file in document["files"] if file["kind"] == kind]
    entry = next(file for file in files if file.get("layer", 0) == layer)
    if columns is None:
        columns = columns_of(document["tables"][entry["table"]], kind)
    (Path(path) / entry["name"]).unlink()
    with fsio.Directory(str(path)) as directory, directory.create(entry["name"]) as file:
        writer = BlockWriter(entry["name"], columns, file)
        for block in blocks:
            writer.add(block)
        writer.finish()
    list_sections(path, entry, writer.sections)


def row_arrays(rows):
    """Return the columns of a block of rows."""
    return [rows.keys, rows.values, rows.slots, rows.freq, rows.step]


def with_rows(table, **arrays):
    """Return a MemoryTable with some arrays of its rows replaced."""
    parts = {name: getattr(table.rows, name) for name in ROW_NAMES}
    return replace(table, rows=Rows(**{**parts, **arrays}))


@dataclass
class Changes(MemoryTable):
    """What changed of a table: rows born or written since, and keys removed since."""

    deleted: np.ndarray | None = None
    n_live: int = 0


def changes_of(table, written, deleted, shuffle=None):
    """Return the changes of a MemoryTable whose keys `written` were, and `deleted` removed."""
    is_written = np.isin(table.rows.keys, written)
    deleted = np.array(sorted(set(deleted) - set(table.rows.keys.tolist())), np.int64)
    if shuffle is not None:
        shuffle.shuffle(deleted)
    parts = {**vars(table), "rows": table.rows[is_written]}
    return Changes(**parts, deleted=deleted, n_live=len(table.rows))


def random_rows(table, keys, rng):
    """Return rows of the shape of a MemoryTable's with random content, of `keys` in any order."""
    seed = rng.integers(2**32)
    shape = memory_table(len(keys), 0, table.dim, table.dtype, table.slots, seed=seed)
    parts = {name: getattr(shape.rows, name) for name in ROW_NAMES}
    return Rows(**{**parts, "keys": in_order(keys)})


def changed_table(table, n_written, n_deleted, rng):
    """Return a table some time later, and its changes since: some rows are new, changed or gone."""
    keys = table.rows.keys
    gone = rng.choice(keys, min(n_deleted, len(keys)), replace=False)
    hit = rng.choice(np.setdiff1d(keys, gone), min(n_written // 2, len(keys) - len(gone)), False)
    fresh = rng.integers(-(2**62), 2**62, n_written - n_written // 2)
    written = np.unique(np.concatenate([hit, fresh]))
    stays = ~np.isin(keys, np.concatenate([gone, written]))
    parts = [table.rows[stays], random_rows(table, written, rng)]
    every = {name: np.concatenate([getattr(p, name) for p in parts]) for name in ROW_NAMES}
    order = np.lexsort((every["keys"], partition_of(every["keys"])))
    rows = Rows(**{name: array[order] for name, array in every.items()})
    other = memory_table(
        0, len(table.pending), table.dim, table.dtype, table.slots,
        0 if table.bloom is None else table.bloom.shape[1] // 64, rng.integers(2**32),
    )  # fmt: skip
    state = {**table.state, "n_train_steps": table.state["n_train_steps"] + 1}
    later = replace(
        table, rows=rows, pending=other.pending, bloom=other.bloom, pins=rows.keys[::5], state=state
    )
    return later, changes_of(later, written, gone.tolist(), rng)


def save_delta(path, changes, base, **options):
    """Write a delta of tables named as in `changes`; fail if a full one is called for."""

    def cut(is_delta):
        assert is_delta
        return changes

    return checkpoint.save_tables(path, cut, base=base, **options)
