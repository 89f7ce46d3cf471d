"""The ways to save a store, each by its name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import embstore as es
from embstore.checkpoint import compact
from embstore.cli._torture_program import extra_of

KEY = b"a secret that no file of the checkpoint holds"

OPTIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "delta": {"delta": True, "max_deltas": 4},
    "beside": {"delta": True, "snapshot_bytes": 1000},  # beside training; the log goes to a file
    "compact": {"delta": True},
    "kept": {"delta": True, "keep_last": 3},
    "signed": {"delta": True, "hmac_key": KEY},
}
KINDS = tuple(OPTIONS)


def begin(store: "es.Store", path: Path, step: int, kind: str) -> Callable[[], object]:
    """Save a store as of `step`, or begin to; return what waits until that is durable."""
    if kind == "beside":
        return store.save_async(path, extra_of(step), **OPTIONS[kind]).wait
    store.save(path, extra_of(step), **OPTIONS[kind])
    if kind == "compact":
        compact(path)
    return lambda: None


def save(store: "es.Store", path: Path, step: int, kind: str) -> None:
    """Save a store as of `step`; return when that is durable."""
    begin(store, path, step, kind)()
