"""What `load` may change: optimizer and slots, dtype, limits and policies; how, value by value.

1. All that can be refused without reading rows is refused by `plan_load`, before a table is made.
2. Nothing that the new table has no place for is dropped without a warning that counts it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from embstore.checkpoint import CandidateBlock, RowBlock, TableSource
from embstore.engines.spec import Dtype, OnFull, TableSpec
from embstore.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointMismatchError,
    EmbstoreError,
)
from embstore.policies._check import check_choice, shown
from embstore.policies.admission import (
    Admission,
    BloomAdmission,
    CounterAdmission,
    candidate_grain,
)
from embstore.policies.eviction import Eviction, freq_halve_every, program
from embstore.policies.optimizer import Optimizer
from embstore.table.files import Bound, LoadAdmission, LoadEviction, Saved
from embstore.table.moments import SlotPlan, converted_clocks, plan_slots
from embstore.table.values import convert_values

LoadOptimizer = Optimizer | Literal["keep", "reset"] | None
LoadSlots = Literal["keep", "reset"] | Mapping[str, str] | None

POLICIES = ("max_rows", "max_bytes", "on_full", "admission", "eviction", "evict_every")
State = dict[str, int | float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What a table is to be loaded as; by default as it was saved."""

    optimizer: LoadOptimizer = None
    slots: LoadSlots = None
    dtype: Dtype | None = None
    max_rows: Bound = "saved"
    max_bytes: Bound = "saved"
    on_full: OnFull | Saved = "saved"
    admission: LoadAdmission = "saved"
    eviction: LoadEviction = "saved"
    evict_every: Bound = "saved"

    def check(self, where: str) -> None:
        """Raise unless optimizer, slots and dtype are such as can be asked for."""
        if isinstance(self.optimizer, str):
            check_choice(where, "optimizer", self.optimizer, ("keep", "reset"))
        elif self.optimizer is not None and not isinstance(self.optimizer, Optimizer):
            raise ArgumentTypeError(
                f'{where}: optimizer must be an optimizer, "keep" or "reset", '
                f"got {shown(self.optimizer)}"
            )
        if self.dtype is not None:
            check_choice(where, "dtype", self.dtype, get_args(Dtype))
        if self.slots is None:
            return
        if not isinstance(self.optimizer, Optimizer):
            raise ArgumentError(
                f"{where}: slots={shown(self.slots)} needs the optimizer that is to have them, "
                f"got optimizer={shown(self.optimizer)}"
            )
        if not isinstance(self.slots, Mapping):
            check_choice(where, "slots", self.slots, ("keep", "reset"))

    def spec_of(self, saved: TableSpec) -> TableSpec:
        """Return what a table of spec `saved` becomes."""
        changes: dict[str, Any] = {
            name: getattr(self, name) for name in POLICIES if not _is_saved(getattr(self, name))
        }
        if isinstance(self.optimizer, Optimizer):
            changes["optimizer"] = self.optimizer
        if self.dtype is not None:
            changes["dtype"] = self.dtype
            if self.dtype == "float32":
                changes["rounding"] = "nearest"
        eviction = changes.get("eviction", saved.eviction)
        if isinstance(eviction, Eviction | None) and not program(eviction):
            changes.setdefault("evict_every", None)
        return replace(saved, **changes)


def _is_saved(value: object) -> bool:
    return isinstance(value, str) and value == "saved"


def saved_spec(source: TableSource) -> TableSpec:
    """Return the spec of a saved table."""
    try:
        spec = TableSpec.from_config(source.config)
    except CheckpointMismatchError:
        raise
    except EmbstoreError as error:
        raise CheckpointMismatchError(f"{source.place}: {error}") from error
    own = {"dim": spec.dim, "dtype": spec.dtype, "slots": spec.slots}
    for what, expected in own.items():
        if getattr(source, what) != expected:
            raise CheckpointMismatchError(
                f"{source.place} has {what} {getattr(source, what)}; its config says {expected}"
            )
    if source.bloom_bytes != spec.bloom_bytes:
        raise CheckpointMismatchError(
            f"{source.place} was saved with bloom sub-filters of {source.bloom_bytes} bytes; its "
            f"admission policy makes them of {spec.bloom_bytes} bytes"
        )
    return spec


class ConvertedTable:
    """A saved table as another spec has it, as a source."""

    def __init__(
        self,
        source: TableSource,
        saved: TableSpec,
        spec: TableSpec,
        slots: SlotPlan,
        allow_overflow: bool,
    ) -> None:
        self._source = source
        self._saved, self._spec = saved, spec
        self._slots = slots
        self._allow_overflow = allow_overflow
        self._admission = _AdmissionChange(saved.admission, spec.admission, source.state)
        self.name = source.name
        self.place = source.place
        self.shards = source.shards
        self.dim = spec.dim
        self.dtype: str = spec.dtype
        self.slots = spec.slots
        self.config = spec.to_config()
        self.state: State = {
            **source.state,
            **converted_clocks(source.state, saved.optimizer, spec.optimizer, slots),
            **_next_times(source.state, saved, spec),
            **self._admission.state,
        }
        self.pins = source.pins
        self.n_rows = source.n_rows
        self.n_candidates = source.n_candidates if self._admission.keeps_candidates else 0
        self.bloom_bytes = source.bloom_bytes if self._admission.keeps_filter else 0

    @property
    def dropped(self) -> str | None:
        """What was dropped while candidates and filter were read, in words."""
        return self._admission.dropped

    def rows(self, first: int = 0, last: int = 255) -> Iterator[RowBlock]:
        """Yield the rows of partitions [first, last]."""
        old, new = self._saved.dtype, self._spec.dtype
        for rows in self._source.rows(first, last):
            values = rows.values
            if old != new:
                values = convert_values(rows, old, new, self.place, self._allow_overflow)
            yield RowBlock(rows.keys, values, self._slots.apply(rows.slots), rows.freq, rows.step)

    def candidates(self, first: int = 0, last: int = 255) -> Iterator[CandidateBlock]:
        """Yield the candidates of partitions [first, last]."""
        return self._admission.candidates(self._source.candidates(first, last))

    def bloom(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the 256 sub-filters; nothing without a filter."""
        return self._admission.bloom(self._source.bloom())

    def check_finite(self, allow_nonfinite: bool) -> None:
        """Raise CheckpointMismatchError if there is NaN or infinity and that is not allowed."""
        self._source.check_finite(allow_nonfinite)


def convert(
    source: TableSource, asked: Conversion, where: str, allow_overflow: bool
) -> tuple[TableSpec, TableSource]:
    """Return the spec that a saved table is to have, and the table as that spec has it.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        If a table cannot have what was asked for.
    CheckpointMismatchError
        If this one cannot be turned into that.
    """
    asked.check(where)
    saved = saved_spec(source)
    spec = asked.spec_of(saved)
    slots = plan_slots(saved, spec, asked.slots, asked.optimizer == "reset", source.place)
    if spec == saved and slots.is_identity:
        return spec, source
    return spec, ConvertedTable(source, saved, spec, slots, allow_overflow)


def _next_times(state: State, saved: TableSpec, spec: TableSpec) -> State:
    """Return when eviction and halvings are due, where their periods are others."""
    periods = {
        "next_evict": (saved.evict_every, spec.evict_every),
        "next_freq_halve": (freq_halve_every(saved.eviction), freq_halve_every(spec.eviction)),
        "next_bloom_halve": (_bloom_period(saved), _bloom_period(spec)),
    }
    return {
        name: _next_time(int(state["step"]), new)
        for name, (old, new) in periods.items()
        if old != new
    }


def _bloom_period(spec: TableSpec) -> int | None:
    return spec.admission.halve_every if isinstance(spec.admission, BloomAdmission) else None


def _next_time(step: int, period: int | None) -> int:
    """Return the next multiple of a period after `step`; 0 without one."""
    return 0 if period is None else min((step // period + 1) * period, 2**63 - 1)


class _AdmissionChange:
    """What becomes of candidates, filter and their clocks under another admission policy.

    A candidate whose count reaches a lower min_count keeps min_count - 1, so that its next sight
    admits it. Epochs are told in the new grain; where the old policy had none, the candidates
    count as seen at the table's step. A filter is kept if the new one has its shape.
    """

    def __init__(self, saved: Admission | None, new: Admission | None, state: State) -> None:
        self._saved, self._new = saved, new
        self._step = int(state["step"])
        are_counters = isinstance(saved, CounterAdmission) and isinstance(new, CounterAdmission)
        are_blooms = isinstance(saved, BloomAdmission) and isinstance(new, BloomAdmission)
        self.keeps_candidates = are_counters
        self.keeps_filter = are_blooms and saved.shape == new.shape  # type: ignore[union-attr]
        self._n_dropped = 0
        self._has_dropped_filter = False
        epoch = int(state["candidate_epoch"])
        self.state: State = {
            "candidate_epoch": int(self._epochs(np.array([epoch]))[0]) if are_counters else 0,
            "n_bloom_added": state["n_bloom_added"] if self.keeps_filter else 0,
        }

    @property
    def dropped(self) -> str | None:
        """What was dropped, in words."""
        if self._n_dropped:
            return f"{self._n_dropped} pending keys and their counts"
        return "the counts of its bloom filter" if self._has_dropped_filter else None

    def candidates(self, blocks: Iterator[CandidateBlock]) -> Iterator[CandidateBlock]:
        """Yield the candidates as the new policy has them; count those it has no place for."""
        self._n_dropped = 0
        for block in blocks:
            if self.keeps_candidates:
                assert isinstance(self._new, CounterAdmission)
                counts = np.minimum(block.counts, np.uint32(self._new.min_count - 1))
                yield CandidateBlock(block.keys, counts, self._epochs(block.epochs))
            else:
                self._n_dropped += len(block)

    def _epochs(self, epochs: NDArray[np.int64]) -> NDArray[np.int64]:
        assert isinstance(self._saved, CounterAdmission)
        assert isinstance(self._new, CounterAdmission)
        old, new = self._saved.candidate_ttl, self._new.candidate_ttl
        if old == new:
            return epochs
        if new is None:
            return np.zeros_like(epochs)
        if old is None:
            return np.full_like(epochs, self._step // candidate_grain(new))
        return epochs * candidate_grain(old) // candidate_grain(new)

    def bloom(self, filters: Iterator[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        """Yield the sub-filters if they are kept; note whether they held anything."""
        self._has_dropped_filter = False
        for data in filters:
            if self.keeps_filter:
                yield data
            else:
                self._has_dropped_filter |= bool(data.any())
