/* py_session.c - _core.Session: the caches of one context, for one thread at a time. */
#include "py/py_session.h"

#include "base/os.h"
#include "forward/cache.h"
#include "forward/device_session.h"
#include "py/py_array.h"
#include "py/py_model.h"

#include <stdatomic.h>
#include <string.h>

typedef struct {
    PyObject_HEAD
    PyObject *model;
    struct tl_session *s;
    _Atomic uint64_t user; // the process that uses it; 0: nobody does
} session_object;

PyDoc_STRVAR(session_doc, "Session(model, /)\n"
                          "--\n"
                          "\n"
                          "The keys, values and states of one context.\n"
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
    atomic_store(&self->user, 0);
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
    uint64_t user = 0;
    if (atomic_compare_exchange_strong(&self->user, &user, tl_process_id())) return true;
    if (user != tl_process_id()) {
        PyErr_SetString(PyExc_RuntimeError,
                        "this session was in use when the process was forked, so its state here "
                        "may be incomplete; make a new session, or fork while nobody uses it");
        return false;
    }
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
    atomic_store(&((session_object *)session)->user, 0);
}

PyDoc_STRVAR(rewind_doc, "rewind($self, length, /)\n"
                         "--\n"
                         "\n"
                         "Keep the first `length` positions and forget the rest.\n"
                         "\n"
                         "A recurrent state cannot be taken back by some tokens. With one, fewer\n"
                         "positions may be kept: those up to the last multiple of 256 that the\n"
                         "session has passed, or none. The tokens after them must run again.\n"
                         "\n"
                         "Returns\n"
                         "-------\n"
                         "int\n"
                         "    The number of positions that were kept.\n"
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
    size_t kept = 0;
    bool ok;
    if (n == -1 && PyErr_Occurred()) return NULL;
    if (!enter(self)) return NULL;
    ok = n >= 0 && (size_t)n <= self->s->n;
    if (ok) {
        kept = tl_session_rewind(self->s, (size_t)n);
    } else {
        PyErr_Format(PyExc_ValueError, "length is %zd; expected 0 to %zu", n, self->s->n);
    }
    tlpy_session_leave(op);
    return ok ? PyLong_FromSize_t(kept) : NULL;
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

PyDoc_STRVAR(cache_doc,
             "cache($self, number, /)\n"
             "--\n"
             "\n"
             "Copies of what one cache holds, as a tuple of arrays.\n"
             "\n"
             "The keys (n, K, Dh) and values (n, K, Dv) of all positions, or the state\n"
             "after the last one. Caches are numbered in the order of the plan's steps.\n"
             "\n"
             "Raises\n"
             "------\n"
             "IndexError\n"
             "    There is no such cache.\n"
             "RuntimeError\n"
             "    The session is in use by another thread.\n");

/* A copy of a state, in a tuple. */
static PyObject *state_of(const struct tl_session *s, size_t number) {
    const struct tl_cache *c = &s->plan->caches[number];
    const float *state = tl_session_state(s, number);
    void *data;
    PyObject *tuple, *array = tlpy_array_new(TLPY_F32, c->n_axes, c->axes, &data);
    if (array == NULL) return NULL;
    if (state != NULL) memcpy(data, state, c->block_bytes);
    if (state == NULL) memset(data, 0, c->block_bytes);
    tuple = PyTuple_Pack(1, array);
    Py_DECREF(array);
    return tuple;
}

/* Copies of keys and values, in a tuple. */
static PyObject *pair_of(const struct tl_session *s, size_t number) {
    const struct tl_cache *c = &s->plan->caches[number];
    PyObject *keys, *values, *pair = NULL;
    void *key_data, *value_data;
    float *wide = tl_alloc((tl_cache_wide(s->plan) + 1) * sizeof(float));
    keys = tlpy_array_new(TLPY_F32, 3, (size_t[]){s->n, c->kv_heads, c->key_size}, &key_data);
    values = tlpy_array_new(TLPY_F32, 3, (size_t[]){s->n, c->kv_heads, c->value_size}, &value_data);
    if (wide == NULL) {
        PyErr_NoMemory();
    } else if (keys != NULL && values != NULL) {
        tl_session_get(s, number, key_data, value_data, wide);
        pair = PyTuple_Pack(2, keys, values);
    }
    tl_free(wide);
    Py_XDECREF(keys);
    Py_XDECREF(values);
    return pair;
}

static PyObject *session_cache(PyObject *op, PyObject *arg) {
    session_object *self = (session_object *)op;
    const struct tl_plan *plan = tlpy_model_plan(self->model);
    const Py_ssize_t number = PyNumber_AsSsize_t(arg, PyExc_OverflowError);
    struct tl_error err;
    PyObject *arrays;
    int status;
    if (number == -1 && PyErr_Occurred()) return NULL;
    if (number < 0 || (size_t)number >= plan->n_caches) {
        PyErr_Format(PyExc_IndexError, "number is %zd; the model has %zu caches", number,
                     plan->n_caches);
        return NULL;
    }
    if (!enter(self)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = session_device_to_host(self->s, (size_t)number, self->s->n, &err);
    Py_END_ALLOW_THREADS
    if (status != TL_OK) {
        tlpy_session_leave(op);
        return tlpy_raise(tlpy_state_of(op), &err);
    }
    arrays = plan->caches[number].state > 0 ? state_of(self->s, (size_t)number)
                                            : pair_of(self->s, (size_t)number);
    tlpy_session_leave(op);
    return arrays;
}

PyDoc_STRVAR(fill_doc,
             "fill($self, tokens, caches, /)\n"
             "--\n"
             "\n"
             "Give an empty session what `cache` returned.\n"
             "\n"
             "Parameters\n"
             "----------\n"
             "tokens : array_like of int32, shape (n,)\n"
             "    The token at each position.\n"
             "caches : sequence of (keys, values) or (state,)\n"
             "    float32 arrays for every cache: (n, K, Dh) and (n, K, Dv), or the state.\n"
             "\n"
             "Raises\n"
             "------\n"
             "ValueError\n"
             "    The session is not empty, an array has another size, or n is beyond the\n"
             "    context length.\n"
             "RuntimeError\n"
             "    The session is in use by another thread.\n");

/* One array of fill(), which must have n rows. */
static PyObject *fill_array(PyObject *given, Py_ssize_t which, size_t row, size_t n) {
    PyObject *item = PySequence_GetItem(given, which), *array;
    size_t size;
    if (item == NULL) return NULL;
    array = tlpy_array_from(item, TLPY_F32);
    Py_DECREF(item);
    if (array == NULL) return NULL;
    tlpy_array_read(array, &size);
    if (size % row != 0 || size / row != n) {
        PyErr_Format(PyExc_ValueError,
                     "an array of the cache has %zu values; expected %zu rows of %zu", size, n,
                     row);
        Py_CLEAR(array);
    }
    return array;
}

static bool fill_state(session_object *self, PyObject *given, size_t number) {
    const struct tl_cache *c = &self->s->plan->caches[number];
    PyObject *state = fill_array(given, 0, c->state, 1);
    size_t size;
    if (state == NULL) return false;
    memcpy(tl_session_next_state(self->s, number), tlpy_array_read(state, &size), c->block_bytes);
    Py_DECREF(state);
    return true;
}

static bool fill_pair(session_object *self, PyObject *given, size_t number, size_t n) {
    const struct tl_cache *c = &self->s->plan->caches[number];
    PyObject *keys, *values;
    size_t size;
    keys = fill_array(given, 0, c->kv_heads * c->key_size, n);
    values = keys != NULL ? fill_array(given, 1, c->kv_heads * c->value_size, n) : NULL;
    for (size_t head = 0; values != NULL && head < c->kv_heads; head++) {
        tl_session_put(self->s, number, head, 0, n, tlpy_array_read(keys, &size),
                       tlpy_array_read(values, &size));
    }
    Py_XDECREF(keys);
    Py_XDECREF(values);
    return values != NULL;
}

/* Puts n positions of every cache into an empty session, which has room for them. */
static bool fill_caches(session_object *self, PyObject *caches, size_t n) {
    const struct tl_plan *plan = tlpy_model_plan(self->model);
    tl_session_unmark(self->s); // only the states after n positions are given
    for (size_t i = 0; i < plan->n_caches; i++) {
        PyObject *given = PyTuple_GetItem(caches, (Py_ssize_t)i);
        const bool ok =
            plan->caches[i].state > 0 ? fill_state(self, given, i) : fill_pair(self, given, i, n);
        if (!ok) return false;
    }
    return true;
}

static PyObject *session_fill(PyObject *op, PyObject *args) {
    session_object *self = (session_object *)op;
    const struct tl_plan *plan = tlpy_model_plan(self->model);
    PyObject *given_tokens, *given_caches, *tokens = NULL, *caches = NULL;
    const int32_t *ids;
    struct tl_error err;
    size_t n = 0;
    bool ok = false;
    if (!PyArg_ParseTuple(args, "OO:fill", &given_tokens, &given_caches)) return NULL;
    tokens = tlpy_array_from(given_tokens, TLPY_I32);
    caches = tokens != NULL ? PySequence_Tuple(given_caches) : NULL;
    if (caches == NULL || !enter(self)) goto done;
    ids = tlpy_array_read(tokens, &n);
    if ((size_t)PyTuple_Size(caches) != plan->n_caches) {
        PyErr_Format(PyExc_ValueError, "there are %zd caches; expected %zu", PyTuple_Size(caches),
                     plan->n_caches);
    } else if (self->s->n != 0) {
        PyErr_SetString(PyExc_ValueError, "the session is not empty");
    } else if (n > plan->max_context) {
        PyErr_Format(PyExc_ValueError, "the cache has %zu positions; expected at most %zu", n,
                     plan->max_context);
    } else if (tl_session_reserve(self->s, n, &err) != TL_OK) {
        tlpy_raise(tlpy_state_of(op), &err);
    } else {
        ok = fill_caches(self, caches, n);
        if (ok) {
            session_device_filled(self->s, n);
            tl_session_commit(self->s, ids, n);
        }
    }
    if (!ok) tl_session_cancel(self->s);
    tlpy_session_leave(op);
done:
    Py_XDECREF(tokens);
    Py_XDECREF(caches);
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
    bytes = tl_session_cache_bytes(self->s) + session_device_bytes(self->s);
    tlpy_session_leave(op);
    return PyLong_FromSize_t(bytes);
}

static PyObject *session_tokens(PyObject *op, void *closure) {
    session_object *self = (session_object *)op;
    PyObject *array;
    void *data;
    (void)closure;
    if (!enter(self)) return NULL;
    array = tlpy_array_new(TLPY_I32, 1, &self->s->n, &data);
    if (array != NULL && self->s->n > 0) {
        memcpy(data, self->s->tokens, self->s->n * sizeof(*self->s->tokens));
    }
    tlpy_session_leave(op);
    return array;
}

static PyMethodDef session_methods[] = {
    {"rewind", session_rewind, METH_O, rewind_doc},
    {"fork", session_fork, METH_NOARGS, fork_doc},
    {"cache", session_cache, METH_O, cache_doc},
    {"fill", session_fill, METH_VARARGS, fill_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef session_getset[] = {
    {"tokens", session_tokens, NULL, "numpy.ndarray of int32 : the token at each position.", NULL},
    {"nbytes", session_nbytes, NULL, "int : bytes of the caches, on the CPU and on the device.",
     NULL},
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
