/* py_pack.h - the module's functions pack and writable_types. */
#ifndef TLPY_PACK_H
#define TLPY_PACK_H

#include "py/py_state.h"

extern PyMethodDef tlpy_pack_methods[];

#endif
