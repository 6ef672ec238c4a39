/* py_pack.c - the module's function pack: floats become the blocks of a tensor type. */
#include "py/py_pack.h"

#include "base/fpu.h"
#include "base/os.h"
#include "base/pool.h"
#include "py/py_array.h"
#include "py/py_weight.h"

#include <stdatomic.h>

#define PIECE 16384 // values of a task, at least; whole blocks of every type
#define POLL_NS 20000000u

struct pack {
    const struct tl_type_info *type;
    const float *x;
    const float *weight; // `row` of them, or NULL
    size_t row;          // values of a row; without weights, of a task
    size_t rows_per_task;
    size_t n;
    uint8_t *out;
    atomic_bool unfit; // a value does not fit the type
    PyThreadState *thread;
    uint64_t polled;
};

static void pack_task(void *arg, size_t task, int thread) {
    struct pack *p = arg;
    (void)thread;
    for (size_t i = 0; i < p->rows_per_task; i++) {
        const size_t at = (task * p->rows_per_task + i) * p->row;
        size_t n;
        if (at >= p->n) return;
        n = TL_MIN(p->row, p->n - at);
        if (!tl_type_from_f32(p->type, p->x + at, p->weight,
                              p->out + at / (size_t)p->type->items * (size_t)p->type->bytes, n)) {
            atomic_store(&p->unfit, true);
        }
    }
}

static int poll_signals(void *user) {
    struct pack *p = user;
    const uint64_t now = tl_clock_ns();
    int stop;
    if (now - p->polled < POLL_NS) return 0;
    p->polled = now;
    PyEval_RestoreThread(p->thread);
    stop = PyErr_CheckSignals();
    p->thread = PyEval_SaveThread();
    return stop;
}

/* 0, or -1 with an exception set. */
static int pack_run(struct pack *p, int threads) {
    const size_t rows = p->n == 0 ? 0 : (p->n - 1) / p->row + 1;
    size_t tasks;
    uint64_t fpu;
    int status;
    if (rows == 0) return 0;
    p->rows_per_task = TL_MAX(TL_MAX(PIECE / p->row, 1), rows / TL_MAX_TASKS + 1);
    tasks = (rows - 1) / p->rows_per_task + 1;
    p->polled = tl_clock_ns();
    p->thread = PyEval_SaveThread();
    fpu = tl_fpu_enter();
    status = tl_pool_run(threads, tasks, pack_task, p, poll_signals, p);
    tl_fpu_leave(fpu);
    PyEval_RestoreThread(p->thread);
    if (status != TL_OK) return -1;
    if (!atomic_load(&p->unfit)) return 0;
    PyErr_Format(PyExc_ValueError, "values holds a number that is not finite or too large for %s",
                 p->type->name);
    return -1;
}

/* Weights: `row` of them, all positive and finite, so that the values are whole rows. */
static bool check_weight(struct pack *p) {
    if (p->row == 0 || p->n % p->row != 0) {
        PyErr_Format(PyExc_ValueError, "values has %zu numbers; expected rows of %zu, as in weight",
                     p->n, p->row);
        return false;
    }
    for (size_t i = 0; i < p->row; i++) {
        // far from the limits of float32, so that no sum overflows
        if (!(p->weight[i] >= 1e-8f && p->weight[i] <= 1e8f)) {
            PyErr_Format(PyExc_ValueError, "weight[%zu] is out of range; expected 1e-8 to 1e8", i);
            return false;
        }
    }
    return true;
}

PyDoc_STRVAR(pack_doc,
             "pack($module, type, values, weight=None, threads=0)\n"
             "--\n"
             "\n"
             "Round float32 values to the blocks of a tensor type.\n"
             "\n"
             "The bytes do not depend on the machine or on the number of threads. The scales of\n"
             "each block are chosen so that the sum of weight * error**2 is small; Q8_0 has the\n"
             "bytes that ggml gives. Block layouts: ggml-common.h of ggml.\n"
             "\n"
             "Parameters\n"
             "----------\n"
             "type : str\n"
             "    ggml's name, such as \"Q4_K\".\n"
             "values : array_like of float32\n"
             "    Rows of whole blocks, one after another, in any shape.\n"
             "weight : array_like of float32, (n,), optional\n"
             "    The importance of each value of a row of n, from 1e-8 to 1e8; the same for all\n"
             "    rows. Default: all are equal.\n"
             "threads : int\n"
             "    At most this many threads. 0: one per core.\n"
             "\n"
             "Returns\n"
             "-------\n"
             "numpy.ndarray of uint8, (bytes,)\n"
             "\n"
             "Raises\n"
             "------\n"
             "ValueError\n"
             "    If the type is unknown or cannot be written, if the sizes do not fit, or if a\n"
             "    value is not finite or too large for the type: above 65504 for a type with\n"
             "    float16 scales.\n"
             "\n"
             "Examples\n"
             "--------\n"
             ">>> from tinyllm import _core\n"
             ">>> _core.pack(\"BF16\", [1.0, 2.0]).tobytes().hex()\n"
             "'803f0040'\n");

static PyObject *module_pack(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"type", "values", "weight", "threads", NULL};
    PyObject *name, *values, *weight = Py_None, *x = NULL, *w = NULL, *result = NULL;
    struct pack p = {.row = PIECE};
    int threads = 0;
    size_t bytes;
    void *out;
    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "UO|Oi:pack", names, &name, &values, &weight,
                                     &threads)) {
        return NULL;
    }
    p.type = tlpy_type_named(name);
    if (p.type == NULL) return NULL;
    if (p.type->pack == NULL) {
        PyErr_Format(PyExc_ValueError, "type is %R, which tinyllm cannot write", name);
        return NULL;
    }
    if (threads < 0 || threads > TL_MAX_THREADS) {
        PyErr_Format(PyExc_ValueError, "threads is %d; expected 0 to %d", threads, TL_MAX_THREADS);
        return NULL;
    }
    x = tlpy_array_from(values, TLPY_F32);
    if (x == NULL) goto done;
    p.x = tlpy_array_read(x, &p.n);
    if (weight != Py_None) {
        w = tlpy_array_from(weight, TLPY_F32);
        if (w == NULL) goto done;
        p.weight = tlpy_array_read(w, &p.row);
        if (!check_weight(&p)) goto done;
    }
    if (p.n % (size_t)p.type->items != 0 || (w != NULL && p.row % (size_t)p.type->items != 0)) {
        PyErr_Format(PyExc_ValueError, "rows have %zu values; expected a multiple of %d for %U",
                     w != NULL ? p.row : p.n, p.type->items, name);
        goto done;
    }
    bytes = p.n / (size_t)p.type->items * (size_t)p.type->bytes;
    result = tlpy_array_new(TLPY_U8, 1, &bytes, &out);
    if (result == NULL) goto done;
    p.out = out;
    if (pack_run(&p, threads > 0 ? threads : tl_cpu_count(true)) < 0) Py_CLEAR(result);
done:
    Py_XDECREF(x);
    Py_XDECREF(w);
    return result;
}

PyDoc_STRVAR(writable_types_doc, "writable_types($module, /)\n"
                                 "--\n"
                                 "\n"
                                 "The names of the tensor types that `pack` can write.\n"
                                 "\n"
                                 "Returns\n"
                                 "-------\n"
                                 "list of str\n"
                                 "\n"
                                 "Examples\n"
                                 "--------\n"
                                 ">>> from tinyllm import _core\n"
                                 ">>> \"Q4_K\" in _core.writable_types()\n"
                                 "True\n");

static PyObject *writable_types(PyObject *module, PyObject *ignored) {
    PyObject *names = PyList_New(0);
    (void)module, (void)ignored;
    for (uint32_t id = 0; names != NULL && id < TL_TYPE_COUNT; id++) {
        const struct tl_type_info *type = tl_type_find(id);
        PyObject *name;
        if (type == NULL || type->pack == NULL) continue;
        name = PyUnicode_FromString(type->name);
        if (name == NULL || PyList_Append(names, name) < 0) Py_CLEAR(names);
        Py_XDECREF(name);
    }
    return names;
}

PyMethodDef tlpy_pack_methods[] = {
    {"pack", (PyCFunction)(void (*)(void))module_pack, METH_VARARGS | METH_KEYWORDS, pack_doc},
    {"writable_types", writable_types, METH_NOARGS, writable_types_doc},
    {NULL, NULL, 0, NULL},
};
