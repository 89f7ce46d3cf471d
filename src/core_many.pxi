# Calls over the batches of many tables: es_batch and es_part out of tuples. Included by _core.pyx.
#
# 1. A batch is (CoreTable, its parts, CoreTicket or None, lr).
# 2. A part is (keys, rows, counts, bags): keys may be None where a ticket knows them, counts and
#    bags where there are none.
# 3. Bags are (offsets, mode, weights or None).

from libc.stdlib cimport calloc, free


cdef int pool_mode_of(str mode) except -1:
    if mode == "sum":
        return ES_POOL_SUM
    if mode == "mean":
        return ES_POOL_MEAN
    return ES_POOL_SQRTN


@cython.final
cdef class _Call:
    """The structs of one call; what was given keeps the memory alive that C reads."""

    cdef list given
    cdef Py_ssize_t n
    cdef es_batch* batches
    cdef es_part* parts

    def __cinit__(self, list given, bint has_gradients):
        cdef Py_ssize_t n_parts = 0, b
        cdef CoreTable table
        cdef CoreTicket ticket
        cdef es_batch* batch
        cdef es_part* part
        self.given = given
        self.n = len(given)
        for _, parts, _, _ in given:
            n_parts += len(parts)
        self.batches = <es_batch*> calloc(self.n + 1, sizeof(es_batch))
        self.parts = part = <es_part*> calloc(n_parts + 1, sizeof(es_part))
        if self.batches == NULL or self.parts == NULL:
            raise MemoryError()
        for b, (table, parts, ticket, lr) in enumerate(given):
            batch = &self.batches[b]
            batch.table = table.table
            batch.parts = part
            batch.n_parts = len(parts)
            if ticket is not None:
                batch.ticket = ticket.ticket
            batch.lr = lr
            for keys, rows, counts, bags in parts:
                self.fill(part, table, keys, rows, counts, bags, has_gradients)
                part += 1

    def __dealloc__(self):
        free(self.batches)
        free(self.parts)

    cdef int fill(self, es_part* part, CoreTable table, keys, rows, counts, bags,
                  bint has_gradients) except -1:
        cdef Py_ssize_t n_rows = height_of(rows)
        cdef Py_ssize_t n = n_rows
        part.row_dtype = ES_F32
        if bags is not None:
            offsets, mode, weights = bags
            part.mode = pool_mode_of(mode)
            part.n_bags = n_rows
            part.offsets = int64_data(offsets, n_rows + 1, "offsets")
            n = part.offsets[n_rows] if keys is None else length_of(keys)
            part.weights = optional_float_data(weights, n, "weights")
        elif not has_gradients:
            part.row_dtype = row_dtype_of(rows, table.value_dtype)
        part.rows = data_of(rows, typenum_of(part.row_dtype), n_rows * table.dim, "rows")
        part.n = n
        part.keys = optional_int64_data(keys, n, "keys")
        part.counts = optional_uint32_data(counts, n, "counts")
        return 0

    cdef int enter(self) except -1:
        """Begin the call in all tables, or in none."""
        cdef CoreTable table
        for table, _, _, _ in self.given:
            table.check_open()
        for table, _, _, _ in self.given:
            table.enter()
        return 0

    cdef int leave(self, int status) except -1:
        """End the call in all tables; raise the error of `status` in the name of its table."""
        cdef CoreTable table
        cdef Py_ssize_t b
        cdef str where = "a call over many tables"
        for b, (table, _, _, _) in enumerate(self.given):
            if self.batches[b].has_failed:
                where = table.where
            table.leave(ES_OK)
        return check(status, where)


def are_offsets(offsets, int64_t n_keys):
    """Return whether offsets (n_bags + 1,) go from 0 to n_keys and never down."""
    cdef Py_ssize_t n = length_of(offsets), i
    cdef const int64_t* data = int64_data(offsets, n, "offsets")
    if n == 0 or data[0] != 0 or data[n - 1] != n_keys:
        return False
    for i in range(1, n):
        if data[i] < data[i - 1]:
            return False
    return True


def find_many(list given, int missing):
    """Fill the rows of all parts."""
    cdef _Call call = _Call(given, False)
    cdef int status = call.enter()
    with nogil:
        status = es_find_many(call.batches, call.n, missing)
    call.leave(status)


def find_or_insert_many(list given, int64_t step, bint admit_always):
    """Count, admit and create; fill the rows of all parts; return a CoreTicket for each batch."""
    cdef _Call call = _Call(given, False)
    cdef list tickets = [ticket_of(batch[0]) for batch in given]
    cdef Py_ssize_t b
    cdef int status = call.enter()
    with nogil:
        status = es_find_or_insert_many(call.batches, call.n, step, admit_always)
    for b in range(call.n):
        (<CoreTicket> tickets[b]).ticket = call.batches[b].ticket
    call.leave(status)
    return tickets


def apply_many(list given, int64_t step):
    """Update rows by gradients, the rows of all parts; return es_apply_report's fields of each."""
    cdef _Call call = _Call(given, True)
    cdef Py_ssize_t b
    cdef int status = call.enter()
    with nogil:
        status = es_apply_gradients_many(call.batches, call.n, step)
    call.leave(status)
    return [report_of(&call.batches[b].report) for b in range(call.n)]


cdef CoreTicket ticket_of(CoreTable table):
    """Return a ticket that is still empty."""
    cdef CoreTicket ticket = CoreTicket.__new__(CoreTicket)
    ticket.table = table
    return ticket


cdef tuple report_of(const es_apply_report* report):
    return report.n_applied, report.n_dropped, report.n_stale, report.n_nonfinite
