# The gate of a table that is known by name. Included by _core.pyx.


@cython.final
cdef class CoreGate:
    """Holds out those who write to a table by its name; a thread may hold it more than once."""

    cdef es_gate* gate

    def __cinit__(self, CoreTable table):
        cdef int status
        table.enter()
        status = es_table_gate(table.table, &self.gate)
        table.leave(status)

    def __dealloc__(self):
        if self.gate != NULL:
            es_gate_destroy(self.gate)

    def acquire(self):
        """Wait for the gate, and hold it."""
        if not es_gate_try_lock(self.gate):
            with nogil:
                es_gate_lock(self.gate)

    def release(self):
        """Let it go, in the thread that holds it."""
        es_gate_unlock(self.gate)
