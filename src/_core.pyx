# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: autotestdict=False, embedsignature=False
"""The Cython binding of embstore.h: one method a call, numpy arrays in and out, no algorithm.

1. Every array is checked here once more for dtype, length and layout, since C reads it blindly.
2. Calls that can wait release the GIL; a find of less than 64 KiB keeps it, as finds never block.
3. A table that is closed while calls run is destroyed by the last of them.
"""

cimport cython
cimport numpy as cnp
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.unistd cimport usleep

from core_arrays cimport *
from core_config cimport *
from embstore_abi cimport *

from embstore.errors import CheckpointError, ClosedTableError, OutOfMemoryError

cnp.import_array()
cdef Py_ssize_t KEEP_GIL_BYTES = 64 * 1024


@cython.final
cdef class CoreTicket:
    """What find_or_insert remembers of a batch; owns an ``es_ticket``."""

    cdef es_ticket* ticket
    cdef CoreTable table

    def __init__(self):
        raise TypeError("find_or_insert makes tickets")

    def __dealloc__(self):
        if self.ticket != NULL:
            es_ticket_destroy(self.ticket)

    cdef object view(self, Py_ssize_t n, int typenum, const void* data):
        """Return a read-only array over the ticket's memory, which it keeps alive."""
        cdef cnp.npy_intp shape = n
        cdef cnp.ndarray array
        if n == 0:
            return new_array(0, -1, typenum)
        array = cnp.PyArray_SimpleNewFromData(1, &shape, typenum, <void*> data)
        cnp.set_array_base(array, self)
        cnp.PyArray_CLEARFLAGS(array, cnp.NPY_ARRAY_WRITEABLE)
        return array

    def arrays(self):
        """Return (keys, status, inverse): unique keys by first occurrence, status, places."""
        cdef const int64_t* keys
        cdef const uint8_t* status
        cdef const uint32_t* inverse
        check(es_ticket_view(self.ticket, &keys, &status, &inverse), self.table.where)
        return (
            self.view(self.n_unique(), cnp.NPY_INT64, keys),
            self.view(self.n_unique(), cnp.NPY_UINT8, status),
            self.view(self.n(), cnp.NPY_UINT32, inverse),
        )

    def n(self):
        """Return the number of keys."""
        return es_ticket_n(self.ticket)

    def n_unique(self):
        """Return the number of unique keys."""
        return es_ticket_n_unique(self.ticket)


@cython.final
cdef class _RowArrays:
    """New arrays for complete rows, and their memory."""

    cdef cnp.ndarray keys, values, slots, freq, step
    cdef int64_t* key_data
    cdef void* value_data
    cdef float* slot_data
    cdef uint32_t* freq_data
    cdef int64_t* step_data

    def __cinit__(self, Py_ssize_t n, CoreTable table):
        self.keys = new_array(n, -1, cnp.NPY_INT64)
        self.values = new_array(n, table.dim, table.typenum)
        self.slots = new_array(n, table.slot_floats, cnp.NPY_FLOAT)
        self.freq = new_array(n, -1, cnp.NPY_UINT32)
        self.step = new_array(n, -1, cnp.NPY_INT64)
        self.key_data = <int64_t*> cnp.PyArray_DATA(self.keys)
        self.value_data = cnp.PyArray_DATA(self.values)
        self.slot_data = <float*> cnp.PyArray_DATA(self.slots)
        self.freq_data = <uint32_t*> cnp.PyArray_DATA(self.freq)
        self.step_data = <int64_t*> cnp.PyArray_DATA(self.step)

    cdef tuple first(self, Py_ssize_t n):
        """Return (keys, values, slots, freq, step) of the first n rows."""
        return self.keys[:n], self.values[:n], self.slots[:n], self.freq[:n], self.step[:n]


@cython.final
cdef class CoreTable:
    """A table of the CPU engine; owns an ``es_table``. `config` has es_config's fields by name."""

    cdef es_table* table
    cdef Py_ssize_t n_users  # calls that run now; changed under the GIL only
    cdef bint is_closed
    cdef int value_dtype, typenum  # of values as stored
    cdef int find_dtype, find_typenum  # of rows as find gives them: bfloat16 tables give float32
    cdef Py_ssize_t dim, slot_floats, row_bytes
    cdef str where  # for messages

    def __cinit__(self, dict config):
        cdef es_config c
        cdef es_stats stats
        cdef int status
        fill_config(&c, config)
        with nogil:
            status = es_table_create(&c, &self.table)
        self.where = f"table {config['name'].decode()!r}"
        check(status, self.where)
        memset(&stats, 0, sizeof(stats))
        stats.struct_size = sizeof(stats)
        check(es_table_stats(self.table, &stats), self.where)
        self.dim = c.dim
        self.slot_floats = stats.slot_floats
        self.value_dtype = c.value_dtype
        self.typenum = typenum_of(c.value_dtype)
        self.find_dtype = ES_F16 if c.value_dtype == ES_F16 else ES_F32
        self.find_typenum = typenum_of(self.find_dtype)
        self.row_bytes = self.dim * (2 if self.find_dtype == ES_F16 else 4)

    def __dealloc__(self):
        if self.table != NULL:
            with nogil:
                es_unregister_all(self.table)
                es_table_release(self.table)

    cdef int check_open(self) except -1:
        if self.is_closed:
            raise ClosedTableError(f"{self.where} is closed")
        return 0

    cdef int enter(self) except -1:
        """Begin a call; every enter is followed by a leave."""
        self.check_open()
        self.n_users += 1
        return 0

    cdef int leave(self, int status) except -1:
        """End a call: free a table that was closed meanwhile, raise the error of `status`."""
        self.n_users -= 1
        if self.is_closed:
            self.destroy_unused()
        return check(status, self.where)

    cdef void destroy_unused(self) noexcept:
        cdef es_table* table = self.table
        if self.n_users == 0 and table != NULL:
            self.table = NULL
            with nogil:
                es_table_release(table)

    def close(self):
        """Close the table and end its names; its memory goes when nobody is inside a call."""
        self.is_closed = True
        if self.table != NULL:
            es_unregister_all(self.table)
        self.destroy_unused()

    def __len__(self):
        self.enter()
        cdef uint64_t n = es_table_len(self.table)
        self.leave(ES_OK)
        return n

    def find_fast(self, keys, out):
        """Find with default rows if keys and out are exactly as C takes them; None otherwise.

        keys: (n,) int64; out: (n, dim) of the dtype that rows cross in, or None for a new array.
        """
        cdef cnp.ndarray rows
        if self.is_closed or not (
            cnp.PyArray_CheckExact(keys)
            and cnp.PyArray_TYPE(<cnp.ndarray> keys) == cnp.NPY_INT64
            and cnp.PyArray_NDIM(<cnp.ndarray> keys) == 1
            and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> keys)
        ):
            return None
        cdef Py_ssize_t n = cnp.PyArray_DIM(<cnp.ndarray> keys, 0)
        if out is None:
            rows = new_rows(n, self.dim, self.find_typenum)
        elif (
            cnp.PyArray_CheckExact(out)
            and cnp.PyArray_TYPE(<cnp.ndarray> out) == self.find_typenum
            and cnp.PyArray_NDIM(<cnp.ndarray> out) == 2
            and cnp.PyArray_DIM(<cnp.ndarray> out, 0) == n
            and cnp.PyArray_DIM(<cnp.ndarray> out, 1) == self.dim
            and cnp.PyArray_ISCARRAY(<cnp.ndarray> out)
        ):
            rows = <cnp.ndarray> out
        else:
            return None
        cdef const int64_t* key_data = <const int64_t*> cnp.PyArray_DATA(<cnp.ndarray> keys)
        cdef void* row_data = cnp.PyArray_DATA(rows)
        if overlap(key_data, n * 8, row_data, n * self.row_bytes):
            return None
        cdef int status = self.enter()
        if n * self.row_bytes < KEEP_GIL_BYTES:
            status = es_find(
                self.table, key_data, n, row_data, self.find_dtype, 0, NULL, NULL, NULL
            )
        else:
            with nogil:
                status = es_find(
                    self.table, key_data, n, row_data, self.find_dtype, 0, NULL, NULL, NULL
                )
        self.leave(status)
        return rows

    def find(self, keys, rows, int missing, found, freq, step):
        """Fill rows (n, dim), float32 or as stored, and found, freq, step (n,) unless None."""
        cdef Py_ssize_t n = length_of(keys)
        cdef const int64_t* key_data = int64_data(keys, n, "keys")
        cdef int row_dtype = row_dtype_of(rows, self.value_dtype)
        cdef void* row_data = data_of(rows, typenum_of(row_dtype), n * self.dim, "rows")
        cdef uint8_t* found_data = <uint8_t*> optional_data(found, cnp.NPY_BOOL, n, "found")
        cdef uint32_t* freq_data = optional_uint32_data(freq, n, "freq")
        cdef int64_t* step_data = optional_int64_data(step, n, "step")
        cdef int status = self.enter()
        with nogil:
            status = es_find(
                self.table, key_data, n, row_data, row_dtype, missing, found_data, freq_data,
                step_data,
            )
        self.leave(status)

    def contains(self, keys):
        """Return which keys have a row, (n,) bool."""
        cdef Py_ssize_t n = length_of(keys)
        cdef const int64_t* key_data = int64_data(keys, n, "keys")
        cdef cnp.ndarray found = new_array(n, -1, cnp.NPY_BOOL)
        cdef uint8_t* found_data = <uint8_t*> cnp.PyArray_DATA(found)
        cdef int status = self.enter()
        with nogil:
            status = es_contains(self.table, key_data, n, found_data)
        self.leave(status)
        return found

    def find_or_insert(self, keys, int64_t step, counts, bint admit_always, rows):
        """Count, admit and create; fill rows (n, dim) unless None; return a CoreTicket."""
        cdef Py_ssize_t n = length_of(keys)
        cdef const int64_t* key_data = int64_data(keys, n, "keys")
        cdef const uint32_t* count_data = optional_uint32_data(counts, n, "counts")
        cdef int row_dtype = ES_F32
        cdef void* row_data = NULL
        if rows is not None:
            row_dtype = row_dtype_of(rows, self.value_dtype)
            row_data = data_of(rows, typenum_of(row_dtype), n * self.dim, "rows")
        cdef CoreTicket ticket = ticket_of(self)
        cdef int status = self.enter()
        with nogil:
            status = es_find_or_insert(
                self.table, key_data, n, count_data, step, admit_always, row_data, row_dtype,
                &ticket.ticket,
            )
        self.leave(status)
        return ticket

    def assign(self, keys, values, int mode, int64_t step):
        """Write values (n, dim) float32; return es_assign_report's fields."""
        cdef Py_ssize_t n = length_of(keys)
        cdef const int64_t* key_data = int64_data(keys, n, "keys")
        cdef const float* value_data = float_data(values, n * self.dim, "values")
        cdef es_assign_report report
        cdef int status = self.enter()
        with nogil:
            status = es_assign(self.table, key_data, n, value_data, mode, step, &report)
        self.leave(status)
        return report.n_replaced, report.n_inserted, report.n_refused

    def erase(self, keys):
        """Remove rows and candidates; return how many rows."""
        cdef Py_ssize_t n = length_of(keys)
        cdef const int64_t* key_data = int64_data(keys, n, "keys")
        cdef uint64_t n_erased = 0
        cdef int status = self.enter()
        with nogil:
            status = es_erase(self.table, key_data, n, &n_erased)
        self.leave(status)
        return n_erased

    def clear(self):
        """Remove all rows, candidates and counts; end all tickets."""
        cdef int status = self.enter()
        with nogil:
            status = es_table_clear(self.table)
        self.leave(status)

    def set_restoring(self, bint is_restoring):
        """Say whether what is imported comes out of a checkpoint; max_bytes is not asked then."""
        self.enter()
        self.leave(es_table_set_restoring(self.table, is_restoring))

    def reserve(self, uint64_t n_rows):
        """Make and touch memory for n_rows rows."""
        cdef int status = self.enter()
        with nogil:
            status = es_table_reserve(self.table, n_rows)
        self.leave(status)

    def evict(self, list predicates, int64_t step, uint64_t max_rows, uint64_t keep_at_least,
              pins, double max_seconds, bint dry_run, bint collect):
        """Remove what the predicates select; return es_evict_report's fields."""
        cdef es_predicate[32] program
        cdef es_evict_args args
        cdef es_evict_report report
        memset(&args, 0, sizeof(args))
        fill_predicates(program, predicates)
        args.struct_size = sizeof(args)
        args.n_predicates = len(predicates)
        args.predicates = program
        args.step = step
        args.max_rows = max_rows
        args.keep_at_least = keep_at_least
        args.n_pins = length_of(pins)
        args.pins = int64_data(pins, args.n_pins, "pins")
        args.max_seconds = max_seconds
        args.dry_run = dry_run
        args.collect = collect
        cdef int status = self.enter()
        with nogil:
            status = es_evict(self.table, &args, &report)
        self.leave(status)
        return report.n_scanned, report.n_selected, report.n_evicted, report.is_complete != 0

    def set_pins(self, keys):
        """Replace the pinned keys."""
        cdef Py_ssize_t n = length_of(keys)
        cdef const int64_t* key_data = int64_data(keys, n, "keys")
        cdef int status = self.enter()
        with nogil:
            status = es_set_pins(self.table, key_data, n)
        self.leave(status)

    def evicted_count(self):
        """Return the number of collected evicted rows."""
        cdef uint64_t n = 0
        cdef int status = self.enter()
        with nogil:
            status = es_evicted_count(self.table, &n)
        self.leave(status)
        return n

    def evicted_take(self, Py_ssize_t n):
        """Return (keys, values as stored, slots, freq, step) of the n collected evicted rows."""
        cdef _RowArrays rows = _RowArrays(n, self)
        cdef int status = self.enter()
        with nogil:
            status = es_evicted_take(
                self.table, n, rows.key_data, rows.value_data, rows.slot_data, rows.freq_data,
                rows.step_data,
            )
        self.leave(status)
        return rows.first(n)

    def partition_counts(self, bint candidates):
        """Return the live rows (or candidates) of each of the 256 partitions, uint64."""
        cdef cnp.ndarray counts = new_array(256, -1, cnp.NPY_UINT64)
        cdef uint64_t* count_data = <uint64_t*> cnp.PyArray_DATA(counts)
        cdef int status = self.enter()
        with nogil:
            status = es_partition_counts(self.table, candidates, count_data)
        self.leave(status)
        return counts

    def export_rows(self, uint32_t first, uint32_t last, Py_ssize_t capacity):
        """Return (keys, values as stored, slots, freq, step) of at most capacity rows."""
        cdef _RowArrays rows = _RowArrays(capacity, self)
        cdef uint64_t n = 0
        cdef int status = self.enter()
        with nogil:
            status = es_export(
                self.table, first, last, capacity, rows.key_data, rows.value_data, rows.slot_data,
                rows.freq_data, rows.step_data, &n,
            )
        self.leave(status)
        return rows.first(n)

    def import_rows(self, keys, values, slots, freq, step):
        """Create or replace complete rows; slots, freq and step may be None."""
        cdef Py_ssize_t n = length_of(keys)
        cdef const int64_t* key_data = int64_data(keys, n, "keys")
        cdef const void* value_data = data_of(values, self.typenum, n * self.dim, "values")
        cdef const float* slot_data = optional_float_data(slots, n * self.slot_floats, "slots")
        cdef const uint32_t* freq_data = optional_uint32_data(freq, n, "freq")
        cdef const int64_t* step_data = optional_int64_data(step, n, "step")
        cdef int status = self.enter()
        with nogil:
            status = es_import(self.table, key_data, n, value_data, slot_data, freq_data, step_data)
        self.leave(status)

    def export_candidates(self, uint32_t first, uint32_t last, Py_ssize_t capacity):
        """Return (keys, counts, epochs) of at most capacity candidates."""
        cdef cnp.ndarray keys = new_array(capacity, -1, cnp.NPY_INT64)
        cdef cnp.ndarray counts = new_array(capacity, -1, cnp.NPY_UINT32)
        cdef cnp.ndarray epochs = new_array(capacity, -1, cnp.NPY_INT64)
        cdef int64_t* key_data = <int64_t*> cnp.PyArray_DATA(keys)
        cdef uint32_t* count_data = <uint32_t*> cnp.PyArray_DATA(counts)
        cdef int64_t* epoch_data = <int64_t*> cnp.PyArray_DATA(epochs)
        cdef uint64_t n = 0
        cdef int status = self.enter()
        with nogil:
            status = es_export_candidates(
                self.table, first, last, capacity, key_data, count_data, epoch_data, &n
            )
        self.leave(status)
        return keys[:n], counts[:n], epochs[:n]

    def import_candidates(self, keys, counts, epochs):
        """Create candidates; their keys must be absent."""
        cdef Py_ssize_t n = length_of(keys)
        cdef const int64_t* key_data = int64_data(keys, n, "keys")
        cdef const uint32_t* count_data = uint32_data(counts, n, "counts")
        cdef const int64_t* epoch_data = int64_data(epochs, n, "epochs")
        cdef int status = self.enter()
        with nogil:
            status = es_import_candidates(self.table, key_data, n, count_data, epoch_data)
        self.leave(status)

    def bloom_partition_bytes(self):
        """Return the bytes of one sub-filter; 0 without a filter."""
        cdef uint64_t n = 0
        self.enter()
        self.leave(es_bloom_partition_bytes(self.table, &n))
        return n

    def bloom_read(self, uint32_t partition):
        """Return the bytes of one sub-filter, uint8."""
        cdef cnp.ndarray out = new_array(self.bloom_partition_bytes(), -1, cnp.NPY_UINT8)
        cdef uint8_t* out_data = <uint8_t*> cnp.PyArray_DATA(out)
        cdef int status = self.enter()
        with nogil:
            status = es_bloom_read(self.table, partition, out_data)
        self.leave(status)
        return out

    def bloom_write(self, uint32_t partition, data):
        """Replace the bytes of one sub-filter."""
        cdef Py_ssize_t n = self.bloom_partition_bytes()
        cdef const uint8_t* in_data = <const uint8_t*> data_of(data, cnp.NPY_UINT8, n, "data")
        cdef int status = self.enter()
        with nogil:
            status = es_bloom_write(self.table, partition, in_data)
        self.leave(status)

    def get_state(self):
        """Return es_state's fields by name."""
        cdef es_state state
        memset(&state, 0, sizeof(state))
        state.struct_size = sizeof(state)
        cdef int status = self.enter()
        with nogil:
            status = es_table_get_state(self.table, &state)
        self.leave(status)
        fields = dict(state)
        del fields["struct_size"], fields["reserved"]
        return fields

    def set_state(self, dict fields):
        """Set es_state's fields, all of them."""
        cdef es_state state = dict(fields, struct_size=sizeof(es_state), reserved=0)
        cdef int status = self.enter()
        with nogil:
            status = es_table_set_state(self.table, &state)
        self.leave(status)

    def stats(self):
        """Return es_stats' fields by name."""
        cdef es_stats stats
        memset(&stats, 0, sizeof(stats))
        stats.struct_size = sizeof(stats)
        cdef int status = self.enter()
        with nogil:
            status = es_table_stats(self.table, &stats)
        self.leave(status)
        fields = dict(stats)
        del fields["struct_size"]
        return fields

    def changes(self):
        """Return (upserted, deleted) keys of the change log."""
        cdef uint64_t n_upserted = 0, n_deleted = 0
        cdef int status = self.enter()
        with nogil:
            status = es_changes_count(self.table, &n_upserted, &n_deleted)
        self.leave(status)
        cdef cnp.ndarray upserted = new_array(n_upserted, -1, cnp.NPY_INT64)
        cdef cnp.ndarray deleted = new_array(n_deleted, -1, cnp.NPY_INT64)
        cdef int64_t* upserted_data = <int64_t*> cnp.PyArray_DATA(upserted)
        cdef int64_t* deleted_data = <int64_t*> cnp.PyArray_DATA(deleted)
        self.enter()
        with nogil:
            status = es_changes_read(self.table, n_upserted, upserted_data, n_deleted, deleted_data)
        self.leave(status)
        return upserted, deleted

    def reset_changes(self):
        """Begin a new change log."""
        cdef int status = self.enter()
        with nogil:
            status = es_changes_reset(self.table)
        self.leave(status)

    def publish(self, bytes name):
        """Register the table by a name."""
        self.enter()
        self.leave(es_register(name, len(name), self.table))

    def withdraw(self, bytes name):
        """End a name of the table."""
        self.enter()
        self.leave(es_unregister(name, len(name), self.table))

    def take_names(self, CoreTable other):
        """Take over all names of another table, and its gate."""
        self.check_open()
        if other.table != NULL:
            check(es_registry_move(other.table, self.table), self.where)

    def set_rate(self, double lr):
        """Set the learning rate of updates by name; NaN if there is none."""
        self.enter()
        es_table_set_rate(self.table, lr)
        self.leave(ES_OK)


def version():
    """Return the version of the native library."""
    return es_version().decode()


def cpu_path():
    """Return the instruction set in use: baseline, avx2 or avx512."""
    return es_cpu_path().decode()


def num_threads():
    """Return the number of threads that a call may use."""
    return es_num_threads()


def set_num_threads(int n):
    """Set the number of threads that a call may use."""
    check(es_set_num_threads(n), "set_num_threads")


def fixed_hash(keys):
    """Return the fixed hash of each key, (n,) uint64; its top 8 bits are the partition."""
    cdef Py_ssize_t n = length_of(keys)
    cdef const int64_t* key_data = int64_data(keys, n, "keys")
    cdef cnp.ndarray out = new_array(n, -1, cnp.NPY_UINT64)
    cdef uint64_t* out_data = <uint64_t*> cnp.PyArray_DATA(out)
    cdef int status
    with nogil:
        status = es_fixed_hash_many(key_data, n, out_data)
    check(status, "fixed_hash")
    return out


def plan(dict config, uint64_t n_rows, uint64_t n_candidates):
    """Return (resting_bytes, peak_bytes) of a table of this config with so many rows."""
    cdef es_config c
    cdef es_plan_report report
    fill_config(&c, config)
    check(es_plan(&c, n_rows, n_candidates, &report), "plan")
    return report.resting_bytes, report.peak_bytes


include "core_buffers.pxi"
include "core_many.pxi"
include "core_mapping.pxi"
include "core_names.pxi"
include "core_snapshot.pxi"
