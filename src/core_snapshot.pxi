# Snapshots: a table as of one moment, for a save beside writers; and checks of rows that come out
# of files. Included by _core.pyx.


@cython.final
@cython.no_gc_clear
cdef class CoreSnapshot:
    """The table as of the moment this was made; owns an ``es_snapshot``. One thread reads it.

    Another may end it: that waits for the call the reader is in, whatever interrupts come.
    """

    cdef es_snapshot* snapshot
    cdef int n_inside  # calls, which `snapshot` outlives
    cdef CoreTable table  # which is not destroyed before the snapshot has ended

    def __cinit__(self, CoreTable table, bint is_delta, uint64_t log_bytes, int file):
        cdef int status
        table.enter()
        self.table = table
        with nogil:
            status = es_snapshot_begin(table.table, is_delta, log_bytes, file, &self.snapshot)
        if status != ES_OK:
            self.snapshot = NULL
            self.table = None
            table.leave(status)

    def __dealloc__(self):
        if self.snapshot != NULL:
            es_snapshot_end(self.snapshot, False)
            self.table.leave(ES_OK)

    cdef es_snapshot* enter(self) except NULL:
        """Begin a call; every enter is followed by a leave."""
        if self.snapshot == NULL:
            raise ClosedTableError(f"{self.table.where}: the snapshot has ended")
        self.n_inside += 1
        return self.snapshot

    cdef int leave(self, int status) except -1:
        """End a call, raise the error of `status`; that of a lost snapshot has an errno."""
        self.n_inside -= 1
        if status != ES_SNAPSHOT:
            return check(status, self.table.where)
        text = es_last_error().decode("utf-8", "replace")
        raise CheckpointError(self.stats()["error"], f"{self.table.where}: {text}")

    def end(self, bint is_saved):
        """End the snapshot; unless it was saved, the change log is as if there had been none.

        One that has ended is left alone.
        """
        cdef es_snapshot* snapshot = self.snapshot
        cdef int status
        if snapshot == NULL:
            return
        self.snapshot = NULL
        while self.n_inside > 0:
            with nogil:
                usleep(100)
        with nogil:
            status = es_snapshot_end(snapshot, is_saved)
        self.table.leave(status)

    def prepare(self, int n_threads, bint prefault):
        """Put the rows in order, and take the log's memory if asked; before anything is read."""
        cdef es_snapshot* snapshot = self.enter()
        cdef int status
        with nogil:
            status = es_snapshot_prepare(snapshot, n_threads, prefault)
        self.leave(status)

    def stats(self):
        """Return es_snapshot_stats' fields by name."""
        cdef es_snapshot_stats stats
        memset(&stats, 0, sizeof(stats))
        stats.struct_size = sizeof(stats)
        cdef es_snapshot* snapshot = self.enter()
        cdef int status
        with nogil:
            status = es_snapshot_get_stats(snapshot, &stats)
        self.leave(status)
        fields = dict(stats)
        del fields["struct_size"]
        return fields

    def state(self):
        """Return es_state's fields by name, as of the cut."""
        cdef es_state state
        cdef es_snapshot* snapshot = self.enter()
        self.leave(es_snapshot_state(snapshot, &state))
        fields = dict(state)
        del fields["struct_size"], fields["reserved"]
        return fields

    def counts(self, bint candidates):
        """Return the rows to be read (or candidates) of each of the 256 partitions, uint64."""
        cdef cnp.ndarray counts = new_array(256, -1, cnp.NPY_UINT64)
        cdef uint64_t* count_data = <uint64_t*> cnp.PyArray_DATA(counts)
        cdef es_snapshot* snapshot = self.enter()
        cdef int status
        with nogil:
            status = es_snapshot_counts(snapshot, candidates, count_data)
        self.leave(status)
        return counts

    def rows(self, uint64_t first, Py_ssize_t n, int n_threads):
        """Return (keys, values as stored, slots, freq, step)."""
        cdef _RowArrays rows = _RowArrays(n, self.table)
        cdef es_snapshot* snapshot = self.enter()
        cdef int status
        with nogil:
            status = es_snapshot_rows(
                snapshot, first, n, n_threads, rows.key_data, rows.value_data, rows.slot_data,
                rows.freq_data, rows.step_data,
            )
        self.leave(status)
        return rows.first(n)

    def deleted(self):
        """Return the keys of a delta that were removed and had no row at the cut."""
        cdef cnp.ndarray keys = new_array(self.stats()["n_deleted"], -1, cnp.NPY_INT64)
        cdef int64_t* key_data = <int64_t*> cnp.PyArray_DATA(keys)
        cdef es_snapshot* snapshot = self.enter()
        cdef int status
        with nogil:
            status = es_snapshot_deleted(snapshot, key_data)
        self.leave(status)
        return keys

    def candidates(self, uint64_t first, Py_ssize_t n):
        """Return (keys, counts, epochs) of candidates [first, first + n)."""
        cdef cnp.ndarray keys = new_array(n, -1, cnp.NPY_INT64)
        cdef cnp.ndarray counts = new_array(n, -1, cnp.NPY_UINT32)
        cdef cnp.ndarray epochs = new_array(n, -1, cnp.NPY_INT64)
        cdef int64_t* key_data = <int64_t*> cnp.PyArray_DATA(keys)
        cdef uint32_t* count_data = <uint32_t*> cnp.PyArray_DATA(counts)
        cdef int64_t* epoch_data = <int64_t*> cnp.PyArray_DATA(epochs)
        cdef es_snapshot* snapshot = self.enter()
        cdef int status
        with nogil:
            status = es_snapshot_candidates(
                snapshot, first, n, key_data, count_data, epoch_data
            )
        self.leave(status)
        return keys, counts, epochs

    def bloom(self, uint32_t partition):
        """Return the bytes of one sub-filter, uint8; partitions in ascending order, each once."""
        cdef cnp.ndarray out = new_array(self.table.bloom_partition_bytes(), -1, cnp.NPY_UINT8)
        cdef uint8_t* out_data = <uint8_t*> cnp.PyArray_DATA(out)
        cdef es_snapshot* snapshot = self.enter()
        cdef int status
        with nogil:
            status = es_snapshot_bloom(snapshot, partition, out_data)
        self.leave(status)
        return out


def check_rows(keys, uint32_t first, uint32_t last, previous, values, int value_dtype, slots):
    """Return the place of the first key out of order, (partition, key), and rows not finite.

    keys: (n,) int64, of partitions [first, last], after `previous` unless that is None; values:
    (n, dim) as stored; slots: (n, slot_floats) float32.
    """
    cdef Py_ssize_t n = length_of(keys)
    cdef const int64_t* key_data = int64_data(keys, n, "keys")
    if height_of(values) != n or height_of(slots) != n:
        reject("values and slots do not have the rows of keys")
    cdef uint32_t dim = cnp.PyArray_DIM(<cnp.ndarray> values, 1)
    cdef uint32_t slot_floats = cnp.PyArray_DIM(<cnp.ndarray> slots, 1)
    cdef const void* value_data = data_of(values, typenum_of(value_dtype), n * dim, "values")
    cdef const float* slot_data = float_data(slots, n * slot_floats, "slots")
    cdef int64_t last_key = 0
    cdef const int64_t* previous_data = NULL
    if previous is not None:
        last_key = previous
        previous_data = &last_key
    cdef uint64_t place = 0, n_nonfinite = 0
    cdef int status
    with nogil:
        status = es_check_rows(
            key_data, n, first, last, previous_data, value_data, value_dtype, dim, slot_data,
            slot_floats, &place, &n_nonfinite,
        )
    check(status, "check_rows")
    return place, n_nonfinite


def has_crc32():
    """Return whether `crc32` can be called on this processor."""
    cdef uint32_t crc = 0
    return es_crc32(NULL, 0, &crc) == ES_OK


def crc32(const uint8_t[::1] data not None, uint32_t crc=0):
    """Return what ``zlib.crc32`` returns."""
    cdef uint64_t n = data.shape[0]
    cdef const uint8_t* first = &data[0] if n > 0 else NULL
    cdef int status
    with nogil:
        status = es_crc32(first, n, &crc)
    check(status, "crc32")
    return crc
