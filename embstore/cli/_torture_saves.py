"""The ways to save a store, each behind one function."""

from pathlib import Path

import embstore as es
from embstore.cli._torture_program import extra_of

KINDS = ("full",)


def save(store: "es.Store", path: Path, step: int, kind: str) -> None:
    """Save a store as of `step`; return when that is durable."""
    store.save(path, extra=extra_of(step))
