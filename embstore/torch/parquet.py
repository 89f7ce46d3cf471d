"""Parquet files to batches of tensors: dealt to ranks and workers, resumable at any batch.

1. Worker w of n of rank r of m reads shard ``w * m + r`` of ``n * m``, whole row groups; every row
   belongs to exactly one.
2. The order of a shard is a pure function of files, shuffle and epoch, and a loader takes a batch
   from each worker in turn (parquet_loader.py).
"""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from embstore.data import (
    Batch,
    Column,
    DataError,
    ParquetReader,
    Ragged,
    Shuffle,
)
from embstore.errors import ArgumentError, ArgumentTypeError, EmbstoreWarning
from embstore.torch.inputs import Jagged
from embstore.torch.parquet_arguments import (
    check_dtype,
    check_ranks,
    columns_to_read,
    nothing_of,
    parse,
)

if TYPE_CHECKING:
    from embstore.torch.parquet_loader import ParquetLoader

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Tensors = dict[str, torch.Tensor | Jagged]

STATE_VERSION = 1


class ParquetDataset(IterableDataset):
    """Batches of Parquet columns as tensors, for a ``DataLoader`` or as they are.

    Yields dicts of whole batches: int64 (integers, booleans, hashed strings) and floats (n,), and
    `Jagged` for columns of lists, as `embstore.data.ParquetReader` reads them.

    Parameters
    ----------
    paths, columns, batch_size, shuffle, drop_last, prefetch
        As for `embstore.data.ParquetReader`. `columns` may be empty if there are features.
    features
        Keys to yield beside the columns, by name: "user,item,user*item", or a list of such; see
        `embstore.data.parse_features`. The columns that they are made of are read, and yielded only
        if they are named too.
    rank, world_size
        This process's share; by default that of ``torch.distributed`` once it is initialised, and
        everything without it.
    even
        True: an epoch has equally many batches on all ranks, which DDP and other collectives need
        in order not to wait for ever; the longer ranks leave out their last batches, and a warning
        counts the rows. False reads every row. None, the default, does too, and warns if the ranks
        then have different numbers of batches (``DistributedDataParallel.join`` takes them).
    float_dtype
        Of columns of floats; None leaves them as they are in the files, float32 or float64.

    Notes
    -----
    Iterate over `loader`, or over ``DataLoader(dataset, batch_size=None, num_workers=k)``. Epochs
    follow each other as in the reader, each in an order of its own; a bare DataLoader with workers
    begins each epoch with a copy, so call `set_epoch` before it, as for DistributedSampler.
    `state_dict` is that of one reader: of the main process without workers, and within each worker
    of torchdata's StatefulDataLoader. Tensors are the caller's own, and may be written to.

    Raises
    ------
    DataError, ArgumentError, ArgumentTypeError
        As the reader says; DataTypeError if a feature is made of floats.

    Examples
    --------
    >>> import tempfile, pyarrow as pa, pyarrow.parquet as pq
    >>> from embstore.torch import ParquetDataset
    >>> path = tempfile.mkdtemp() + "/clicks.parquet"
    >>> pq.write_table(pa.table({"user": [7, 7, 9], "label": [0.0, 1.0, 1.0]}), path)
    >>> for batch in ParquetDataset(path, ["user", "label"], batch_size=2):
    ...     print(batch["user"], batch["label"])
    tensor([7, 7]) tensor([0., 1.])
    tensor([9]) tensor([1.])
    """

    def __init__(
        self,
        paths: Paths,
        columns: Sequence[str],
        batch_size: int,
        *,
        features: str | Sequence[str] = (),
        shuffle: Shuffle | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        even: bool | None = None,
        drop_last: bool = False,
        float_dtype: torch.dtype | None = torch.float32,
        prefetch: int = 4,
    ) -> None:
        super().__init__()
        self._features = parse(features)
        self._float_dtype = check_dtype(float_dtype)
        self._ranks = check_ranks(rank, world_size)
        if even is not None and not isinstance(even, bool):
            raise ArgumentTypeError(f"ParquetDataset: even must be a bool or None, got {even!r}")
        self.even = even
        self._columns = columns
        used = [column for feature in self._features for column in feature.columns]
        self._arguments: dict[str, Any] = {
            "paths": paths,
            "columns": columns_to_read(columns, used),
            "batch_size": batch_size,
            "shuffle": shuffle,
            "prefetch": prefetch,
            "drop_last": drop_last,
        }
        self._process = os.getpid()
        self._reader: ParquetReader | None = None
        self._position = (0, 0, (0, 1))  # epoch, row, shard: of the reader that was, and may be
        whole = self._open((0, 1))
        self.batch_size = whole.batch_size
        nothing = {name: nothing_of(kind) for name, kind in whole.schema.items()}
        for feature in self._features:
            feature.keys(nothing)

    @property
    def epoch(self) -> int:
        """How many epochs have been read to their end, here or in this worker."""
        return self._here()[0]

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch, from 0, at the next iteration."""
        if isinstance(epoch, bool) or not isinstance(epoch, int):
            raise ArgumentTypeError(f"ParquetDataset: the epoch must be an int, got {epoch!r}")
        if epoch < 0:
            raise ArgumentError(f"ParquetDataset: the epoch must be at least 0, got {epoch}")
        reader = self._open(self._shard(*worker_here()))
        move(reader, epoch, 0)

    def __iter__(self) -> Iterator[Tensors]:
        worker, n_workers = worker_here()
        shard = self._shard(worker, n_workers)
        epoch, row, of = self._here()
        reader = self._open(shard)
        if of != shard:
            if row:
                raise ArgumentError(
                    f"ParquetDataset: its position is row {row} of shard {of}, and shard {shard} "
                    f"was asked for: the number of workers or ranks is another one"
                )
            move(reader, epoch, 0)
        return (batch for batch, _ in self._epoch_of(reader, worker, n_workers))

    def loader(self, num_workers: int = 0, **options: Any) -> "ParquetLoader":
        """Return a `ParquetLoader` of this dataset: ``DataLoader``'s options go to it."""
        from embstore.torch.parquet_loader import ParquetLoader

        return ParquetLoader(self, num_workers, **options)

    def n_batches(self, num_workers: int = 0) -> int:
        """Return how many batches this rank has in a whole epoch."""
        rank, _ = self._ranks_here()
        lengths = self._lengths(max(1, num_workers))
        return min(map(sum, lengths)) if self.even else sum(lengths[rank])

    def state_dict(self) -> dict[str, Any]:
        """Return the position behind the last batch, as values that JSON holds."""
        worker, n_workers = worker_here()
        epoch, row, _ = self._here()
        return {**self._identity(n_workers), "worker": worker, "epoch": epoch, "row": row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a position that `state_dict` gave.

        Raises
        ------
        ArgumentError
            If the state is of other data, another share, shuffle or batch size, or malformed.
        """
        worker, n_workers = worker_here()
        check_state(state, {**self._identity(n_workers), "worker": worker})
        epoch, row = (natural(state, name) for name in ("epoch", "row"))
        move(self._open(self._shard(worker, n_workers)), epoch, row)

    def __getstate__(self) -> dict[str, Any]:
        """Return what goes to a worker: no open reader, and the share that this process has."""
        position, ranks = self._here(), self._ranks_here()
        return {**self.__dict__, "_reader": None, "_position": position, "_ranks": ranks}

    def _here(self) -> tuple[int, int, tuple[int, int]]:
        """Return epoch, row, and the shard in which the row counts."""
        reader = self._reader
        return self._position if reader is None else (reader.epoch, reader.row, reader.shard)

    def _open(self, shard: tuple[int, int]) -> ParquetReader:
        """Return the reader of a shard: the one that is there, at its position, or a new one."""
        epoch, row, of = self._here()
        reader = self._reader
        if reader is None or reader.shard != shard or self._process != os.getpid():
            reader = ParquetReader(**self._arguments, shard=shard)
            if of == shard:
                move(reader, epoch, row)
            self._reader, self._process = reader, os.getpid()
        return reader

    def _ranks_here(self) -> tuple[int, int]:
        """Return (rank, world size)."""
        if self._ranks is not None:
            return self._ranks
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
            raise ArgumentError(
                f"ParquetDataset: WORLD_SIZE is {os.environ['WORLD_SIZE']}, but torch.distributed "
                f"is not initialised, so that each process would read everything; initialise it "
                f"first, or give rank and world_size"
            )
        return 0, 1

    def _shard(self, worker: int, n_workers: int) -> tuple[int, int]:
        rank, world_size = self._ranks_here()
        return worker * world_size + rank, n_workers * world_size

    def _rows(self, n_workers: int) -> list[int]:
        """Return the rows of each worker of this rank."""
        rank, world_size = self._ranks_here()
        return self._some_reader().shard_rows(n_workers * world_size)[rank::world_size]

    def _lengths(self, n_workers: int) -> list[list[int]]:
        """Return the batches of an epoch of each worker of each rank, before any are left out."""
        _, world_size = self._ranks_here()
        is_kept = not self._arguments["drop_last"]
        lengths = []
        for n_rows in self._some_reader().shard_rows(n_workers * world_size):
            full, rest = divmod(n_rows, self.batch_size)
            lengths.append(full + (rest > 0 and is_kept))
        return [lengths[rank::world_size] for rank in range(world_size)]

    def _some_reader(self) -> ParquetReader:
        return self._reader or self._open(self._position[2])

    def _identity(self, n_workers: int) -> dict[str, Any]:
        """Return what a position is of, to be compared with a state."""
        rank, world_size = self._ranks_here()
        of_reader = self._some_reader().state_dict()
        return {
            "version": STATE_VERSION,
            "data": of_reader["data"],
            "shuffle": of_reader["shuffle"],
            "batch_size": self.batch_size,
            "drop_last": bool(self._arguments["drop_last"]),
            "is_even": bool(self.even),
            "rank": rank,
            "world_size": world_size,
            "num_workers": n_workers,
        }

    def _epoch_of(
        self, reader: ParquetReader, worker: int, n_workers: int
    ) -> Iterator[tuple[Tensors, int]]:
        """Yield the batches to the end of the epoch, each with the row behind it."""
        epoch = reader.epoch
        n_most = self._n_most(worker, n_workers)
        n_done = -(-reader.row // self.batch_size)
        if n_done < n_most:
            with iter(reader) as batches:
                for batch in batches:
                    n_done += 1
                    yield self._tensors(batch), reader.row
                    if n_done == n_most:
                        break
        if reader.epoch == epoch:
            move(reader, epoch + 1, 0)

    def _n_most(self, worker: int, n_workers: int) -> int:
        """Return how many batches a worker may give in an epoch; the first one warns."""
        rank, _ = self._ranks_here()
        lengths = self._lengths(n_workers)
        totals = [sum(of_rank) for of_rank in lengths]
        fewest = min(totals)
        if self.even and fewest < max(totals) and not fewest:
            raise DataError(
                f"ParquetDataset: rank {totals.index(0)} of {len(totals)} has no batch, so that "
                f"even=True would leave out everything; write more row groups, at least "
                f"{len(totals) * n_workers}"
            )
        if self.even:
            mine = _levelled(lengths[rank], fewest)
            n_left = self._left_out(mine, n_workers)
            if n_left and worker == 0:
                warnings.warn(
                    f"even=True leaves out {n_left} rows of this rank in each epoch: the ranks "
                    f"have {fewest} to {max(totals)} batches",
                    EmbstoreWarning,
                    stacklevel=2,
                )
            return mine[worker]
        if self.even is None and fewest < max(totals) and worker == 0:
            warnings.warn(
                f"the ranks have {fewest} to {max(totals)} batches in an epoch: collectives of the "
                f"longer ones will wait for ever. Choose even=True to leave the last ones out, or "
                f"even=False to read them all",
                EmbstoreWarning,
                stacklevel=2,
            )
        return lengths[rank][worker]

    def _left_out(self, n_batches: list[int], n_workers: int) -> int:
        """Return how many rows of this rank are beyond its workers' batches."""
        rank, _ = self._ranks_here()
        rows, whole = self._rows(n_workers), self._lengths(n_workers)[rank]
        cut = [
            (n, most)
            for n, most, all_of in zip(rows, n_batches, whole, strict=True)
            if most < all_of
        ]
        return sum(n - most * self.batch_size for n, most in cut)

    def _tensors(self, batch: Batch) -> Tensors:
        made: dict[str, Column] = {name: batch[name] for name in self._columns}
        made |= {feature.name: feature.keys(batch) for feature in self._features}
        return {name: self._tensor(column) for name, column in made.items()}

    def _tensor(self, column: Column) -> torch.Tensor | Jagged:
        if isinstance(column, Ragged):
            return Jagged(_owned(column.values), _owned(column.offsets))
        tensor = _owned(column)
        if self._float_dtype is not None and tensor.is_floating_point():
            return tensor.to(self._float_dtype)
        return tensor


def check_state(state: object, here: Mapping[str, Any]) -> None:
    """Raise if a state is not of the data and the share that are `here`."""
    if not isinstance(state, Mapping):
        raise ArgumentTypeError(f"a state must be a dict, got {type(state).__name__}")
    for name, value in here.items():
        if name not in state:
            raise ArgumentError(f"the state lacks {name!r}; it has {sorted(map(str, state))}")
        if state[name] != value:
            raise ArgumentError(f"the state is of {name} {state[name]!r}, here it is {value!r}")


def natural(state: Mapping[str, Any], name: str) -> int:
    """Return a member of a state that counts something."""
    value = state.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ArgumentError(f"the state's {name} must be an int, at least 0, got {value!r}")
    return value


def move(reader: ParquetReader, epoch: int, row: int) -> None:
    """Put a reader at a row of an epoch."""
    reader.load_state_dict({**reader.state_dict(), "epoch": epoch, "row": row})


def worker_here() -> tuple[int, int]:
    """Return (number of this worker, number of workers); the main process is the only one."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def _levelled(lengths: list[int], total: int) -> list[int]:
    """Return lengths of the sum `total`, the longest having been shortened."""
    lengths = [*lengths]
    while sum(lengths) > total:
        lengths[lengths.index(max(lengths))] -= 1
    return lengths


def _owned(array: Any) -> torch.Tensor:
    """Return a tensor that may be written to: of the array's memory, or of a copy."""
    if not array.flags.writeable:
        array = array.copy()
    return torch.from_numpy(array)
