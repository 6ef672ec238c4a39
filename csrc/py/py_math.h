/* py_math.h - the module's functions exp, log, softmax and sum. */
#ifndef TLPY_MATH_H
#define TLPY_MATH_H

#include "py/py_state.h"

extern PyMethodDef tlpy_math_methods[];

#endif
