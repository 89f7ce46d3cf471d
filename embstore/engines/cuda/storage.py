"""The memory of a table on a device: its descriptor, counters, index and rows, and how they grow.

1. The host owns all memory; kernels borrow it by the descriptor, whose address never changes.
2. Rows lie in chunks (chunks.py), of which some may be in pinned memory of the host; all else is on
   the card.
3. Growing changes no row and no count, and nothing at all if it raises. What was there is freed in
   the queue's order.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embstore.engines import arrays, kernels, native
from embstore.engines.cuda.chunks import (
    META_BYTES,
    RowChunks,
    RowShape,
    chunk_shift_for,
    list_bytes_for,
    round_up,
)
from embstore.engines.cuda.device import Device, Memory, Queue
from embstore.engines.cuda.launch import Launcher, packed
from embstore.engines.spec import N_PARTITIONS, TableSpec
from embstore.engines.types import PlanReport
from embstore.errors import OutOfMemoryError

LINE_BYTES = 128
LINE_CELLS = 10
FIRST_LINES = 8
MOST_ROWS = 0xC0000000 - 3  # kMaxRows of core/types.h
MOST_LOAD, GROWN_LOAD = 0.8, 0.5  # of the index: when it grows, and afterwards
CACHE_PERCENT = 95  # of the cells of a cache have rows when it is full


def row_shape(spec: TableSpec, hbm_bytes: int | None = None) -> RowShape:
    """Return the shape of a table's rows: values, then slots, each at a multiple of 16 bytes."""
    slots_at = round_up(spec.dim * spec.stored_dtype.itemsize, 16)
    row_bytes = round_up(slots_at + 4 * spec.slot_floats, 16)
    return RowShape(slots_at, row_bytes, chunk_shift_for(row_bytes, hbm_bytes))


def lines_for(n_cells: int) -> int:
    """Return the buckets of an index that has just grown for so many cells."""
    return max(FIRST_LINES, -(-int(n_cells / GROWN_LOAD) // LINE_CELLS))


def has_room(n_lines: int, n_cells: int) -> bool:
    """Return whether an index holds so many cells without growing."""
    return n_cells <= n_lines * LINE_CELLS * MOST_LOAD


def cache_lines(max_rows: int) -> int:
    """Return the buckets of a cache."""
    return max(1, -(-max_rows * 100 // (CACHE_PERCENT * LINE_CELLS)))


def side_rows_for(capacity: int) -> int:
    """Return the rows that bitmaps and the list of free ids are made for."""
    return round_up(capacity + capacity // 2, 1024)


@dataclass
class TakenLog:
    """A change log that ended: its set of rows, for so many ids, and its removed keys.

    Whoever swaps rows meanwhile swaps their bits in it too.
    """

    dirty: Memory | None
    n_rows: int
    removed: Memory

    def cover(self, queue: Queue, n_rows: int) -> int:
        """Return the address of the set, with room for at least n ids; 0 if there is none."""
        if self.dirty is None:
            return 0
        if n_rows > self.n_rows:
            memory = queue.alloc(n_rows // 8)
            queue.fill(memory.address, 0, n_rows // 8)
            queue.copy(memory.address, self.dirty.address, self.n_rows // 8)
            self.dirty, self.n_rows = memory, n_rows
        return self.dirty.address


class Counters:
    """What kernels have counted, as last downloaded; names are those of struct Counters."""

    NAMES = kernels.struct_fields("Counters")

    def __init__(self) -> None:
        self.values = np.zeros(len(self.NAMES), np.uint64)

    def __getattr__(self, name: str) -> int:
        try:
            return int(self.values[list(self.NAMES).index(name)])
        except ValueError:
            raise AttributeError(name) from None

    @property
    def n_gone(self) -> int:
        """Rows and candidates that ever left the index."""
        return self.n_removals + self.n_candidates_expired

    def as_dict(self) -> dict[str, int]:
        """Return all of them by name."""
        return dict(zip(self.NAMES, self.values.tolist(), strict=True))


def rounded_default(spec: TableSpec) -> NDArray[np.float32]:
    """Return the default row (dim,) as keys without a row read it: rounded to the dtype."""
    default = spec.default_values()
    if default is None:
        return np.zeros(spec.dim, np.float32)
    if spec.dtype == "bfloat16":
        return arrays.bfloat16_to_float32(arrays.float32_to_bfloat16(default))
    with np.errstate(over="ignore"):
        return default.astype(spec.stored_dtype).astype(np.float32)


class Storage:
    """One table's memory. Belongs to whoever holds the engine's lock."""

    def __init__(
        self,
        spec: TableSpec,
        device: Device,
        launcher: Launcher,
        config: dict[str, Any],
        hbm_bytes: int | None = None,
    ) -> None:
        self.spec = spec
        self.device = device
        self.launcher = launcher
        self.hbm_bytes = hbm_bytes
        self.shape = row_shape(spec, hbm_bytes)
        self.chunks = RowChunks(launcher, device, self.shape, hbm_bytes)
        self.n_lines = 0
        self.n_gone_at_rehash = 0  # rows and candidates that had left when the index was made
        alloc = launcher.alloc
        self._names = kernels.struct_fields("TableView")
        self._descriptor = alloc(8 * len(self._names))
        self._counters = alloc(self.counters_bytes)
        launcher.queue.fill(self._counters.address, 0, self.counters_bytes)
        self._default_row = alloc(4 * spec.dim)
        launcher.queue.upload(self._default_row.address, rounded_default(spec))
        self.bloom_bytes = N_PARTITIONS * spec.bloom_bytes
        self._bloom = alloc(max(self.bloom_bytes, 1))
        launcher.queue.fill(self._bloom.address, 0, max(self.bloom_bytes, 1))
        self._first_lines = FIRST_LINES
        if spec.is_cache:
            assert spec.max_rows is not None
            self._first_lines = cache_lines(spec.max_rows)
        self._lines = self._new_lines(self._first_lines)
        self._side: dict[str, Memory] = {}
        self._side_rows = 0
        self._removed = alloc(8)
        self._removed_capacity = 1
        self._config = config
        self._derived = self._derive(config)
        self._fields = self._constants(config)
        self.reserve_rows(spec.max_rows or 1 if spec.is_cache else 1)

    # ---- the descriptor

    @property
    def view(self) -> int:
        """Address of the descriptor."""
        return self._descriptor.address

    @property
    def counters_bytes(self) -> int:
        """Bytes of the counters."""
        return 8 * len(Counters.NAMES)

    @property
    def counters_address(self) -> int:
        """Address of the counters."""
        return self._counters.address

    @property
    def has_moments(self) -> bool:
        """Whether the optimizer keeps powers of its betas."""
        return bool(self._derived["has_moments"])

    @property
    def hash_fields(self) -> dict[str, int]:
        """The keys of the index's hash, by the names that kernels give them."""
        return {name: v for name, v in self._derived.items() if name.startswith("hash_")}

    def _derive(self, config: dict[str, Any]) -> dict[str, int]:
        """Return what follows from the parameters by core's rules."""
        names = kernels.struct_fields("Derived")
        queue = self.launcher.queue
        text = np.frombuffer(config["name"] or b"\0", np.uint8)
        name, out = self.launcher.alloc(len(text)), self.launcher.alloc(8 * len(names))
        queue.upload(name.address, text)
        low, high = config["hash_seed"]
        self.launcher.run(
            "derive_table",
            1,
            name=name.address,
            n_name_bytes=len(config["name"]),
            seed=config["seed"],
            hash_seed_low=low,
            hash_seed_high=high,
            optimizer_kind=config["optimizer_kind"],
            optimizer_p0=config["optimizer_p"][0],
            dim=self.spec.dim,
            out=out.address,
        )
        values = np.empty(len(names), np.uint64)
        queue.download(out.address, values)
        return dict(zip(names, values.tolist(), strict=True))

    def _constants(self, config: dict[str, Any]) -> dict[str, int | float]:
        p = config["optimizer_p"]
        return {
            "dim": self.spec.dim,
            "value_dtype": config["value_dtype"],
            "is_stochastic": config["rounding"] == native.ROUNDINGS["stochastic"],
            "n_slots": self._derived["n_slots"],
            **self.shape._asdict(),
            "default_row": self._default_row.address,
            "is_cache": self.spec.is_cache,
            **self.hash_fields,
            "init_kind": config["init_kind"],
            "init_a": config["init_a"],
            "init_b": config["init_b"],
            "stream": self._derived["stream"],
            "n_accumulators": self._derived["n_accumulators"],
            "initial_accumulator": p[0],
            "admission_kind": config["admission_kind"],
            "min_count": config["min_count"],
            "candidate_epoch": 0,
            "bloom": self._bloom.address,
            "bloom_cell_bits": config["bloom_cell_bits"],
            "bloom_n_hashes": config["bloom_n_hashes"],
            "bloom_blocks_per_partition": config["bloom_blocks_per_partition"],
            "optimizer_kind": config["optimizer_kind"],
            **{f"optimizer_p{i}": p[i] for i in range(4)},
            "clip_norm": config["clip_norm"],
            "clip_value": config["clip_value"],
            "weight_decay": config["weight_decay"],
            "step_base": 0,
            "counters": self._counters.address,
            "cut": 0,
        }

    def set_clock(self, step_base: int | float, candidate_epoch: int | float) -> None:
        """Tell kernels the step base and the epoch of candidates."""
        old = self._fields["step_base"], self._fields["candidate_epoch"]
        if old != (step_base, candidate_epoch):
            self._fields |= {"step_base": step_base, "candidate_epoch": candidate_epoch}
            self.write_descriptor()

    def set_cut(self, cut: int) -> None:
        """Tell kernels of captured graphs of the snapshot that is being read; 0 is none."""
        self._fields["cut"] = cut
        self.write_descriptor()

    def write_descriptor(self) -> None:
        """Write the descriptor anew, in the queue's order."""
        tracked = self.spec.track_changes
        fields = self._fields | {
            "row_chunks": self.chunks.rows_address,
            "meta_chunks": self.chunks.metas_address,
            "live": self._side["live"].address,
            "dirty": self._side["dirty"].address if tracked else 0,
            "free_rows": self._side["free_rows"].address,
            "removed_keys": self._removed.address if tracked else 0,
            "lines": self._lines.address,
            "n_lines": self.n_lines,
        }
        self.launcher.queue.upload(self.view, packed(self._names, fields, "TableView"))

    # ---- counters

    def download_counters(self) -> Counters:
        """Return the counters as of all that was queued; waits."""
        counters = Counters()
        self.launcher.queue.download(self._counters.address, counters.values)
        return counters

    def upload_counters(self, **changes: int) -> None:
        """Set some of the counters."""
        for name, value in changes.items():
            at = self._counters.address + 8 * list(Counters.NAMES).index(name)
            self.launcher.queue.upload(at, np.array([value & 0xFFFFFFFFFFFFFFFF], np.uint64))

    # ---- rows

    @property
    def row_capacity(self) -> int:
        """Rows that there is memory for."""
        return self.chunks.n_rows

    def reserve_rows(self, n_ids: int) -> bool:
        """Make room for so many row ids; return whether anything grew.

        Raises
        ------
        OutOfMemoryError
            If the card, or the host, has no memory left; nothing has changed.
        """
        if n_ids <= self.row_capacity:
            return False
        if n_ids > MOST_ROWS:
            raise OutOfMemoryError(f"table {self.spec.name!r}: at most {MOST_ROWS} rows")
        capacity, n_side = self.shape.capacity_for(n_ids), self._side_rows
        side = self._side
        if capacity > n_side:
            n_side = side_rows_for(capacity)
            side = self._larger_side(n_side)
        self.chunks.grow(capacity)
        self._side, self._side_rows = side, n_side
        self.write_descriptor()
        return True

    def _larger_side(self, n_rows: int) -> dict[str, Memory]:
        """Return bitmaps and free ids in memory for n rows; new bits are zero."""
        queue = self.launcher.queue
        sizes = {"live": n_rows // 8, "free_rows": 4 * n_rows}
        if self.spec.track_changes:
            sizes["dirty"] = n_rows // 8
        side = {}
        for name, n_bytes in sizes.items():
            memory = self.launcher.alloc(n_bytes)
            queue.fill(memory.address, 0, n_bytes)
            old = self._side.get(name)
            if old is not None:
                queue.copy(memory.address, old.address, min(old.n_bytes, n_bytes))
            side[name] = memory
        return side

    def reserve_removed(self, n_keys: int, n_held: int) -> bool:
        """Make room for so many removed keys in the change log, which holds `n_held`."""
        if not self.spec.track_changes or n_keys <= self._removed_capacity:
            return False
        capacity = max(n_keys, 2 * self._removed_capacity)
        memory = self.launcher.alloc(8 * capacity)
        self.launcher.queue.copy(memory.address, self._removed.address, 8 * n_held)
        self._removed, self._removed_capacity = memory, capacity
        return True

    @property
    def removed_capacity(self) -> int:
        """Removed keys that the change log has room for."""
        return self._removed_capacity

    @property
    def side_rows(self) -> int:
        """Row ids that bitmaps are made for, a multiple of 1024."""
        return self._side_rows

    @property
    def removed_address(self) -> int:
        """Address of the removed keys of the change log."""
        return self._removed.address

    @property
    def live_address(self) -> int:
        """Address of the bitmap of live rows."""
        return self._side["live"].address

    @property
    def dirty_address(self) -> int:
        """Address of the bitmap of written rows; 0 without a change log."""
        return self._side["dirty"].address if self.spec.track_changes else 0

    @property
    def bloom_address(self) -> int:
        """Address of the filter."""
        return self._bloom.address

    def take_log(self) -> TakenLog:
        """End the change log and begin an empty one, but for the counter n_log."""
        if not self.spec.track_changes:
            return TakenLog(None, 0, self._removed)
        n_bytes = self._side_rows // 8
        fresh, removed = self.launcher.alloc(n_bytes), self.launcher.alloc(8)
        self.launcher.queue.fill(fresh.address, 0, n_bytes)
        taken = TakenLog(self._side["dirty"], self._side_rows, self._removed)
        self._side["dirty"] = fresh
        self._removed, self._removed_capacity = removed, 1
        self.write_descriptor()
        return taken

    def put_log_back(self, taken: TakenLog, n_removed: int, n_log: int, has_rows: bool) -> None:
        """Join a log that was taken, of so many removed keys, with the one since; rows are as then.

        The caller sets the counter n_log to the sum.
        """
        queue = self.launcher.queue
        self.reserve_removed(n_log + n_removed, n_log)
        queue.copy(self.removed_address + 8 * n_log, taken.removed.address, 8 * n_removed)
        if has_rows and taken.dirty is not None:
            n_words = min(taken.n_rows, self._side_rows) // 32
            self.launcher.run(
                "join_sets", n_words, n=n_words, other=taken.dirty.address, set=self.dirty_address
            )
        self.write_descriptor()

    # ---- the index

    def _new_lines(self, n_lines: int) -> Memory:
        memory = self.launcher.alloc(n_lines * LINE_BYTES)
        self.launcher.queue.fill(memory.address, 0, n_lines * LINE_BYTES)
        self.n_lines = n_lines
        return memory

    @property
    def n_cells(self) -> int:
        """Cells of the index."""
        return self.n_lines * LINE_CELLS

    @property
    def index_bytes(self) -> int:
        """Bytes of the index."""
        return self.n_lines * LINE_BYTES

    def reserve_cells(self, n_cells: int) -> bool:
        """Make room for so many cells in all; return whether the index grew."""
        if self.spec.is_cache or has_room(self.n_lines, n_cells):
            return False
        self.rehash(lines_for(n_cells))
        return True

    def rehash(self, n_lines: int) -> None:
        """Move all cells into a new index."""
        old, n_old = self._lines, self.n_lines
        try:
            self._lines = self._new_lines(n_lines)
        except OutOfMemoryError:
            self.n_lines = n_old
            raise
        self.write_descriptor()
        self.launcher.run(
            "move_lines", 8 * n_old, table=self.view, **{"from": old.address}, n=n_old
        )

    def clear(self) -> None:
        """Empty index, rows and filter; memory stays, but for the index."""
        queue = self.launcher.queue
        self._lines = self._new_lines(self._first_lines)
        queue.fill(self.live_address, 0, self._side_rows // 8)
        if self.bloom_bytes:
            queue.fill(self.bloom_address, 0, self.bloom_bytes)
        self.write_descriptor()

    def successor(self) -> "Storage":
        """Return an empty storage with this one's counters and change log, settled by a clear."""
        fresh = Storage(self.spec, self.device, self.launcher, self._config, self.hbm_bytes)
        queue = self.launcher.queue
        queue.copy(fresh.counters_address, self.counters_address, self.counters_bytes)
        fresh._removed, fresh._removed_capacity = self._removed, self._removed_capacity
        fresh.set_clock(self._fields["step_base"], self._fields["candidate_epoch"])
        fresh.write_descriptor()
        return fresh

    # ---- bytes

    def index_growth_bytes(self, n_cells: int) -> int:
        """Return the bytes that reserve_cells would take beside those held."""
        has_all = self.spec.is_cache or has_room(self.n_lines, n_cells)
        return 0 if has_all else lines_for(n_cells) * LINE_BYTES

    def rows_bytes_for(self, n_ids: int) -> int:
        """Return the bytes of rows and what goes with them, with so many row ids."""
        capacity = max(self.row_capacity, self.shape.capacity_for(n_ids))
        side = max(self._side_rows, side_rows_for(capacity) if capacity > self._side_rows else 0)
        return rows_bytes(self.shape, capacity, side, self.spec.track_changes)

    @property
    def own_bytes(self) -> int:
        """Bytes beside rows and index."""
        held = (self._descriptor, self._counters, self._default_row, self._removed)
        return sum(memory.n_bytes for memory in held) + self.chunks.list_bytes

    def bytes_by_use(self) -> dict[str, int]:
        """Return nbytes_* of ``es_stats``."""
        shape, n_bits = self.shape, 2 if self.spec.track_changes else 1
        return {
            "nbytes_index": self.n_lines * LINE_BYTES,
            "nbytes_meta": self.row_capacity * META_BYTES
            + self._side_rows * 4
            + n_bits * self._side_rows // 8,
            "nbytes_values": self.row_capacity * shape.slots_at,
            "nbytes_slots": self.row_capacity * (shape.row_bytes - shape.slots_at),
            "nbytes_bloom": self.bloom_bytes,
            "nbytes_other": self.own_bytes + self.launcher.scratch_bytes,
        }


def rows_bytes(shape: RowShape, capacity: int, side_rows: int, has_log: bool) -> int:
    """Return the bytes of rows, records, bitmaps and free ids."""
    n_bits = 2 if has_log else 1
    return capacity * (shape.row_bytes + META_BYTES) + side_rows * 4 + n_bits * side_rows // 8


def plan(
    spec: TableSpec, n_rows: int, n_candidates: int, hbm_bytes: int | None = None
) -> PlanReport:
    """Return the bytes at rest, and at the peak of the last growth, of rows and candidates."""
    shape = row_shape(spec, hbm_bytes)
    is_cache = spec.is_cache and spec.max_rows is not None
    capacity = shape.capacity_for(spec.max_rows or 0 if is_cache else n_rows)
    log_bytes = 8 if spec.track_changes else 0
    fixed = (
        rows_bytes(shape, capacity, side_rows_for(capacity), spec.track_changes)
        + N_PARTITIONS * spec.bloom_bytes
        + list_bytes_for(-(-capacity // shape.chunk_rows))
        + 4 * spec.dim
        + log_bytes
    )
    if is_cache:  # which takes all at once, and never grows
        resting = fixed + cache_lines(spec.max_rows or 0) * LINE_BYTES
        return PlanReport(resting, resting)
    n_cells = n_rows + n_candidates
    resting = lines_for(n_cells) * LINE_BYTES
    grown = int(lines_for(n_cells) * GROWN_LOAD / MOST_LOAD) * LINE_BYTES
    host_bytes = shape.host_bytes_for(capacity, hbm_bytes)
    return PlanReport(fixed + resting, fixed + resting + grown, host_bytes)
