/* py_automaton.c - the types _core.Trie and _core.Automaton, for tinyllm.grammar. */
#include "py/py_automaton.h"

#include "py/py_array.h"
#include "text/automaton.h"

#include <stdatomic.h>

// ---- Trie ----

typedef struct {
    PyObject_HEAD
    struct tl_trie *trie; // owns
} trie_object;

static PyObject *trie_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"pieces", NULL};
    PyObject *pieces;
    const uint8_t **at = NULL;
    size_t *sizes = NULL, n;
    trie_object *self = NULL;
    struct tl_error err;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!", names, &PyList_Type, &pieces)) return NULL;
    n = (size_t)PyList_GET_SIZE(pieces);
    at = PyMem_Calloc(n + 1, sizeof *at);
    sizes = PyMem_Calloc(n + 1, sizeof *sizes);
    if (at == NULL || sizes == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (size_t i = 0; i < n; i++) {
        PyObject *piece = PyList_GET_ITEM(pieces, (Py_ssize_t)i);
        if (!PyBytes_Check(piece)) {
            PyErr_Format(PyExc_TypeError, "pieces[%zu] is %.100s; expected bytes", i,
                         Py_TYPE(piece)->tp_name);
            goto done;
        }
        at[i] = (const uint8_t *)PyBytes_AS_STRING(piece);
        sizes[i] = (size_t)PyBytes_GET_SIZE(piece);
    }
    self = (trie_object *)type->tp_alloc(type, 0);
    if (self != NULL && tl_trie_new(at, sizes, n, &self->trie, &err) < 0) {
        tlpy_state *st = tlpy_state_of((PyObject *)self);
        if (st != NULL) tlpy_raise(st, &err);
        Py_CLEAR(self);
    }
done:
    PyMem_Free(at);
    PyMem_Free(sizes);
    return (PyObject *)self;
}

static void trie_dealloc(PyObject *op) {
    PyTypeObject *type = Py_TYPE(op);
    tl_trie_free(((trie_object *)op)->trie);
    type->tp_free(op);
    Py_DECREF(type);
}

static Py_ssize_t trie_length(PyObject *op) {
    return (Py_ssize_t)tl_trie_n_pieces(((trie_object *)op)->trie);
}

static PyObject *trie_nodes(PyObject *op, void *closure) {
    (void)closure;
    return PyLong_FromSize_t(tl_trie_n_nodes(((trie_object *)op)->trie));
}

static PyGetSetDef trie_attributes[] = {
    {"nodes", trie_nodes, NULL, "Nodes of the tree.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(trie_doc, "Trie(pieces)\n"
                       "--\n"
                       "\n"
                       "The pieces of a vocabulary as a prefix tree, for `Automaton`.\n"
                       "\n"
                       "Immutable: any number of automata may share it.\n"
                       "\n"
                       "Parameters\n"
                       "----------\n"
                       "pieces : list of bytes\n"
                       "    The piece of each id. An empty piece is never allowed.\n");

static PyType_Slot trie_slots[] = {
    {Py_tp_new, trie_new},       {Py_tp_dealloc, trie_dealloc}, {Py_tp_getset, trie_attributes},
    {Py_sq_length, trie_length}, {Py_tp_doc, (void *)trie_doc}, {0, NULL},
};

PyType_Spec tlpy_trie_spec = {
    .name = "tinyllm._core.Trie",
    .basicsize = sizeof(trie_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = trie_slots,
};

// ---- Automaton ----

typedef struct {
    PyObject_HEAD
    struct tl_automaton *automaton; // owns
    PyObject *trie;                 // keeps alive the tree that the automaton uses; or NULL
    atomic_flag busy;
} automaton_object;

/* Copies an (n, 5) array of nodes. */
static struct tl_automaton_node *read_nodes(PyObject *any, size_t *n) {
    PyObject *array = tlpy_array_from(any, TLPY_I32);
    struct tl_automaton_node *nodes = NULL;
    const int32_t *data;
    size_t size;
    if (array == NULL) return NULL;
    data = tlpy_array_read(array, &size);
    *n = size / 5;
    if (size == 0 || size % 5 != 0) {
        PyErr_Format(PyExc_ValueError, "nodes has %zu values; expected five for each node", size);
        goto done;
    }
    nodes = PyMem_Malloc(*n * sizeof *nodes);
    if (nodes == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (size_t i = 0; i < *n; i++) {
        const int32_t *row = data + 5 * i;
        if (row[0] < 0 || row[0] > TL_AUTOMATON_TOKEN || row[1] < 0 || row[1] > 255 || row[2] < 0 ||
            row[2] > 255) {
            PyErr_Format(PyExc_ValueError,
                         "node %zu is (%d, %d, %d, ...); expected an operation and two bytes", i,
                         (int)row[0], (int)row[1], (int)row[2]);
            PyMem_Free(nodes);
            nodes = NULL;
            goto done;
        }
        nodes[i] = (struct tl_automaton_node){(uint8_t)row[0], (uint8_t)row[1], (uint8_t)row[2],
                                              row[3], row[4]};
    }
done:
    Py_DECREF(array);
    return nodes;
}

static PyObject *automaton_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"nodes", "root", "trie", NULL};
    PyObject *nodes_arg, *trie = Py_None;
    struct tl_automaton_node *nodes;
    automaton_object *self;
    const struct tl_trie *tree = NULL;
    struct tl_error err;
    tlpy_state *st;
    Py_ssize_t root;
    size_t n;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "On|O", names, &nodes_arg, &root, &trie)) {
        return NULL;
    }
    self = (automaton_object *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    atomic_flag_clear(&self->busy);
    st = tlpy_state_of((PyObject *)self);
    if (st == NULL) goto failed;
    if (trie != Py_None) {
        if (!Py_IS_TYPE(trie, tlpy_type(st, &tlpy_trie_spec))) {
            PyErr_Format(PyExc_TypeError, "trie is %.100s; expected a Trie or None",
                         Py_TYPE(trie)->tp_name);
            goto failed;
        }
        self->trie = Py_NewRef(trie);
        tree = ((trie_object *)trie)->trie;
    }
    nodes = read_nodes(nodes_arg, &n);
    if (nodes == NULL) goto failed;
    if (tl_automaton_new(nodes, n, (size_t)root, tree, &self->automaton, &err) < 0) {
        tlpy_raise(st, &err);
    }
    PyMem_Free(nodes);
    if (self->automaton != NULL) return (PyObject *)self;
failed:
    Py_DECREF(self);
    return NULL;
}

static void automaton_dealloc(PyObject *op) {
    automaton_object *self = (automaton_object *)op;
    PyTypeObject *type = Py_TYPE(op);
    tl_automaton_free(self->automaton);
    Py_XDECREF(self->trie);
    type->tp_free(op);
    Py_DECREF(type);
}

static bool enter(automaton_object *self) {
    if (!atomic_flag_test_and_set(&self->busy)) return true;
    PyErr_SetString(PyExc_RuntimeError, "this automaton is in use by another thread");
    return false;
}

static PyObject *fail(automaton_object *self, const struct tl_error *err) {
    tlpy_state *st = tlpy_state_of((PyObject *)self);
    return st == NULL ? NULL : tlpy_raise(st, err);
}

static bool read_state(PyObject *any, uint32_t *out) {
    const unsigned long value = PyLong_AsUnsignedLong(any);
    if (value == (unsigned long)-1 && PyErr_Occurred()) return false;
    *out = value > UINT32_MAX ? UINT32_MAX : (uint32_t)value;
    return true;
}

PyDoc_STRVAR(advance_doc,
             "advance($self, state, data, /)\n"
             "--\n"
             "\n"
             "The state after more bytes; 0 if the text does not match the grammar.\n");

static PyObject *automaton_advance(PyObject *op, PyObject *args) {
    automaton_object *self = (automaton_object *)op;
    PyObject *state_arg, *data;
    struct tl_error err;
    uint32_t state;
    int status;
    if (!PyArg_ParseTuple(args, "OS", &state_arg, &data)) return NULL;
    if (!read_state(state_arg, &state) || !enter(self)) return NULL;
    status = tl_automaton_advance(self->automaton, state, (const uint8_t *)PyBytes_AS_STRING(data),
                                  (size_t)PyBytes_GET_SIZE(data), &state, &err);
    atomic_flag_clear(&self->busy);
    return status < 0 ? fail(self, &err) : PyLong_FromUnsignedLong(state);
}

PyDoc_STRVAR(
    accept_doc,
    "accept($self, state, token, piece, /)\n"
    "--\n"
    "\n"
    "The state after a token, which the grammar names or whose piece fits; 0 if it may not "
    "come next.\n");

static PyObject *automaton_accept(PyObject *op, PyObject *args) {
    automaton_object *self = (automaton_object *)op;
    PyObject *state_arg, *token_arg, *piece;
    struct tl_error err;
    uint32_t state, token;
    int status;
    if (!PyArg_ParseTuple(args, "OOS", &state_arg, &token_arg, &piece)) return NULL;
    if (!read_state(state_arg, &state) || !read_state(token_arg, &token) || !enter(self)) {
        return NULL;
    }
    status = tl_automaton_accept(self->automaton, state, token,
                                 (const uint8_t *)PyBytes_AS_STRING(piece),
                                 (size_t)PyBytes_GET_SIZE(piece), &state, &err);
    atomic_flag_clear(&self->busy);
    return status < 0 ? fail(self, &err) : PyLong_FromUnsignedLong(state);
}

PyDoc_STRVAR(look_doc, "look($self, state, /)\n"
                       "--\n"
                       "\n"
                       "Describe a state.\n"
                       "\n"
                       "Returns\n"
                       "-------\n"
                       "complete : bool\n"
                       "    Whether the text may end here.\n"
                       "node : int\n"
                       "    A node of the program that waits; -1 if nothing may follow.\n"
                       "following : bytes\n"
                       "    The bytes that may follow, in rising order.\n");

static PyObject *automaton_look(PyObject *op, PyObject *state_arg) {
    automaton_object *self = (automaton_object *)op;
    struct tl_automaton_facts facts;
    struct tl_error err;
    char bytes[256];
    Py_ssize_t n = 0;
    uint32_t state;
    int status;
    if (!read_state(state_arg, &state) || !enter(self)) return NULL;
    status = tl_automaton_look(self->automaton, state, &facts, &err);
    atomic_flag_clear(&self->busy);
    if (status < 0) return fail(self, &err);
    for (int b = 0; b < 256; b++) {
        if (facts.bytes[b / 32] >> b % 32 & 1) bytes[n++] = (char)b;
    }
    return Py_BuildValue("Niy#", PyBool_FromLong(facts.complete), (int)facts.node, bytes, n);
}

PyDoc_STRVAR(mask_doc, "mask($self, state, /)\n"
                       "--\n"
                       "\n"
                       "Which pieces of the vocabulary may come next.\n"
                       "\n"
                       "Returns\n"
                       "-------\n"
                       "numpy.ndarray of bool, shape (len(trie),)\n"
                       "    A new array.\n");

static PyObject *automaton_mask(PyObject *op, PyObject *state_arg) {
    automaton_object *self = (automaton_object *)op;
    PyObject *array;
    struct tl_error err;
    uint32_t state;
    size_t n;
    void *data;
    int status;
    if (!read_state(state_arg, &state)) return NULL;
    if (self->trie == NULL) {
        PyErr_SetString(PyExc_ValueError, "this automaton was made without a trie");
        return NULL;
    }
    n = tl_trie_n_pieces(((trie_object *)self->trie)->trie);
    array = tlpy_array_new(TLPY_BOOL, 1, &n, &data);
    if (array == NULL) return NULL;
    if (!enter(self)) {
        Py_DECREF(array);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = tl_automaton_mask(self->automaton, state, data, n, &err);
    Py_END_ALLOW_THREADS
    atomic_flag_clear(&self->busy);
    if (status == TL_OK) return array;
    Py_DECREF(array);
    return fail(self, &err);
}

static PyMethodDef automaton_methods[] = {
    {"advance", automaton_advance, METH_VARARGS, advance_doc},
    {"accept", automaton_accept, METH_VARARGS, accept_doc},
    {"look", automaton_look, METH_O, look_doc},
    {"mask", automaton_mask, METH_O, mask_doc},
    {NULL, NULL, 0, NULL},
};

static PyObject *automaton_start(PyObject *op, void *closure) {
    (void)closure;
    return PyLong_FromUnsignedLong(tl_automaton_start(((automaton_object *)op)->automaton));
}

static PyObject *automaton_states(PyObject *op, void *closure) {
    (void)closure;
    return PyLong_FromSize_t(tl_automaton_n_states(((automaton_object *)op)->automaton));
}

static PyObject *automaton_nbytes(PyObject *op, void *closure) {
    (void)closure;
    return PyLong_FromSize_t(tl_automaton_nbytes(((automaton_object *)op)->automaton));
}

static PyGetSetDef automaton_attributes[] = {
    {"start", automaton_start, NULL, "The state before any text.", NULL},
    {"states", automaton_states, NULL, "The number of states so far.", NULL},
    {"nbytes", automaton_nbytes, NULL, "Bytes of memory in use.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(automaton_doc,
             "Automaton(nodes, root, trie=None)\n"
             "--\n"
             "\n"
             "A compiled grammar, which matches bytes and computes masks, for tinyllm.grammar.\n"
             "\n"
             "A state is a number whose meaning never changes. The automaton stores what it has\n"
             "computed, so it serves one thread at a time: a second one gets RuntimeError.\n"
             "\n"
             "Parameters\n"
             "----------\n"
             "nodes : array_like of int32, shape (n, 5)\n"
             "    As `tinyllm.grammar.automaton` describes them.\n"
             "root : int\n"
             "trie : Trie, optional\n"
             "    The vocabulary, for `mask`.\n");

static PyType_Slot automaton_slots[] = {
    {Py_tp_new, automaton_new},         {Py_tp_dealloc, automaton_dealloc},
    {Py_tp_methods, automaton_methods}, {Py_tp_getset, automaton_attributes},
    {Py_tp_doc, (void *)automaton_doc}, {0, NULL},
};

PyType_Spec tlpy_automaton_spec = {
    .name = "tinyllm._core.Automaton",
    .basicsize = sizeof(automaton_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = automaton_slots,
};
