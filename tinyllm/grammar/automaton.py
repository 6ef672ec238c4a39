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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .. import _core
from ..errors import UnsupportedError
from .expr import Alt, Chars, Expr, Machine, Ref, Repeat, Rules, Seq, Text, Token, alive, references

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
]

BYTE, SPLIT, CALL, END, TOKEN = range(5)
#: The largest number of nodes of a program.
MAX_NODES = 400_000
# Rules up to this size are inlined. The core caches matches inside a rule for all its callers, so
# larger rules are better, up to a point.
_INLINE = 64
# ... and inlined rules may refer to others this deep: building them takes Python's stack.
_INLINE_DEPTH = 20
# A repeated part is copied if the size of all copies is at most this; otherwise it is called.
_COPIES = 60_000

_Node = tuple[int, int, int, int, int]  # op, low, high, a, b


@dataclass
class Program:
    """A compiled grammar: its nodes, and the node where it starts.

    Attributes
    ----------
    nodes : list of (op, low, high, a, b)
    root : int
    owners : list of str
        The rule of each node, for messages.
    tokens : list of (str or int)
        The tokens that the grammar names.
    """

    nodes: list[_Node] = field(default_factory=list)
    root: int = 0
    owners: list[str] = field(default_factory=list)
    tokens: list[str | int] = field(default_factory=list)

    @functools.cached_property
    def array(self) -> NDArray[np.int32]:
        """The nodes as the core takes them, (n, 5); cached, so the program must be complete."""
        return np.asarray(self.nodes, np.int32)

    def with_tokens(self, ids: Sequence[int]) -> NDArray[np.int32]:
        """Return the nodes with the ids of the tokens that the grammar names."""
        if not self.tokens:
            return self.array
        array = self.array.copy()
        named = array[:, 0] == TOKEN
        array[named, 4] = np.asarray(ids, np.int32)[array[named, 4]]
        return array


class _Builder:
    """Builds nodes from the end: each part is given the node that follows it."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.program = Program()
        self.known: dict[_Node, int] = {}
        self.entries: dict[str, int] = {}
        self.owner = next(iter(rules))
        self.hoisted: dict[Expr, str] = {}
        self.bodies: dict[str, tuple[Expr, str]] = {}
        self.patches: list[tuple[int, str]] = []
        self.tokens: dict[str | int, int] = {}
        #: The size of an expression, by identity.
        self.measured: dict[int, int] = {}
        #: The start of an expression (by identity) before a node: built once.
        self.built: dict[tuple[int, int], int] = {}
        #: Size of each rule that is inlined; None for rules that are called.
        self.sizes: dict[str, int | None] = dict.fromkeys(rules)
        depths: dict[str, int] = {}
        for name in _not_recursive(rules):
            size = self.size(rules[name])
            inner = [depths[n] for n in references(rules[name]) if self.sizes[n] is not None]
            depths[name] = 1 + max(inner, default=0)
            if size <= _INLINE and depths[name] <= _INLINE_DEPTH:
                self.sizes[name] = size
        self.end = self.node((END, 0, 0, 0, 0))

    def node(self, node: _Node, shared: bool = True) -> int:
        if shared and node in self.known:
            return self.known[node]
        if len(self.program.nodes) >= MAX_NODES:  # here, because a call for each node takes long
            self.check_room(1)
        self.program.nodes.append(node)
        self.program.owners.append(self.owner)
        index = len(self.program.nodes) - 1
        if shared:
            self.known[node] = index
        return index

    def split(self, starts: Sequence[int]) -> int:
        unique = list(dict.fromkeys(starts))
        at = unique[-1]
        for start in reversed(unique[:-1]):
            at = self.node((SPLIT, 0, 0, start, at))
        return at

    # ---- how large an expression becomes ----

    def size(self, expr: Expr) -> int:
        """Return about how many nodes an expression becomes."""
        if isinstance(expr, Text | Ref):
            return self.size_of(expr)
        found = self.measured.get(id(expr))
        if found is None:
            found = self.measured[id(expr)] = self.size_of(expr)
        return found

    def size_of(self, expr: Expr) -> int:
        if isinstance(expr, Text):
            return len(expr.value.encode())
        if isinstance(expr, Chars):
            return sum(1 if high < 0x80 else 6 for _, high in expr.ranges)
        if isinstance(expr, Repeat):
            if expr.high == 0:
                return 0
            inner = self.size(expr.item)
            return (inner + 1) * max(expr.low, expr.high or 0, 1)
        if isinstance(expr, Ref):
            return 1 if expr.called else self.sizes[expr.name] or 1
        if isinstance(expr, Machine):
            labels = [label for edges in expr.edges for label, _ in edges]
            return len(expr.edges) + sum(map(self.size, labels))
        if isinstance(expr, Token):
            return 1
        return sum(self.size(item) + 1 for item in expr.items)

    # ---- building ----

    def build(self, expr: Expr, after: int) -> int:
        """Return the node where an expression starts that is followed by node `after`."""
        if isinstance(expr, Text | Ref):
            return self.nodes_of(expr, after)
        key = (id(expr), after)
        found = self.built.get(key)
        if found is None:
            found = self.built[key] = self.nodes_of(expr, after)
        return found

    def nodes_of(self, expr: Expr, after: int) -> int:
        if isinstance(expr, Text):
            for byte in reversed(expr.value.encode()):
                after = self.node((BYTE, byte, byte, after, 0))
            return after
        if isinstance(expr, Chars):
            return self.chars(expr, after)
        if isinstance(expr, Seq):
            for item in reversed(expr.items):
                after = self.build(item, after)
            return after
        if isinstance(expr, Alt):
            return self.alternatives(expr.items, after)
        if isinstance(expr, Repeat):
            return self.repeat(expr, after)
        if isinstance(expr, Machine):
            return self.machine(expr, after)
        if isinstance(expr, Token):
            index = self.tokens.setdefault(expr.token, len(self.tokens))
            return self.node((TOKEN, int(expr.negated), 0, after, index))
        if self.sizes[expr.name] is not None and not expr.called:
            owner, self.owner = self.owner, expr.name
            start = self.build(self.rules[expr.name], after)
            self.owner = owner
            return start
        return self.call(expr.name, after)

    def call(self, name: str, after: int) -> int:
        last = -1 if after == self.end else after
        index = self.node((CALL, 0, 0, -1, last), shared=False)
        self.patches.append((index, name))
        return index

    def chars(self, chars: Chars, after: int) -> int:
        starts = []
        for sequence in chars.utf8:
            at = after
            for first, last in reversed(sequence):
                at = self.node((BYTE, first, last, at, 0))
            starts.append(at)
        return self.split(starts)

    def alternatives(self, items: Sequence[Expr], after: int) -> int:
        """Return the start of alternatives; texts with a common prefix share its nodes (a trie)."""
        texts = [item.value.encode() for item in items if isinstance(item, Text)]
        starts = [self.build(item, after) for item in items if not isinstance(item, Text)]
        if texts:
            starts.append(self.trie(sorted(set(texts)), after))
        return self.split(starts)

    def trie(self, texts: list[bytes], after: int) -> int:
        # open_[depth]: the branches after `depth` bytes of the last text; the deepest closes first
        def close(depth: int, byte: int) -> None:
            start = self.split(open_.pop())
            open_[depth].append(self.node((BYTE, byte, byte, start, 0)))

        open_: list[list[int]] = [[]]
        last = b""
        for text in texts:
            shared = 0
            while shared < min(len(last), len(text)) and last[shared] == text[shared]:
                shared += 1
            for depth in range(len(last) - 1, shared - 1, -1):
                close(depth, last[depth])
            open_ += [[] for _ in text[shared:]]
            open_[-1].append(after)
            last = text
        for depth in range(len(last) - 1, -1, -1):
            close(depth, last[depth])
        return self.split(open_[0])

    def repeat(self, expr: Repeat, after: int) -> int:
        item, low, high = expr.item, expr.low, expr.high
        if high == 0:
            return after
        copies = max(low, high or 0)
        if copies > 1 and copies * self.size(item) > _COPIES:
            name = self.hoisted.setdefault(item, f"{self.owner} (repeated part)")
            if name in self.bodies and self.bodies[name][0] != item:
                name = self.hoisted[item] = f"{name} {len(self.bodies)}"
            self.bodies[name] = (item, self.owner)
            item = Ref(name)
            self.sizes[name] = None
        if high is None:
            loop = self.node((SPLIT, 0, 0, -1, after), shared=False)
            body = self.build(item, loop)
            self.program.nodes[loop] = (SPLIT, 0, 0, body, after)
            after, low = (body, low - 1) if low else (loop, 0)
        else:
            stop = after
            after = self.copies(
                lambda at: self.split([self.build(item, at), stop]), high - low, after
            )
        return self.copies(lambda at: self.build(item, at), low, after)

    def copies(self, build: Callable[[int], int], count: int, after: int) -> int:
        """Return the start of `count` copies of a part, one after another, before a node.

        `build` makes a copy before a node. From the third on, the nodes of the second are moved.
        """
        if count < 4:
            for _ in range(count):
                after = build(after)
            return after
        before = build(after)
        nodes, owners, first = self.program.nodes, self.program.owners, len(self.program.nodes)
        patched, known, built = len(self.patches), self.known, self.built
        self.known, self.built = {}, {}  # so that all nodes of the second copy are new
        start = build(before)
        self.known, self.built = known, built
        step = len(nodes) - first
        if not step:  # the part is empty
            return start
        second, patches = nodes[first:], self.patches[patched:]
        self.check_room((count - 2) * step)
        for by in range(step, (count - 1) * step, step):
            onward = start + by - step
            for op, low, high, a, b in second:
                a = a + by if a >= first else onward if a == before else a
                if op == SPLIT or op == CALL:
                    b = b + by if b >= first else onward if b == before else b
                nodes.append((op, low, high, a, b))
            owners += owners[first : first + step]
            self.patches += [(index + by, name) for index, name in patches]
        return start + (count - 2) * step

    def check_room(self, more: int) -> None:
        if len(self.program.nodes) + more > MAX_NODES:
            raise ValueError(
                f"the grammar is too large: more than {MAX_NODES:,} states, reached in rule "
                f"{self.owner!r}; use smaller repetitions"
            )

    def machine(self, machine: Machine, after: int) -> int:
        # a node for each state, filled in once the nodes of all states are known
        live = alive([[to for _, to in out] for out in machine.edges], machine.ends)
        states = [self.node((SPLIT, 0, 0, -1, -1), shared=False) for _ in machine.edges]
        for i, edges in enumerate(machine.edges):
            starts = [self.build(label, states[to]) for label, to in edges if to in live]
            if i in machine.ends:
                starts.append(after)
            if i not in live:
                starts = [states[i]]  # no edge leads here
            rest = self.split(starts[1:] or starts)
            self.program.nodes[states[i]] = (SPLIT, 0, 0, starts[0], rest)
        return states[0]

    def run(self) -> Program:
        root = next(iter(self.rules))
        self.entry(root)
        done = 0
        while done < len(self.patches):
            index, name = self.patches[done]
            op, low, high, _, after = self.program.nodes[index]
            self.program.nodes[index] = (op, low, high, self.entry(name), after)
            done += 1
        self.program.root = self.entries[root]
        self.program.tokens = list(self.tokens)
        return self.program

    def entry(self, name: str) -> int:
        if name not in self.entries:
            expr, self.owner = self.bodies.get(name) or (self.rules[name], name)
            self.entries[name] = self.build(expr, self.end)
        return self.entries[name]


def _not_recursive(rules: Rules) -> list[str]:
    """Return the rules that reach no recursion, each after the rules that it refers to."""
    users: dict[str, set[str]] = {name: set() for name in rules}
    waiting_for = {}
    for name, expr in rules.items():
        named = set(references(expr))
        waiting_for[name] = len(named)
        for other in named:
            users[other].add(name)
    plain = [name for name, count in waiting_for.items() if not count]
    for name in plain:
        for user in users[name]:
            waiting_for[user] -= 1
            if not waiting_for[user]:
                plain.append(user)
    return plain


def build(rules: Rules) -> Program:
    """Return the program of checked rules.

    Parameters
    ----------
    rules : mapping of str to Expr
        As `tinyllm.grammar.expr.check` returns them, the root first.

    Returns
    -------
    Program

    Raises
    ------
    ValueError
        If it would have more than `MAX_NODES` nodes; the message names the rule.
    """
    return _Builder(rules).run()


def advance(automaton: _core.Automaton, state: int, data: bytes, program: Program) -> int:
    """Return the state after some bytes; an error message names the ambiguous rule."""
    for i, at in enumerate(range(0, len(data), 256)):
        try:
            state = automaton.advance(state, data[at : at + 256])
        except UnsupportedError as error:
            node = automaton.look(state)[1]
            rule = program.owners[node] if node >= 0 else program.owners[program.root]
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
