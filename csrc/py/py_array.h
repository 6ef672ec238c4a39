/* py_array.h - NumPy arrays for the other files of the binding. */
#ifndef TLPY_ARRAY_H
#define TLPY_ARRAY_H

#include "py/py_state.h"

enum tlpy_dtype {
    TLPY_F32,
    TLPY_F64,
    TLPY_U8,
    TLPY_I32,
    TLPY_I64,
    TLPY_I8,
    TLPY_U16,
    TLPY_I16,
    TLPY_U32,
    TLPY_U64,
    TLPY_BOOL,
};

int tlpy_array_init(void);

/* A new C-contiguous array and where its data starts; NULL with an exception set. */
PyObject *tlpy_array_new(enum tlpy_dtype dtype, int ndim, const size_t *shape, void **data);

/* A new float32 array, not cleared, whose memory comes from the block cache and returns there. */
PyObject *tlpy_array_pooled(int ndim, const size_t *shape);

/* A read-only view of memory that `owner` keeps alive. */
PyObject *tlpy_array_view(enum tlpy_dtype dtype, int ndim, const size_t *shape, const void *data,
                          PyObject *owner);

/* Makes a new array read-only. */
void tlpy_array_freeze(PyObject *array);

/* Reads a dtype that is float32 or float64; -1 with an exception set when it is neither. */
int tlpy_array_float_dtype(PyObject *any, enum tlpy_dtype *out);

/*
 * Row numbers from a sequence of ints (negative ones count from the end) or from a mask of n
 * bools, as a new int64 array with 0 <= row < n.
 */
PyObject *tlpy_array_rows(PyObject *any, size_t n);

/* Any array_like as a C-contiguous array of that type (new reference), no lossy cast. */
PyObject *tlpy_array_from(PyObject *any, enum tlpy_dtype dtype);

/* The data and size of a writable C-contiguous array of that type; NULL with an exception set if
   `array` is not one. */
void *tlpy_array_data(PyObject *array, enum tlpy_dtype dtype, const char *name, size_t *size);

/* A new float64 array of the shape of one made by tlpy_array_from. */
PyObject *tlpy_array_like(PyObject *array, void **data);

/* The data of an array made by tlpy_array_from. */
const void *tlpy_array_read(PyObject *array, size_t *size);

#endif
