/* py_backward.c - Model.backward: checks the arguments of a backward pass, and runs it. */
#include "py/py_backward.h"

#include "base/os.h"
#include "forward/ops.h"
#include "py/py_array.h"
#include "py/py_model.h"
#include "training/back.h"

#include <string.h>

/* Nanoseconds between two looks for Ctrl-C. */
#define POLL_NS 20000000u

/* Arrays by step: those of rows, and those of the matrices of each piece. */
struct arrays {
    const char *name;
    bool written;
    float **rows;     // (steps)
    float **matrices; // (n_pieces, matrices of the plan)
    PyObject *kept;   // a list of the arrays that are read
};

/* The arguments in the core's terms; release() frees everything in it. */
struct arguments {
    const struct tl_plan *plan;
    size_t n_pieces, rows;
    struct tl_back_piece *pieces;
    PyObject *tokens; // a list of copies
    struct arrays values, seeds, captures;
    float **weights; // (steps, TL_STEP_WEIGHTS)
    uint8_t *edits;
    PyObject *edit;
    PyThreadState *thread; // of the caller, while the GIL is released
    uint64_t polled;
};

static void release(struct arguments *a) {
    struct arrays *all[] = {&a->values, &a->seeds, &a->captures};
    for (size_t i = 0; i < TL_ARRAY_LEN(all); i++) {
        PyMem_Free(all[i]->rows);
        PyMem_Free(all[i]->matrices);
        Py_XDECREF(all[i]->kept);
    }
    PyMem_Free(a->pieces);
    PyMem_Free(a->weights);
    PyMem_Free(a->edits);
    Py_XDECREF(a->tokens);
}

static bool read_tokens(struct arguments *a, PyObject *given) {
    const Py_ssize_t n = PyTuple_Check(given) ? PyTuple_Size(given) : 0;
    if (n == 0) {
        PyErr_SetString(PyExc_ValueError, "tokens must be a tuple of at least one array");
        return false;
    }
    a->n_pieces = (size_t)n;
    a->tokens = PyList_New(0);
    a->pieces = PyMem_Calloc(a->n_pieces, sizeof(*a->pieces));
    if (a->tokens == NULL) return false;
    if (a->pieces == NULL) {
        PyErr_NoMemory();
        return false;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        struct tl_back_piece *p = &a->pieces[i];
        PyObject *ids = tlpy_array_from(PyTuple_GetItem(given, i), TLPY_I32), *copy = NULL;
        const void *data = ids != NULL ? tlpy_array_read(ids, &p->n) : NULL;
        void *to = NULL;
        // a copy, which nobody can change between the check of the ids and their use
        if (ids != NULL) copy = tlpy_array_new(TLPY_I32, 1, &p->n, &to);
        if (copy != NULL && p->n > 0) memcpy(to, data, p->n * sizeof(int32_t));
        Py_XDECREF(ids);
        if (copy == NULL || PyList_Append(a->tokens, copy) < 0) {
            Py_XDECREF(copy);
            return false;
        }
        Py_DECREF(copy); // the list has it
        p->tokens = to;
        if (p->n == 0 || p->n > a->plan->max_context) {
            PyErr_Format(PyExc_ValueError, "tokens[%zd] has %zu ids; expected 1 to %zu", i, p->n,
                         a->plan->max_context);
            return false;
        }
        for (size_t t = 0; t < p->n; t++) {
            if (p->tokens[t] >= 0 && (size_t)p->tokens[t] < a->plan->vocab_size) continue;
            PyErr_Format(PyExc_ValueError, "tokens[%zd][%zu] is %d; the vocabulary has %zu entries",
                         i, t, (int)p->tokens[t], a->plan->vocab_size);
            return false;
        }
        a->rows += p->n;
    }
    return true;
}

/* Values of a step: of all rows, or of the matrix of a piece; SIZE_MAX if they cannot be counted.
 */
static size_t count_of(const struct arguments *a, const struct tl_step *s, Py_ssize_t piece) {
    size_t count = 0;
    const size_t n = piece >= 0 ? a->pieces[piece].n : a->rows;
    if (!tl_mul_size(n, s->width, &count)) return SIZE_MAX;
    if (piece >= 0 && !tl_mul_size(count, n, &count)) return SIZE_MAX;
    return count;
}

/* The data of an array of one of the lists; NULL with an exception. */
static float *data_of(const struct arrays *to, PyObject *array, size_t *size) {
    PyObject *read;
    const void *data = NULL;
    if (to->written) return tlpy_array_data(array, TLPY_F32, to->name, size);
    read = tlpy_array_from(array, TLPY_F32);
    if (read != NULL && PyList_Append(to->kept, read) == 0) data = tlpy_array_read(read, size);
    Py_XDECREF(read); // the list has it
    return (float *)(uintptr_t)data;
}

/* One item: (numbers of steps, piece or -1, one array for all of them). */
static bool read_item(struct arguments *a, struct arrays *to, PyObject *item, Py_ssize_t i) {
    PyObject *steps, *array;
    Py_ssize_t piece;
    size_t left = 0;
    float *data;
    if (!PyTuple_Check(item)) {
        PyErr_Format(PyExc_TypeError, "%s[%zd] is %.100s; expected a tuple", to->name, i,
                     Py_TYPE(item)->tp_name);
        return false;
    }
    if (!PyArg_ParseTuple(item, "O!nO", &PyTuple_Type, &steps, &piece, &array)) return false;
    if (piece < -1 || piece >= (Py_ssize_t)a->n_pieces) {
        PyErr_Format(PyExc_ValueError, "%s[%zd]: piece is %zd; expected -1 to %zu", to->name, i,
                     piece, a->n_pieces - 1);
        return false;
    }
    data = data_of(to, array, &left);
    if (data == NULL) return false;
    for (Py_ssize_t j = 0; j < PyTuple_Size(steps); j++) {
        const Py_ssize_t number = PyNumber_AsSsize_t(PyTuple_GetItem(steps, j), NULL);
        const struct tl_step *s = NULL;
        size_t count;
        float **cell;
        if (number == -1 && PyErr_Occurred()) return false;
        if (number >= 0 && (size_t)number < a->plan->n) s = &a->plan->steps[number];
        if (s == NULL || s->value == TL_VALUE_NONE ||
            (s->value == TL_VALUE_MATRIX) != (piece >= 0)) {
            PyErr_Format(PyExc_ValueError, "%s[%zd]: step %zd has no value for piece %zd", to->name,
                         i, number, piece);
            return false;
        }
        count = count_of(a, s, piece);
        cell = piece >= 0 ? &to->matrices[(size_t)piece * a->plan->n_matrices + s->number]
                          : &to->rows[number];
        if (count > left || *cell != NULL) {
            PyErr_Format(PyExc_ValueError,
                         "%s[%zd]: step %zd is there twice, or its array is too small", to->name, i,
                         number);
            return false;
        }
        *cell = data;
        left -= count;
        data += count;
    }
    if (left == 0) return true;
    PyErr_Format(PyExc_ValueError, "%s[%zd]: its array is larger than its %zd steps", to->name, i,
                 PyTuple_Size(steps));
    return false;
}

static bool read_arrays(struct arguments *a, struct arrays *to, PyObject *given) {
    if (!PyTuple_Check(given)) {
        PyErr_Format(PyExc_TypeError, "%s must be a tuple", to->name);
        return false;
    }
    to->kept = PyList_New(0);
    if (to->kept == NULL) return false;
    to->rows = PyMem_Calloc(a->plan->n, sizeof(float *));
    to->matrices = PyMem_Calloc(a->n_pieces * a->plan->n_matrices + 1, sizeof(float *));
    if (to->rows == NULL || to->matrices == NULL) {
        PyErr_NoMemory();
        return false;
    }
    for (Py_ssize_t i = 0; i < PyTuple_Size(given); i++) {
        if (!read_item(a, to, PyTuple_GetItem(given, i), i)) return false;
    }
    return true;
}

/* The number of values of weight i of a step, as the step uses it; 0: it has none. */
static size_t weight_count(const struct tl_step *s, Py_ssize_t i) {
    if (i == 0 && s->matrix.type != NULL && (s->op == TL_OP_LINEAR || s->op == TL_OP_EMBED)) {
        return s->matrix.rows * s->matrix.cols;
    }
    if (s->vectors[i] == NULL) return 0;
    if (s->op == TL_OP_LINEAR && i == 1) return s->matrix.rows;
    return s->op == TL_OP_NORM || s->op == TL_OP_LAYER_NORM ? s->number : 0;
}

/* Items (step, index of the weight, array). */
static bool read_weights(struct arguments *a, tlpy_state *state, PyObject *given) {
    if (!PyTuple_Check(given)) {
        PyErr_SetString(PyExc_TypeError, "weights must be a tuple");
        return false;
    }
    a->weights = PyMem_Calloc(a->plan->n * TL_STEP_WEIGHTS, sizeof(float *));
    if (a->weights == NULL) {
        PyErr_NoMemory();
        return false;
    }
    for (Py_ssize_t i = 0; i < PyTuple_Size(given); i++) {
        Py_ssize_t step, index;
        PyObject *array;
        size_t size, count = 0;
        float *data;
        if (!PyTuple_Check(PyTuple_GetItem(given, i))) {
            PyErr_Format(PyExc_TypeError, "weights[%zd] is not a tuple", i);
            return false;
        }
        if (!PyArg_ParseTuple(PyTuple_GetItem(given, i), "nnO", &step, &index, &array)) {
            return false;
        }
        if (step >= 0 && (size_t)step < a->plan->n && index >= 0 && index < TL_STEP_WEIGHTS) {
            const struct tl_step *s = &a->plan->steps[step];
            count = weight_count(s, index);
            if (count == 0 &&
                (s->vectors[index] != NULL || (index == 0 && s->matrix.type != NULL))) {
                struct tl_error err;
                tl_fail(&err, TL_ENOSUP,
                        "step %zd (%s): the gradient of its weight %zd is not implemented", step,
                        tl_ops[s->op].name, index);
                tlpy_raise(state, &err);
                return false;
            }
        }
        data = tlpy_array_data(array, TLPY_F32, "weights", &size);
        if (data == NULL) return false;
        if (count == 0 || size != count) {
            PyErr_Format(PyExc_ValueError,
                         "weights[%zd]: an array of %zu values for weight %zd of step %zd; "
                         "expected %zu values",
                         i, size, index, step, count);
            return false;
        }
        a->weights[step * TL_STEP_WEIGHTS + index] = data;
    }
    return true;
}

static bool read_edits(struct arguments *a, PyObject *given) {
    if (!PyTuple_Check(given)) {
        PyErr_SetString(PyExc_TypeError, "edits must be a tuple");
        return false;
    }
    a->edits = PyMem_Calloc(a->plan->n, 1);
    if (a->edits == NULL) {
        PyErr_NoMemory();
        return false;
    }
    for (Py_ssize_t i = 0; i < PyTuple_Size(given); i++) {
        const Py_ssize_t step = PyNumber_AsSsize_t(PyTuple_GetItem(given, i), NULL);
        if (step == -1 && PyErr_Occurred()) return false;
        if (step < 0 || (size_t)step >= a->plan->n || a->plan->steps[step].value == TL_VALUE_NONE) {
            PyErr_Format(PyExc_ValueError, "edits[%zd]: step %zd has no value", i, step);
            return false;
        }
        a->edits[step] = 1;
    }
    return true;
}

/* Calls the edit with a copy of the gradient, so that it can keep no pointer into the core. */
static int call_edit(void *user, size_t step, int piece, float *gradient) {
    struct arguments *a = user;
    const struct tl_step *s = &a->plan->steps[step];
    const size_t n = piece >= 0 ? a->pieces[piece].n : a->rows;
    size_t shape[4] = {n};
    int n_axes = 1;
    PyObject *array, *result = NULL;
    void *data;
    PyEval_RestoreThread(a->thread);
    if (piece >= 0) {
        shape[0] = s->axes[0], shape[1] = shape[2] = n;
        n_axes = 3;
    } else {
        for (int i = 0; i < s->n_axes; i++) shape[n_axes++] = s->axes[i];
    }
    array = tlpy_array_new(TLPY_F32, n_axes, shape, &data);
    if (array != NULL) {
        const size_t bytes = count_of(a, s, piece) * sizeof(float);
        memcpy(data, gradient, bytes);
        result = PyObject_CallFunction(a->edit, "nOi", (Py_ssize_t)step, array, piece);
        if (result != NULL) memcpy(gradient, data, bytes);
        Py_DECREF(array);
    }
    Py_XDECREF(result);
    a->thread = PyEval_SaveThread();
    return result == NULL;
}

static int poll_signals(void *user) {
    struct arguments *a = user;
    const uint64_t now = tl_clock_ns();
    int stop;
    if (now - a->polled < POLL_NS) return 0;
    a->polled = now;
    PyEval_RestoreThread(a->thread);
    stop = PyErr_CheckSignals();
    a->thread = PyEval_SaveThread();
    return stop;
}

const char tlpy_backward_doc[] = PyDoc_STR(
    "backward($self, /, tokens, values, seeds, captures, *, weights=(), edits=(), edit=None,\n"
    "         threads=1)\n"
    "--\n"
    "\n"
    "Compute the derivatives of one number by values and weights, in float32.\n"
    "\n"
    "`tinyllm.Model.gradients` and `tinyllm.train` are easier to use. The number is given by its\n"
    "derivatives by some values, the seeds. The GIL is released; Ctrl-C raises\n"
    "KeyboardInterrupt. The bits do not depend on the number of threads.\n"
    "\n"
    "Parameters\n"
    "----------\n"
    "tokens : tuple of int32 arrays, shape (n,)\n"
    "    The tokens of each piece, all of its context. T is their total number.\n"
    "values : tuple of (steps, piece, array)\n"
    "    What ``forward`` captured, as it takes `captures`. An error names a missing step.\n"
    "seeds : tuple of (steps, piece, array)\n"
    "    The derivatives of the number by the values of steps, directly.\n"
    "captures : tuple of (steps, piece, array)\n"
    "    Where the derivatives by the values of steps are written. Those of scores and probs are\n"
    "    written only if something flows into attention.\n"
    "weights : tuple of (step, index, array)\n"
    "    Arrays to which the derivatives by weight `index` of a step are added.\n"
    "edits : tuple of int\n"
    "    The steps whose values were edited.\n"
    "edit : callable, optional\n"
    "    ``edit(step, array, piece)`` turns the derivative by an edited value into that by the\n"
    "    value before the edit, in place.\n"
    "threads : int\n"
    "    At most this many threads.\n"
    "\n"
    "Raises\n"
    "------\n"
    "ValueError\n"
    "    A step, a shape or a token is wrong, or a value is missing.\n"
    "tinyllm.UnsupportedError\n"
    "    The gradient of an operation is not implemented.\n");

PyObject *tlpy_backward(PyObject *model, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"tokens", "values", "seeds",   "captures", "weights",
                            "edits",  "edit",   "threads", NULL};
    PyObject *tokens, *values, *seeds, *captures, *empty = PyTuple_New(0);
    PyObject *weights = empty, *edits = empty, *result = NULL;
    struct arguments a = {.plan = tlpy_model_plan(model),
                          .values = {.name = "values"},
                          .seeds = {.name = "seeds"},
                          .captures = {.name = "captures", .written = true},
                          .edit = Py_None};
    struct tl_back_call call = {0};
    struct tl_error err;
    Py_ssize_t threads = 1;
    int status;
    if (empty == NULL) return NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO|$OOOn:backward", names, &tokens, &values,
                                     &seeds, &captures, &weights, &edits, &a.edit, &threads)) {
        goto done;
    }
    if (threads < 1) {
        PyErr_Format(PyExc_ValueError, "threads is %zd; expected at least 1", threads);
        goto done;
    }
    if (!read_tokens(&a, tokens) || !read_arrays(&a, &a.values, values) ||
        !read_arrays(&a, &a.seeds, seeds) || !read_arrays(&a, &a.captures, captures) ||
        !read_weights(&a, tlpy_state_of(model), weights) || !read_edits(&a, edits) ||
        tlpy_model_lost(model)) {
        goto done;
    }
    for (size_t i = 0; i < a.n_pieces; i++) {
        const size_t at = i * a.plan->n_matrices;
        a.pieces[i].matrices = (const float *const *)(a.values.matrices + at);
        a.pieces[i].seeds = (const float *const *)(a.seeds.matrices + at);
        a.pieces[i].captures = a.captures.matrices + at;
    }
    call.threads = (int)TL_MIN(threads, 256);
    call.pieces = a.pieces;
    call.n_pieces = a.n_pieces;
    call.values = (const float *const *)a.values.rows;
    call.seeds = (const float *const *)a.seeds.rows;
    call.captures = a.captures.rows;
    call.weights = a.weights;
    call.edits = a.edits;
    call.edit = call_edit;
    call.edit_user = &a;
    call.poll = poll_signals;
    call.poll_user = &a;
    a.polled = tl_clock_ns();
    a.thread = PyEval_SaveThread();
    status = tl_backward(a.plan, &call, &err);
    PyEval_RestoreThread(a.thread);
    if (status == TL_OK) {
        result = Py_NewRef(Py_None);
    } else {
        tlpy_raise(tlpy_state_of(model), &err);
    }
done:
    release(&a);
    Py_DECREF(empty);
    return result;
}
