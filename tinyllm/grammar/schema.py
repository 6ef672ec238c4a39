"""Convert JSON Schema to grammars.

Every text of the grammar is valid. A keyword that the grammar cannot enforce is an error, and the
message has a JSON pointer to it.

There are two forms. A compact grammar writes as a person would: an object with `properties` has no
others unless `additionalProperties` allows them, properties are in the order of the schema, and
there are few blanks. A loose grammar takes what the standard takes: open objects and tuples,
properties in another order, any blanks, escapes and spellings of numbers.
"""

from __future__ import annotations

import functools
import json
from collections import deque
from collections.abc import Callable, Collection
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext
from typing import Any

from ..base.garbage import no_collection
from . import spelling
from .automaton import Program, build_fine
from .document import MAPPING, Document, pointer, wrong
from .expr import ANY, Alt, Chars, Expr, Ref, Repeat, Seq, Text, check, optional, prune
from .flat import NUMBERS, Flat, key_of, nothing, pattern_expr
from .formats import format_expr
from .gbnf import MAX_REPEAT
from .items import Items
from .keywords import IGNORABLE, Keywords
from .language import Condition, Length, Matches, Multiple, intersection, lengths
from .logic import Logic
from .members import Members
from .numbers import decimal_range, digits, integer_range, loose_numbers, same_number
from .parts import Impossible, Writer

__all__ = ["FORMS", "convert"]

#: The names of the forms.
FORMS = ("compact", "any")
_MAX_DEPTH = 100
#: A pattern with a length needs this many states at most; a larger `maxLength` is lowered.
_MAX_STATES = 8000

_BLANK = Alt((Text(""), Text(" "), Seq((Text("\n"), Repeat(Chars.among(" \t"), 0, 20)))))
_ANY_BLANK = Repeat(Chars.among(" \t\n\r"), 0, None)
_INTEGER = Seq((optional(Text("-")), Alt((Text("0"), Seq((digits(1), Repeat(digits(), 0, 19)))))))
_FRACTION = Seq((Text("."), Repeat(digits(), 1, 16)))
_EXPONENT = Seq((Chars.among("eE"), optional(Chars.among("+-")), Repeat(digits(), 1, 2)))
_DECIMAL = Seq((_INTEGER, optional(_FRACTION)))


def _string(loose: bool) -> Expr:
    return Seq((Text('"'), Repeat(spelling.characters(loose)[1], 0, None), Text('"')))


#: Rules that any schema may use.
_COMMON: dict[str, Expr] = {
    "blank": _BLANK,
    "comma": Seq((Text(","), Ref("blank"))),
    "string": _string(False),
    "number": Seq((_DECIMAL, optional(_EXPONENT))),
    "integer": _INTEGER,
    "boolean": Alt((Text("true"), Text("false"))),
    "null": Text("null"),
}


def _loose_common() -> dict[str, Expr]:
    return {
        "blank": _ANY_BLANK,
        "string": _string(True),
        "number": loose_numbers(None, False, None, False, False) or Text(""),
        "integer": loose_numbers(None, False, None, False, True) or Text(""),
    }


def _texts(what: str, text: str, name: str = "the pattern") -> Expr:
    """Return the texts of a pattern or format."""
    return format_expr(text) if what == "format" else pattern_expr(text, name)


@functools.lru_cache(maxsize=512)
def _lengths(what: str, text: str) -> tuple[int, int | None]:
    return lengths(_texts(what, text))


@functools.lru_cache(maxsize=512)
def _quoted(what: str, text: str) -> Expr:
    return spelling.quoted(_texts(what, text), True)


class _Converter(Writer):
    def __init__(self, keywords: Keywords, loose: bool) -> None:
        self.keywords = keywords
        self.logic = Logic(keywords)
        self.loose = loose
        self.rules: dict[str, Expr] = {}
        self.reasons: list[tuple[str, str]] = []
        self._known = _COMMON | (_loose_common() if loose else {})
        self.is_json = True
        self._refs: dict[bytes | str, Ref] = {}
        self._common: dict[str, Ref] = {}
        self._seen: dict[int, tuple[Any, Ref]] = {}  # by identity, with what keeps it alive
        self._counts: dict[str, int] = {}
        self._waiting: deque[tuple[str, Any, str]] = deque()
        self._members = Members(self)
        self._items = Items(self)

    # ---- rules ----

    def run(self, root: Any) -> Expr:
        """Return the expression of the root, after all rules that it needs are there."""
        try:
            start: Expr = self.visit(root, "#")
            while self._waiting:
                name, schema, at = self._waiting.popleft()
                self.rules[name] = self.rule(schema, at)
        finally:
            # they refer to this converter, and what refers to itself is not freed at once
            del self._members, self._items
        return Seq((self.blank, start, self.blank)) if self.loose else start

    def visit(self, schema: Any, at: str) -> Ref:
        schema, at = self.follow(schema, at)
        known = self._seen.get(id(schema))
        if known is not None:
            return known[1]
        if not self.is_json:  # find what is not, where it is
            try:
                json.dumps(schema)
            except (TypeError, ValueError) as error:
                wrong(at, f"the schema is not JSON: {error}")
        # what is not read, as a description, makes no difference
        keys = schema if isinstance(schema, bool) else self.keywords.read(schema, at)
        if not isinstance(keys, bool) and len(keys) == 1 and self.is_plain(keys.get("type")):
            return self.common(keys["type"])
        key = key_of(keys)
        found = self._refs.get(key)
        if found is None:
            if at.count("/") > 4 * _MAX_DEPTH:
                wrong(at, f"schemas are nested more than {_MAX_DEPTH} deep")
            found = self._refs[key] = self.define(at, Text(""))
            self._waiting.append((found.name, schema, at))
        self._seen[id(schema)] = schema, found
        return found

    def is_plain(self, kind: Any) -> bool:
        """Return whether the values of a type are one of the rules that any schema may use."""
        if kind == "integer":
            return not self.loose or self.keywords.draft > 4
        return isinstance(kind, str) and kind in _COMMON

    def define(self, name: str, expr: Expr) -> Ref:
        chosen = name
        while chosen in self.rules:
            self._counts[name] = self._counts.get(name, 1) + 1
            chosen = f"{name} {self._counts[name]}"
        self.rules[chosen] = expr
        return Ref(chosen)

    def follow(self, schema: Any, at: str) -> tuple[Any, str]:
        """Return a schema and its pointer, after following a schema that is only a $ref."""
        seen = set()
        while isinstance(schema, MAPPING) and "$ref" in schema:
            if set(self.keywords.read(schema, at)) != {"$ref"}:
                break
            if at in seen:
                wrong(at, f"{schema['$ref']!r} leads back to itself; expected a schema")
            seen.add(at)
            schema, at = self.keywords.resolve(schema["$ref"], at)
        return schema, at

    def common(self, name: str) -> Ref:
        found = self._common.get(name)
        if found is None:
            self.rules[name] = self._known[name]
            found = self._common[name] = Ref(name)
            if name == "comma":
                self.common("blank")
        return found

    def impossible(self, at: str, reason: str) -> Expr:
        self.reasons.append((at, reason))
        return Alt(())

    def rule(self, schema: Any, at: str) -> Expr:
        """Return the expression of a schema."""
        if schema is True or schema == {}:
            return self.anything()
        if schema is False:
            return self.impossible(at, "the schema is false")
        keys = self.keywords.read(schema, at)
        for key in ("anyOf", "oneOf"):
            if set(keys) != {key}:
                continue
            parts = [(part, pointer(at, key, i)) for i, part in enumerate(keys[key])]
            if key == "anyOf" or self.exclude_each_other(parts):
                return Alt(tuple(self.visit(*part) for part in parts))
        flats = self.logic.expand(schema, at)
        items: list[Expr] = []
        reason = "it contradicts itself"
        for flat in flats:
            try:
                items.append(self.flat(flat, at))
            except Impossible as impossible:
                reason = str(impossible)
        if not items:
            return self.impossible(at, reason)
        return items[0] if len(items) == 1 else Alt(tuple(items))

    def exclude_each_other(self, parts: list[tuple[Any, str]]) -> bool:
        known = [self.logic.known(*part) for part in parts]
        flats = [some for some, _ in known]
        return all(whole for _, whole in known) and all(
            self.logic.disjoint(a, b)
            for i, some in enumerate(flats)
            for others in flats[i + 1 :]
            for a in some
            for b in others
        )

    def anything(self) -> Expr:
        if "value" not in self.rules:
            value, blank = Ref("value"), self.blank
            before: tuple[Expr, ...] = (blank,) if self.loose else ()
            pair = Seq((self.common("string"), *before, Text(":"), blank, value, blank))
            pairs = Seq((pair, Repeat(Seq((self.comma, pair)), 0, None)))
            item = Seq((value, blank))
            items = Seq((item, Repeat(Seq((self.comma, item)), 0, None)))
            self.rules["value"] = Alt(
                (
                    Seq((Text("{"), blank, optional(pairs), Text("}"))),
                    Seq((Text("["), blank, optional(items), Text("]"))),
                    *map(self.common, ("string", "number", "boolean", "null")),
                )
            )
        return Ref("value")

    # ---- one alternative ----

    def flat(self, flat: Flat, at: str) -> Expr:
        if flat.values is not None:
            return Alt(tuple(self.constant(value, at) for value in flat.values))
        if flat.changed(typed=False) == nothing():
            return self.anything()
        kinds = flat.kinds
        if not self.loose and not flat.typed and flat.implied:
            kinds &= flat.implied
        builders: list[tuple[bool, Callable[[], Expr]]] = [
            ("object" in kinds, lambda: self._members.object(flat, at)),
            ("array" in kinds, lambda: self._items.array(flat, at)),
            ("string" in kinds, lambda: self.string(flat, at)),
            (bool(kinds & NUMBERS), lambda: self.number(flat, kinds & NUMBERS, at)),
            ("boolean" in kinds, lambda: self.booleans(flat)),
            ("null" in kinds and None not in flat.excluded, lambda: self.common("null")),
        ]
        items: list[Expr] = []
        reason = "no type is left"
        for allowed, build in builders:
            if allowed:
                try:
                    items.append(build())
                except Impossible as impossible:
                    reason = str(impossible)
        if not items:
            raise Impossible(reason)
        return items[0] if len(items) == 1 else Alt(tuple(items))

    def constant(self, value: Any, at: str) -> Expr:
        if isinstance(value, list | dict) and value:
            return self.visit(self.logic.constant(value), at)
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            wrong(at, f"a constant is not JSON: {error}")
        if any(0xD800 <= ord(c) <= 0xDFFF for c in text):
            return Text(json.dumps(value))
        if self.loose and isinstance(value, str):
            return spelling.quoted(Text(value), True)
        if self.loose and isinstance(value, list | dict):
            return Seq((Text(text[0]), self.blank, Text(text[1])))
        if self.loose and isinstance(value, int | float) and not isinstance(value, bool):
            whole = isinstance(value, int) and self.keywords.draft <= 4
            return Text(text) if whole else Alt((Text(text), same_number(Decimal(repr(value)))))
        return Text(text)

    def booleans(self, flat: Flat) -> Expr:
        left = [v for v in (True, False) if not any(v is x for x in flat.excluded)]
        if len(left) == 2:
            return self.common("boolean")
        if not left:
            raise Impossible("no boolean is left")
        return Text(json.dumps(left[0]))

    # ---- strings ----

    def string(self, flat: Flat, at: str) -> Expr:
        low, high = flat.min_length, flat.max_length
        excluded = [v for v in flat.excluded if isinstance(v, str)]
        exprs = self.strings(flat)
        for what, text, positive, _ in flat.texts:
            if positive:
                least, most = _lengths(what, text)
                low = 0 if least >= low else low
                high = None if high is None or (most is not None and most <= high) else high
        if high is not None and low > high:
            raise Impossible(f"it asks for at least {low} characters and at most {high}")
        if not exprs and not excluded:
            if not low and high is None:
                return self.common("string")
            if low > MAX_REPEAT:
                wrong(at, f"minLength {low} is above {MAX_REPEAT:,}, which is not supported")
            # a text with the largest number of characters is longer than any context
            high = None if high is None else min(high, MAX_REPEAT)
            return Seq((Text('"'), Repeat(self.character(), low, high), Text('"')))
        if len(exprs) == 1 and exprs[0][1] and not (low or high is not None or excluded):
            return self.shared(*flat.texts[0][:2])
        if not exprs and not low and high is None:
            return spelling.quoted(spelling.other_names(excluded, ANY), True)
        return spelling.quoted(self.language(exprs, excluded, low, high, at), True)

    def character(self) -> Expr:
        """Return one character of a string, for many copies: all but the usual ones are called."""
        if "rare character" not in self.rules:
            self.rules["rare character"] = spelling.characters(self.loose)[0]
        return Alt((spelling.PLAIN_ASCII, Ref("rare character", called=True)))

    def shared(self, what: str, text: str) -> Expr:
        """Return the strings of a pattern or format, as one rule for all its places."""
        name = f"{what} {text}"
        if name not in self.rules:
            self.rules[name] = _quoted(what, text)
        return Ref(name)

    def strings(self, flat: Flat) -> list[tuple[Expr, bool]]:
        return [
            (_texts(what, text, f"the JSON schema, {where}:"), positive)
            for what, text, positive, where in flat.texts
        ]

    def language(
        self,
        exprs: list[tuple[Expr, bool]],
        excluded: list[str],
        low: int,
        high: int | None,
        at: str,
    ) -> Expr:
        """Return the texts under which all conditions hold, as an automaton."""
        conditions: list[Condition] = [Matches(expr, yes) for expr, yes in exprs]
        if excluded:
            conditions.append(Matches(Alt(tuple(map(Text, excluded))), False))
        found = None
        if low or high is not None:
            if high is not None and high > 100 and conditions:
                found = intersection(conditions)
                size = 1 if found is None else len(found.edges)
                high = max(low, min(high, _MAX_STATES // size))
            conditions.append(Length(low, high))
        if not conditions:
            return Repeat(ANY, 0, None)
        found = intersection(conditions)
        if found is None:
            raise Impossible("no text fits the pattern, the format and the length at once")
        return found

    # ---- numbers ----

    def number(self, flat: Flat, kinds: frozenset[str], at: str) -> Expr:
        whole = kinds == {"integer"}
        low, high = flat.low, flat.high
        excluded = [
            Decimal(repr(v))
            for v in flat.excluded
            if isinstance(v, int | float) and not isinstance(v, bool)
        ]
        plain = not flat.multiples and not excluded and "integer" in kinds
        if plain and low is None and high is None:
            if self.loose and whole and self.keywords.draft <= 4:
                return self.range(flat, True, False)
            return self.common("integer" if whole else "number")
        base = self.range(flat, whole, plain and self.loose)
        if plain:
            return base
        conditions: list[Condition] = [Matches(base)]
        conditions += [Multiple(of, positive) for of, positive in flat.multiples]
        if excluded:
            conditions.append(Matches(Alt(tuple(map(same_number, excluded))), False))
        if "integer" not in kinds:
            dot = Seq((Text("."), Repeat(Text("0"), 1, None)))
            number = Seq((optional(Text("-")), Repeat(digits(), 1, None), optional(dot)))
            conditions.append(Matches(number, False))
        found = intersection(conditions)
        if found is None:
            raise Impossible("no number fits the limits and multipleOf at once")
        return found

    def range(self, flat: Flat, whole: bool, loose: bool) -> Expr:
        """Return the numbers between the limits; `loose`: in all usual ways."""
        low, low_open = flat.low or (None, False)
        high, high_open = flat.high or (None, False)
        found: Expr | None
        if loose and not (whole and self.keywords.draft <= 4):
            found = loose_numbers(low, low_open, high, high_open, whole)
        elif whole:
            first = None if low is None else int(low.to_integral_value(ROUND_CEILING))
            last = None if high is None else int(high.to_integral_value(ROUND_FLOOR))
            if first is not None and low_open and first == low:
                first += 1
            if last is not None and high_open and last == high:
                last -= 1
            found = None
            if first is None or last is None or first <= last:
                found = integer_range(first, last)
            if found is not None and self.loose and self.keywords.draft > 4:
                found = Seq((found, optional(Seq((Text("."), Repeat(Text("0"), 1, None))))))
        elif low is None and high is None:
            found = _DECIMAL
        else:
            found = decimal_range(low, low_open, high, high_open)
        if found is None:
            raise Impossible(f"no {'integer' if whole else 'number'} lies between the limits")
        return found


def convert(
    schema: Any, ignore: Collection[str] = (), form: str = "compact"
) -> tuple[dict[str, Expr], Program | None]:
    """Return the rules of a schema, and their program if they need no change for it.

    Parameters
    ----------
    schema : dict, bool
        As `json.loads` returns it.
    ignore : collection of str
        Keywords to leave unchecked.
    form : "compact" or "any"

    Returns
    -------
    rules : dict
        By name, most of them JSON pointers; the first is ``"root"``.
    program : Program, optional
        None if a check fails.

    Raises
    ------
    ValueError
        If the schema is malformed, or no text is valid.
    tinyllm.UnsupportedError
        If it has a keyword that the grammar cannot enforce.
    """
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; expected 'compact' or 'any'")
    if isinstance(ignore, str) or set(ignore) - IGNORABLE:
        raise ValueError(f"ignore is {ignore!r}; expected a list of {', '.join(sorted(IGNORABLE))}")
    # most that is made here lives until the end, so looking for garbage doubles the time
    with no_collection():
        return _convert(schema, ignore, form == "any")


def _convert(
    schema: Any, ignore: Collection[str], loose: bool
) -> tuple[dict[str, Expr], Program | None]:
    try:
        try:
            text = json.dumps(schema)
        except (TypeError, ValueError):
            text = None
        converter = _Converter(Keywords(Document(schema, text), ignore), loose)
        converter.is_json = text is not None
        root = converter.keywords.document.root
        with localcontext() as context:
            context.prec = 500
            start = converter.run(root)
        whole = {"root": start, **converter.rules}
        program = build_fine(whole)
        if not isinstance(program, set):
            return whole, program
        rules = prune(whole, program)
        if "root" in rules:
            return rules, None
    except RecursionError:
        raise ValueError("the JSON schema is nested too deeply") from None
    if converter.reasons:
        at, reason = converter.reasons[0]
        wrong(at, f"no text is valid: {reason}")
    try:
        check(whole, "root")
    except ValueError as error:  # it names the rules that never end
        raise ValueError(f"the JSON schema: no text is valid: {error}") from None
    return rules, None
