/* py_state.c - the module's types, and the exceptions that the core's errors become. */
#include "py/py_state.h"

#include "py/py_array.h"

#include <string.h>

int tlpy_state_init(tlpy_state *st) {
    PyObject *errors = PyImport_ImportModule("tinyllm.errors");
    if (errors == NULL) return -1;
    st->error = PyObject_GetAttrString(errors, "Error");
    st->format_error = PyObject_GetAttrString(errors, "FormatError");
    st->unsupported_error = PyObject_GetAttrString(errors, "UnsupportedError");
    st->device_error = PyObject_GetAttrString(errors, "DeviceError");
    Py_DECREF(errors);
    return st->error && st->format_error && st->unsupported_error && st->device_error ? 0 : -1;
}

int tlpy_state_add_type(tlpy_state *st, PyObject *module, PyType_Spec *spec) {
    PyObject *type;
    if (st->n_types == TLPY_MAX_TYPES) {
        PyErr_SetString(PyExc_SystemError, "tinyllm._core has more types than its state holds");
        return -1;
    }
    type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (type == NULL) return -1;
    st->types[st->n_types] = (PyTypeObject *)type;
    st->specs[st->n_types] = spec;
    st->n_types++;
    return PyModule_AddType(module, (PyTypeObject *)type);
}

int tlpy_state_traverse(tlpy_state *st, visitproc visit, void *arg) {
    Py_VISIT(st->error);
    Py_VISIT(st->format_error);
    Py_VISIT(st->unsupported_error);
    Py_VISIT(st->device_error);
    for (int i = 0; i < st->n_types; i++) Py_VISIT(st->types[i]);
    return 0;
}

void tlpy_state_clear(tlpy_state *st) {
    Py_CLEAR(st->error);
    Py_CLEAR(st->format_error);
    Py_CLEAR(st->unsupported_error);
    Py_CLEAR(st->device_error);
    for (int i = 0; i < st->n_types; i++) Py_CLEAR(st->types[i]);
    st->n_types = 0;
}

PyTypeObject *tlpy_type(const tlpy_state *st, const PyType_Spec *spec) {
    int i = 0;
    while (st->specs[i] != spec) i++;
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
    case TL_EDEVICE:
        PyErr_SetString(st->device_error, err->text);
        break;
    case TL_ESTOP: // the callback has set its own exception
        if (!PyErr_Occurred()) PyErr_SetString(st->error, "stopped");
        break;
    default:
        PyErr_SetString(st->error, err->text);
    }
    return NULL;
}
