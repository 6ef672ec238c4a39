/* py_gguf.h - the type _core.GGUFFile, on which tinyllm.GGUF is built. */
#ifndef TLPY_GGUF_H
#define TLPY_GGUF_H

#include "py/py_state.h"

extern PyType_Spec tlpy_gguf_file_spec;

/* {name: (id, bytes of a value)} for the types of metadata. */
PyObject *tlpy_metadata_types(PyObject *module, PyObject *ignored);

#endif
