/* py_grammar.h - the module's function build_grammar. */
#ifndef TLPY_GRAMMAR_H
#define TLPY_GRAMMAR_H

#include "py/py_state.h"

extern PyMethodDef tlpy_grammar_methods[];

#endif
