"""Regular languages of texts: intersections, complements, lengths and divisibility, as automata.

A language is a conjunction of conditions. The core (``csrc/text/language.c``) reads all of them at
once, one character at a time, and so finds the automaton of the texts under which they hold.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from .. import _core
from ..errors import UnsupportedError
from .automaton import build
from .expr import CLASSES, Alt, Chars, Expr, Machine, Packed, Repeat, Seq, Text

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

#: The largest number of states of an automaton.
MAX_STATES = 20_000
_MANY = 2**31 - 1  # no automaton counts this far


class Condition:
    """A condition on a text."""

    def row(self) -> tuple[int, bool, Expr | None, int, int, int, int]:
        """Return the condition as the core takes it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Matches(Condition):
    """A text of an expression without references, or, if `positive` is False, any other text."""

    expr: Expr
    positive: bool = True

    def row(self) -> tuple[int, bool, Expr | None, int, int, int, int]:
        """Return the condition as the core takes it."""
        return 0, self.positive, self.expr, 0, 0, 0, 0


@dataclass(frozen=True)
class Length(Condition):
    """A text of `low` to `high` characters; `high` None: without a limit."""

    low: int
    high: int | None

    def row(self) -> tuple[int, bool, Expr | None, int, int, int, int]:
        """Return the condition as the core takes it."""
        high = -1 if self.high is None else min(self.high, _MANY)
        return 1, True, None, min(self.low, _MANY), high, 0, 0


class Multiple(Condition):
    """A decimal number without an exponent that is (or is not) a multiple of a decimal number."""

    def __init__(self, of: Decimal, positive: bool = True) -> None:
        sign, number, exponent = of.as_tuple()
        self.places = max(-int(exponent), 0)
        self.modulus = int("".join(map(str, number))) * 10 ** max(int(exponent), 0)
        self.positive = positive
        if sign or not self.modulus or self.modulus * (self.places + 1) > MAX_STATES:
            raise UnsupportedError(f"multipleOf {of} needs too many states")

    def row(self) -> tuple[int, bool, Expr | None, int, int, int, int]:
        """Return the condition as the core takes it."""
        return 2, self.positive, None, 0, 0, self.modulus, self.places


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
    return partition(conditions, ()).get(())


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

    Raises
    ------
    tinyllm.UnsupportedError
        If it has too many states.
    """
    rows = [part.row() for part in (*conditions, *free)]
    ranges, machines = _core.find_language(rows, len(conditions), CLASSES, MAX_STATES)
    labels = [Chars(label) for label in ranges]
    return {
        tuple(bool(which >> i & 1) for i in range(len(free))): Packed(labels, states, table, ends)
        for which, states, table, ends in machines
        if states
    }


class _Reader:
    """Tests whole texts. An automaton grows while it reads, so threads take turns."""

    def __init__(self, expr: Expr) -> None:
        try:
            program = build({"root": expr})
        except UnicodeEncodeError:  # half of a pair of surrogates, which is in no text
            program = build({"root": intersection([Matches(expr)]) or Alt(())})
        self._automaton = _core.Automaton(program.array, program.root)
        self._lock = threading.Lock()

    def __call__(self, text: str) -> bool:
        data = text.encode(errors="surrogatepass")
        with self._lock:
            state = self._automaton.start
            for at in range(0, len(data), 256):
                state = self._automaton.advance(state, data[at : at + 256])
            return self._automaton.look(state)[0]


_reader = functools.lru_cache(maxsize=256)(_Reader)


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
    return _reader(expr)(text)


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
