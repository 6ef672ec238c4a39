"""Convert JSON Schema (draft 2020-12) to grammars.

The supported subset is that of llama.cpp's ``json-schema-to-grammar``, with the same choices.
Properties are in the order of the schema. An object with `properties` has no others unless
`additionalProperties` allows them. Whitespace between tokens is limited.

Every text of the grammar is valid. A keyword that the grammar cannot enforce is an error, and the
message has a JSON pointer to it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from typing import Any, NoReturn
from urllib.parse import unquote

from ..errors import UnsupportedError
from . import regex
from .automaton import accepts, build
from .expr import ANY, Alt, Chars, Expr, Ref, Repeat, Seq, Text, check, optional
from .formats import FORMATS
from .gbnf import MAX_REPEAT
from .merge import KINDS, Flat, kinds_of, merge, never_valid
from .numbers import MAX_DIGITS, decimal_range, digits, integer_range

__all__ = ["convert"]

#: Keywords that never make a text invalid.
_NOTES = frozenset(
    "title description default examples example deprecated readOnly writeOnly $schema $id $comment "
    "$defs definitions $anchor $vocabulary contentMediaType contentEncoding contentSchema".split()
)
#: Keywords that `_Converter` turns into a grammar.
_KNOWN = frozenset(
    "$ref allOf anyOf oneOf type enum const properties required additionalProperties items "
    "prefixItems minItems maxItems minLength maxLength pattern format minimum maximum "
    "exclusiveMinimum exclusiveMaximum".split()
)
#: Keywords of the standard that are not supported.
_REFUSED = frozenset(
    "not if then else patternProperties propertyNames dependentRequired dependentSchemas "
    "dependencies contains minContains maxContains uniqueItems multipleOf minProperties "
    "maxProperties unevaluatedItems unevaluatedProperties additionalItems $dynamicRef "
    "$recursiveRef".split()
)
#: Values of these keywords that have no effect.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "uniqueItems": (False,),
    "minProperties": (0,),
    "unevaluatedItems": (True,),
    "unevaluatedProperties": (True,),
    "then": (True,),
    "else": (True,),
    "propertyNames": (True, {}),
    "patternProperties": ({},),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
}
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_MAX_ALTERNATIVES = 1000
_MAX_DEPTH = 100

_HEX = Chars.of([(0x30, 0x39), (0x41, 0x46), (0x61, 0x66)])
# the characters that a JSON string may hold without an escape
_PLAIN = ANY - Chars.of([(0, 0x1F)]) - Chars.among('"\\')
_NOT_SURROGATE = Alt(
    (
        Seq((_HEX - Chars.among("dD"), _HEX, _HEX, _HEX)),
        Seq((Chars.among("dD"), digits(0, 7), _HEX, _HEX)),
    )
)
_CHARACTER = Alt(
    (
        _PLAIN,
        Seq((Text("\\"), Alt((Chars.among('"\\/bfnrt'), Seq((Text("u"), _NOT_SURROGATE)))))),
    )
)
_SHORT = {8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r", 0x22: '\\"', 0x5C: "\\\\"}
_BLANK = Alt((Text(""), Text(" "), Seq((Text("\n"), Repeat(Chars.among(" \t"), 0, 20)))))
_COMMA = Seq((Text(","), Ref("blank")))
_FRACTION = Seq((Text("."), Repeat(digits(), 1, 16)))
_EXPONENT = Seq((Chars.among("eE"), optional(Chars.among("+-")), Repeat(digits(), 1, 2)))
_INTEGER = Seq((optional(Text("-")), Alt((Text("0"), Seq((digits(1), Repeat(digits(), 0, 15)))))))

#: Rules that any schema may use.
_COMMON: dict[str, Expr] = {
    "blank": _BLANK,
    "string": Seq((Text('"'), Repeat(_CHARACTER, 0, None), Text('"'))),
    "number": Seq((_INTEGER, optional(_FRACTION), optional(_EXPONENT))),
    "integer": _INTEGER,
    "boolean": Alt((Text("true"), Text("false"))),
    "null": Text("null"),
}


def _in_json(expr: Expr) -> Expr:
    """Return an expression for the texts of another, as a JSON string spells them."""
    if isinstance(expr, Text):
        return Text(json.dumps(expr.value, ensure_ascii=False)[1:-1])
    if isinstance(expr, Chars):
        special = expr - _PLAIN
        plain = expr & _PLAIN
        spelled = [
            Text(_SHORT.get(code, f"\\u{code:04x}"))
            for low, high in special.ranges
            for code in range(low, high + 1)
        ]
        return Alt((*([plain] if plain.ranges else []), *spelled))
    if isinstance(expr, Repeat):
        return Repeat(_in_json(expr.item), expr.low, expr.high)
    if isinstance(expr, Seq):
        return Seq(tuple(map(_in_json, expr.items)))
    if isinstance(expr, Alt):
        return Alt(tuple(map(_in_json, expr.items)))
    return expr


def _pointer(at: str, *keys: object) -> str:
    return at + "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)


def _wrong(at: str, what: str) -> NoReturn:
    raise ValueError(f"the JSON schema, {at}: {what}")


def _unexpected(at: str, value: object, expected: str) -> NoReturn:
    raise ValueError(f"the JSON schema, {at} is {value!r}; expected {expected}")


def _other_keys(names: Collection[str]) -> Expr:
    """Return the keys without escapes that are not among some names, in quotes."""
    # a name that needs an escape differs from all keys without escapes
    tree: dict[str, Any] = {}
    for name in names:
        if all(c in _PLAIN for c in name):
            at = tree
            for character in name:
                at = at.setdefault(character, {})
            at[""] = {}
    any_rest = Repeat(_PLAIN, 0, None)

    def others(at: dict[str, Any], depth: int) -> Expr:
        onward = [c for c in at if c]
        items: list[Expr] = [Seq((_PLAIN - Chars.among("".join(onward)), any_rest))]
        items += [Seq((Text(c), others(at[c], depth + 1))) for c in onward]
        if "" not in at:
            items.append(Text(""))
        return Alt(tuple(items))

    longest = max(map(len, names), default=0)
    if longest > 200:
        raise UnsupportedError(
            f"the JSON schema has a property name of {longest} characters together with "
            "additionalProperties; expected at most 200"
        )
    return Seq((Text('"'), others(tree, 0), Text('"')))


class _Converter:
    def __init__(self, document: Any, ignore: Collection[str]) -> None:
        self.document = document
        self.ignore = frozenset(ignore)
        self.rules: dict[str, Expr] = {}
        self.names: dict[str, str] = {}

    # ---- rules ----

    def visit(self, schema: Any, at: str) -> Expr:
        """Return a reference to the rule of a schema; equal schemas share a rule."""
        schema, at = self.follow(schema, at)
        try:
            key = json.dumps(schema)
        except (TypeError, ValueError) as error:
            _wrong(at, f"the schema is not JSON: {error}")
        if key not in self.names:
            if at.count("/") > 4 * _MAX_DEPTH:
                _wrong(at, f"schemas are nested more than {_MAX_DEPTH} deep")
            name = self.names[key] = self.define(at, Text("")).name  # its rule may refer to itself
            self.rules[name] = self.rule(schema, at)
        return Ref(self.names[key])

    def define(self, name: str, expr: Expr) -> Ref:
        """Add a rule, under another name if this one is taken; return a reference to it."""
        while name in self.rules:
            name += "'"
        self.rules[name] = expr
        return Ref(name)

    def follow(self, schema: Any, at: str) -> tuple[Any, str]:
        """Return a schema and its pointer, after following a schema that is only a $ref."""
        seen = set()
        while isinstance(schema, Mapping) and set(schema) - _NOTES == {"$ref"}:
            if at in seen:
                _wrong(at, f"{schema['$ref']!r} leads back to itself; expected a schema")
            seen.add(at)
            schema, at = self.resolve(schema["$ref"], at)
        return schema, at

    def resolve(self, ref: Any, at: str) -> tuple[Any, str]:
        if not isinstance(ref, str):
            _unexpected(_pointer(at, "$ref"), ref, "a string")
        if not ref.startswith("#"):
            raise UnsupportedError(
                f"the JSON schema, {at}/$ref: {ref!r} is in another document; expected a reference "
                "that starts with '#'"
            )
        found = self.document
        path = unquote(ref[1:])
        if path and not path.startswith("/"):
            raise UnsupportedError(
                f"the JSON schema, {at}/$ref: {ref!r}: anchors are not supported"
            )
        for part in path.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping) and key in found:
                found = found[key]
            elif isinstance(found, list) and key.isdecimal() and int(key[:9]) < len(found):
                found = found[int(key)]
            else:
                _wrong(
                    _pointer(at, "$ref"),
                    f"{ref!r} is not in the document; no {key!r} found",
                )
        return found, ref

    def rule(self, schema: Any, at: str) -> Expr:
        if schema is True or schema == {}:
            return self.anything()
        if schema is False:
            _wrong(at, "false: no text is valid")
        self.check(schema, at)
        keys = set(schema) - _NOTES
        for name in ("anyOf", "oneOf", "allOf"):
            if keys & _KNOWN == {name} and (name != "allOf" or len(schema[name]) == 1):
                parts = schema[name]
                if name == "oneOf":
                    self.check_one_of(parts, at)
                items = [
                    self.visit(part, _pointer(at, name, i))
                    for i, part in enumerate(parts)
                    if part is not False
                ]
                if not items:
                    _wrong(_pointer(at, name), "no alternative is left")
                return Alt(tuple(items))
        flats = list(self.expand(schema, at, ()))
        items, reason = [], "it contradicts itself"
        for flat in flats:
            try:
                items.append(self.flat(flat, at))
            except _Impossible as impossible:
                reason = str(impossible)
        if not items:
            _wrong(at, f"no text is valid: {reason}")
        return items[0] if len(items) == 1 else Alt(tuple(items))

    def check(self, schema: Any, at: str) -> None:
        """Raise if a value is not a schema, or has a keyword that is not supported."""
        if not isinstance(schema, Mapping):
            _unexpected(at, schema, "an object, true or false")
        for key, value in schema.items():
            where = _pointer(at, key)
            if key in _REFUSED and key not in self.ignore:
                if any(
                    value is ok or (value == ok and value is not True)
                    for ok in _HARMLESS.get(key, ())
                ):
                    continue
                if key in ("then", "else") and "if" not in schema:
                    continue
                raise UnsupportedError(
                    f"the JSON schema, {where}: the keyword {key!r} is not supported; "
                    f"ignore=[{key!r}] leaves it unchecked"
                )
            if key in ("allOf", "anyOf", "oneOf", "prefixItems") and (
                not isinstance(value, list) or not value
            ):
                _unexpected(where, value, "a non-empty list of schemas")
            if key in ("properties", "$defs") and not isinstance(value, Mapping):
                _unexpected(where, value, "an object")
            if key == "enum" and not (isinstance(value, list) and value):
                _unexpected(where, value, "a non-empty list of values")
            if key == "required" and not (
                isinstance(value, list) and all(isinstance(name, str) for name in value)
            ):
                _unexpected(where, value, "a list of names")
            if key == "type":
                for name in value if isinstance(value, list) else [value]:
                    if name not in KINDS:
                        _unexpected(where, name, f"one of {', '.join(KINDS)}")
            if key in _COUNTS and (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or value < 0
                or value != int(value)
            ):
                _unexpected(where, value, "an integer of at least 0")
            if key in _LIMITS:
                if isinstance(value, bool) or not isinstance(value, int | float):
                    _unexpected(where, value, "a number")
                if not math.isfinite(value) or len(format(Decimal(repr(value)), "f")) > MAX_DIGITS:
                    _unexpected(where, value, f"a finite number of at most {MAX_DIGITS} digits")

    # ---- combining ----

    def expand(self, schema: Any, at: str, seen: tuple[str, ...]) -> Iterator[Flat]:
        """Yield schemas without $ref, allOf, anyOf and oneOf whose union is equivalent."""
        if schema is False:
            return
        if schema is True:
            yield {}
            return
        if at in seen or len(seen) > _MAX_DEPTH:
            _wrong(at, "a $ref leads back to itself; expected a schema")
        self.check(schema, at)
        seen = (*seen, at)
        base = {k: v for k, v in schema.items() if k in _KNOWN}
        groups: list[list[Flat]] = []
        if "$ref" in base:
            groups.append(list(self.expand(*self.resolve(base.pop("$ref"), at), seen)))
        for i, part in enumerate(base.pop("allOf", ())):
            groups.append(list(self.expand(part, _pointer(at, "allOf", i), seen)))
        for name in ("anyOf", "oneOf"):
            parts = base.pop(name, None)
            if parts is None:
                continue
            if name == "oneOf":
                self.check_one_of(parts, at)
            groups.append(
                [
                    flat
                    for i, part in enumerate(parts)
                    for flat in self.expand(part, _pointer(at, name, i), seen)
                ]
            )
        flats = [base]
        for group in groups:
            merged = (merge(a, b, at) for a in flats for b in group)
            flats = [flat for flat in merged if flat is not None]
            if len(flats) > _MAX_ALTERNATIVES:
                _wrong(at, f"more than {_MAX_ALTERNATIVES:,} combinations of alternatives")
        yield from flats

    def check_one_of(self, parts: list[Any], at: str) -> None:
        """Raise if two alternatives may hold at once, which would make a text invalid."""
        if "oneOf" in self.ignore:
            return
        flats = [list(self.expand(p, _pointer(at, "oneOf", i), ())) for i, p in enumerate(parts)]

        def look(schema: Any) -> list[Flat]:
            return list(self.expand(schema, at + "/...", ()))

        for i, some in enumerate(flats):
            for j, others in enumerate(flats):
                if i != j and not all(never_valid(a, b, look) for a in some for b in others):
                    raise UnsupportedError(
                        f"the JSON schema, {at}/oneOf: alternatives {min(i, j)} and {max(i, j)} "
                        "may hold at once; ignore=['oneOf'] treats it as anyOf"
                    )

    # ---- one schema without combinations ----

    def flat(self, flat: Flat, at: str) -> Expr:
        if "enum" in flat or "const" in flat:
            return self.constants(flat, at)
        kinds = kinds_of(flat)
        if len(kinds) == len(KINDS) - 1 and not set(flat) - {"type"}:
            return self.anything()
        builders = {
            "object": self.object,
            "array": self.array,
            "string": self.string,
            "number": self.number,
            "integer": self.integer,
        }
        items: list[Expr] = []
        reason: _Impossible | None = None
        for kind in kinds:
            try:
                build = builders.get(kind)
                items.append(self.common(kind) if build is None else build(flat, at))
            except _Impossible as impossible:
                reason = impossible
        if not items:
            raise reason or _Impossible("no type is left")
        return items[0] if len(items) == 1 else Alt(tuple(items))

    def common(self, name: str) -> Ref:
        if name not in self.rules:
            self.rules[name] = _COMMON[name]
        return Ref(name)

    def anything(self) -> Expr:
        if "value" not in self.rules:
            self.common("blank")
            value, blank = Ref("value"), Ref("blank")
            pair = Seq((self.common("string"), Text(":"), blank, value, blank))
            pairs = Seq((pair, Repeat(Seq((_COMMA, pair)), 0, None)))
            item = Seq((value, blank))
            items = Seq((item, Repeat(Seq((_COMMA, item)), 0, None)))
            self.rules["value"] = Alt(
                (
                    Seq((Text("{"), blank, optional(pairs), Text("}"))),
                    Seq((Text("["), blank, optional(items), Text("]"))),
                    *map(self.common, ("string", "number", "boolean", "null")),
                )
            )
        return Ref("value")

    def constants(self, flat: Flat, at: str) -> Expr:
        values = flat.get("enum", [flat.get("const")])
        rest = {k: v for k, v in flat.items() if k not in ("enum", "const")}
        try:
            texts = [
                json.dumps(v, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
                for v in values
            ]
        except (TypeError, ValueError) as error:
            _wrong(at, f"a constant is not JSON: {error}")
        for i, text in enumerate(texts):
            if any(0xD800 <= ord(c) <= 0xDFFF for c in text):
                texts[i] = json.dumps(values[i], separators=(",", ":"))
        if rest:
            # keep the values that a grammar of the other keywords accepts
            others = _Converter(self.document, self.ignore)
            others.rules["root"] = Text("")
            others.rules["root"] = others.flat(rest, at)
            program = build(check(others.rules, "root"))
            texts = [text for text in texts if accepts(program, text)]
        if not texts:
            raise _Impossible("no value of the enum fits the other keywords")
        return Alt(tuple(map(Text, dict.fromkeys(texts))))

    def object(self, flat: Flat, at: str) -> Expr:
        properties = dict(flat.get("properties", {}))
        required = list(dict.fromkeys(flat.get("required", ())))
        more = flat.get("additionalProperties", not properties and not required)
        if not isinstance(more, bool | Mapping):
            _unexpected(_pointer(at, "additionalProperties"), more, "an object, true or false")
        blank = self.common("blank")
        for name in required:
            properties.setdefault(name, flat.get("additionalProperties", True))
        pairs: list[tuple[Expr, bool]] = []
        for name, schema in properties.items():
            where = _pointer(at, "properties", name)
            if not isinstance(name, str):
                _wrong(where, f"the name is {name!r}; expected a string")
            if schema is False:
                if name in required:
                    raise _Impossible(f"{name!r} is required, and its schema is false")
                continue
            key = json.dumps(name, ensure_ascii=any(0xD800 <= ord(c) <= 0xDFFF for c in name))
            value = self.visit(schema, where)
            pairs.append((Seq((Text(key + ":"), blank, value, blank)), name in required))
        start, end = Seq((Text("{"), blank)), Text("}")
        others: Expr | None = None
        if more is not False:
            others = Seq(
                (
                    _other_keys(properties),
                    Text(":"),
                    blank,
                    self.visit(more, _pointer(at, "additionalProperties")),
                    blank,
                )
            )
        return Seq((start, self.members(pairs, others, at), end))

    def members(self, pairs: list[tuple[Expr, bool]], others: Expr | None, at: str) -> Expr:
        """Return the properties in order, with commas; those not required are optional."""
        # rest[i]: what may follow after a first member, if pair i is next
        rest: list[Expr] = [Text("") if others is None else Repeat(Seq((_COMMA, others)), 0, None)]
        for i in range(len(pairs) - 1, 0, -1):
            pair, needed = pairs[i]
            rule = Seq((Seq((_COMMA, pair)) if needed else optional(Seq((_COMMA, pair))), rest[0]))
            rest.insert(0, self.define(f"{at} (from property {i})", rule))
        starts: list[Expr] = []
        for i, (pair, needed) in enumerate(pairs):
            starts.append(Seq((pair, rest[i])))
            if needed:
                return Alt(tuple(starts))
        if others is not None:
            starts.append(Seq((others, rest[-1])))
        return Alt((*starts, Text("")))

    def array(self, flat: Flat, at: str) -> Expr:
        prefix = flat.get("prefixItems", [])
        low = int(flat.get("minItems", 0))
        # as in llama.cpp, prefixItems allows no further items unless minItems asks for them
        items = flat.get("items", low > len(prefix) or not prefix)
        high = None if "maxItems" not in flat else int(flat["maxItems"])
        if isinstance(items, list):
            raise UnsupportedError(
                f"the JSON schema, {at}/items is a list; expected prefixItems (draft 2020-12)"
            )
        if items is False:
            high = len(prefix) if high is None else min(high, len(prefix))
        for i, schema in enumerate(prefix):
            if schema is False:
                prefix, high = prefix[:i], i if high is None else min(high, i)
                break
        if high is not None and low > high:
            raise _Impossible(f"it asks for at least {low} items and at most {high}")
        blank = self.common("blank")
        slots = [
            Seq((self.visit(schema, _pointer(at, "prefixItems", i)), blank))
            for i, schema in enumerate(prefix[:high])
        ]
        body: Expr = Text("")
        if items is not False and (high is None or high > len(slots)):
            item = Seq((self.visit(items, _pointer(at, "items")), blank))
            least = max(low - len(slots), 0)
            most = None if high is None else high - len(slots)
            if slots:
                body = Repeat(Seq((_COMMA, item)), least, most)
            else:
                more = Repeat(
                    Seq((_COMMA, item)), max(least - 1, 0), None if most is None else most - 1
                )
                body = Seq((item, more))
                body = body if least else optional(body)
        for i in range(len(slots) - 1, -1, -1):
            body = Seq((slots[i] if i == 0 else Seq((_COMMA, slots[i])), body))
            if i >= low:
                body = optional(body)
        return Seq((Text("["), blank, body, Text("]")))

    def string(self, flat: Flat, at: str) -> Expr:
        low = int(flat.get("minLength", 0))
        high = None if "maxLength" not in flat else int(flat["maxLength"])
        if high is not None and low > high:
            raise _Impossible(f"it asks for at least {low} characters and at most {high}")
        pattern = flat.get("pattern")
        form = flat.get("format")
        checked = form in FORMATS if isinstance(form, str) else False
        limited = bool(low) or high is not None
        if sum((pattern is not None, checked, limited)) > 1:
            one, two = [
                name
                for name, there in (
                    ("pattern", pattern is not None),
                    (f"format {form!r}", checked),
                    ("minLength or maxLength", limited),
                )
                if there
            ][:2]
            raise UnsupportedError(
                f"the JSON schema, {at}: {one} together with {two} is not supported"
            )
        if pattern is not None or checked:
            inner = (
                regex.parse(FORMATS[str(form)])
                if pattern is None
                else regex.parse(pattern, True, f"the JSON schema, {at}/pattern:")
            )
            return Seq((Text('"'), _in_json(inner), Text('"')))
        if not limited:
            return self.common("string")
        if max(low, high or 0) > MAX_REPEAT:
            _wrong(at, f"a length is above {MAX_REPEAT:,}, which is not supported")
        return Seq((Text('"'), Repeat(_CHARACTER, low, high), Text('"')))

    def integer(self, flat: Flat, at: str) -> Expr:
        if not any(name in flat for name in _LIMITS):
            return self.common("integer")
        lows = [math.ceil(Decimal(repr(flat["minimum"])))] if "minimum" in flat else []
        highs = [math.floor(Decimal(repr(flat["maximum"])))] if "maximum" in flat else []
        if "exclusiveMinimum" in flat:
            lows.append(math.floor(Decimal(repr(flat["exclusiveMinimum"]))) + 1)
        if "exclusiveMaximum" in flat:
            highs.append(math.ceil(Decimal(repr(flat["exclusiveMaximum"]))) - 1)
        found = integer_range(max(lows, default=None), min(highs, default=None))
        if found is None:
            raise _Impossible("no integer lies between the limits")
        return found

    def number(self, flat: Flat, at: str) -> Expr:
        if not any(name in flat for name in _LIMITS):
            return self.common("number")
        # lows: (limit, exclusive); highs: (limit, inclusive); of equals, the exclusive one counts
        lows = [
            (Decimal(repr(flat[k])), k != "minimum")
            for k in ("minimum", "exclusiveMinimum")
            if k in flat
        ]
        highs = [
            (Decimal(repr(flat[k])), k == "maximum")
            for k in ("maximum", "exclusiveMaximum")
            if k in flat
        ]
        low, low_open = max(lows, default=(None, False))
        high, high_closed = min(highs, default=(None, True))
        found = decimal_range(low, low_open, high, not high_closed)
        if found is None:
            raise _Impossible("no number lies between the limits")
        return found


class _Impossible(Exception):
    """No text is valid under a schema; the message is the reason."""


def convert(schema: Any, ignore: Collection[str] = ()) -> dict[str, Expr]:
    """Return the rules of a schema.

    Parameters
    ----------
    schema : dict, bool
        As `json.loads` returns it.
    ignore : collection of str
        Unsupported keywords to leave unchecked.

    Returns
    -------
    dict
        Rules by name, most of them JSON pointers; the first is ``"root"``.

    Raises
    ------
    ValueError
        If the schema is malformed, or no text is valid.
    tinyllm.UnsupportedError
        If it has a keyword that the grammar cannot enforce.
    """
    unknown = sorted(set(ignore) - _REFUSED - {"oneOf"})
    if isinstance(ignore, str) or unknown:
        raise ValueError(
            f"ignore is {ignore!r}; expected a list of {', '.join(sorted(_REFUSED | {'oneOf'}))}"
        )
    converter = _Converter(schema, ignore)
    try:
        start = converter.visit(schema, "#")
    except RecursionError:
        raise ValueError("the JSON schema is nested too deeply") from None
    return {"root": start, **converter.rules}
