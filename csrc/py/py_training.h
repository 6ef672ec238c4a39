/* py_training.h - the functions of the module that training uses. */
#ifndef TLPY_TRAINING_H
#define TLPY_TRAINING_H

#include "py/py_state.h"

extern PyMethodDef tlpy_training_methods[];

#endif
