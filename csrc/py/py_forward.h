/* py_forward.h - the method Model.forward. */
#ifndef TLPY_FORWARD_H
#define TLPY_FORWARD_H

#include "py/py_state.h"

extern const char tlpy_forward_doc[];

PyObject *tlpy_forward(PyObject *model, PyObject *args, PyObject *kwargs);

#endif
