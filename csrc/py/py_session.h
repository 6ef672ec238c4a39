/* py_session.h - sessions for the other files of the binding. */
#ifndef TLPY_SESSION_H
#define TLPY_SESSION_H

#include "forward/session.h"
#include "py/py_state.h"

extern PyType_Spec tlpy_session_spec;

/*
 * Takes a _core.Session of that model for a call; NULL with an exception when it is something
 * else, belongs to another model, or is in use. tlpy_session_leave gives it back.
 */
struct tl_session *tlpy_session_enter(PyObject *session, PyObject *model);
void tlpy_session_leave(PyObject *session);

#endif
