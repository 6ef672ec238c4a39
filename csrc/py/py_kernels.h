/* py_kernels.h - the functions of the module about kernels. */
#ifndef TLPY_KERNELS_H
#define TLPY_KERNELS_H

#include "py/py_state.h"

extern PyMethodDef tlpy_kernel_methods[];

#endif
