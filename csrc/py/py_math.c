/* py_math.c - exp, log, softmax and sum with the same bits on every machine, for samplers. */
#include "py/py_math.h"

#include "base/fpu.h"
#include "base/math64.h"
#include "py/py_array.h"

/* Applies a function to n values; out has room for n. */
typedef void apply_fn(const double *x, size_t n, double *out);

static void apply_exp(const double *x, size_t n, double *out) {
    for (size_t i = 0; i < n; i++) out[i] = tl_exp(x[i]);
}

static void apply_log(const double *x, size_t n, double *out) {
    for (size_t i = 0; i < n; i++) out[i] = tl_log(x[i]);
}

static PyObject *apply(PyObject *arg, apply_fn *fn) {
    PyObject *x = tlpy_array_from(arg, TLPY_F64), *result = NULL;
    size_t n;
    const double *values;
    void *out;
    if (x == NULL) return NULL;
    values = tlpy_array_read(x, &n);
    result = tlpy_array_like(x, &out);
    if (result != NULL) {
        Py_BEGIN_ALLOW_THREADS
        const uint64_t fpu = tl_fpu_enter();
        fn(values, n, out);
        tl_fpu_leave(fpu);
        Py_END_ALLOW_THREADS
    }
    Py_DECREF(x);
    return result;
}

PyDoc_STRVAR(exp_doc,
             "exp($module, x, /)\n"
             "--\n"
             "\n"
             "The exponential of each value, with the same bits on every machine.\n"
             "\n"
             "NumPy's own `exp` differs in the last place between CPUs; samplers use this\n"
             "one, so that a seed gives the same text everywhere. Error below 1.01 ulp.\n"
             "\n"
             "Parameters\n"
             "----------\n"
             "x : array_like of float64\n"
             "\n"
             "Returns\n"
             "-------\n"
             "numpy.ndarray of float64, the shape of `x`\n"
             "\n"
             "Examples\n"
             "--------\n"
             ">>> from tinyllm import _core\n"
             ">>> _core.exp([0.0, 1.0])\n"
             "array([1.        , 2.71828183])\n");

static PyObject *math_exp(PyObject *module, PyObject *arg) {
    (void)module;
    return apply(arg, apply_exp);
}

PyDoc_STRVAR(log_doc, "log($module, x, /)\n"
                      "--\n"
                      "\n"
                      "The natural logarithm of each value, with the same bits on every machine.\n"
                      "\n"
                      "-inf for 0, NaN below. Error below 2 ulp.\n"
                      "\n"
                      "Parameters\n"
                      "----------\n"
                      "x : array_like of float64\n"
                      "\n"
                      "Returns\n"
                      "-------\n"
                      "numpy.ndarray of float64, the shape of `x`\n"
                      "\n"
                      "Examples\n"
                      "--------\n"
                      ">>> from tinyllm import _core\n"
                      ">>> _core.log([1.0, 2.0])\n"
                      "array([0.        , 0.69314718])\n");

static PyObject *math_log(PyObject *module, PyObject *arg) {
    (void)module;
    return apply(arg, apply_log);
}

PyDoc_STRVAR(softmax_doc, "softmax($module, x, /)\n"
                          "--\n"
                          "\n"
                          "exp(x - max(x)) / sum over all values, with the same bits everywhere.\n"
                          "\n"
                          "NaN everywhere if `x` holds NaN or +inf; 0 everywhere if all are -inf.\n"
                          "\n"
                          "Parameters\n"
                          "----------\n"
                          "x : array_like of float64\n"
                          "\n"
                          "Returns\n"
                          "-------\n"
                          "numpy.ndarray of float64, the shape of `x`\n"
                          "\n"
                          "Examples\n"
                          "--------\n"
                          ">>> from tinyllm import _core\n"
                          ">>> _core.softmax([0.0, 0.0])\n"
                          "array([0.5, 0.5])\n");

static PyObject *math_softmax(PyObject *module, PyObject *arg) {
    (void)module;
    return apply(arg, tl_softmax);
}

PyDoc_STRVAR(sum_doc, "sum($module, x, /)\n"
                      "--\n"
                      "\n"
                      "All values added one after another, with the same bits on every machine.\n"
                      "\n"
                      "Parameters\n"
                      "----------\n"
                      "x : array_like of float64\n"
                      "\n"
                      "Returns\n"
                      "-------\n"
                      "float\n"
                      "\n"
                      "Examples\n"
                      "--------\n"
                      ">>> from tinyllm import _core\n"
                      ">>> _core.sum([1.0, 2.5])\n"
                      "3.5\n");

static PyObject *math_sum(PyObject *module, PyObject *arg) {
    PyObject *x = tlpy_array_from(arg, TLPY_F64);
    uint64_t fpu;
    const double *values;
    double total;
    size_t n;
    (void)module;
    if (x == NULL) return NULL;
    values = tlpy_array_read(x, &n);
    fpu = tl_fpu_enter();
    total = tl_sum(values, n);
    tl_fpu_leave(fpu);
    Py_DECREF(x);
    return PyFloat_FromDouble(total);
}

PyMethodDef tlpy_math_methods[] = {
    {"exp", math_exp, METH_O, exp_doc},
    {"log", math_log, METH_O, log_doc},
    {"softmax", math_softmax, METH_O, softmax_doc},
    {"sum", math_sum, METH_O, sum_doc},
    {NULL, NULL, 0, NULL},
};
