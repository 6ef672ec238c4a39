/* py_session.c - _core.Session: the kv cache of one context, for one thread at a time. */
#include "py/py_session.h"

#include "py/py_array.h"
#include "py/py_model.h"

#include <stdatomic.h>

typedef struct {
    PyObject_HEAD
    PyObject *model;
    struct tl_session *s;
    atomic_flag busy;
} session_object;

PyDoc_STRVAR(session_doc, "Session(model, /)\n"
                          "--\n"
                          "\n"
                          "The keys and values of one context.\n"
                          "\n"
                          "For one thread at a time: a second thread gets RuntimeError.\n"
                          "\n"
                          "Parameters\n"
                          "----------\n"
                          "model : tinyllm._core.Model\n"
                          "\n"
                          "Examples\n"
                          "--------\n"
                          ">>> import tinyllm\n"
                          ">>> from tinyllm import _core\n"
                          ">>> len(_core.Session(tinyllm.load().core))\n"
                          "0\n");

static PyObject *session_alloc(PyTypeObject *type, PyObject *model) {
    session_object *self = (session_object *)PyType_GenericAlloc(type, 0);
    if (self == NULL) return NULL;
    atomic_flag_clear(&self->busy);
    self->model = Py_NewRef(model);
    return (PyObject *)self;
}

static PyObject *session_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *model, *self;
    struct tl_error err;
    tlpy_state *st;
    if (kwargs != NULL && PyDict_Size(kwargs) > 0) {
        PyErr_SetString(PyExc_TypeError, "Session() takes no keyword arguments");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "O:Session", &model)) return NULL;
    st = PyType_GetModuleState(type);
    if (st == NULL) return NULL;
    if (!PyObject_TypeCheck(model, tlpy_type(st, &tlpy_model_spec))) {
        PyErr_Format(PyExc_TypeError, "Session() takes a tinyllm._core.Model, not %.100s",
                     Py_TYPE(model)->tp_name);
        return NULL;
    }
    self = session_alloc(type, model);
    if (self == NULL) return NULL;
    if (tl_session_new(tlpy_model_plan(model), &((session_object *)self)->s, &err) != TL_OK) {
        tlpy_raise(st, &err);
        Py_CLEAR(self);
    }
    return self;
}

static int session_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((session_object *)self)->model);
    return 0;
}

static void session_dealloc(PyObject *op) {
    session_object *self = (session_object *)op;
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    tl_session_free(self->s);
    Py_CLEAR(self->model);
    PyObject_GC_Del(op);
    Py_DECREF(type);
}

static bool enter(session_object *self) {
    if (!atomic_flag_test_and_set(&self->busy)) return true;
    PyErr_SetString(PyExc_RuntimeError,
                    "this session is in use: by another thread, twice in this call, or by the "
                    "call whose edit is running; use session.fork() to have another one");
    return false;
}

struct tl_session *tlpy_session_enter(PyObject *session, PyObject *model) {
    session_object *self = (session_object *)session;
    tlpy_state *st = tlpy_state_of(model);
    if (st == NULL) return NULL;
    if (!PyObject_TypeCheck(session, tlpy_type(st, &tlpy_session_spec))) {
        PyErr_Format(PyExc_TypeError, "expected a tinyllm._core.Session, not %.100s",
                     Py_TYPE(session)->tp_name);
        return NULL;
    }
    if (self->model != model) {
        PyErr_SetString(PyExc_ValueError, "the session belongs to another model");
        return NULL;
    }
    return enter(self) ? self->s : NULL;
}

void tlpy_session_leave(PyObject *session) {
    atomic_flag_clear(&((session_object *)session)->busy);
}

PyDoc_STRVAR(rewind_doc, "rewind($self, length, /)\n"
                         "--\n"
                         "\n"
                         "Keep the first `length` positions and forget the rest.\n"
                         "\n"
                         "Raises\n"
                         "------\n"
                         "ValueError\n"
                         "    `length` is negative or larger than ``len(self)``.\n"
                         "RuntimeError\n"
                         "    The session is in use by another thread.\n");

static PyObject *session_rewind(PyObject *op, PyObject *arg) {
    session_object *self = (session_object *)op;
    Py_ssize_t n = PyNumber_AsSsize_t(arg, PyExc_OverflowError);
    bool ok;
    if (n == -1 && PyErr_Occurred()) return NULL;
    if (!enter(self)) return NULL;
    ok = n >= 0 && (size_t)n <= self->s->n;
    if (ok) {
        tl_session_rewind(self->s, (size_t)n);
    } else {
        PyErr_Format(PyExc_ValueError, "length is %zd; expected 0 to %zu", n, self->s->n);
    }
    tlpy_session_leave(op);
    if (!ok) return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(fork_doc, "fork($self, /)\n"
                       "--\n"
                       "\n"
                       "A session with the same positions; memory is shared until one writes.\n");

static PyObject *session_fork(PyObject *op, PyObject *ignored) {
    session_object *self = (session_object *)op;
    PyObject *fork;
    struct tl_error err;
    int status;
    (void)ignored;
    fork = session_alloc(Py_TYPE(op), self->model);
    if (fork == NULL) return NULL;
    if (!enter(self)) {
        Py_DECREF(fork);
        return NULL;
    }
    status = tl_session_fork(self->s, &((session_object *)fork)->s, &err);
    tlpy_session_leave(op);
    if (status == TL_OK) return fork;
    Py_DECREF(fork);
    return tlpy_raise(tlpy_state_of(op), &err);
}

PyDoc_STRVAR(cache_doc, "cache($self, number, /)\n"
                        "--\n"
                        "\n"
                        "Copies of the keys (n, K, Dh) and values (n, K, Dv) of one cache.\n"
                        "\n"
                        "Caches are numbered in the order of the plan's cache steps.\n"
                        "\n"
                        "Raises\n"
                        "------\n"
                        "IndexError\n"
                        "    There is no such cache.\n"
                        "RuntimeError\n"
                        "    The session is in use by another thread.\n");

static PyObject *session_cache(PyObject *op, PyObject *arg) {
    session_object *self = (session_object *)op;
    const struct tl_plan *plan = tlpy_model_plan(self->model);
    const Py_ssize_t number = PyNumber_AsSsize_t(arg, PyExc_OverflowError);
    const struct tl_cache *c;
    PyObject *keys = NULL, *values = NULL, *pair = NULL;
    void *key_data, *value_data;
    if (number == -1 && PyErr_Occurred()) return NULL;
    if (number < 0 || (size_t)number >= plan->n_caches) {
        PyErr_Format(PyExc_IndexError, "number is %zd; the model has %zu caches", number,
                     plan->n_caches);
        return NULL;
    }
    if (!enter(self)) return NULL;
    c = &plan->caches[number];
    keys = tlpy_array_new(TLPY_F32, 3, (size_t[]){self->s->n, c->kv_heads, c->key_size}, &key_data);
    values = tlpy_array_new(TLPY_F32, 3, (size_t[]){self->s->n, c->kv_heads, c->value_size},
                            &value_data);
    if (keys != NULL && values != NULL) {
        tl_session_get(self->s, (size_t)number, key_data, value_data);
        pair = PyTuple_Pack(2, keys, values);
    }
    tlpy_session_leave(op);
    Py_XDECREF(keys);
    Py_XDECREF(values);
    return pair;
}

PyDoc_STRVAR(fill_doc,
             "fill($self, caches, /)\n"
             "--\n"
             "\n"
             "Give an empty session the keys and values that `cache` returned.\n"
             "\n"
             "Parameters\n"
             "----------\n"
             "caches : sequence of (keys, values)\n"
             "    float32 arrays for every cache: (n, K, Dh) and (n, K, Dv).\n"
             "\n"
             "Raises\n"
             "------\n"
             "ValueError\n"
             "    The session is not empty, an array has another size, or n is beyond the\n"
             "    context length.\n"
             "RuntimeError\n"
             "    The session is in use by another thread.\n");

/* One array of fill(); *n becomes the number of positions, which must be the same for all. */
static PyObject *fill_array(PyObject *given, Py_ssize_t which, size_t row, size_t *n) {
    PyObject *item = PySequence_GetItem(given, which), *array;
    size_t size;
    if (item == NULL) return NULL;
    array = tlpy_array_from(item, TLPY_F32);
    Py_DECREF(item);
    if (array == NULL) return NULL;
    tlpy_array_read(array, &size);
    if (*n == SIZE_MAX) *n = size / row;
    if (size % row != 0 || size / row != *n) {
        PyErr_Format(PyExc_ValueError,
                     "an array of the cache has %zu values; expected %zu rows of %zu", size, *n,
                     row);
        Py_CLEAR(array);
    }
    return array;
}

static PyObject *session_fill(PyObject *op, PyObject *arg) {
    session_object *self = (session_object *)op;
    const struct tl_plan *plan = tlpy_model_plan(self->model);
    PyObject *caches = PySequence_Tuple(arg);
    struct tl_error err;
    size_t n = SIZE_MAX;
    bool ok = false;
    if (caches == NULL) return NULL;
    if ((size_t)PyTuple_Size(caches) != plan->n_caches) {
        PyErr_Format(PyExc_ValueError, "there are %zd pairs of keys and values; expected %zu",
                     PyTuple_Size(caches), plan->n_caches);
        Py_DECREF(caches);
        return NULL;
    }
    if (!enter(self)) {
        Py_DECREF(caches);
        return NULL;
    }
    if (self->s->n != 0) {
        PyErr_SetString(PyExc_ValueError, "the session is not empty");
        goto done;
    }
    for (size_t i = 0; i < plan->n_caches; i++) {
        const struct tl_cache *c = &plan->caches[i];
        PyObject *pair = PyTuple_GetItem(caches, (Py_ssize_t)i), *keys, *values;
        size_t size;
        keys = fill_array(pair, 0, c->kv_heads * c->key_size, &n);
        values = keys != NULL ? fill_array(pair, 1, c->kv_heads * c->value_size, &n) : NULL;
        if (values != NULL && i == 0) {
            if (n > plan->max_context) {
                PyErr_Format(PyExc_ValueError, "the cache has %zu positions; expected at most %zu",
                             n, plan->max_context);
                Py_CLEAR(values);
            } else if (tl_session_reserve(self->s, n, &err) != TL_OK) {
                tlpy_raise(tlpy_state_of(op), &err);
                Py_CLEAR(values);
            }
        }
        for (size_t head = 0; values != NULL && head < c->kv_heads; head++) {
            tl_session_put(self->s, i, head, 0, n, tlpy_array_read(keys, &size),
                           tlpy_array_read(values, &size));
        }
        Py_XDECREF(keys);
        if (values == NULL) goto done;
        Py_DECREF(values);
    }
    self->s->n = n;
    ok = true;
done:
    if (!ok) tl_session_rewind(self->s, self->s->n);
    tlpy_session_leave(op);
    Py_DECREF(caches);
    if (!ok) return NULL;
    Py_RETURN_NONE;
}

static Py_ssize_t session_length(PyObject *op) {
    session_object *self = (session_object *)op;
    Py_ssize_t n;
    if (!enter(self)) return -1;
    n = (Py_ssize_t)self->s->n;
    tlpy_session_leave(op);
    return n;
}

static PyObject *session_nbytes(PyObject *op, void *closure) {
    session_object *self = (session_object *)op;
    size_t bytes;
    (void)closure;
    if (!enter(self)) return NULL;
    bytes = tl_session_cache_bytes(self->s);
    tlpy_session_leave(op);
    return PyLong_FromSize_t(bytes);
}

static PyMethodDef session_methods[] = {
    {"rewind", session_rewind, METH_O, rewind_doc},
    {"fork", session_fork, METH_NOARGS, fork_doc},
    {"cache", session_cache, METH_O, cache_doc},
    {"fill", session_fill, METH_O, fill_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef session_getset[] = {
    {"nbytes", session_nbytes, NULL, "int : bytes of the kv cache.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot session_slots[] = {
    {Py_tp_doc, (void *)session_doc},   {Py_tp_new, session_new},
    {Py_tp_traverse, session_traverse}, {Py_tp_dealloc, session_dealloc},
    {Py_tp_methods, session_methods},   {Py_tp_getset, session_getset},
    {Py_sq_length, session_length},     {0, NULL},
};

PyType_Spec tlpy_session_spec = {
    .name = "tinyllm._core.Session",
    .basicsize = sizeof(session_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = session_slots,
};
