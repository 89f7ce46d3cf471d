"""ServingTable: a table of a checkpoint, to be read; it answers from the first moment.

1. Until a Table is built behind, keys are searched for in the mapped files; afterwards that Table
   answers. Both give the same bits.
2. An empty Table with the same parameters checks arguments and gives the rows of absent keys, so
   that dtypes, errors, default rows and initial values are those of Table.
"""

import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any, Literal, Self, overload

import numpy as np
from numpy.typing import NDArray

from embstore import ClosedTableError, EmbstoreWarning, FindResult, Table
from embstore.checkpoint import FoundRows, MappedTable, read_config
from embstore.errors import CheckpointMismatchError, EmbstoreError
from embstore.serving.indexing import IndexJob

Missing = Literal["default", "initial", "raise"]
Found = NDArray[Any] | tuple[NDArray[Any], NDArray[np.bool_]] | FindResult


class ServingTable:
    """A table of a checkpoint, read-only; `embstore.serving.open` makes it.

    Any number of threads may use it.

    Examples
    --------
    >>> import tempfile, embstore as es, embstore.serving
    >>> folder = tempfile.mkdtemp()
    >>> with es.Table(dim=2, initializer=es.Constant(0.5), name="user") as table:
    ...     _ = table.find_or_insert([17, 42], step=3)
    ...     _ = table.save(folder)
    >>> with es.serving.open(folder) as table:
    ...     table.find([42, 43]).tolist(), len(table), table.step
    ([[0.5, 0.5], [0.0, 0.0]], 2, 3)
    """

    def __init__(self, source: MappedTable, empty: Table, job: IndexJob | None) -> None:
        self._mapped: MappedTable | None = source
        self._empty = empty
        self._job = job
        self._n_rows = source.n_rows
        self._step = int(source.state["step"])
        self._generation = source.generation
        self._place = source.place
        self._lock = threading.Lock()
        self._n_keys = {"search": 0, "index": 0}
        self._has_warned = False
        self._stop = weakref.finalize(self, _stop, job)

    @property
    def name(self) -> str:
        """The table's name; initial values depend on it."""
        return self._empty.name

    @property
    def dim(self) -> int:
        """Values of a row."""
        return self._empty.dim

    @property
    def dtype(self) -> str:
        """The dtype of values as stored: float32, float16 or bfloat16."""
        return self._empty.dtype

    @property
    def step(self) -> int:
        """The greatest step that the table had seen when it was saved."""
        return self._step

    @property
    def generation(self) -> int:
        """The number of the save that is read."""
        return self._generation

    @property
    def is_indexed(self) -> bool:
        """Whether finds are answered by a table in memory."""
        return self._job is not None and self._job.table is not None

    @property
    def index_error(self) -> Exception | None:
        """What kept the index from being built; finds go on searching the files."""
        return None if self._job is None else self._job.error

    def wait_indexed(self, timeout: float | None = None) -> bool:
        """Wait until the index is there, or cannot be, or seconds are over; return `is_indexed`."""
        if self._job is not None:
            self._job.wait(timeout)
            self._index()
        return self.is_indexed

    def __len__(self) -> int:
        return self._n_rows

    @overload
    def find(
        self,
        keys: object,
        out: object = None,
        missing: Missing = "default",
        return_found: Literal[False] = False,
        with_meta: Literal[False] = False,
        raw: bool = False,
    ) -> NDArray[Any]: ...
    @overload
    def find(
        self,
        keys: object,
        out: object = None,
        missing: Missing = "default",
        *,
        return_found: Literal[True],
        with_meta: Literal[False] = False,
        raw: bool = False,
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]: ...
    @overload
    def find(
        self,
        keys: object,
        out: object = None,
        missing: Missing = "default",
        return_found: bool = False,
        *,
        with_meta: Literal[True],
        raw: bool = False,
    ) -> FindResult: ...
    def find(
        self,
        keys: object,
        out: object = None,
        missing: Missing = "default",
        return_found: bool = False,
        with_meta: bool = False,
        raw: bool = False,
    ) -> Found:
        """Read rows, as ``Table.find``: the same parameters, results and errors.

        Raises
        ------
        CorruptCheckpointError
            If a key may lie in a damaged block; other keys are answered.
        """
        index = self._index()
        if index is not None:
            find: Callable[..., Found] = index.find
            result = find(keys, out, missing, return_found, with_meta, raw)
            self._count("index", len(result if isinstance(result, np.ndarray) else result[0]))
            return result
        found = self._search(keys, out, missing, with_meta, raw)
        if with_meta:
            return found
        return (found.rows, found.found) if return_found else found.rows

    def contains(self, keys: object) -> NDArray[np.bool_]:
        """Return which keys have a row, as ``Table.contains``."""
        index = self._index()
        if index is not None:
            return index.contains(keys)
        is_there = self._empty.contains(keys)
        return self._open_files().contains(as_int64(keys)) if len(is_there) else is_there

    def _index(self) -> Table | None:
        """Return the table that was built behind, once it is there."""
        if self._job is None:
            return None
        self._warn_of_failure()
        return self._job.table

    def _open_files(self) -> MappedTable:
        mapped = self._mapped
        if mapped is None:
            raise ClosedTableError("the table has been closed")
        return mapped

    def _search(
        self, keys: object, out: object, missing: Missing, with_meta: bool, raw: bool
    ) -> FindResult:
        """Find in the mapped files."""
        is_strict = isinstance(missing, str) and missing == "raise"
        absent: Missing = "default" if is_strict else missing
        result = self._empty.find(keys, out, absent, with_meta=True, raw=raw)
        self.fill(as_int64(keys), result, is_strict, with_meta)
        return result

    def fill(
        self, keys: NDArray[np.int64], result: FindResult, is_strict: bool, with_meta: bool
    ) -> None:
        """Write the rows that there are over a result for absent keys."""
        found = self._open_files().find(keys, with_meta)
        result.found[found.keys] = True
        if is_strict and len(found.keys) < len(keys):
            self._empty.find(keys[~result.found], missing="raise")
        result.rows[found.keys] = self._as_rows(found, result.rows.dtype)
        if with_meta:
            result.freq[found.keys] = found.freq
            result.step[found.keys] = found.step
        self._count("search", len(keys))

    def _as_rows(self, found: FoundRows, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return values as they cross: the bits of bfloat16 are the upper half of a float32."""
        if found.values.dtype == dtype:
            return found.values
        return (found.values.astype(np.uint32) << np.uint32(16)).view(np.float32)

    def _count(self, how: str, n_keys: int) -> None:
        with self._lock:
            self._n_keys[how] += n_keys

    def _warn_of_failure(self) -> None:
        """Tell once that the index cannot be built."""
        error = self.index_error
        if error is None or self._has_warned:
            return
        with self._lock:
            has_warned, self._has_warned = self._has_warned, True
        if not has_warned:
            warnings.warn(
                f"{self._place}: no index can be built, finds go on searching the files: {error}",
                EmbstoreWarning,
                stacklevel=4,
            )

    def stats(self) -> dict[str, int]:
        """Return what was done so far.

        Returns
        -------
        dict
            n_blocks, n_blocks_touched (verified, by finds or for the index), bytes_verified,
            n_keys_search and n_keys_index (keys that finds were asked for, by who answered),
            nbytes_mapped (of files), nbytes_index.
        """
        n_blocks, n_touched, n_bytes, n_mapped = self._open_files().blocks_touched()
        index = None if self._job is None else self._job.table
        return {
            "n_blocks": n_blocks,
            "n_blocks_touched": n_touched,
            "bytes_verified": n_bytes,
            "n_keys_search": self._n_keys["search"],
            "n_keys_index": self._n_keys["index"],
            "nbytes_mapped": n_mapped,
            "nbytes_index": 0 if index is None else index.nbytes,
        }

    def close(self) -> None:
        """Stop the index, give files and memory back; every later call raises ClosedTableError.

        Calls of other threads that run now end as usual.
        """
        self._stop()
        self._mapped = None
        self._empty.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        head = f"<embstore.serving.ServingTable {self.name!r}: dim={self.dim}, {self.dtype}"
        how = "indexed" if self.is_indexed else "searched"
        state = "closed" if self._mapped is None else f"{len(self):,} rows, step {self.step}, {how}"
        return f"{head}, {state}>"


def _stop(job: IndexJob | None) -> None:
    if job is not None:
        job.stop()


def as_int64(keys: Any) -> NDArray[np.int64]:
    """Return keys that a Table has accepted as int64."""
    if isinstance(keys, list | tuple):
        return np.array(keys, np.int64)
    array = keys if isinstance(keys, np.ndarray) else np.from_dlpack(keys)
    return np.asarray(array).astype(np.int64, copy=False)


def empty_table(source: MappedTable, place: tuple[str, int | None]) -> Table:
    """Return a table that reads as the saved one does where it has no rows.

    Raises
    ------
    CheckpointMismatchError
        If the parameters that were saved are none of a table.
    """
    try:
        device, hbm_bytes = place
        config = read_config(source.config)
        empty = Table.from_config(config, device=device, hbm_bytes=hbm_bytes)
    except EmbstoreError as error:
        raise CheckpointMismatchError(f"{source.place}: {error}") from error
    for what in ("dim", "dtype"):
        if getattr(empty, what) != getattr(source, what):
            raise CheckpointMismatchError(
                f"{source.place} has {what} {getattr(source, what)}; its config says "
                f"{getattr(empty, what)}"
            )
    return empty
