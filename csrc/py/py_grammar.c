/* py_grammar.c - the expressions of tinyllm.grammar.expr, as those of text/grammar.h. */
#include "py/py_grammar.h"

#include "py/py_array.h"
#include "text/grammar.h"
#include "text/language.h"

enum { N_CLASSES = TL_EXPR_KINDS + 1 }; // a class for each kind, and another one of machines

/* The attributes of expressions. */
enum field {
    VALUE,
    RANGES,
    ITEMS,
    ITEM,
    LOW,
    HIGH,
    NAME,
    CALLED,
    EDGES,
    ENDS,
    LABELS,
    TABLE,
    LAST,
    STATES,
    TOKEN,
    NEGATED,
    N_FIELDS,
};

static const char *const field_names[N_FIELDS] = {
    "value", "ranges", "items",  "item",  "low",  "high",   "name",  "called",
    "edges", "ends",   "labels", "table", "last", "states", "token", "negated",
};

/* An expression that was read; NULL where free. */
struct known {
    PyObject *expr;
    int32_t number;
};

/* Reads the rules of one grammar. The caller keeps them alive. */
struct reader {
    tlpy_state *st;
    struct tl_grammar *grammar;
    PyObject *classes;          // a tuple, in the order of enum tl_expr_kind, and expr.Packed
    PyObject *numbers;          // {name of a rule: its number}
    PyObject *tokens;           // {token: its number}, in order
    PyObject *fields[N_FIELDS]; // the names of attributes, interned
    struct known *known;        // owns; a hash table by address
    size_t n_known, known_size;
    bool halves;    // a text with half of a pair of surrogates is one that no text matches
    int32_t *parts; // a stack: parts of the expressions that are being read
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

static bool push_field(struct reader *r, PyObject *expr, enum field name) {
    PyObject *field = PyObject_GetAttr(expr, r->fields[name]);
    const bool ok = field != NULL && push_int(r, field);
    Py_XDECREF(field);
    return ok;
}

static bool push_flag(struct reader *r, PyObject *expr, enum field name) {
    PyObject *field = PyObject_GetAttr(expr, r->fields[name]);
    const int flag = field == NULL ? -1 : PyObject_IsTrue(field);
    Py_XDECREF(field);
    return flag >= 0 && push(r, flag);
}

static bool push_expr(struct reader *r, PyObject *expr) {
    int32_t number;
    return read_expr(r, expr, &number) && push(r, number);
}

/* Pushes the number of a name or token, which is added to the dict where `add` is set. */
static bool push_number(struct reader *r, PyObject *expr, enum field name, PyObject *numbers,
                        bool add) {
    PyObject *key = PyObject_GetAttr(expr, r->fields[name]), *number;
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
static PyObject *tuple_of(const struct reader *r, PyObject *expr, enum field name) {
    PyObject *field = PyObject_GetAttr(expr, r->fields[name]);
    if (field != NULL && !PyTuple_Check(field)) {
        PyErr_Format(PyExc_TypeError, "%s is %.100s; expected a tuple", field_names[name],
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

/* A text with half of a pair of surrogates has no bytes; it may become a set of no characters. */
static bool read_text(struct reader *r, PyObject *expr, enum tl_expr_kind *kind) {
    PyObject *value = PyObject_GetAttr(expr, r->fields[VALUE]);
    Py_ssize_t n = 0;
    const char *bytes = NULL;
    bool ok;
    if (value != NULL && !PyUnicode_Check(value)) {
        PyErr_Format(PyExc_TypeError, "a text is %.100s; expected str", Py_TYPE(value)->tp_name);
    } else if (value != NULL) {
        bytes = PyUnicode_AsUTF8AndSize(value, &n);
        if (bytes == NULL && r->halves && PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) {
            PyErr_Clear();
            *kind = TL_EXPR_CHARS;
            bytes = "";
            n = 0;
        }
    }
    ok = bytes != NULL;
    for (Py_ssize_t i = 0; i < n && ok; i++) ok = push(r, (uint8_t)bytes[i]);
    Py_XDECREF(value);
    return ok;
}

static bool read_chars(struct reader *r, PyObject *expr) {
    PyObject *ranges = tuple_of(r, expr, RANGES), *low, *high;
    bool ok = ranges != NULL;
    for (Py_ssize_t i = 0; ok && i < PyTuple_GET_SIZE(ranges); i++) {
        ok = pair_of(PyTuple_GET_ITEM(ranges, i), &low, &high) && push_int(r, low) &&
             push_int(r, high);
    }
    Py_XDECREF(ranges);
    return ok;
}

static bool read_items(struct reader *r, PyObject *expr) {
    PyObject *items = tuple_of(r, expr, ITEMS);
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
    if (!push_field(r, expr, HIGH)) return false;
    if (r->parts[base] == 0) {
        *kind = TL_EXPR_TEXT;
        r->n_parts = base;
        return true;
    }
    r->n_parts = base;
    item = PyObject_GetAttr(expr, r->fields[ITEM]);
    ok =
        item != NULL && push_expr(r, item) && push_field(r, expr, LOW) && push_field(r, expr, HIGH);
    Py_XDECREF(item);
    return ok;
}

static bool read_machine(struct reader *r, PyObject *expr) {
    PyObject *edges = tuple_of(r, expr, EDGES), *ends = PyObject_GetAttr(expr, r->fields[ENDS]);
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

/* The int32 array in a field (new reference), and its size. */
static PyObject *ints_of(const struct reader *r, PyObject *expr, enum field name,
                         const int32_t **data, size_t *n) {
    PyObject *field = PyObject_GetAttr(expr, r->fields[name]), *array = NULL;
    if (field != NULL) array = tlpy_array_from(field, TLPY_I32);
    if (array != NULL) *data = tlpy_array_read(array, n);
    Py_XDECREF(field);
    return array;
}

static bool push_table(struct reader *r, size_t states, const int32_t *rows, size_t n_rows,
                       const int32_t *ends, size_t n_ends, size_t labels, size_t n_labels) {
    size_t row = 0, end = 0;
    if (states > INT32_MAX || !push(r, (int32_t)states)) return false;
    for (size_t i = 0; i < states; i++) {
        const size_t first = row;
        const bool is_end = end < n_ends && ends[end] == (int32_t)i;
        while (row < n_rows && rows[3 * row] == (int32_t)i) row++;
        end += is_end;
        if (!push(r, is_end) || !push(r, (int32_t)(row - first))) return false;
        for (size_t j = first; j < row; j++) {
            const int32_t label = rows[3 * j + 1];
            if (label < 0 || (size_t)label >= n_labels) break;
            if (!push(r, r->parts[labels + (size_t)label]) || !push(r, rows[3 * j + 2])) {
                return false;
            }
        }
    }
    if (row == n_rows && end == n_ends) return true;
    PyErr_SetString(PyExc_ValueError, "the rows or the ends of an automaton are not in order");
    return false;
}

/* Its labels are read first, and taken off the stack at the end. */
static bool read_packed(struct reader *r, PyObject *expr) {
    const size_t base = r->n_parts;
    const int32_t *rows = NULL, *ends = NULL;
    size_t n_rows = 0, n_ends = 0, n_labels = 0;
    PyObject *labels = tuple_of(r, expr, LABELS), *table = ints_of(r, expr, TABLE, &rows, &n_rows);
    PyObject *last = ints_of(r, expr, LAST, &ends, &n_ends);
    PyObject *states = PyObject_GetAttr(expr, r->fields[STATES]);
    const size_t n_states = states == NULL ? 0 : PyLong_AsSize_t(states);
    bool ok = labels != NULL && table != NULL && last != NULL && !PyErr_Occurred();
    for (; ok && n_labels < (size_t)PyTuple_GET_SIZE(labels); n_labels++) {
        ok = push_expr(r, PyTuple_GET_ITEM(labels, (Py_ssize_t)n_labels));
    }
    ok = ok && push_table(r, n_states, rows, n_rows / 3, ends, n_ends, base, n_labels);
    if (ok) {
        memmove(r->parts + base, r->parts + base + n_labels,
                (r->n_parts - base - n_labels) * sizeof *r->parts);
        r->n_parts -= n_labels;
    }
    Py_XDECREF(labels);
    Py_XDECREF(table);
    Py_XDECREF(last);
    Py_XDECREF(states);
    return ok;
}

static bool read_parts(struct reader *r, PyObject *expr, enum tl_expr_kind *kind) {
    switch ((int)*kind) {
    case TL_EXPR_TEXT:
        return read_text(r, expr, kind);
    case TL_EXPR_CHARS:
        return read_chars(r, expr);
    case TL_EXPR_SEQ:
    case TL_EXPR_ALT:
        return read_items(r, expr);
    case TL_EXPR_REPEAT:
        return read_repeat(r, expr, kind);
    case TL_EXPR_RULE:
        return push_number(r, expr, NAME, r->numbers, false) && push_flag(r, expr, CALLED);
    case TL_EXPR_MACHINE:
        return read_machine(r, expr);
    case TL_EXPR_KINDS:
        *kind = TL_EXPR_MACHINE;
        return read_packed(r, expr);
    default:
        return push_number(r, expr, TOKEN, r->tokens, true) && push_flag(r, expr, NEGATED);
    }
}

/* The place of an expression in the table of those that were read. */
static size_t place_of(const struct reader *r, PyObject *expr) {
    const uint64_t hash = (uint64_t)((uintptr_t)expr >> 4) * 0x9E3779B97F4A7C15u;
    size_t at = (size_t)(hash >> 32) & (r->known_size - 1);
    while (r->known[at].expr != NULL && r->known[at].expr != expr) {
        at = (at + 1) & (r->known_size - 1);
    }
    return at;
}

static bool make_room(struct reader *r) {
    struct known *old = r->known;
    const size_t size = r->known_size;
    if (2 * (r->n_known + 1) <= size) return true;
    r->known_size = size == 0 ? 256 : 2 * size;
    r->known = PyMem_Calloc(r->known_size, sizeof *r->known);
    if (r->known == NULL) {
        r->known = old;
        r->known_size = size;
        PyErr_NoMemory();
        return false;
    }
    for (size_t i = 0; i < size; i++) {
        if (old[i].expr != NULL) r->known[place_of(r, old[i].expr)] = old[i];
    }
    PyMem_Free(old);
    return true;
}

/* *out is the number of an expression; one object is read once. */
static bool read_expr(struct reader *r, PyObject *expr, int32_t *out) {
    const size_t base = r->n_parts;
    enum tl_expr_kind kind = TL_EXPR_TEXT;
    struct tl_error err;
    uint32_t found;
    size_t at;
    bool ok = false;
    if (!make_room(r)) return false;
    at = place_of(r, expr);
    if (r->known[at].expr != NULL) {
        *out = r->known[at].number;
        return true;
    }
    while ((int)kind < N_CLASSES &&
           PyTuple_GET_ITEM(r->classes, kind) != (PyObject *)Py_TYPE(expr)) {
        kind++;
    }
    if ((int)kind == N_CLASSES) {
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
    if (!ok || !make_room(r)) return false;
    *out = (int32_t)found;
    r->known[place_of(r, expr)] = (struct known){expr, *out};
    r->n_known++;
    return true;
}

/* False, with an exception, without memory. */
static bool begin(struct reader *r) {
    r->numbers = PyDict_New();
    r->tokens = PyDict_New();
    if (r->numbers == NULL || r->tokens == NULL) return false;
    for (int i = 0; i < N_FIELDS; i++) {
        r->fields[i] = PyUnicode_InternFromString(field_names[i]);
        if (r->fields[i] == NULL) return false;
    }
    return true;
}

static void end(struct reader *r) {
    tl_grammar_free(r->grammar);
    tl_free(r->parts);
    PyMem_Free(r->known);
    Py_XDECREF(r->numbers);
    Py_XDECREF(r->tokens);
    for (int i = 0; i < N_FIELDS; i++) Py_XDECREF(r->fields[i]);
}

/* The set of the rules that match some text. */
static PyObject *ending_rules(PyObject *rules, const uint8_t *ends) {
    PyObject *out = PySet_New(NULL), *name, *expr;
    Py_ssize_t at = 0;
    for (size_t i = 0; out != NULL && PyDict_Next(rules, &at, &name, &expr); i++) {
        if (ends[i] && PySet_Add(out, name) < 0) Py_CLEAR(out);
    }
    return out;
}

/* The program as (nodes, owners, root, tokens, ends). Takes `ends`; NULL: there is an exception. */
static PyObject *program_of(const struct tl_program *p, PyObject *tokens, PyObject *ends) {
    const size_t shape[2] = {p->n_nodes, 5};
    PyObject *nodes = NULL, *owners = NULL, *names = NULL;
    void *data;
    int32_t *row;
    if (ends == NULL) return NULL;
    nodes = tlpy_array_new(TLPY_I32, 2, shape, &data);
    if (nodes == NULL) goto failed;
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
    if (owners == NULL) goto failed;
    memcpy(data, p->owners, p->n_nodes * sizeof *p->owners);
    names = PyDict_Keys(tokens);
    if (names == NULL) goto failed;
    return Py_BuildValue("NNnNN", nodes, owners, (Py_ssize_t)p->root, names, ends);
failed:
    Py_XDECREF(nodes);
    Py_XDECREF(owners);
    Py_DECREF(ends);
    return NULL;
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
             "    Text, Chars, Seq, Alt, Repeat, Ref, Machine, Token and Packed of\n"
             "    tinyllm.grammar.expr.\n"
             "max_nodes : int\n"
             "check : bool\n"
             "    Whether parts that match no text are left out, and left recursion, or a start\n"
             "    that matches none, is not accepted.\n"
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
             "ends : set of str, or None\n"
             "    The rules that match some text, if parts were left out.\n"
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
    bool fine = true, whole = true;
    int status = TL_OK, check;
    if (!PyArg_ParseTuple(args, "O!O!np", &PyDict_Type, &rules, &PyTuple_Type, &r.classes,
                          &max_nodes, &check)) {
        return NULL;
    }
    if (PyTuple_GET_SIZE(r.classes) != N_CLASSES || max_nodes < 1) {
        PyErr_Format(PyExc_ValueError, "%zd classes, max_nodes %zd; expected %d, above 0",
                     PyTuple_GET_SIZE(r.classes), max_nodes, (int)N_CLASSES);
        return NULL;
    }
    if (!begin(&r)) goto done;
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
    if (check) {
        status = tl_grammar_check(r.grammar, ends, &whole, &fine, &err);
        fine = fine && ends[0];
    }
    if (status == TL_OK && !fine) {
        out = ending_rules(rules, ends);
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
        out =
            program_of(&program, r.tokens, whole ? Py_NewRef(Py_None) : ending_rules(rules, ends));
    }
done:
    end(&r);
    PyMem_Free(ends);
    Py_XDECREF(exprs);
    return out;
}

/* Reads (kind, positive, expression, low, high, modulus, places). */
static bool read_condition(struct reader *r, PyObject *any, struct tl_condition *out) {
    Py_ssize_t low, high, modulus, places;
    PyObject *expr;
    int kind, positive;
    int32_t number;
    if (!PyTuple_Check(any)) {
        PyErr_SetString(PyExc_TypeError, "a condition is not a tuple");
        return false;
    }
    if (!PyArg_ParseTuple(any, "ipOnnnn", &kind, &positive, &expr, &low, &high, &modulus,
                          &places)) {
        return false;
    }
    if (kind < 0 || kind >= TL_CONDITION_KINDS || low < 0 || low > INT32_MAX || high < -1 ||
        high > INT32_MAX || modulus < 0 || modulus > INT32_MAX || places < 0 ||
        places > INT32_MAX) {
        PyErr_Format(PyExc_ValueError, "a condition is %R; expected numbers up to %d", any,
                     INT32_MAX);
        return false;
    }
    *out = (struct tl_condition){
        .kind = (enum tl_condition_kind)kind,
        .positive = positive != 0,
        .low = (uint32_t)low,
        .high = high < 0 ? UINT32_MAX : (uint32_t)high,
        .modulus = (uint32_t)modulus,
        .places = (uint32_t)places,
    };
    if (out->kind != TL_CONDITION_MATCHES) return true;
    if (!read_expr(r, expr, &number)) return false;
    out->expr = (uint32_t)number;
    return true;
}

static PyObject *ranges_of(const int32_t *ranges, size_t n) {
    PyObject *out = PyTuple_New((Py_ssize_t)n);
    for (size_t i = 0; out != NULL && i < n; i++) {
        PyObject *pair = Py_BuildValue("ii", (int)ranges[2 * i], (int)ranges[2 * i + 1]);
        if (pair == NULL) Py_CLEAR(out);
        if (pair != NULL) PyTuple_SET_ITEM(out, (Py_ssize_t)i, pair);
    }
    return out;
}

static PyObject *machine_of(const struct tl_language_machine *m) {
    const size_t table_shape[2] = {m->n_edges, 3}, ends_shape[1] = {m->n_ends};
    void *rows, *last;
    PyObject *table = tlpy_array_new(TLPY_I32, 2, table_shape, &rows), *ends;
    if (table == NULL) return NULL;
    ends = tlpy_array_new(TLPY_I32, 1, ends_shape, &last);
    if (ends == NULL) {
        Py_DECREF(table);
        return NULL;
    }
    if (m->n_edges > 0) memcpy(rows, m->edges, m->n_edges * sizeof *m->edges);
    if (m->n_ends > 0) memcpy(last, m->ends, m->n_ends * sizeof *m->ends);
    tlpy_array_freeze(table);
    tlpy_array_freeze(ends);
    return Py_BuildValue("InNN", (unsigned)m->holds, (Py_ssize_t)m->n_states, table, ends);
}

/* The language as (labels, machines). */
static PyObject *language_of(tlpy_state *st, struct tl_language *l) {
    PyObject *labels = PyList_New(0), *found = PyList_New(0);
    struct tl_language_machine *machines = NULL;
    struct tl_error err;
    size_t n = 0;
    int status = TL_OK;
    bool ok = labels != NULL && found != NULL;
    for (size_t i = 0; ok && i < tl_language_n_labels(l); i++) {
        const int32_t *ranges;
        size_t n_ranges;
        PyObject *label = NULL;
        status = tl_language_label(l, i, &ranges, &n_ranges, &err);
        if (status == TL_OK) label = ranges_of(ranges, n_ranges);
        ok = label != NULL && PyList_Append(labels, label) == 0;
        Py_XDECREF(label);
    }
    if (ok) status = tl_language_machines(l, &machines, &n, &err);
    for (size_t i = 0; ok && status == TL_OK && i < n; i++) {
        PyObject *machine = machine_of(&machines[i]);
        ok = machine != NULL && PyList_Append(found, machine) == 0;
        Py_XDECREF(machine);
    }
    tl_language_free_machines(machines, n);
    if (status < 0) tlpy_raise(st, &err);
    if (ok && status == TL_OK) return Py_BuildValue("NN", labels, found);
    Py_XDECREF(labels);
    Py_XDECREF(found);
    return NULL;
}

PyDoc_STRVAR(find_language_doc,
             "find_language(conditions, needed, classes, max_states, /)\n"
             "--\n"
             "\n"
             "The texts under which conditions hold, for tinyllm.grammar.language.\n"
             "\n"
             "Parameters\n"
             "----------\n"
             "conditions : list of (kind, positive, expression, low, high, modulus, places)\n"
             "    Kind 0: the text is of the expression. Kind 1: it has low to high characters;\n"
             "    high -1: without a limit. Kind 2: it is a multiple of modulus / 10**places.\n"
             "needed : int\n"
             "    This many of them must hold. The others are only followed.\n"
             "classes : tuple of type\n"
             "    As for build_grammar.\n"
             "max_states : int\n"
             "\n"
             "Returns\n"
             "-------\n"
             "labels : list of tuple of (int, int)\n"
             "    Sets of characters: ranges of code points, both ends included.\n"
             "machines : list of (int, int, numpy.ndarray, numpy.ndarray)\n"
             "    Which of the others hold, as bits; the number of states; the edges, int32 of\n"
             "    shape (n, 3): state, label, next state; and the states where a text may end.\n"
             "\n"
             "Raises\n"
             "------\n"
             "tinyllm.UnsupportedError\n"
             "    If there are too many states.\n");

static PyObject *find_language(PyObject *module, PyObject *args) {
    struct reader r = {.st = PyModule_GetState(module), .halves = true};
    struct tl_condition *conditions = NULL;
    struct tl_language *language = NULL;
    struct tl_error err;
    PyObject *list, *out = NULL;
    Py_ssize_t needed, max_states, n;
    bool ok = true;
    if (!PyArg_ParseTuple(args, "O!nO!n", &PyList_Type, &list, &needed, &PyTuple_Type, &r.classes,
                          &max_states)) {
        return NULL;
    }
    n = PyList_GET_SIZE(list);
    if (PyTuple_GET_SIZE(r.classes) != N_CLASSES || max_states < 1 || needed < 0 || needed > n) {
        PyErr_Format(PyExc_ValueError, "%zd classes, max_states %zd, needed %zd of %zd",
                     PyTuple_GET_SIZE(r.classes), max_states, needed, n);
        return NULL;
    }
    conditions = PyMem_Calloc((size_t)n + 1, sizeof *conditions);
    if (conditions == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    if (!begin(&r)) goto done;
    if (tl_grammar_new(0, &r.grammar, &err) < 0) {
        tlpy_raise(r.st, &err);
        goto done;
    }
    for (Py_ssize_t i = 0; i < n && ok; i++) {
        ok = read_condition(&r, PyList_GET_ITEM(list, i), &conditions[i]);
    }
    if (!ok) goto done;
    if (tl_language_new(r.grammar, conditions, (size_t)needed, (size_t)n, (size_t)max_states,
                        &language, &err) < 0) {
        tlpy_raise(r.st, &err);
        goto done;
    }
    out = language_of(r.st, language);
done:
    tl_language_free(language);
    end(&r);
    PyMem_Free(conditions);
    return out;
}

PyMethodDef tlpy_grammar_methods[] = {
    {"build_grammar", build_grammar, METH_VARARGS, build_grammar_doc},
    {"find_language", find_language, METH_VARARGS, find_language_doc},
    {NULL, NULL, 0, NULL},
};
