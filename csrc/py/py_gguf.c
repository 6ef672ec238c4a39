/*
 * py_gguf.c - tinyllm._core.GGUFFile: the index of one GGUF file, as Python values.
 *
 * Immutable. tinyllm/files/gguf.py makes the mappings that users see, and joins a model that is
 * split over several files.
 */
#include "py/py_gguf.h"

#include "files/gguf.h"
#include "py/py_array.h"
#include "py/py_file.h"
#include "py/py_weight.h"

#include <string.h>

typedef struct {
    PyObject_HEAD
    PyObject *owner; // keeps the bytes alive; every Weight holds it as well
    struct tl_gguf gguf;
} tlpy_gguf_file;

static PyObject *file_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"source", "mmap", NULL};
    tlpy_state *st = PyType_GetModuleState(type);
    struct tl_error err;
    struct tl_gguf gguf;
    const uint8_t *data = NULL;
    size_t size = 0;
    PyObject *source, *owner;
    tlpy_gguf_file *self;
    int mapped = 1, status;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|p:GGUFFile", names, &source, &mapped)) {
        return NULL;
    }
    if (PyObject_CheckBuffer(source)) {
        owner = tlpy_buffer_hold(source, &data, &size);
    } else {
        owner = tlpy_file_open(st, source, mapped != 0, &data, &size);
    }
    if (owner == NULL) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = tl_gguf_open(&gguf, data, size, &err);
    Py_END_ALLOW_THREADS
    if (tlpy_file_check(st, owner) < 0) {
        if (status == TL_OK) tl_gguf_close(&gguf);
        Py_DECREF(owner);
        return NULL;
    }
    if (status != TL_OK) {
        Py_DECREF(owner);
        return tlpy_raise(st, &err);
    }
    self = (tlpy_gguf_file *)type->tp_alloc(type, 0);
    if (self == NULL) {
        tl_gguf_close(&gguf);
        Py_DECREF(owner);
        return NULL;
    }
    self->owner = owner;
    self->gguf = gguf;
    return (PyObject *)self;
}

/* Immutable, so without tp_clear; see py_weight.c. */
static int file_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((tlpy_gguf_file *)self)->owner);
    return 0;
}

static void file_dealloc(PyObject *self) {
    tlpy_gguf_file *f = (tlpy_gguf_file *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    tl_gguf_close(&f->gguf);
    Py_XDECREF(f->owner);
    type->tp_free(self);
    Py_DECREF(type);
}

/* ---- metadata ---- */

static PyObject *decode_text(struct tl_bytes bytes) {
    if (bytes.size > PY_SSIZE_T_MAX) return PyErr_NoMemory();
    return PyUnicode_DecodeUTF8(bytes.data, (Py_ssize_t)bytes.size, "surrogateescape");
}

/* The dtype of an array of each kind of number. */
static const enum tlpy_dtype dtypes[TL_GGUF_KINDS] = {
    [TL_GGUF_UINT8] = TLPY_U8,    [TL_GGUF_INT8] = TLPY_I8,     [TL_GGUF_UINT16] = TLPY_U16,
    [TL_GGUF_INT16] = TLPY_I16,   [TL_GGUF_UINT32] = TLPY_U32,  [TL_GGUF_INT32] = TLPY_I32,
    [TL_GGUF_FLOAT32] = TLPY_F32, [TL_GGUF_BOOL] = TLPY_BOOL,   [TL_GGUF_UINT64] = TLPY_U64,
    [TL_GGUF_INT64] = TLPY_I64,   [TL_GGUF_FLOAT64] = TLPY_F64,
};

/* *end is where the array ends; the recursion is at most TL_GGUF_MAX_DEPTH deep. */
static PyObject *decode_array(const struct tl_gguf_value *value, const uint8_t **end) {
    size_t size = tl_gguf_kind_size(value->element);
    const uint8_t *p = value->data;
    PyObject *list;
    if (size != 0) {
        void *data;
        PyObject *array = tlpy_array_new(dtypes[value->element], 1, &value->count, &data);
        if (array == NULL) return NULL;
        if (value->count > 0) memcpy(data, p, value->count * size);
        tlpy_array_freeze(array);
        *end = p + value->count * size;
        return array;
    }
    list = PyList_New((Py_ssize_t)value->count);
    for (size_t i = 0; list != NULL && i < value->count; i++) {
        PyObject *item;
        if (value->element == TL_GGUF_STRING) {
            struct tl_bytes text;
            p = tl_gguf_next_string(p, &text);
            item = decode_text(text);
        } else {
            struct tl_gguf_value inner;
            tl_gguf_next_array(p, &inner);
            item = decode_array(&inner, &p);
        }
        if (item == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SET_ITEM(list, (Py_ssize_t)i, item);
        }
    }
    *end = p;
    return list;
}

static PyObject *decode_value(const struct tl_gguf_value *value) {
    struct tl_bytes text;
    const uint8_t *end;
    union {
        uint8_t u8;
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        uint64_t u64;
        int64_t i64;
        float f32;
        double f64;
    } number;
    memcpy(&number, value->data, tl_gguf_kind_size(value->kind));
    switch (value->kind) {
    case TL_GGUF_UINT8:
        return PyLong_FromUnsignedLong(number.u8);
    case TL_GGUF_INT8:
        return PyLong_FromLong(number.i8);
    case TL_GGUF_UINT16:
        return PyLong_FromUnsignedLong(number.u16);
    case TL_GGUF_INT16:
        return PyLong_FromLong(number.i16);
    case TL_GGUF_UINT32:
        return PyLong_FromUnsignedLong(number.u32);
    case TL_GGUF_INT32:
        return PyLong_FromLong(number.i32);
    case TL_GGUF_FLOAT32:
        return PyFloat_FromDouble((double)number.f32);
    case TL_GGUF_BOOL:
        return PyBool_FromLong(number.u8);
    case TL_GGUF_UINT64:
        return PyLong_FromUnsignedLongLong(number.u64);
    case TL_GGUF_INT64:
        return PyLong_FromLongLong(number.i64);
    case TL_GGUF_FLOAT64:
        return PyFloat_FromDouble(number.f64);
    case TL_GGUF_STRING:
        tl_gguf_next_string(value->data, &text);
        return decode_text(text);
    default:
        return decode_array(value, &end);
    }
}

static const struct tl_gguf_entry *entry_at(PyObject *self, PyObject *arg) {
    const struct tl_gguf *g = &((tlpy_gguf_file *)self)->gguf;
    Py_ssize_t i = PyNumber_AsSsize_t(arg, PyExc_IndexError);
    if (i == -1 && PyErr_Occurred()) return NULL;
    if (i < 0 || (size_t)i >= g->n_entries) {
        PyErr_Format(PyExc_IndexError, "i is %zd; expected a number below %zu", i, g->n_entries);
        return NULL;
    }
    return &g->entries[i];
}

/* `result`, or NULL with an exception set if a part of the file was missing. */
static PyObject *checked(PyObject *self, PyObject *result) {
    const tlpy_gguf_file *f = (const tlpy_gguf_file *)self;
    if (result != NULL && tlpy_file_check(tlpy_state_of(self), f->owner) < 0) Py_CLEAR(result);
    return result;
}

static PyObject *file_value(PyObject *self, PyObject *arg) {
    const struct tl_gguf_entry *entry = entry_at(self, arg);
    return entry != NULL ? checked(self, decode_value(&entry->value)) : NULL;
}

static PyObject *file_stored(PyObject *self, PyObject *arg) {
    const struct tl_gguf_entry *entry = entry_at(self, arg);
    if (entry == NULL) return NULL;
    return checked(self,
                   PyBytes_FromStringAndSize(entry->stored.data, (Py_ssize_t)entry->stored.size));
}

static PyObject *file_keys(PyObject *self, PyObject *ignored) {
    const struct tl_gguf *g = &((tlpy_gguf_file *)self)->gguf;
    PyObject *keys = PyList_New((Py_ssize_t)g->n_entries);
    (void)ignored;
    for (size_t i = 0; keys != NULL && i < g->n_entries; i++) {
        const struct tl_gguf_value *value = &g->entries[i].value;
        bool is_array = value->kind == TL_GGUF_ARRAY;
        PyObject *key = decode_text(g->entries[i].key), *type, *pair;
        type = PyUnicode_FromFormat(is_array ? "ARRAY[%s]" : "%s",
                                    tl_gguf_kind_name(is_array ? value->element : value->kind));
        pair = key != NULL && type != NULL ? PyTuple_Pack(2, key, type) : NULL;
        Py_XDECREF(key);
        Py_XDECREF(type);
        if (pair == NULL) {
            Py_CLEAR(keys);
        } else {
            PyList_SET_ITEM(keys, (Py_ssize_t)i, pair);
        }
    }
    return checked(self, keys);
}

/* ---- the rest ---- */

static PyObject *file_weights(PyObject *self, PyObject *ignored) {
    const tlpy_gguf_file *f = (const tlpy_gguf_file *)self;
    tlpy_state *st = tlpy_state_of(self);
    PyObject *weights = PyList_New((Py_ssize_t)f->gguf.n_tensors);
    (void)ignored;
    for (size_t i = 0; weights != NULL && i < f->gguf.n_tensors; i++) {
        PyObject *weight = tlpy_weight_new(st, &f->gguf.tensors[i], f->owner);
        if (weight == NULL) {
            Py_CLEAR(weights);
        } else {
            PyList_SET_ITEM(weights, (Py_ssize_t)i, weight);
        }
    }
    return checked(self, weights);
}

static PyObject *get_version(PyObject *self, void *closure) {
    (void)closure;
    return PyLong_FromUnsignedLong(((tlpy_gguf_file *)self)->gguf.version);
}

static PyObject *get_alignment(PyObject *self, void *closure) {
    (void)closure;
    return PyLong_FromUnsignedLong(((tlpy_gguf_file *)self)->gguf.alignment);
}

PyObject *tlpy_metadata_types(PyObject *module, PyObject *ignored) {
    PyObject *types = PyDict_New();
    (void)module, (void)ignored;
    for (int kind = 0; types != NULL && kind < TL_GGUF_KINDS; kind++) {
        PyObject *row =
            Py_BuildValue("(in)", kind, (Py_ssize_t)tl_gguf_kind_size((enum tl_gguf_kind)kind));
        const char *name = tl_gguf_kind_name((enum tl_gguf_kind)kind);
        if (row == NULL || PyDict_SetItemString(types, name, row) < 0) Py_CLEAR(types);
        Py_XDECREF(row);
    }
    return types;
}

static PyMethodDef file_methods[] = {
    {"keys", file_keys, METH_NOARGS,
     "keys($self, /)\n--\n\n[(key, name of its type), ...] in the file's order."},
    {"value", file_value, METH_O,
     "value($self, i, /)\n--\n\n"
     "The i-th value: int, float, bool, str, a read-only array, or a list of str or of arrays."},
    {"stored", file_stored, METH_O,
     "stored($self, i, /)\n--\n\nThe bytes of the i-th value in the file: type, then value."},
    {"weights", file_weights, METH_NOARGS,
     "weights($self, /)\n--\n\nA Weight for each tensor, in the file's order."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef file_getset[] = {
    {"version", get_version, NULL, "The version of the format, 2 or 3.", NULL},
    {"alignment", get_alignment, NULL, "The number that all tensor offsets are multiples of.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(file_doc, "GGUFFile(source, mmap=True)\n--\n\n"
                       "The index of one GGUF file, given by its path or its bytes.\n\n"
                       "tinyllm.GGUF is built on it.");

static PyType_Slot file_slots[] = {
    {Py_tp_doc, (void *)file_doc},
    {Py_tp_new, file_new},
    {Py_tp_dealloc, file_dealloc},
    {Py_tp_traverse, file_traverse},
    {Py_tp_methods, file_methods},
    {Py_tp_getset, file_getset},
    {0, NULL},
};

PyType_Spec tlpy_gguf_file_spec = {
    .name = "tinyllm._core.GGUFFile",
    .basicsize = sizeof(tlpy_gguf_file),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = file_slots,
};
