/* py_module.c - tinyllm._core: the module, its types, and the functions that need no object. */
#include "base/block_cache.h"
#include "base/os.h"
#include "base/pool.h"
#include "py/py_array.h"
#include "py/py_automaton.h"
#include "py/py_device.h"
#include "py/py_encoder.h"
#include "py/py_file.h"
#include "py/py_gguf.h"
#include "py/py_grammar.h"
#include "py/py_kernels.h"
#include "py/py_lookup.h"
#include "py/py_math.h"
#include "py/py_model.h"
#include "py/py_pack.h"
#include "py/py_session.h"
#include "py/py_top.h"
#include "py/py_training.h"
#include "py/py_weight.h"

/* Types of the module, one row each. */
static PyType_Spec *const type_specs[] = {
    &tlpy_file_spec,    &tlpy_weight_spec,  &tlpy_gguf_file_spec, &tlpy_model_spec,
    &tlpy_session_spec, &tlpy_encoder_spec, &tlpy_trie_spec,      &tlpy_automaton_spec,
    &tlpy_lookup_spec,  &tlpy_device_spec,
};

PyDoc_STRVAR(cpu_count_doc, "cpu_count($module, /)\n"
                            "--\n"
                            "\n"
                            "Physical cores that this process may keep busy, within its affinity\n"
                            "mask and its control groups.\n");

static PyObject *cpu_count(PyObject *module, PyObject *ignored) {
    (void)module, (void)ignored;
    return PyLong_FromLong(tl_cpu_count(true));
}

PyDoc_STRVAR(memory_available_doc,
             "memory_available($module, /)\n"
             "--\n"
             "\n"
             "Bytes that this process may still allocate, within its control groups; 2**64 - 1\n"
             "if unknown.\n");

static PyObject *memory_available(PyObject *module, PyObject *ignored) {
    (void)module, (void)ignored;
    return PyLong_FromUnsignedLongLong(tl_memory_available());
}

PyDoc_STRVAR(empty_doc,
             "empty(shape, /)\n"
             "--\n"
             "\n"
             "A new float32 array, not initialized. When the array is freed, its memory goes to a\n"
             "bounded cache, from which later arrays of about the same size take it.\n"
             "\n"
             "Parameters\n"
             "----------\n"
             "shape : tuple of int\n"
             "    Up to 32 sizes.\n"
             "\n"
             "Raises\n"
             "------\n"
             "MemoryError\n"
             "    There is no memory of that size.\n"
             "\n"
             "Examples\n"
             "--------\n"
             ">>> from tinyllm import _core\n"
             ">>> _core.empty((2, 3)).shape\n"
             "(2, 3)\n");

static PyObject *empty(PyObject *module, PyObject *arg) {
    size_t shape[32];
    Py_ssize_t n;
    (void)module;
    if (!PyTuple_Check(arg) || PyTuple_Size(arg) > 32) {
        PyErr_SetString(PyExc_TypeError, "shape must be a tuple of up to 32 sizes");
        return NULL;
    }
    n = PyTuple_Size(arg);
    for (Py_ssize_t i = 0; i < n; i++) {
        const Py_ssize_t size = PyNumber_AsSsize_t(PyTuple_GetItem(arg, i), PyExc_OverflowError);
        if (size == -1 && PyErr_Occurred()) return NULL;
        if (size < 0) {
            PyErr_Format(PyExc_ValueError, "shape[%zd] is %zd; expected 0 or more", i, size);
            return NULL;
        }
        shape[i] = (size_t)size;
    }
    return tlpy_array_pooled((int)n, shape);
}

PyDoc_STRVAR(block_cache_bytes_doc, "block_cache_bytes($module, /)\n"
                                    "--\n"
                                    "\n"
                                    "Bytes in the cache from which `empty` takes memory.\n");

static PyObject *block_cache_bytes(PyObject *module, PyObject *ignored) {
    (void)module, (void)ignored;
    return PyLong_FromSize_t(tl_block_cache_bytes());
}

static PyMethodDef methods[] = {
    {"cpu_count", cpu_count, METH_NOARGS, cpu_count_doc},
    {"empty", empty, METH_O, empty_doc},
    {"block_cache_bytes", block_cache_bytes, METH_NOARGS, block_cache_bytes_doc},
    {"memory_available", memory_available, METH_NOARGS, memory_available_doc},
    {"tensor_types", tlpy_tensor_types, METH_NOARGS,
     "tensor_types()\n--\n\n"
     "{name: (id, values per block, bytes per block, whether it can be written)}"},
    {"metadata_types", tlpy_metadata_types, METH_NOARGS,
     "metadata_types()\n--\n\n{name: (id, bytes of a value; 0 for STRING and ARRAY)}"},
    {NULL, NULL, 0, NULL},
};

static int module_exec(PyObject *m) {
    tlpy_state *st = PyModule_GetState(m);
    if (tlpy_array_init() < 0 || tlpy_state_init(st) < 0) return -1;
    if (PyModule_AddFunctions(m, tlpy_kernel_methods) < 0) return -1;
    if (PyModule_AddFunctions(m, tlpy_device_methods) < 0) return -1;
    if (PyModule_AddFunctions(m, tlpy_math_methods) < 0) return -1;
    if (PyModule_AddFunctions(m, tlpy_top_methods) < 0) return -1;
    if (PyModule_AddFunctions(m, tlpy_pack_methods) < 0) return -1;
    if (PyModule_AddFunctions(m, tlpy_training_methods) < 0) return -1;
    if (PyModule_AddFunctions(m, tlpy_grammar_methods) < 0) return -1;
    Py_AtExit(tl_pool_shutdown);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(type_specs); i++) {
        if (tlpy_state_add_type(st, m, type_specs[i]) < 0) return -1;
    }
    return 0;
}

static int module_traverse(PyObject *m, visitproc visit, void *arg) {
    return tlpy_state_traverse(PyModule_GetState(m), visit, arg);
}

static int module_clear(PyObject *m) {
    tlpy_state_clear(PyModule_GetState(m));
    return 0;
}

static void module_free(void *m) {
    module_clear(m);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
#ifdef Py_mod_multiple_interpreters // 3.12; NumPy does not support them
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
#ifdef Py_mod_gil // 3.13; sessions carry busy flags, everything else is immutable
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

struct PyModuleDef tlpy_module = {
    PyModuleDef_HEAD_INIT,         .m_name = "tinyllm._core", .m_doc = "The C core of tinyllm.",
    .m_size = sizeof(tlpy_state),  .m_methods = methods,      .m_slots = slots,
    .m_traverse = module_traverse, .m_clear = module_clear,   .m_free = module_free,
};

PyMODINIT_FUNC PyInit__core(void);

PyMODINIT_FUNC PyInit__core(void) {
    return PyModuleDef_Init(&tlpy_module);
}
