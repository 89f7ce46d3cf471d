"""Saves as deltas, signed or not, and chains compacted, put in the place of the command's saves."""

import weakref

import checkpoint_kit as kit
import numpy as np

from embstore import checkpoint
from embstore.cli import _torture_saves
from embstore.cli._torture_program import extra_of

KINDS = ("full", "delta", "compact", "kept", "signed")
KEY = b"a secret of sixteen bytes or more"

_bases = weakref.WeakKeyDictionary()  # from stores to where their change logs began


def memory_of(table):
    """Return the whole content of a table as a MemoryTable."""
    engine = table._engine
    bloom = np.stack([engine.bloom_read(partition) for partition in range(256)])
    return kit.MemoryTable(
        dim=table.dim,
        dtype=table.dtype,
        slots=table.slots,
        rows=engine.export_rows(0, 255),
        pending=engine.export_candidates(0, 255),
        bloom=bloom if bloom.size else None,
        pins=table.pinned,
        state=engine.get_state(),
        config=table.config(),
    )


def changes_of(table):
    """Return what a table's log says has changed."""
    changes = table.changes()
    return kit.changes_of(memory_of(table), changes.upserted, changes.deleted.tolist())


def save(store, path, step, kind):
    """Save a store in one of KINDS; "kept" is a delta that leaves three generations."""
    if kind == "compact" and (path / "manifest.json").exists():
        _save(store, path, step, "delta")
        _bases[store] = checkpoint.compact(path).digest
    else:
        _save(store, path, step, kind)


def _save(store, path, step, kind):
    is_delta = kind != "full" and (path / "manifest.json").exists()
    base = (_bases.get(store) or checkpoint.inspect(path)["digest"]) if is_delta else None

    def cut(is_delta):
        view = changes_of if is_delta else memory_of
        return {name: view(store[name]) for name in store}

    report = checkpoint.save_tables(
        path,
        cut,
        extra_of(step),
        {"features": store.features},
        base=base,
        keep_last=3 if kind == "kept" else 1,
        hmac_key=KEY if kind == "signed" else None,
    )
    for name in store:
        store[name].reset_changes()
    _bases[store] = report.digest


def install():
    """Let this process save so."""
    _torture_saves.save, _torture_saves.KINDS = save, KINDS
