/* py_file.h - the type _core.File: the bytes of a file, for the other files of the binding. */
#ifndef TLPY_FILE_H
#define TLPY_FILE_H

#include "py/py_state.h"

extern PyType_Spec tlpy_file_spec;

/* Opens a file; NULL with an exception set if that fails. `path` is a str. */
PyObject *tlpy_file_open(tlpy_state *st, PyObject *path, bool mapped, const uint8_t **data,
                         size_t *size);

/*
 * Raises OSError and returns -1 if `owner` is a File, or a memoryview of one, of which a part was
 * missing when it was read. Everything that was read from it since may be zeros.
 */
int tlpy_file_check(const tlpy_state *st, PyObject *owner);

/* tl_file_forget for bytes of such an owner. Nothing happens for other owners. */
void tlpy_file_forget(const tlpy_state *st, PyObject *owner, const uint8_t *data, size_t bytes);

#endif
