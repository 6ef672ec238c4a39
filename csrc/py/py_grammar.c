/* py_grammar.c - the expressions of tinyllm.grammar.expr, as those of text/grammar.h. */
#include "py/py_grammar.h"

#include "py/py_array.h"
#include "text/grammar.h"

/* Reads the rules of one grammar. The caller keeps them alive. */
struct reader {
    tlpy_state *st;
    struct tl_grammar *grammar;
    PyObject *classes; // a tuple, in the order of enum tl_expr_kind
    PyObject *numbers; // {name of a rule: its number}
    PyObject *tokens;  // {token: its number}, in order
    PyObject *known;   // {address of an expression: its number}
    int32_t *parts;    // a stack: parts of the expressions that are being read
    size_t n_parts, capacity;
};

static bool read_expr(struct reader *r, PyObject *expr, int32_t *out);

static bool push(struct reader *r, int32_t part) {
    if (!tl_reserve((void **)&r->parts, &r->capacity, r->n_parts + 1, sizeof *r->parts)) {
        PyErr_NoMemory();
        return false;
    }
    r->parts[r->n_parts++] = part;
    return true;
}

/* Pushes an int; None is -1. */
static bool push_int(struct reader *r, PyObject *any) {
    const long value = any == Py_None ? -1 : PyLong_AsLong(any);
    if (value == -1 && PyErr_Occurred()) return false;
    if (value < INT32_MIN || value > INT32_MAX) {
        PyErr_Format(PyExc_ValueError, "a number of a grammar is %ld; expected at most %d", value,
                     INT32_MAX);
        return false;
    }
    return push(r, (int32_t)value);
}

static bool push_field(struct reader *r, PyObject *expr, const char *name) {
    PyObject *field = PyObject_GetAttrString(expr, name);
    const bool ok = field != NULL && push_int(r, field);
    Py_XDECREF(field);
    return ok;
}

static bool push_flag(struct reader *r, PyObject *expr, const char *name) {
    PyObject *field = PyObject_GetAttrString(expr, name);
    const int flag = field == NULL ? -1 : PyObject_IsTrue(field);
    Py_XDECREF(field);
    return flag >= 0 && push(r, flag);
}

static bool push_expr(struct reader *r, PyObject *expr) {
    int32_t number;
    return read_expr(r, expr, &number) && push(r, number);
}

/* Pushes the number of a name or token, which is added to the dict where `add` is set. */
static bool push_number(struct reader *r, PyObject *expr, const char *name, PyObject *numbers,
                        bool add) {
    PyObject *key = PyObject_GetAttrString(expr, name), *number;
    bool ok = false;
    if (key == NULL) return false;
    number = PyDict_GetItemWithError(numbers, key);
    if (number != NULL) {
        ok = push_int(r, number);
    } else if (!PyErr_Occurred() && add) {
        number = PyLong_FromSsize_t(PyDict_Size(numbers));
        ok = number != NULL && PyDict_SetItem(numbers, key, number) == 0 && push_int(r, number);
        Py_XDECREF(number);
    } else if (!PyErr_Occurred()) {
        PyErr_Format(PyExc_ValueError, "a rule refers to %R, which is not defined", key);
    }
    Py_DECREF(key);
    return ok;
}

/* A field of an expression that is a tuple (new reference). */
static PyObject *tuple_of(PyObject *expr, const char *name) {
    PyObject *field = PyObject_GetAttrString(expr, name);
    if (field != NULL && !PyTuple_Check(field)) {
        PyErr_Format(PyExc_TypeError, "%s is %.100s; expected a tuple", name,
                     Py_TYPE(field)->tp_name);
        Py_CLEAR(field);
    }
    return field;
}

/* The two items of a tuple (borrowed). */
static bool pair_of(PyObject *any, PyObject **first, PyObject **second) {
    if (!PyTuple_Check(any) || PyTuple_GET_SIZE(any) != 2) {
        PyErr_Format(PyExc_TypeError, "%R; expected a tuple of two", any);
        return false;
    }
    *first = PyTuple_GET_ITEM(any, 0);
    *second = PyTuple_GET_ITEM(any, 1);
    return true;
}

static bool read_text(struct reader *r, PyObject *expr) {
    PyObject *value = PyObject_GetAttrString(expr, "value");
    Py_ssize_t n = 0;
    const char *bytes = NULL;
    bool ok;
    if (value != NULL && !PyUnicode_Check(value)) {
        PyErr_Format(PyExc_TypeError, "a text is %.100s; expected str", Py_TYPE(value)->tp_name);
    } else if (value != NULL) {
        bytes = PyUnicode_AsUTF8AndSize(value, &n);
    }
    ok = bytes != NULL;
    for (Py_ssize_t i = 0; i < n && ok; i++) ok = push(r, (uint8_t)bytes[i]);
    Py_XDECREF(value);
    return ok;
}

static bool read_chars(struct reader *r, PyObject *expr) {
    PyObject *ranges = tuple_of(expr, "ranges"), *low, *high;
    bool ok = ranges != NULL;
    for (Py_ssize_t i = 0; ok && i < PyTuple_GET_SIZE(ranges); i++) {
        ok = pair_of(PyTuple_GET_ITEM(ranges, i), &low, &high) && push_int(r, low) &&
             push_int(r, high);
    }
    Py_XDECREF(ranges);
    return ok;
}

static bool read_items(struct reader *r, PyObject *expr) {
    PyObject *items = tuple_of(expr, "items");
    bool ok = items != NULL;
    for (Py_ssize_t i = 0; ok && i < PyTuple_GET_SIZE(items); i++) {
        ok = push_expr(r, PyTuple_GET_ITEM(items, i));
    }
    Py_XDECREF(items);
    return ok;
}

/* What is repeated no times is an empty text: it may refer to rules that are not there. */
static bool read_repeat(struct reader *r, PyObject *expr, enum tl_expr_kind *kind) {
    const size_t base = r->n_parts;
    PyObject *item;
    bool ok;
    if (!push_field(r, expr, "high")) return false;
    if (r->parts[base] == 0) {
        *kind = TL_EXPR_TEXT;
        r->n_parts = base;
        return true;
    }
    r->n_parts = base;
    item = PyObject_GetAttrString(expr, "item");
    ok = item != NULL && push_expr(r, item) && push_field(r, expr, "low") &&
         push_field(r, expr, "high");
    Py_XDECREF(item);
    return ok;
}

static bool read_machine(struct reader *r, PyObject *expr) {
    PyObject *edges = tuple_of(expr, "edges"), *ends = PyObject_GetAttrString(expr, "ends");
    bool ok = edges != NULL && ends != NULL && push(r, (int32_t)PyTuple_GET_SIZE(edges));
    for (Py_ssize_t i = 0; ok && i < PyTuple_GET_SIZE(edges); i++) {
        PyObject *out = PyTuple_GET_ITEM(edges, i), *number = PyLong_FromSsize_t(i);
        const int is_end = number == NULL ? -1 : PySet_Contains(ends, number);
        Py_XDECREF(number);
        if (is_end >= 0 && !PyTuple_Check(out)) {
            PyErr_SetString(PyExc_TypeError, "the edges of a state are not a tuple");
        }
        ok = is_end >= 0 && PyTuple_Check(out) && push(r, is_end) &&
             push(r, (int32_t)PyTuple_GET_SIZE(out));
        for (Py_ssize_t j = 0; ok && j < PyTuple_GET_SIZE(out); j++) {
            PyObject *label, *to;
            ok = pair_of(PyTuple_GET_ITEM(out, j), &label, &to) && push_expr(r, label) &&
                 push_int(r, to);
        }
    }
    Py_XDECREF(edges);
    Py_XDECREF(ends);
    return ok;
}

static bool read_parts(struct reader *r, PyObject *expr, enum tl_expr_kind *kind) {
    switch (*kind) {
    case TL_EXPR_TEXT:
        return read_text(r, expr);
    case TL_EXPR_CHARS:
        return read_chars(r, expr);
    case TL_EXPR_SEQ:
    case TL_EXPR_ALT:
        return read_items(r, expr);
    case TL_EXPR_REPEAT:
        return read_repeat(r, expr, kind);
    case TL_EXPR_RULE:
        return push_number(r, expr, "name", r->numbers, false) && push_flag(r, expr, "called");
    case TL_EXPR_MACHINE:
        return read_machine(r, expr);
    default:
        return push_number(r, expr, "token", r->tokens, true) && push_flag(r, expr, "negated");
    }
}

/* *out is the number of an expression; one object is read once. */
static bool read_expr(struct reader *r, PyObject *expr, int32_t *out) {
    PyObject *address = PyLong_FromVoidPtr(expr), *number = NULL;
    const size_t base = r->n_parts;
    enum tl_expr_kind kind = TL_EXPR_TEXT;
    struct tl_error err;
    uint32_t found;
    bool ok = false;
    if (address == NULL) return false;
    number = PyDict_GetItemWithError(r->known, address);
    if (number != NULL || PyErr_Occurred()) {
        ok = number != NULL;
        if (ok) *out = (int32_t)PyLong_AsLong(number);
        Py_DECREF(address);
        return ok;
    }
    while (kind < TL_EXPR_KINDS &&
           PyTuple_GET_ITEM(r->classes, kind) != (PyObject *)Py_TYPE(expr)) {
        kind++;
    }
    if (kind == TL_EXPR_KINDS) {
        PyErr_Format(PyExc_TypeError, "a rule has a %.100s; expected an expression",
                     Py_TYPE(expr)->tp_name);
    } else if (Py_EnterRecursiveCall(" in a grammar") == 0) {
        ok = read_parts(r, expr, &kind);
        Py_LeaveRecursiveCall();
    }
    if (ok &&
        tl_grammar_add(r->grammar, kind, r->parts + base, r->n_parts - base, &found, &err) < 0) {
        tlpy_raise(r->st, &err);
        ok = false;
    }
    r->n_parts = base;
    number = ok ? PyLong_FromUnsignedLong(found) : NULL;
    ok = number != NULL && PyDict_SetItem(r->known, address, number) == 0;
    if (ok) *out = (int32_t)found;
    Py_XDECREF(number);
    Py_DECREF(address);
    return ok;
}

/* The program as (nodes, owners, root, tokens). */
static PyObject *program_of(const struct tl_program *p, PyObject *tokens) {
    const size_t shape[2] = {p->n_nodes, 5};
    PyObject *nodes, *owners, *names;
    void *data;
    int32_t *row;
    nodes = tlpy_array_new(TLPY_I32, 2, shape, &data);
    if (nodes == NULL) return NULL;
    row = data;
    for (size_t i = 0; i < p->n_nodes; i++, row += 5) {
        const struct tl_automaton_node *node = &p->nodes[i];
        row[0] = node->op;
        row[1] = node->low;
        row[2] = node->high;
        row[3] = node->a;
        row[4] = node->b;
    }
    owners = tlpy_array_new(TLPY_I32, 1, shape, &data);
    if (owners == NULL) {
        Py_DECREF(nodes);
        return NULL;
    }
    memcpy(data, p->owners, p->n_nodes * sizeof *p->owners);
    names = PyDict_Keys(tokens);
    if (names == NULL) {
        Py_DECREF(nodes);
        Py_DECREF(owners);
        return NULL;
    }
    return Py_BuildValue("NNnN", nodes, owners, (Py_ssize_t)p->root, names);
}

PyDoc_STRVAR(build_grammar_doc,
             "build_grammar(rules, classes, max_nodes, check, /)\n"
             "--\n"
             "\n"
             "The program of some rules, for tinyllm.grammar.automaton.\n"
             "\n"
             "Parameters\n"
             "----------\n"
             "rules : dict of str to expression\n"
             "    The first one is the start.\n"
             "classes : tuple of type\n"
             "    Text, Chars, Seq, Alt, Repeat, Ref, Machine and Token of tinyllm.grammar.expr.\n"
             "max_nodes : int\n"
             "check : bool\n"
             "    Whether parts that match no text, and left recursion, are not accepted.\n"
             "\n"
             "Returns\n"
             "-------\n"
             "nodes : numpy.ndarray of int32, shape (n, 5)\n"
             "owners : numpy.ndarray of int32, shape (n,)\n"
             "    The number of each node's rule.\n"
             "root : int\n"
             "    The node where the program starts.\n"
             "tokens : list of (str or int)\n"
             "    The tokens that the rules name.\n"
             "    Instead of all this, what is not accepted gives the set of the rules that match\n"
             "    some text.\n"
             "\n"
             "Raises\n"
             "------\n"
             "ValueError\n"
             "    If there would be more nodes; the message names the rule. Or if the expressions\n"
             "    are nested too deeply.\n");

static PyObject *build_grammar(PyObject *module, PyObject *args) {
    struct reader r = {.st = PyModule_GetState(module)};
    PyObject *rules, *name, *expr, *exprs = NULL, *out = NULL;
    struct tl_program program;
    struct tl_error err;
    Py_ssize_t max_nodes, at = 0;
    size_t failed = 0, rule = 0;
    uint8_t *ends = NULL;
    bool fine = true;
    int status = TL_OK, check;
    if (!PyArg_ParseTuple(args, "O!O!np", &PyDict_Type, &rules, &PyTuple_Type, &r.classes,
                          &max_nodes, &check)) {
        return NULL;
    }
    if (PyTuple_GET_SIZE(r.classes) != TL_EXPR_KINDS || max_nodes < 1) {
        PyErr_Format(PyExc_ValueError, "%zd classes, max_nodes %zd; expected %d, above 0",
                     PyTuple_GET_SIZE(r.classes), max_nodes, TL_EXPR_KINDS);
        return NULL;
    }
    r.numbers = PyDict_New();
    r.tokens = PyDict_New();
    r.known = PyDict_New();
    if (r.numbers == NULL || r.tokens == NULL || r.known == NULL) goto done;
    if (tl_grammar_new((size_t)PyDict_Size(rules), &r.grammar, &err) < 0) {
        tlpy_raise(r.st, &err);
        goto done;
    }
    while (PyDict_Next(rules, &at, &name, &expr)) {
        PyObject *number = PyLong_FromSsize_t(PyDict_Size(r.numbers));
        const bool ok = number != NULL && PyDict_SetItem(r.numbers, name, number) == 0;
        Py_XDECREF(number);
        if (!ok) goto done;
    }
    exprs = PyDict_Values(rules);
    if (exprs == NULL) goto done;
    // a rule often refers to later ones, and the check is fast if those were read before
    for (rule = (size_t)PyList_GET_SIZE(exprs); rule > 0; rule--) {
        int32_t number;
        if (!read_expr(&r, PyList_GET_ITEM(exprs, (Py_ssize_t)rule - 1), &number)) goto done;
        if (tl_grammar_set_rule(r.grammar, rule - 1, (uint32_t)number, &err) < 0) {
            tlpy_raise(r.st, &err);
            goto done;
        }
    }
    ends = PyMem_Calloc(PyList_GET_SIZE(exprs) + 1, 1);
    if (ends == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    if (check) status = tl_grammar_check(r.grammar, ends, &fine, &err);
    if (status == TL_OK && !fine) {
        out = PySet_New(NULL);
        for (at = 0, rule = 0; out != NULL && PyDict_Next(rules, &at, &name, &expr); rule++) {
            if (ends[rule] && PySet_Add(out, name) < 0) Py_CLEAR(out);
        }
        goto done;
    }
    if (status == TL_OK)
        status = tl_grammar_build(r.grammar, 0, (size_t)max_nodes, &program, &failed, &err);
    if (status == TL_ENOSUP) {
        for (at = 0, rule = 0; PyDict_Next(rules, &at, &name, &expr) && rule < failed;) rule++;
        PyErr_Format(PyExc_ValueError,
                     "the grammar is too large: more than %zd states, reached in rule %R; use "
                     "smaller repetitions",
                     max_nodes, name);
    } else if (status < 0) {
        tlpy_raise(r.st, &err);
    } else {
        out = program_of(&program, r.tokens);
    }
done:
    tl_grammar_free(r.grammar);
    PyMem_Free(ends);
    tl_free(r.parts);
    Py_XDECREF(exprs);
    Py_XDECREF(r.numbers);
    Py_XDECREF(r.tokens);
    Py_XDECREF(r.known);
    return out;
}

PyMethodDef tlpy_grammar_methods[] = {
    {"build_grammar", build_grammar, METH_VARARGS, build_grammar_doc},
    {NULL, NULL, 0, NULL},
};
