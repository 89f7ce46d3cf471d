"""The program that is killed: a store whose content after step k is a function of k alone.

1. Rows of the table "steps" encode their own history: values, slots, freq and step of a row follow
   from its key and from any one of them, so a row of two moments can be told by looking at it.
2. The same steps on another store give the same content: the twin, which is never killed, says
   what must have been saved.
"""

import hashlib
from pathlib import Path

import numpy as np

import embstore as es

MAX_STEP = 5000  # sums of all steps up to here are exact in float32
N_PERIODS = 4
TEMPORARY = 1 << 40  # keys from here on live for LIFETIME steps
LIFETIME = 5
SOME_STATS = ("n_live", "n_pending", "step", "n_train_steps", "n_inserted", "n_erased")
BLOOM_STATS = ("bloom_fill", "bloom_n_added")


def new_store() -> "es.Store":
    """Return the empty store of the program."""
    return es.Store(
        [
            es.Table(
                4,
                optimizer=es.SGD(1.0, momentum=0.5),
                initializer=es.Constant(0.0),
                track_changes=True,
                name="steps",
            ),
            es.Table(
                2,
                optimizer=es.Adagrad(),
                admission=es.CounterAdmission(3),
                track_changes=True,
                name="counted",
            ),
            es.Table(
                3,
                optimizer=es.Adam(),
                track_changes=True,
                admission=es.BloomAdmission(2, capacity=1000, halve_every=500),
                dtype="bfloat16",
                name="filtered",
            ),
        ]
    )


def train(store: "es.Store", step: int, n_keys: int) -> None:
    """Do step `step`, from 1, on a store that has done all steps before."""
    _train_steps(store["steps"], step, n_keys)
    for name in ("counted", "filtered"):
        table = store[name]
        keys = np.arange(max(1, step - 2), step + 1)
        batch = table.find_or_insert(keys, step=step)
        grads = np.full((len(keys), table.dim), step % 7 - 3, np.float32)
        table.apply_gradients(batch, grads, step=step)
        table.erase([step - 2 * LIFETIME])


def _train_steps(table: "es.Table", step: int, n_keys: int) -> None:
    """Touch the keys whose period divides `step`, so that their momentum becomes `step`."""
    keys = np.arange(n_keys)
    periods = keys % N_PERIODS + 1
    is_touched = step % periods == 0
    keys, periods = keys[is_touched], periods[is_touched]
    grads = np.append(step - 0.5 * (step - periods), float(step))
    keys = np.append(keys, TEMPORARY + step)
    batch = table.find_or_insert(keys, step=step)
    table.apply_gradients(batch, np.repeat(grads[:, None], 4, axis=1).astype(np.float32), step=step)
    table.erase([TEMPORARY + step - LIFETIME])
    table.pin([step])
    table.unpin([step - LIFETIME])


def torn_row(rows: "es.Rows") -> str | None:
    """Return what is wrong with the first row of "steps" that is not of one moment, or None."""
    is_temporary = rows.keys >= TEMPORARY
    period = np.where(is_temporary, rows.keys - TEMPORARY, rows.keys % N_PERIODS + 1)
    times = rows.freq.astype(np.int64)
    total = period * times * (times + 1) // 2
    is_whole = (rows.step == period * times) & (times > 0)
    is_whole &= (rows.slots == rows.step[:, None]).all(axis=1)
    is_whole &= (rows.values == -total[:, None]).all(axis=1)
    if is_whole.all():
        return None
    at = int(np.argmin(is_whole))
    return (
        f"the row of key {rows.keys[at]} is torn: values {rows.values[at]}, "
        f"slots {rows.slots[at]}, freq {rows.freq[at]}, step {rows.step[at]}"
    )


def torn(store: "es.Store") -> str | None:
    """Return what is wrong with the rows of a store, or None."""
    faults = (torn_row(rows) for rows in store["steps"].export())
    return next((fault for fault in faults if fault is not None), None)


def digest(store: "es.Store") -> str:
    """Return the SHA-256 of all rows, candidates, pins and totals."""
    sha = hashlib.sha256()
    for name in store:
        table = store[name]
        for rows in table.export():
            for array in (rows.keys, rows.values, rows.slots, rows.freq, rows.step):
                sha.update(array.tobytes())
        found = table.candidates()
        for array in (found.keys, found.counts, found.epochs, table.pinned):
            sha.update(array.tobytes())
        stats = table.stats()
        sha.update(repr([stats[key] for key in (*SOME_STATS, *BLOOM_STATS)]).encode())
    return sha.hexdigest()


def extra_of(step: int) -> dict[str, object]:
    """Return what is saved beside the tables at a step."""
    return {"step": step, "bulk": np.full(100, step)}


class Twin:
    """The store that nobody kills: what it holds after each step."""

    def __init__(self, n_keys: int) -> None:
        self.n_keys = n_keys
        self._store = new_store()
        self._step = 0
        self._digests = [digest(self._store)]

    def digest_at(self, step: int) -> str:
        """Return the digest of the content after `step`."""
        while self._step < step:
            self._step += 1
            train(self._store, self._step, self.n_keys)
            self._digests.append(digest(self._store))
        return self._digests[step]


def fault_of(path: Path, twin: Twin, least: int, most: int) -> tuple[int, str | None]:
    """Load a checkpoint; return its step, and what is wrong with it, or None.

    Parameters
    ----------
    path
        The folder.
    twin
        What it must hold.
    least, most
        The last step that was known to be saved (0: none), and the last that may have been.
    """
    try:
        store = es.Store.load(path)
    except es.CheckpointError as error:
        is_empty = least == 0 and not (path / "manifest.json").exists()
        return 0, None if is_empty else f"step {least} was saved; now: {error}"
    step = int(store.extra["step"])
    if not (store.extra["bulk"] == step).all():
        return step, "extra is of two steps"
    if not least <= step <= most:
        return step, f"holds step {step}; the steps {least} to {most} may be there"
    fault = torn(store)
    if fault is None and digest(store) != twin.digest_at(step):
        fault = f"holds step {step}, but not what step {step} left"
    return step, fault
