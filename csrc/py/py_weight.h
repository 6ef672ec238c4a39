/* py_weight.h - Weight objects for the other files of the binding. */
#ifndef TLPY_WEIGHT_H
#define TLPY_WEIGHT_H

#include "files/gguf.h"
#include "kernels/kernels.h"
#include "py/py_state.h"

extern PyType_Spec tlpy_weight_spec;

/* True if `any` is a Weight. */
bool tlpy_weight_check(const tlpy_state *st, PyObject *any);

/*
 * The weight as a matrix: the last axis as columns, all others as rows. Valid and unchanged while
 * the Weight lives.
 */
const struct tl_matrix *tlpy_weight_matrix(PyObject *weight);

/* The shape in NumPy's order, and the number of axes, 0 to 4. */
const size_t *tlpy_weight_shape(PyObject *weight, int *ndim);

/* Raises OSError and returns -1 if a part of the weight's file was missing when it was read. */
int tlpy_weight_check_file(const tlpy_state *st, PyObject *weight);

/* A Weight over a tensor of a file whose bytes `owner` keeps alive. */
PyObject *tlpy_weight_new(tlpy_state *st, const struct tl_gguf_tensor *tensor, PyObject *owner);

/*
 * The bytes of a bytes-like object; returns a new reference to the object that keeps them alive: a
 * memoryview of a read-only buffer, or a copy of a writable one. NULL with an exception set.
 */
PyObject *tlpy_buffer_hold(PyObject *any, const uint8_t **data, size_t *size);

/* The row of a type by its name; NULL with an exception set. */
const struct tl_type_info *tlpy_type_named(PyObject *name);

/* {name: (id, values per block, bytes per block, whether there is a formula)} */
PyObject *tlpy_tensor_types(PyObject *module, PyObject *ignored);

#endif
