/* py_kernels.c - the kernels as functions of arrays: for tests and benchmarks. */
#include "py/py_kernels.h"

#include "base/fpu.h"
#include "base/os.h"
#include "kernels/kernels.h"
#include "py/py_array.h"

#include <string.h>

static const struct tl_type_info *type_of(PyObject *any) {
    const struct tl_type_info *type = NULL;
    if (PyUnicode_Check(any)) {
        const char *name = PyUnicode_AsUTF8(any);
        if (name == NULL) return NULL;
        for (uint32_t id = 0; id < TL_TYPE_COUNT && type == NULL; id++) {
            const struct tl_type_info *t = tl_type_find(id);
            if (t != NULL && strcmp(t->name, name) == 0) type = t;
        }
    } else {
        unsigned long id = PyLong_AsUnsignedLong(any);
        if (PyErr_Occurred()) return NULL;
        type = id < TL_TYPE_COUNT ? tl_type_find((uint32_t)id) : NULL;
    }
    if (type == NULL || type->kind < TL_KIND_FLOAT) {
        PyErr_Format(PyExc_ValueError, "type is %R; expected the name or id of a type that runs",
                     any);
        return NULL;
    }
    return type;
}

static const struct tl_kernels *kernels_of(PyObject *module, const char *isa) {
    const struct tl_kernels *k;
    if (isa == NULL) {
        struct tl_error err;
        k = tl_kernels_best(&err);
        if (k == NULL) tlpy_raise(PyModule_GetState(module), &err);
    } else {
        k = tl_kernels_find(isa);
        if (k == NULL) {
            PyErr_Format(PyExc_ValueError, "isa is '%s'; expected one of kernel_sets()", isa);
        }
    }
    return k;
}

/*
 * Runs the kernels as two threads would: the activations are packed in two halves, and the rows
 * [row0, row1) are multiplied in two parts. `y` is (tokens, rows of w). The shortest times of
 * `repeats` runs are seconds[0] for packing and seconds[1] for the matmul.
 */
static bool run(const struct tl_kernels *k, const struct tl_matrix *w, const float *x,
                size_t tokens, size_t row0, size_t row1, float *y, int repeats, double seconds[2]) {
    const int format = k->format(w->type, tokens);
    const size_t middle = row0 + (row1 - row0) / 2 / TL_ROW_STEP * TL_ROW_STEP;
    void *packed = tl_alloc(k->pack_bytes(format, w->cols, tokens));
    void *scratch = tl_alloc(k->scratch(w, format, tokens));
    bool ok = packed != NULL && scratch != NULL;
    if (ok) {
        Py_BEGIN_ALLOW_THREADS
        uint64_t fpu = tl_fpu_enter();
        for (int i = 0; i < repeats; i++) {
            uint64_t start = tl_clock_ns(), middle_time, end;
            k->pack(format, x + tokens / 2 * w->cols, w->cols, tokens, tokens / 2, tokens, packed);
            k->pack(format, x, w->cols, tokens, 0, tokens / 2, packed);
            middle_time = tl_clock_ns();
            k->matmul(w, format, row0, middle, packed, tokens, y, w->rows, scratch);
            k->matmul(w, format, middle, row1, packed, tokens, y, w->rows, scratch);
            end = tl_clock_ns();
            double pack = (double)(middle_time - start) * 1e-9;
            double matmul = (double)(end - middle_time) * 1e-9;
            if (i == 0 || pack < seconds[0]) seconds[0] = pack;
            if (i == 0 || matmul < seconds[1]) seconds[1] = matmul;
        }
        tl_fpu_leave(fpu);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_NoMemory();
    }
    tl_free(packed);
    tl_free(scratch);
    return ok;
}

PyDoc_STRVAR(
    matmul_doc,
    "_matmul(type, weights, cols, x, isa=None, row0=0, row1=None, fast=False, "
    "repeats=0)\n--\n\n"
    "x (T, cols) times the rows of a matrix of raw blocks, through one kernel set.\n\n"
    "weights: uint8, (rows, bytes of a row), C-contiguous, not copied.\n"
    "Returns float32 (T, rows); rows outside [row0, row1) are zero. With repeats, returns\n"
    "the shortest times of that many runs in seconds: (packing x, the matmul).");

static PyObject *matmul(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"type", "weights", "cols", "x",       "isa",
                            "row0", "row1",    "fast", "repeats", NULL};
    PyObject *type, *weights_any, *x_any, *row1_any = Py_None;
    PyObject *weights = NULL, *x = NULL, *y = NULL;
    const char *isa = NULL;
    int fast = 0, repeats = 0;
    double seconds[2];
    Py_ssize_t cols, row0 = 0, row1;
    size_t weight_bytes, values, shape[2];
    struct tl_matrix w;
    const struct tl_kernels *k;
    const float *x_data;
    void *y_data;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOnO|znOpi:_matmul", names, &type, &weights_any,
                                     &cols, &x_any, &isa, &row0, &row1_any, &fast, &repeats)) {
        return NULL;
    }
    if ((w.type = type_of(type)) == NULL || (k = kernels_of(module, isa)) == NULL) return NULL;
    if (fast) k = k->fast;
    if (cols <= 0 || !tl_type_row_bytes(w.type, (uint64_t)cols, &w.row_bytes)) {
        return PyErr_Format(PyExc_ValueError, "cols is %zd; expected a positive multiple of %d",
                            cols, w.type->items);
    }
    weights = tlpy_array_from(weights_any, TLPY_U8);
    x = weights != NULL ? tlpy_array_from(x_any, TLPY_F32) : NULL;
    if (x == NULL) goto done;
    w.data = tlpy_array_read(weights, &weight_bytes);
    x_data = tlpy_array_read(x, &values);
    w.cols = (size_t)cols;
    w.rows = weight_bytes / w.row_bytes;
    if (weight_bytes % w.row_bytes != 0 || values % w.cols != 0 || values == 0) {
        PyErr_Format(PyExc_ValueError,
                     "weights has %zu bytes and x %zu values; expected multiples of %zu and %zu",
                     weight_bytes, values, w.row_bytes, w.cols);
        goto done;
    }
    row1 = (Py_ssize_t)w.rows;
    if (row1_any != Py_None) {
        row1 = PyLong_AsSsize_t(row1_any);
        if (row1 == -1 && PyErr_Occurred()) goto done;
    }
    if (row0 < 0 || row0 > row1 || row1 > (Py_ssize_t)w.rows || row0 % TL_ROW_STEP != 0) {
        PyErr_Format(PyExc_ValueError,
                     "rows are [%zd, %zd); expected a range within %zu that starts at a multiple "
                     "of %d",
                     row0, row1, w.rows, TL_ROW_STEP);
        goto done;
    }
    shape[0] = values / w.cols;
    shape[1] = w.rows;
    y = tlpy_array_new(TLPY_F32, 2, shape, &y_data);
    if (y == NULL) goto done;
    memset(y_data, 0, shape[0] * shape[1] * sizeof(float));
    if (!run(k, &w, x_data, shape[0], (size_t)row0, (size_t)row1, y_data, TL_MAX(repeats, 1),
             seconds)) {
        Py_CLEAR(y);
    }
    if (y != NULL && repeats > 0) Py_SETREF(y, Py_BuildValue("dd", seconds[0], seconds[1]));
done:
    Py_XDECREF(weights);
    Py_XDECREF(x);
    return y;
}

PyDoc_STRVAR(kernel_sets_doc, "kernel_sets()\n--\n\n"
                              "The names of the kernel sets that this CPU can run, worst first.");

static PyObject *kernel_sets(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none)) {
    PyObject *list = PyList_New(0);
    const struct tl_kernels *k;
    for (size_t i = 0; list != NULL && (k = tl_kernels_at(i)) != NULL; i++) {
        PyObject *name = PyUnicode_FromString(k->name);
        if (name == NULL || PyList_Append(list, name) < 0) Py_CLEAR(list);
        Py_XDECREF(name);
    }
    return list;
}

PyDoc_STRVAR(
    kernel_set_doc,
    "kernel_set()\n--\n\n"
    "The name of the kernel set that a model loaded now would use: TINYLLM_ISA, or the best.\n"
    "UnsupportedError if this CPU cannot run what TINYLLM_ISA names.");

static PyObject *kernel_set(PyObject *module, PyObject *Py_UNUSED(none)) {
    const struct tl_kernels *k = kernels_of(module, NULL);
    return k != NULL ? PyUnicode_FromString(k->name) : NULL;
}

PyMethodDef tlpy_kernel_methods[] = {
    {"_matmul", (PyCFunction)(void (*)(void))matmul, METH_VARARGS | METH_KEYWORDS, matmul_doc},
    {"kernel_set", kernel_set, METH_NOARGS, kernel_set_doc},
    {"kernel_sets", kernel_sets, METH_NOARGS, kernel_sets_doc},
    {NULL, NULL, 0, NULL},
};
