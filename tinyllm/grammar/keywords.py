"""The keywords of JSON schemas: which count, those of older drafts as today's, and their values."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from .document import MAPPING, Document, pointer, unexpected, unsupported, wrong

__all__ = ["IGNORABLE", "LIMITS", "Keywords"]

#: Keywords that can be left unchecked.
IGNORABLE = frozenset(
    "oneOf not if then else patternProperties propertyNames dependentRequired dependentSchemas "
    "dependencies contains minContains maxContains uniqueItems multipleOf minProperties "
    "maxProperties unevaluatedItems unevaluatedProperties additionalItems $dynamicRef "
    "$recursiveRef minLength maxLength pattern format minItems maxItems minimum maximum "
    "exclusiveMinimum exclusiveMaximum".split()
)
#: Keywords that make a text invalid; all others are notes.
_KNOWN = IGNORABLE | frozenset(
    "$ref allOf anyOf type enum const properties required additionalProperties items prefixItems "
    "discriminator nullable".split()
)
_TYPE_NAMES = ("object", "array", "string", "number", "integer", "boolean", "null")
_COUNTS = frozenset(
    "minItems maxItems minLength maxLength minProperties maxProperties minContains "
    "maxContains".split()
)
LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_LISTS_OF_SCHEMAS = ("allOf", "anyOf", "oneOf", "prefixItems")
#: Keywords that other drafts write in another way.
_REWRITTEN = frozenset(
    "nullable items additionalItems dependencies exclusiveMinimum exclusiveMaximum".split()
)
_CHECKED = frozenset(
    "multipleOf properties patternProperties required dependentRequired dependentSchemas enum "
    "pattern format type".split()
).union(_COUNTS, LIMITS, _LISTS_OF_SCHEMAS)


class Keywords:
    """Reads the schemas of one document.

    Parameters
    ----------
    document : Document
    ignore : collection of str
        Keywords to leave unchecked.
    """

    def __init__(self, document: Document, ignore: Collection[str] = ()) -> None:
        self.document = document
        self.draft = document.draft
        self.ignore = frozenset(ignore)
        self._counting = _KNOWN - self.ignore
        self._known: dict[int, tuple[Any, dict[str, Any]]] = {}  # by identity of the schema

    def read(self, schema: Any, at: str) -> Mapping[str, Any]:
        """Return the keywords of a schema that count, those of older drafts as today's.

        Raises ValueError if the value of one is malformed.
        """
        known = self._known.get(id(schema))
        if known is None:
            known = self._known[id(schema)] = (schema, self._read(schema, at))
        return known[1]

    def _read(self, schema: Any, at: str) -> dict[str, Any]:
        if not isinstance(schema, MAPPING):
            unexpected(at, schema, "an object, true or false")
        if self.document.draft <= 7 and "$ref" in schema:
            return {"$ref": schema["$ref"]}
        out = {k: v for k, v in schema.items() if k in self._counting}
        if "oneOf" in self.ignore and "oneOf" in schema:  # that several hold is not checked
            part = {"anyOf": schema["oneOf"], "discriminator": schema.get("discriminator")}
            out["allOf"] = [*out.get("allOf", ()), part]
        if not _REWRITTEN.isdisjoint(out):
            self._rewrite(out)
        for key, value in out.items():
            if key in _CHECKED:
                self._check(key, value, at)
        return out

    @staticmethod
    def _rewrite(out: dict[str, Any]) -> None:
        """Write keywords of older drafts and of OpenAPI as today's."""
        if out.pop("nullable", False) is True and "type" in out:  # of OpenAPI 3.0
            kinds = out["type"] if isinstance(out["type"], list) else [out["type"]]
            out["type"] = [*kinds, "null"]
        if isinstance(out.get("items"), list):
            prefix = out.pop("items")
            rest = out.pop("additionalItems", None)
            if prefix:
                out["prefixItems"] = prefix
            if rest is not None:
                out["items"] = rest
        out.pop("additionalItems", None)
        if isinstance(out.get("dependencies"), MAPPING):
            for name, needed in out.pop("dependencies").items():
                key = "dependentRequired" if isinstance(needed, list | str) else "dependentSchemas"
                needed = [needed] if isinstance(needed, str) else needed
                out[key] = {**out.get(key, {}), name: needed}
        for limit, exclusive in (
            ("minimum", "exclusiveMinimum"),
            ("maximum", "exclusiveMaximum"),
        ):
            if isinstance(out.get(exclusive), bool):
                if out.pop(exclusive) and limit in out:
                    out[exclusive] = out.pop(limit)

    def _check(self, key: str, value: Any, at: str) -> None:
        if key in _LISTS_OF_SCHEMAS and (not isinstance(value, list) or not value):
            unexpected(pointer(at, key), value, "a non-empty list of schemas")
        if key in (
            "properties", "patternProperties", "dependentRequired", "dependentSchemas"
        ) and not isinstance(value, MAPPING):  # fmt: skip
            unexpected(pointer(at, key), value, "an object")
        if key == "properties":
            for name in value:
                if not isinstance(name, str):
                    wrong(pointer(at, key), f"the name is {name!r}; expected a string")
        if key == "enum" and not (isinstance(value, list) and value):
            unexpected(pointer(at, key), value, "a non-empty list of values")
        if key in ("pattern", "format") and not isinstance(value, str):
            unexpected(pointer(at, key), value, "a string")
        names = value.values() if key == "dependentRequired" else [value]
        if key in ("required", "dependentRequired") and not all(
            isinstance(n, list) and all(isinstance(name, str) for name in n) for n in names
        ):
            unexpected(pointer(at, key), value, "a list of names")
        if key == "type":
            for name in value if isinstance(value, list) else [value]:
                if name not in _TYPE_NAMES:
                    unexpected(pointer(at, key), name, f"one of {', '.join(_TYPE_NAMES)}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if key in _COUNTS and not (number and value >= 0 and value == int(value)):
            unexpected(pointer(at, key), value, "an integer of at least 0")
        if key in (*LIMITS, "multipleOf"):
            if not number:
                unexpected(pointer(at, key), value, "a number")
            if not math.isfinite(value):
                unexpected(pointer(at, key), value, "a finite number")
        if key == "multipleOf" and value <= 0:
            unexpected(pointer(at, key), value, "a number above 0")

    def resolve(self, ref: Any, at: str, key: str = "$ref") -> tuple[Any, str]:
        """Return the schema that a reference leads to, and its pointer."""
        if key != "$ref" and not (isinstance(ref, str) and (ref == "#" or ref[:2] == "#/")):
            unsupported(
                pointer(at, key),
                f"where {ref!r} leads depends on the way to it, which is not supported; "
                f"ignore=[{key!r}] leaves it unchecked",
            )
        return self.document.resolve(ref, at)
