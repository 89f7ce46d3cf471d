"""Table: a dynamic map from 64-bit ids to embedding rows, trained in place.

The flow of one training step reads down this file: find_or_insert gives rows and a ticket,
apply_gradients takes the ticket back. What each verb computes, to the bit, is docs/semantics.md.
"""

from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from embstore import engines
from embstore.engines import arrays
from embstore.engines.engine import JoinedBatch, Part
from embstore.engines.spec import (
    DEFAULT_INITIALIZER,
    Dtype,
    OnFull,
    OnNonfinite,
    Rounding,
    TableSpec,
)
from embstore.engines.types import ApplyReport, FindResult
from embstore.policies._check import check_choice, check_step
from embstore.policies.admission import Admission
from embstore.policies.eviction import Eviction
from embstore.policies.initializer import Initializer
from embstore.policies.optimizer import Optimizer
from embstore.table.base import EvictionSink
from embstore.table.batch import Batch, PooledBatch, PoolMode, as_bags
from embstore.table.content import TableContent
from embstore.table.files import TableFiles
from embstore.table.graphs import TableGraphs
from embstore.table.names import TableNames

Missing = Literal["default", "initial", "raise"]
Admit = Literal["policy", "always"]
MISSING: tuple[Missing, ...] = ("default", "initial", "raise")
ADMIT: tuple[Admit, ...] = ("policy", "always")


class Table(TableContent, TableFiles, TableGraphs, TableNames):
    """A dynamic table from int64 keys, all 2**64 of them, to rows of `dim` values.

    Any number of threads may `find` while one at a time trains or evicts; others queue. A save lets
    both go on.

    Keys are int64 arrays (uint64 by its bits, int32 and uint32 widened), objects with DLPack on
    the CPU, or lists of ints. A call that raises leaves the table as it was.

    Parameters
    ----------
    dim
        Values of a row, 1 to 4096.
    optimizer
        How gradients change rows. None makes a table without optimizer state, for serving and
        assign; apply_gradients then raises.
    initializer
        Values of new rows: a function of seed, name, key and column.
    seed
        Of initial values and stochastic rounding, 0 to 2**64 - 1.
    name
        The table's name; initial values depend on it.
    dtype, rounding
        How values are stored, and how 16-bit values are rounded after an update.
    admission
        After how many occurrences a key gets a row; None admits at once.
    eviction, evict_every
        Which rows `evict` removes; every `evict_every` steps find_or_insert does so by itself.
    max_rows, max_bytes, on_full
        Bounds, and what a batch meets that does not fit: "evict" (the default with
        CapacityEviction and CacheEviction) removes the rows with the smallest step or freq,
        "refuse" serves default
        rows to keys that came too late, "raise" (the default otherwise) is CapacityError.
    on_nonfinite
        What gradients with NaN or infinity meet: an error before any row changes, or their key is
        skipped, or they are allowed.
    default_row
        What keys without a row read: a number or (dim,) numbers; zeros by default.
    hash_seed
        Of the index, 0 to 2**128 - 1; no result depends on it. Random by default, which protects
        against ids chosen to collide; it is never saved or printed.
    track_changes
        Keep the log that `changes` reads.
    on_evict
        Called with the `Rows` of every eviction, after the call that evicted them has released
        the table; what it raises comes out of that call, whose work is then done.
    device
        "cpu", "cuda" (the current card), "cuda:N", or "auto": the card where
        ``cuda_status().is_available``, else "cpu"; docs/gpu.md says which is the better place for
        what. Arrays of a card (CuPy, PyTorch, JAX, all that have ``__cuda_array_interface__`` or
        DLPack) go in and out without a copy where keys are such an array; with keys of the host,
        results are numpy arrays.
    hbm_bytes
        Of a table on a card: the most bytes of rows (values and optimizer state) that lie in its
        memory, whole chunks of rows; the others lie in pinned memory of the host. None is all on
        the card, 0 none. Everything else, 16 bytes a row and the index among it, is on the card
        in any case and not counted here.
    strict
        Of tables on a card: wait in every call, and raise there what went wrong; see `check`.

    Examples
    --------
    >>> import numpy as np, embstore as es
    >>> table = es.Table(dim=4, optimizer=es.Adagrad(lr=0.05), name="user")
    >>> ids = np.array([17, 42, 17])
    >>> batch = table.find_or_insert(ids, step=0)
    >>> batch.rows.shape
    (3, 4)
    >>> table.apply_gradients(batch, np.ones((3, 4), np.float32), step=0)
    ApplyReport(n_applied=2, n_dropped=0, n_stale=0, n_nonfinite=0)
    >>> len(table)
    2
    """

    def __init__(
        self,
        dim: int,
        *,
        optimizer: Optimizer | None = None,
        initializer: Initializer = DEFAULT_INITIALIZER,
        seed: int = 0,
        name: str = "table",
        dtype: Dtype = "float32",
        rounding: Rounding = "nearest",
        admission: Admission | None = None,
        eviction: Eviction | None = None,
        evict_every: int | None = None,
        max_rows: int | None = None,
        max_bytes: int | None = None,
        on_full: OnFull | None = None,
        on_nonfinite: OnNonfinite = "raise",
        default_row: Any = None,
        hash_seed: int | None = None,
        track_changes: bool = False,
        on_evict: EvictionSink | None = None,
        device: str = "cpu",
        hbm_bytes: int | None = None,
        strict: bool = False,
    ) -> None:
        spec = TableSpec(
            dim=dim,
            name=name,
            optimizer=optimizer,
            initializer=initializer,
            seed=seed,
            dtype=dtype,
            rounding=rounding,
            admission=admission,
            eviction=eviction,
            evict_every=evict_every,
            max_rows=max_rows,
            max_bytes=max_bytes,
            on_full=on_full,
            on_nonfinite=on_nonfinite,
            default_row=default_row,
            track_changes=track_changes,
        )
        place = engines.check_place(device, hbm_bytes, "Table")
        super().__init__(spec, place, hash_seed, on_evict, "Table")
        self.strict = strict

    @overload
    def find(
        self,
        keys: object,
        out: object = None,
        missing: Missing = "default",
        return_found: Literal[False] = False,
        with_meta: Literal[False] = False,
        raw: bool = False,
        stream: object = None,
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
        stream: object = None,
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
        stream: object = None,
    ) -> FindResult: ...
    def find(
        self,
        keys: object,
        out: object = None,
        missing: Missing = "default",
        return_found: bool = False,
        with_meta: bool = False,
        raw: bool = False,
        stream: object = None,
    ) -> NDArray[Any] | tuple[NDArray[Any], NDArray[np.bool_]] | FindResult:
        """Read rows; the table is not changed in any way.

        Parameters
        ----------
        keys : (n,) int64
        out : (n, dim)
            Memory to write the rows into and return.
        missing
            What a key without a row (absent, or pending) gives: the default row, the row it would
            be born with ("initial"), or MissingKeyError.
        return_found
            Return ``(rows, found)``, found being (n,) bool.
        with_meta
            Return a `FindResult` of rows, found, freq (n,) uint32 and step (n,) int64; 0 and -1
            where there is no row.
        raw
            Give the rows of a bfloat16 table as their bits, uint16.
        stream
            Of tables on a card: the stream to queue the call on (of CuPy, of PyTorch, or a
            ``cudaStream_t``); by default that of the arrays' producer, or the device's current one.

        Returns
        -------
        (n, dim) float32
            float16 of float16 tables.
        """
        if missing == "default" and not (return_found or with_meta or raw) and stream is None:
            rows = self._find_fast(keys, out)
            if rows is not None:
                return rows
        want_found = return_found or with_meta
        result = self._find(keys, out, missing, want_found, with_meta, raw, stream)
        if with_meta:
            return result
        return (result.rows, result.found) if return_found else result.rows

    def _find(
        self,
        keys: object,
        out: object,
        missing: str,
        want_found: bool,
        want_meta: bool,
        raw: bool,
        stream: object,
    ) -> FindResult:
        """Find by the general path; arrays that are not wanted are empty."""
        where = "Table.find"
        key_array = arrays.as_keys(keys, where, device=self._device)
        check_choice(where, "missing", missing, MISSING)
        n = len(key_array)
        dtype = self._spec.stored_dtype if raw else self._spec.row_dtype
        with self._on_stream(stream, where, key_array, out):
            rows = self._output(out, n, where, key_array, dtype)
            arrays.check_no_overlap(rows, where, keys=key_array)
            found = self._vector(n, np.bool_, key_array) if want_found else None
            freq = self._vector(n, np.uint32, key_array) if want_meta else None
            step = self._vector(n, np.int64, key_array) if want_meta else None
            self._engine.find(key_array, rows, missing, found, freq, step)
        none = np.empty(0, np.bool_)
        return FindResult(
            arrays.public(rows),
            none if found is None else arrays.public(found),
            none.view(np.uint8).astype(np.uint32) if freq is None else arrays.public(freq),
            none.astype(np.int64) if step is None else arrays.public(step),
        )

    def find_or_insert(
        self,
        keys: object,
        step: int,
        counts: object = None,
        admit: Admit = "policy",
        out: object = None,
        stream: object = None,
    ) -> Batch:
        """Read rows for training: count occurrences, admit keys, create their rows.

        Parameters
        ----------
        keys : (n,) int64
            In any order, with duplicates.
        step
            Now, 0 to 2**63 - 1. Maintenance that is due (automatic eviction, decay) comes first.
        counts : (n,) uint32
            Occurrences that each entry stands for, of callers that deduplicated.
        admit
            "always" passes the admission policy by.
        out : (n, dim)
            Memory to write the rows into.
        stream
            Of tables on a card: the stream to queue the call on (of CuPy, of PyTorch, or a
            ``cudaStream_t``); by default that of the arrays' producer, or the device's current one.

        Returns
        -------
        Batch
            The rows in the keys' order, a status for each unique key, and what apply_gradients
            needs.

        Raises
        ------
        CapacityError
            With ``on_full="raise"``, if the new keys do not fit.
        """
        where = "Table.find_or_insert"
        key_array = arrays.as_keys(keys, where, device=self._device)
        step = check_step(where, step)
        n = len(key_array)
        count_array = None
        if counts is not None:
            count_array = arrays.as_counts(counts, n, where, self._device)
        if admit != "policy":
            check_choice(where, "admit", admit, ADMIT)
        with self._on_stream(stream, where, key_array, count_array, out):
            rows = self._output(out, n, where, key_array)
            if out is not None:
                arrays.check_no_overlap(rows, where, keys=key_array, counts=count_array)
            with self._writing:
                ticket = self._engine.find_or_insert(
                    key_array, step, count_array, admit != "policy", rows
                )
        return Batch(self, ticket, rows)

    def apply_gradients(
        self,
        batch_or_keys: object,
        grads: object,
        step: int,
        lr: float | None = None,
        stream: object = None,
    ) -> ApplyReport:
        """Update rows: gradients of one key are summed, then its optimizer runs once.

        Parameters
        ----------
        batch_or_keys
            The `Batch` or `PooledBatch` of the forward pass, or (n,) int64 keys. Keys that have
            no row, then or now, are skipped and counted.
        grads : (n, dim) float32
            In the order of the keys; of a PooledBatch (n_bags, dim).
        step
            Now; the rows' step becomes at least this.
        lr
            The learning rate of this call, instead of the table's own.
        stream
            Of tables on a card: the stream to queue the call on (of CuPy, of PyTorch, or a
            ``cudaStream_t``); by default that of the arrays' producer, or the device's current one.

        Returns
        -------
        ApplyReport
            Numbers of unique keys: applied, dropped, stale, nonfinite. Of a call that does not wait
            for the card (see `strict`) a `LateReport`, which waits when it is read.

        Raises
        ------
        NonFiniteError
            With ``on_nonfinite="raise"``, if a key's sum has NaN or infinity; no row is changed.
        TicketError
            If the batch is closed, of another table, or was made before `clear`.
        """
        where = "Table.apply_gradients"
        step = check_step(where, step)
        rate = self._rate(lr, step, where)
        ticket = None
        if isinstance(batch_or_keys, Batch):
            ticket = batch_or_keys._ticket_of(self, where)
            parts = batch_or_keys._grad_parts(grads, where)
        else:
            key_array = arrays.as_keys(batch_or_keys, where, device=self._device)
            shape = (len(key_array), self.dim)
            checked = arrays.as_floats(grads, shape, where, "grads", self._device)
            parts = [Part(key_array, checked)]
        batch = JoinedBatch(self._engine, parts, ticket, rate)
        with self._on_stream(stream, where, parts[0].rows), self._lock:
            return self._engine.apply_many([batch], step)[0]

    @overload
    def pooled(
        self,
        keys: object,
        offsets: object,
        mode: PoolMode = "sum",
        weights: object = None,
        step: None = None,
        padding: int | None = None,
        out: object = None,
        stream: object = None,
    ) -> NDArray[np.float32]: ...
    @overload
    def pooled(
        self,
        keys: object,
        offsets: object,
        mode: PoolMode = "sum",
        weights: object = None,
        *,
        step: int,
        padding: int | None = None,
        out: object = None,
        stream: object = None,
    ) -> PooledBatch: ...
    def pooled(
        self,
        keys: object,
        offsets: object,
        mode: PoolMode = "sum",
        weights: object = None,
        step: int | None = None,
        padding: int | None = None,
        out: object = None,
        stream: object = None,
    ) -> NDArray[np.float32] | PooledBatch:
        """Reduce bags of ids to one row each.

        Keys without a row contribute the default row; an empty bag is 0.

        Parameters
        ----------
        keys : (n,) int64
            The ids of all bags, one bag after another.
        offsets : (n_bags + 1,) int64
            Where each bag begins, and n at the end.
        mode
            "sum" of row times weight; "mean" divides it by the number of ids in the bag, padding
            excepted, "sqrtn" by the square root of that.
        weights : (n,) float32
            Ones by default.
        step
            None only reads. A step trains: ids are counted and admitted as in find_or_insert.
        padding
            An id that fills bags up: it is neither looked up nor counted.
        out : (n_bags, dim) float32
            Memory to write the pooled rows into.
        stream
            Of tables on a card: the stream to queue the call on (of CuPy, of PyTorch, or a
            ``cudaStream_t``); by default that of the arrays' producer, or the device's current one.

        Returns
        -------
        (n_bags, dim) float32, or PooledBatch
            The latter with a step; apply_gradients takes it with (n_bags, dim) gradients.
        """
        where = "Table.pooled"
        key_array, bags = as_bags(keys, offsets, mode, weights, padding, where, self._device)
        with self._on_stream(stream, where, key_array, out):
            pooled = self._output(out, bags.n_bags, where, key_array, arrays.FLOAT32)
            if out is not None:
                arrays.check_no_overlap(
                    pooled, where, keys=key_array, offsets=bags.offsets, weights=bags.weights
                )
            batch = JoinedBatch(self._engine, [Part(key_array, pooled, bags=bags)])
            if step is None:
                self._engine.find_many([batch], "default")
                return arrays.public(pooled)  # type: ignore[no-any-return]
            step = check_step(where, step)
            with self._writing:
                (ticket,) = self._engine.find_or_insert_many([batch], step, admit_always=False)
        return PooledBatch(self, ticket, pooled, [bags])
