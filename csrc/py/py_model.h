/* py_model.h - models for the other files of the binding. */
#ifndef TLPY_MODEL_H
#define TLPY_MODEL_H

#include "forward/plan.h"
#include "py/py_state.h"

extern PyType_Spec tlpy_model_spec;

/* The core's plan of a _core.Model. */
const struct tl_plan *tlpy_model_plan(PyObject *model);

/* Whether a part of one of the model's files was missing when it was read; OSError is set. */
bool tlpy_model_lost(PyObject *model);

#endif
