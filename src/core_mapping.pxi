# Files as memory: address space that is reserved first and then given files. Included by _core.pyx.

from cpython.exc cimport PyErr_SetFromErrno


cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* address, size_t n_bytes, int protection, int flags, int fd, int64_t offset)
    int munmap(void* address, size_t n_bytes)
    void* MAP_FAILED
    int MAP_ANONYMOUS, MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, MAP_SHARED, PROT_NONE, PROT_READ


@cython.final
cdef class AddressRange:
    """Addresses that nothing else uses, for files to be read at; an array over them keeps it."""

    cdef char* first
    cdef size_t n_bytes

    def __cinit__(self, size_t n_bytes):
        cdef void* found = mmap(
            NULL, n_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
        )
        if found == MAP_FAILED:
            PyErr_SetFromErrno(OSError)
        self.first = <char*> found
        self.n_bytes = n_bytes

    def __dealloc__(self):
        if self.first != NULL:
            munmap(self.first, self.n_bytes)

    def map(self, int fd, size_t n_bytes, size_t start):
        """Let the first n_bytes of a file be read at `start`, a multiple of the page size."""
        if start > self.n_bytes or n_bytes > self.n_bytes - start:
            reject("a file goes beyond the range that it is mapped to")
        cdef void* found = mmap(
            self.first + start, n_bytes, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0
        )
        if found == MAP_FAILED:
            PyErr_SetFromErrno(OSError)

    def array(self):
        """Return the memory as a read-only array, (n_bytes,) uint8; no file, no access."""
        cdef cnp.npy_intp shape = self.n_bytes
        cdef cnp.ndarray array = cnp.PyArray_SimpleNewFromData(1, &shape, cnp.NPY_UINT8, self.first)
        cnp.set_array_base(array, self)
        cnp.PyArray_CLEARFLAGS(array, cnp.NPY_ARRAY_WRITEABLE)
        return array
