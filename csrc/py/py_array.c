/* py_array.c - the only file that includes NumPy. */
#include "py.h"

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_1_25_API_VERSION
#include <numpy/arrayobject.h>

static const int typenums[] = {
    [TLPY_F32] = NPY_FLOAT32, [TLPY_F64] = NPY_FLOAT64, [TLPY_U8] = NPY_UINT8,
    [TLPY_I32] = NPY_INT32,   [TLPY_I64] = NPY_INT64,
};

static const char *const dtype_names[] = {
    [TLPY_F32] = "float32", [TLPY_F64] = "float64", [TLPY_U8] = "uint8",
    [TLPY_I32] = "int32",   [TLPY_I64] = "int64",
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
