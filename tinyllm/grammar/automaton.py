"""Compile rules over code points to a nondeterministic automaton over bytes, with calls.

A program is a list of nodes. Matching follows all paths at once. The C core does this fast
(`_core.Automaton`); `tinyllm.grammar.matcher` is the readable reference.

BYTE low high a
    Match a byte from low to high, then continue at node a.
SPLIT a b
    Continue at both node a and node b.
CALL a b
    Continue at node a; at its END, continue at node b. b is -1 if the call ends its rule.
END
    Return to the node that follows the call.
TOKEN negated 0 a b
    Match token b of `Program.tokens`, or, negated, any other token. It never matches bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..errors import UnsupportedError
from .expr import CLASSES, Rules

__all__ = [
    "BYTE",
    "CALL",
    "END",
    "MAX_NODES",
    "SPLIT",
    "TOKEN",
    "Program",
    "accepts",
    "advance",
    "build",
    "build_fine",
]

BYTE, SPLIT, CALL, END, TOKEN = range(5)
#: The largest number of nodes of a program.
MAX_NODES = 400_000

_Node: TypeAlias = tuple[int, int, int, int, int]  # op, low, high, a, b


@dataclass(eq=False)
class Program:
    """A compiled grammar: its nodes, and the node where it starts.

    Attributes
    ----------
    array : numpy.ndarray of int32, shape (n, 5)
        The nodes: op, low, high, a, b.
    root : int
    rules : list of str
    rule_of : numpy.ndarray of int32, shape (n,)
        The number of each node's rule, for messages.
    tokens : list of (str or int)
        The tokens that the grammar names.
    ends : set of str, optional
        The rules that match some text, if parts that match none were left out.
    """

    array: NDArray[np.int32]
    root: int
    rules: list[str]
    rule_of: NDArray[np.int32]
    tokens: list[str | int] = field(default_factory=list)
    ends: set[str] | None = None

    @functools.cached_property
    def nodes(self) -> list[_Node]:
        """The nodes as tuples, for the readable matcher."""
        return [(op, low, high, a, b) for op, low, high, a, b in self.array.tolist()]

    def owner(self, node: int) -> str:
        """Return the name of the rule of a node; of -1, that of the root."""
        return self.rules[int(self.rule_of[node if node >= 0 else self.root])]

    def with_tokens(self, ids: Sequence[int]) -> NDArray[np.int32]:
        """Return the nodes with the ids of the tokens that the grammar names."""
        if not self.tokens:
            return self.array
        array = self.array.copy()
        named = array[:, 0] == TOKEN
        array[named, 4] = np.asarray(ids, np.int32)[array[named, 4]]
        return array


def build(rules: Rules) -> Program:
    """Return the program of checked rules.

    Small rules are copied into their users, others are called: the core caches what it finds
    inside a rule for all its callers.

    Parameters
    ----------
    rules : dict of str to Expr
        As `tinyllm.grammar.expr.check` returns them, the root first.

    Returns
    -------
    Program

    Raises
    ------
    ValueError
        If it would have more than `MAX_NODES` nodes; the message names the rule.
    """
    program = _built(rules, False)
    if isinstance(program, set):
        raise RuntimeError("the core has refused rules without a check")
    return program


def build_fine(rules: Rules) -> Program | set[str]:
    """Return the program of rules without the parts that match no text.

    If the first rule matches none, or one is left-recursive, return the names of the rules that
    match some text. `tinyllm.grammar.expr.prune` and `check` do the rest.
    """
    return _built(rules, True)


def _built(rules: Rules, check: bool) -> Program | set[str]:
    built = _core.build_grammar(dict(rules), CLASSES, MAX_NODES, check)
    if isinstance(built, set):
        return built
    nodes, owners, root, tokens, ends = built
    return Program(nodes, root, list(rules), owners, tokens, ends)


def advance(automaton: _core.Automaton, state: int, data: bytes, program: Program) -> int:
    """Return the state after some bytes; an error message names the ambiguous rule."""
    for i, at in enumerate(range(0, len(data), 256)):
        try:
            state = automaton.advance(state, data[at : at + 256])
        except UnsupportedError as error:
            node = automaton.look(state)[1]
            rule = program.owner(node)
            raise UnsupportedError(f"{error}; near byte {256 * i}, in rule {rule!r}") from None
    return state


def accepts(program: Program, text: str | bytes) -> bool:
    """Return whether a grammar accepts a whole text.

    Parameters
    ----------
    program : Program
    text : str or bytes

    Returns
    -------
    bool
    """
    data = text.encode(errors="surrogatepass") if isinstance(text, str) else bytes(text)
    automaton = _core.Automaton(program.array, program.root)
    return automaton.look(advance(automaton, automaton.start, data, program))[0]
