/* py_weight.c - tinyllm._core.Weight: one tensor of a file, immutable. */
#include "py/py_weight.h"

#include "base/fpu.h"
#include "base/os.h"
#include "base/pool.h"
#include "py/py_array.h"
#include "py/py_file.h"

#include <stddef.h>
#include <string.h>
#include <structmember.h>

typedef struct {
    PyObject_HEAD
    PyObject *name;
    PyObject *owner; // keeps the bytes
    PyObject *weakrefs;
    struct tl_matrix matrix;
    size_t bytes;
    int ndim;
    size_t shape[TL_GGUF_MAX_DIMS]; // NumPy's order
} tlpy_weight;

bool tlpy_weight_check(const tlpy_state *st, PyObject *any) {
    return Py_IS_TYPE(any, tlpy_type(st, &tlpy_weight_spec));
}

const struct tl_matrix *tlpy_weight_matrix(PyObject *weight) {
    return &((tlpy_weight *)weight)->matrix;
}

int tlpy_weight_check_file(const tlpy_state *st, PyObject *weight) {
    return tlpy_file_check(st, ((tlpy_weight *)weight)->owner);
}

const size_t *tlpy_weight_shape(PyObject *weight, int *ndim) {
    *ndim = ((tlpy_weight *)weight)->ndim;
    return ((tlpy_weight *)weight)->shape;
}

/* ---- making one ---- */

/* Takes the reference to the name, even if it fails. */
static PyObject *make(PyTypeObject *type, PyObject *name, const struct tl_gguf_tensor *t,
                      PyObject *owner) {
    tlpy_weight *self = name != NULL ? (tlpy_weight *)type->tp_alloc(type, 0) : NULL;
    if (self == NULL) {
        Py_XDECREF(name);
        return NULL;
    }
    self->name = name;
    self->owner = Py_NewRef(owner);
    self->ndim = t->n_dims;
    self->matrix = (struct tl_matrix){
        .type = t->type,
        .data = t->data,
        .rows = 1,
        .cols = t->n_dims > 0 ? (size_t)t->dims[0] : 1,
        .row_bytes = t->row_bytes,
    };
    self->bytes = t->bytes;
    for (int i = 0; i < t->n_dims; i++) self->shape[i] = (size_t)t->dims[t->n_dims - 1 - i];
    for (int i = 0; i + 1 < t->n_dims; i++) self->matrix.rows *= self->shape[i];
    return (PyObject *)self;
}

PyObject *tlpy_weight_new(tlpy_state *st, const struct tl_gguf_tensor *tensor, PyObject *owner) {
    PyObject *name =
        PyUnicode_DecodeUTF8(tensor->name.data, (Py_ssize_t)tensor->name.size, "surrogateescape");
    return make(tlpy_type(st, &tlpy_weight_spec), name, tensor, owner);
}

PyObject *tlpy_buffer_hold(PyObject *any, const uint8_t **data, size_t *size) {
    PyObject *owner;
    Py_buffer view;
    if (PyObject_GetBuffer(any, &view, PyBUF_SIMPLE) < 0) return NULL;
    if (view.readonly) {
        // the memoryview has its own hold on the object's buffer
        owner = PyMemoryView_FromObject(any);
        if (owner != NULL) *data = PyMemoryView_GET_BUFFER(owner)->buf;
    } else {
        owner = PyBytes_FromStringAndSize(view.buf, view.len);
        if (owner != NULL) *data = (const uint8_t *)PyBytes_AS_STRING(owner);
    }
    *size = (size_t)view.len;
    PyBuffer_Release(&view);
    return owner;
}

const struct tl_type_info *tlpy_type_named(PyObject *name) {
    for (uint32_t id = 0; id < TL_TYPE_COUNT; id++) {
        const struct tl_type_info *type = tl_type_find(id);
        if (type != NULL && PyUnicode_CompareWithASCIIString(name, type->name) == 0) return type;
    }
    PyErr_Format(PyExc_ValueError, "type must be a tensor type, for example 'Q4_K', not %R", name);
    return NULL;
}

static bool parse_shape(PyObject *given, struct tl_gguf_tensor *t) {
    PyObject *shape = PySequence_Fast(given, "shape must be a sequence of ints");
    Py_ssize_t n;
    if (shape == NULL) return false;
    n = PySequence_Fast_GET_SIZE(shape);
    if (n > TL_GGUF_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "shape must have at most %d axes, not %zd", TL_GGUF_MAX_DIMS,
                     n);
    }
    t->n_dims = (int)n;
    for (Py_ssize_t i = 0; i < n && !PyErr_Occurred(); i++) {
        Py_ssize_t length =
            PyNumber_AsSsize_t(PySequence_Fast_GET_ITEM(shape, i), PyExc_ValueError);
        if (length < 0 && !PyErr_Occurred()) {
            PyErr_Format(PyExc_ValueError, "shape must not be negative: %R", given);
        }
        t->dims[n - 1 - i] = (uint64_t)length;
    }
    Py_DECREF(shape);
    return !PyErr_Occurred();
}

static PyObject *weight_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"name", "shape", "type", "buffer", NULL};
    PyObject *name, *shape, *type_name, *buffer, *owner, *self;
    struct tl_gguf_tensor t = {0};
    struct tl_error err;
    size_t size;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "UOUO:Weight", names, &name, &shape, &type_name,
                                     &buffer)) {
        return NULL;
    }
    t.type = tlpy_type_named(type_name);
    if (t.type == NULL || !parse_shape(shape, &t)) return NULL;
    for (int i = t.n_dims; i < TL_GGUF_MAX_DIMS; i++) t.dims[i] = 1;
    t.name.data = PyUnicode_IS_ASCII(name) ? (const char *)PyUnicode_1BYTE_DATA(name) : "?";
    t.name.size = strlen(t.name.data);
    if (tl_gguf_tensor_size(&t, UINT64_MAX, &err) != TL_OK) {
        PyErr_SetString(PyExc_ValueError, err.text);
        return NULL;
    }
    owner = tlpy_buffer_hold(buffer, &t.data, &size);
    if (owner == NULL) return NULL;
    if (size != t.bytes) {
        PyErr_Format(PyExc_ValueError, "buffer has %zu bytes; shape %R of type %U takes %zu", size,
                     shape, type_name, t.bytes);
        Py_DECREF(owner);
        return NULL;
    }
    self = make(type, Py_NewRef(name), &t, owner);
    Py_DECREF(owner);
    return self;
}

/* There is no tp_clear: a Weight is immutable, so, as with tuples, the garbage collector breaks a
   cycle at another object. */
static int weight_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((tlpy_weight *)self)->owner);
    return 0;
}

static void weight_dealloc(PyObject *self) {
    tlpy_weight *w = (tlpy_weight *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (w->weakrefs != NULL) PyObject_ClearWeakRefs(self);
    Py_XDECREF(w->name);
    Py_XDECREF(w->owner);
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- dequantization ---- */

#define PIECE 65536 // values; whole blocks of every type

/* A dequantization. A line is a row of the matrix; a long line is cut into pieces. */
struct dequantize {
    const struct tl_matrix *m;
    const int64_t *rows;    // of the first axis, or NULL: first, first + step, ...
    int64_t first, step;    //
    size_t lines_per_row;   // lines below one index of the first axis
    size_t pieces;          // of a line
    size_t items, per_task; // items are pieces of lines
    bool to_f64;
    void *out;
};

static void dequantize_task(void *arg, size_t task, int thread) {
    const struct dequantize *d = arg;
    size_t end = TL_MIN(d->items, (task + 1) * d->per_task);
    (void)thread;
    for (size_t item = task * d->per_task; item < end; item++) {
        size_t line = item / d->pieces, col = item % d->pieces * PIECE;
        size_t n = TL_MIN(d->m->cols - col, PIECE), at = line * d->m->cols + col;
        size_t index = line / d->lines_per_row;
        int64_t row = d->rows != NULL ? d->rows[index] : d->first + d->step * (int64_t)index;
        const uint8_t *src =
            d->m->data +
            ((size_t)row * d->lines_per_row + line % d->lines_per_row) * d->m->row_bytes +
            col / (size_t)d->m->type->items * (size_t)d->m->type->bytes;
        if (d->to_f64) {
            tl_type_to_f64(d->m->type, src, (double *)d->out + at, n);
        } else {
            tl_type_to_f32(d->m->type, src, (float *)d->out + at, n);
        }
    }
}

static void dequantize_run(struct dequantize *d, size_t lines) {
    size_t tasks;
    uint64_t fpu;
    if (lines == 0 || d->m->cols == 0) return;
    d->pieces = (d->m->cols - 1) / PIECE + 1;
    d->items = lines * d->pieces; // at most the number of values
    d->per_task = TL_MAX(PIECE / TL_MIN(d->m->cols, PIECE), d->items / TL_MAX_TASKS + 1);
    tasks = (d->items - 1) / d->per_task + 1;
    fpu = tl_fpu_enter();
    if (tasks == 1) {
        dequantize_task(d, 0, 0);
    } else {
        tl_pool_run(tl_cpu_count(true), tasks, dequantize_task, d, NULL, NULL);
    }
    tl_fpu_leave(fpu);
}

/* Dequantizes all of the weight, or the `count` indices of its first axis that *d selects. */
static PyObject *dequantize_rows(tlpy_weight *self, struct dequantize *d, enum tlpy_dtype dtype,
                                 bool all, bool drop_axis, size_t count) {
    size_t shape[TL_GGUF_MAX_DIMS];
    int ndim = self->ndim;
    PyObject *array;
    memcpy(shape, self->shape, sizeof(shape));
    if (!all) shape[0] = count;
    if (drop_axis) {
        ndim--;
        memmove(shape, shape + 1, (size_t)ndim * sizeof(shape[0]));
    }
    array = tlpy_array_new(dtype, ndim, shape, &d->out);
    if (array == NULL) return NULL;
    d->m = &self->matrix;
    d->to_f64 = dtype == TLPY_F64;
    d->lines_per_row = 1;
    for (int i = 1; i + 1 < self->ndim; i++) d->lines_per_row *= self->shape[i];
    if (d->lines_per_row > 0) {
        Py_BEGIN_ALLOW_THREADS
        dequantize_run(d, all ? self->matrix.rows : count * d->lines_per_row);
        Py_END_ALLOW_THREADS
    }
    if (tlpy_file_check(tlpy_state_of((PyObject *)self), self->owner) < 0) Py_CLEAR(array);
    return array;
}

static PyObject *to_numpy(tlpy_weight *self, PyObject *rows, enum tlpy_dtype dtype) {
    struct dequantize d = {.step = 1};
    if (rows == Py_None) return dequantize_rows(self, &d, dtype, true, false, 0);
    if (self->ndim == 0) {
        PyErr_Format(PyExc_IndexError, "weight %R has no axes: rows must be None", self->name);
        return NULL;
    }
    if (self->ndim == 1) { // blocks run along its first axis: dequantize all of it, then index
        PyObject *part, *full = dequantize_rows(self, &d, dtype, true, false, 0);
        bool plain = PySlice_Check(rows) || (PyIndex_Check(rows) && !PyBool_Check(rows));
        PyObject *index = NULL;
        if (full != NULL) index = plain ? Py_NewRef(rows) : tlpy_array_rows(rows, self->shape[0]);
        part = index != NULL ? PyObject_GetItem(full, index) : NULL;
        Py_XDECREF(index);
        Py_XDECREF(full);
        return part;
    }
    if (PySlice_Check(rows)) {
        Py_ssize_t start, stop, step, count;
        if (PySlice_Unpack(rows, &start, &stop, &step) < 0) return NULL;
        count = PySlice_AdjustIndices((Py_ssize_t)self->shape[0], &start, &stop, step);
        d.first = start;
        d.step = step;
        return dequantize_rows(self, &d, dtype, false, false, (size_t)count);
    }
    if (PyIndex_Check(rows) && !PyBool_Check(rows)) { // ints, and arrays of one int
        Py_ssize_t n = (Py_ssize_t)self->shape[0];
        Py_ssize_t row = PyNumber_AsSsize_t(rows, PyExc_IndexError);
        if (row == -1 && PyErr_Occurred()) {
            // an array of several ints has __index__ as well, which raises TypeError
            if (!PyErr_ExceptionMatches(PyExc_TypeError)) return NULL;
            PyErr_Clear();
        } else {
            d.first = row < 0 ? row + n : row;
            if (d.first >= 0 && d.first < n) {
                return dequantize_rows(self, &d, dtype, false, true, 1);
            }
            PyErr_Format(PyExc_IndexError, "row %zd is out of range for %zd rows", row, n);
            return NULL;
        }
    }
    {
        size_t count;
        PyObject *array, *list = tlpy_array_rows(rows, self->shape[0]);
        if (list == NULL) return NULL;
        d.rows = tlpy_array_read(list, &count);
        array = dequantize_rows(self, &d, dtype, false, false, count);
        Py_DECREF(list);
        return array;
    }
}

PyDoc_STRVAR(numpy_doc,
             "numpy($self, /, rows=None, dtype='float32')\n--\n\n"
             "The values, dequantized into a new array.\n\n"
             "Runs in C, in parallel, without the GIL. Formulas: ``dequantize_row_*`` of\n"
             "ggml-quants.c.\n\n"
             "Parameters\n----------\n"
             "rows : int, slice, sequence of int or mask of bool, optional\n"
             "    The entries of the first axis to read; all if None.\n"
             "dtype : float32 or float64, optional\n"
             "    float64 gives the exact value (of I64 beyond 2**53 the nearest), float32 that\n"
             "    value rounded once.\n\n"
             "Returns\n-------\n"
             "numpy.ndarray\n"
             "    C-contiguous, of the weight's shape; an int drops the first axis.\n\n"
             "Raises\n------\n"
             "IndexError\n"
             "    A row is out of range, or the mask has another length.\n"
             "TypeError\n"
             "    dtype is neither float32 nor float64.\n\n"
             "Examples\n--------\n"
             ">>> import numpy as np\n"
             ">>> from tinyllm._core import Weight\n"
             ">>> w = Weight(\"w\", (2, 2), \"F16\", np.float16([[1, 2], [3, 4]]).tobytes())\n"
             ">>> w.numpy(rows=1)\n"
             "array([3., 4.], dtype=float32)\n");

static PyObject *weight_numpy(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"rows", "dtype", NULL};
    PyObject *rows = Py_None, *dtype_given = NULL;
    enum tlpy_dtype dtype = TLPY_F32;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OO:numpy", names, &rows, &dtype_given)) {
        return NULL;
    }
    if (dtype_given != NULL && tlpy_array_float_dtype(dtype_given, &dtype) < 0) return NULL;
    return to_numpy((tlpy_weight *)self, rows, dtype);
}

PyDoc_STRVAR(array_doc, "__array__($self, /, dtype=None, copy=None)\n--\n\n"
                        "The values for ``numpy.asarray``: float32 unless dtype says otherwise.\n\n"
                        "Other types than float32 are cast from the exact float64 values.\n\n"
                        "Raises\n------\n"
                        "ValueError\n"
                        "    copy is False: the values always have to be computed.\n");

static PyObject *weight_array(PyObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"dtype", "copy", NULL};
    PyObject *dtype_given = Py_None, *copy = Py_None, *exact, *cast;
    enum tlpy_dtype dtype = TLPY_F32;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OO:__array__", names, &dtype_given, &copy)) {
        return NULL;
    }
    if (copy != Py_None) {
        int truth = PyObject_IsTrue(copy);
        if (truth < 0) return NULL;
        if (truth == 0) {
            PyErr_SetString(PyExc_ValueError,
                            "a Weight cannot become an array without a copy; .raw is a view");
            return NULL;
        }
    }
    if (dtype_given == Py_None) return to_numpy((tlpy_weight *)self, Py_None, TLPY_F32);
    if (tlpy_array_float_dtype(dtype_given, &dtype) == 0) {
        return to_numpy((tlpy_weight *)self, Py_None, dtype);
    }
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) return NULL;
    PyErr_Clear();
    exact = to_numpy((tlpy_weight *)self, Py_None, TLPY_F64);
    if (exact == NULL) return NULL;
    cast = PyObject_CallMethod(exact, "astype", "O", dtype_given);
    Py_DECREF(exact);
    return cast;
}

static PyObject *weight_subscript(PyObject *self, PyObject *rows) {
    if (rows == Py_None || rows == Py_Ellipsis || PyTuple_Check(rows)) {
        PyErr_Format(PyExc_TypeError,
                     "a Weight is indexed by rows: an int, a slice, ints or a mask, not %R; "
                     "index .numpy() for more",
                     rows);
        return NULL;
    }
    return to_numpy((tlpy_weight *)self, rows, TLPY_F32);
}

static PyObject *weight_item(PyObject *self, Py_ssize_t row) {
    PyObject *index = PyLong_FromSsize_t(row), *item;
    if (index == NULL) return NULL;
    item = to_numpy((tlpy_weight *)self, index, TLPY_F32);
    Py_DECREF(index);
    return item;
}

static Py_ssize_t weight_length(PyObject *self) {
    tlpy_weight *w = (tlpy_weight *)self;
    if (w->ndim > 0) return (Py_ssize_t)w->shape[0];
    PyErr_Format(PyExc_TypeError, "len() of weight %R, which has no axes", w->name);
    return -1;
}

/* ---- attributes ---- */

static PyObject *get_name(PyObject *self, void *closure) {
    (void)closure;
    return Py_NewRef(((tlpy_weight *)self)->name);
}

static PyObject *get_shape(PyObject *self, void *closure) {
    tlpy_weight *w = (tlpy_weight *)self;
    PyObject *shape = PyTuple_New(w->ndim);
    (void)closure;
    for (int i = 0; shape != NULL && i < w->ndim; i++) {
        PyObject *length = PyLong_FromSize_t(w->shape[i]);
        if (length == NULL) {
            Py_CLEAR(shape);
        } else {
            PyTuple_SET_ITEM(shape, i, length);
        }
    }
    return shape;
}

static PyObject *get_type(PyObject *self, void *closure) {
    (void)closure;
    return PyUnicode_FromString(((tlpy_weight *)self)->matrix.type->name);
}

static PyObject *get_nbytes(PyObject *self, void *closure) {
    (void)closure;
    return PyLong_FromSize_t(((tlpy_weight *)self)->bytes);
}

static PyObject *get_raw(PyObject *self, void *closure) {
    tlpy_weight *w = (tlpy_weight *)self;
    size_t shape[TL_GGUF_MAX_DIMS];
    int ndim = TL_MAX(w->ndim, 1);
    (void)closure;
    if (tlpy_file_check(tlpy_state_of(self), w->owner) < 0) return NULL;
    memcpy(shape, w->shape, sizeof(shape));
    shape[ndim - 1] = w->matrix.row_bytes;
    return tlpy_array_view(TLPY_U8, ndim, shape, w->matrix.data, self);
}

static PyObject *weight_check(PyObject *self, PyObject *ignored) {
    (void)ignored;
    if (tlpy_file_check(tlpy_state_of(self), ((tlpy_weight *)self)->owner) < 0) return NULL;
    Py_RETURN_NONE;
}

static PyObject *weight_forget(PyObject *self, PyObject *ignored) {
    const tlpy_weight *w = (tlpy_weight *)self;
    (void)ignored;
    tlpy_file_forget(tlpy_state_of(self), w->owner, w->matrix.data, w->bytes);
    Py_RETURN_NONE;
}

static PyObject *weight_repr(PyObject *self) {
    tlpy_weight *w = (tlpy_weight *)self;
    PyObject *shape = get_shape(self, NULL), *text;
    if (shape == NULL) return NULL;
    text = PyUnicode_FromFormat("<Weight %R %s %R, %zu bytes>", w->name, w->matrix.type->name,
                                shape, w->bytes);
    Py_DECREF(shape);
    return text;
}

static PyObject *weight_repr_html(PyObject *self, PyObject *ignored) {
    PyObject *module = PyImport_ImportModule("tinyllm._callbacks"), *text = NULL;
    (void)ignored;
    if (module != NULL) text = PyObject_CallMethod(module, "weight_html", "O", self);
    Py_XDECREF(module);
    return text;
}

PyDoc_STRVAR(
    weight_doc,
    "Weight(name, shape, type, buffer)\n--\n\n"
    "One tensor of a model, as its file stores it.\n\n"
    "Immutable, and safe to share between threads. It keeps its bytes alive, even after\n"
    "the object that it came from is gone.\n\n"
    "Parameters\n----------\n"
    "name : str\n"
    "    For example ``\"blk.0.attn_q.weight\"``.\n"
    "shape : sequence of int\n"
    "    In NumPy's order: ``(out, in)`` for a matrix. GGUF files list it reversed.\n"
    "type : str\n"
    "    ggml's name of the type, for example ``\"Q4_K\"``.\n"
    "buffer : bytes-like\n"
    "    The blocks, row after row, little-endian, at any alignment. A read-only buffer\n"
    "    is used in place, a writable one is copied.\n\n"
    "Raises\n------\n"
    "ValueError\n"
    "    The type is unknown, the last axis is not a multiple of its block, or the buffer\n"
    "    does not have the size that shape and type need.\n\n"
    "Examples\n--------\n"
    ">>> import numpy as np\n"
    ">>> from tinyllm._core import Weight\n"
    ">>> w = Weight(\"w\", (2, 3), \"F32\", np.arange(6, dtype=\"<f4\").tobytes())\n"
    ">>> w\n"
    "<Weight 'w' F32 (2, 3), 24 bytes>\n"
    ">>> w.raw.shape, w[1]\n"
    "((2, 12), array([3., 4., 5.], dtype=float32))\n");

/* Pickled with its bytes, so that it needs no file elsewhere. */
static PyObject *weight_reduce(PyObject *op, PyObject *ignored) {
    tlpy_weight *self = (tlpy_weight *)op;
    PyObject *shape = PyObject_GetAttrString(op, "shape"), *bytes = NULL, *result = NULL;
    (void)ignored;
    if (shape != NULL) {
        bytes = PyBytes_FromStringAndSize((const char *)self->matrix.data, (Py_ssize_t)self->bytes);
    }
    if (bytes != NULL) {
        result = Py_BuildValue("O(OOsO)", Py_TYPE(op), self->name, shape, self->matrix.type->name,
                               bytes);
    }
    Py_XDECREF(shape);
    Py_XDECREF(bytes);
    return result;
}

/* An immutable object is its own copy. */
static PyObject *weight_copy(PyObject *self, PyObject *ignored) {
    (void)ignored;
    return Py_NewRef(self);
}

static PyMethodDef weight_methods[] = {
    {"__reduce__", weight_reduce, METH_NOARGS, "Pickle the weight with its bytes."},
    {"__copy__", weight_copy, METH_NOARGS, "The weight itself, which is immutable."},
    {"__deepcopy__", weight_copy, METH_O, "The weight itself, which is immutable."},
    {"numpy", (PyCFunction)(void (*)(void))weight_numpy, METH_VARARGS | METH_KEYWORDS, numpy_doc},
    {"__array__", (PyCFunction)(void (*)(void))weight_array, METH_VARARGS | METH_KEYWORDS,
     array_doc},
    {"check", weight_check, METH_NOARGS,
     "check($self, /)\n--\n\n"
     "Raise OSError if a part of the mapped file was missing when it was read: then values read\n"
     "from ``raw`` may be zeros. `numpy` and calls of the model check by themselves."},
    {"forget", weight_forget, METH_NOARGS,
     "forget($self, /)\n--\n\n"
     "Tell the system that the mapped pages of the weight are not needed for now. They are read\n"
     "again on the next use. A walk over a large file then holds a small part of it in memory.\n\n"
     "Examples\n--------\n"
     ">>> import tinyllm as tl\n"
     ">>> for weight in tl.GGUF(\"demo.gguf\").tensors.values():  # doctest: +SKIP\n"
     "...     print(weight.name, weight.numpy().std())\n"
     "...     weight.forget()\n"},
    {"_repr_html_", weight_repr_html, METH_NOARGS, "A table for notebooks."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef weight_getset[] = {
    {"name", get_name, NULL, "The name, for example ``'blk.0.attn_q.weight'``.", NULL},
    {"shape", get_shape, NULL, "The shape in NumPy's order.", NULL},
    {"type", get_type, NULL, "ggml's name of the type, for example ``'Q4_K'``.", NULL},
    {"nbytes", get_nbytes, NULL, "Bytes that the blocks take.", NULL},
    {"raw", get_raw, NULL,
     "The blocks: a read-only uint8 view, ``shape[:-1] + (bytes per row,)``; no copy.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef weight_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(tlpy_weight, weakrefs), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot weight_slots[] = {
    {Py_tp_doc, (void *)weight_doc},
    {Py_tp_new, weight_new},
    {Py_tp_dealloc, weight_dealloc},
    {Py_tp_traverse, weight_traverse},
    {Py_tp_repr, weight_repr},
    {Py_tp_methods, weight_methods},
    {Py_tp_getset, weight_getset},
    {Py_tp_members, weight_members},
    {Py_sq_length, weight_length},
    {Py_sq_item, weight_item},
    {Py_mp_length, weight_length},
    {Py_mp_subscript, weight_subscript},
    {0, NULL},
};

PyType_Spec tlpy_weight_spec = {
    .name = "tinyllm._core.Weight",
    .basicsize = sizeof(tlpy_weight),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = weight_slots,
};

PyObject *tlpy_tensor_types(PyObject *module, PyObject *ignored) {
    PyObject *types = PyDict_New();
    (void)module, (void)ignored;
    for (uint32_t id = 0; types != NULL && id < TL_TYPE_COUNT; id++) {
        const struct tl_type_info *type = tl_type_find(id);
        PyObject *row;
        if (type == NULL) continue;
        row = Py_BuildValue("(kiiO)", (unsigned long)id, type->items, type->bytes,
                            type->pack != NULL ? Py_True : Py_False);
        if (row == NULL || PyDict_SetItemString(types, type->name, row) < 0) Py_CLEAR(types);
        Py_XDECREF(row);
    }
    return types;
}
