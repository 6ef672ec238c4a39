"""A readable matcher: the reference for `_core.Automaton`.

A state is a set of stacks. A stack holds what is still to be matched: a node, and below it the
nodes to return to, as nested pairs ``(node, (node, ... ()))``. The empty stack is the end of the
text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .automaton import BYTE, CALL, END, SPLIT, TOKEN, Program

__all__ = ["accept", "advance", "is_complete", "mask", "start"]

Stack: TypeAlias = Any  # () or (int, Stack)
State: TypeAlias = frozenset[Stack]


def _close(program: Program, stacks: Iterable[Stack]) -> State:
    """Return the stacks that are reachable without matching a byte."""
    seen: set[Stack] = set()
    waiting = list(stacks)
    while waiting:
        stack = waiting.pop()
        if stack in seen:
            continue
        seen.add(stack)
        if not stack:
            continue
        at, below = stack
        op, _, _, a, b = program.nodes[at]
        if op == SPLIT:
            waiting += [(a, below), (b, below)]
        elif op == CALL:
            waiting.append((a, below if b < 0 else (b, below)))
        elif op == END:
            waiting.append(below)
    return frozenset(s for s in seen if not s or program.nodes[s[0]][0] in (BYTE, TOKEN))


def start(program: Program) -> State:
    """Return the state before any text."""
    return _close(program, [(program.root, ())])


def advance(program: Program, state: State, data: bytes) -> State:
    """Return the state after more bytes; it is empty if they do not match."""
    for byte in data:
        onward = []
        for stack in state:
            if stack:
                op, low, high, a, _ = program.nodes[stack[0]]
                if op == BYTE and low <= byte <= high:
                    onward.append((a, stack[1]))
        state = _close(program, onward)
    return state


def accept(program: Program, state: State, token: int, piece: bytes) -> State:
    """Return the state after a token; `program.tokens` are ids."""
    onward = [
        (program.nodes[stack[0]][3], stack[1])
        for stack in state
        if stack and program.nodes[stack[0]][0] == TOKEN
        for _, negated, _, _, index in [program.nodes[stack[0]]]
        if (program.tokens[index] == token) != bool(negated)
    ]
    spelled = advance(program, state, piece) if piece else frozenset()
    return spelled | _close(program, onward)


def is_complete(state: State) -> bool:
    """Return whether the text may end here."""
    return () in state


def mask(program: Program, state: State, pieces: Sequence[bytes]) -> NDArray[np.bool_]:
    """Return which pieces may come next, (len(pieces),); an empty piece never may."""
    return np.array([bool(p) and bool(advance(program, state, p)) for p in pieces], np.bool_)
