# Checks of arrays and status codes for the binding.

cimport numpy as cnp
from libc.stdint cimport int64_t, uint32_t, uintptr_t

from embstore_abi cimport ES_F16, ES_F32, ES_OK, es_last_error


cdef inline int check(int status, str where) except -1:
    """Raise the error of `status`, which this thread's last call returned."""
    if status == ES_OK:
        return 0
    from embstore import errors

    text = es_last_error().decode("utf-8", "replace")
    by_status = (
        errors.ArgumentError,
        errors.OutOfMemoryError,
        errors.CapacityError,
        errors.NonFiniteError,
        errors.MissingKeyError,
        errors.TicketError,
        errors.ForkError,
        errors.InternalError,
        errors.CheckpointError,
        errors.ArgumentError,
    )
    error = by_status[status - 1 if 0 < status <= len(by_status) else 7]
    raise error(f"{where}: {text}")


cdef inline int reject(str text) except -1:
    """Raise ArgumentError: an array is not as C reads it."""
    from embstore.errors import ArgumentError

    raise ArgumentError(f"_core: {text}")


cdef inline void* data_of(object array, int typenum, Py_ssize_t size,
                          const char* name) except? NULL:
    """Return the memory of `array`, which must be C-contiguous with `size` items of `typenum`."""
    if not (
        cnp.PyArray_Check(array)
        and cnp.PyArray_TYPE(<cnp.ndarray> array) == typenum
        and cnp.PyArray_SIZE(<cnp.ndarray> array) == size
        and cnp.PyArray_ISCARRAY_RO(<cnp.ndarray> array)
    ):
        reject(f"{name.decode()} is not a contiguous array of {size} items of its dtype")
    return cnp.PyArray_DATA(<cnp.ndarray> array)


cdef inline void* optional_data(object array, int typenum, Py_ssize_t size,
                                const char* name) except? NULL:
    return NULL if array is None else data_of(array, typenum, size, name)


cdef inline int64_t* int64_data(object array, Py_ssize_t n, const char* name) except? NULL:
    return <int64_t*> data_of(array, cnp.NPY_INT64, n, name)


cdef inline uint32_t* uint32_data(object array, Py_ssize_t n, const char* name) except? NULL:
    return <uint32_t*> data_of(array, cnp.NPY_UINT32, n, name)


cdef inline float* float_data(object array, Py_ssize_t n, const char* name) except? NULL:
    return <float*> data_of(array, cnp.NPY_FLOAT, n, name)


cdef inline int64_t* optional_int64_data(object array, Py_ssize_t n,
                                         const char* name) except? NULL:
    if array is None:
        return NULL
    return int64_data(array, n, name)


cdef inline uint32_t* optional_uint32_data(object array, Py_ssize_t n,
                                           const char* name) except? NULL:
    if array is None:
        return NULL
    return uint32_data(array, n, name)


cdef inline float* optional_float_data(object array, Py_ssize_t n,
                                       const char* name) except? NULL:
    if array is None:
        return NULL
    return float_data(array, n, name)


cdef inline Py_ssize_t length_of(object keys) except -1:
    """Return the number of keys."""
    if not cnp.PyArray_Check(keys) or cnp.PyArray_NDIM(<cnp.ndarray> keys) != 1:
        reject("keys is not a one-dimensional array")
    return cnp.PyArray_DIM(<cnp.ndarray> keys, 0)


cdef inline Py_ssize_t height_of(object rows) except -1:
    """Return the number of rows."""
    if not cnp.PyArray_Check(rows) or cnp.PyArray_NDIM(<cnp.ndarray> rows) != 2:
        reject("rows is not a two-dimensional array")
    return cnp.PyArray_DIM(<cnp.ndarray> rows, 0)


cdef inline int typenum_of(int value_dtype) noexcept:
    """Return numpy's number of an es_dtype; bfloat16 is held as its bits."""
    if value_dtype == ES_F32:
        return cnp.NPY_FLOAT
    return cnp.NPY_FLOAT16 if value_dtype == ES_F16 else cnp.NPY_UINT16


cdef inline int row_dtype_of(object rows, int value_dtype) except -1:
    """Return the es_dtype of an array of rows: float32, or the table's own."""
    cdef int typenum = cnp.PyArray_TYPE(rows) if cnp.PyArray_Check(rows) else -1
    if typenum == cnp.NPY_FLOAT:
        return ES_F32
    if typenum != typenum_of(value_dtype):
        reject("rows have neither float32 nor the table's dtype")
    return value_dtype


cdef inline cnp.ndarray new_array(Py_ssize_t n, Py_ssize_t width, int typenum):
    """Return a new array, (n,) if `width` is -1, else (n, width)."""
    cdef cnp.npy_intp[2] shape
    shape[0] = n
    shape[1] = width
    return cnp.PyArray_SimpleNew(1 if width < 0 else 2, shape, typenum)


cdef inline bint overlap(const void* a, Py_ssize_t n_a, const void* b, Py_ssize_t n_b) noexcept:
    """Whether two spans of memory share a byte."""
    return <uintptr_t> a < <uintptr_t> b + n_b and <uintptr_t> b < <uintptr_t> a + n_a
