"""ParquetLoader: a DataLoader of Parquet batches whose position the main process knows.

Workers read ahead, and each batch comes with the row behind it. As a loader takes a batch from
each worker in turn, its position is an epoch, whose turn it is, and a row of each worker.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from embstore.data import ClosedReaderError
from embstore.errors import ArgumentError, ArgumentTypeError
from embstore.torch.parquet import (
    ParquetDataset,
    Tensors,
    check_state,
    move,
    natural,
    worker_here,
)

OF_THE_DATASET = {
    *("batch_size", "batch_sampler", "collate_fn", "dataset", "drop_last", "sampler", "shuffle")
}


class ParquetLoader:
    """The batches of a `ParquetDataset` by a ``DataLoader``, which can be saved and resumed.

    Made by ``dataset.loader(num_workers=2, pin_memory=True)``. Iterating runs from the position to
    the end of the epoch, and then the position is the start of the next one; a loop that is left
    early is continued by the next. The position is behind the last batch that was handed out,
    whatever the workers have read ahead, and it is the same on each run: a batch of each worker in
    turn, as long as it has some.

    Parameters
    ----------
    dataset
        What to iterate over.
    num_workers, **options
        As for ``DataLoader``. What the dataset decides (batch_size, shuffle, drop_last, sampler,
        batch_sampler, collate_fn) and ``in_order=False`` are refused.

    Examples
    --------
    >>> import tempfile, pyarrow as pa, pyarrow.parquet as pq
    >>> from embstore.torch import ParquetDataset
    >>> path = tempfile.mkdtemp() + "/clicks.parquet"
    >>> pq.write_table(pa.table({"user": [1, 2, 3, 4, 5]}), path)
    >>> loader = ParquetDataset(path, ["user"], batch_size=2).loader()
    >>> next(iter(loader))["user"]
    tensor([1, 2])
    >>> again = ParquetDataset(path, ["user"], batch_size=2).loader()
    >>> again.load_state_dict(loader.state_dict())
    >>> [batch["user"].tolist() for batch in again]
    [[3, 4], [5]]
    """

    def __init__(self, dataset: ParquetDataset, num_workers: int = 0, **options: Any) -> None:
        if not isinstance(dataset, ParquetDataset):
            raise ArgumentTypeError(
                f"ParquetLoader: expected a ParquetDataset, got {type(dataset).__name__}"
            )
        if isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 0:
            raise ArgumentError(
                f"ParquetLoader: num_workers must be an int, at least 0, got {num_workers!r}"
            )
        refused = sorted(OF_THE_DATASET.intersection(options))
        if refused or not options.get("in_order", True):
            what = f"{refused} are decided by the dataset" if refused else "in_order must be True"
            raise ArgumentError(f"ParquetLoader: {what}")
        epoch, row, of = dataset._here()
        if row:
            raise ArgumentError(
                f"ParquetLoader: the dataset is at row {row} of shard {of}; make the loader "
                f"first, and give it the loader's state"
            )
        self.dataset = dataset
        self._n_workers = max(1, num_workers)
        self._epoch, self._turn = epoch, 0
        self._rows = [0] * self._n_workers
        self._n_loops = 0
        self._plan = torch.zeros(2 + self._n_workers, dtype=torch.int64, device="cpu")
        if num_workers:
            self._plan.share_memory_()
        self._loader = DataLoader(
            _Stamped(dataset, self._plan), batch_size=None, num_workers=num_workers, **options
        )

    @property
    def epoch(self) -> int:
        """How many epochs have been handed out to their end."""
        return self._epoch

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return self.dataset.n_batches(self._n_workers)

    def __iter__(self) -> Iterator[Tensors]:
        self._n_loops += 1
        return self._batches(self._n_loops)

    def _batches(self, loop: int) -> Iterator[Tensors]:
        position = [self._epoch, self._turn, *self._rows]
        self._plan[:] = torch.tensor(position, device="cpu")
        for batch, worker, row in self._loader:
            self._check_is_last(loop)
            self._rows[worker] = row
            self._turn = (worker + 1) % self._n_workers
            yield batch
            self._check_is_last(loop)
        self._epoch, self._turn = self._epoch + 1, 0
        self._rows = [0] * self._n_workers

    def state_dict(self) -> dict[str, Any]:
        """Return the position behind the last batch handed out, as values that JSON holds."""
        return {
            **self.dataset._identity(self._n_workers),
            "epoch": self._epoch,
            "turn": self._turn,
            "rows": [*self._rows],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a position that `state_dict` gave: at the very next batch.

        Raises
        ------
        ArgumentError
            If the state is of other data, another rank or number of ranks or workers, another
            shuffle or batch size, or malformed; the position is then as it was.
        """
        check_state(state, self.dataset._identity(self._n_workers))
        epoch, turn = (natural(state, name) for name in ("epoch", "turn"))
        rows = state.get("rows")
        if not isinstance(rows, list | tuple) or len(rows) != self._n_workers:
            raise ArgumentError(
                f"the state's rows must be one for each of {self._n_workers} workers, got {rows!r}"
            )
        checked = [natural({"row": row}, "row") for row in rows]
        there_are = self.dataset._rows(self._n_workers)
        if any(row > n for row, n in zip(checked, there_are, strict=True)):
            raise ArgumentError(f"the state is at rows {checked} of {there_are}")
        if turn >= self._n_workers:
            raise ArgumentError(f"the state's turn must be that of a worker, got {turn}")
        self._n_loops += 1
        self._epoch, self._turn, self._rows = epoch, turn, checked

    def _check_is_last(self, loop: int) -> None:
        if loop != self._n_loops:
            raise ClosedReaderError(
                "this loop has ended: its ParquetLoader has begun another, or was moved"
            )


class _Stamped(IterableDataset):
    """What a `ParquetLoader`'s workers read: batches, the worker's number and its row.

    The plan lies in shared memory, so that workers that live on read it anew for each loop: the
    epoch, whose turn it is, and the row of each worker. A DataLoader always begins with its worker
    0, so that this one must be the worker whose turn it is.
    """

    def __init__(self, dataset: ParquetDataset, plan: torch.Tensor) -> None:
        super().__init__()
        self._dataset = dataset
        self._plan = plan

    def __iter__(self) -> Iterator[tuple[Tensors, int, int]]:
        number, n_workers = worker_here()
        epoch, turn, *rows = self._plan.tolist()
        worker = (turn + number) % n_workers
        dataset = self._dataset
        reader = dataset._open(dataset._shard(worker, n_workers))
        move(reader, epoch, rows[worker])
        for batch, row in dataset._epoch_of(reader, worker, n_workers):
            yield batch, worker, row
