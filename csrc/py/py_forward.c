/* py_forward.c - Model.forward: checks the arguments of a call, and runs it. */
#include "py/py_forward.h"

#include "base/os.h"
#include "forward/forward.h"
#include "py/py_array.h"
#include "py/py_model.h"
#include "py/py_session.h"

#include <string.h>

/* Nanoseconds between two looks for Ctrl-C, and between two calls of progress. */
#define POLL_NS 20000000u
#define PROGRESS_NS 100000000u

/* What the callbacks of a running call need. */
struct forward {
    const struct tl_plan *plan;
    PyThreadState *thread; // of the caller, while the GIL is released
    PyObject *edit;        // or NULL
    PyObject *progress;    // or None
    size_t done, all;      // layers times rows
    uint64_t told;         // when progress was called last
    const struct tl_piece *pieces;
    size_t rows;
    uint64_t polled; // when signals were checked last
    PyObject *model;
    unsigned losses; // of mapped files, when the model's files were checked last
};

static int poll_signals(void *user) {
    struct forward *f = user;
    const uint64_t now = tl_clock_ns();
    const unsigned losses = tl_file_losses();
    int stop;
    if (now - f->polled < POLL_NS && losses == f->losses) return 0;
    f->polled = now;
    PyEval_RestoreThread(f->thread);
    stop = losses != f->losses && tlpy_model_lost(f->model);
    f->losses = losses;
    if (stop == 0) stop = PyErr_CheckSignals();
    if (stop == 0 && f->progress != Py_None && now - f->told >= PROGRESS_NS) {
        PyObject *result =
            PyObject_CallFunction(f->progress, "d", (double)f->done / (double)TL_MAX(f->all, 1));
        f->told = now;
        stop = result == NULL;
        Py_XDECREF(result);
    }
    f->thread = PyEval_SaveThread();
    return stop;
}

/* The shape of a step's value in one call; returns the number of axes. */
static int value_shape(const struct tl_step *s, size_t tokens, size_t context, size_t *shape) {
    int n = 0;
    if (s->value == TL_VALUE_MATRIX) {
        shape[0] = s->axes[0], shape[1] = tokens, shape[2] = context;
        return 3;
    }
    shape[n++] = tokens;
    for (int i = 0; i < s->n_axes; i++) shape[n++] = s->axes[i];
    return n;
}

/* Values of a step in one call; SIZE_MAX if they are too many to count. */
static size_t value_count(const struct tl_step *s, size_t tokens, size_t context) {
    size_t count = 0;
    const bool matrix = s->value == TL_VALUE_MATRIX;
    if (!tl_mul_size(tokens, s->width, &count) ||
        (matrix && !tl_mul_size(count, context, &count))) {
        return SIZE_MAX;
    }
    return count;
}

/* Calls the edit with a copy of the values, so that it can keep no pointer into the core. */
static int call_edit(void *user, size_t step, int piece, float *values) {
    struct forward *f = user;
    const struct tl_step *s = &f->plan->steps[step];
    const struct tl_piece *p = piece >= 0 ? &f->pieces[piece] : NULL;
    const size_t tokens = p != NULL ? p->n : f->rows, context = p ? p->session->n + p->n : 0;
    PyObject *array, *result = NULL;
    size_t shape[4];
    void *data;
    int n;
    PyEval_RestoreThread(f->thread);
    n = value_shape(s, tokens, context, shape);
    array = tlpy_array_new(TLPY_F32, n, shape, &data);
    if (array != NULL) {
        const size_t bytes = value_count(s, tokens, context) * sizeof(float);
        memcpy(data, values, bytes);
        result = PyObject_CallFunction(f->edit, "nOi", (Py_ssize_t)step, array, piece);
        if (result != NULL) memcpy(values, data, bytes);
        Py_DECREF(array);
    }
    Py_XDECREF(result);
    f->thread = PyEval_SaveThread();
    return result == NULL;
}

/* The arguments of forward() in the core's terms; release() frees everything in it. */
struct arguments {
    PyObject *sessions, *tokens, *rows, *captures, *edits, *edit, *resid, *progress;
    Py_ssize_t threads, first_layer;
    size_t n_pieces, total;
    size_t n_busy;           // sessions taken
    struct tl_piece *pieces; //
    PyObject **token_arrays;
    float **arrays;   // (steps) of rows
    float **matrices; // (n_pieces, matrices of the plan)
    uint8_t *edit_flags;
    PyObject *rows_array, *resid_array;
    size_t *row_numbers;
};

static void release(struct arguments *a) {
    for (size_t i = 0; i < a->n_busy; i++) {
        tlpy_session_leave(PyTuple_GetItem(a->sessions, (Py_ssize_t)i));
    }
    for (size_t i = 0; a->token_arrays != NULL && i < a->n_pieces; i++) {
        Py_XDECREF(a->token_arrays[i]);
    }
    PyMem_Free(a->pieces);
    PyMem_Free(a->token_arrays);
    PyMem_Free(a->arrays);
    PyMem_Free(a->matrices);
    PyMem_Free(a->edit_flags);
    PyMem_Free(a->row_numbers);
    Py_XDECREF(a->rows_array);
    Py_XDECREF(a->resid_array);
}

static bool read_pieces(struct arguments *a, PyObject *model) {
    if (!PyTuple_Check(a->sessions) || !PyTuple_Check(a->tokens) ||
        PyTuple_Size(a->sessions) != PyTuple_Size(a->tokens) || PyTuple_Size(a->sessions) == 0) {
        PyErr_SetString(PyExc_ValueError,
                        "sessions and tokens must be tuples of the same length, at least 1");
        return false;
    }
    a->n_pieces = (size_t)PyTuple_Size(a->sessions);
    a->pieces = PyMem_Calloc(a->n_pieces, sizeof(*a->pieces));
    a->token_arrays = PyMem_Calloc(a->n_pieces, sizeof(PyObject *));
    if (a->pieces == NULL || a->token_arrays == NULL) {
        PyErr_NoMemory();
        return false;
    }
    for (size_t i = 0; i < a->n_pieces; i++) {
        PyObject *session = PyTuple_GetItem(a->sessions, (Py_ssize_t)i);
        PyObject *given = tlpy_array_from(PyTuple_GetItem(a->tokens, (Py_ssize_t)i), TLPY_I32);
        const void *ids = given != NULL ? tlpy_array_read(given, &a->pieces[i].n) : NULL;
        void *copy = NULL;
        // a copy, which nobody can change between the check of the ids and their use
        if (given != NULL) {
            a->token_arrays[i] = tlpy_array_new(TLPY_I32, 1, &a->pieces[i].n, &copy);
        }
        if (copy != NULL && a->pieces[i].n > 0) {
            memcpy(copy, ids, a->pieces[i].n * sizeof(int32_t));
        }
        Py_XDECREF(given);
        if (a->token_arrays[i] == NULL) return false;
        a->pieces[i].tokens = copy;
        a->total += a->pieces[i].n;
        a->pieces[i].session = tlpy_session_enter(session, model);
        if (a->pieces[i].session == NULL) return false;
        a->n_busy = i + 1;
    }
    return true;
}

/* The step of that number, if it has a value to capture or edit; else NULL with an exception. */
static const struct tl_step *step_of(const struct arguments *a, const struct tl_plan *plan,
                                     PyObject *number, const char *what, Py_ssize_t i) {
    const size_t first = a->resid != Py_None ? plan->first[a->first_layer] : 0;
    const Py_ssize_t step = PyNumber_AsSsize_t(number, PyExc_OverflowError);
    if (step == -1 && PyErr_Occurred()) return NULL;
    if (step >= 0 && (size_t)step < first) {
        PyErr_Format(PyExc_ValueError,
                     "%s[%zd]: step %zd does not run in a call that begins with %zu", what, i, step,
                     first);
        return NULL;
    }
    if (step < 0 || (size_t)step >= plan->n || plan->steps[step].value == TL_VALUE_NONE) {
        PyErr_Format(PyExc_ValueError, "%s[%zd]: step %zd has no value; the plan has %zu steps",
                     what, i, step, plan->n);
        return NULL;
    }
    return &plan->steps[step];
}

/* captures[i]: (numbers of steps, piece or -1, one array for all of them). */
static bool read_capture(struct arguments *a, const struct tl_plan *plan, Py_ssize_t i) {
    PyObject *capture = PyTuple_GetItem(a->captures, i), *steps, *array;
    Py_ssize_t piece;
    size_t left;
    float *data;
    if (!PyTuple_Check(capture)) {
        PyErr_Format(PyExc_TypeError, "captures[%zd] is %.100s; expected a tuple", i,
                     Py_TYPE(capture)->tp_name);
        return false;
    }
    if (!PyArg_ParseTuple(capture, "O!nO", &PyTuple_Type, &steps, &piece, &array)) return false;
    if (piece >= (Py_ssize_t)a->n_pieces) {
        PyErr_Format(PyExc_ValueError, "captures[%zd]: piece is %zd; expected a number below %zu",
                     i, piece, a->n_pieces);
        return false;
    }
    data = tlpy_array_data(array, TLPY_F32, "a capture", &left);
    if (data == NULL) return false;
    for (Py_ssize_t j = 0; j < PyTuple_Size(steps); j++) {
        const struct tl_step *s = step_of(a, plan, PyTuple_GetItem(steps, j), "captures", i);
        const struct tl_piece *p = piece >= 0 ? &a->pieces[piece] : NULL;
        float **cell;
        size_t count;
        if (s == NULL) return false;
        if ((s->value == TL_VALUE_MATRIX) != (p != NULL)) {
            PyErr_Format(PyExc_ValueError,
                         "captures[%zd]: step %zd belongs to %s; its piece is %zd", i,
                         s - plan->steps, p != NULL ? "all pieces" : "one piece", piece);
            return false;
        }
        count = value_count(s, p != NULL ? p->n : a->total, p ? p->session->n + p->n : 0);
        if (count > left) break;
        cell = p != NULL ? &a->matrices[(size_t)piece * plan->n_matrices + s->number]
                         : &a->arrays[s - plan->steps];
        if (*cell != NULL) {
            PyErr_Format(PyExc_ValueError, "captures[%zd]: step %zd is captured already", i,
                         s - plan->steps);
            return false;
        }
        *cell = data;
        left -= count;
        data += count;
        if (j + 1 == PyTuple_Size(steps) && left == 0) return true;
    }
    PyErr_Format(PyExc_ValueError,
                 "captures[%zd]: its array does not have the size of its %zd steps", i,
                 PyTuple_Size(steps));
    return false;
}

/* Scores, probs and logits are edited in the arrays that capture them. */
static bool can_edit(const struct arguments *a, const struct tl_plan *plan,
                     const struct tl_step *s) {
    const bool scores = s->op == TL_OP_SCORES;
    if (s->value != TL_VALUE_MATRIX) {
        return s + 1 < plan->steps + plan->n || a->arrays[plan->n - 1] != NULL;
    }
    for (size_t p = 0; p < a->n_pieces; p++) {
        float *const *matrices = a->matrices + p * plan->n_matrices;
        // softmax reads the edited scores from there, and the mix what softmax wrote
        if (matrices[s->number] == NULL) return false;
        if (matrices[scores ? s[1].number : s[-1].number] == NULL) return false;
    }
    return true;
}

static bool read_captures(struct arguments *a, const struct tl_plan *plan) {
    if (!PyTuple_Check(a->captures) || !PyTuple_Check(a->edits)) {
        PyErr_SetString(PyExc_TypeError, "captures and edits must be tuples");
        return false;
    }
    a->arrays = PyMem_Calloc(plan->n, sizeof(float *));
    a->matrices = PyMem_Calloc(a->n_pieces * plan->n_matrices + 1, sizeof(float *));
    a->edit_flags = PyMem_Calloc(plan->n, 1);
    if (a->arrays == NULL || a->matrices == NULL || a->edit_flags == NULL) {
        PyErr_NoMemory();
        return false;
    }
    for (Py_ssize_t i = 0; i < PyTuple_Size(a->captures); i++) {
        if (!read_capture(a, plan, i)) return false;
    }
    for (size_t i = 0; i < a->n_pieces; i++) {
        a->pieces[i].matrices = a->matrices + i * plan->n_matrices;
    }
    for (Py_ssize_t i = 0; i < PyTuple_Size(a->edits); i++) {
        const struct tl_step *s = step_of(a, plan, PyTuple_GetItem(a->edits, i), "edits", i);
        if (s == NULL) return false;
        if (!can_edit(a, plan, s)) {
            PyErr_Format(PyExc_ValueError,
                         "edits[%zd]: scores, probs and logits are edited only where they are "
                         "captured",
                         i);
            return false;
        }
        a->edit_flags[s - plan->steps] = 1;
    }
    return true;
}

static bool read_rows(struct arguments *a) {
    const int64_t *rows;
    size_t n;
    a->rows_array = tlpy_array_from(a->rows, TLPY_I64);
    if (a->rows_array == NULL) return false;
    rows = tlpy_array_read(a->rows_array, &n);
    a->row_numbers = PyMem_Calloc(n ? n : 1, sizeof(size_t));
    if (a->row_numbers == NULL) {
        PyErr_NoMemory();
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        if (rows[i] < 0 || (size_t)rows[i] >= a->total || (i > 0 && rows[i] <= rows[i - 1])) {
            PyErr_Format(PyExc_ValueError, "rows[%zu] is %lld; expected rising numbers below %zu",
                         i, (long long)rows[i], a->total);
            return false;
        }
        a->row_numbers[i] = (size_t)rows[i];
    }
    return true;
}

const char tlpy_forward_doc[] = PyDoc_STR(
    "forward($self, /, sessions, tokens, rows, *, threads=1, captures=(), edits=(), edit=None,\n"
    "        first_layer=0, resid=None, progress=None)\n"
    "--\n"
    "\n"
    "Append tokens to sessions, and return the logits of some of them.\n"
    "\n"
    "Everything that runs a model calls this method; `tinyllm.Model` and `tinyllm.Session` are\n"
    "easier to use. The GIL is released; Ctrl-C raises KeyboardInterrupt. A call that raises\n"
    "leaves every session as it was.\n"
    "\n"
    "Parameters\n"
    "----------\n"
    "sessions : tuple of Session\n"
    "    Different sessions of this model, which run together.\n"
    "tokens : tuple of int32 arrays, shape (n,)\n"
    "    The tokens of each session, n >= 1. T is their total number.\n"
    "rows : array_like of int64\n"
    "    The tokens whose logits are wanted: numbers in [0, T), in rising order.\n"
    "threads : int\n"
    "    At most this many threads.\n"
    "captures : tuple of (steps, piece, array)\n"
    "    float32 arrays for the values of steps; those of several steps follow one another. Most\n"
    "    values have a row for each of the T tokens, and piece is -1. Scores and probs belong to\n"
    "    one session, number `piece`; their shape is (H, n, S).\n"
    "edits : tuple of int\n"
    "    The steps after which `edit` is called.\n"
    "edit : callable, optional\n"
    "    ``edit(step, array, piece)`` changes the array in place.\n"
    "first_layer, resid : int and float32 array, shape (T, D), optional\n"
    "    Start at this layer from this residual stream instead of the embedding. The caches of the\n"
    "    layers before it get no keys, so the sessions can be used for nothing else afterwards.\n"
    "progress : callable, optional\n"
    "    ``progress(fraction)``, called now and then during a long call.\n"
    "\n"
    "Returns\n"
    "-------\n"
    "numpy.ndarray of float32, shape (len(rows), V)\n"
    "\n"
    "Raises\n"
    "------\n"
    "ValueError\n"
    "    A token, row or shape is out of range, or the context is full.\n"
    "RuntimeError\n"
    "    A session is in use by another thread.\n"
    "\n"
    "Examples\n"
    "--------\n"
    ">>> import numpy as np, tinyllm\n"
    ">>> from tinyllm import _core\n"
    ">>> core = tinyllm.load().core\n"
    ">>> ids = np.array([1, 2, 3], np.int32)\n"
    ">>> core.forward((_core.Session(core),), (ids,), [2], threads=1).shape[0]\n"
    "1\n");

PyObject *tlpy_forward(PyObject *model, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"sessions", "tokens",      "rows",  "threads",  "captures", "edits",
                            "edit",     "first_layer", "resid", "progress", NULL};
    const struct tl_plan *plan = tlpy_model_plan(model);
    struct arguments a = {.threads = 1};
    struct forward f = {.plan = plan};
    struct tl_call call = {0};
    struct tl_error err;
    PyObject *logits = NULL, *empty = PyTuple_New(0);
    size_t shape[2] = {0, plan->steps[plan->n - 1].width}, resid_size = 0;
    void *data;
    int status;

    if (empty == NULL) return NULL;
    a.captures = a.edits = empty;
    a.edit = a.resid = a.progress = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|$nOOOnOO:forward", names, &a.sessions,
                                     &a.tokens, &a.rows, &a.threads, &a.captures, &a.edits, &a.edit,
                                     &a.first_layer, &a.resid, &a.progress)) {
        goto done;
    }
    if (a.threads < 1 || a.first_layer < 0 || (size_t)a.first_layer > plan->layers) {
        PyErr_Format(PyExc_ValueError,
                     "threads is %zd and first_layer %zd; expected at least 1 "
                     "and 0 to %zu",
                     a.threads, a.first_layer, plan->layers);
        goto done;
    }
    if (!read_pieces(&a, model) || !read_captures(&a, plan) || !read_rows(&a)) goto done;
    if (a.resid != Py_None) {
        a.resid_array = tlpy_array_from(a.resid, TLPY_F32);
        if (a.resid_array == NULL) goto done;
        call.resid = tlpy_array_read(a.resid_array, &resid_size);
        if (resid_size != a.total * plan->width) {
            PyErr_Format(PyExc_ValueError, "resid has %zu values; expected %zu", resid_size,
                         a.total * plan->width);
            goto done;
        }
    } else if (a.first_layer != 0) {
        PyErr_Format(PyExc_ValueError, "first_layer is %zd without resid; expected 0",
                     a.first_layer);
        goto done;
    }
    tlpy_array_read(a.rows_array, &shape[0]);
    logits = tlpy_array_new(TLPY_F32, 2, shape, &data);
    if (logits == NULL) goto done;

    f.model = model;
    f.losses = tl_file_losses();
    if (tlpy_model_lost(model)) {
        Py_CLEAR(logits);
        goto done;
    }
    f.edit = a.edit;
    f.pieces = a.pieces;
    f.rows = a.total;
    f.polled = f.told = tl_clock_ns();
    f.progress = a.progress;
    f.all = a.total * (plan->layers - (size_t)a.first_layer);
    call.threads = (int)TL_MIN(a.threads, 256);
    call.rows = a.row_numbers;
    call.n_rows = shape[0];
    call.logits = data;
    call.captures = PyTuple_Size(a.captures) > 0 ? a.arrays : NULL;
    call.edits = PyTuple_Size(a.edits) > 0 ? a.edit_flags : NULL;
    call.edit = call_edit;
    call.edit_user = &f;
    call.poll = poll_signals;
    call.poll_user = &f;
    call.progress = &f.done;
    call.first_layer = (size_t)a.first_layer;
    f.thread = PyEval_SaveThread();
    status = tl_forward(plan, a.pieces, a.n_pieces, &call, &err);
    PyEval_RestoreThread(f.thread);
    if (status != TL_OK) {
        tlpy_raise(tlpy_state_of(model), &err);
        Py_CLEAR(logits);
    }
done:
    release(&a);
    Py_DECREF(empty);
    return logits;
}
