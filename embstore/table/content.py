"""The verbs of a Table that write and read its content directly, beside training."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from embstore.engines import arrays
from embstore.engines.spec import N_PARTITIONS
from embstore.engines.types import AssignReport, Candidates, Changes, Rows
from embstore.errors import ArgumentError, ArgumentTypeError
from embstore.policies._check import INT64_MAX, check_choice, check_int, check_step
from embstore.policies.admission import CounterAdmission
from embstore.table.base import TableBase

if TYPE_CHECKING:
    from embstore.engines.engine import Engine

ASSIGN_MODES: tuple[Literal["replace", "add"], ...] = ("replace", "add")


class TableContent(TableBase):
    """Content: assign, erase, contains, clear, export, import_, candidates, changes."""

    def contains(self, keys: object) -> NDArray[np.bool_]:
        """Return which keys have a row; pending keys have none.

        Parameters
        ----------
        keys : (n,) int64

        Returns
        -------
        (n,) bool
        """
        key_array = arrays.as_keys(keys, "Table.contains", device=self._device)
        with self._on_stream(None, "Table.contains", key_array):
            return arrays.public(self._engine.contains(key_array))  # type: ignore[no-any-return]

    def assign(
        self,
        keys: object,
        values: object,
        mode: Literal["replace", "add"] = "replace",
        step: int | None = None,
    ) -> AssignReport:
        """Write values, bypassing admission; keys without a row are born first.

        Slots and freq of rows stay as they are; a pending key's count is dropped.

        Parameters
        ----------
        keys : (n,) int64
        values : (n, dim) float32
        mode
            "replace" writes the values of a key's last occurrence; "add" adds those of all its
            occurrences to the row.
        step
            The rows' step becomes at least this; the table's step by default.

        Returns
        -------
        AssignReport
            Numbers of unique keys: replaced, inserted, refused.

        Raises
        ------
        NonFiniteError
            With ``on_nonfinite="raise"``, if a result is NaN or infinite; nothing is changed.
        CapacityError
            With ``on_full="raise"``, if the new keys do not fit; nothing is changed.
        """
        where = "Table.assign"
        key_array = arrays.as_keys(keys, where, device=self._device)
        shape = (len(key_array), self.dim)
        value_array = arrays.as_floats(values, shape, where, "values", self._device)
        checked_mode = check_choice(where, "mode", mode, ASSIGN_MODES)
        if step is not None:
            step = check_step(where, step)
        with self._on_stream(None, where, key_array, value_array), self._writing:
            at = self.step if step is None else step
            return self._engine.assign(key_array, value_array, checked_mode, at)

    def erase(self, keys: object) -> int:
        """Remove rows, and the counts of pending keys; return how many rows were removed.

        Parameters
        ----------
        keys : (n,) int64
        """
        key_array = arrays.as_keys(keys, "Table.erase", device=self._device)
        with self._on_stream(None, "Table.erase", key_array), self._writing:
            return self._engine.erase(key_array)

    def clear(self) -> None:
        """Remove all rows, pending counts and the filter's counts; end all batches.

        Steps, optimizer time and the times of the next maintenance stay.
        """
        with self._writing:
            self._engine.clear()

    def reserve(self, n_rows: int) -> None:
        """Make memory for `n_rows` rows in all, and touch it, so that later inserts are even.

        Raises
        ------
        CapacityError, OutOfMemoryError
            If `max_rows`, `max_bytes` or the system do not allow it.
        """
        checked = check_int("Table.reserve", "n_rows", n_rows, 0, INT64_MAX)
        with self._writing:
            self._engine.reserve(checked)

    def export(self, pending: bool = False, batch_rows: int = 65536) -> Iterator[Rows]:
        """Yield all rows by (partition, key), in batches of at most `batch_rows`.

        Writers may run between two batches: each partition of keys is consistent in itself, and
        rows that are written meanwhile come as they were before or after. `save` is for a
        consistent cut.

        Parameters
        ----------
        pending
            Yield the pending keys of CounterAdmission too, after the rows: with the default row,
            zero slots, their count as freq, and step -1. (BloomAdmission keeps no keys.)
        batch_rows
            Rows of a batch at most.

        Yields
        ------
        Rows
        """
        where = "Table.export"
        checked = check_int(where, "batch_rows", batch_rows, 1, INT64_MAX)
        engine = self._engine  # to the end, whatever is restored meanwhile
        len(engine)  # raises here, not at the first next(), if the table is closed
        return self._export(engine, bool(pending), checked)

    def _export(self, engine: "Engine", pending: bool, batch_rows: int) -> Iterator[Rows]:
        for first, last in _partition_ranges(engine, batch_rows, candidates=False):
            with self._lock:
                stored = engine.export_rows(first, last)
            rows = self._public_rows(stored)
            for start in range(0, len(rows), batch_rows):
                yield rows[start : start + batch_rows]
        if not pending:
            return
        for first, last in _partition_ranges(engine, batch_rows, candidates=True):
            rows = self._pending_rows(engine, first, last)
            for start in range(0, len(rows), batch_rows):
                yield rows[start : start + batch_rows]

    def _pending_rows(self, engine: "Engine", first: int, last: int) -> Rows:
        """Return the pending keys of partitions [first, last] as `export` describes them."""
        with self._lock:
            pending = engine.export_candidates(first, last)
            n = len(pending)
            values = np.empty((n, self.dim), self._spec.row_dtype)
            engine.find(pending.keys, values, "default", None, None, None)
        slots = np.zeros((n, self._spec.slot_floats), np.float32)
        return Rows(pending.keys, values, slots, pending.counts, np.full(n, -1, np.int64))

    def import_(self, rows: Rows) -> None:
        """Create or replace complete rows, bypassing admission.

        Parameters
        ----------
        rows
            As `export` gives them, of a table with the same dim, dtype and slots. bfloat16 tables
            take float32 values (rounded to nearest) or their bits in uint16.

        Raises
        ------
        ArgumentError
            If a key occurs twice, a step is negative, or shapes do not fit.
        CapacityError
            If the rows do not fit under `max_rows` or `max_bytes`, whatever `on_full` says.
        """
        where = "Table.import_"
        if not isinstance(rows, Rows):
            raise ArgumentTypeError(
                f"{where}: rows must be embstore.Rows, got {arrays.describe(rows)}"
            )
        keys = arrays.as_keys(rows.keys, where)
        n = len(keys)
        checked = Rows(
            keys,
            arrays.as_values(rows.values, (n, self.dim), self._spec.dtype, where),
            arrays.as_floats(rows.slots, (n, self._spec.slot_floats), where, "slots"),
            arrays.as_freq(rows.freq, n, where),
            arrays.as_steps(rows.step, n, where),
        )
        with self._writing:
            self._engine.import_rows(checked)

    def candidates(self) -> Candidates:
        """Return the keys that CounterAdmission has counted and not admitted.

        Returns
        -------
        Candidates
            By (partition, key). Empty for tables without CounterAdmission.
        """
        if not isinstance(self._spec.admission, CounterAdmission):
            none = np.empty(0, np.int64)
            len(self._engine)  # raises if the table is closed
            return Candidates(none, np.empty(0, np.uint32), none)
        with self._lock:
            return self._engine.export_candidates(0, N_PARTITIONS - 1)

    def changes(self) -> Changes:
        """Return the keys written, and those removed, since the change log began.

        It begins with the table, and anew with `reset_changes`, with each save (at its cut) and
        when the table is loaded.

        Raises
        ------
        ArgumentError
            If the table was made without ``track_changes=True``.
        """
        self._check_tracking("Table.changes")
        with self._lock:
            return self._engine.changes()

    def reset_changes(self) -> None:
        """Begin a new change log. The next ``save(delta=True)`` will then write everything.

        Raises
        ------
        ArgumentError
            If the table was made without ``track_changes=True``.
        """
        self._check_tracking("Table.reset_changes")
        with self._lock:
            self._engine.reset_changes()
            self._base = None  # the log is no longer what changed since a checkpoint
            self._n_resets += 1

    def _check_tracking(self, where: str) -> None:
        if not self._spec.track_changes:
            raise ArgumentError(f"{where}: the table was made with track_changes=False")


def _partition_ranges(
    engine: "Engine", batch_rows: int, candidates: bool
) -> Iterator[tuple[int, int]]:
    """Yield ranges of partitions that hold at most about `batch_rows`, or are one alone."""
    counts = engine.partition_counts(candidates).tolist()
    first, held = 0, 0
    for partition, count in enumerate(counts):
        if held and held + count > batch_rows:
            yield first, partition - 1
            first, held = partition, 0
        held += count
    yield first, N_PARTITIONS - 1
