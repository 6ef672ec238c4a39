"""Regular languages of texts: intersections, complements, lengths and divisibility, as automata.

A language is a conjunction of conditions. Each condition reads the text one character at a time
(`Condition`); the automaton of all of them is found by following them at once. Characters that no
condition tells apart form a class and are followed together.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TypeAlias

from ..errors import UnsupportedError
from .expr import Alt, Chars, Expr, Machine, Repeat, Seq, Text, alive

__all__ = [
    "MAX_STATES",
    "Condition",
    "Length",
    "Matches",
    "Multiple",
    "intersection",
    "lengths",
    "matches",
    "partition",
]

#: The largest number of states of an automaton, and of the positions of an expression.
MAX_STATES = 20_000
_MAX_POSITIONS = 100_000

State: TypeAlias = object


class Condition:
    """A condition on a text, read one character at a time. A state of None can never hold."""

    def alphabet(self) -> Iterable[Chars]:
        """Return the sets of characters that the condition tells apart."""
        return ()

    def start(self, classes: Classes) -> State:
        """Return the state before the text."""
        raise NotImplementedError

    def moves(self, state: State, classes: Classes) -> Mapping[int, State]:
        """Return the state after one character of each class; a class left out leads to None."""
        raise NotImplementedError

    def holds(self, state: State) -> bool:
        """Return whether the text may end in a state."""
        raise NotImplementedError


class Classes:
    """The characters, in classes that some sets of characters do not tell apart."""

    def __init__(self, sets: Iterable[Chars]) -> None:
        order = list(dict.fromkeys(sets))
        toggles: dict[int, int] = {0: 0}
        for i, chars in enumerate(order):
            for low, high in chars.ranges:
                toggles[low] = toggles.get(low, 0) ^ 1 << i
                toggles[high + 1] = toggles.get(high + 1, 0) ^ 1 << i
        points = sorted(p for p in toggles if p <= 0x10FFFF)
        found: dict[int, list[tuple[int, int]]] = {}
        signature = 0
        for point, following in zip(points, [*points[1:], 0x110000], strict=True):
            signature ^= toggles[point]
            found.setdefault(signature, []).append((point, following - 1))
        chars_of = {s: Chars.of(ranges) for s, ranges in found.items()}
        kept = [(s, chars) for s, chars in chars_of.items() if chars.ranges]
        self.chars = [chars for _, chars in kept]
        self._members = {
            chars: tuple(c for c, (s, _) in enumerate(kept) if s >> i & 1)
            for i, chars in enumerate(order)
        }
        self._joined: dict[tuple[int, ...], Chars] = {}

    def of(self, chars: Chars) -> tuple[int, ...]:
        """Return the classes of one of the sets."""
        return self._members[chars]

    def joined(self, classes: tuple[int, ...]) -> Chars:
        """Return the characters of several classes."""
        if classes not in self._joined:
            ranges = [r for c in classes for r in self.chars[c].ranges]
            self._joined[classes] = Chars.of(ranges)
        return self._joined[classes]


def _sets(expr: Expr) -> Iterator[Chars]:
    waiting: list[Expr] = [expr]
    while waiting:
        at = waiting.pop()
        if isinstance(at, Chars):
            yield at
        elif isinstance(at, Text):
            yield from map(Chars.among, dict.fromkeys(at.value))
        elif isinstance(at, Repeat):
            waiting.append(at.item)
        elif isinstance(at, Seq | Alt):
            waiting += at.items
        elif isinstance(at, Machine):
            waiting += [label for edges in at.edges for label, _ in edges]


class Matches(Condition):
    """A text of an expression without references, or, if `positive` is False, any other text."""

    def __init__(self, expr: Expr, positive: bool = True) -> None:
        self.expr = expr
        self.positive = positive
        self._classes: Classes | None = None

    def alphabet(self) -> Iterable[Chars]:
        """Return the sets of characters that the condition tells apart."""
        return _sets(self.expr)

    def start(self, classes: Classes) -> State:
        """Return the state before the text."""
        if self._classes is not classes:
            self._classes = classes
            self._nodes: list[tuple[tuple[int, ...], int] | list[int]] = [[]]  # 0: the end
            self._closures: dict[int, frozenset[int]] = {}
            self._moves: dict[State, dict[int, State]] = {}
            self._all = range(len(classes.chars))
            self._first = self._build(self.expr, 0)
        return self._closure(self._first)

    def holds(self, state: State) -> bool:
        """Return whether the text may end in a state."""
        return (0 in state) == self.positive if isinstance(state, frozenset) else False

    def moves(self, state: State, classes: Classes) -> Mapping[int, State]:
        """Return the state after one character of each class."""
        found = self._moves.get(state)
        if found is None:
            onward: dict[int, set[int]] = {}
            for index in state if isinstance(state, frozenset) else ():
                node = self._nodes[index]
                if isinstance(node, tuple):
                    for c in node[0]:
                        onward.setdefault(c, set()).update(self._closure(node[1]))
            found = {c: frozenset(s) for c, s in onward.items()}
            if not self.positive:
                found = {c: found.get(c, frozenset()) for c in self._all}
            self._moves[state] = found
        return found

    def _node(self, node: tuple[tuple[int, ...], int] | list[int]) -> int:
        if len(self._nodes) >= _MAX_POSITIONS:
            raise UnsupportedError("the pattern is too large to be combined with other conditions")
        self._nodes.append(node)
        return len(self._nodes) - 1

    def _build(self, expr: Expr, after: int) -> int:
        """Return the node where an expression starts that is followed by node `after`."""
        classes = self._classes
        if classes is None:
            return after
        if isinstance(expr, Text):
            for c in reversed(expr.value):
                after = self._node((classes.of(Chars.among(c)), after))
            return after
        if isinstance(expr, Chars):
            return self._node((classes.of(expr), after))
        if isinstance(expr, Seq):
            for item in reversed(expr.items):
                after = self._build(item, after)
            return after
        if isinstance(expr, Alt):
            return self._node([self._build(item, after) for item in expr.items])
        if isinstance(expr, Repeat):
            low, high = expr.low, expr.high
            if high is None:
                loop: list[int] = [after]
                after = self._node(loop)
                loop.append(self._build(expr.item, after))
            else:
                stop = after
                for _ in range(high - low):
                    after = self._node([self._build(expr.item, after), stop])
            for _ in range(low):
                after = self._build(expr.item, after)
            return after
        if isinstance(expr, Machine):
            states: list[list[int]] = [[] for _ in expr.edges]
            indices = [self._node(state) for state in states]
            for i, edges in enumerate(expr.edges):
                states[i] += [self._build(label, indices[target]) for label, target in edges]
                if i in expr.ends:
                    states[i].append(after)
            return indices[0]
        raise UnsupportedError(f"{expr!r} is not regular")

    def _closure(self, start: int) -> frozenset[int]:
        """Return the nodes that read a character, or end, and are reached without reading."""
        found = self._closures.get(start)
        if found is None:
            seen, waiting = {start}, [start]
            while waiting:
                node = self._nodes[waiting.pop()]
                if isinstance(node, list):
                    onward = [n for n in node if n not in seen]
                    seen.update(onward)
                    waiting += onward
            found = frozenset(i for i in seen if i == 0 or isinstance(self._nodes[i], tuple))
            self._closures[start] = found
        return found


class Length(Condition):
    """A text of `low` to `high` characters; `high` None: without a limit."""

    def __init__(self, low: int, high: int | None) -> None:
        self.low, self.high = low, high

    def start(self, classes: Classes) -> State:
        """Return the state before the text."""
        self._all = range(len(classes.chars))
        return 0

    def holds(self, state: State) -> bool:
        """Return whether the text may end in a state."""
        return isinstance(state, int) and state >= self.low

    def moves(self, state: State, classes: Classes) -> Mapping[int, State]:
        """Return the state after one character of each class."""
        count = state + 1 if isinstance(state, int) else 0
        if self.high is None:
            count = min(count, self.low)
        elif count > self.high:
            return {}
        return dict.fromkeys(self._all, count)


_DIGIT_SETS = [Chars.among(d) for d in "0123456789"]
_POINT, _MINUS = Chars.among("."), Chars.among("-")


class Multiple(Condition):
    """A decimal number without an exponent that is (or is not) a multiple of a decimal number."""

    def __init__(self, of: Decimal, positive: bool = True) -> None:
        sign, number, exponent = of.as_tuple()
        self.places = max(-int(exponent), 0)
        self.modulus = int("".join(map(str, number))) * 10 ** max(int(exponent), 0)
        self.positive = positive
        if sign or not self.modulus or self.modulus * (self.places + 1) > MAX_STATES:
            raise UnsupportedError(f"multipleOf {of} needs too many states")

    def alphabet(self) -> Iterable[Chars]:
        """Return the sets of characters that the condition tells apart."""
        return [*_DIGIT_SETS, _POINT, _MINUS]

    def start(self, classes: Classes) -> State:
        """Return the state before the text."""
        self._digits = [classes.of(chars)[0] for chars in _DIGIT_SETS]
        self._point, self._minus = classes.of(_POINT)[0], classes.of(_MINUS)[0]
        # the remainder (-1: never a multiple) and the digits after the point (-1: before it)
        return (0, -1)

    def holds(self, state: State) -> bool:
        """Return whether the text may end in a state."""
        if not isinstance(state, tuple):
            return False
        remainder, after = state
        rest = remainder * 10 ** (self.places - max(after, 0)) % self.modulus
        return bool(remainder >= 0 and rest == 0) == self.positive

    def moves(self, state: State, classes: Classes) -> Mapping[int, State]:
        """Return the state after one character of each class."""
        onward: dict[int, State] = {}
        if not isinstance(state, tuple):
            return onward
        remainder, after = state
        for digit, c in enumerate(self._digits):
            to = state
            if remainder >= 0 and after < self.places:
                to = ((remainder * 10 + digit) % self.modulus, after + (after >= 0))
            elif digit:
                to = (-1, after)
            onward[c] = to
        if after < 0:
            onward[self._point] = (remainder, 0)
            onward[self._minus] = state
        return onward


def _follow(
    conditions: Sequence[Condition], free: Sequence[Condition]
) -> tuple[list[dict[int, list[int]]], list[tuple[State, ...]], Classes]:
    """Return the edges (target to classes) and states of all conditions at once.

    `conditions` must be able to hold; `free` are only followed. The state of a free condition that
    can no longer hold is None.
    """
    parts = [*conditions, *free]
    classes = Classes(chars for part in parts for chars in part.alphabet())
    first = tuple(part.start(classes) for part in parts)
    index = {first: 0}
    states = [first]
    edges: list[dict[int, list[int]]] = []
    needed = len(conditions)
    every: Iterable[int] = range(len(classes.chars))
    for state in states:  # grows
        moves = [
            part.moves(s, classes) if s is not None else {}
            for part, s in zip(parts, state, strict=True)
        ]
        out: dict[int, list[int]] = {}
        here = min(moves[:needed], key=lambda m: len(m)).keys() if needed else every
        for c in here:
            target = tuple([m.get(c) for m in moves])
            if None in target[:needed]:
                continue
            at = index.get(target)
            if at is None:
                at = index[target] = len(states)
                if at >= MAX_STATES:
                    raise UnsupportedError(
                        f"the conditions on a text need more than {MAX_STATES:,} states"
                    )
                states.append(target)
            out.setdefault(at, []).append(c)
        edges.append(out)
    return edges, states, classes


def _machine(
    edges: list[dict[int, list[int]]], ends: Iterable[int], classes: Classes
) -> Machine | None:
    """Return the automaton of the states that lead to an end; None if the start does not."""
    live = alive(edges, ends)
    if 0 not in live:
        return None
    reached, order = {0}, [0]
    for i in order:  # grows
        new = [t for t in edges[i] if t in live and t not in reached]
        reached.update(new)
        order += new
    number = {i: n for n, i in enumerate(order)}
    return Machine(
        tuple(
            tuple(
                (classes.joined(tuple(sorted(cs))), number[target])
                for target, cs in edges[i].items()
                if target in live
            )
            for i in order
        ),
        frozenset(number[i] for i in set(ends) if i in number),
    )


def intersection(conditions: Sequence[Condition]) -> Machine | None:
    """Return the automaton of the texts under which all conditions hold.

    Parameters
    ----------
    conditions : sequence of Condition
        At least one.

    Returns
    -------
    Machine or None
        None if there is no such text.

    Raises
    ------
    tinyllm.UnsupportedError
        If it has too many states.
    """
    edges, states, classes = _follow(conditions, ())
    ends = [
        i
        for i, state in enumerate(states)
        if all(part.holds(s) for part, s in zip(conditions, state, strict=True))
    ]
    return _machine(edges, ends, classes)


def partition(
    conditions: Sequence[Condition], free: Sequence[Condition]
) -> dict[tuple[bool, ...], Machine]:
    """Return the texts under which all conditions hold, by which of `free` hold too.

    Parameters
    ----------
    conditions, free : sequence of Condition

    Returns
    -------
    dict
        From whether each of `free` holds to an automaton; combinations without a text are left out.
    """
    edges, states, classes = _follow(conditions, free)
    needed = len(conditions)
    groups: dict[tuple[bool, ...], list[int]] = {}
    for i, state in enumerate(states):
        if all(p.holds(s) for p, s in zip(conditions, state[:needed], strict=True)):
            which = tuple(p.holds(s) for p, s in zip(free, state[needed:], strict=True))
            groups.setdefault(which, []).append(i)
    found = {which: _machine(edges, ends, classes) for which, ends in groups.items()}
    return {which: machine for which, machine in found.items() if machine is not None}


@functools.lru_cache(maxsize=256)
def _reader(expr: Expr) -> tuple[Matches, Classes]:
    reader = Matches(expr)
    return reader, Classes(reader.alphabet())


def matches(expr: Expr, text: str) -> bool:
    """Return whether an expression without references matches a whole text.

    Parameters
    ----------
    expr : Expr
    text : str

    Returns
    -------
    bool
    """
    reader, classes = _reader(expr)
    state = reader.start(classes)
    for character in text:
        moves = reader.moves(state, classes)
        onward = [s for c, s in moves.items() if character in classes.chars[c]]
        if not onward:
            return False
        state = onward[0]
    return reader.holds(state)


def lengths(expr: Expr) -> tuple[int, int | None]:
    """Return limits of the length of the texts of an expression; None: no upper limit.

    The texts of an automaton may have any length, as far as this function knows.
    """
    if isinstance(expr, Text):
        return len(expr.value), len(expr.value)
    if isinstance(expr, Chars):
        return 1, 1
    if isinstance(expr, Repeat) and expr.high != 0:
        low, high = lengths(expr.item)
        unlimited = high is None or (expr.high is None and high > 0)
        return low * expr.low, None if unlimited else (high or 0) * (expr.high or 0)
    if isinstance(expr, Seq | Alt) and expr.items:
        parts = [lengths(item) for item in expr.items]
        lows, highs = [low for low, _ in parts], [high for _, high in parts]
        finite = [high for high in highs if high is not None]
        joined = sum if isinstance(expr, Seq) else max
        least = sum(lows) if isinstance(expr, Seq) else min(lows)
        return least, None if len(finite) < len(highs) else joined(finite)
    return 0, None if isinstance(expr, Machine) else 0
