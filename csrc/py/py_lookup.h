/* py_lookup.h - the type _core.Lookup. */
#ifndef TLPY_LOOKUP_H
#define TLPY_LOOKUP_H

#include "py/py_state.h"

extern PyType_Spec tlpy_lookup_spec;

#endif
