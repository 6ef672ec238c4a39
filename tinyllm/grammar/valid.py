"""Whether a JSON value is valid under a schema: for the constants that a schema names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

from .document import pointer
from .flat import ALL, TYPES, canonical, kind_of, pattern_expr
from .formats import FORMATS, exact, format_expr
from .keywords import Keywords
from .language import matches

__all__ = ["Unclear", "Validity"]


class Unclear(Exception):
    """Whether a value is valid is not known."""


class Validity:
    """Tests values under the schemas of one document.

    Parameters
    ----------
    keywords : Keywords
    """

    def __init__(self, keywords: Keywords) -> None:
        self.keywords = keywords
        self._enums: dict[int, tuple[list[Any], frozenset[str]]] = {}

    def _enum(self, values: list[Any]) -> frozenset[str]:
        """Return the values of an enum in canonical form; computed once."""
        known = self._enums.get(id(values))
        if known is None:
            known = self._enums[id(values)] = (values, frozenset(map(canonical, values)))
        return known[1]

    def __call__(self, value: Any, schema: Any, at: str) -> bool:
        """Return whether a value is valid.

        Parameters
        ----------
        value : JSON value
        schema : dict or bool
        at : str
            The JSON pointer to the schema, for messages.

        Returns
        -------
        bool

        Raises
        ------
        Unclear
            If a format decides that is not checked exactly.
        """
        if isinstance(schema, bool):
            return schema
        return self.holds(value, self.keywords.read(schema, at), at)

    def holds(self, value: Any, keys: Mapping[str, Any], at: str) -> bool:
        """Return whether a value is valid under keywords, as `Keywords.read` returns them."""
        kind = kind_of(value, self.keywords.draft)
        if "type" in keys:
            types = keys["type"] if isinstance(keys["type"], list) else [keys["type"]]
            if kind not in frozenset().union(*(TYPES[t] for t in types)) & ALL:
                return False
        if "enum" in keys and canonical(value) not in self._enum(keys["enum"]):
            return False
        if "const" in keys and canonical(value) != canonical(keys["const"]):
            return False
        if kind == "string" and not self._string(value, keys, at):
            return False
        if kind in ("integer", "fraction") and not self._number(value, keys):
            return False
        if kind == "array" and not self._array(value, keys, at):
            return False
        if kind == "object" and not self._object(value, keys, at):
            return False
        return self._combinations(value, keys, at)

    def _string(self, value: str, keys: Mapping[str, Any], at: str) -> bool:
        if not keys.get("minLength", 0) <= len(value) <= keys.get("maxLength", len(value)):
            return False
        if re.search("[\ud800-\udfff]", value) and ("pattern" in keys or "format" in keys):
            raise Unclear
        if "pattern" in keys:
            name = f"the JSON schema, {pointer(at, 'pattern')}:"
            if not matches(pattern_expr(keys["pattern"], name), value):
                return False
        form = keys.get("format")
        if form in FORMATS and not matches(format_expr(form), value):
            if not exact(form):
                raise Unclear
            return False
        return True

    @staticmethod
    def _number(value: float, keys: Mapping[str, Any]) -> bool:
        number = Decimal(repr(value))

        def limit(key: str) -> Decimal:
            return Decimal(repr(keys[key])) if key in keys else number

        if "exclusiveMinimum" in keys and number <= limit("exclusiveMinimum"):
            return False
        if "exclusiveMaximum" in keys and number >= limit("exclusiveMaximum"):
            return False
        if not limit("minimum") <= number <= limit("maximum"):
            return False
        of = Fraction(repr(keys.get("multipleOf", 1)))
        return "multipleOf" not in keys or Fraction(number) % of == 0

    def _array(self, value: list[Any], keys: Mapping[str, Any], at: str) -> bool:
        if not keys.get("minItems", 0) <= len(value) <= keys.get("maxItems", len(value)):
            return False
        if keys.get("uniqueItems") is True and len({canonical(v) for v in value}) < len(value):
            return False
        if keys.get("unevaluatedItems", True) is not True:
            raise Unclear
        prefix = keys.get("prefixItems", [])
        for i, item in enumerate(value):
            schema = prefix[i] if i < len(prefix) else keys.get("items", True)
            if not self(item, schema, pointer(at, "items")):
                return False
        if "contains" in keys:
            found = sum(self(item, keys["contains"], pointer(at, "contains")) for item in value)
            return bool(keys.get("minContains", 1) <= found <= keys.get("maxContains", found))
        return True

    def _object(self, value: Mapping[str, Any], keys: Mapping[str, Any], at: str) -> bool:
        count = len(value)
        if not keys.get("minProperties", 0) <= count <= keys.get("maxProperties", count):
            return False
        if any(name not in value for name in keys.get("required", ())):
            return False
        if keys.get("unevaluatedProperties", True) is not True:
            raise Unclear
        for name, inner in value.items():
            known = False
            if name in keys.get("properties", {}):
                known = True
                if not self(inner, keys["properties"][name], pointer(at, "properties", name)):
                    return False
            for pattern, schema in keys.get("patternProperties", {}).items():
                where = pointer(at, "patternProperties", pattern)
                if matches(pattern_expr(pattern, f"the JSON schema, {where}:"), name):
                    known = True
                    if not self(inner, schema, where):
                        return False
            rest = keys.get("additionalProperties", True)
            if not known and not self(inner, rest, pointer(at, "additionalProperties")):
                return False
            if not self(name, keys.get("propertyNames", True), pointer(at, "propertyNames")):
                return False
        for name, needed in keys.get("dependentRequired", {}).items():
            if name in value and any(other not in value for other in needed):
                return False
        return all(
            name not in value or self(value, schema, pointer(at, "dependentSchemas", name))
            for name, schema in keys.get("dependentSchemas", {}).items()
        )

    def _combinations(self, value: Any, keys: Mapping[str, Any], at: str) -> bool:
        for key in ("$ref", "$dynamicRef", "$recursiveRef"):
            if key in keys and not self(value, *self.keywords.resolve(keys[key], at, key)):
                return False

        def each(key: str) -> Iterator[bool]:
            return (self(value, part, pointer(at, key, i)) for i, part in enumerate(keys[key]))

        if "allOf" in keys and not all(each("allOf")):
            return False
        if "anyOf" in keys and not any(each("anyOf")):
            return False
        if "oneOf" in keys:
            found = each("oneOf")
            if not any(found) or any(found):
                return False
        if "not" in keys and self(value, keys["not"], pointer(at, "not")):
            return False
        if "if" in keys:
            key = "then" if self(value, keys["if"], pointer(at, "if")) else "else"
            return self(value, keys.get(key, True), pointer(at, key))
        return True
