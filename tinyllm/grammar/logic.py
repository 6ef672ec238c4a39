"""Combinations of JSON schemas as alternatives of plain conditions.

`Logic.expand` returns what is valid under a schema, `Logic.negate` what is not, as lists of `Flat`:
a value is valid if the conditions of one of them hold. A list may leave out some valid values
where they cannot be told apart by a grammar, but it never has invalid ones. So `oneOf` is right
whatever stands beside it: each alternative is merged with what the others do not allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any, TypeAlias

from .document import MAPPING, pointer, unexpected, unsupported, wrong
from .flat import (
    ALL,
    TYPES,
    Flat,
    Limit,
    Shape,
    Tuple,
    canonical,
    key_of,
    kind_of,
    merge,
    nothing,
)
from .formats import FORMATS, exact
from .keywords import LIMITS, Keywords
from .numbers import MAX_DIGITS
from .valid import Unclear, Validity

__all__ = ["Logic"]

_IMPLIED = {
    "object": (
        "properties required additionalProperties patternProperties propertyNames minProperties "
        "maxProperties dependentRequired dependentSchemas"
    ).split(),
    "array": "items prefixItems minItems maxItems contains uniqueItems".split(),
    "string": "minLength maxLength pattern format".split(),
    "number": "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf".split(),
}
_KIND_OF_KEYWORD = {key: TYPES[kind] for kind, keys in _IMPLIED.items() for key in keys}
_COUNTS = (
    ("minLength", "min_length"), ("maxLength", "max_length"), ("minItems", "min_items"),
    ("maxItems", "max_items"), ("minProperties", "min_names"), ("maxProperties", "max_names"),
)  # fmt: skip
_SHAPES = ("properties", "patternProperties", "additionalProperties")
_MAX_ALTERNATIVES = 1000
#: Pairs of alternatives of all `oneOf` that are compared. More take many minutes.
_MAX_OVERLAPS = 50_000
#: More alternatives of a complement are left out.
_MAX_COMPLEMENT = 64
_MAX_DEPTH = 100
_MAX_POWER = 90

Flats: TypeAlias = list[Flat]
_Part: TypeAlias = tuple[str, int]  # a keyword, and which of its schemas


def _only(kind: str, **conditions: Any) -> Flat:
    return Flat(kinds=TYPES[kind], typed=True, **conditions)


def _decimal(value: Any) -> Decimal:
    return Decimal(repr(value))


class Logic:
    """The logic of the schemas of one document.

    Parameters
    ----------
    keywords : Keywords
    """

    def __init__(self, keywords: Keywords) -> None:
        self.keywords = keywords
        self.valid = Validity(keywords)
        self._expanded: dict[int, tuple[Any, Flats, bool]] = {}
        self._by_key: dict[bytes | str, tuple[Flats, bool]] = {}
        # how often alternatives lacked some valid values: those of `negate` may
        self._partial = 0
        self._nested = 0
        self._overlaps = 0
        # by identity, with what keeps it alive
        self._disjoint: dict[tuple[int, int, int, int], tuple[Flat, Flat, bool]] = {}
        self._known_tags: dict[int, tuple[tuple[Shape, ...], dict[str, frozenset[str]]]] = {}
        self._canonical: dict[int, tuple[tuple[Any, ...], frozenset[str]]] = {}

    # ---- reading one schema ----

    def _limit(self, value: Any, low: bool, where: str) -> Decimal:
        """Return a limit of a number with few digits, which allows no more than the limit."""
        limit = _decimal(value)
        largest = Decimal(10) ** MAX_DIGITS
        if abs(limit) >= largest:
            if low == (limit > 0):
                unexpected(where, value, f"a number of at most {MAX_DIGITS} digits")
            return (-1 if low else 1) * Decimal(10) ** (MAX_DIGITS // 2)
        if int(limit.as_tuple().exponent) >= -_MAX_POWER:
            return limit
        step = Decimal(10) ** -_MAX_POWER
        return limit.quantize(step, ROUND_CEILING if low else ROUND_FLOOR)

    def flat(self, keys: Mapping[str, Any], at: str) -> Flat:
        """Return the conditions of the keywords of one schema that are not combinations."""
        conditions: dict[str, Any] = {}
        if "type" in keys:
            kinds = keys["type"] if isinstance(keys["type"], list) else [keys["type"]]
            conditions["kinds"] = frozenset().union(*(TYPES[k] for k in kinds))
            conditions["typed"] = True
        named = [_KIND_OF_KEYWORD[k] for k in keys if k in _KIND_OF_KEYWORD]
        implied = frozenset().union(*named) if named else frozenset()
        if implied:
            conditions["implied"] = implied
        if "enum" in keys or "const" in keys:
            values = list(keys.get("enum", [keys.get("const")]))
            if "const" in keys:
                values = [v for v in values if canonical(v) == canonical(keys["const"])]
            if "type" in keys:
                draft = self.keywords.draft
                values = [v for v in values if kind_of(v, draft) in conditions["kinds"]]
            unique = {canonical(v): v for v in reversed(values)}
            conditions["values"] = tuple(reversed(unique.values()))
        if "integer" in implied:
            self._numbers(keys, at, conditions)
        if "string" in implied:
            self._strings(keys, at, conditions)
        if "array" in implied:
            self._arrays(keys, conditions)
        if "object" in implied:
            self._objects(keys, conditions)
        for key, name in _COUNTS:
            if key in keys:
                conditions[name] = int(keys[key])
        return Flat(**conditions) if conditions else nothing()

    def _numbers(self, keys: Mapping[str, Any], at: str, conditions: dict[str, Any]) -> None:
        lows: list[Limit] = []
        highs: list[Limit] = []
        for key in LIMITS:
            if key in keys:
                low = "inimum" in key
                limit = self._limit(keys[key], low, pointer(at, key))
                (lows if low else highs).append((limit, key.startswith("exclusive")))
        if lows:
            conditions["low"] = max(lows)
        if highs:
            conditions["high"] = min(highs, key=lambda x: (x[0], not x[1]))
        if "multipleOf" in keys:
            conditions["multiples"] = ((_decimal(keys["multipleOf"]), True),)

    @staticmethod
    def _strings(keys: Mapping[str, Any], at: str, conditions: dict[str, Any]) -> None:
        texts = [
            (key, keys[key], True, pointer(at, key))
            for key in ("pattern", "format")
            if key in keys and (key == "pattern" or keys[key] in FORMATS)
        ]
        if texts:
            conditions["texts"] = tuple(texts)

    def _arrays(self, keys: Mapping[str, Any], conditions: dict[str, Any]) -> None:
        if "items" in keys or "prefixItems" in keys:
            prefix = tuple(keys.get("prefixItems", ()))
            rest = keys.get("items", True)
            conditions["tuples"] = (Tuple(prefix, rest, True, "items" in keys),)
        if "contains" in keys:
            low = int(keys.get("minContains", 1))
            high = int(keys["maxContains"]) if "maxContains" in keys else None
            if low or high is not None:
                conditions["contains"] = ((keys["contains"], low, high),)
        if keys.get("uniqueItems") is True:
            conditions["unique"] = True

    def _objects(self, keys: Mapping[str, Any], conditions: dict[str, Any]) -> None:
        needed = tuple(dict.fromkeys(keys.get("required", ())))
        if needed or any(k in keys for k in _SHAPES):
            properties = keys.get("properties", {})
            conditions["shapes"] = (
                Shape(
                    properties,
                    keys.get("patternProperties", {}),
                    keys.get("additionalProperties", True),
                    tuple(dict.fromkeys((*properties, *needed))),
                    "additionalProperties" in keys,
                ),
            )
        if needed:
            conditions["required"] = needed
        if keys.get("propertyNames", True) not in (True, {}):
            conditions["names"] = (keys["propertyNames"],)

    # ---- what is valid ----

    def expand(self, schema: Any, at: str, seen: tuple[str, ...] = ()) -> Flats:
        """Return alternatives of conditions under which a value is valid.

        Parameters
        ----------
        schema : dict or bool
        at : str
            The JSON pointer to it.
        seen : tuple of str
            The schemas that led here without a step into the value.

        Returns
        -------
        list of Flat
            Some valid values may be missing; `_partial` grows then.
        """
        if schema is False:
            return []
        if schema is True:
            return [nothing()]
        known = self._expanded.get(id(schema))
        if known is None:
            # combinations are often made again, as equal schemas
            key = key_of(schema)
            if key not in self._by_key:
                before = self._partial
                flats = self._expand(schema, at, seen)
                self._by_key[key] = flats, self._partial == before
            known = self._expanded[id(schema)] = (schema, *self._by_key[key])
        if not known[2]:
            self._partial += 1
        return known[1]

    def known(self, schema: Any, at: str, seen: tuple[str, ...] = ()) -> tuple[Flats, bool]:
        """Return what `expand` does, and whether no valid value is missing."""
        before = self._partial
        flats = self.expand(schema, at, seen)
        return flats, self._partial == before

    def _expand(self, schema: Any, at: str, seen: tuple[str, ...]) -> Flats:
        keys, seen = self._enter(schema, at, seen)
        flats = [self.flat(keys, at)]
        if set(keys) <= {"enum", "const", "type"}:
            return flats if flats[0].values != () else []
        if flats[0].values is None:
            valued: list[_Part | None] = []  # the parts that name values; None: not only values
            for part, group in self._groups(keys, at, seen):
                if any(flat.values is not None for flat in group):
                    whole = all(flat.values is not None for flat in group)
                    valued.append(part if whole else None)
                merged = (merge(a, b) for a in flats for b in group)
                flats = [flat for flat in merged if flat is not None]
                if len(flats) > _MAX_ALTERNATIVES:
                    wrong(at, f"more than {_MAX_ALTERNATIVES:,} combinations of alternatives")
            flats = [self._closed(flat, keys) for flat in flats]
            if len(valued) == 1 and valued[0] is not None:
                # all values come from there, where they were tested
                key, i = valued[0]
                parts = [True if i == j else part for j, part in enumerate(keys.get("allOf", ()))]
                keys = {k: v for k, v in keys.items() if k != key}
                keys |= {"allOf": parts} if key == "allOf" else {}
        return self._filtered(flats, lambda value: self.valid.holds(value, keys, at))

    def _enter(
        self, schema: Any, at: str, seen: tuple[str, ...]
    ) -> tuple[Mapping[str, Any], tuple[str, ...]]:
        if at in seen or len(seen) > _MAX_DEPTH:
            wrong(at, "a $ref leads back to itself; expected a schema")
        return self.keywords.read(schema, at), (*seen, at)

    def _filtered(self, flats: Flats, test: Callable[[Any], bool]) -> Flats:
        """Return flats, with only those of their values that pass a test."""
        out = []
        for flat in flats:
            if flat.values is None:
                out.append(flat)
                continue
            kept = []
            for value in flat.values:
                try:
                    if test(value):
                        kept.append(value)
                except Unclear:
                    self._partial += 1
            if kept:
                out.append(Flat(values=tuple(kept)))
        return out

    def _groups(
        self, keys: Mapping[str, Any], at: str, seen: tuple[str, ...]
    ) -> Iterator[tuple[_Part | None, Flats]]:
        """Yield the alternatives of each combination in a schema.

        With its keyword and number, if all alternatives are those of its schemas, unchanged.
        """
        for key in ("$ref", "$dynamicRef", "$recursiveRef"):
            if key in keys:
                yield (key, 0), self.expand(*self.keywords.resolve(keys[key], at, key), seen)
        for i, part in enumerate(keys.get("allOf", ())):
            yield ("allOf", i), self.expand(part, pointer(at, "allOf", i), seen)
        tag = self._tag(keys)
        for key in ("anyOf", "oneOf"):
            if key not in keys:
                continue
            flats, whole = [], []
            for i, part in enumerate(keys[key]):
                found, all_known = self.known(part, pointer(at, key, i), seen)
                merged = (merge(flat, tag) for flat in found)
                flats.append([flat for flat in merged if flat is not None])
                whole.append(all_known)
            if key == "oneOf":
                flats = self.exclusive(flats, whole, keys[key], at, seen)
            yield (key, 0) if key == "anyOf" else None, [flat for some in flats for flat in some]
        if "not" in keys:
            yield None, self.negate(keys["not"], pointer(at, "not"), seen)
        if "if" in keys and ("then" in keys or "else" in keys):
            condition, where = keys["if"], pointer(at, "if")
            yes, no = keys.get("then", True), keys.get("else", True)
            then = (self.expand(condition, where, seen), self.expand(yes, at + "/then", seen))
            other = (self.negate(condition, where, seen), self.expand(no, at + "/else", seen))
            yield None, self._product([then[0], then[1]]) + self._product([other[0], other[1]])
        for name, needed in keys.get("dependentRequired", {}).items():
            there = _only("object", required=tuple(dict.fromkeys((name, *needed))))
            yield None, [self._absent(name), there]
        for name, part in keys.get("dependentSchemas", {}).items():
            inner = self.expand(part, pointer(at, "dependentSchemas", name), seen)
            there = _only("object", required=(name,))
            yield None, [self._absent(name), *self._product([[there], inner])]

    @staticmethod
    def _absent(name: str) -> Flat:
        return Flat(shapes=(Shape({name: False}),))

    @staticmethod
    def _tag(keys: Mapping[str, Any]) -> Flat:
        """Return the condition of OpenAPI's `discriminator`: its property is there."""
        tag = keys.get("discriminator")
        name = tag.get("propertyName") if isinstance(tag, MAPPING) else None
        return Flat(required=(name,)) if isinstance(name, str) else nothing()

    @staticmethod
    def _product(groups: Iterable[Flats], most: int = _MAX_ALTERNATIVES) -> Flats:
        flats = [nothing()]
        for group in groups:
            merged = (merge(a, b) for a in flats for b in group)
            flats = [flat for flat in merged if flat is not None][:most]
        return flats

    def exclusive(
        self,
        flats: list[Flats],
        whole: list[bool],
        parts: list[Any],
        at: str,
        seen: tuple[str, ...] = (),
    ) -> list[Flats]:
        """Return the alternatives of `oneOf`, each without what another one allows too.

        Alternatives that may lack valid values (`whole` is false) do not show what is disjoint.
        """
        complements: dict[int, Flats] = {}
        out = []
        for i, mine in enumerate(flats):
            left = mine
            for j, others in enumerate(flats):
                if i == j:
                    continue
                kept: Flats = []
                for flat in left:
                    self._overlaps += len(others)
                    if self._overlaps > _MAX_OVERLAPS:
                        unsupported(
                            pointer(at, "oneOf"),
                            "its alternatives overlap in too many ways; ignore=['oneOf'] leaves "
                            "unchecked that only one of them holds",
                        )
                    if whole[j] and all(self.disjoint(flat, other) for other in others):
                        kept.append(flat)
                        continue
                    longer = self._not_empty(flat) if whole[j] else None
                    if longer and all(self.disjoint(longer, other) for other in others):
                        where = pointer(at, "oneOf", j)
                        kept.append(longer if self._may_hold([], parts[j], where) else flat)
                        continue
                    if j not in complements:
                        where = pointer(at, "oneOf", j)
                        complements[j] = self.negate(parts[j], where, seen)
                    merged = (merge(flat, no) for no in complements[j])
                    kept += [m for m in merged if m is not None]
                self._partial += len(kept) > _MAX_ALTERNATIVES
                left = kept[:_MAX_ALTERNATIVES]
            out.append(left)
        return out

    @staticmethod
    def _not_empty(flat: Flat) -> Flat | None:
        """Return conditions of arrays without the empty array, which most schemas share."""
        if flat.kinds != {"array"} or flat.values is not None or flat.min_items:
            return None
        return flat.changed(min_items=1)

    def _may_hold(self, value: Any, schema: Any, at: str) -> bool:
        try:
            return self.valid(value, schema, at)
        except Unclear:
            return True

    def _closed(self, flat: Flat, keys: Mapping[str, Any]) -> Flat:
        """Return a flat with `unevaluatedProperties` and `unevaluatedItems` of the schema."""
        rest = keys.get("unevaluatedProperties", True)
        known = [s for s in flat.shapes if s.listed is not None]
        if rest is not True and not any(s.opened for s in known):
            names = {name: True for s in known for name in s.properties}
            patterns = {pattern: True for s in known for pattern in s.patterns}
            shape = Shape(names, patterns, rest, (), True)
            flat = flat.changed(shapes=(*flat.shapes, shape))
        rest = keys.get("unevaluatedItems", True)
        if rest is not True and not any(t.opened for t in flat.tuples if t.listed):
            length = max((len(t.prefix) for t in flat.tuples if t.listed), default=0)
            flat = flat.changed(tuples=(*flat.tuples, Tuple((True,) * length, rest, True, True)))
        return flat

    # ---- what is not valid ----

    def negate(self, schema: Any, at: str, seen: tuple[str, ...] = ()) -> Flats:
        """Return alternatives of conditions under which a value is not valid.

        Parameters
        ----------
        schema : dict or bool
        at : str
        seen : tuple of str

        Returns
        -------
        list of Flat
            Some invalid values may be missing.
        """
        if isinstance(schema, bool):
            return [] if schema else [nothing()]
        self._partial += 1
        keys, seen = self._enter(schema, at, seen)
        out = [
            *self._not_types(keys),
            *self._not_values(keys, at),
            *self._not_numbers(keys, at),
            *self._not_strings(keys, at),
            *self._not_arrays(keys),
            *self._not_objects(keys),
            *self._not_groups(keys, at, seen),
        ]

        def invalid(value: Any) -> bool:
            return not self.valid(value, schema, at)

        return self._filtered(out, invalid)[:_MAX_COMPLEMENT]

    def _not_types(self, keys: Mapping[str, Any]) -> Flats:
        if "type" not in keys:
            return []
        kinds = keys["type"] if isinstance(keys["type"], list) else [keys["type"]]
        rest = ALL.difference(*(TYPES[k] for k in kinds))
        return [Flat(kinds=rest, typed=True)] if rest else []

    def _not_values(self, keys: Mapping[str, Any], at: str) -> Flats:
        if "enum" not in keys and "const" not in keys:
            return []
        values = self.flat(keys, at).values or ()
        plain = tuple(v for v in values if not isinstance(v, list | dict))
        groups: list[Flats] = [[Flat(excluded=plain)]]
        groups += [
            self.negate(self.constant(v), at + "/enum")
            for v in values
            if isinstance(v, list | dict)
        ]
        return self._product(groups, _MAX_COMPLEMENT)

    @staticmethod
    def constant(value: Any) -> Any:
        """Return a schema of one array or object."""
        if isinstance(value, list):
            n = len(value)
            items = [{"const": v} for v in value]
            schema: dict[str, Any] = {"type": "array", "items": False, "minItems": n}
            return {**schema, "prefixItems": items} if items else schema
        properties = {k: {"const": v} for k, v in value.items()}
        return {
            "type": "object",
            "properties": properties,
            "required": list(value),
            "additionalProperties": False,
        }

    def _not_numbers(self, keys: Mapping[str, Any], at: str) -> Flats:
        out: Flats = []
        for key in LIMITS:
            if key in keys:
                low = "inimum" in key
                # rounded the other way, which leaves values out
                limit = (self._limit(keys[key], not low, pointer(at, key)), key[0] != "e")
                out.append(_only("number", **{"high" if low else "low": limit}))
        if "multipleOf" in keys:
            of = ((_decimal(keys["multipleOf"]), False),)
            out.append(_only("number", multiples=of))
        return out

    def _not_strings(self, keys: Mapping[str, Any], at: str) -> Flats:
        out: Flats = []
        if keys.get("minLength", 0) > 0:
            out.append(_only("string", max_length=int(keys["minLength"]) - 1))
        if "maxLength" in keys:
            out.append(_only("string", min_length=int(keys["maxLength"]) + 1))
        for key in ("pattern", "format"):
            if key in keys and (key == "pattern" or exact(keys[key])):
                text = (key, keys[key], False, pointer(at, key))
                out.append(_only("string", texts=(text,)))
        return out

    def _not_arrays(self, keys: Mapping[str, Any]) -> Flats:
        out: Flats = []
        if keys.get("minItems", 0) > 0:
            out.append(_only("array", max_items=int(keys["minItems"]) - 1))
        if "maxItems" in keys:
            out.append(_only("array", min_items=int(keys["maxItems"]) + 1))
        prefix, rest = list(keys.get("prefixItems", ())), keys.get("items", True)
        # an item after the first ones may be any; only a few places are tried
        tried = 0 if rest is True or not prefix else 1 if rest is False else 3
        for i, schema in enumerate([*prefix, *[rest] * tried]):
            if schema is not True:
                wrong_item = Tuple((*(True,) * i, {"not": schema}))
                out.append(_only("array", min_items=i + 1, tuples=(wrong_item,)))
        if not prefix and rest is not True:
            out.append(
                _only("array", min_items=1)
                if rest is False
                else _only("array", min_items=1, contains=(({"not": rest}, 1, None),))
            )
        for schema, low, high in self._contains(keys):
            if low == 1:
                out.append(_only("array", tuples=(Tuple((), {"not": schema}),)))
            elif low:
                out.append(_only("array", contains=((schema, 0, low - 1),)))
            if high is not None:
                out.append(_only("array", contains=((schema, high + 1, None),)))
        return out

    def _contains(self, keys: Mapping[str, Any]) -> tuple[tuple[Any, int, int | None], ...]:
        conditions: dict[str, Any] = {}
        self._arrays(keys, conditions)
        found: tuple[tuple[Any, int, int | None], ...] = conditions.get("contains", ())
        return found

    def _not_objects(self, keys: Mapping[str, Any]) -> Flats:
        out = [_only("object", shapes=(Shape({name: False}),)) for name in keys.get("required", ())]
        for name, schema in keys.get("properties", {}).items():
            if schema is not True and schema != {}:
                shapes = (Shape({name: {"not": schema}}),)
                out.append(_only("object", required=(name,), shapes=shapes))
        rest = keys.get("additionalProperties", True)
        if rest is not True and rest != {}:
            shape = Shape(keys.get("properties", {}), keys.get("patternProperties", {}))
            other = True if rest is False else {"not": rest}
            out.append(_only("object", some=((shape, other),)))
        if keys.get("minProperties", 0) > 0:
            out.append(_only("object", max_names=int(keys["minProperties"]) - 1))
        if "maxProperties" in keys:
            out.append(_only("object", min_names=int(keys["maxProperties"]) + 1))
        for name, needed in keys.get("dependentRequired", {}).items():
            for other in needed:
                shapes = (Shape({other: False}),)
                out.append(_only("object", required=(name,), shapes=shapes))
        return out

    def _not_groups(self, keys: Mapping[str, Any], at: str, seen: tuple[str, ...]) -> Flats:
        out: Flats = []
        for key in ("$ref", "$dynamicRef", "$recursiveRef"):
            if key in keys:
                out += self.negate(*self.keywords.resolve(keys[key], at, key), seen)
        for i, part in enumerate(keys.get("allOf", ())):
            out += self.negate(part, pointer(at, "allOf", i), seen)
        for key in ("anyOf", "oneOf"):
            parts = keys.get(key, ())
            if not parts:
                continue
            none = [self.negate(p, pointer(at, key, i), seen) for i, p in enumerate(parts)]
            out += self._product(none, _MAX_COMPLEMENT)
            if key == "oneOf":
                flats = [self.expand(p, pointer(at, key, i), seen) for i, p in enumerate(parts)]
                for i, some in enumerate(flats[:16]):
                    for others in flats[i + 1 : 16]:
                        out += self._product([some, others], _MAX_COMPLEMENT)
        if "not" in keys:
            # what is named inside does not count as named
            for flat in self.expand(keys["not"], pointer(at, "not"), seen):
                shapes = tuple(replace(s, listed=None) for s in flat.shapes)
                tuples = tuple(replace(t, listed=False) for t in flat.tuples)
                out.append(flat.changed(shapes=shapes, tuples=tuples))
        if "if" in keys:
            condition, where = keys["if"], pointer(at, "if")
            if "then" in keys:
                holds = self.expand(condition, where, seen)
                no = self.negate(keys["then"], at + "/then", seen)
                out += self._product([holds, no], _MAX_COMPLEMENT)
            if "else" in keys:
                fails = self.negate(condition, where, seen)
                no = self.negate(keys["else"], at + "/else", seen)
                out += self._product([fails, no], _MAX_COMPLEMENT)
        for name, part in keys.get("dependentSchemas", {}).items():
            no = self.negate(part, pointer(at, "dependentSchemas", name), seen)
            out += self._product([[_only("object", required=(name,))], no], _MAX_COMPLEMENT)
        return out

    # ---- schemas that exclude each other ----

    def disjoint(self, a: Flat, b: Flat, depth: int = 4) -> bool:
        """Return whether it is certain that no value is valid under both."""
        # the same two are often compared again, as `oneOf` does it in both directions
        key = (min(id(a), id(b)), max(id(a), id(b)), depth, self._nested)
        known = self._disjoint.get(key)
        if known is None:
            known = self._disjoint[key] = (a, b, self._are_disjoint(a, b, depth))
        return known[2]

    def _are_disjoint(self, a: Flat, b: Flat, depth: int) -> bool:
        if a.values is not None and b.values is not None:
            return self._texts(a.values).isdisjoint(self._texts(b.values))
        kinds = a.kinds & b.kinds
        for flat in (a, b):
            if flat.values is not None:
                found = {kind_of(v, self.keywords.draft) for v in flat.values}
                return not found & kinds
        if "object" in kinds and not self._disjoint_objects(a, b, depth):
            return False
        if "array" in kinds and self._disjoint_arrays(a, b, depth):
            kinds -= {"array"}
        if not kinds - {"object"}:
            return True
        merged = merge(a, b)
        return merged is None or not merged.kinds & kinds - {"object"}

    def _texts(self, values: tuple[Any, ...]) -> frozenset[str]:
        """Return some values in canonical form; computed once."""
        known = self._canonical.get(id(values))
        if known is None:
            known = self._canonical[id(values)] = (values, frozenset(map(canonical, values)))
        return known[1]

    def _disjoint_arrays(self, a: Flat, b: Flat, depth: int) -> bool:
        """Return whether two arrays certainly differ in one of the items that must be there."""
        if depth == 0 or self._nested >= 3:
            return False
        self._nested += 1
        try:
            for i in range(min(max(a.min_items, b.min_items), max(a.prefix, b.prefix) + 1)):
                if self._disjoint_schemas(a.item_schema(i), b.item_schema(i), depth):
                    return True
            return False
        finally:
            self._nested -= 1

    def _disjoint_schemas(self, one: Any, two: Any, depth: int) -> bool:
        if one is False or two is False:
            return True
        # equal schemas have the same values, and looking into them would take long
        if one is True or two is True or one is two or one == two:
            return False
        (left, all_left), (right, all_right) = self.known(one, "#/..."), self.known(two, "#/...")
        if not (all_left and all_right):
            return False
        return all(self.disjoint(x, y, depth - 1) for x in left for y in right)

    def _tags(self, flat: Flat) -> dict[str, frozenset[str]]:
        """Return the properties that have one of a few values, and these in canonical form."""
        known = self._known_tags.get(id(flat.shapes))
        if known is None:
            found = {}
            for shape in flat.shapes:
                for name, schema in shape.properties.items():
                    if isinstance(schema, MAPPING) and ("const" in schema or "enum" in schema):
                        flats, whole = self.known(schema, "#/...")
                        if whole and all(f.values is not None for f in flats):
                            texts = [self._texts(f.values or ()) for f in flats]
                            found[name] = frozenset().union(*texts)
            known = self._known_tags[id(flat.shapes)] = (flat.shapes, found)
        return known[1]

    def _differ_by_tag(self, a: Flat, b: Flat) -> bool:
        """Return whether a property that must be there has other values in each."""
        mine, others = self._tags(a), self._tags(b)
        return any(
            name in others and mine[name].isdisjoint(others[name])
            for name in (*a.required, *b.required)
            if name in mine
        )

    def _disjoint_objects(self, a: Flat, b: Flat, depth: int) -> bool:
        # alternatives often differ by a constant, which is soon seen
        if self._differ_by_tag(a, b):
            return True
        merged = merge(a.changed(kinds=TYPES["object"]), b.changed(kinds=TYPES["object"]))
        if merged is None:
            return True
        # expanding a property may ask again which alternatives are disjoint, without end
        if depth == 0 or self._nested >= 3:
            return False
        self._nested += 1
        try:
            return any(
                self._disjoint_schemas(a.property_schema(n), b.property_schema(n), depth)
                for n in merged.required
            )
        finally:
            self._nested -= 1
