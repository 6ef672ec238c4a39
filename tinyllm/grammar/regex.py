r"""Convert regular expressions to expressions of grammars.

Supported: literals, ``.`` (not a line end), sets ``[a-z]`` ``[^...]``, ``\d \w \s \D \W \S``,
``\p{L} \P{Lu}`` (general categories), escapes (``\n \t \r \f \v \0 \xHH \uHHHH \u{H...}``,
``\cX``, a backslash before punctuation), ``|``, groups ``( )`` ``(?: )`` ``(?<name> )``
``(?P<name> )``, ``* + ? {m} {m,} {m,n}`` and their lazy forms (which match the same texts),
``^ $ \b \B``, look-around, and the flags ``i`` and ``s`` in ``(?i)`` ``(?i: )``. Assertions
(``^``, ``\b``, look-around ...) may not be inside a repetition.
Not supported: backreferences, possessive repetitions, other flags.

ECMAScript and Python disagree about some classes (``\w`` and accented letters). Here a class has
only the characters that belong to it in both, so that a generated text matches in both. The blanks
``\s`` of the patterns of JSON Schema are those of ECMAScript, as the standard asks.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass

import numpy as np

from ..errors import UnsupportedError
from .expr import ANY, Alt, Chars, Expr, Repeat, Seq, Text
from .gbnf import MAX_DEPTH, MAX_REPEAT
from .language import Matches, intersection, matches

__all__ = ["parse"]

_DIGIT = Chars.of([(0x30, 0x39)])
_WORD = Chars.among("_") | Chars.of([(0x30, 0x39), (0x41, 0x5A), (0x61, 0x7A)])
_SPACE = Chars.among(" \t\n\r\f\v\u00a0\u1680\u2028\u2029\u202f\u205f\u3000")
_SPACE |= Chars.of([(0x2000, 0x200A)])
_ECMA_SPACE = _SPACE | Chars.among("\ufeff")
_LINE_ENDS = Chars.among("\n\r\u2028\u2029")
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "0": "\0", "a": "\a"}
_COUNTS = re.compile(r"\{(\d+)(,(\d*))?\}")
_HEX = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|u\{([0-9A-Fa-f]{1,6})\}")
_GROUP = re.compile(r"\((?:\?(?:(:)|(=|!|<=|<!)|P?<([A-Za-z_$][^>)]*)>|([is]+)(:|\))))?")
_PROPERTY = re.compile(r"\{(?:(?:gc|General_Category)=)?([A-Za-z_&]+)\}")
_AROUND = Repeat(ANY, 0, None)
#: The largest number of sequences that groups with assertions are multiplied out to.
_MAX_SEQUENCES = 200

_CATEGORIES = {
    "Letter": "L", "Cased_Letter": "LC", "L&": "LC", "Uppercase_Letter": "Lu",
    "Lowercase_Letter": "Ll", "Titlecase_Letter": "Lt", "Modifier_Letter": "Lm",
    "Other_Letter": "Lo", "Mark": "M", "Nonspacing_Mark": "Mn", "Spacing_Mark": "Mc",
    "Enclosing_Mark": "Me", "Number": "N", "Decimal_Number": "Nd", "digit": "Nd",
    "Letter_Number": "Nl", "Other_Number": "No", "Punctuation": "P", "punct": "P",
    "Connector_Punctuation": "Pc", "Dash_Punctuation": "Pd", "Open_Punctuation": "Ps",
    "Close_Punctuation": "Pe", "Initial_Punctuation": "Pi", "Final_Punctuation": "Pf",
    "Other_Punctuation": "Po", "Symbol": "S", "Math_Symbol": "Sm", "Currency_Symbol": "Sc",
    "Modifier_Symbol": "Sk", "Other_Symbol": "So", "Separator": "Z", "Space_Separator": "Zs",
    "Line_Separator": "Zl", "Paragraph_Separator": "Zp", "Control": "Cc", "cntrl": "Cc",
    "Format": "Cf", "Private_Use": "Co",
}  # fmt: skip


@functools.cache
def _by_category() -> dict[str, Chars]:
    """Return the characters of each general category; those not assigned yet are left out."""
    ranges: dict[str, list[tuple[int, int]]] = {}
    for code in (*range(0x40000), *range(0xE0000, 0xE0200)):  # no others are assigned
        ranges.setdefault(unicodedata.category(chr(code)), []).append((code, code))
    return {c: Chars.of(r) for c, r in ranges.items() if c not in ("Cn", "Cs")}


@functools.cache
def _category(name: str, negated: bool) -> Chars | None:
    """Return the characters inside, or outside, a general category; None if it is not known.

    A character without a category is on neither side: a later version of Unicode may assign it.
    """
    short = _CATEGORIES.get(name, name)
    inside, outside = Chars(()), Chars(())
    for category, chars in _by_category().items():
        cased = short == "LC" and category in ("Lu", "Ll", "Lt")
        if cased or category == short or (len(short) == 1 and category[0] == short):
            inside |= chars
        else:
            outside |= chars
    return None if not inside.ranges else outside if negated else inside


@functools.cache
def _complement(letter: str) -> Chars:
    """Return the characters that are outside a class in both ECMAScript and Python."""
    points = np.arange(0x110000, dtype="<u4")
    every = points.tobytes().decode("utf-32-le", "surrogatepass")
    inside = {"D": r"\d+", "W": r"\w+", "S": "[\\s\ufeff]+"}[letter]
    return ~Chars.of((m.start(), m.end() - 1) for m in re.finditer(inside, every))


@functools.cache
def _cases(doubtful: bool) -> list[tuple[int, int]]:
    """Return pairs of characters that differ in case only.

    Engines disagree about pairs of an ASCII letter and another character (K and the Kelvin sign),
    and about characters that become several. They are in the list only if `doubtful`.
    """
    pairs = []
    for code in range(0x20000):  # above there are no cases
        c = chr(code)
        for other in {c.lower(), c.upper(), c.casefold()} - {c}:
            if len(other) > 1:
                continue
            plain = other.upper() == c or other.lower() == c
            if doubtful or (plain and (code < 128) == (ord(other) < 128)):
                pairs += [(code, ord(other)), (ord(other), code)]
    return pairs


def _fold(chars: Chars, doubtful: bool) -> Chars:
    """Return a set with the other case of its characters."""
    more = [(b, b) for a, b in _cases(doubtful) if chr(a) in chars]
    return chars | Chars.of(more)


_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _SPACE}


@dataclass(frozen=True)
class _Look:
    """An assertion: what is ahead, or behind, starts, or ends, with an expression (or not)."""

    ahead: bool
    negated: bool
    inner: _Tree


@dataclass(frozen=True)
class _Boundary:
    """An assertion: a word starts or ends here, or, if negated, neither."""

    negated: bool


@dataclass(frozen=True)
class _Several:
    """A sequence, alternatives or a repetition with assertions in it."""

    kind: str  # "seq", "alt" or "repeat"
    items: tuple[_Tree, ...]
    low: int = 1
    high: int | None = 1


_Tree = Expr | _Look | _Boundary | _Several
_START = _Look(False, True, ANY)
_END = _Look(True, True, ANY)


def _seq(parts: list[_Tree]) -> _Tree:
    joined: list[_Tree] = []
    for part in parts:
        if joined and isinstance(part, Text) and isinstance(joined[-1], Text):
            joined[-1] = Text(joined[-1].value + part.value)
        else:
            joined.append(part)
    if len(joined) == 1:
        return joined[0]
    exprs = tuple(j for j in joined if not isinstance(j, _Look | _Boundary | _Several))
    return Seq(exprs) if len(exprs) == len(joined) else _Several("seq", tuple(joined))


def _alt(items: list[_Tree]) -> _Tree:
    if len(items) == 1:
        return items[0]
    exprs = tuple(i for i in items if not isinstance(i, _Look | _Boundary | _Several))
    return Alt(exprs) if len(exprs) == len(items) else _Several("alt", tuple(items))


class _Parser:
    def __init__(self, pattern: str, name: str, ecma: bool) -> None:
        self.text = pattern
        self.name = name
        self.at = 0
        self.ignore_case = False
        self.dot = ANY - _LINE_ENDS
        self.space = _ECMA_SPACE if ecma else _SPACE

    def fail(self, what: str, at: int | None = None) -> ValueError:
        at = self.at if at is None else at
        return ValueError(f"{self.name} {self.text!r}, at character {at}: {what}")

    def unsupported(self, what: str, at: int | None = None) -> UnsupportedError:
        at = self.at if at is None else at
        return UnsupportedError(
            f"{self.name} {self.text!r}, at character {at}: {what} is not supported"
        )

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def parse(self, search: bool) -> Expr:
        tree = self.alternatives(0)
        if self.at < len(self.text):
            raise self.fail("this ')' has no '('")
        items = [self.language(items, search) for items in self.sequences(tree)]
        found = [item for item in items if item is not None]
        return found[0] if len(found) == 1 else Alt(tuple(found))

    # ---- assertions ----

    def sequences(self, tree: _Tree) -> list[list[_Tree]]:
        """Return alternatives, as sequences of expressions and assertions."""
        if not isinstance(tree, _Several):
            return [[*tree.items]] if isinstance(tree, Seq) else [[tree]]
        if tree.kind == "alt":
            return [parts for item in tree.items for parts in self.sequences(item)]
        if tree.kind == "repeat":
            if tree.high is None or tree.high > 3:
                raise self.unsupported("an assertion inside a repetition", 0)
            counts = range(tree.low, tree.high + 1)
            return [p for n in counts for p in self.sequences(_Several("seq", tree.items * n))]
        found: list[list[_Tree]] = [[]]
        for item in tree.items:
            more = self.sequences(item)
            if len(found) * len(more) > _MAX_SEQUENCES:
                raise self.unsupported("so many alternatives with assertions", 0)
            found = [[*a, *b] for a in found for b in more]
        return found

    def language(self, parts: list[_Tree], search: bool) -> Expr | None:
        """Return the texts that a sequence matches; None if there are none."""
        starts = ends = not search
        while parts and parts[0] == _START:
            parts, starts = parts[1:], True
        while parts and parts[-1] == _END:
            parts, ends = parts[:-1], True
        parts = [*([] if starts else [_AROUND]), *parts, *([] if ends else [_AROUND])]
        return self.resolve(parts)

    def resolve(self, parts: list[_Tree], cut: str = "") -> Expr | None:
        """Return the texts of a sequence, with the assertions applied to what is around them.

        `cut` is "left" or "right" where more text, which is not part of the sequence, is around it.
        """
        before: list[Expr] = []
        for i, part in enumerate(parts):
            if isinstance(part, _Look | _Boundary | _Several):
                return self.around(Seq(tuple(before)), part, parts[i + 1 :], cut)
            before.append(part)
        joined = _seq([*before])
        return joined if not isinstance(joined, _Look | _Boundary | _Several) else None

    def around(self, left: Expr, mark: _Tree, rest: list[_Tree], cut: str) -> Expr | None:
        right = self.resolve(rest, cut)
        if right is None:
            return None
        cases: list[tuple[Expr, bool, Expr, bool]] = []  # left, positive, right, positive
        if isinstance(mark, _Look):
            if cut == ("right" if mark.ahead else "left"):
                raise self.unsupported("an assertion that looks out of a look-around", 0)
            side = "left" if mark.ahead else "right"
            inner = [
                self.resolve([*items, _AROUND] if mark.ahead else [_AROUND, *items], side)
                for items in self.sequences(mark.inner)
            ]
            found = Alt(tuple(item for item in inner if item is not None))
            if mark.ahead:
                cases = [(_AROUND, True, found, not mark.negated)]
            else:
                cases = [(found, not mark.negated, _AROUND, True)]
        elif isinstance(mark, _Boundary):
            if cut and matches(left if cut == "left" else right, ""):
                raise self.unsupported("an assertion that looks out of a look-around", 0)
            behind, ahead = Seq((_AROUND, _WORD)), Seq((_WORD, _AROUND))
            cases = [(behind, a, ahead, a == mark.negated) for a in (True, False)]
        items: list[Expr] = []
        for behind_, left_positive, ahead_, right_positive in cases:
            one, two = (
                side_
                if condition == _AROUND and positive
                else intersection([Matches(side_), Matches(condition, positive)])
                for side_, condition, positive in (
                    (left, behind_, left_positive),
                    (right, ahead_, right_positive),
                )
            )
            if one is not None and two is not None:
                items.append(Seq((one, two)))
        return None if not items else items[0] if len(items) == 1 else Alt(tuple(items))

    # ---- reading ----

    def alternatives(self, depth: int) -> _Tree:
        if depth > MAX_DEPTH:
            raise self.fail(f"groups are nested more than {MAX_DEPTH} deep")
        items = [self.sequence(depth)]
        while self.peek() == "|":
            self.at += 1
            items.append(self.sequence(depth))
        return _alt(items)

    def sequence(self, depth: int) -> _Tree:
        parts: list[_Tree] = []
        while self.at < len(self.text) and self.peek() not in "|)":
            item = self.item(depth)
            counts = None if isinstance(item, _Look | _Boundary) else self.counts()
            if counts is not None:
                if isinstance(item, _Look | _Boundary | _Several):
                    item = _Several("repeat", (item,), *counts)
                else:
                    item = Repeat(item, *counts)
                if self.counts() is not None:
                    raise self.fail("nothing to repeat", self.at - 1)
            parts.append(item)
        return _seq(parts)

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

    def item(self, depth: int) -> _Tree:
        mark = self.peek()
        if mark in "*+?" or (mark == "{" and _COUNTS.match(self.text, self.at)):
            raise self.fail("nothing to repeat")
        if mark == "(":
            return self.group(depth)
        if mark == "[":
            return self.characters()
        self.at += 1
        if mark == ".":
            return self.dot
        if mark in "^$":
            return _START if mark == "^" else _END
        if mark == "\\":
            if self.peek() and self.peek() in "bB":
                self.at += 1
                return _Boundary(self.text[self.at - 1] == "B")
            found = self.escape(False)
            return found if isinstance(found, Chars) else self.literal(found)
        if 0xD800 <= ord(mark) <= 0xDFFF:
            raise self.fail(f"a lone surrogate {mark!r} is not a character", self.at - 1)
        return self.literal(mark)

    def literal(self, character: str) -> Expr:
        if self.ignore_case:
            folded = _fold(Chars.among(character), False)
            if folded != Chars.among(character):
                return folded
        return Text(character)

    def group(self, depth: int) -> _Tree:
        start, found = self.at, _GROUP.match(self.text, self.at)
        if found is None or self.text.startswith("?", found.end()):
            raise self.unsupported(f"{self.text[self.at : self.at + 4]!r}")
        look, flags, closed = found[2], found[4], found[5] == ")"
        if closed and (start or depth):
            raise self.unsupported(f"{found.group()!r} in the middle")
        outside = self.ignore_case, self.dot
        self.at = found.end()
        if flags:
            self.ignore_case = self.ignore_case or "i" in flags
            self.dot = ANY if "s" in flags else self.dot
        if closed:
            return Text("")
        inner = self.alternatives(depth + 1)
        if self.peek() != ")":
            raise self.fail("this '(' has no ')'", start)
        self.at += 1
        self.ignore_case, self.dot = outside
        return inner if look is None else _Look("<" not in look, "!" in look, inner)

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
        if letter == "s":
            return self.space
        if letter in _CLASSES:
            return _CLASSES[letter]
        if letter in "DWS":
            return _complement(letter)
        if letter in "pP":
            named = _PROPERTY.match(self.text, self.at)
            chars = _category(named[1], letter == "P") if named else None
            if named is None or chars is None:
                self.at -= 2
                raise self.unsupported(f"the class {self.text[self.at : self.at + 12]!r}")
            self.at = named.end()
            return chars
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
        ranges: list[tuple[int, int]] = []
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
                ranges.append((ord(low), ord(high)))
            elif isinstance(low, Chars):
                ranges += low.ranges
            else:
                ranges.append((ord(low), ord(low)))
        self.at += 1
        chars = Chars.of(ranges)
        if self.ignore_case:
            chars = _fold(chars, negated)
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
    return _Parser(pattern, name, search).parse(search)
