# Arrays for the rows that calls give, large ones in memory that goes back to the pool of embstore.h
# when the last view of it dies. Included by _core.pyx.

cdef Py_ssize_t LEAST_POOLED_BYTES = 1024 * 1024


cdef es_buffer_stats buffers_now() except *:
    cdef es_buffer_stats stats
    memset(&stats, 0, sizeof(stats))
    stats.struct_size = sizeof(stats)
    check(es_buffers_stats(&stats), "the pool of outputs")
    return stats


cdef bint HAS_POOL = buffers_now().limit_bytes > 0


@cython.final
cdef class _Buffer:
    """The base of arrays in pooled memory."""

    cdef es_buffer* buffer

    def __dealloc__(self):
        if self.buffer != NULL:
            es_buffer_give(self.buffer)


cdef cnp.ndarray new_rows(Py_ssize_t n, Py_ssize_t width, int typenum):
    """As new_array. It may hold rows of an earlier call: whoever gives it away fills it whole."""
    cdef cnp.npy_intp[2] shape
    cdef cnp.ndarray array
    cdef _Buffer base
    cdef Py_ssize_t n_bytes = n * (1 if width < 0 else width)
    n_bytes *= (<cnp.dtype> cnp.PyArray_DescrFromType(typenum)).itemsize
    if n_bytes < LEAST_POOLED_BYTES or not HAS_POOL:
        try:
            return new_array(n, width, typenum)
        except MemoryError as error:
            raise OutOfMemoryError(f"rows of {n_bytes} bytes: the system gave no memory") from error
    base = _Buffer.__new__(_Buffer)
    check(es_buffer_take(n_bytes, &base.buffer), f"rows of {n_bytes} bytes")
    shape[0] = n
    shape[1] = width
    array = cnp.PyArray_SimpleNewFromData(
        1 if width < 0 else 2, shape, typenum, es_buffer_data(base.buffer)
    )
    cnp.set_array_base(array, base)
    return array


def new_output(Py_ssize_t n, Py_ssize_t width, cnp.dtype dtype not None):
    """Return a new array, (n,) if width is -1, else (n, width), to be filled whole."""
    return new_rows(n, width, dtype.num)


def buffer_stats():
    """Return (limit_bytes, kept_bytes, used_bytes, n_taken, n_reused) of the pool."""
    cdef es_buffer_stats stats = buffers_now()
    return stats.limit_bytes, stats.kept_bytes, stats.used_bytes, stats.n_taken, stats.n_reused


def release_buffers():
    """Give the memory that waits in the pool back to the system."""
    check(es_buffers_release(), "release_buffers")
