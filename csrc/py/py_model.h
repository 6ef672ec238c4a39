/* py_model.h - what the files about models and sessions know of each other. */
#ifndef TLPY_MODEL_H
#define TLPY_MODEL_H

#include "model/model.h"
#include "py/py.h"

extern PyType_Spec tlpy_model_spec, tlpy_session_spec;

/* The core's model of a _core.Model. */
const struct tl_model *tlpy_model_get(PyObject *model);

/*
 * Takes a _core.Session of that model for a call; NULL with an exception when it is something
 * else, belongs to another model, or is in use. tlpy_session_leave gives it back.
 */
struct tl_session *tlpy_session_enter(PyObject *session, PyObject *model);
void tlpy_session_leave(PyObject *session);

/* The tuple _core.TAPS: (name, per layer, matrix, axes) in the order of enum tl_tap. */
PyObject *tlpy_taps(void);

#endif
