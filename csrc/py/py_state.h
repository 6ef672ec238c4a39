/*
 * py_state.h - the state of the module tinyllm._core: its types and its exceptions.
 *
 * Only csrc/py includes Python.h, and only py_array.c includes NumPy's headers.
 */
#ifndef TLPY_STATE_H
#define TLPY_STATE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "base/base.h"

#if PY_VERSION_HEX < 0x030b0000
#error "tinyllm needs CPython 3.11 or newer"
#endif

#define TLPY_MAX_TYPES 12

typedef struct {
    PyObject *error;             // tinyllm.errors.Error
    PyObject *format_error;      //
    PyObject *unsupported_error; //
    PyObject *device_error;      //
    PyTypeObject *types[TLPY_MAX_TYPES];
    const PyType_Spec *specs[TLPY_MAX_TYPES]; // what each type was created from
    int n_types;
} tlpy_state;

extern struct PyModuleDef tlpy_module; // py_module.c defines it

/* Finds the exceptions in tinyllm.errors; -1 with an exception set when that fails. */
int tlpy_state_init(tlpy_state *st);

/* Creates a type of the module; -1 with an exception set when that fails. */
int tlpy_state_add_type(tlpy_state *st, PyObject *module, PyType_Spec *spec);

int tlpy_state_traverse(tlpy_state *st, visitproc visit, void *arg);
void tlpy_state_clear(tlpy_state *st);

/* The type that was created from `spec`, which must be one of the module's. */
PyTypeObject *tlpy_type(const tlpy_state *st, const PyType_Spec *spec);

/* The state of the module that defines the type of `self`, or a base class of that type. */
tlpy_state *tlpy_state_of(PyObject *self);

/* Raises the exception that belongs to *err; always returns NULL. */
void *tlpy_raise(tlpy_state *st, const struct tl_error *err);

#endif
