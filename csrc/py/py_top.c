/* py_top.c - the most likely tokens of many rows of logits at once, for the logit lens. */
#include "py/py_top.h"

#include "base/fpu.h"
#include "base/math64.h"
#include "base/pool.h"
#include "base/top.h"
#include "kernels/kernels.h"
#include "py/py_array.h"

/* The work on all rows: one task per row, or per `per_task` rows if there are very many. */
struct top {
    const struct tl_kernels *kernels;
    const float *logits; // (rows, n)
    size_t rows, n, k, per_task;
    size_t token;   // whose rank is wanted; n: none
    float *work;    // (threads, n)
    uint64_t *keys; // (threads, k)
    int32_t *ids;   // (rows, k)
    float *probs;   // (rows, k)
    double *sums;   // (rows)
    int64_t *ranks; // (rows)
};

static void top_task(void *arg, size_t task, int thread) {
    const struct top *t = arg;
    float *probs = t->work + (size_t)thread * t->n;
    for (size_t row = task * t->per_task; row < TL_MIN(t->rows, (task + 1) * t->per_task); row++) {
        const float *x = t->logits + row * t->n;
        int32_t *ids = t->ids + row * t->k;
        t->kernels->attn_softmax(x, t->n, -INFINITY, probs);
        tl_top_find(x, t->n, t->k, t->keys + (size_t)thread * t->k, ids);
        for (size_t i = 0; i < t->k; i++) t->probs[row * t->k + i] = probs[ids[i]];
        t->sums[row] = (double)x[ids[0]] - tl_log((double)probs[ids[0]]);
        if (t->token < t->n) t->ranks[row] = (int64_t)tl_top_rank(x, t->n, t->token);
    }
}

static bool top_run(struct top *t, int threads) {
    bool ok;
    threads = (int)TL_MIN((size_t)threads, TL_MAX(t->rows, 1));
    t->per_task = t->rows / TL_MAX_TASKS + 1;
    t->work = tl_alloc((size_t)threads * t->n * sizeof(float));
    t->keys = tl_alloc((size_t)threads * t->k * sizeof(uint64_t));
    ok = t->work != NULL && t->keys != NULL;
    if (ok) {
        Py_BEGIN_ALLOW_THREADS
        const uint64_t fpu = tl_fpu_enter();
        tl_pool_run(threads, (t->rows + t->per_task - 1) / t->per_task, top_task, t, NULL, NULL);
        tl_fpu_leave(fpu);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_NoMemory();
    }
    tl_free(t->work);
    tl_free(t->keys);
    return ok;
}

/* The number of rows of a matrix made by tlpy_array_from; -1 with an exception set. */
static Py_ssize_t rows_of(PyObject *x) {
    PyObject *shape = PyObject_GetAttrString(x, "shape");
    Py_ssize_t rows = -1;
    if (shape != NULL && PyTuple_Size(shape) == 2) {
        rows = PyNumber_AsSsize_t(PyTuple_GetItem(shape, 0), PyExc_OverflowError);
    } else if (shape != NULL) {
        PyErr_Format(PyExc_ValueError, "logits has shape %R; expected (rows, V)", shape);
    }
    Py_XDECREF(shape);
    return rows;
}

PyDoc_STRVAR(
    top_k_doc,
    "top_k($module, logits, k, token=-1, threads=1)\n"
    "--\n"
    "\n"
    "The most likely tokens of each row of logits, with the same bits everywhere.\n"
    "\n"
    "Parameters\n"
    "----------\n"
    "logits : array_like of float32, shape (rows, V)\n"
    "k : int\n"
    "    1 to V.\n"
    "token : int\n"
    "    The token whose rank is wanted. -1: none.\n"
    "threads : int\n"
    "\n"
    "Returns\n"
    "-------\n"
    "ids : numpy.ndarray of int32, shape (rows, k)\n"
    "    In descending order of logit. Of equal logits, the lower id is first; NaN is last.\n"
    "probs : numpy.ndarray of float32, shape (rows, k)\n"
    "    Their probabilities, from the softmax of attention (docs/numerics.md).\n"
    "sums : numpy.ndarray of float64, shape (rows,)\n"
    "    log(sum(exp(logits))), error below 2e-7. The log-probability of a token is its\n"
    "    logit minus this number.\n"
    "ranks : numpy.ndarray of int64, shape (rows,)\n"
    "    Number of tokens that come before `token`. 0 everywhere without one.\n"
    "\n"
    "Raises\n"
    "------\n"
    "ValueError\n"
    "    `logits` has another shape, or `k` or `token` is out of range.\n"
    "\n"
    "Examples\n"
    "--------\n"
    ">>> from tinyllm import _core\n"
    ">>> ids, probs, sums, ranks = _core.top_k([[0.0, 9.0, 9.0]], 2, token=0)\n"
    ">>> ids, ranks\n"
    "(array([[1, 2]], dtype=int32), array([2]))\n");

static PyObject *top_k(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"logits", "k", "token", "threads", NULL};
    PyObject *any, *x, *ids = NULL, *probs = NULL, *sums = NULL, *ranks = NULL, *result = NULL;
    struct top t = {0};
    struct tl_error err;
    Py_ssize_t k, token = -1, rows;
    int threads = 1;
    size_t size, shape[2];
    void *data;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "On|ni:top_k", names, &any, &k, &token,
                                     &threads)) {
        return NULL;
    }
    if (threads < 1 || threads > TL_MAX_THREADS) {
        return PyErr_Format(PyExc_ValueError, "threads is %d; expected 1 to %d", threads,
                            TL_MAX_THREADS);
    }
    x = tlpy_array_from(any, TLPY_F32);
    if (x == NULL) return NULL;
    rows = rows_of(x);
    if (rows < 0) goto done;
    t.logits = tlpy_array_read(x, &size);
    t.rows = (size_t)rows;
    t.n = rows > 0 ? size / (size_t)rows : 0;
    if (rows > 0 && (k < 1 || (size_t)k > t.n || t.n > INT32_MAX)) {
        PyErr_Format(PyExc_ValueError, "k is %zd; expected 1 to %zu", k, t.n);
        goto done;
    }
    if (rows > 0 && (token < -1 || token >= (Py_ssize_t)t.n)) {
        PyErr_Format(PyExc_ValueError, "token is %zd; expected -1 to %zu", token, t.n - 1);
        goto done;
    }
    t.kernels = tl_kernels_best(&err);
    if (t.kernels == NULL) {
        tlpy_raise(PyModule_GetState(module), &err);
        goto done;
    }
    t.k = rows > 0 ? (size_t)k : 0;
    t.token = token < 0 ? t.n : (size_t)token;
    shape[0] = t.rows;
    shape[1] = t.k;
    if ((ids = tlpy_array_new(TLPY_I32, 2, shape, &data)) == NULL) goto done;
    t.ids = data;
    if ((probs = tlpy_array_new(TLPY_F32, 2, shape, &data)) == NULL) goto done;
    t.probs = data;
    if ((sums = tlpy_array_new(TLPY_F64, 1, shape, &data)) == NULL) goto done;
    t.sums = data;
    if ((ranks = tlpy_array_new(TLPY_I64, 1, shape, &data)) == NULL) goto done;
    t.ranks = data;
    for (size_t i = 0; i < t.rows; i++) t.ranks[i] = 0;
    if (top_run(&t, threads)) result = PyTuple_Pack(4, ids, probs, sums, ranks);
done:
    Py_XDECREF(ids);
    Py_XDECREF(probs);
    Py_XDECREF(sums);
    Py_XDECREF(ranks);
    Py_DECREF(x);
    return result;
}

PyMethodDef tlpy_top_methods[] = {
    {"top_k", (PyCFunction)(void (*)(void))top_k, METH_VARARGS | METH_KEYWORDS, top_k_doc},
    {NULL, NULL, 0, NULL},
};
