/* py_encoder.h - the type _core.Encoder. */
#ifndef TLPY_ENCODER_H
#define TLPY_ENCODER_H

#include "py/py_state.h"

extern PyType_Spec tlpy_encoder_spec;

#endif
