"""Parquet files to numpy batches: sharded, shuffled, read ahead, and resumable at any batch.

The order of a shard's rows is a pure function of the files, the shard, the shuffle and the epoch.
A position in it is therefore two numbers, an epoch and a row; batch size and prefetch depth may
change between `state_dict` and `load_state_dict`. A reader and its iterator belong to one thread.
"""

import os
import warnings
import weakref
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import numpy as np

from embstore._prefetch import Prefetched
from embstore.data.batches import Batch, rebatch, row_count
from embstore.data.errors import ClosedReaderError
from embstore.data.files import ParquetFiles
from embstore.data.order import Shuffle, epoch_rows, shard_row_groups, shard_rows
from embstore.errors import ArgumentError, ArgumentTypeError, EmbstoreWarning

STATE_VERSION = 1


class ParquetReader:
    """Batches of numpy columns from Parquet files.

    Integer columns become int64 (uint64 as the same bits, booleans as 0 and 1), lists of them
    `Ragged`, float16 and float32 float32, float64 float64. Strings and bytes, in lists too, are
    hashed to int64 by `hash_strings`. int64, float and list values are not copied where a batch
    lies within one chunk of a file, and the arrays are then read-only. Times, decimals, structs,
    maps, lists of floats and nulls are refused.

    Iterating runs from the reader's position to the end of the epoch; then the position is the
    start of the next epoch. A loop that is left early is continued by the next one. Batches hold
    exactly `batch_size` rows, across the borders of row groups and files; the last one of an epoch
    may be shorter.

    Parameters
    ----------
    paths
        Local files, in the order in which they are read; a folder stands for its ``*.parquet`` by
        name.
    columns
        Names of top-level columns.
    batch_size
        Rows in a batch, at least 1.
    shard
        ``(i, n)``: this reader is number i of n, and reads its share of the row groups; every row
        belongs to exactly one. The row groups are dealt one by one to the shard with fewest rows.
    shuffle
        A `Shuffle`; None reads the rows in order.
    prefetch
        How many batches a background thread reads ahead; 0 reads in the calling thread.
    drop_last
        Leave out the last batch of an epoch if it is shorter.

    Raises
    ------
    DataFileError
        If a file is missing, or is not a whole Parquet file; while iterating, if it is corrupt.
    DataTypeError
        If a column has a type that cannot be read, or one that differs between files.
    DataError
        If a column is missing or there are two of its name; while iterating, if there is a null.
    ArgumentTypeError, ArgumentError
        If an argument has the wrong type, or is out of its range.

    Warns
    -----
    EmbstoreWarning
        If the shard has no rows because there are fewer row groups than shards.

    Examples
    --------
    >>> import tempfile, pyarrow as pa, pyarrow.parquet as pq
    >>> from embstore.data import ParquetReader
    >>> path = tempfile.mkdtemp() + "/clicks.parquet"
    >>> pq.write_table(pa.table({"user": [7, 7, 9], "label": [0, 1, 1]}), path)
    >>> for batch in ParquetReader(path, ["user", "label"], batch_size=2):
    ...     print(batch["user"], batch["label"])
    [7 7] [0 1]
    [9] [1]
    """

    def __init__(
        self,
        paths: "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]",
        columns: Sequence[str],
        batch_size: int,
        *,
        shard: tuple[int, int] = (0, 1),
        shuffle: Shuffle | None = None,
        prefetch: int = 4,
        drop_last: bool = False,
    ) -> None:
        self.batch_size = _checked_int("batch_size", batch_size, 1)
        self.prefetch = _checked_int("prefetch", prefetch, 0)
        self.shard = _checked_shard(shard)
        if shuffle is not None and not isinstance(shuffle, Shuffle):
            raise ArgumentTypeError(f"shuffle must be a Shuffle or None, not {shuffle!r}")
        self.shuffle = shuffle
        self.drop_last = bool(drop_last)
        self.files = ParquetFiles(paths, columns)
        everything = self.files.row_groups
        self._groups = shard_row_groups(everything, *self.shard)
        self._epoch, self._row = 0, 0
        self._iterator: weakref.ref[BatchIterator] | None = None
        if everything and not self._groups:
            warnings.warn(
                f"shard {self.shard} has no rows: the files have {len(everything)} row groups",
                EmbstoreWarning,
                stacklevel=2,
            )

    @property
    def schema(self) -> dict[str, str]:
        """What each column holds: ``int64``, ``float32``, ``float64``, ``string`` or a list."""
        return {name: str(kind) for name, kind in self.files.types.items()}

    @property
    def n_rows(self) -> int:
        """The rows of this shard."""
        return sum(group.n_rows for group in self._groups)

    def shard_rows(self, n_shards: int) -> list[int]:
        """Return the rows that each of n shards of these files would have."""
        return shard_rows(self.files.row_groups, _checked_int("n_shards", n_shards, 1))

    @property
    def epoch(self) -> int:
        """How many epochs have been read to their end."""
        return self._epoch

    @property
    def row(self) -> int:
        """How many rows of this epoch have been handed out."""
        return self._row

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        full, rest = divmod(self.n_rows, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> "BatchIterator":
        self._close_iterator()
        iterator = BatchIterator(self)
        self._iterator = weakref.ref(iterator)
        return iterator

    def state_dict(self) -> dict[str, Any]:
        """Return the position behind the last batch handed out, as values that JSON holds."""
        return {**self._identity(), "epoch": self._epoch, "row": self._row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a position that `state_dict` gave, for the same files, shard and shuffle.

        Raises
        ------
        ArgumentError
            If the state is of other data, another shard or shuffle, or malformed; the position is
            then as it was.
        """
        if not isinstance(state, Mapping):
            raise ArgumentTypeError(f"a reader's state must be a dict, not {type(state).__name__}")
        for name, here in self._identity().items():
            if name not in state:
                raise ArgumentError(f"the reader's state lacks {name!r}")
            if state[name] != here:
                raise ArgumentError(
                    f"the reader's state is of other data: its {name} is {state[name]!r}, "
                    f"here it is {here!r}"
                )
        epoch, row = (_checked_int(name, state.get(name), 0) for name in ("epoch", "row"))
        if row > self.n_rows:
            raise ArgumentError(f"the reader's state is at row {row} of {self.n_rows}")
        self._close_iterator()
        self._epoch, self._row = epoch, row

    def _identity(self) -> dict[str, Any]:
        shuffle = self.shuffle and [self.shuffle.seed, self.shuffle.buffer_rows]
        return {
            "version": STATE_VERSION,
            "data": self.files.digest,
            "shard": list(self.shard),
            "shuffle": shuffle,
        }

    def _close_iterator(self) -> None:
        iterator = None if self._iterator is None else self._iterator()
        if iterator is not None:
            iterator.close()

    def _advance(self, n_rows: int) -> None:
        self._row += n_rows

    def _finish_epoch(self) -> None:
        self._epoch, self._row = self._epoch + 1, 0


class BatchIterator(AbstractContextManager["BatchIterator"]):
    """The batches of a reader from its position to the end of the epoch; made by ``iter(reader)``.

    A thread may read ahead for it. It ends when the iterator is exhausted, closed (also by
    ``with``) or dropped, and when the reader starts another one or changes its position.
    """

    def __init__(self, reader: ParquetReader) -> None:
        self._reader = reader
        batches = _batches(reader)
        self._source = Prefetched(batches, reader.prefetch) if reader.prefetch else batches
        self._is_exhausted = self._is_closed = False

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Batch:
        if self._is_exhausted:
            raise StopIteration
        if self._is_closed:
            raise ClosedReaderError(
                "this iterator was closed, or its reader has started another one"
            )
        try:
            batch = next(self._source)
        except StopIteration:
            self._is_exhausted = True
            self._reader._finish_epoch()
            raise
        except BaseException:
            self.close()
            raise
        self._reader._advance(row_count(batch))
        return batch

    def close(self) -> None:
        """End the thread that reads ahead; the reader stays behind the last batch handed out."""
        self._is_closed = True
        self._source.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _batches(reader: ParquetReader) -> Generator[Batch, None, None]:
    """Return a generator that holds what the reader has now, and not the reader."""
    files, groups, shuffle = reader.files, reader._groups, reader.shuffle
    n_rows, n_least = reader.batch_size, reader.batch_size if reader.drop_last else 1
    rows = epoch_rows(files, groups, shuffle, reader.epoch, reader.row)
    return (batch for batch in rebatch(rows, n_rows) if row_count(batch) >= n_least)


def _checked_int(name: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ArgumentTypeError(f"{name} must be an int, not {value!r}")
    if value < least:
        raise ArgumentError(f"{name} must be at least {least}, not {value}")
    return int(value)


def _checked_shard(shard: object) -> tuple[int, int]:
    if not isinstance(shard, tuple | list) or len(shard) != 2:
        raise ArgumentTypeError(f"shard must be (i, n), number i of n readers, not {shard!r}")
    n_shards = _checked_int("the second number of shard", shard[1], 1)
    number = _checked_int("the first number of shard", shard[0], 0)
    if number >= n_shards:
        raise ArgumentError(f"shard {number} is not one of {n_shards}: they count from 0")
    return number, n_shards
