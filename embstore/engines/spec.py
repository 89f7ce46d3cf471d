"""TableSpec: what a table is, checked; the same for every engine, and what a checkpoint keeps."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from embstore.errors import ArgumentError, ArgumentTypeError
from embstore.policies import admission as admissions
from embstore.policies import eviction as evictions
from embstore.policies import initializer as initializers
from embstore.policies import optimizer as optimizers
from embstore.policies._check import (
    INT64_MAX,
    UINT64_MAX,
    check_choice,
    check_float,
    check_int,
    check_optional_int,
    shown,
)

Dtype = Literal["float32", "float16", "bfloat16"]
Rounding = Literal["nearest", "stochastic"]
OnFull = Literal["evict", "refuse", "raise"]
OnNonfinite = Literal["raise", "skip", "allow"]

MAX_DIM = 4096
N_PARTITIONS = admissions.N_PARTITIONS
WHERE = "Table"
DEFAULT_INITIALIZER = initializers.Normal(mean=0.0, std=0.01)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSpec:
    """The parameters of a table but those of the process: device, hbm_bytes, hash_seed, on_evict.

    `on_full` None means "evict" if the eviction policy makes room, else "raise".
    """

    dim: int
    name: str = "table"
    optimizer: optimizers.Optimizer | None = None
    initializer: initializers.Initializer = DEFAULT_INITIALIZER
    seed: int = 0
    dtype: Dtype = "float32"
    rounding: Rounding = "nearest"
    admission: admissions.Admission | None = None
    eviction: evictions.Eviction | None = None
    evict_every: int | None = None
    max_rows: int | None = None
    max_bytes: int | None = None
    on_full: OnFull | None = None
    on_nonfinite: OnNonfinite = "raise"
    default_row: float | tuple[float, ...] | None = None
    track_changes: bool = False

    def __post_init__(self) -> None:
        self._check_scalars()
        _check_kind("optimizer", self.optimizer, optimizers.Optimizer, is_optional=True)
        _check_kind("initializer", self.initializer, initializers.Initializer)
        _check_kind("admission", self.admission, admissions.Admission, is_optional=True)
        _check_kind("eviction", self.eviction, evictions.Eviction, is_optional=True)
        self._check_fullness()
        self._set("default_row", _check_default_row(self.default_row, self.dim))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check_scalars(self) -> None:
        self._set("dim", check_int(WHERE, "dim", self.dim, 1, MAX_DIM))
        if not isinstance(self.name, str):
            raise ArgumentTypeError(f"{WHERE}: name must be a string, got {shown(self.name)}")
        try:
            self.name.encode()
        except UnicodeEncodeError:
            raise ArgumentError(f"{WHERE}: name must be valid Unicode, got {self.name!r}") from None
        self._set("seed", check_int(WHERE, "seed", self.seed, 0, UINT64_MAX))
        check_choice(WHERE, "dtype", self.dtype, get_args(Dtype))
        check_choice(WHERE, "rounding", self.rounding, get_args(Rounding))
        check_choice(WHERE, "on_nonfinite", self.on_nonfinite, get_args(OnNonfinite))
        if self.dtype == "float32" and self.rounding != "nearest":
            raise ArgumentError(f'{WHERE}: rounding="stochastic" needs a 16-bit dtype, got float32')
        for name, high in (("evict_every", INT64_MAX), ("max_rows", 2**32), ("max_bytes", 2**63)):
            value = check_optional_int(WHERE, name, getattr(self, name), 1, high)
            self._set(name, value)
        if not isinstance(self.track_changes, bool):
            raise ArgumentTypeError(
                f"{WHERE}: track_changes must be True or False, got {shown(self.track_changes)}"
            )

    def _check_fullness(self) -> None:
        by = evictions.capacity_by(self.eviction)
        evictions.freq_halve_every(self.eviction)
        if self.on_full is None:
            self._set("on_full", "evict" if by else "raise")
        check_choice(WHERE, "on_full", self.on_full, get_args(OnFull))
        maker = "CacheEviction" if self.is_cache else "CapacityEviction"
        if by and self.on_full != "evict":
            raise ArgumentError(
                f'{WHERE}: {maker} needs on_full="evict", got on_full={self.on_full!r}'
            )
        if self.is_cache:
            self._check_cache()
        elif by and self.max_rows is None and self.max_bytes is None:
            raise ArgumentError(f"{WHERE}: CapacityEviction needs max_rows or max_bytes")
        if self.evict_every is not None and not evictions.program(self.eviction):
            raise ArgumentError(
                f"{WHERE}: evict_every={self.evict_every} needs an eviction policy that selects "
                f"rows, got eviction={shown(self.eviction)}"
            )

    def _check_cache(self) -> None:
        if self.max_rows is None:
            raise ArgumentError(f"{WHERE}: CacheEviction needs max_rows")
        if self.max_bytes is not None:
            raise ArgumentError(
                f"{WHERE}: CacheEviction is bounded by max_rows, got max_bytes={self.max_bytes}"
            )
        if isinstance(self.admission, admissions.CounterAdmission):
            raise ArgumentError(
                f"{WHERE}: CacheEviction has no cells for candidates: use BloomAdmission, "
                f"got admission={shown(self.admission)}"
            )

    @property
    def is_cache(self) -> bool:
        """Whether the table is a cache: its eviction policy has a CacheEviction."""
        return evictions.is_cache(self.eviction)

    @property
    def slots(self) -> optimizers.Slots:
        """Names and widths of the optimizer state of a row."""
        return () if self.optimizer is None else self.optimizer.slots(self.dim)

    @property
    def slot_floats(self) -> int:
        """Float32 numbers of optimizer state in a row."""
        return sum(width for _, width in self.slots)

    @property
    def bloom_bytes(self) -> int:
        """Bytes of each of the 256 sub-filters; 0 without a filter."""
        policy = self.admission
        return policy.partition_bytes if isinstance(policy, admissions.BloomAdmission) else 0

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """The numpy dtype of values as stored: bfloat16 as its bits in uint16."""
        return np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)

    @property
    def row_dtype(self) -> np.dtype[Any]:
        """The numpy dtype in which rows cross: float16 of float16 tables, else float32."""
        return np.dtype("float16" if self.dtype == "float16" else "float32")

    def default_values(self) -> np.ndarray[tuple[int], np.dtype[np.float32]] | None:
        """Return the default row (dim,), or None for zeros."""
        if self.default_row is None:
            return None
        values = np.empty(self.dim, np.float32)
        values[:] = self.default_row
        return values

    def to_config(self) -> dict[str, Any]:
        """Return the spec as a dict for JSON, from which `from_config` makes it again."""
        config = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in ("optimizer", "initializer", "admission", "eviction"):
            if config[name] is not None:
                config[name] = config[name].to_config()
        if isinstance(self.default_row, tuple):
            config["default_row"] = list(self.default_row)
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "TableSpec":
        """Return the spec that `config`, made by `to_config`, describes."""
        if not isinstance(config, Mapping):
            raise ArgumentTypeError(f"Table.from_config: expected a dict, got {shown(config)}")
        known = {field.name for field in fields(cls)}
        if "dim" not in config or set(config) - known:
            raise ArgumentError(
                f"Table.from_config: expected 'dim' and some of {sorted(known)}, "
                f"got {sorted(config)}"
            )
        made = dict(config)
        rooms: dict[str, Any] = {
            "optimizer": optimizers,
            "initializer": initializers,
            "admission": admissions,
            "eviction": evictions,
        }
        for name, room in rooms.items():
            if made.get(name) is not None:
                made[name] = room.from_config(made[name])
        return cls(**made)


def _check_kind(name: str, value: object, kind: type, is_optional: bool = False) -> None:
    """Raise unless `value` is a policy of `kind`."""
    if isinstance(value, kind) or (is_optional and value is None):
        return
    hint = ", not the class itself" if isinstance(value, type) else ""
    raise ArgumentTypeError(
        f"{WHERE}: {name} must be an {kind.__name__.lower()} policy{hint}, got {shown(value)}"
    )


def _check_default_row(value: object, dim: int) -> float | tuple[float, ...] | None:
    """Return the default row as None, one number for all columns, or `dim` numbers."""
    if value is None:
        return None
    if getattr(value, "shape", None) == () or not hasattr(value, "__len__"):
        return float(np.float32(check_float(WHERE, "default_row", value)))
    try:
        row = np.asarray(value)
    except ValueError:  # ragged
        row = np.empty((0,), np.object_)
    if row.dtype.kind not in "fiu" or row.shape != (dim,):
        raise ArgumentError(
            f"{WHERE}: default_row must be a number or ({dim},) numbers, "
            f"got {row.dtype} of shape {row.shape}"
        )
    with np.errstate(over="ignore"):
        row = row.astype(np.float32)
    if not np.isfinite(row).all():
        raise ArgumentError(f"{WHERE}: default_row must be finite in float32")
    return tuple(row.tolist())
