"""The expressions of grammars, and the checks that every grammar passes.

No expression is changed after it was made. The classes of which a schema makes many are not frozen
all the same, because frozen ones take twice the time to make.

A grammar is a dict from rule names to expressions over code points. `gbnf`, `regex` and `schema`
build the expressions; `automaton` compiles them to an automaton over bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ANY",
    "CLASSES",
    "Alt",
    "Chars",
    "Expr",
    "Machine",
    "Packed",
    "Ref",
    "Repeat",
    "Rules",
    "Seq",
    "Text",
    "Token",
    "alive",
    "check",
    "digit_ranges",
    "optional",
    "prune",
    "reachable",
    "to_gbnf",
]

_LAST = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)


@dataclass(unsafe_hash=True, slots=True)
class Text:
    """A literal text, which may be empty."""

    value: str


@dataclass(frozen=True)
class Chars:
    """One code point out of sorted ranges that do not touch and hold no surrogates."""

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> Chars:
        """Return the set of the code points in any ranges, ends included, without surrogates."""
        cut: list[tuple[int, int]] = []
        for low, high in ranges:
            if high < _SURROGATES[0] or low > _SURROGATES[1]:
                cut.append((low, high))
            else:
                cut += [(low, _SURROGATES[0] - 1), (_SURROGATES[1] + 1, high)]
        merged: list[tuple[int, int]] = []
        for low, high in sorted(pair for pair in cut if pair[0] <= pair[1]):
            if merged and low <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(merged[-1][1], high))
            else:
                merged.append((low, high))
        return cls(tuple(merged))

    @classmethod
    def among(cls, characters: str) -> Chars:
        """Return the set of some characters."""
        return cls.of((ord(c), ord(c)) for c in characters)

    def __invert__(self) -> Chars:
        gaps, at = [], 0
        for low, high in self.ranges:
            gaps.append((at, low - 1))
            at = high + 1
        return Chars.of([*gaps, (at, _LAST)])

    def __or__(self, other: Chars) -> Chars:
        return Chars.of(self.ranges + other.ranges)

    def __sub__(self, other: Chars) -> Chars:
        return ~(~self | other)

    def __and__(self, other: Chars) -> Chars:
        return ~(~self | ~other)

    def __contains__(self, character: str) -> bool:
        return any(low <= ord(character) <= high for low, high in self.ranges)


@dataclass(unsafe_hash=True, slots=True)
class Seq:
    """Several expressions, one after another."""

    items: tuple[Expr, ...]


@dataclass(unsafe_hash=True, slots=True)
class Alt:
    """One of several expressions."""

    items: tuple[Expr, ...]


@dataclass(unsafe_hash=True, slots=True)
class Repeat:
    """An expression `low` to `high` times; `high` None: without a limit."""

    item: Expr
    low: int
    high: int | None


@dataclass(unsafe_hash=True, slots=True)
class Ref:
    """A reference to another rule; `called`: the rule is not copied here, however small it is."""

    name: str
    called: bool = False


@dataclass(frozen=True, eq=False)
class Machine:
    """A finite automaton: for each state its edges, each an expression and the next state.

    State 0 is the start. The expressions of edges match at least one byte. In a plain automaton
    they hold no references, and every state leads to one of `ends`.
    """

    edges: tuple[tuple[tuple[Expr, int], ...], ...]
    ends: frozenset[int]
    plain: bool = True


class Packed(Machine):
    """A plain automaton with few labels and many edges, which are kept as arrays.

    Parameters
    ----------
    labels : sequence of Expr
    states : int
    table : numpy.ndarray of int32, shape (n, 3)
        State, label and next state of each edge, sorted by state.
    last : numpy.ndarray of int32
        The states where a text may end, sorted.
    """

    def __init__(
        self, labels: Iterable[Expr], states: int, table: NDArray[np.int32], last: NDArray[np.int32]
    ) -> None:
        vars(self).update(labels=tuple(labels), states=states, table=table, last=last, plain=True)

    labels: tuple[Expr, ...]
    states: int
    table: NDArray[np.int32]
    last: NDArray[np.int32]

    @functools.cached_property
    def edges(self) -> tuple[tuple[tuple[Expr, int], ...], ...]:
        """The edges of each state, for readers that are not in a hurry."""
        found: list[list[tuple[Expr, int]]] = [[] for _ in range(self.states)]
        for state, label, to in self.table.tolist():
            found[state].append((self.labels[label], to))
        return tuple(map(tuple, found))

    @functools.cached_property
    def ends(self) -> frozenset[int]:
        """The states where a text may end."""
        return frozenset(self.last.tolist())


@dataclass(frozen=True)
class Token:
    """One token of the vocabulary, by its text or its id; `negated`: any token but this one."""

    token: str | int
    negated: bool = False


Expr: TypeAlias = Text | Chars | Seq | Alt | Repeat | Ref | Machine | Token
Rules: TypeAlias = Mapping[str, Expr]

#: The classes of expressions, in the order that the core expects.
CLASSES = (Text, Chars, Seq, Alt, Repeat, Ref, Machine, Token, Packed)

#: Any code point.
ANY = ~Chars(())


def digit_ranges(low: int, high: int, bits: int, count: int) -> Iterator[list[tuple[int, int]]]:
    """Yield ranges of `count` digits, of `bits` bits each, that together are low to high."""
    for shift in range(bits, bits * count, bits):
        mask = (1 << shift) - 1
        if low & ~mask != high & ~mask:
            if low & mask:
                yield from digit_ranges(low, low | mask, bits, count)
                yield from digit_ranges((low | mask) + 1, high, bits, count)
                return
            if high & mask != mask:
                yield from digit_ranges(low, (high & ~mask) - 1, bits, count)
                yield from digit_ranges(high & ~mask, high, bits, count)
                return
    mask = (1 << bits) - 1
    shifts = range(bits * (count - 1), -1, -bits)
    yield [(low >> shift & mask, high >> shift & mask) for shift in shifts]


def optional(item: Expr) -> Repeat:
    """Return an expression that matches an item or nothing."""
    return Repeat(item, 0, 1)


def references(expr: Expr) -> Iterator[str]:
    """Yield the names of the rules that an expression refers to."""
    waiting = [expr]
    while waiting:
        at = waiting.pop()
        if isinstance(at, Ref):
            yield at.name
        elif isinstance(at, Repeat):
            if at.high != 0:
                waiting.append(at.item)
        elif isinstance(at, Seq | Alt):
            waiting += reversed(at.items)
        elif isinstance(at, Machine) and not at.plain:
            waiting += [label for edges in at.edges for label, _ in edges]


def alive(edges: Sequence[Iterable[int]], ends: Iterable[int]) -> set[int]:
    """Return the states of an automaton that lead to an end; `edges` are the next states of each.

    Parameters
    ----------
    edges : sequence of iterables of int
    ends : iterable of int

    Returns
    -------
    set of int
    """
    before: list[list[int]] = [[] for _ in edges]
    for i, out in enumerate(edges):
        for target in out:
            before[target].append(i)
    found = set(ends)
    waiting = list(found)
    while waiting:
        new = [i for i in before[waiting.pop()] if i not in found]
        found.update(new)
        waiting += new
    return found


def reachable(rules: Rules, root: str) -> dict[str, Expr]:
    """Return the rules that the root reaches, the root first.

    Raises ValueError if one of them is missing.
    """
    if root not in rules:
        raise ValueError(f"the grammar has no rule {root!r}; expected this rule as the start")
    found: dict[str, Expr] = {}
    waiting = [(root, root)]
    while waiting:
        user, name = waiting.pop()
        if name not in rules:
            raise ValueError(f"rule {user!r} refers to {name!r}, which is not defined")
        if name not in found:
            found[name] = rules[name]
            waiting += [(name, other) for other in references(rules[name])]
    return found


def check(rules: Rules, root: str) -> dict[str, Expr]:
    """Return the rules that the root reaches, after a check that they can be used.

    Parameters
    ----------
    rules : mapping of str to Expr
    root : str

    Returns
    -------
    dict
        The reachable rules, the root first.

    Raises
    ------
    ValueError
        If a rule is missing, is left-recursive, can never end, or matches no text.
    """
    found = reachable(rules, root)
    _check_left(found)
    _check_ends(found)
    return found


class _Solver:
    """Finds the expressions that match an empty text, or any text, in time with their size.

    Each expression is a part. A part holds once as many of the parts below it hold as it needs: all
    of a sequence, one of alternatives.
    """

    def __init__(self, rules: Rules, holds: str) -> None:
        self.any = holds == "ends"
        self.missing: list[int] = []
        self.above: list[list[int]] = []
        self.of_rule = {name: self.add(1) for name in rules}
        for name, expr in rules.items():
            self.add_expr(expr, self.of_rule[name])

    def add(self, needs: int, above: int | None = None) -> int:
        self.missing.append(needs)
        self.above.append([] if above is None else [above])
        return len(self.missing) - 1

    def add_expr(self, expr: Expr, above: int) -> None:
        """Add an expression and all that is in it."""
        if isinstance(expr, Ref):
            self.above[self.of_rule[expr.name]].append(above)
        elif isinstance(expr, Text):
            self.add(0 if self.any or not expr.value else 1, above)
        elif isinstance(expr, Chars):
            self.add(0 if self.any and expr.ranges else 1, above)
        elif isinstance(expr, Repeat):
            part = self.add(1 if expr.low else 0, above)
            if expr.low:
                self.add_expr(expr.item, part)
        elif isinstance(expr, Seq | Alt):
            part = self.add(len(expr.items) if isinstance(expr, Seq) else 1, above)
            for item in expr.items:
                self.add_expr(item, part)
        elif isinstance(expr, Token):
            self.add(0 if self.any else 1, above)
        elif expr.plain or not self.any:
            self.add(0 if self.any or 0 in expr.ends else 1, above)
        else:
            states = [self.add(0 if i in expr.ends else 1) for i in range(len(expr.edges))]
            self.above[states[0]].append(above)
            for state, edges in zip(states, expr.edges, strict=True):
                for label, to in edges:
                    edge = self.add(2, state)
                    self.above[states[to]].append(edge)
                    self.add_expr(label, edge)

    def solve(self) -> set[str]:
        """Return the names of the rules that hold."""
        waiting = [part for part, missing in enumerate(self.missing) if not missing]
        while waiting:
            for part in self.above[waiting.pop()]:
                self.missing[part] -= 1
                if not self.missing[part]:
                    waiting.append(part)
        return {name for name, part in self.of_rule.items() if self.missing[part] <= 0}


def _fixpoint(rules: Rules, holds: str) -> set[str]:
    """Return the rules that can match an empty text (`holds` "empty"), or any text ("ends")."""
    return _Solver(rules, holds).solve()


def _check_ends(rules: Rules) -> None:
    ends = _fixpoint(rules, "ends")
    endless = {name for name in rules if name not in ends}
    if not endless:
        return
    # name a rule of the cycle itself, not one that only refers to it
    path = [next(name for name in rules if name in endless)]
    seen = set(path)
    while True:
        onward = [name for name in references(rules[path[-1]]) if name in endless]
        if not onward:
            raise ValueError(f"rule {path[-1]!r} matches no text")
        if onward[0] in seen:
            raise ValueError(
                f"rule {onward[0]!r} can never end: every path leads back to it "
                f"({_way(path, onward[0])})"
            )
        path.append(onward[0])
        seen.add(onward[0])


def _way(path: list[str], name: str) -> str:
    """Return a cycle for messages; of a long one, its ends."""
    cycle = [*path[path.index(name) :], name]
    return " -> ".join(cycle if len(cycle) <= 20 else [*cycle[:10], "...", *cycle[-10:]])


def _check_left(rules: Rules) -> None:
    empty = _fixpoint(rules, "empty")

    def is_empty(expr: Expr) -> bool:
        if isinstance(expr, Text):
            return not expr.value
        if isinstance(expr, Seq):
            return all(map(is_empty, expr.items))
        if isinstance(expr, Alt):
            return any(map(is_empty, expr.items))
        if isinstance(expr, Repeat):
            return expr.low == 0 or is_empty(expr.item)
        if isinstance(expr, Machine):
            return 0 in expr.ends
        return isinstance(expr, Ref) and expr.name in empty

    def first(expr: Expr) -> Iterator[str]:
        if isinstance(expr, Ref):
            yield expr.name
        elif isinstance(expr, Repeat):
            if expr.high != 0:
                yield from first(expr.item)
        elif isinstance(expr, Alt):
            for item in expr.items:
                yield from first(item)
        elif isinstance(expr, Seq):
            for item in expr.items:
                yield from first(item)
                if not is_empty(item):
                    return
        elif isinstance(expr, Machine) and not expr.plain:
            for label, _ in expr.edges[0]:
                yield from first(label)

    done: set[str] = set()
    for start in rules:
        path, ways = [start], [first(rules[start])]
        on_path = {start}
        while path:
            name = next(ways[-1], None)
            if name is None:
                last = path.pop()
                done.add(last)
                on_path.remove(last)
                ways.pop()
            elif name in on_path:
                raise ValueError(
                    f"rule {name!r} is left-recursive ({_way(path, name)}): it can start with "
                    "itself; use a repetition, or put the recursion last"
                )
            elif name not in done:
                path.append(name)
                on_path.add(name)
                ways.append(first(rules[name]))


def prune(rules: Rules, ends: Set[str]) -> dict[str, Expr]:
    """Return the rules without the alternatives and optional parts that match no text.

    Parameters
    ----------
    rules : mapping of str to Expr
    ends : set of str
        The rules that match some text.

    Returns
    -------
    dict
        The rules that are left.
    """
    pruner = _Pruner(ends)
    left = {name: pruner.kept(expr) for name, expr in rules.items() if name in ends}
    return {name: expr for name, expr in left.items() if expr is not None}


class _Pruner:
    def __init__(self, ends: Set[str]) -> None:
        self.ends = ends
        self._known: dict[int, Expr | None] = {}  # by identity: a part often has many places

    def kept(self, expr: Expr) -> Expr | None:
        if isinstance(expr, Ref):
            return expr if expr.name in self.ends else None
        if isinstance(expr, Text) or (isinstance(expr, Machine) and expr.plain):
            return expr
        if id(expr) not in self._known:
            self._known[id(expr)] = self._pruned(expr)
        return self._known[id(expr)]

    def _pruned(self, expr: Expr) -> Expr | None:
        if isinstance(expr, Repeat):
            inner = self.kept(expr.item)
            if inner is None:
                return None if expr.low else Text("")
            return expr if inner is expr.item else Repeat(inner, expr.low, expr.high)
        if isinstance(expr, Seq | Alt):
            items = [self.kept(item) for item in expr.items]
            if all(new is old for new, old in zip(items, expr.items, strict=True)):
                return expr if expr.items or isinstance(expr, Seq) else None
            left = tuple(item for item in items if item is not None)
            if isinstance(expr, Seq):
                return Seq(left) if len(left) == len(items) else None
            return None if not left else left[0] if len(left) == 1 else Alt(left)
        if isinstance(expr, Machine):
            return self._kept_machine(expr)
        return None if isinstance(expr, Chars) and not expr.ranges else expr

    def _kept_machine(self, machine: Machine) -> Machine | None:
        edges: list[list[tuple[Expr, int]]] = []
        same = True
        for out in machine.edges:
            labels = [(self.kept(label), label, to) for label, to in out]
            same = same and all(new is old for new, old, _ in labels)
            edges.append([(new, to) for new, _, to in labels if new is not None])
        if same:
            return machine
        left = alive([[to for _, to in out] for out in edges], machine.ends)
        # states are not renumbered: those that lead nowhere lose their edges
        return (
            None
            if 0 not in left
            else Machine(
                tuple(tuple(e for e in out if e[1] in left) for out in edges), machine.ends, False
            )
        )


# ---- printing ----

_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\", '"': '\\"'}


def _spell(code: int, within: str) -> str:
    character = chr(code)
    if character in _ESCAPES and not (character == '"' and within == "]"):
        return _ESCAPES[character]
    if within == "]" and character in "[]":
        return "\\" + character
    if 32 <= code < 127 and not (within == "]" and character in "^-"):
        return character
    if code < 256:
        return f"\\x{code:02X}"
    if not character.isprintable() or code > 0xFFFF:
        return f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"
    return character


def _show(expr: Expr, tight: bool) -> str:
    if isinstance(expr, Text):
        return '"' + "".join(_spell(ord(c), '"') for c in expr.value) + '"'
    if isinstance(expr, Chars):
        if expr == ANY:
            return "."
        inverse = ~expr
        negated = len(inverse.ranges) < len(expr.ranges)
        parts = [
            _spell(low, "]") + ("" if low == high else "-" + _spell(high, "]"))
            for low, high in (inverse if negated else expr).ranges
        ]
        return f"[{'^' if negated else ''}{''.join(parts)}]"
    if isinstance(expr, Ref):
        return expr.name
    if isinstance(expr, Token):
        name = expr.token if isinstance(expr.token, str) else f"<[{expr.token}]>"
        return "!" * expr.negated + name
    if isinstance(expr, Repeat):
        ends = {(0, None): "*", (1, None): "+", (0, 1): "?"}
        high = "" if expr.high is None else expr.high
        count = f"{{{expr.low}}}" if expr.low == expr.high else f"{{{expr.low},{high}}}"
        inner = _show(expr.item, True)
        if isinstance(expr.item, Repeat):
            inner = f"({inner})"
        return inner + ends.get((expr.low, expr.high), count)
    if isinstance(expr, Machine) or not expr.items:
        return '""'  # an automaton is written as rules
    if len(expr.items) == 1:
        return _show(expr.items[0], tight)
    if isinstance(expr, Seq):
        text = " ".join(_show(item, True) for item in expr.items)
    else:
        text = " | ".join(_show(item, False) for item in expr.items)
    return f"({text})" if tight else text


def to_gbnf(rules: Rules) -> str:
    """Return rules as GBNF, one per line, with names that GBNF allows.

    Parameters
    ----------
    rules : mapping of str to Expr
        The root first; it is written as ``root``.

    Returns
    -------
    str
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    counts: dict[str, int] = {}
    for i, name in enumerate(rules):
        plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in name).strip("-") or "r"
        plain = "root" if i == 0 else plain
        chosen = plain
        while chosen in taken:
            counts[plain] = counts.get(plain, 1) + 1
            chosen = f"{plain}-{counts[plain]}"
        taken.add(chosen)
        names[name] = chosen

    states: dict[str, Expr] = {}

    def state_rules(machine: Machine) -> Ref:
        """Add a rule for each state of an automaton; return a reference to the first."""
        start = len(names) + len(states)
        states.update((f"state-{start + i}", Text("")) for i in range(len(machine.edges)))
        for i, edges in enumerate(machine.edges):
            items: list[Expr] = [
                Seq((renamed(label), Ref(f"state-{start + target}"))) for label, target in edges
            ]
            if i in machine.ends:
                items.append(Text(""))
            states[f"state-{start + i}"] = Alt(tuple(items))
        return Ref(f"state-{start}")

    def renamed(expr: Expr) -> Expr:
        if isinstance(expr, Ref):
            return Ref(names[expr.name])
        if isinstance(expr, Machine):
            return state_rules(expr)
        if isinstance(expr, Repeat):
            return Repeat(renamed(expr.item), expr.low, expr.high) if expr.high != 0 else Text("")
        if isinstance(expr, Seq):
            return Seq(tuple(map(renamed, expr.items)))
        if isinstance(expr, Alt):
            return Alt(tuple(map(renamed, expr.items)))
        return expr

    lines = [f"{names[name]} ::= {_show(renamed(e), False)}\n" for name, e in rules.items()]
    lines += [f"{name} ::= {_show(e, False)}\n" for name, e in states.items()]
    return "".join(lines)
