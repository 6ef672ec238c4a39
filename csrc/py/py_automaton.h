/* py_automaton.h - the types _core.Trie and _core.Automaton. */
#ifndef TLPY_AUTOMATON_H
#define TLPY_AUTOMATON_H

#include "py/py_state.h"

extern PyType_Spec tlpy_trie_spec;
extern PyType_Spec tlpy_automaton_spec;

#endif
