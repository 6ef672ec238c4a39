"""Parse GBNF, llama.cpp's notation for grammars; see llama.cpp's ``grammars/README.md``."""

from __future__ import annotations

import re

from .expr import ANY, Alt, Chars, Expr, Ref, Repeat, Seq, Text, Token

__all__ = ["MAX_DEPTH", "MAX_REPEAT", "parse"]

#: The deepest nesting of groups.
MAX_DEPTH = 100
#: The largest number in ``{m,n}``.
MAX_REPEAT = 100_000

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_COUNTS = re.compile(r"\{[ \t]*(\d+)?[ \t]*(,)?[ \t]*(\d+)?[ \t]*\}")
_BLANK = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_BLANK_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_TOKEN = re.compile(r"(!?)<(?:\[(\d{1,9})\]|([^>\r\n]+))>")
_PLAIN = {"t": "\t", "r": "\r", "n": "\n"} | {c: c for c in '\\"[]-^'}
_HEX = {"x": 2, "u": 4, "U": 8}


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.rules: dict[str, Expr] = {}
        self.rule = ""

    def fail(self, what: str, at: int | None = None) -> ValueError:
        at = self.at if at is None else at
        line = self.text.count("\n", 0, at) + 1
        column = at - (self.text.rfind("\n", 0, at) + 1) + 1
        where = f" in rule {self.rule!r}" if self.rule else ""
        return ValueError(f"the grammar, line {line}, column {column}{where}: {what}")

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def blank(self, lines: bool) -> None:
        found = (_BLANK_LINES if lines else _BLANK).match(self.text, self.at)
        self.at = found.end() if found else self.at

    def name(self) -> str:
        found = _NAME.match(self.text, self.at)
        if not found:
            raise self.fail(f"expected a rule name, found {self.peek() or 'the end'!r}")
        self.at = found.end()
        return found.group()

    def parse(self) -> dict[str, Expr]:
        self.blank(True)
        while self.at < len(self.text):
            start = self.at
            self.rule = ""
            name = self.name()
            self.blank(False)
            if not self.text.startswith("::=", self.at):
                raise self.fail(
                    f"expected '::=' after {name!r}, found {self.peek() or 'the end'!r}"
                )
            if name in self.rules:
                raise self.fail(f"rule {name!r} is defined twice", start)
            self.rule = name
            self.at += 3
            self.blank(True)
            self.rules[name] = self.alternatives(0)
            if self.at < len(self.text) and self.peek() not in "\r\n":
                raise self.fail(f"expected the end of the line, found {self.peek()!r}")
            self.blank(True)
        return self.rules

    def alternatives(self, depth: int) -> Expr:
        if depth > MAX_DEPTH:
            raise self.fail(f"groups are nested more than {MAX_DEPTH} deep")
        items = [self.sequence(depth)]
        while self.bar():
            self.at += 1
            self.blank(True)
            items.append(self.sequence(depth))
        return items[0] if len(items) == 1 else Alt(tuple(items))

    def bar(self) -> bool:
        """Return whether an alternative follows, on this line or after blank lines: go there."""
        found = _BLANK_LINES.match(self.text, self.at)
        end = found.end() if found else self.at
        if self.text.startswith("|", end):
            self.at = end
        return self.peek() == "|"

    def sequence(self, depth: int) -> Expr:
        items: list[Expr] = []
        while (item := self.item(depth)) is not None:
            # several repetitions of one item apply one after another
            while (counts := self.counts()) is not None:
                item = Repeat(item, *counts)
                self.blank(depth > 0)
            items.append(item)
        return items[0] if len(items) == 1 else Seq(tuple(items)) if items else Text("")

    def item(self, depth: int) -> Expr | None:
        item: Expr
        start, mark = self.at, self.peek()
        if mark == '"':
            self.at += 1
            letters = []
            while self.peek() != '"':
                letters.append(self.character("the text", start))
            self.at += 1
            item = Text("".join(letters))
        elif mark == "[":
            item = self.characters()
        elif mark == ".":
            self.at += 1
            item = ANY
        elif mark == "(":
            self.at += 1
            self.blank(True)
            item = self.alternatives(depth + 1)
            if self.peek() != ")":
                raise self.fail("the group that starts here has no ')'", start)
            self.at += 1
        elif mark == "<" or self.text.startswith("!<", self.at):
            found = _TOKEN.match(self.text, self.at)
            if not found:
                raise self.fail("expected a token such as <think> or <[123]>", start)
            self.at = found.end()
            token = int(found[2]) if found[2] else f"<{found[3]}>"
            item = Token(token, bool(found[1]))
        elif mark in ("*", "+", "?", "{"):
            raise self.fail(f"{mark!r} has nothing before it to repeat")
        elif _NAME.match(self.text, self.at):
            item = Ref(self.name())
        else:
            return None
        self.blank(depth > 0)
        return item

    def counts(self) -> tuple[int, int | None] | None:
        mark = self.peek()
        if mark and mark in "*+?":
            self.at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[mark]
        if mark != "{":
            return None
        found = _COUNTS.match(self.text, self.at)
        if not found or not (found[1] or found[3]):
            raise self.fail("expected {m}, {m,} or {m,n}")
        low = int(found[1][:9]) if found[1] else 0
        high = int(found[3][:9]) if found[3] else None if found[2] else low
        if max(low, high or 0) > MAX_REPEAT:
            raise self.fail(f"{found.group()} repeats more than {MAX_REPEAT:,} times")
        if high is not None and high < low:
            raise self.fail(f"{found.group()} asks for at least {low} and at most {high} times")
        self.at = found.end()
        return low, high

    def character(self, what: str, start: int) -> str:
        character = self.peek()
        if not character or character in "\r\n":
            raise self.fail(f"{what} that starts here does not end on its line", start)
        self.at += 1
        if 0xD800 <= ord(character) <= 0xDFFF:
            raise self.fail(f"a lone surrogate {character!r} is not a character", self.at - 1)
        if character != "\\":
            return character
        letter = self.peek()
        self.at += 1
        if letter in _PLAIN and letter:
            return _PLAIN[letter]
        if letter not in _HEX or not letter:
            raise self.fail(
                f"unknown escape '\\{letter}'; expected \\n \\r \\t \\\\ \\\" \\[ \\] \\- \\^ "
                "\\xHH \\uHHHH \\UHHHHHHHH",
                self.at - 2,
            )
        digits = self.text[self.at : self.at + _HEX[letter]]
        if not re.fullmatch(f"[0-9A-Fa-f]{{{_HEX[letter]}}}", digits):
            raise self.fail(
                f"expected {_HEX[letter]} hexadecimal digits after '\\{letter}'", self.at - 2
            )
        self.at += len(digits)
        code = int(digits, 16)
        if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            raise self.fail(f"U+{code:04X} is not a character", self.at - len(digits) - 2)
        return chr(code)

    def characters(self) -> Chars:
        start = self.at
        self.at += 1
        negated = self.peek() == "^"
        self.at += negated
        ranges = []
        while self.peek() != "]":
            low = high = self.character("the set", start)
            if self.peek() == "-" and self.text[self.at + 1 : self.at + 2] != "]":
                self.at += 1
                high = self.character("the set", start)
            if high < low:
                raise self.fail(f"the range {low!r} to {high!r} is backwards")
            ranges.append((ord(low), ord(high)))
        self.at += 1
        chars = ~Chars.of(ranges) if negated else Chars.of(ranges)
        if not chars.ranges:
            raise self.fail("this set matches no character", start)
        return chars


def parse(text: str) -> dict[str, Expr]:
    """Return the rules of a grammar in GBNF.

    Parameters
    ----------
    text : str

    Returns
    -------
    dict
        Rules by name, in the order of the text.

    Raises
    ------
    ValueError
        If the text is not GBNF; the message names the line and column.
    TypeError
        If `text` is not a str.
    """
    if not isinstance(text, str):
        raise TypeError(f"the grammar is {type(text).__name__}; expected str")
    return _Parser(text.removeprefix("\ufeff")).parse()  # a byte order mark is not text
