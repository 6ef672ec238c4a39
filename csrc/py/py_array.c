/* py_array.c - the only file that includes NumPy. */
#include "py/py_array.h"

#include "base/block_cache.h"

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_1_25_API_VERSION
#include <numpy/arrayobject.h>

static const int typenums[] = {
    [TLPY_F32] = NPY_FLOAT32, [TLPY_F64] = NPY_FLOAT64, [TLPY_U8] = NPY_UINT8,
    [TLPY_I32] = NPY_INT32,   [TLPY_I64] = NPY_INT64,   [TLPY_I8] = NPY_INT8,
    [TLPY_U16] = NPY_UINT16,  [TLPY_I16] = NPY_INT16,   [TLPY_U32] = NPY_UINT32,
    [TLPY_U64] = NPY_UINT64,  [TLPY_BOOL] = NPY_BOOL,
};

static const char *const dtype_names[] = {
    [TLPY_F32] = "float32", [TLPY_F64] = "float64", [TLPY_U8] = "uint8",   [TLPY_I32] = "int32",
    [TLPY_I64] = "int64",   [TLPY_I8] = "int8",     [TLPY_U16] = "uint16", [TLPY_I16] = "int16",
    [TLPY_U32] = "uint32",  [TLPY_U64] = "uint64",  [TLPY_BOOL] = "bool",
};

int tlpy_array_init(void) {
    import_array1(-1);
    return 0;
}

static bool dims_from(int ndim, const size_t *shape, npy_intp *dims) {
    for (int i = 0; i < ndim; i++) {
        if (shape[i] > (size_t)NPY_MAX_INTP) {
            PyErr_NoMemory();
            return false;
        }
        dims[i] = (npy_intp)shape[i];
    }
    return true;
}

PyObject *tlpy_array_new(enum tlpy_dtype dtype, int ndim, const size_t *shape, void **data) {
    npy_intp dims[NPY_MAXDIMS_LEGACY_ITERS];
    PyObject *array;
    if (!dims_from(ndim, shape, dims)) return NULL;
    array = PyArray_SimpleNew(ndim, dims, typenums[dtype]);
    if (array != NULL) *data = PyArray_DATA((PyArrayObject *)array);
    return array;
}

static void give_back(PyObject *capsule) {
    const size_t bytes = (size_t)(uintptr_t)PyCapsule_GetContext(capsule);
    tl_block_cache_give(PyCapsule_GetPointer(capsule, NULL), bytes);
}

PyObject *tlpy_array_pooled(int ndim, const size_t *shape) {
    npy_intp dims[NPY_MAXDIMS_LEGACY_ITERS];
    PyObject *array, *owner;
    size_t bytes = sizeof(float);
    void *data;
    if (!dims_from(ndim, shape, dims)) return NULL;
    for (int i = 0; i < ndim; i++) {
        if (!tl_mul_size(bytes, shape[i], &bytes)) return PyErr_NoMemory();
    }
    data = tl_block_cache_take(bytes);
    if (data == NULL) return PyErr_NoMemory();
    owner = PyCapsule_New(data, NULL, give_back);
    if (owner == NULL) {
        tl_block_cache_give(data, bytes);
        return NULL;
    }
    PyCapsule_SetContext(owner, (void *)(uintptr_t)bytes);
    array = PyArray_SimpleNewFromData(ndim, dims, NPY_FLOAT32, data);
    if (array == NULL) {
        Py_DECREF(owner);
    } else if (PyArray_SetBaseObject((PyArrayObject *)array, owner) < 0) { // took the reference
        Py_CLEAR(array);
    }
    return array;
}

PyObject *tlpy_array_view(enum tlpy_dtype dtype, int ndim, const size_t *shape, const void *data,
                          PyObject *owner) {
    npy_intp dims[NPY_MAXDIMS_LEGACY_ITERS];
    PyObject *view;
    if (!dims_from(ndim, shape, dims)) return NULL;
    view = PyArray_SimpleNewFromData(ndim, dims, typenums[dtype], (void *)data);
    if (view == NULL) return NULL;
    PyArray_CLEARFLAGS((PyArrayObject *)view, NPY_ARRAY_WRITEABLE);
    // takes the reference even if it fails
    if (PyArray_SetBaseObject((PyArrayObject *)view, Py_NewRef(owner)) < 0) Py_CLEAR(view);
    return view;
}

void tlpy_array_freeze(PyObject *array) {
    PyArray_CLEARFLAGS((PyArrayObject *)array, NPY_ARRAY_WRITEABLE);
}

int tlpy_array_float_dtype(PyObject *any, enum tlpy_dtype *out) {
    PyArray_Descr *descr = NULL;
    bool native;
    int type;
    if (!PyArray_DescrConverter(any, &descr)) return -1;
    type = descr->type_num;
    native = PyArray_ISNBO(descr->byteorder);
    Py_DECREF(descr);
    if (native && (type == NPY_FLOAT32 || type == NPY_FLOAT64)) {
        *out = type == NPY_FLOAT32 ? TLPY_F32 : TLPY_F64;
        return 0;
    }
    PyErr_Format(PyExc_TypeError, "dtype must be float32 or float64, not %R", any);
    return -1;
}

/* Negative rows count from the end, except where the cast made one of a huge unsigned number. */
static bool check_rows(npy_int64 *row, npy_intp count, size_t n, bool is_unsigned) {
    for (npy_intp i = 0; i < count; i++) {
        npy_int64 at = row[i] < 0 && !is_unsigned ? row[i] + (npy_int64)n : row[i];
        if (at < 0 || (npy_uint64)at >= n) {
            PyErr_Format(PyExc_IndexError, "row %lld is out of range for %zu rows",
                         (long long)row[i], n);
            return false;
        }
        row[i] = at;
    }
    return true;
}

PyObject *tlpy_array_rows(PyObject *any, size_t n) {
    PyObject *given = PyArray_FROM_O(any), *rows = NULL;
    PyArrayObject *a = (PyArrayObject *)given;
    if (given == NULL) return NULL;
    if (PyArray_NDIM(a) != 1) {
        PyErr_Format(PyExc_IndexError, "rows must be one-dimensional, not %d-dimensional",
                     PyArray_NDIM(a));
    } else if (PyArray_TYPE(a) == NPY_BOOL) {
        PyObject *found;
        if ((size_t)PyArray_SIZE(a) != n) {
            PyErr_Format(PyExc_IndexError, "the mask of rows has %zd entries for %zu rows",
                         (Py_ssize_t)PyArray_SIZE(a), n);
        } else if ((found = PyArray_Nonzero(a)) != NULL) {
            rows = PyArray_FROM_OTF(PyTuple_GET_ITEM(found, 0), NPY_INT64, NPY_ARRAY_IN_ARRAY);
            Py_DECREF(found);
        }
    } else if (PyArray_SIZE(a) == 0 || PyTypeNum_ISINTEGER(PyArray_TYPE(a))) {
        rows = PyArray_FROM_OTF(given, NPY_INT64,
                                NPY_ARRAY_CARRAY | NPY_ARRAY_ENSURECOPY | NPY_ARRAY_FORCECAST);
        if (rows != NULL && !check_rows(PyArray_DATA((PyArrayObject *)rows), PyArray_SIZE(a), n,
                                        PyTypeNum_ISUNSIGNED(PyArray_TYPE(a)))) {
            Py_CLEAR(rows);
        }
    } else {
        PyErr_Format(PyExc_IndexError,
                     "rows must be None, an int, a slice, ints, or a mask of bools, not %R", any);
    }
    Py_DECREF(given);
    return rows;
}

PyObject *tlpy_array_from(PyObject *any, enum tlpy_dtype dtype) {
    return PyArray_FROM_OTF(any, typenums[dtype], NPY_ARRAY_IN_ARRAY);
}

void *tlpy_array_data(PyObject *array, enum tlpy_dtype dtype, const char *name, size_t *size) {
    PyArrayObject *a = (PyArrayObject *)array;
    if (!PyArray_Check(array) || PyArray_TYPE(a) != typenums[dtype] ||
        !PyArray_IS_C_CONTIGUOUS(a) || !PyArray_ISBEHAVED(a)) {
        PyErr_Format(PyExc_TypeError, "%s must be a writable C-contiguous array of %s", name,
                     dtype_names[dtype]);
        return NULL;
    }
    *size = (size_t)PyArray_SIZE(a);
    return PyArray_DATA(a);
}

const void *tlpy_array_read(PyObject *array, size_t *size) {
    *size = (size_t)PyArray_SIZE((PyArrayObject *)array);
    return PyArray_DATA((PyArrayObject *)array);
}

PyObject *tlpy_array_like(PyObject *array, void **data) {
    PyArrayObject *a = (PyArrayObject *)array;
    PyObject *result = PyArray_SimpleNew(PyArray_NDIM(a), PyArray_DIMS(a), NPY_FLOAT64);
    if (result != NULL) *data = PyArray_DATA((PyArrayObject *)result);
    return result;
}
