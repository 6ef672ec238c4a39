/* py_backward.h - Model.backward. */
#ifndef TLPY_BACKWARD_H
#define TLPY_BACKWARD_H

#include "py/py_state.h"

extern const char tlpy_backward_doc[];

PyObject *tlpy_backward(PyObject *model, PyObject *args, PyObject *kwargs);

#endif
