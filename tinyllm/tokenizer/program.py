r"""Compile pre-tokenizer expressions for the C core's matcher (csrc/text/pretokenizer.h).

The expressions use a small part of the syntax of regular expressions: characters and classes,
groups, ``|``, ``? * + {m,n}``, and lookahead of one class. `to_re` of `unicode_classes` compiles
the same expressions for Python's `re`; tests compare the two.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from .unicode_classes import Ranges, code_ranges

__all__ = ["Program", "compile_program"]

#: (program, ranges, class ends), as `_core.Encoder` takes them.
Program = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]

_CLASS, _REPEAT, _FORK, _JUMP, _LOOK, _NOT_LOOK, _MATCH = range(7)
_LAST = 0x10FFFF
_ESCAPES = {"r": "\r", "n": "\n", "t": "\t"}
_SHORT = {"s": "White_Space", "d": "Nd"}
_QUANTIFIER = re.compile(r"\?|\*|\+|\{(\d+)(?:,(\d*))?\}")
_HEX = re.compile(r"\\u([0-9a-f]{4})|\\U([0-9a-f]{8})")

# Targets of forks and jumps are offsets in operations; `compile_program` makes them absolute.
Code = list[tuple[int, ...]]


class _Parser:
    def __init__(self, expression: str) -> None:
        self.text = expression
        self.at = 0
        self.classes: dict[Ranges, int] = {}

    def wrong(self, what: str) -> ValueError:
        return ValueError(f"{what} at character {self.at} of the expression {self.text!r}")

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def take(self, expected: str) -> bool:
        if self.text.startswith(expected, self.at):
            self.at += len(expected)
            return True
        return False

    # ---- classes ----

    def number(self, ranges: Ranges) -> int:
        return self.classes.setdefault(ranges, len(self.classes))

    def escape(self) -> tuple[Ranges, bool]:
        """Return the ranges of an escape, and whether it is a single character."""
        match = _HEX.match(self.text, self.at)
        if match:
            self.at = match.end()
            code = int(match.group(1) or match.group(2), 16)
            return ((code, code),), True
        char = self.text[self.at + 1]
        self.at += 2
        if char == "p":
            stop = self.text.index("}", self.at)
            name = self.text[self.at + 1 : stop]
            self.at = stop + 1
            return code_ranges(name), False
        if char in "sdS":
            ranges = code_ranges(_SHORT[char.lower()])
            return (_complement(ranges) if char == "S" else ranges), False
        if char.isalnum() and char not in _ESCAPES:
            raise self.wrong(f"unknown escape \\{char}")
        code = ord(_ESCAPES.get(char, char))
        return ((code, code),), True

    def member(self) -> tuple[Ranges, bool]:
        if self.peek() == "\\":
            return self.escape()
        code = ord(self.peek())
        self.at += 1
        return ((code, code),), True

    def bracket(self) -> Ranges:
        """Return the ranges of a bracketed class; its opening bracket is already read."""
        negated = self.take("^")
        found: list[tuple[int, int]] = []
        while not self.take("]"):
            ranges, single = self.member()
            if single and self.peek() == "-" and self.text[self.at + 1] != "]":
                self.at += 1
                last, _ = self.member()
                ranges = ((ranges[0][0], last[0][0]),)
            found += ranges
        merged = _union(found)
        return _complement(merged) if negated else merged

    # ---- structure ----

    def alternatives(self) -> Code:
        branches = [self.sequence()]
        while self.take("|"):
            branches.append(self.sequence())
        code = branches.pop()
        while branches:
            first = branches.pop()
            over = len(first) + 2  # the fork, the branch, the jump
            code = [(_FORK, 1, over), *first, (_JUMP, len(code) + 1), *code]
        return code

    def sequence(self) -> Code:
        code: Code = []
        while self.peek() not in ("", "|", ")"):
            code += self.quantified()
        return code

    def quantified(self) -> Code:
        look = _LOOK if self.take("(?=") else _NOT_LOOK if self.take("(?!") else None
        if look is not None or self.take("(?:") or self.take("("):
            code = self.alternatives()
            if not self.take(")"):
                raise self.wrong("missing )")
            if look is not None:
                if len(code) != 1 or code[0][0] != _CLASS:
                    raise self.wrong("lookahead takes exactly one class")
                return [(look, code[0][1])]
        elif self.take("["):
            code = [(_CLASS, self.number(self.bracket()))]
        else:
            code = [(_CLASS, self.number(self.member()[0]))]
        match = _QUANTIFIER.match(self.text, self.at)
        if not match:
            return code
        self.at = match.end()
        if match.group() == "?":
            low, high = 0, 1
        elif match.group() in "*+":
            low, high = int(match.group() == "+"), -1
        else:
            low = int(match.group(1))
            high = low if match.group(2) is None else int(match.group(2) or -1)
        if len(code) == 1 and code[0][0] == _CLASS:
            return [(_REPEAT, code[0][1], low, high)]
        if high < 0:
            loop = [(_FORK, 1, len(code) + 2), *code, (_JUMP, -len(code) - 1)]
            return code * low + loop
        once = [(_FORK, 1, len(code) + 1), *code]
        return code * low + once * (high - low)


def _union(ranges: list[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def _complement(ranges: Ranges) -> Ranges:
    found = []
    start = 0
    for first, last in ranges:
        if first > start:
            found.append((start, first - 1))
        start = last + 1
    if start <= _LAST:
        found.append((start, _LAST))
    return tuple(found)


def compile_program(expression: str) -> Program:
    r"""Return an expression compiled for the core's matcher.

    Parameters
    ----------
    expression : str
        As in `PreTokenizer`.

    Returns
    -------
    program, ranges, class_ends : ndarray of int32

    Raises
    ------
    ValueError
        If the expression uses syntax that the matcher does not support.

    Examples
    --------
    >>> program, ranges, class_ends = compile_program(r"a+")
    >>> program.tolist(), ranges.tolist(), class_ends.tolist()
    ([1, 0, 1, -1, 6], [97, 97], [1])
    """
    parser = _Parser(expression)
    code = [*parser.alternatives(), (_MATCH,)]
    if parser.at != len(expression):
        raise parser.wrong("unexpected )")
    places = [0]
    for operation in code:
        places.append(places[-1] + len(operation))
    words: list[int] = []
    for i, operation in enumerate(code):
        if operation[0] in (_FORK, _JUMP):
            operation = (operation[0], *(places[i + offset] for offset in operation[1:]))
        words += operation
    ranges = [code for found in parser.classes for pair in found for code in pair]
    ends = np.cumsum([len(found) for found in parser.classes])
    return (
        np.array(words, np.int32),
        np.array(ranges, np.int32),
        ends.astype(np.int32),
    )
