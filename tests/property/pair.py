"""Pair: a table and its model, told the same and compared bit for bit after every call."""

import dataclasses
import tempfile
import warnings

import numpy as np
from reference import ReferenceTable

import embstore as es

STATE_FIELDS = [field.name for field in dataclasses.fields(ReferenceTable(1).state)]


def canonical(array):
    """Return an array whose equality is that of bits, all NaNs being one."""
    array = np.asarray(array)
    if array.dtype.kind != "f":
        return array
    array = array.astype(np.float32)
    bits = array.view(np.uint32)
    return np.where(np.isnan(array), np.uint32(0x7FC00000), bits)


def assert_same(actual, expected, what):
    """Compare two arrays, shape and bits."""
    a, e = canonical(actual), canonical(expected)
    assert a.shape == e.shape, f"{what}: shape {a.shape}, expected {e.shape}"
    if not np.array_equal(a, e):
        at = tuple(np.argwhere(a != e)[0])
        raise AssertionError(
            f"{what}: {(a != e).sum()} differ, first at {at}: "
            f"{np.asarray(actual)[at]!r}, expected {np.asarray(expected)[at]!r}"
        )


def assert_same_rows(actual, expected, what):
    """Compare complete rows, column by column."""
    for name in ("keys", "values", "slots", "freq", "step"):
        assert_same(getattr(actual, name), getattr(expected, name), f"{what}.{name}")


def exported(table, batch_rows=65536):
    """Return all rows of a table as one set of columns."""
    parts = [*table.export(batch_rows=batch_rows)]
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("keys", "values", "slots", "freq", "step")
        if parts
    }
    return es.Rows(**columns) if parts else None


class Sink:
    """An on_evict that keeps what it was given."""

    def __init__(self):
        self.keys, self.parts = [], []

    def __call__(self, rows):
        self.parts.append(rows)

    def take(self):
        """Return all rows so far by key, and forget them."""
        parts, self.parts = self.parts, []
        columns = {
            name: np.concatenate([canonical(getattr(part, name)) for part in parts])
            for name in ("keys", "values", "slots", "freq", "step")
            if parts
        }
        order = np.argsort(columns["keys"], kind="stable") if parts else None
        return {name: column[order] for name, column in columns.items()}


class Pair:
    """The same calls on `table` (embstore) and `model` (the oracle)."""

    def __init__(self, engine="cpu", **config):
        self.config = config
        self.sinks = Sink(), Sink()
        self.table = es.Table(device=engine, on_evict=self.sinks[0], **config)
        self.model = ReferenceTable(on_evict=self.sinks[1], **config)
        self.batches = []
        self.saving = None  # a save that goes on: its handle, and what it must hold
        self._folder = tempfile.TemporaryDirectory()

    def close(self):
        try:
            self.settle()
        finally:
            self.table.close()
            self._folder.cleanup()

    def both(self, verb, *args, **kwargs):
        """Call a verb of both; both return, or both raise the same kind of error."""
        outcomes = []
        for side in (self.table, self.model):
            own = [arg.of(side is self.table) if isinstance(arg, Twin) else arg for arg in args]
            try:
                outcomes.append(getattr(side, verb)(*own, **kwargs))
            except es.EmbstoreError as error:
                outcomes.append(error)
        actual, expected = outcomes
        is_error = [isinstance(outcome, es.EmbstoreError) for outcome in outcomes]
        if any(is_error):
            assert type(actual) is type(expected), f"{verb}: {actual!r}, expected {expected!r}"
            return None
        return Twin(actual, expected)

    # Verbs whose results need a closer look

    def find(self, keys, missing="default"):
        twin = self.both("find", keys, missing=missing)
        if twin:
            result = self.table.find(keys, missing=missing, with_meta=True)
            for name, expected in zip(result._fields, twin.expected, strict=True):
                assert_same(getattr(result, name), expected, f"find {name}")
            assert_same(twin.actual, twin.expected[0], "find")

    def contains(self, keys):
        twin = self.both("contains", keys)
        assert_same(twin.actual, twin.expected, "contains")

    def find_or_insert(self, keys, step, **kwargs):
        twin = self.both("find_or_insert", keys, step, **kwargs)
        if twin:
            self._same_batch(twin.actual, twin.expected)
        return twin

    def pooled(self, keys, offsets, **kwargs):
        twin = self.both("pooled", keys, offsets, **kwargs)
        if twin and kwargs.get("step") is None:
            assert_same(twin.actual, twin.expected, "pooled")
        elif twin:
            assert_same(twin.actual.rows, twin.expected.rows, "pooled rows")
        return twin

    def report(self, verb, *args, **kwargs):
        """Call a verb that returns a report of numbers."""
        twin = self.both(verb, *args, **kwargs)
        if twin:
            assert twin.actual == twin.expected, f"{verb}: {twin.actual}, expected {twin.expected}"

    def evict(self, **kwargs):
        twin = self.both("evict", return_rows=True, **kwargs)
        if twin:
            assert twin.actual[:4] == twin.expected[:4], f"evict {kwargs}: {twin}"
            assert_same_rows(twin.actual.rows, twin.expected.rows, "evicted")

    def import_(self, rows):
        """Import the same rows into both."""
        values = rows.values.astype(np.float16 if self.table.dtype == "float16" else np.float32)
        self.both("import_", Twin(es.Rows(rows.keys, values, *rest_of(rows)), rows))

    def reload(self):
        """Save the table, and go on with what was loaded; batches and the change log end.

        A table that logs its changes adds a delta to what was saved before.
        """
        self.settle()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            report = self.table.save(self._folder.name, delta=self.logs_changes, max_deltas=3)
        if self.config["on_nonfinite"] != "allow" and report.kind == "full":
            assert self.is_finite() == (not caught), [str(each.message) for each in caught]
        loaded = self._load(on_evict=self.sinks[0])
        self.table.close()
        self.table = loaded
        self.batches = []
        self.model.reset_changes()
        assert loaded.pinned.tolist() == sorted(self.model.pins)

    def save_beside(self, snapshot_bytes):
        """Save the table as it is now while the program goes on; `settle` looks at it later."""
        self.settle()
        if not self.is_finite():
            return  # a save warns of such rows, in a thread where nobody expects it
        expected = self.model.export(), self.model.candidates(), sorted(self.model.pins)
        handle = self.table.save_async(
            self._folder.name,
            delta=self.logs_changes,
            max_deltas=3,
            snapshot_bytes=snapshot_bytes,
        )
        self.model.reset_changes()
        self.saving = handle, expected

    def settle(self):
        """Wait for the save that goes on; what it wrote must be what the table was at its cut."""
        if self.saving is None:
            return
        (handle, (rows, candidates, pins)), self.saving = self.saving, None
        handle.wait()
        with self._load() as loaded:
            found = exported(loaded)
            assert len(loaded) == len(rows)
            if found is not None:
                assert_same_rows(found, rows, "saved beside")
            pending = loaded.candidates()
            for name, expected in zip(("keys", "counts", "epochs"), candidates, strict=True):
                assert_same(getattr(pending, name), expected, f"saved candidates.{name}")
            assert loaded.pinned.tolist() == pins

    @property
    def logs_changes(self):
        return bool(self.config.get("track_changes"))

    def is_finite(self):
        """Whether all rows of the model are."""
        rows = self.model.export()
        return bool(np.isfinite(rows.values).all() and np.isfinite(rows.slots).all())

    def _load(self, on_evict=None):
        optimizer = self.config["optimizer"]
        has_schedule = optimizer is not None and callable(optimizer.lr)
        return es.Table.load(
            self._folder.name,
            device=self.table.device,
            hash_seed=self.config["hash_seed"],
            on_evict=on_evict,
            optimizer=optimizer if has_schedule else None,
            allow_nonfinite=True,
        )

    # The whole state

    def check(self):
        """Compare everything that can be seen of the tables."""
        table, model = self.table, self.model
        assert len(table) == len(model)
        rows = exported(table)
        if rows is None:
            assert len(model) == 0
        else:
            assert_same_rows(rows, model.export(), "export")
        candidates = table.candidates()
        for name, expected in zip(("keys", "counts", "epochs"), model.candidates(), strict=True):
            assert_same(getattr(candidates, name), expected, f"candidates.{name}")
        counted = table._engine.stats()
        assert (counted["n_live"], counted["n_candidates"]) == (len(model), len(candidates.keys))
        state, expected = table._engine.get_state(), model.get_state()
        for name in STATE_FIELDS:
            assert state[name] == getattr(expected, name), (
                f"{name}: {state[name]}, expected {getattr(expected, name)}"
            )
        self._check_evicted()
        self._check_log()

    def check_bloom(self):
        """Compare all sub-filters, byte by byte."""
        if hasattr(self.model.admission, "partition_bytes"):
            for partition in range(256):
                actual = self.table._engine.bloom_read(partition)
                expected = self.model.admission.partition_bytes(partition)
                assert_same(actual, expected, f"bloom sub-filter {partition}")

    def _check_evicted(self):
        actual, expected = (sink.take() for sink in self.sinks)
        assert actual.keys() == expected.keys(), f"on_evict: {[*actual]}, expected {[*expected]}"
        for name in actual:
            assert_same(actual[name], expected[name], f"on_evict {name}")

    def _check_log(self):
        if self.logs_changes:
            changes = self.table.changes()
            upserted, deleted = self.model.changes()
            assert_same(changes.upserted, upserted, "upserted")
            assert_same(changes.deleted, deleted, "deleted")

    def _same_batch(self, actual, expected):
        for name in ("rows", "keys", "status", "inverse"):
            assert_same(getattr(actual, name), getattr(expected, name), f"batch.{name}")
        assert actual.n_unique == expected.n_unique


@dataclasses.dataclass
class Twin:
    """What a table returned, and what its model did."""

    actual: object
    expected: object

    def of(self, is_table):
        return self.actual if is_table else self.expected


def rest_of(rows):
    return rows.slots, rows.freq, rows.step
