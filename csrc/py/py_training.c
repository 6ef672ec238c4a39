/* py_training.c - the loss and the optimizers, for tinyllm.training. */
#include "py/py_training.h"

#include "base/fpu.h"
#include "base/os.h"
#include "kernels/kernels.h"
#include "py/py_array.h"
#include "training/gemm.h"
#include "training/optimizer.h"

#include <string.h>

/* Arrays of an item of an optimizer: weights, gradient, and one or two moments. */
#define MOST_ARRAYS 4

static bool check_threads(int threads) {
    if (threads >= 1 && threads <= 256) return true;
    PyErr_Format(PyExc_ValueError, "threads is %d; expected 1 to 256", threads);
    return false;
}

PyDoc_STRVAR(loss_doc,
             "cross_entropy($module, /, logits, targets, gradient=None, *, scale=1.0, threads=1)\n"
             "--\n"
             "\n"
             "The negative log-probability of each target, in nats.\n"
             "\n"
             "Parameters\n"
             "----------\n"
             "logits : numpy.ndarray of float32, shape (N, V)\n"
             "targets : int32 array, shape (N,)\n"
             "    Below V. The loss and the gradient of a target below 0 are 0.\n"
             "gradient : numpy.ndarray of float32, shape (N, V), optional\n"
             "    Gets `scale` times the derivative by the logits.\n"
             "scale : float\n"
             "threads : int\n"
             "\n"
             "Returns\n"
             "-------\n"
             "numpy.ndarray of float64, shape (N,)\n"
             "\n"
             "Examples\n"
             "--------\n"
             ">>> import numpy as np\n"
             ">>> from tinyllm import _core\n"
             ">>> _core.cross_entropy(np.zeros((1, 2), np.float32), [0]).round(3)\n"
             "array([0.693])\n");

static PyObject *cross_entropy(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"logits", "targets", "gradient", "scale", "threads", NULL};
    PyObject *given_logits, *given_targets, *gradient = Py_None;
    PyObject *logits = NULL, *targets = NULL, *losses = NULL;
    struct tl_loss l = {.scale = 1};
    struct tl_error err;
    const struct tl_kernels *k = tl_kernels_best(&err);
    size_t size = 0, gradient_size = 0;
    void *out;
    int threads = 1, status;
    if (k == NULL) return tlpy_raise(PyModule_GetState(module), &err);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|O$fi:cross_entropy", names, &given_logits,
                                     &given_targets, &gradient, &l.scale, &threads) ||
        !check_threads(threads)) {
        return NULL;
    }
    logits = tlpy_array_from(given_logits, TLPY_F32);
    targets = logits != NULL ? tlpy_array_from(given_targets, TLPY_I32) : NULL;
    if (targets == NULL) goto done;
    l.logits = tlpy_array_read(logits, &size);
    l.targets = tlpy_array_read(targets, &l.rows);
    l.vocab = l.rows > 0 ? size / l.rows : 0;
    if (l.vocab == 0 || l.vocab * l.rows != size) {
        PyErr_Format(PyExc_ValueError,
                     "%zu logits for %zu targets; expected shapes (N, V) and (N,)", size, l.rows);
        goto done;
    }
    for (size_t i = 0; i < l.rows; i++) {
        if (l.targets[i] < 0 || (size_t)l.targets[i] < l.vocab) continue;
        PyErr_Format(PyExc_ValueError, "targets[%zu] is %d; expected less than %zu", i,
                     (int)l.targets[i], l.vocab);
        goto done;
    }
    if (gradient != Py_None) {
        l.gradient = tlpy_array_data(gradient, TLPY_F32, "gradient", &gradient_size);
        if (l.gradient == NULL) goto done;
        if (gradient_size != size) {
            PyErr_Format(PyExc_ValueError, "gradient has %zu values; expected %zu", gradient_size,
                         size);
            goto done;
        }
    }
    losses = tlpy_array_new(TLPY_F64, 1, &l.rows, &out);
    if (losses == NULL) goto done;
    l.losses = out;
    Py_BEGIN_ALLOW_THREADS
    status = tl_loss_run(k, &l, threads, &err);
    Py_END_ALLOW_THREADS
    if (status != TL_OK) {
        tlpy_raise(PyModule_GetState(module), &err);
        Py_CLEAR(losses);
    }
done:
    Py_XDECREF(logits);
    Py_XDECREF(targets);
    return losses;
}

PyDoc_STRVAR(product_doc,
             "_product(shape, a, b, out, transpose='NN', add=False, isa=None, repeats=1)\n--\n\n"
             "The product of training on one thread, for tests and benchmarks: of a (m, k) and\n"
             "b (k, n), into or added to `out` (m, n), all float32; shape is (m, n, k). transpose\n"
             "has a letter for a and one for b: T if it is given as its transpose. Returns the\n"
             "seconds of the shortest of `repeats` runs.");

static PyObject *product(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"shape", "a", "b", "out", "transpose", "add", "isa", "repeats", NULL};
    PyObject *given_a, *given_b, *out, *a = NULL, *b = NULL, *seconds = NULL;
    const char *transpose = "NN", *isa = NULL;
    const struct tl_kernels *k;
    struct tl_error err;
    struct tl_gemm g = {0};
    size_t sizes[3];
    Py_ssize_t m, n, depth;
    float *scratch = NULL;
    uint64_t best = UINT64_MAX;
    int add = 0, repeats = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "(nnn)OOO|spzi:_product", names, &m, &n, &depth,
                                     &given_a, &given_b, &out, &transpose, &add, &isa, &repeats)) {
        return NULL;
    }
    k = isa != NULL ? tl_kernels_find(isa) : tl_kernels_best(&err);
    if (k == NULL && isa == NULL) return tlpy_raise(PyModule_GetState(module), &err);
    if (k == NULL) {
        return PyErr_Format(PyExc_ValueError, "isa is '%s'; expected one of kernel_sets()", isa);
    }
    a = tlpy_array_from(given_a, TLPY_F32);
    b = a != NULL ? tlpy_array_from(given_b, TLPY_F32) : NULL;
    if (b == NULL) goto done;
    g.a = tlpy_array_read(a, &sizes[0]);
    g.b = tlpy_array_read(b, &sizes[1]);
    g.c = tlpy_array_data(out, TLPY_F32, "out", &sizes[2]);
    if (g.c == NULL) goto done;
    if (m < 1 || n < 1 || depth < 1 || sizes[0] / (size_t)depth != (size_t)m ||
        sizes[1] / (size_t)depth != (size_t)n || sizes[2] / (size_t)n != (size_t)m ||
        strlen(transpose) != 2) {
        PyErr_Format(PyExc_ValueError,
                     "arrays of %zu, %zu and %zu values and transpose '%s' for the shape (%zd, "
                     "%zd, %zd)",
                     sizes[0], sizes[1], sizes[2], transpose, m, n, depth);
        goto done;
    }
    g.m = (size_t)m;
    g.n = (size_t)n;
    g.k = (size_t)depth;
    g.a_row = transpose[0] == 'T' ? 1 : g.k;
    g.a_col = transpose[0] == 'T' ? g.m : 1;
    g.b_row = transpose[1] == 'T' ? 1 : g.n;
    g.b_col = transpose[1] == 'T' ? g.k : 1;
    g.c_row = g.n;
    g.add = add;
    scratch = tl_alloc(GEMM_SCRATCH * sizeof(float));
    if (scratch == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
    const uint64_t fpu = tl_fpu_enter();
    for (int i = 0; i < repeats; i++) {
        const uint64_t start = tl_clock_ns();
        tl_gemm_serial(tl_gemm_find(k), &g, scratch);
        best = TL_MIN(best, tl_clock_ns() - start);
    }
    tl_fpu_leave(fpu);
    Py_END_ALLOW_THREADS
    seconds = PyFloat_FromDouble((double)best * 1e-9);
done:
    tl_free(scratch);
    Py_XDECREF(a);
    Py_XDECREF(b);
    return seconds;
}

PyDoc_STRVAR(squares_doc, "sum_squares($module, array, /)\n"
                          "--\n"
                          "\n"
                          "The sum of the squares of a float32 array, added in float64 in a fixed\n"
                          "order.\n");

static PyObject *sum_squares(PyObject *module, PyObject *arg) {
    PyObject *array = tlpy_array_from(arg, TLPY_F32);
    const float *x;
    double sum;
    size_t n;
    (void)module;
    if (array == NULL) return NULL;
    x = tlpy_array_read(array, &n);
    Py_BEGIN_ALLOW_THREADS
    const uint64_t fpu = tl_fpu_enter();
    sum = tl_sum_squares(x, n);
    tl_fpu_leave(fpu);
    Py_END_ALLOW_THREADS
    Py_DECREF(array);
    return PyFloat_FromDouble(sum);
}

PyDoc_STRVAR(dropout_doc,
             "dropout($module, array, /, *, rate=0.0, key=0, first=0, threads=1)\n"
             "--\n"
             "\n"
             "Set values to 0 with a probability, and divide the others by 1 - rate, in place.\n"
             "\n"
             "Which values are dropped depends only on the key and on their places.\n"
             "\n"
             "Parameters\n"
             "----------\n"
             "array : float32 array, contiguous\n"
             "rate : float\n"
             "    0 to below 1.\n"
             "key : int\n"
             "    0 to 2**64 - 1.\n"
             "first : int\n"
             "    The place of the first value.\n"
             "threads : int\n"
             "\n"
             "Raises\n"
             "------\n"
             "ValueError\n"
             "    If the rate is out of range.\n"
             "\n"
             "Examples\n"
             "--------\n"
             ">>> import numpy as np\n"
             ">>> from tinyllm import _core\n"
             ">>> x = np.ones(1000, np.float32)\n"
             ">>> _core.dropout(x, rate=0.5, key=1)\n"
             ">>> sorted(set(x.tolist())), bool(400 < (x == 0).sum() < 600)\n"
             "([0.0, 2.0], True)\n");

static PyObject *dropout(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"", "rate", "key", "first", "threads", NULL};
    struct tl_dropout d = {.rate = 0};
    struct tl_error err = {0};
    unsigned long long key = 0, first = 0;
    PyObject *array;
    int threads = 1, status;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|$dKKi:dropout", names, &array, &d.rate, &key,
                                     &first, &threads)) {
        return NULL;
    }
    if (!(d.rate >= 0 && d.rate < 1)) {
        PyObject *rate = PyFloat_FromDouble(d.rate);
        if (rate == NULL) return NULL;
        PyErr_Format(PyExc_ValueError, "rate is %R; expected 0 to below 1", rate);
        Py_DECREF(rate);
        return NULL;
    }
    d.x = tlpy_array_data(array, TLPY_F32, "array", &d.n);
    if (d.x == NULL) return NULL;
    d.key = key;
    d.first = first;
    Py_BEGIN_ALLOW_THREADS
    status = tl_dropout_run(&d, threads, &err);
    Py_END_ALLOW_THREADS
    if (status == TL_OK) Py_RETURN_NONE;
    tlpy_raise(PyModule_GetState(module), &err);
    return NULL;
}

/* Reads item i: `n` arrays of the same size, and the weight decay. */
static bool read_item(PyObject *items, Py_ssize_t i, int n, float **arrays, size_t *size,
                      double *decay) {
    PyObject *item = PyTuple_GetItem(items, i);
    if (!PyTuple_Check(item) || PyTuple_Size(item) != n + 1) {
        PyErr_Format(PyExc_ValueError, "items[%zd] must be a tuple of %d arrays and a number", i,
                     n);
        return false;
    }
    for (int j = 0; j < n; j++) {
        size_t count;
        arrays[j] = tlpy_array_data(PyTuple_GetItem(item, j), TLPY_F32, "an item", &count);
        if (arrays[j] == NULL) return false;
        if (j > 0 && count != *size) {
            PyErr_Format(PyExc_ValueError, "items[%zd]: array %d has %zu values; expected %zu", i,
                         j, count, *size);
            return false;
        }
        *size = count;
    }
    *decay = PyFloat_AsDouble(PyTuple_GetItem(item, n));
    return !(*decay == -1 && PyErr_Occurred());
}

PyDoc_STRVAR(
    adamw_doc,
    "adamw($module, /, items, *, rate=0.001, beta1=0.9, beta2=0.999, epsilon=1e-08, step=0,\n"
    "      scale=1.0, threads=1)\n"
    "--\n"
    "\n"
    "One step of AdamW, in place.\n"
    "\n"
    "Loshchilov and Hutter 2019 (arXiv:1711.05101), as in PyTorch.\n"
    "\n"
    "Parameters\n"
    "----------\n"
    "items : tuple of (weights, gradient, first moment, second moment, decay)\n"
    "    float32 arrays of one size, and the weight decay.\n"
    "rate, beta1, beta2, epsilon : float\n"
    "step : int\n"
    "    From 1.\n"
    "scale : float\n"
    "    Multiplies the gradients.\n"
    "threads : int\n");

static PyObject *adamw(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"items", "rate",  "beta1",   "beta2", "epsilon",
                            "step",  "scale", "threads", NULL};
    struct tl_adamw a = {.rate = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .scale = 1};
    struct tl_adamw_item *list;
    struct tl_error err;
    PyObject *items, *result = NULL;
    unsigned long long step = 0;
    int threads = 1, status = TL_OK;
    Py_ssize_t n;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!|$ddddKdi:adamw", names, &PyTuple_Type,
                                     &items, &a.rate, &a.beta1, &a.beta2, &a.epsilon, &step,
                                     &a.scale, &threads) ||
        !check_threads(threads)) {
        return NULL;
    }
    if (step < 1 || !(a.beta1 > 0 && a.beta1 < 1 && a.beta2 > 0 && a.beta2 < 1)) {
        PyErr_SetString(PyExc_ValueError,
                        "expected a step of at least 1, and beta1 and beta2 between 0 and 1");
        return NULL;
    }
    a.step = step;
    n = PyTuple_Size(items);
    list = PyMem_Calloc(n ? (size_t)n : 1, sizeof(*list));
    if (list == NULL) return PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < n; i++) {
        float *arrays[MOST_ARRAYS];
        if (!read_item(items, i, 4, arrays, &list[i].n, &list[i].decay)) goto done;
        list[i].w = arrays[0], list[i].g = arrays[1], list[i].m = arrays[2], list[i].v = arrays[3];
    }
    Py_BEGIN_ALLOW_THREADS
    status = tl_adamw_run(&a, list, (size_t)n, threads, &err);
    Py_END_ALLOW_THREADS
    if (status == TL_OK) {
        result = Py_NewRef(Py_None);
    } else {
        tlpy_raise(PyModule_GetState(module), &err);
    }
done:
    PyMem_Free(list);
    return result;
}

PyDoc_STRVAR(
    muon_doc,
    "muon($module, /, items, rows, *, rate=0.02, momentum=0.95, scale=1.0, threads=1)\n"
    "--\n"
    "\n"
    "One step of Muon, in place.\n"
    "\n"
    "Jordan et al. 2024 (kellerjordan.github.io/posts/muon), with Nesterov's momentum and\n"
    "five Newton-Schulz steps in float32.\n"
    "\n"
    "Parameters\n"
    "----------\n"
    "items : tuple of (weights, gradient, momentum, decay)\n"
    "    float32 matrices of one size, and the weight decay.\n"
    "rows : tuple of int\n"
    "    The number of rows of each matrix.\n"
    "rate, momentum : float\n"
    "scale : float\n"
    "    Multiplies the gradients.\n"
    "threads : int\n");

static PyObject *muon(PyObject *module, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"items", "rows", "rate", "momentum", "scale", "threads", NULL};
    struct tl_muon a = {.rate = 0.02, .momentum = 0.95, .scale = 1};
    struct tl_muon_item *list;
    struct tl_error err;
    const struct tl_kernels *k = tl_kernels_best(&err);
    PyObject *items, *rows, *result = NULL;
    int threads = 1, status = TL_OK;
    Py_ssize_t n;
    if (k == NULL) return tlpy_raise(PyModule_GetState(module), &err);
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!|$dddi:muon", names, &PyTuple_Type, &items,
                                     &PyTuple_Type, &rows, &a.rate, &a.momentum, &a.scale,
                                     &threads) ||
        !check_threads(threads)) {
        return NULL;
    }
    n = PyTuple_Size(items);
    if (PyTuple_Size(rows) != n) {
        PyErr_SetString(PyExc_ValueError, "items and rows differ in length");
        return NULL;
    }
    list = PyMem_Calloc(n ? (size_t)n : 1, sizeof(*list));
    if (list == NULL) return PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < n; i++) {
        const Py_ssize_t count = PyNumber_AsSsize_t(PyTuple_GetItem(rows, i), NULL);
        float *arrays[MOST_ARRAYS];
        size_t size = 0;
        if (count == -1 && PyErr_Occurred()) goto done;
        if (!read_item(items, i, 3, arrays, &size, &list[i].decay)) goto done;
        if (count < 1 || size == 0 || size % (size_t)count != 0) {
            PyErr_Format(PyExc_ValueError, "items[%zd]: %zu values cannot be %zd rows", i, size,
                         count);
            goto done;
        }
        list[i].w = arrays[0], list[i].g = arrays[1], list[i].m = arrays[2];
        list[i].rows = (size_t)count;
        list[i].cols = size / (size_t)count;
    }
    Py_BEGIN_ALLOW_THREADS
    status = tl_muon_run(k, &a, list, (size_t)n, threads, &err);
    Py_END_ALLOW_THREADS
    if (status == TL_OK) {
        result = Py_NewRef(Py_None);
    } else {
        tlpy_raise(PyModule_GetState(module), &err);
    }
done:
    PyMem_Free(list);
    return result;
}

PyMethodDef tlpy_training_methods[] = {
    {"cross_entropy", (PyCFunction)(void (*)(void))cross_entropy, METH_VARARGS | METH_KEYWORDS,
     loss_doc},
    {"dropout", (PyCFunction)(void (*)(void))dropout, METH_VARARGS | METH_KEYWORDS, dropout_doc},
    {"_product", (PyCFunction)(void (*)(void))product, METH_VARARGS | METH_KEYWORDS, product_doc},
    {"sum_squares", sum_squares, METH_O, squares_doc},
    {"adamw", (PyCFunction)(void (*)(void))adamw, METH_VARARGS | METH_KEYWORDS, adamw_doc},
    {"muon", (PyCFunction)(void (*)(void))muon, METH_VARARGS | METH_KEYWORDS, muon_doc},
    {NULL, NULL, 0, NULL},
};
