"""What children do until they are killed."""

import os
from itertools import count
from pathlib import Path

import numpy as np  # noqa: F401  (the host imports what its children need)

import embstore as es
from embstore.cli import _torture_saves as saves
from embstore.cli._torture_host import Case, say, serve
from embstore.cli._torture_program import new_store, torn, train
from embstore.cli._torture_seam import READING, Counter, Seam, die_before, die_halfway

ACTS = {"before": die_before, "halfway": die_halfway}


def main() -> None:
    """Serve cases from standard input."""
    for name in ("Store", "Table"):
        getattr(es, name)
    serve(run)


def run(case: Case) -> None:
    """Do one case."""
    {"loop": loop, "once": once}[case["do"]](case)


def loaded(case: Case) -> tuple["es.Store", int]:
    """Return the store that was saved last, and its step."""
    if not os.path.exists(os.path.join(case["path"], "manifest.json")):
        return new_store(), 0
    store = es.Store.load(case["path"])
    fault = torn(store)
    if fault is not None:
        raise RuntimeError(fault)
    return store, int(store.extra["step"])


def loop(case: Case) -> None:
    """Train and save, step after step; each step is trained while the one before is saved."""
    store, step = loaded(case)
    train(store, step + 1, case["n_keys"])
    for k in count(step + 1):
        say(f"begun {k}")
        kind = case["kinds"][k % len(case["kinds"])]
        finish = saves.begin(store, Path(case["path"]), k, kind)
        train(store, k + 1, case["n_keys"])
        finish()
        say(f"done {k}")


def once(case: Case, deadly: Counter | None = None) -> None:
    """Train one step and save; die at the call `at` of the save. Else tell how many there were."""
    store, step = loaded(case)
    train(store, step + 1, case["n_keys"])
    if deadly is None:
        deadly = Seam(case["at"], ACTS[case["how"]], ignored=READING)
    with deadly:
        saves.save(store, Path(case["path"]), step + 1, case["kind"])
    say(f"done {step + 1}")
    say(f"calls {deadly.n_calls}")
