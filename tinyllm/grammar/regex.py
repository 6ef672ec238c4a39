r"""Convert regular expressions to expressions of grammars.

Supported: literals, ``.`` (not a line end), sets ``[a-z]`` ``[^...]``, ``\d \w \s \D \W \S``,
escapes (``\n \t \r \f \v \0 \xHH \uHHHH \u{H...}``, ``\cX``, a backslash before punctuation),
``|``, groups ``( )`` ``(?: )`` ``(?<name> )`` ``(?P<name> )``, ``* + ? {m} {m,} {m,n}`` and their
lazy forms (which match the same texts), ``^`` and ``$`` at the ends of an alternative.
Not supported: look-around, backreferences, ``\b``, flags.

ECMAScript and Python disagree about some classes (``\w`` and accented letters). Here a class has
only the characters that belong to it in both, so that a generated text matches in both.
"""

from __future__ import annotations

import functools
import re
import unicodedata

from ..errors import UnsupportedError
from .expr import ANY, Alt, Chars, Expr, Repeat, Seq, Text
from .gbnf import MAX_DEPTH, MAX_REPEAT

__all__ = ["parse"]

_DIGIT = Chars.of([(0x30, 0x39)])
_WORD = Chars.among("_") | Chars.of([(0x30, 0x39), (0x41, 0x5A), (0x61, 0x7A)])
_SPACE = Chars.among(" \t\n\r\f\v")
_LINE_ENDS = Chars.among("\n\r\u2028\u2029")
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "0": "\0", "a": "\a"}
_COUNTS = re.compile(r"\{(\d+)(,(\d*))?\}")
_HEX = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|u\{([0-9A-Fa-f]{1,6})\}")
_GROUP = re.compile(r"\((?:\?(?::|P?<(?![=!])[^>)]*>))?")


@functools.cache
def _complement(letter: str) -> Chars:
    """Return the characters that are outside a class in both ECMAScript and Python."""

    def inside(c: str) -> bool:
        if letter == "D":
            return unicodedata.category(c) == "Nd"
        if letter == "W":
            return c.isalnum() or c == "_"
        return c.isspace() or c == "\ufeff"

    return ~Chars.of((code, code) for code in range(0x110000) if inside(chr(code)))


_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _SPACE}


class _Parser:
    def __init__(self, pattern: str, name: str) -> None:
        self.text = pattern
        self.name = name
        self.at = 0

    def fail(self, what: str, at: int | None = None) -> ValueError:
        at = self.at if at is None else at
        return ValueError(f"{self.name} {self.text!r}, at character {at}: {what}")

    def unsupported(self, what: str) -> UnsupportedError:
        return UnsupportedError(
            f"{self.name} {self.text!r}, at character {self.at}: {what} is not supported"
        )

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def parse(self, search: bool) -> Expr:
        around = Repeat(ANY, 0, None)
        items: list[Expr] = []
        while True:
            start = self.at
            parts, anchored = self.sequence(0)
            starts = self.text.startswith("^", start)
            if search:
                parts = [*([] if starts else [around]), *parts, *([] if anchored else [around])]
            items.append(_seq(parts))
            if self.peek() != "|":
                break
            self.at += 1
        if self.at < len(self.text):
            raise self.fail("this ')' has no '('")
        return items[0] if len(items) == 1 else Alt(tuple(items))

    def alternatives(self, depth: int) -> Expr:
        if depth > MAX_DEPTH:
            raise self.fail(f"groups are nested more than {MAX_DEPTH} deep")
        items = [_seq(self.sequence(depth)[0])]
        while self.peek() == "|":
            self.at += 1
            items.append(_seq(self.sequence(depth)[0]))
        return items[0] if len(items) == 1 else Alt(tuple(items))

    def sequence(self, depth: int) -> tuple[list[Expr], bool]:
        """Return the items up to ``|``, ``)`` or the end, and whether ``$`` ends them."""
        parts: list[Expr] = []
        if depth == 0 and self.peek() == "^":
            self.at += 1
        while self.at < len(self.text) and self.peek() not in "|)":
            if self.peek() in "^$":
                rest = self.text[self.at + 1 : self.at + 2]
                if depth == 0 and self.peek() == "$" and rest in ("", "|"):
                    self.at += 1
                    return parts, True
                raise self.unsupported(f"{self.peek()!r} in the middle")
            item = self.item(depth)
            counts = self.counts()
            if counts is not None:
                item = Repeat(item, *counts)
                if self.counts() is not None:
                    raise self.fail("nothing to repeat", self.at - 1)
            parts.append(item)
        return parts, False

    def counts(self) -> tuple[int, int | None] | None:
        found = _COUNTS.match(self.text, self.at)
        mark = self.peek()
        low, high = 0, None
        if found:
            low = int(found[1][:9])
            high = low if found[2] is None else int(found[3][:9]) if found[3] else None
            if max(low, high or 0) > MAX_REPEAT:
                raise self.fail(f"{found.group()} repeats more than {MAX_REPEAT:,} times")
            if high is not None and high < low:
                raise self.fail(f"{found.group()} asks for at least {low} and at most {high} times")
            self.at = found.end()
        elif mark and mark in "*+?":
            low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[mark]
            self.at += 1
        else:
            return None
        if self.peek() == "+":
            raise self.unsupported("a possessive repetition")
        if self.peek() == "?":
            self.at += 1
        return low, high

    def item(self, depth: int) -> Expr:
        mark = self.peek()
        if mark in "*+?" or (mark == "{" and _COUNTS.match(self.text, self.at)):
            raise self.fail("nothing to repeat")
        if mark == "(":
            start, found = self.at, _GROUP.match(self.text, self.at)
            if found is None or self.text.startswith("?", found.end()):
                raise self.unsupported(f"{self.text[self.at : self.at + 4]!r}")
            self.at = found.end()
            inner = self.alternatives(depth + 1)
            if self.peek() != ")":
                raise self.fail("this '(' has no ')'", start)
            self.at += 1
            return inner
        if mark == "[":
            return self.characters()
        self.at += 1
        if mark == ".":
            return ANY - _LINE_ENDS
        if mark == "\\":
            found_class = self.escape(False)
            return found_class if isinstance(found_class, Chars) else Text(found_class)
        if 0xD800 <= ord(mark) <= 0xDFFF:
            raise self.fail(f"a lone surrogate {mark!r} is not a character", self.at - 1)
        return Text(mark)

    def escape(self, within: bool) -> str | Chars:
        """Return the character or class of an escape; its backslash is already read."""
        letter = self.peek()
        found = _HEX.match(self.text, self.at)
        if found:
            code = int(found[1] or found[2] or found[3], 16)
            if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
                raise self.fail(f"U+{code:04X} is not a character", self.at - 1)
            self.at = found.end()
            return chr(code)
        self.at += 1
        if not letter:
            raise self.fail("a backslash at the end", self.at - 2)
        if letter in _CLASSES:
            return _CLASSES[letter]
        if letter in "DWS":
            return _complement(letter)
        if letter == "b" and within:
            return "\b"
        if letter in _CONTROLS and not (letter == "0" and self.peek().isdigit()):
            return _CONTROLS[letter]
        if letter == "c" and self.peek().isalpha() and self.peek().isascii():
            self.at += 1
            return chr(ord(self.text[self.at - 1]) % 32)
        if letter.isalnum():
            self.at -= 2
            raise self.unsupported(f"'\\{letter}'")
        return letter

    def characters(self) -> Chars:
        start = self.at
        self.at += 1
        negated = self.peek() == "^"
        self.at += negated
        chars = Chars(())
        while self.peek() != "]":
            low = self.member(start)
            if (
                isinstance(low, str)
                and self.peek() == "-"
                and self.text[self.at + 1 : self.at + 2] not in ("]", "")
            ):
                self.at += 1
                high = self.member(start)
                if not isinstance(high, str):
                    raise self.fail("a range ends with a class; expected a character", self.at - 2)
                if high < low:
                    raise self.fail(f"the range {low!r} to {high!r} is backwards")
                chars |= Chars.of([(ord(low), ord(high))])
            else:
                chars |= low if isinstance(low, Chars) else Chars.among(low)
        self.at += 1
        chars = ~chars if negated else chars
        if not chars.ranges:
            raise self.fail("this set matches no character", start)
        return chars

    def member(self, start: int) -> str | Chars:
        character = self.peek()
        if not character:
            raise self.fail("the set that starts here has no ']'", start)
        self.at += 1
        if 0xD800 <= ord(character) <= 0xDFFF:
            raise self.fail(f"a lone surrogate {character!r} is not a character", self.at - 1)
        return self.escape(True) if character == "\\" else character


def _seq(parts: list[Expr]) -> Expr:
    joined: list[Expr] = []
    for part in parts:
        if joined and isinstance(part, Text) and isinstance(joined[-1], Text):
            joined[-1] = Text(joined[-1].value + part.value)
        else:
            joined.append(part)
    return joined[0] if len(joined) == 1 else Seq(tuple(joined))


def parse(pattern: str, search: bool = False, name: str = "the pattern") -> Expr:
    """Return a regular expression as an expression of a grammar.

    Parameters
    ----------
    pattern : str
    search : bool
        Whether the pattern may match anywhere in the text, as in JSON Schema. False: it must match
        the whole text.
    name : str
        The name of the pattern in messages.

    Returns
    -------
    Expr

    Raises
    ------
    ValueError
        If the pattern is malformed; the message says where and how.
    tinyllm.UnsupportedError
        If the pattern uses syntax that is not supported.
    TypeError
        If `pattern` is not a str.
    """
    if not isinstance(pattern, str):
        raise TypeError(f"{name} is {type(pattern).__name__}; expected str")
    return _Parser(pattern, name).parse(search)
