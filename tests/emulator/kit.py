"""A launcher on an emulated card, arrays and tables on it, and what every test of it ends with."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from reference.floats import from_bits16, narrow, to_bits16
from reference.optimizers import slot_floats

from embstore.engines import kernels, native
from embstore.engines.cuda.batch import Distinct
from embstore.engines.cuda.launch import Launcher, packed

from .device import EmulatedDevice

SEEDS = (0, 1, 2)  # 0 is fast, the others interleave


class Card:
    """An emulated device, and arrays in its memory by their addresses."""

    def __init__(self, seed=0, max_blocks=4):
        self.device = EmulatedDevice(seed=seed, max_blocks=max_blocks)
        self.queue = self.device.queue()
        self.launcher = Launcher(self.queue)
        self._held = []

    def put(self, values, dtype=None):
        """Return the address of a copy of an array."""
        values = np.ascontiguousarray(values, dtype)
        memory = self.queue.alloc(values.nbytes)
        self._held.append(memory)
        if values.nbytes:
            self.queue.upload(memory.address, values)
        return memory.address

    def room(self, shape, dtype):
        """Return the address of an uninitialized array."""
        memory = self.queue.alloc(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        self._held.append(memory)
        return memory.address

    def get(self, address, shape, dtype):
        """Return a copy of an array of the device."""
        out = np.empty(shape, dtype)
        if out.nbytes:
            self.queue.download(address, out)
        return out

    def check(self):
        """Raise AssertionError if anything wrote where it may not."""
        for memory in (*self._held, *self.launcher._scratch.values()):
            memory.check()
        assert self.device.violations == []


# ---- a table in the memory of a card

MASK64 = 2**64 - 1
NO_ROW = 0xFFFFFFFF
LINE = np.dtype([("key", "<u8", 10), ("word", "<u4", 10), ("reserved", "<u4"), ("spilled", "<u4")])
META = np.dtype([("key", "<u8"), ("step", "<u4"), ("freq", "<u4")])
FIRST_ROW_WORD = 3


@dataclass(frozen=True)
class Shape:
    """What a row of a `HandTable` is."""

    dim: int
    optimizer: object
    dtype: str = "float32"
    rounding: str = "nearest"
    chunk_shift: int = 3

    @property
    def n_slots(self):
        return slot_floats(self.optimizer, self.dim)

    @property
    def slots_at(self):
        return -(-self.dim * (4 if self.dtype == "float32" else 2) // 16) * 16

    @property
    def row_bytes(self):
        return -(-(self.slots_at + 4 * self.n_slots) // 16) * 16


class HandTable:
    """A table whose rows and index numpy has filled; row ids are shuffled.

    All buckets are marked as spilled and keys lie in any, so that a search goes through them all.
    """

    STREAM = 0x1234567890ABCDEF

    def __init__(self, card, shape, keys, seed=7, default_row=None, init=(1, -0.5, 0.5)):
        self.card, self.shape, self.keys = card, shape, np.asarray(keys, np.int64)
        random = np.random.default_rng(seed)
        n = len(self.keys)
        self.n_ids = n + 5
        self.row_of = random.permutation(self.n_ids)[:n].astype(np.uint32)
        self.values = narrow(random.standard_normal((n, shape.dim)).astype(np.float32), shape.dtype)
        self.slots = np.abs(random.standard_normal((n, shape.n_slots))).astype(np.float32)
        self.meta = np.zeros(self.n_ids, META)
        self.meta["key"][self.row_of] = self.keys.view(np.uint64)
        self.meta["step"] = random.integers(0, 10, self.n_ids)
        self.live = np.zeros(-(-self.n_ids // 32) * 32, np.uint8)
        self.live[self.row_of] = 1
        self.counters = card.put(np.zeros(len(fields_of("Counters"))), np.uint64)
        self._upload(init, np.zeros(shape.dim) if default_row is None else default_row)

    def _upload(self, init, default_row):
        card, shape = self.card, self.shape
        per_chunk = 1 << shape.chunk_shift
        self.n_chunks = -(-self.n_ids // per_chunk)
        rows = np.full((self.n_chunks * per_chunk, shape.row_bytes), 0xA5, np.uint8)
        rows[self.row_of, : self._value_bytes] = self._stored(self.values)
        slots_end = shape.slots_at + 4 * shape.n_slots
        rows[self.row_of, shape.slots_at : slots_end] = self.slots.view(np.uint8)
        meta = np.zeros(self.n_chunks * per_chunk, META)
        meta[: self.n_ids] = self.meta
        self.row_chunks = [card.put(c) for c in np.split(rows, self.n_chunks)]
        self.meta_chunks = [card.put(c) for c in np.split(meta, self.n_chunks)]
        live = np.packbits(self.live, bitorder="little")
        self.live_at, self.dirty = card.put(live), card.put(np.zeros_like(live))
        self.lines = card.put(self._lines())
        self.set_counters(n_ids=self.n_ids, n_live=len(self.keys))
        self.view = card.put(packed(fields_of("TableView"), self._fields(init, default_row), ""))

    @property
    def _value_bytes(self):
        return self.shape.dim * (4 if self.shape.dtype == "float32" else 2)

    def _stored(self, values):
        if self.shape.dtype == "float32":
            return values.view(np.uint8)
        return to_bits16(values, self.shape.dtype).view(np.uint8).reshape(len(values), -1)

    def _lines(self):
        lines = np.zeros(-(-len(self.keys) // 7) + 1, LINE)
        lines["spilled"] = 1
        for i, (key, row) in enumerate(zip(self.keys.view(np.uint64), self.row_of, strict=True)):
            lines[i // 7]["key"][i % 7] = key
            lines[i // 7]["word"][i % 7] = row + FIRST_ROW_WORD
        return lines

    def _fields(self, init, default_row):
        card, shape = self.card, self.shape
        optimizer = native._optimizer(SimpleNamespace(optimizer=shape.optimizer))
        p = optimizer.pop("optimizer_p")
        given = {
            **{
                "dim": shape.dim,
                "value_dtype": native.DTYPES[shape.dtype],
                "n_slots": shape.n_slots,
            },
            **{"is_stochastic": shape.rounding == "stochastic", "slots_at": shape.slots_at},
            **{"row_bytes": shape.row_bytes, "chunk_shift": shape.chunk_shift},
            **{"row_chunks": card.put(self.row_chunks, np.uint64)},
            **{"meta_chunks": card.put(self.meta_chunks, np.uint64)},
            **{"live": self.live_at, "dirty": self.dirty, "counters": self.counters},
            **{"default_row": card.put(default_row, np.float32), "lines": self.lines},
            **{"n_lines": -(-len(self.keys) // 7) + 1, "stream": self.STREAM},
            **dict(zip(("init_kind", "init_a", "init_b"), init, strict=True)),
            **{f"optimizer_p{i}": p[i] for i in range(4)},
            **optimizer,
        }
        return dict.fromkeys(fields_of("TableView"), 0) | given

    def set_counters(self, **counters):
        names = list(fields_of("Counters"))
        values = self.card.get(self.counters, len(names), np.uint64)
        for name, value in counters.items():
            values[names.index(name)] = value
        self.card.queue.upload(self.counters, values)

    def read_counters(self):
        names = list(fields_of("Counters"))
        return dict(zip(names, self.card.get(self.counters, len(names), np.uint64), strict=True))

    def set_key(self, row, key):
        """Let the record of a row id name a key."""
        chunk, place = divmod(int(row), 1 << self.shape.chunk_shift)
        at = self.meta_chunks[chunk] + META.itemsize * place
        self.card.queue.upload(at, np.array([key], np.int64))

    def rows(self):
        """Return (values, slots, steps) of the keys, as the card has them."""
        shape = self.shape
        each = (1 << shape.chunk_shift, shape.row_bytes)
        rows = np.concatenate([self.card.get(c, each, np.uint8) for c in self.row_chunks])
        metas = np.concatenate([self.card.get(c, each[0], META) for c in self.meta_chunks])
        rows = rows[self.row_of]
        values = np.ascontiguousarray(rows[:, : self._value_bytes])
        slots = np.ascontiguousarray(rows[:, shape.slots_at : shape.slots_at + 4 * shape.n_slots])
        if shape.dtype == "float32":
            values = values.view(np.float32)
        else:
            values = from_bits16(values.view(np.uint16), shape.dtype)
        slots = slots.view(np.float32) if shape.n_slots else self.slots
        return values, slots, metas["step"][self.row_of]

    def written(self):
        """Return the keys in the change log, as booleans."""
        bits = self.card.get(self.dirty, len(self.live) // 8, np.uint8)
        return np.unpackbits(bits, bitorder="little")[self.row_of].astype(bool)

    def batch(self, keys, status=None):
        """Return the distinct keys of a batch, by first occurrence, and the numpy side of them."""
        keys = np.asarray(keys, np.int64)
        unique, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        order = np.argsort(first)
        unique, inverse = unique[order], np.argsort(order)[inverse].astype(np.uint32)
        place = {int(key): i for i, key in enumerate(self.keys)}
        places = np.array([place.get(int(key), -1) for key in unique], np.int64)
        rows = np.where(places < 0, NO_ROW, self.row_of[places]).astype(np.uint32)
        if status is None:
            status = np.where(places < 0, 2, 0)
        distinct = Distinct(self.card.launcher, len(keys))
        queue = self.card.queue
        queue.upload(distinct.n_unique, np.array([len(unique)], np.uint64))
        for at, values, dtype in (
            (distinct.keys, unique, np.int64),
            (distinct.inverse, inverse, np.uint32),
            (distinct.rows, rows, np.uint32),
            (distinct.status, status, np.uint8),
        ):
            if len(values):
                queue.upload(at, np.ascontiguousarray(values, dtype))
        return distinct, SimpleNamespace(keys=unique, inverse=inverse, places=places, rows=rows)


def fields_of(struct):
    return kernels.struct_fields(struct)


def same_bits(a, b):
    """Whether two float32 arrays are the same bits."""
    a, b = np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32)
    return a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))
