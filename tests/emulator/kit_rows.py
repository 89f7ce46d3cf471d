"""A table on an emulated card, laid out by hand from numpy, and read back."""

from dataclasses import dataclass, field

import numpy as np

from embstore.engines import kernels
from embstore.engines.cuda.launch import packed
from embstore.engines.cuda.row_bits import DeviceTable, set_bytes

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
LINE = np.dtype(
    [("key", "<u8", 10), ("word", "<u4", 10), ("reserved", "<u4"), ("has_spilled", "<u4")]
)
META = np.dtype([("key", "<u8"), ("step", "<u4"), ("freq", "<u4")])
COUNTERS = tuple(kernels.struct_fields("Counters"))
FIRST_ROW, FIRST_CANDIDATE = 3, 0xC0000000
MASK = (1 << 64) - 1
HASH = (0x1234567890ABCDEF, 0xFEDCBA0987654321, 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93)
EDGE_KEYS = (0, -1, -(2**63), 2**63 - 1, 1, -2)


def mix(z):
    z = (z + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
    return z ^ z >> 31


def fold(a, b):
    return (a * b & MASK) ^ (a * b >> 64)


def keyed_hash(key):
    first, second, by_first, by_second = HASH
    return fold(fold((key & MASK) ^ first, by_first) ^ second, by_second)


def lines_of_key(key, n_lines):
    """The lines that a key may lie in, in the order of the search."""
    hashed = keyed_hash(key)
    yield hashed * n_lines >> 64
    second = mix(hashed) * n_lines >> 64
    for i in range(n_lines):
        yield (second + i) % n_lines


def candidate_word(count, epoch):
    return FIRST_CANDIDATE | count << 18 | epoch & 0x3FFFF


def bits_of(rows, n_rows):
    """A set of rows as words."""
    is_in = np.zeros(-(-n_rows // 32) * 32, bool)
    is_in[np.asarray(rows, np.int64)] = True
    return np.packbits(is_in, bitorder="little").view(np.uint32)


def rows_of(words):
    """The rows of a set."""
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))


@dataclass
class Shape:
    dim: int = 4
    dtype: str = "float32"
    n_slots: int = 0
    chunk_shift: int = 5
    n_accumulators: int = 0
    has_log: bool = True
    fields: dict = field(default_factory=dict)  # of the view, beside these

    @property
    def stored(self):
        return np.dtype(DTYPES[self.dtype])

    @property
    def slots_at(self):
        return -(-self.dim * self.stored.itemsize // 16) * 16

    @property
    def row_bytes(self):
        return -(-(self.slots_at + 4 * self.n_slots) // 16) * 16


class CardTable:
    """Rows and candidates of a card; `ids` says which row ids are live, each with its columns."""

    def __init__(self, card, shape, ids, keys, values, slots, freq, step, n_ids, n_lines, base=0):
        self.card, self.shape, self.n_ids, self.n_lines = card, shape, n_ids, n_lines
        self.n_chunks = max(1, -(-n_ids // (1 << shape.chunk_shift)))
        rows_in_chunk = 1 << shape.chunk_shift
        n_room = self.n_chunks * rows_in_chunk
        rows = np.full((n_room, shape.row_bytes), 0xEE, np.uint8)
        metas = np.full(n_room, 77, META)
        width = shape.dim * shape.stored.itemsize
        rows[ids, :width] = np.ascontiguousarray(values, shape.stored).view(np.uint8)
        if shape.n_slots:
            begin, end = shape.slots_at, shape.slots_at + 4 * shape.n_slots
            rows[ids, begin:end] = np.ascontiguousarray(slots, np.float32).view(np.uint8)
        metas["key"][ids] = np.asarray(keys, np.int64).view(np.uint64)
        metas["step"][ids] = np.asarray(step, np.int64) - base
        metas["freq"][ids] = freq
        split = (self.n_chunks, rows_in_chunk)
        self._rows = [card.put(chunk) for chunk in rows.reshape(*split, -1)]
        self._metas = [card.put(chunk) for chunk in metas.reshape(split)]
        self.lines = np.zeros(n_lines, LINE)
        for key, row in zip(keys, ids, strict=True):
            self.place(int(key), FIRST_ROW + int(row))
        self.live_ids = np.asarray(ids)
        self.free_capacity = n_room + 8
        self.log_capacity = n_room + 8
        self.base = base
        self._put(card)

    def place(self, key, word):
        for number in lines_of_key(key, self.n_lines):
            line = self.lines[number]
            free = np.flatnonzero(line["word"] == 0)
            if len(free):
                line["key"][free[-1]], line["word"][free[-1]] = key & MASK, word
                return
            line["has_spilled"] = 1
        raise AssertionError("the index is full")

    def _put(self, card):
        shape = self.shape
        counters = dict.fromkeys(COUNTERS, 0)
        counters |= {"n_live": len(self.live_ids), "n_ids": self.n_ids}
        self.at = {
            "row_chunks": card.put(self._rows, np.uint64),
            "meta_chunks": card.put(self._metas, np.uint64),
            "live": card.put(bits_of(self.live_ids, max(1, self.n_ids))),
            "dirty": card.put(bits_of([], max(1, self.n_ids))) if shape.has_log else 0,
            "free_rows": card.put(np.full(self.free_capacity, 0xDEAD, np.uint32)),
            "removed_keys": card.put(np.full(self.log_capacity, 99, np.int64))
            if shape.has_log
            else 0,
            "counters": card.put([*counters.values()], np.uint64),
            "lines": card.put(self.lines),
        }
        self.view = card.room(len(kernels.struct_fields("TableView")), np.uint64)
        self.set_view()

    def set_view(self, **changes):
        """Write the descriptor, with these fields changed."""
        shape = self.shape
        shape.fields |= changes
        types = kernels.struct_fields("TableView")
        fields = dict.fromkeys(types, 0) | self.at
        fields |= {
            "dim": shape.dim,
            "value_dtype": list(DTYPES).index(shape.dtype),
            "n_slots": shape.n_slots,
            "slots_at": shape.slots_at,
            "row_bytes": shape.row_bytes,
            "chunk_shift": shape.chunk_shift,
            "n_lines": self.n_lines,
            "hash_first": HASH[0],
            "hash_second": HASH[1],
            "hash_first_multiplier": HASH[2],
            "hash_second_multiplier": HASH[3],
            "n_accumulators": shape.n_accumulators,
            "initial_accumulator": 0.5,
            "step_base": self.base,
        }
        self.card.queue.upload(self.view, packed(types, fields | shape.fields, "TableView"))

    @property
    def device_table(self):
        return DeviceTable(self.view, self.at["live"], self.n_ids, self.n_lines)

    # ---- what is there now

    def counters(self, **changes):
        """Return the counters by name; set those given beforehand."""
        values = self.card.get(self.at["counters"], len(COUNTERS), np.uint64)
        for name, value in changes.items():
            values[COUNTERS.index(name)] = value
        self.card.queue.upload(self.at["counters"], values)
        return dict(zip(COUNTERS, values.tolist(), strict=True))

    def set_of(self, name):
        n_words = set_bytes(max(1, self.n_ids)) // 4
        return rows_of(self.card.get(self.at[name], n_words, np.uint32))

    def put_set(self, name, rows):
        self.card.queue.upload(self.at[name], bits_of(rows, max(1, self.n_ids)))

    def metas(self):
        n = 1 << self.shape.chunk_shift
        return np.concatenate([self.card.get(at, n, META) for at in self._metas])

    def row_bytes(self):
        shape = (1 << self.shape.chunk_shift, self.shape.row_bytes)
        return np.concatenate([self.card.get(at, shape, np.uint8) for at in self._rows])

    def values(self):
        width = self.shape.dim * self.shape.stored.itemsize
        return np.ascontiguousarray(self.row_bytes()[:, :width]).view(self.shape.stored)

    def slots(self):
        begin = self.shape.slots_at
        end = begin + 4 * self.shape.n_slots
        return np.ascontiguousarray(self.row_bytes()[:, begin:end]).view(np.float32)

    def words(self):
        """Return the word of each key that has a cell."""
        lines = self.card.get(self.at["lines"], self.n_lines, LINE)
        found = {}
        for line in lines:
            for key, word in zip(line["key"].view(np.int64), line["word"], strict=True):
                if word:
                    assert int(key) not in found
                    found[int(key)] = int(word)
        return found

    def check_index(self):
        """Every live row, and no other, is named by the cell that a search for its key finds."""
        metas, live = self.metas(), self.set_of("live")
        expected = {int(metas["key"][r].view(np.int64)): FIRST_ROW + int(r) for r in live}
        words = self.words()
        assert {k: w for k, w in words.items() if w < FIRST_CANDIDATE} == expected
        lines = self.card.get(self.at["lines"], self.n_lines, LINE)
        for key in words:
            for number in lines_of_key(key, self.n_lines):
                line = lines[number]
                if ((line["key"] == np.uint64(key & MASK)) & (line["word"] != 0)).any():
                    break
                assert line["has_spilled"]


def random_table(card, shape, n_live, n_ids=None, seed=0, base=0, n_steps=8, n_lines=None):
    """Return a table of random rows: edge keys, ties in step and freq, holes in the ids."""
    random = np.random.default_rng(seed)
    n_ids = n_live if n_ids is None else n_ids
    keys = random.integers(-(2**63), 2**63, n_live, np.int64)
    keys[: len(EDGE_KEYS)] = EDGE_KEYS[:n_live]
    assert len(set(keys.tolist())) == n_live
    keys = random.permutation(keys)
    ids = np.sort(random.permutation(n_ids)[:n_live])
    values = some_values(random, n_live, shape)
    slots = random.standard_normal((n_live, shape.n_slots)).astype(np.float32)
    freq = random.integers(0, 5, n_live).astype(np.uint32)
    if n_live:
        freq[0] = 0xFFFFFFFF
    step = base + random.integers(0, n_steps, n_live) * 100
    n_lines = n_lines or max(1, n_live // 6)
    return CardTable(card, shape, ids, keys, values, slots, freq, step, n_ids, n_lines, base)


def some_values(random, n, shape):
    """Values as stored, of norms around 1, some of them tiny, infinite or none."""
    x = random.standard_normal((n, shape.dim)).astype(np.float32) / np.float32(shape.dim**0.5)
    x[1::7] *= np.float32(1e-30)
    if n > 9:
        x[3, 0], x[4, -1], x[5] = np.inf, np.nan, 0
    if shape.dtype == "bfloat16":
        return (x.view(np.uint32) >> 16).astype(np.uint16)
    return x.astype(shape.stored)
