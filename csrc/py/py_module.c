/* py_module.c - tinyllm._core: module state, exceptions, and the functions that need no object. */
#include "py/py.h"

#include "base/block_cache.h"
#include "base/os.h"
#include "base/pool.h"
#include "py/py_automaton.h"
#include "py/py_encoder.h"
#include "py/py_gguf.h"
#include "py/py_model.h"
#include "py/py_weight.h"

#include <string.h>

/* Types of the module, one row each; the index is the type's place in tlpy_state.types. */
static PyType_Spec *const type_specs[] = {
    &tlpy_weight_spec,  &tlpy_gguf_file_spec, &tlpy_model_spec,     &tlpy_session_spec,
    &tlpy_encoder_spec, &tlpy_trie_spec,      &tlpy_automaton_spec, NULL,
};

PyTypeObject *tlpy_type(const tlpy_state *st, const PyType_Spec *spec) {
    size_t i = 0;
    while (type_specs[i] != spec) i++;
    return st->types[i];
}

tlpy_state *tlpy_state_of(PyObject *self) {
    PyObject *module = PyType_GetModuleByDef(Py_TYPE(self), &tlpy_module);
    return module != NULL ? PyModule_GetState(module) : NULL;
}

static bool set_attribute(PyObject *exception, const char *name, PyObject *value) {
    bool ok = value != NULL && PyObject_SetAttrString(exception, name, value) == 0;
    Py_XDECREF(value);
    return ok;
}

static PyObject *text_or_none(const char *text) {
    if (text[0] == 0) return Py_NewRef(Py_None);
    return PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "replace");
}

static void *raise_format_error(tlpy_state *st, const struct tl_error *err) {
    PyObject *text = PyUnicode_DecodeUTF8(err->text, (Py_ssize_t)strlen(err->text), "replace");
    PyObject *exception = text != NULL ? PyObject_CallOneArg(st->format_error, text) : NULL;
    if (exception != NULL && set_attribute(exception, "field", text_or_none(err->field)) &&
        set_attribute(exception, "value", text_or_none(err->value)) &&
        set_attribute(exception, "expected", text_or_none(err->expected)) &&
        set_attribute(exception, "offset",
                      err->offset == UINT64_MAX ? Py_NewRef(Py_None)
                                                : PyLong_FromUnsignedLongLong(err->offset))) {
        PyErr_SetObject(st->format_error, exception);
    }
    Py_XDECREF(exception);
    Py_XDECREF(text);
    return NULL;
}

void *tlpy_raise(tlpy_state *st, const struct tl_error *err) {
    switch (err->status) {
    case TL_ENOMEM:
        PyErr_SetString(PyExc_MemoryError, err->text);
        break;
    case TL_EIO:
        // OSError chooses its subclass (FileNotFoundError ...) by errno
        if (err->sys_errno != 0) {
            PyObject *args = Py_BuildValue("(is)", err->sys_errno, err->text);
            if (args != NULL) PyErr_SetObject(PyExc_OSError, args);
            Py_XDECREF(args);
        } else {
            PyErr_SetString(PyExc_OSError, err->text);
        }
        break;
    case TL_EFORMAT:
        return raise_format_error(st, err);
    case TL_EARG:
        PyErr_SetString(PyExc_ValueError, err->text);
        break;
    case TL_ENOSUP:
        PyErr_SetString(st->unsupported_error, err->text);
        break;
    case TL_ESTOP: // the callback has set its own exception
        if (!PyErr_Occurred()) PyErr_SetString(st->error, "stopped");
        break;
    default:
        PyErr_SetString(st->error, err->text);
    }
    return NULL;
}

PyDoc_STRVAR(cpu_count_doc, "cpu_count($module, /)\n"
                            "--\n"
                            "\n"
                            "Physical cores that this process may keep busy: affinity and control\n"
                            "groups are respected.\n");

static PyObject *cpu_count(PyObject *module, PyObject *ignored) {
    (void)module, (void)ignored;
    return PyLong_FromLong(tl_cpu_count(true));
}

PyDoc_STRVAR(memory_available_doc,
             "memory_available($module, /)\n"
             "--\n"
             "\n"
             "Bytes that this process may still take (control group included); 2**64 - 1 if\n"
             "unknown.\n");

static PyObject *memory_available(PyObject *module, PyObject *ignored) {
    (void)module, (void)ignored;
    return PyLong_FromUnsignedLongLong(tl_memory_available());
}

PyDoc_STRVAR(empty_doc,
             "empty(shape, /)\n"
             "--\n"
             "\n"
             "A float32 array, not initialized. Its memory goes to a bounded cache when the array\n"
             "is gone, from which the next array of about that size takes it.\n"
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
                                    "Bytes that `empty` keeps for its next arrays.\n");

static PyObject *block_cache_bytes(PyObject *module, PyObject *ignored) {
    (void)module, (void)ignored;
    return PyLong_FromSize_t(tl_block_cache_bytes());
}

static bool add_taps(PyObject *module) {
    PyObject *taps = tlpy_taps();
    const bool ok = taps != NULL && PyModule_AddObjectRef(module, "TAPS", taps) == 0;
    Py_XDECREF(taps);
    return ok;
}

static PyMethodDef methods[] = {
    {"cpu_count", cpu_count, METH_NOARGS, cpu_count_doc},
    {"empty", empty, METH_O, empty_doc},
    {"block_cache_bytes", block_cache_bytes, METH_NOARGS, block_cache_bytes_doc},
    {"memory_available", memory_available, METH_NOARGS, memory_available_doc},
    {"tensor_types", tlpy_tensor_types, METH_NOARGS,
     "tensor_types()\n--\n\n"
     "{name: (id, values per block, bytes per block, whether there is a formula)}"},
    {"metadata_types", tlpy_metadata_types, METH_NOARGS,
     "metadata_types()\n--\n\n{name: (id, bytes of a value; 0 for STRING and ARRAY)}"},
    {NULL, NULL, 0, NULL},
};

static int module_exec(PyObject *m) {
    tlpy_state *st = PyModule_GetState(m);
    PyObject *errors;

    if (tlpy_array_init() < 0) return -1;
    errors = PyImport_ImportModule("tinyllm.errors");
    if (errors == NULL) return -1;
    st->error = PyObject_GetAttrString(errors, "Error");
    st->format_error = PyObject_GetAttrString(errors, "FormatError");
    st->unsupported_error = PyObject_GetAttrString(errors, "UnsupportedError");
    Py_DECREF(errors);
    if (st->error == NULL || st->format_error == NULL || st->unsupported_error == NULL) return -1;

    if (PyModule_AddFunctions(m, tlpy_kernel_methods) < 0) return -1;
    if (PyModule_AddFunctions(m, tlpy_math_methods) < 0) return -1;
    if (!add_taps(m)) return -1;
    Py_AtExit(tl_pool_shutdown);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(type_specs) && type_specs[i] != NULL; i++) {
        st->types[i] = (PyTypeObject *)PyType_FromModuleAndSpec(m, type_specs[i], NULL);
        if (st->types[i] == NULL) return -1;
        st->n_types = (int)i + 1;
        if (PyModule_AddType(m, st->types[i]) < 0) return -1;
    }
    return 0;
}

static int module_traverse(PyObject *m, visitproc visit, void *arg) {
    tlpy_state *st = PyModule_GetState(m);
    Py_VISIT(st->error);
    Py_VISIT(st->format_error);
    Py_VISIT(st->unsupported_error);
    for (int i = 0; i < st->n_types; i++) Py_VISIT(st->types[i]);
    return 0;
}

static int module_clear(PyObject *m) {
    tlpy_state *st = PyModule_GetState(m);
    Py_CLEAR(st->error);
    Py_CLEAR(st->format_error);
    Py_CLEAR(st->unsupported_error);
    for (int i = 0; i < st->n_types; i++) Py_CLEAR(st->types[i]);
    st->n_types = 0;
    return 0;
}

static void module_free(void *m) {
    module_clear(m);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
#ifdef Py_mod_multiple_interpreters // 3.12; NumPy cannot either
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
