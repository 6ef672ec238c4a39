/* py_top.h - the module's function top_k. */
#ifndef TLPY_TOP_H
#define TLPY_TOP_H

#include "py/py_state.h"

extern PyMethodDef tlpy_top_methods[];

#endif
