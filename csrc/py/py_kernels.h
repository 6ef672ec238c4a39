/* py_kernels.h - the module's functions for kernels. */
#ifndef TLPY_KERNELS_H
#define TLPY_KERNELS_H

#include "py/py_state.h"

extern PyMethodDef tlpy_kernel_methods[];

#endif
