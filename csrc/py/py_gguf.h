/* py_gguf.h - tinyllm._core.GGUFFile, what tinyllm.GGUF is made of. */
#ifndef TLPY_GGUF_H
#define TLPY_GGUF_H

#include "py/py_state.h"

extern PyType_Spec tlpy_gguf_file_spec;

/* {name: (id, bytes of a value)} of the types of metadata */
PyObject *tlpy_metadata_types(PyObject *module, PyObject *ignored);

#endif
