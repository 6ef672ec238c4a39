/* py_lookup.c - the type _core.Lookup, for tinyllm.generation. */
#include "py/py_lookup.h"

#include "py/py_array.h"
#include "text/lookup.h"

#include <stdatomic.h>

typedef struct {
    PyObject_HEAD
    struct tl_lookup *lookup; // owns
    atomic_flag busy;
} lookup_object;

static PyObject *fail(lookup_object *self, const struct tl_error *err) {
    tlpy_state *st = tlpy_state_of((PyObject *)self);
    return st == NULL ? NULL : tlpy_raise(st, err);
}

static bool enter(lookup_object *self) {
    if (!atomic_flag_test_and_set(&self->busy)) return true;
    PyErr_SetString(PyExc_RuntimeError, "this index is in use by another thread");
    return false;
}

static PyObject *lookup_append(PyObject *op, PyObject *any) {
    lookup_object *self = (lookup_object *)op;
    PyObject *array = tlpy_array_from(any, TLPY_I32);
    struct tl_error err;
    const int32_t *tokens;
    size_t n;
    int status;
    if (array == NULL) return NULL;
    tokens = tlpy_array_read(array, &n);
    if (!enter(self)) {
        Py_DECREF(array);
        return NULL;
    }
    status = tl_lookup_append(self->lookup, tokens, n, &err);
    atomic_flag_clear(&self->busy);
    Py_DECREF(array);
    return status < 0 ? fail(self, &err) : Py_NewRef(Py_None);
}

static PyObject *lookup_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"tokens", NULL};
    PyObject *tokens = NULL, *done;
    struct tl_error err;
    lookup_object *self;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O", names, &tokens)) return NULL;
    self = (lookup_object *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    atomic_flag_clear(&self->busy);
    if (tl_lookup_new(&self->lookup, &err) < 0) {
        done = fail(self, &err);
    } else {
        done = tokens == NULL ? Py_NewRef(Py_None) : lookup_append((PyObject *)self, tokens);
    }
    if (done == NULL) Py_CLEAR(self);
    Py_XDECREF(done);
    return (PyObject *)self;
}

static void lookup_dealloc(PyObject *op) {
    PyTypeObject *type = Py_TYPE(op);
    tl_lookup_free(((lookup_object *)op)->lookup);
    type->tp_free(op);
    Py_DECREF(type);
}

static Py_ssize_t lookup_length(PyObject *op) {
    return (Py_ssize_t)tl_lookup_length(((lookup_object *)op)->lookup);
}

static PyObject *lookup_find(PyObject *op, PyObject *arg) {
    lookup_object *self = (lookup_object *)op;
    const Py_ssize_t n = PyNumber_AsSsize_t(arg, PyExc_OverflowError);
    int32_t next[TL_LOOKUP_LONGEST];
    PyObject *list;
    size_t size, count;
    if (n == -1 && PyErr_Occurred()) return NULL;
    if (n < 0 || n > TL_LOOKUP_LONGEST) {
        return PyErr_Format(PyExc_ValueError, "n is %zd; expected 0 to %d", n, TL_LOOKUP_LONGEST);
    }
    if (!enter(self)) return NULL;
    size = tl_lookup_find(self->lookup, next, (size_t)n);
    atomic_flag_clear(&self->busy);
    count = size > 0 ? (size_t)n : 0;
    list = PyList_New((Py_ssize_t)count);
    if (list == NULL) return NULL;
    for (size_t i = 0; i < count; i++) {
        PyObject *token = PyLong_FromLong(next[i]);
        if (token == NULL) {
            Py_DECREF(list);
            return NULL;
        }
        PyList_SET_ITEM(list, (Py_ssize_t)i, token);
    }
    return Py_BuildValue("nN", (Py_ssize_t)size, list);
}

PyDoc_STRVAR(append_doc, "append($self, tokens, /)\n"
                         "--\n"
                         "\n"
                         "Add tokens (array_like of int32) to the end of the sequence.\n");

PyDoc_STRVAR(
    find_doc,
    "find($self, n, /)\n"
    "--\n"
    "\n"
    "Find the longest earlier occurrence of the end of the sequence.\n"
    "\n"
    "Parameters\n"
    "----------\n"
    "n : int\n"
    "    0 to 64.\n"
    "\n"
    "Returns\n"
    "-------\n"
    "length : int\n"
    "    How many of the last tokens occurred before: 2 to 64 (more are not counted), or 0\n"
    "    if the last two did not.\n"
    "tokens : list of int\n"
    "    The n tokens that followed. Empty if the length is 0.\n");

static PyMethodDef lookup_methods[] = {
    {"append", lookup_append, METH_O, append_doc},
    {"find", lookup_find, METH_O, find_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(
    lookup_doc,
    "Lookup(tokens=())\n"
    "--\n"
    "\n"
    "An index of a growing sequence of tokens, which finds where its end occurred before.\n"
    "\n"
    "It serves one thread at a time: a second one gets RuntimeError.\n"
    "\n"
    "Parameters\n"
    "----------\n"
    "tokens : array_like of int32, shape (n,), optional\n"
    "    The beginning of the sequence.\n"
    "\n"
    "Examples\n"
    "--------\n"
    ">>> Lookup([5, 6, 7, 8, 5, 6]).find(3)\n"
    "(2, [7, 8, 5])\n");

static PyType_Slot lookup_slots[] = {
    {Py_tp_new, lookup_new},       {Py_tp_dealloc, lookup_dealloc}, {Py_tp_methods, lookup_methods},
    {Py_sq_length, lookup_length}, {Py_tp_doc, (void *)lookup_doc}, {0, NULL},
};

PyType_Spec tlpy_lookup_spec = {
    .name = "tinyllm._core.Lookup",
    .basicsize = sizeof(lookup_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = lookup_slots,
};
