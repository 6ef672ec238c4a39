/* py_model.c - _core.Model: a checked model, and the forward pass over its sessions. */
#include "py/py_model.h"

#include "base/os.h"
#include "py/py_weight.h"

#include <string.h>

/* How often a long call looks for Ctrl-C. */
#define POLL_NS 20000000u
#define PROGRESS_NS 100000000u

typedef struct {
    PyObject_HEAD
    struct tl_model *m;
    PyObject *weights; // a tuple of the Weights whose data the model reads
} model_object;

PyDoc_STRVAR(
    model_doc,
    "Model(config, weights, /)\n"
    "--\n"
    "\n"
    "A checked model: the config of a llama and its weights, ready to run.\n"
    "\n"
    "Immutable, and safe to share between threads.\n"
    "\n"
    "Parameters\n"
    "----------\n"
    "config : dict\n"
    "    ``fast layers width vocab_size max_context norm_epsilon attention_scale rope_dimension\n"
    "    rope_base rope_scaling rope_factor rope_original_context rope_beta_fast\n"
    "    rope_beta_slow rope_attn_factor`` and ``shapes``, a sequence of ``(heads, kv_heads,\n"
    "    head_size, value_size, ffn_width)`` per layer. ``rope_scaling`` is 0 (none), 1 (linear)\n"
    "    or 2 (YaRN).\n"
    "weights : sequence of Weight\n"
    "    By their GGUF names. Weights that the model does not use are ignored.\n"
    "\n"
    "Raises\n"
    "------\n"
    "tinyllm.FormatError\n"
    "    A weight is missing or has another shape, or a number of the config makes no sense.\n"
    "tinyllm.UnsupportedError\n"
    "    A weight has a type that cannot be run.\n"
    "\n"
    "Examples\n"
    "--------\n"
    ">>> import tinyllm\n"
    ">>> tinyllm.load().core.config['layers'] > 0\n"
    "True\n");

static bool read_size(PyObject *config, const char *name, size_t *out) {
    PyObject *value = PyMapping_GetItemString(config, name);
    if (value == NULL) return false;
    *out = PyLong_AsSize_t(value);
    Py_DECREF(value);
    return !(*out == (size_t)-1 && PyErr_Occurred());
}

static bool read_double(PyObject *config, const char *name, double *out) {
    PyObject *value = PyMapping_GetItemString(config, name);
    if (value == NULL) return false;
    *out = PyFloat_AsDouble(value);
    Py_DECREF(value);
    return !(*out == -1 && PyErr_Occurred());
}

static bool read_shapes(PyObject *config, struct tl_config *out) {
    PyObject *shapes = PyMapping_GetItemString(config, "shapes");
    bool ok = false;
    if (shapes == NULL) return false;
    if (!PyTuple_Check(shapes) || (size_t)PyTuple_Size(shapes) != out->layers) {
        PyErr_Format(PyExc_ValueError, "config['shapes'] must be a tuple of %zu shapes",
                     out->layers);
        goto done;
    }
    out->shapes = PyMem_Calloc(out->layers ? out->layers : 1, sizeof(*out->shapes));
    if (out->shapes == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (size_t i = 0; i < out->layers; i++) {
        Py_ssize_t n[5];
        struct tl_layer_shape *s = &out->shapes[i];
        if (!PyArg_ParseTuple(PyTuple_GetItem(shapes, (Py_ssize_t)i), "nnnnn", &n[0], &n[1], &n[2],
                              &n[3], &n[4])) {
            goto done;
        }
        *s = (struct tl_layer_shape){(size_t)n[0], (size_t)n[1], (size_t)n[2], (size_t)n[3],
                                     (size_t)n[4]};
    }
    ok = true;
done:
    Py_DECREF(shapes);
    return ok;
}

static bool read_config(PyObject *config, struct tl_config *c) {
    size_t scaling, fast;
    if (!(read_size(config, "fast", &fast) && read_size(config, "layers", &c->layers) &&
          read_size(config, "width", &c->width) &&
          read_size(config, "vocab_size", &c->vocab_size) &&
          read_size(config, "max_context", &c->max_context) &&
          read_double(config, "norm_epsilon", &c->norm_epsilon) &&
          read_double(config, "attention_scale", &c->attention_scale) &&
          read_size(config, "rope_dimension", &c->rope_dimension) &&
          read_double(config, "rope_base", &c->rope_base) &&
          read_size(config, "rope_scaling", &scaling) &&
          read_double(config, "rope_factor", &c->rope_factor) &&
          read_double(config, "rope_original_context", &c->rope_original_context) &&
          read_double(config, "rope_beta_fast", &c->rope_beta_fast) &&
          read_double(config, "rope_beta_slow", &c->rope_beta_slow) &&
          read_double(config, "rope_attn_factor", &c->rope_attn_factor))) {
        return false;
    }
    if (scaling > TL_ROPE_YARN) {
        PyErr_Format(PyExc_ValueError, "config['rope_scaling'] is %zu; expected 0, 1 or 2",
                     scaling);
        return false;
    }
    c->fast = fast != 0;
    c->rope_scaling = (enum tl_rope_scaling)scaling;
    return read_shapes(config, c);
}

/* A Weight in the core's terms; `names` keeps the text that out->name points to. */
static bool read_weight(tlpy_state *st, PyObject *weight, PyObject *names, struct tl_tensor *out) {
    const struct tl_matrix *w;
    const size_t *shape;
    PyObject *name;
    if (!tlpy_weight_check(st, weight)) {
        PyErr_Format(PyExc_TypeError, "weights must be tinyllm Weights, not %.100s",
                     Py_TYPE(weight)->tp_name);
        return false;
    }
    name = PyObject_GetAttrString(weight, "name");
    if (name == NULL) return false;
    out->name = PyUnicode_AsUTF8(name);
    if (out->name == NULL) { // a name that is no valid UTF-8 is no name that the model looks for
        PyErr_Clear();
        out->name = "";
    }
    if (PyList_Append(names, name) < 0) {
        Py_DECREF(name);
        return false;
    }
    Py_DECREF(name);
    w = tlpy_weight_matrix(weight);
    shape = tlpy_weight_shape(weight, &out->n_dims);
    out->type = w->type;
    out->data = w->data;
    for (int i = 0; i < out->n_dims; i++) out->dims[i] = shape[out->n_dims - 1 - i];
    return true;
}

static PyObject *model_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *config, *given, *weights = NULL, *names = PyList_New(0);
    model_object *self = NULL;
    struct tl_config c = {0};
    struct tl_tensor *tensors = NULL;
    struct tl_error err;
    tlpy_state *st = PyType_GetModuleState(type);
    Py_ssize_t n;
    int status;

    if (names == NULL) return NULL;
    if (kwargs != NULL && PyDict_Size(kwargs) > 0) {
        PyErr_SetString(PyExc_TypeError, "Model() takes no keyword arguments");
        goto done;
    }
    if (!PyArg_ParseTuple(args, "OO:Model", &config, &given)) goto done;
    weights = PySequence_Tuple(given);
    if (weights == NULL || !read_config(config, &c)) goto done;
    n = PyTuple_Size(weights);
    tensors = PyMem_Calloc(n ? (size_t)n : 1, sizeof(*tensors));
    if (tensors == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        if (!read_weight(st, PyTuple_GetItem(weights, i), names, &tensors[i])) goto done;
    }
    self = (model_object *)PyType_GenericAlloc(type, 0);
    if (self == NULL) goto done;
    self->weights = Py_NewRef(weights);
    Py_BEGIN_ALLOW_THREADS
    status = tl_model_new(&c, tensors, (size_t)n, &self->m, &err);
    Py_END_ALLOW_THREADS
    if (status != TL_OK) {
        tlpy_raise(st, &err);
        Py_CLEAR(self);
    }
done:
    PyMem_Free(tensors);
    PyMem_Free(c.shapes);
    Py_XDECREF(weights);
    Py_DECREF(names);
    return (PyObject *)self;
}

static int model_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((model_object *)self)->weights);
    return 0;
}

static void model_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    tl_model_free(((model_object *)self)->m);
    Py_CLEAR(((model_object *)self)->weights);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

const struct tl_model *tlpy_model_get(PyObject *model) {
    return ((model_object *)model)->m;
}

/* ---- forward ---- */

struct forward {
    const struct tl_model *m;
    PyThreadState *thread; // of the caller, while the GIL is released
    PyObject *edit;        // or NULL
    PyObject *progress;    // or None
    size_t done, all;      // layers times rows
    uint64_t told;         //
    const struct tl_piece *pieces;
    size_t rows;
    uint64_t polled;
};

static int poll_signals(void *user) {
    struct forward *f = user;
    const uint64_t now = tl_clock_ns();
    int stop;
    if (now - f->polled < POLL_NS) return 0;
    f->polled = now;
    PyEval_RestoreThread(f->thread);
    stop = PyErr_CheckSignals();
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

/* The shape of a tap in one call; returns the number of axes. */
static int tap_shape(const struct tl_model *m, enum tl_tap tap, size_t layer, size_t tokens,
                     size_t context, size_t *shape) {
    const struct tl_tap_info *info = &tl_taps[tap];
    int n = 0;
    if (info->matrix) {
        shape[0] = tl_tap_axis(m, TL_AXIS_H, layer), shape[1] = tokens, shape[2] = context;
        return 3;
    }
    shape[n++] = tokens;
    for (int i = 0; i < 3 && info->axes[i] != TL_AXIS_END; i++) {
        shape[n++] = tl_tap_axis(m, info->axes[i], layer);
    }
    return n;
}

static size_t product(const size_t *shape, int n) {
    size_t p = 1;
    for (int i = 0; i < n; i++) p *= shape[i];
    return p;
}

/* Gives the edit a copy, so that nothing it keeps can point into memory of the core. */
static int call_edit(void *user, enum tl_tap tap, size_t layer, int piece, float *values) {
    struct forward *f = user;
    const struct tl_piece *p = piece >= 0 ? &f->pieces[piece] : NULL;
    PyObject *array, *result = NULL;
    size_t shape[4];
    void *data;
    int n;
    PyEval_RestoreThread(f->thread);
    n = tap_shape(f->m, tap, layer, p != NULL ? p->n : f->rows,
                  p != NULL ? p->session->n + p->n : 0, shape);
    array = tlpy_array_new(TLPY_F32, n, shape, &data);
    if (array != NULL) {
        const size_t bytes = product(shape, n) * sizeof(float);
        memcpy(data, values, bytes);
        result = PyObject_CallFunction(f->edit, "inOi", (int)tap, (Py_ssize_t)layer, array, piece);
        if (result != NULL) memcpy(values, data, bytes);
        Py_DECREF(array);
    }
    Py_XDECREF(result);
    f->thread = PyEval_SaveThread();
    return result == NULL;
}

/* What forward() was given, in the core's terms; everything in it is freed by release(). */
struct arguments {
    PyObject *sessions, *tokens, *rows, *captures, *edits, *edit, *resid, *progress;
    Py_ssize_t threads, first_layer;
    size_t n_pieces, total;
    size_t n_busy;           // sessions taken
    struct tl_piece *pieces; //
    PyObject **token_arrays;
    float **arrays;   // (layers, TL_TAP_COUNT) of row taps
    float **matrices; // (n_pieces, 2, layers)
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

static bool read_pieces(struct arguments *a, model_object *self) {
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
        PyObject *array = tlpy_array_from(PyTuple_GetItem(a->tokens, (Py_ssize_t)i), TLPY_I32);
        a->token_arrays[i] = array;
        if (array == NULL) return false;
        a->pieces[i].tokens = tlpy_array_read(array, &a->pieces[i].n);
        a->total += a->pieces[i].n;
        a->pieces[i].session = tlpy_session_enter(session, (PyObject *)self);
        if (a->pieces[i].session == NULL) return false;
        a->n_busy = i + 1;
    }
    return true;
}

/* captures: tuple of (tap, first layer, piece, array of one or more layers); -1 for row taps. */
static bool read_captures(struct arguments *a, const struct tl_model *m) {
    const size_t layers = m->config.layers;
    if (!PyTuple_Check(a->captures) || !PyTuple_Check(a->edits)) {
        PyErr_SetString(PyExc_TypeError, "captures and edits must be tuples");
        return false;
    }
    a->arrays = PyMem_Calloc(layers * TL_TAP_COUNT, sizeof(float *));
    a->matrices = PyMem_Calloc(a->n_pieces * 2 * layers, sizeof(float *));
    a->edit_flags = PyMem_Calloc(layers * TL_TAP_COUNT, 1);
    if (a->arrays == NULL || a->matrices == NULL || a->edit_flags == NULL) {
        PyErr_NoMemory();
        return false;
    }
    for (Py_ssize_t i = 0; i < PyTuple_Size(a->captures); i++) {
        Py_ssize_t tap, layer, piece;
        size_t size, shape[4];
        const struct tl_piece *p;
        PyObject *array;
        float *data;
        int n;
        if (!PyArg_ParseTuple(PyTuple_GetItem(a->captures, i), "nnnO", &tap, &layer, &piece,
                              &array)) {
            return false;
        }
        if (tap < 0 || tap >= TL_TAP_COUNT || layer < 0 || (size_t)layer >= layers ||
            piece >= (Py_ssize_t)a->n_pieces || tl_taps[tap].matrix != (piece >= 0)) {
            PyErr_Format(PyExc_ValueError, "captures[%zd]: no tap %zd in layer %zd, piece %zd", i,
                         tap, layer, piece);
            return false;
        }
        data = tlpy_array_data(array, TLPY_F32, "a capture", &size);
        if (data == NULL) return false;
        p = piece >= 0 ? &a->pieces[piece] : NULL;
        for (size_t l = (size_t)layer, left = size;; l++) {
            size_t one = 0;
            if (l < layers) {
                n = tap_shape(m, (enum tl_tap)tap, l, p != NULL ? p->n : a->total,
                              p != NULL ? p->session->n + p->n : 0, shape);
                one = product(shape, n);
            }
            if (one == 0 || one > left) {
                PyErr_Format(PyExc_ValueError,
                             "captures[%zd] has %zu values, which are not those of whole layers "
                             "from %zd on",
                             i, size, layer);
                return false;
            }
            if (p == NULL) {
                a->arrays[l * TL_TAP_COUNT + (size_t)tap] = data;
            } else {
                const size_t row = 2 * (size_t)piece + (tap == TL_TAP_ATTN_PROBS);
                a->matrices[row * layers + l] = data;
            }
            left -= one;
            data += one;
            if (left == 0) break;
        }
    }
    for (size_t i = 0; i < a->n_pieces; i++) {
        a->pieces[i].scores = a->matrices + 2 * i * layers;
        a->pieces[i].probs = a->matrices + (2 * i + 1) * layers;
    }
    for (Py_ssize_t i = 0; i < PyTuple_Size(a->edits); i++) {
        Py_ssize_t tap, layer;
        if (!PyArg_ParseTuple(PyTuple_GetItem(a->edits, i), "nn", &tap, &layer)) return false;
        if (tap < 0 || tap >= TL_TAP_COUNT || layer < 0 || (size_t)layer >= layers) {
            PyErr_Format(PyExc_ValueError, "edits[%zd]: no tap %zd in layer %zd", i, tap, layer);
            return false;
        }
        a->edit_flags[(size_t)layer * TL_TAP_COUNT + (size_t)tap] = 1;
        // the core changes these in the arrays that captures give
        for (size_t p = 0; p < a->n_pieces; p++) {
            const bool probs = tap == TL_TAP_ATTN_PROBS;
            const size_t first = tl_taps[tap].matrix ? 2 * p : 0;
            bool there = true;
            if (tl_taps[tap].matrix) {
                // softmax reads edited scores there, the mix reads what softmax wrote
                there = a->matrices[(first + probs) * layers + (size_t)layer] != NULL &&
                        a->matrices[first * layers + (size_t)layer] != NULL &&
                        a->matrices[(first + 1) * layers + (size_t)layer] != NULL;
            } else if (tap == TL_TAP_OUTPUT) {
                there = a->arrays[(size_t)tap] != NULL;
            }
            if (!there) {
                PyErr_Format(PyExc_ValueError,
                             "edits[%zd]: scores, probs and output are edited "
                             "only where they are captured",
                             i);
                return false;
            }
        }
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

PyDoc_STRVAR(
    forward_doc,
    "forward($self, /, sessions, tokens, rows, *, threads, captures=(), edits=(), edit=None,\n"
    "        first_layer=0, resid=None, progress=None)\n"
    "--\n"
    "\n"
    "Run tokens after what their sessions hold, and append them.\n"
    "\n"
    "This is the one door to the forward pass; `tinyllm.Model` and `tinyllm.Session` are its\n"
    "pleasant face. The GIL is released; Ctrl-C raises KeyboardInterrupt. A call that raises\n"
    "leaves every session as it was.\n"
    "\n"
    "Parameters\n"
    "----------\n"
    "sessions : tuple of Session\n"
    "    Different sessions of this model; they run together.\n"
    "tokens : tuple of int32 arrays, shape (n,)\n"
    "    The tokens of each session, n >= 1. T is their total number.\n"
    "rows : array_like of int64\n"
    "    Rising numbers in [0, T): the tokens whose logits are wanted.\n"
    "threads : int\n"
    "    At most this many threads.\n"
    "captures : tuple of (tap, layer, piece, array)\n"
    "    float32 arrays that the taps are written to. Row taps have piece -1 and T rows; scores\n"
    "    and probs belong to one session, shape (H, n, S). Taps: indices of ``TAPS``. A longer\n"
    "    array holds the following layers too, one after another.\n"
    "edits : tuple of (tap, layer)\n"
    "    Where `edit` is called.\n"
    "edit : callable, optional\n"
    "    ``edit(tap, layer, array, piece)`` changes the array in place.\n"
    "first_layer, resid : int and float32 array, shape (T, D), optional\n"
    "    Start at this layer from this residual stream instead of the embedding.\n"
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

static PyObject *model_forward(PyObject *op, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"sessions", "tokens",      "rows",  "threads",  "captures", "edits",
                            "edit",     "first_layer", "resid", "progress", NULL};
    model_object *self = (model_object *)op;
    const struct tl_model *m = self->m;
    struct arguments a = {.threads = 1};
    struct forward f = {.m = m};
    struct tl_call call = {0};
    struct tl_error err;
    PyObject *logits = NULL, *empty = PyTuple_New(0);
    size_t shape[2] = {0, m->config.vocab_size}, resid_size = 0;
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
    if (a.threads < 1 || a.first_layer < 0 || (size_t)a.first_layer > m->config.layers) {
        PyErr_Format(PyExc_ValueError,
                     "threads is %zd and first_layer %zd; expected at least 1 "
                     "and 0 to %zu",
                     a.threads, a.first_layer, m->config.layers);
        goto done;
    }
    if (!read_pieces(&a, self) || !read_captures(&a, m) || !read_rows(&a)) goto done;
    if (a.resid != Py_None) {
        a.resid_array = tlpy_array_from(a.resid, TLPY_F32);
        if (a.resid_array == NULL) goto done;
        call.resid = tlpy_array_read(a.resid_array, &resid_size);
        if (resid_size != a.total * m->config.width) {
            PyErr_Format(PyExc_ValueError, "resid has %zu values; expected %zu", resid_size,
                         a.total * m->config.width);
            goto done;
        }
    } else if (a.first_layer != 0) {
        PyErr_SetString(PyExc_ValueError, "first_layer needs resid");
        goto done;
    }
    tlpy_array_read(a.rows_array, &shape[0]);
    logits = tlpy_array_new(TLPY_F32, 2, shape, &data);
    if (logits == NULL) goto done;

    f.edit = a.edit;
    f.pieces = a.pieces;
    f.rows = a.total;
    f.polled = f.told = tl_clock_ns();
    f.progress = a.progress;
    f.all = a.total * (m->config.layers - (size_t)a.first_layer);
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
    status = tl_forward(m, a.pieces, a.n_pieces, &call, &err);
    PyEval_RestoreThread(f.thread);
    if (status != TL_OK) {
        tlpy_raise(tlpy_state_of(op), &err);
        Py_CLEAR(logits);
    }
done:
    release(&a);
    Py_DECREF(empty);
    return logits;
}

static PyObject *model_config(PyObject *op, void *closure) {
    const struct tl_config *c = &((model_object *)op)->m->config;
    (void)closure;
    return Py_BuildValue("{snsnsnsnsdsn}", "layers", (Py_ssize_t)c->layers, "width",
                         (Py_ssize_t)c->width, "vocab_size", (Py_ssize_t)c->vocab_size,
                         "max_context", (Py_ssize_t)c->max_context, "norm_epsilon", c->norm_epsilon,
                         "rope_dimension", (Py_ssize_t)c->rope_dimension);
}

PyDoc_STRVAR(memory_doc, "memory($self, tokens, threads, /)\n"
                         "--\n"
                         "\n"
                         "(bytes of the kv cache, bytes of the buffers) of a prompt of so many\n"
                         "tokens. ValueError if the context does not hold them.\n");

static PyObject *model_memory(PyObject *op, PyObject *args) {
    const model_object *self = (model_object *)op;
    Py_ssize_t tokens;
    size_t cache = 0, work = 0;
    int threads;
    struct tl_error err;
    if (!PyArg_ParseTuple(args, "ni:memory", &tokens, &threads)) return NULL;
    if (threads < 1) {
        PyErr_Format(PyExc_ValueError, "threads is %d; expected at least 1", threads);
        return NULL;
    }
    if (tl_forward_bytes(self->m, tokens < 0 ? 0 : (size_t)tokens, threads, &cache, &work, &err) !=
        TL_OK) {
        return tlpy_raise(tlpy_state_of(op), &err);
    }
    return Py_BuildValue("(nn)", (Py_ssize_t)cache, (Py_ssize_t)work);
}

static PyMethodDef model_methods[] = {
    {"forward", (PyCFunction)(void (*)(void))model_forward, METH_VARARGS | METH_KEYWORDS,
     forward_doc},
    {"memory", model_memory, METH_VARARGS, memory_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef model_getset[] = {
    {"config", model_config, NULL, "dict : the numbers that the core runs with.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot model_slots[] = {
    {Py_tp_doc, (void *)model_doc},
    {Py_tp_new, model_new},
    {Py_tp_traverse, model_traverse},
    {Py_tp_dealloc, model_dealloc},
    {Py_tp_methods, model_methods},
    {Py_tp_getset, model_getset},
    {0, NULL},
};

PyType_Spec tlpy_model_spec = {
    .name = "tinyllm._core.Model",
    .basicsize = sizeof(model_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = model_slots,
};

/* [(name, per_layer, matrix), ...] in the order of enum tl_tap */
PyObject *tlpy_taps(void) {
    static const char axis[] = {
        [TL_AXIS_D] = 'D',  [TL_AXIS_H] = 'H', [TL_AXIS_K] = 'K', [TL_AXIS_DH] = 'd',
        [TL_AXIS_DV] = 'v', [TL_AXIS_F] = 'F', [TL_AXIS_V] = 'V', [TL_AXIS_S] = 'S'};
    PyObject *taps = PyTuple_New(TL_TAP_COUNT);
    for (int i = 0; taps != NULL && i < TL_TAP_COUNT; i++) {
        char axes[4] = "";
        PyObject *row;
        for (int j = 0; j < 3 && tl_taps[i].axes[j] != TL_AXIS_END; j++) {
            axes[j] = axis[tl_taps[i].axes[j]];
        }
        row = Py_BuildValue("sOOs", tl_taps[i].name, tl_taps[i].per_layer ? Py_True : Py_False,
                            tl_taps[i].matrix ? Py_True : Py_False, axes);
        if (row == NULL || PyTuple_SetItem(taps, i, row) < 0) Py_CLEAR(taps);
    }
    return taps;
}
