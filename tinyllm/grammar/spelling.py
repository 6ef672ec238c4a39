"""How JSON spells texts: as expressions of grammars."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Collection, Iterator

from .expr import ANY, Alt, Chars, Expr, Machine, Packed, Repeat, Seq, Text, digit_ranges

__all__ = ["PLAIN", "PLAIN_ASCII", "as_json", "characters", "other_names", "quoted"]

#: The characters that a JSON string may hold without an escape.
PLAIN = ANY - Chars.of([(0, 0x1F)]) - Chars.among('"\\')
_HEX = Chars.of([(0x30, 0x39), (0x41, 0x46), (0x61, 0x66)])
_SHORT = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 0x22: '\\"', 0x5C: "\\\\"}
_ASCII = Chars.of([(0, 0x7F)])
# written as they are in either form
_UNESCAPED = (PLAIN & _ASCII) - Chars.among("/")
#: A text as JSON, with the characters beyond ASCII as they are.
as_json = json.encoder.encode_basestring
_is_unescaped = re.compile(r"[ !#-.0-\[\]-\x7f]*").fullmatch


def _escapes(chars: Chars) -> list[Expr]:
    r"""Return all ways to write a set of characters as ``\uXXXX``, or as a pair of them."""
    pairs: list[list[tuple[int, int]]] = []  # ranges of 16-bit units, one or two in a row
    for low, high in chars.ranges:
        if low <= 0xFFFF:
            pairs.append([(low, min(high, 0xFFFF))])
        for first, last, from_, to in _surrogates(max(low, 0x10000), high):
            pairs.append([(first, last), (from_, to)])
    items: list[Expr] = []
    for units in pairs:
        parts = [Alt(tuple(_hexadecimal(low, high))) for low, high in units]
        items.append(Seq(tuple(Seq((Text("\\u"), part)) for part in parts)))
    return items


def _surrogates(low: int, high: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield ranges of high surrogates and of the low surrogates that may follow each of them."""
    if low > high:
        return
    first, last = (low - 0x10000) >> 10, (high - 0x10000) >> 10
    start, end = 0xDC00 | (low & 0x3FF), 0xDC00 | (high & 0x3FF)
    if first == last:
        yield 0xD800 | first, 0xD800 | last, start, end
        return
    if start > 0xDC00:
        yield 0xD800 | first, 0xD800 | first, start, 0xDFFF
        first += 1
    if end < 0xDFFF:
        yield 0xD800 | last, 0xD800 | last, 0xDC00, end
        last -= 1
    if first <= last:
        yield 0xD800 | first, 0xD800 | last, 0xDC00, 0xDFFF


def _hexadecimal(low: int, high: int) -> Iterator[Expr]:
    """Yield the numbers from low to high as four hexadecimal digits."""
    for digits in digit_ranges(low, high, 4, 4):
        yield Seq(tuple(_hex_digits(a, b) for a, b in digits))


def _hex_digits(low: int, high: int) -> Chars:
    digits = [f"{digit:x}" for digit in range(low, high + 1)]
    return Chars.among("".join(digits) + "".join(digits).upper())


@functools.lru_cache(maxsize=1024)
def _special(chars: Chars, loose: bool) -> Expr:
    """Return characters as escapes: in all ways, or in the shortest."""
    codes = [c for low, high in (chars - PLAIN).ranges for c in range(low, high + 1)]
    items: list[Expr] = [Text(_SHORT[c]) for c in codes if c in _SHORT]
    if loose:
        items += [Text("\\/")] if "/" in chars else []
        items += _escapes(chars - Chars.among("/"))
    else:
        items += [Text(f"\\u{c:04x}") for c in codes if c not in _SHORT]
    return Alt(tuple(items))


@functools.lru_cache(maxsize=4096)
def _spell_chars(chars: Chars, loose: bool) -> Expr:
    # one set has one object for its escapes, so the automaton builds them once
    escaped = chars - (_UNESCAPED if loose else PLAIN)
    parts = [chars & PLAIN & _ASCII, (chars & PLAIN) - _ASCII]
    items: list[Expr] = [_same(part) for part in parts if part.ranges]
    if escaped.ranges:
        items.append(_special(escaped, loose))
    return items[0] if len(items) == 1 else Alt(tuple(items))


@functools.lru_cache(maxsize=1024)
def _same(chars: Chars) -> Chars:
    """Return one object for equal sets."""
    return chars


_UNIT = Alt(  # not half of a pair of surrogates
    (
        Seq((_HEX - Chars.among("dD"), _HEX, _HEX, _HEX)),
        Seq((Chars.among("dD"), Chars.among("01234567"), _HEX, _HEX)),
    )
)
_ESCAPE = Seq((Text("\\"), Alt((Chars.among('"\\/bfnrt'), Seq((Text("u"), _UNIT))))))
_PAIR = Alt(tuple(_escapes(Chars.of([(0x10000, 0x10FFFF)]))))
#: The characters of ASCII that need no escape.
PLAIN_ASCII = PLAIN & _ASCII


def characters(loose: bool) -> tuple[Expr, Expr]:
    """Return one character of a string: those that are not among `PLAIN_ASCII`, and any.

    `loose`: also pairs of escapes for the characters above U+FFFF.
    """
    escapes = (_ESCAPE, _PAIR) if loose else (_ESCAPE,)
    return Alt((PLAIN - _ASCII, *escapes)), Alt((PLAIN, *escapes))


def _spelled(expr: Expr, loose: bool) -> Expr:
    if isinstance(expr, Text):
        if not loose:
            return Text(as_json(expr.value)[1:-1])
        if _is_unescaped(expr.value):
            return expr
        return Seq(tuple(_spell_chars(_one(c), True) for c in expr.value))
    if isinstance(expr, Chars):
        return _spell_chars(expr, loose)
    if isinstance(expr, Repeat):
        return Repeat(_spelled(expr.item, loose), expr.low, expr.high)
    if isinstance(expr, Seq):
        return Seq(tuple(_spelled(item, loose) for item in expr.items))
    if isinstance(expr, Alt):
        return Alt(tuple(_spelled(item, loose) for item in expr.items))
    if isinstance(expr, Packed):
        labels = [_spelled(label, loose) for label in expr.labels]
        return Packed(labels, expr.states, expr.table, expr.last)
    if isinstance(expr, Machine):
        return Machine(
            tuple(tuple((_spelled(e, loose), to) for e, to in edges) for edges in expr.edges),
            expr.ends,
        )
    return expr


def quoted(expr: Expr, loose: bool) -> Expr:
    r"""Return the texts of an expression as JSON strings.

    Parameters
    ----------
    expr : Expr
        Without references.
    loose : bool
        Whether characters beyond ASCII, and those that must be escaped, may be written in each way
        that JSON has (``é`` and ``\u00e9``). Otherwise each has one spelling.

    Returns
    -------
    Expr
    """
    return Seq((Text('"'), _spelled(expr, loose), Text('"')))


@functools.lru_cache(maxsize=1024)
def _one(character: str) -> Chars:
    return Chars.among(character)


@functools.lru_cache(maxsize=4096)
def _without(chars: Chars, others: str) -> Chars:
    return chars - Chars.among(others)


def other_names(names: Collection[str], among: Chars) -> Machine:
    """Return the automaton of the texts that are not among some names.

    Parameters
    ----------
    names : collection of str
    among : Chars
        The characters of the texts.

    Returns
    -------
    Machine
    """
    children: list[dict[str, int]] = [{}, {}]  # state 0 is the start; in state 1 the text differs
    taken = set()
    for name in names:
        if any(c not in among for c in name):
            continue
        at = 0
        for character in name:
            if character not in children[at]:
                children[at][character] = len(children)
                children.append({})
            at = children[at][character]
        taken.add(at)
    edges = []
    for onward in children:
        others = _without(among, "".join(onward)) if onward else among
        edges.append(((others, 1), *((_one(c), to) for c, to in onward.items())))
    return Machine(tuple(edges), frozenset(range(len(children))) - taken)
