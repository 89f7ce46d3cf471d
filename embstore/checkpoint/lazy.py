"""Blocks that are verified when they are first touched, each once, whoever comes first.

1. Nothing of a block is believed, and none of its bytes is read, before it is SOUND.
2. A block is verified by one thread; others that need it wait for that one alone.
3. The entries of a SOUND block are written before its state is.
4. A fault of a file's header or footer, and of the order of its blocks, is one of all its blocks.
"""

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from embstore.checkpoint.blocks import (
    Arrays,
    LayoutError,
    Section,
    check_header,
    check_sum,
    decode_block,
    padded,
)
from embstore.checkpoint.entries import FileEntry
from embstore.checkpoint.layout import Columns
from embstore.checkpoint.partition import order_fault, partition_of
from embstore.errors import CorruptCheckpointError

UNTOUCHED, SOUND, DAMAGED = 0, 1, 2
N_LOCKS = 16  # blocks that can be verified at one time

# Of the arrays of a block of partitions [first, last]: what is wrong, and rows that are not finite.
Check = Callable[[Arrays, int, int], tuple[str | None, int]]
Ints = NDArray[np.int64]


class Live(NamedTuple):
    """The blocks that are not known to be damaged, and where those of each file begin."""

    blocks: Ints
    begins: Ints


class Verified(NamedTuple):
    """What is remembered of a sound block."""

    body: int
    keys: NDArray[np.int64]  # the first and the last
    partitions: NDArray[np.uint8]
    n_nonfinite: int


class LazyBlocks:
    """The blocks of one kind of files in one layer of a table, numbered through.

    Attributes
    ----------
    memory : (n,) uint8
        The mapped files.
    n_rows : (n_blocks,) int64
    file_first, file_last : (n_files + 1,) int16
        Partitions of each file; at the end a file that holds none.
    state : (n_blocks,) uint8
    bodies : (n_blocks,) int64
        Where the columns begin in `memory`. This and the next are of sound blocks alone.
    first_key, last_key, first_partition, last_partition : (n_blocks,)
    live : Live
        Replaced, never changed, when damage is found.
    """

    def __init__(
        self,
        memory: NDArray[np.uint8],
        files: list[FileEntry],
        starts: list[int],
        columns: Columns,
        check: Check,
        n_nonfinite: int,
        path_of: Callable[[str], str],
    ) -> None:
        self.memory = memory
        self.files = files
        self.columns = columns
        self._numbers = {file.name: i for i, file in enumerate(files)}
        self._starts = starts
        self._check = check
        self._n_nonfinite_left = n_nonfinite
        self._path_of = path_of
        sections = [section for file in files for section in file.sections[1:-1]]
        counts = [len(file.sections) - 2 for file in files]
        self.n_rows = np.array([section.n_rows for section in sections], np.int64)
        self._begins = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        self._offsets = _offsets(files)
        self.file_first = np.array([*(file.first for file in files), 256], np.int16)
        self.file_last = np.array([*(file.last for file in files), 256], np.int16)
        n = len(sections)
        self.state = np.zeros(n, np.uint8)
        self.bodies = np.zeros(n, np.int64)
        self.first_key, self.last_key = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.first_partition, self.last_partition = np.zeros(n, np.uint8), np.zeros(n, np.uint8)
        self.live = Live(np.arange(n), self._begins)
        self.n_bytes = sum(file.n_bytes for file in files)
        self.n_bytes_verified = 0
        self._faults: dict[int, str] = {}
        self._file_faults: dict[int, str | None] = {}
        self._make_locks()
        _ALL.add(self)

    def _make_locks(self) -> None:
        self._lock = threading.Lock()
        self._block_locks = [threading.Lock() for _ in range(N_LOCKS)]

    @property
    def n_blocks(self) -> int:
        """Blocks of all files."""
        return len(self.state)

    @property
    def n_touched(self) -> int:
        """Blocks that were verified, sound or not."""
        return int(np.count_nonzero(self.state))

    @property
    def has_damage(self) -> bool:
        """Whether any damage was found so far."""
        return bool(self._faults)

    def bounds(self, i: int) -> tuple[int, int]:
        """Return the first block of file i, and the one after its last."""
        return int(self._begins[i]), int(self._begins[i + 1])

    def touch(self, blocks: Ints) -> bool:
        """Verify those of `blocks` that nobody has touched; return whether all are sound."""
        states = self.state[blocks]
        if (states == SOUND).all():
            return True
        for block in np.unique(blocks[states == UNTOUCHED]).tolist():
            self._verify(block)
        return bool((self.state[blocks] == SOUND).all())

    def require(self, block: int) -> None:
        """Verify a block; raise CorruptCheckpointError if it is damaged."""
        self._verify(block)
        if block in self._faults:
            raise CorruptCheckpointError(self._faults[block])

    def damaged_between(self, begin: int, end: int) -> int | None:
        """Return the first of blocks [begin, end) that is known to be damaged."""
        return min((block for block in self._faults if begin <= block < end), default=None)

    def column_starts(self, blocks: Ints) -> dict[str, Ints]:
        """Return where each column of some sound blocks begins in `memory`."""
        starts, n_rows, start = {}, self.n_rows[blocks], self.bodies[blocks]
        for column in self.columns:
            starts[column.name] = start
            start = start + padded(n_rows * column.row_bytes)
        return starts

    def blocks_of(self, file: FileEntry) -> Iterator[tuple[int, Arrays]]:
        """Yield offset and columns of each block of a file, verified; its header even if empty."""
        i = self._numbers[file.name]
        fault = self._fault_of_file(i)
        if fault is not None:
            raise CorruptCheckpointError(fault)
        for block in range(*self.bounds(i)):
            self.require(block)
            yield int(self._offsets[block]), self._decoded(i, block)

    def _verify(self, block: int) -> None:
        """Verify a block, unless that was done; what is found is kept."""
        with self._block_locks[block % N_LOCKS]:
            if self.state[block] != UNTOUCHED:
                return
            i = int(np.searchsorted(self._begins, block, side="right")) - 1
            found, fault = None, self._fault_of_file(i)
            if fault is None:
                try:
                    found = self._examined(i, block)
                except LayoutError as error:
                    fault = self._told(i, int(self._offsets[block]), error)
            self._publish(i, block, found, fault)

    def _data(self, i: int, offset: int, n_bytes: int) -> memoryview:
        begin = self._starts[i] + offset
        return self.memory[begin : begin + n_bytes].data

    def _section(self, i: int, block: int) -> Section:
        return self.files[i].sections[1 + block - int(self._begins[i])]

    def _decoded(self, i: int, block: int) -> list[NDArray[Any]]:
        section = self._section(i, block)
        data = self._data(i, int(self._offsets[block]), section.n_bytes)
        return decode_block(data, section.n_rows, self.columns)

    def _examined(self, i: int, block: int) -> Verified:
        """Return what a block holds; raise LayoutError if it is not what was saved."""
        file, section, offset = self.files[i], self._section(i, block), int(self._offsets[block])
        check_sum(self._data(i, offset, section.n_bytes), section.crc, file.name, offset)
        arrays = self._decoded(i, block)
        if offset % 8:
            raise LayoutError("the section does not begin at a multiple of 8")
        fault, n_nonfinite = self._check(arrays, file.first, file.last)
        if fault is not None:
            raise LayoutError(fault)
        ends = arrays[0][[0, -1]]
        body = arrays[0].ctypes.data - self.memory.ctypes.data
        return Verified(body, ends, partition_of(ends), n_nonfinite)

    def _fault_of_file(self, i: int) -> str | None:
        """Return what is wrong with the header or the footer of file i."""
        with self._lock:
            if i not in self._file_faults:
                self._file_faults[i] = self._examined_file(i)
            return self._file_faults[i]

    def _examined_file(self, i: int) -> str | None:
        file = self.files[i]
        for section, offset in ((0, 0), (-1, file.n_bytes - file.sections[-1].n_bytes)):
            n_bytes, _, crc = file.sections[section]
            data = self._data(i, offset, n_bytes)
            self.n_bytes_verified += n_bytes
            try:
                check_sum(data, crc, file.name, offset)
                if offset == 0:
                    check_header(data, self.columns)
            except LayoutError as error:
                return self._told(i, offset, error)
        return None

    def _told(self, i: int, offset: int, fault: object) -> str:
        return f"{self._path_of(self.files[i].name)}, offset {offset}: {fault}"

    def _publish(self, i: int, block: int, found: Verified | None, fault: str | None) -> None:
        """Note what a block was found to be; the order of its file is the last check."""
        with self._lock:
            self.n_bytes_verified += self._section(i, block).n_bytes
            if self.state[block] != UNTOUCHED:  # the order of its file was found wrong meanwhile
                return
            offset = int(self._offsets[block])
            if found is not None and found.n_nonfinite > self._n_nonfinite_left:
                n, left = found.n_nonfinite, self._n_nonfinite_left
                fault = self._told(i, offset, f"{n} rows have NaN or infinity; {left} were saved")
            if found is None or fault is not None:
                self._give_up(range(block, block + 1), str(fault))
                return
            disorder = self._disorder(i, block, found)
            if disorder is not None:
                self._give_up(range(*self.bounds(i)), self._told(i, offset, disorder))
                return
            self._n_nonfinite_left -= found.n_nonfinite
            self.bodies[block] = found.body
            self.first_key[block], self.last_key[block] = found.keys
            self.first_partition[block], self.last_partition[block] = found.partitions
            self.state[block] = SOUND

    def _give_up(self, blocks: range, fault: str) -> None:
        """Take blocks as damaged: a fault of one, or the order of a file, which is one of all."""
        for block in blocks:
            self._faults.setdefault(block, fault)
        self.state[blocks.start : blocks.stop] = DAMAGED
        rest = np.flatnonzero(self.state != DAMAGED)
        self.live = Live(rest, np.searchsorted(rest, self._begins))

    def _disorder(self, i: int, block: int, found: Verified) -> str | None:
        """Return what is wrong with the order of a block and its neighbours that are sound."""
        (first, last), (low, high) = found.keys.tolist(), found.partitions.tolist()
        begin, end = self.bounds(i)
        before, after = block - 1, block + 1
        if before >= begin and self.state[before] == SOUND:
            key = int(self.last_key[before])
            if (int(self.last_partition[before]), key) >= (low, first):
                return order_fault(first, key, 0, 255)
        if after < end and self.state[after] == SOUND:
            key = int(self.first_key[after])
            if (int(self.first_partition[after]), key) <= (high, last):
                return order_fault(key, last, 0, 255)
        return None


def _offsets(files: list[FileEntry]) -> Ints:
    """Return the offset of each block in its file."""
    parts = [np.empty(0, np.int64)]
    for file in files:
        n_bytes = np.array([section.n_bytes for section in file.sections[:-1]], np.int64)
        parts.append(np.cumsum(n_bytes)[:-1])
    return np.concatenate(parts)


_ALL: weakref.WeakSet[LazyBlocks] = weakref.WeakSet()


def _renew_locks() -> None:
    """Replace locks that another thread may have held when this child was forked."""
    for blocks in list(_ALL):
        blocks._make_locks()


os.register_at_fork(after_in_child=_renew_locks)
