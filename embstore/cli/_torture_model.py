"""The model check: random calls to a table and to a plain dict, which must never differ.

1. Gradients are small integers and rates are powers of two: sums of a key's gradients are exact, so
   the model needs no rule of summation, and numpy's float32 arithmetic agrees bit for bit.
2. The model knows docs/semantics.md alone, and nothing of the library.
"""

import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import embstore as es
from embstore.cli._torture_report import Tally

DIM = 3
MOMENTUM = np.float32(0.5)
LR = np.float32(0.5)
SPREAD = 3000
CALLS_OF_A_PROGRAM = 150
HOSTILE = [0, -1, -2, -3, 2**63 - 1, -(2**63), *(1 << i for i in range(20, 63, 6))]

Floats = NDArray[np.float32]


@dataclass
class Row:
    """A row of the model."""

    values: Floats
    slots: Floats
    freq: int
    step: int


class Model:
    """What a table must hold: a dict of rows, a dict of pending counts, a set of pins."""

    def __init__(self, min_count: int) -> None:
        self.min_count = min_count
        self.rows: dict[int, Row] = {}
        self.pending: dict[int, int] = {}
        self.pins: set[int] = set()
        self.step = 0

    def born(self, key: int, freq: int, step: int) -> None:
        """Make a row."""
        self.pending.pop(key, None)
        zeros = np.zeros(DIM, np.float32)
        self.rows[key] = Row(zeros, zeros, freq, step)

    def find_or_insert(self, keys: list[int], step: int) -> None:
        """Count keys and admit those seen often enough."""
        self.step = max(self.step, step)
        for key in keys:
            if key in self.rows:
                self.rows[key].freq += 1
        new = [key for key in keys if key not in self.rows]
        for key in dict.fromkeys(new):
            count = self.pending.get(key, 0) + new.count(key)
            if count >= self.min_count:
                self.born(key, count, step)
            else:
                self.pending[key] = count

    def apply_gradients(self, keys: list[int], grads: Floats, step: int) -> None:
        """Train the keys that have a row: SGD with momentum."""
        self.step = max(self.step, step)
        sums: dict[int, Floats] = {}
        for key, grad in zip(keys, grads, strict=True):
            sums[key] = sums[key] + grad if key in sums else grad
        for key, grad in sums.items():
            if key in self.rows:
                row = self.rows[key]
                row.slots = MOMENTUM * row.slots + grad
                row.values = row.values - LR * row.slots
                row.step = max(row.step, step)

    def assign(self, keys: list[int], values: Floats) -> None:
        """Write values, the last of a key."""
        for key, value in zip(keys, values, strict=True):
            if key not in self.rows:
                self.born(key, 0, self.step)
            self.rows[key].values = value
            self.rows[key].step = max(self.rows[key].step, self.step)

    def erase(self, keys: list[int]) -> None:
        """Remove rows and pending counts."""
        for key in keys:
            self.rows.pop(key, None)
            self.pending.pop(key, None)

    def evict(self, steps_to_live: int) -> int:
        """Remove rows that are too old and not pinned; return how many."""
        old = [
            key
            for key, row in self.rows.items()
            if self.step - row.step > steps_to_live and key not in self.pins
        ]
        for key in old:
            del self.rows[key]
        return len(old)

    def clear(self) -> None:
        """Remove rows and pending counts."""
        self.rows, self.pending = {}, {}

    def difference(self, table: "es.Table") -> str | None:
        """Return how a table differs from this, or None."""
        n_seen = 0
        for rows in table.export():
            n_seen += len(rows)
            for i, key in enumerate(rows.keys.tolist()):
                row = self.rows.get(key)
                if row is None:
                    return f"key {key} has a row; it should have none"
                found = (rows.freq[i], rows.step[i])
                is_same = np.array_equal(rows.values[i], row.values)
                is_same &= np.array_equal(rows.slots[i], row.slots)
                if not is_same or found != (row.freq, row.step):
                    given = (rows.values[i], rows.slots[i], *found)
                    return f"key {key} has {given}; expected {row}"
        found_pending = table.candidates()
        counts = dict(zip(found_pending.keys.tolist(), found_pending.counts.tolist(), strict=True))
        if n_seen != len(self.rows) or len(table) != n_seen:
            return f"{len(table)} rows, {n_seen} of them exported; expected {len(self.rows)}"
        if counts != self.pending:
            return f"{len(counts)} pending keys or their counts are not the {len(self.pending)}"
        if table.pinned.tolist() != sorted(self.pins):
            return "other keys are pinned"
        return None


class Program:
    """A random program on a table and on its model."""

    def __init__(self, seed: int, path: Path) -> None:
        self._rng = random.Random(seed)
        self._path = path
        self._model = Model(self._rng.choice((1, 1, 2, 3)))
        self._table = self._new_table()
        self._step = 0
        self.n_keys = 0
        self.history: list[str] = []

    def _new_table(self) -> "es.Table":
        return es.Table(
            DIM,
            optimizer=es.SGD(float(LR), momentum=float(MOMENTUM)),
            initializer=es.Constant(0.0),
            admission=None
            if self._model.min_count == 1
            else es.CounterAdmission(self._model.min_count),
            name="model",
        )

    def run(self, n_calls: int) -> str | None:
        """Do so many calls; return the first difference, or None."""
        verbs: dict[str, int] = {
            "train": 12, "find": 4, "apply": 3, "assign": 2, "erase": 2, "evict": 2, "pins": 1,
            "reload": 1, "exchange": 1, "grow": 1, "clear": 1,
        }  # fmt: skip
        for i in range(n_calls):
            (verb,) = self._rng.choices(list(verbs), list(verbs.values()))
            self.history.append(verb)
            fault: str | None = getattr(self, f"_{verb}")()
            if fault is None and (i % 4 == 0 or i == n_calls - 1):
                fault = self._model.difference(self._table)
            if fault is not None:
                return f"after {len(self.history)} calls, the last {self.history[-3:]}: {fault}"
        self._table.close()
        return None

    def _keys(self, most: int = 600) -> list[int]:
        """Return random keys, some often, some of them hostile."""
        n = self._rng.choice((0, 1, most // 8, most, most))
        self.n_keys += n
        keys = [int(SPREAD ** self._rng.random()) for _ in range(n)]
        for i in range(0, n, 16):
            keys[i] = self._rng.choice(HOSTILE)
        return keys

    def _floats(self, n: int) -> Floats:
        numbers = self._rng.choices(range(-8, 9), k=n * DIM)
        return np.array(numbers, np.float32).reshape(n, DIM)

    def _train(self) -> None:
        self._step += self._rng.choice((0, 1, 1, 1, 3))
        keys = self._keys()
        batch = self._table.find_or_insert(np.array(keys, np.int64), step=self._step)
        self._model.find_or_insert(keys, self._step)
        self._both_apply(batch, keys)

    def _apply(self) -> None:
        keys = self._keys()
        self._both_apply(np.array(keys, np.int64), keys)

    def _both_apply(self, batch: object, keys: list[int]) -> None:
        grads = self._floats(len(keys))
        self._table.apply_gradients(batch, grads, step=self._step)
        self._model.apply_gradients(keys, grads, self._step)

    def _find(self) -> str | None:
        keys = self._keys()
        found = self._table.find(np.array(keys, np.int64), with_meta=True)
        for i, key in enumerate(keys):
            row = self._model.rows.get(key)
            expected = (np.zeros(DIM), 0, -1) if row is None else (row.values, row.freq, row.step)
            if not np.array_equal(found.rows[i], expected[0]) or (
                (found.found[i], found.freq[i], found.step[i]) != (row is not None, *expected[1:])
            ):
                return f"find of key {key} gave {found.rows[i]}; expected {expected}"
        return None

    def _assign(self) -> None:
        keys = self._keys(100)
        values = self._floats(len(keys))
        self._table.assign(np.array(keys, np.int64), values)
        self._model.assign(keys, values)

    def _erase(self) -> None:
        keys = self._keys(100)
        self._table.erase(np.array(keys, np.int64))
        self._model.erase(keys)

    def _evict(self) -> str | None:
        steps_to_live = self._rng.choice((3, 8, 20))
        report = self._table.evict(es.StepEviction(steps_to_live), step=self._model.step)
        n_evicted = self._model.evict(steps_to_live)
        if report.n_evicted != n_evicted:
            return f"{report.n_evicted} rows were evicted; expected {n_evicted}"
        return None

    def _pins(self) -> None:
        keys = self._keys(40)
        if self._rng.random() < 0.5:
            self._table.pin(np.array(keys, np.int64))
            self._model.pins.update(keys)
        else:
            self._table.unpin(np.array(keys, np.int64))
            self._model.pins.difference_update(keys)

    def _reload(self) -> None:
        """Save, and go on with what is loaded."""
        self._table.save(self._path)
        self._table.close()
        self._table = es.Table.load(self._path)

    def _exchange(self) -> None:
        """Export all rows into another table, and go on with that; pending counts stay behind."""
        other = self._new_table()
        for rows in self._table.export(batch_rows=100):
            other.import_(rows)
        other.pin(self._table.pinned)
        self._table.close()
        self._table = other
        self._model.pending = {}
        self._model.step = max([0, *(row.step for row in self._model.rows.values())])

    def _grow(self) -> None:
        self._table.reserve(len(self._table) + self._rng.randrange(5000))

    def _clear(self) -> None:
        if self._rng.random() < 0.3:
            self._table.clear()
            self._model.clear()


def run(folder: Path, tally: Tally, seed: int) -> None:
    """Run programs until the time is over; keys that were handed to verbs are the cases."""
    path = folder / "model"
    for number in range(1 << 30):
        program = Program(seed * 1_000_003 + number, path)
        fault = program.run(CALLS_OF_A_PROGRAM)
        tally.passed(program.n_keys)
        if fault is not None:
            tally.failures.append(f"program {number}: {fault}")
        if tally.is_due or tally.failures:
            return
        shutil.rmtree(path, ignore_errors=True)
