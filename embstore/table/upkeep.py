"""The verbs of a Table that look after it: eviction, pins, planning and statistics."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore import engines
from embstore.engines import arrays
from embstore.engines.spec import TableSpec
from embstore.engines.types import EvictReport, PlanReport, PromoteReport
from embstore.errors import ArgumentError, ArgumentTypeError, EmbstoreWarning
from embstore.policies._check import (
    INT64_MAX,
    check_float,
    check_int,
    check_optional_int,
    check_step,
    shown,
)
from embstore.policies.admission import BloomAdmission
from embstore.policies.eviction import (
    Eviction,
    Operation,
    capacity_by,
    freq_halve_every,
    is_cache,
    program,
)
from embstore.table.base import TableBase

# Names of es_state that stats() shows as they are.
STATE_NAMES = (
    "step",
    "n_train_steps",
    "n_inserted",
    "n_evicted",
    "n_erased",
    "n_refused",
    "n_candidates_expired",
    "n_grads_dropped",
    "n_grads_stale",
    "n_nonfinite",
    "n_steps_clamped",
)


class _Plan:
    """``Table.plan(n_rows, dim=...)`` of a table to be, and ``table.plan(n_rows)`` of one that is.

    Both return a PlanReport: ``resting_bytes`` that `n_rows` rows and `n_candidates` pending keys
    of CounterAdmission will hold, and ``peak_bytes``, the most held at one time on the way there.
    Nothing is made. The class takes the parameters of `Table` too, ``dim`` among them; with
    ``hbm_bytes``, ``host_bytes`` is the part of the former in pinned memory of the host.

    Examples
    --------
    >>> import embstore as es
    >>> plan = es.Table.plan(1_000_000, dim=16, optimizer=es.Adagrad())
    >>> plan.peak_bytes >= plan.resting_bytes > 1_000_000 * 16 * 4 * 2
    True
    """

    def __get__(
        self, table: "TableUpkeep | None", owner: type["TableUpkeep"]
    ) -> Callable[..., PlanReport]:
        return self.plan_new if table is None else partial(self.plan_more, table)

    @staticmethod
    def plan_new(
        n_rows: int,
        n_candidates: int = 0,
        *,
        device: str = "cpu",
        hbm_bytes: int | None = None,
        **parameters: Any,
    ) -> PlanReport:
        """Return the bytes that a table of these parameters will hold."""
        if "dim" not in parameters:
            raise ArgumentTypeError("Table.plan: dim is needed")
        place = engines.check_place(device, hbm_bytes, "Table.plan")
        return _checked_plan(TableSpec(**parameters), place, n_rows, n_candidates)

    @staticmethod
    def plan_more(table: "TableUpkeep", n_rows: int, n_candidates: int = 0) -> PlanReport:
        """Return the bytes that `table` will hold with so many rows in all."""
        return _checked_plan(table._spec, table._place, n_rows, n_candidates)


def _checked_plan(
    spec: TableSpec, place: engines.Place, n_rows: int, n_candidates: int
) -> PlanReport:
    rows = check_int("Table.plan", "n_rows", n_rows, 0, 2**40)
    candidates = check_int("Table.plan", "n_candidates", n_candidates, 0, 2**40)
    return engines.plan(spec, place, rows, candidates)


class TableUpkeep(TableBase):
    """Upkeep: evict, pin, plan, stats."""

    def evict(
        self,
        where: Eviction | None = None,
        step: int | None = None,
        max_rows: int | None = None,
        keep_at_least: int = 0,
        pins: object = None,
        dry_run: bool = False,
        max_seconds: float | None = None,
        return_rows: bool = False,
    ) -> EvictReport:
        """Remove the rows that a policy selects.

        Parameters
        ----------
        where
            The policy; the table's own by default.
        step
            Now, for ages; the table's step by default.
        max_rows
            Remove at most so many: the oldest by (step, key).
        keep_at_least
            Rows that must remain.
        pins : (n,) int64
            Keys to spare, beside the table's own pins.
        dry_run
            Select, and remove nothing.
        max_seconds
            End after this time, removal included; the next bounded call resumes there. The one
            call whose result is not reproducible.
        return_rows
            Give the removed rows (those selected, in a dry run) in the report.

        Returns
        -------
        EvictReport
            n_scanned, n_selected, n_evicted, is_complete, rows (by key, or None).

        Raises
        ------
        ArgumentError
            If there is no policy that selects rows.
        """
        at = "Table.evict"
        predicates = self._predicates(where, at)
        checked_step = None if step is None else check_step(at, step)
        limit = check_optional_int(at, "max_rows", max_rows, 0, INT64_MAX)
        keep = check_int(at, "keep_at_least", keep_at_least, 0, INT64_MAX)
        pin_array = arrays.as_keys(() if pins is None else pins, at, "pins")
        if max_seconds is not None:
            max_seconds = check_float(at, "max_seconds", max_seconds, above=0.0)
        is_delivered = self._on_evict is not None and not dry_run
        collect = return_rows or is_delivered
        rows = None
        with self._lock:
            now = self.step if checked_step is None else checked_step
            report = self._engine.evict(
                predicates, now, limit, keep, pin_array, max_seconds, dry_run, collect
            )
            if collect:
                rows = self._public_rows(self._engine.take_evicted())
        if self._on_evict is not None and is_delivered and rows is not None and len(rows):
            self._on_evict(rows)
        return report._replace(rows=rows if return_rows else None)

    def _predicates(self, where: Eviction | None, at: str) -> tuple[Operation, ...]:
        """Return the program of `where`, or of the table's policy."""
        if where is None:
            predicates = program(self._spec.eviction)
            if not predicates:
                raise ArgumentError(
                    f"{at}: where is needed, since the table has no policy that selects rows"
                )
            return predicates
        if not isinstance(where, Eviction):
            raise ArgumentTypeError(f"{at}: where must be an eviction policy, got {shown(where)}")
        if capacity_by(where):
            name = "CacheEviction" if is_cache(where) else "CapacityEviction"
            raise ArgumentError(f"{at}: {name} acts on full tables alone, not in evict()")
        if freq_halve_every(where) not in (None, freq_halve_every(self._spec.eviction)):
            raise ArgumentError(f"{at}: halve_every is a parameter of the table's own policy")
        return program(where)

    def pin(self, keys: object) -> None:
        """Spare these keys from every eviction, whether they have a row now or later.

        Parameters
        ----------
        keys : (n,) int64
        """
        key_array = arrays.as_keys(keys, "Table.pin")
        with self._lock:
            self._set_pins(np.union1d(self._pins, key_array))

    def unpin(self, keys: object) -> None:
        """Spare these keys no longer; those that are not pinned are passed over.

        Parameters
        ----------
        keys : (n,) int64
        """
        key_array = arrays.as_keys(keys, "Table.unpin")
        with self._lock:
            self._set_pins(np.setdiff1d(self._pins, key_array))

    def _set_pins(self, pins: NDArray[np.int64]) -> None:
        self._engine.set_pins(pins)
        self._pins = pins

    @property
    def pinned(self) -> NDArray[np.int64]:
        """The pinned keys in ascending order, (n,) int64."""
        return self._pins.copy()

    def promote(self, max_rows: int | None = None) -> PromoteReport:
        """Let hot rows of the host's memory change places with cold rows of the card's.

        The rows of the host that are hottest, by (freq, step), go to the card; as many of its
        coldest go the other way, each pair only if that is a gain. Nothing that a call returns
        depends on it: it is for speed. Call it now and then, say each thousand steps: it reads 16
        bytes a row, waits for the card, and moves both rows of each pair over the bus. A table that
        has one home has nothing to promote.

        Parameters
        ----------
        max_rows
            Promote at most so many, the hottest; all that gain by default.

        Returns
        -------
        PromoteReport
            n_promoted, n_card_rows, n_host_rows.

        Raises
        ------
        OutOfMemoryError
            If the card has no memory for the lists; nothing has moved.

        Examples
        --------
        >>> import embstore as es
        >>> table = es.Table(dim=8)
        >>> for step in range(2000):
        ...     batch = table.find_or_insert([step % 7, step], step=step)
        ...     if step % 1000 == 999:
        ...         report = table.promote(max_rows=1_000_000)
        >>> report.n_promoted
        0
        """
        limit = check_optional_int("Table.promote", "max_rows", max_rows, 0, INT64_MAX)
        with self._lock:
            return self._engine.promote(limit)

    plan = _Plan()

    def stats(self) -> dict[str, Any]:
        """Return numbers about the table, all plain ints and floats.

        Returns
        -------
        dict
            - ``n_live``, ``n_pending``: rows, and candidates of CounterAdmission;
            - ``step``, ``n_train_steps``: greatest step, and distinct training steps;
            - totals since creation: ``n_inserted``, ``n_evicted``, ``n_erased``, ``n_refused``,
              ``n_candidates_expired``, ``n_grads_dropped`` (no row to go to), ``n_grads_stale``
              (evicted between forward and backward), ``n_nonfinite``, ``n_steps_clamped``;
            - ``nbytes``, and its parts ``nbytes_index``, ``nbytes_meta``, ``nbytes_values``,
              ``nbytes_slots``, ``nbytes_bloom``, ``nbytes_other``;
            - ``nbytes_host``: the bytes among them of rows in pinned memory of the host
              (`hbm_bytes` of `Table`); 0 of tables that have one home;
            - ``n_cells``, ``n_tombstones``, ``load_factor``: the index;
            - ``bloom_fill`` (part of the cells in use), ``bloom_estimated_fpr``
              (`BloomAdmission.estimated_fpr`), ``bloom_n_added`` (keys first seen since the last
              halving) and ``bloom_capacity``; None without BloomAdmission.

        Warns
        -----
        EmbstoreWarning
            Once, when the filter has passed its capacity.
        """
        engine = self._engine  # one for both, whatever is restored meanwhile
        native, state = engine.stats(), engine.get_state()
        n_held = native["n_live"] + native["n_candidates"]
        stats: dict[str, Any] = {
            "n_live": native["n_live"],
            "n_pending": native["n_candidates"],
            **{name: state[name] for name in STATE_NAMES},
            "nbytes": sum(v for name, v in native.items() if name.startswith("nbytes_")),
            **{name: v for name, v in native.items() if name.startswith("nbytes_")},
            "nbytes_host": native.get("host_bytes", 0),
            "n_cells": native["n_cells"],
            "n_tombstones": native["n_tombstones"],
            "load_factor": n_held / native["n_cells"] if native["n_cells"] else 0.0,
            "bloom_fill": None,
            "bloom_estimated_fpr": None,
            "bloom_n_added": None,
            "bloom_capacity": None,
        }
        bloom = self._spec.admission
        if isinstance(bloom, BloomAdmission):
            stats["bloom_fill"] = native["bloom_cells_used"] / native["bloom_cells"]
            stats["bloom_estimated_fpr"] = bloom.estimated_fpr(native["bloom_cells_used"])
            stats["bloom_n_added"] = state["n_bloom_added"]
            stats["bloom_capacity"] = bloom.capacity
            self._warn_past_capacity(bloom, stats)
        return stats

    def _warn_past_capacity(self, bloom: BloomAdmission, stats: dict[str, Any]) -> None:
        """Warn once each time the filter passes its capacity."""
        is_past = stats["bloom_n_added"] > bloom.capacity
        is_news = is_past and not self._is_bloom_past_capacity
        self._is_bloom_past_capacity = is_past
        if is_news:
            warnings.warn(
                f"table {self.name!r}: its bloom filter holds {stats['bloom_n_added']} ids, more "
                f"than its capacity {bloom.capacity}; its false positive rate is now about "
                f"{stats['bloom_estimated_fpr']:.3g} (asked for: {bloom.fpr:g})",
                EmbstoreWarning,
                stacklevel=3,
            )
