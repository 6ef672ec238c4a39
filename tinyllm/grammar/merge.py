"""Merge JSON schemas that must hold at once, and recognize schemas that exclude each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeAlias

from ..errors import UnsupportedError

__all__ = ["KINDS", "Flat", "kinds_of", "merge", "never_valid"]

#: A schema without $ref, allOf, anyOf and oneOf.
Flat: TypeAlias = dict[str, Any]

#: The types of JSON Schema, in the order in which they are tried.
KINDS = ("object", "array", "string", "number", "integer", "boolean", "null")

# keywords that apply to one type only; without `type`, they imply this type
_IMPLIED = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
_LARGER = ("minimum", "exclusiveMinimum", "minLength", "minItems")
_SMALLER = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")


def _listed(kinds: Any) -> list[str]:
    listed = list(kinds) if isinstance(kinds, list) else [kinds]
    return [k for k in KINDS if k in listed and not (k == "integer" and "number" in listed)]


def kinds_of(flat: Flat) -> list[str]:
    """Return the types that a schema allows; "number" stands for "integer" too."""
    if "type" in flat:
        return _listed(flat["type"])
    implied = [kind for kind, names in _IMPLIED.items() if any(name in flat for name in names)]
    return implied or [kind for kind in KINDS if kind != "integer"]


def _common_kinds(a: list[str], b: list[str]) -> list[str]:
    common = set(a) & set(b)
    if "integer" in (set(a) | set(b)) and {"number", "integer"} <= set(a) | set(b):
        common.add("integer")
    return _listed(sorted(common))


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _values(flat: Flat) -> list[Any] | None:
    if "enum" in flat or "const" in flat:
        constant = [flat["const"]] if "const" in flat else None
        if constant is not None and "enum" in flat:
            return [v for v in flat["enum"] if _key(v) == _key(flat["const"])]
        return constant if constant is not None else list(flat["enum"])
    return None


def _both(a: Any, b: Any) -> Any:
    if a is True or _key(a) == _key(b):
        return b
    if b is True:
        return a
    return False if a is False or b is False else {"allOf": [a, b]}


def _merge_objects(a: Flat, b: Flat, out: Flat) -> None:
    mine, yours = a.get("properties", {}), b.get("properties", {})
    more_a, more_b = a.get("additionalProperties", True), b.get("additionalProperties", True)
    properties = {
        name: _both(mine.get(name, more_a), yours.get(name, more_b))
        for name in dict.fromkeys([*mine, *yours])
    }
    if properties:
        out["properties"] = properties
    if "required" in a or "required" in b:
        out["required"] = list(dict.fromkeys([*a.get("required", ()), *b.get("required", ())]))
    if "additionalProperties" in a or "additionalProperties" in b:
        out["additionalProperties"] = _both(more_a, more_b)


def _merge_arrays(a: Flat, b: Flat, out: Flat) -> None:
    mine, yours = a.get("prefixItems", []), b.get("prefixItems", [])
    more_a, more_b = a.get("items", True), b.get("items", True)
    length = max(len(mine), len(yours))
    if length:
        out["prefixItems"] = [
            _both(
                mine[i] if i < len(mine) else more_a,
                yours[i] if i < len(yours) else more_b,
            )
            for i in range(length)
        ]
    if "items" in a or "items" in b:
        out["items"] = _both(more_a, more_b)


def merge(a: Flat, b: Flat, at: str) -> Flat | None:
    """Return a schema of the values that are valid under two schemas.

    Parameters
    ----------
    a, b : dict
    at : str
        JSON pointer to the schemas, for messages.

    Returns
    -------
    dict or None
        None if no value is valid under both.

    Raises
    ------
    tinyllm.UnsupportedError
        If both have a pattern or format, and these differ.
    """
    out: Flat = {}
    if "type" in a and "type" in b:
        kinds = _common_kinds(_listed(a["type"]), _listed(b["type"]))
        if not kinds:
            return None
        out["type"] = kinds
    elif "type" in a or "type" in b:
        out["type"] = a.get("type", b.get("type"))
    for names, choose in ((_LARGER, max), (_SMALLER, min)):
        for name in names:
            limits = [flat[name] for flat in (a, b) if name in flat]
            if limits:
                out[name] = choose(limits)
    for name in ("pattern", "format"):
        texts = list(dict.fromkeys(flat[name] for flat in (a, b) if name in flat))
        if len(texts) > 1:
            raise UnsupportedError(
                f"the JSON schema, {at}: the {name}s {texts[0]!r} and {texts[1]!r} at once are not "
                "supported"
            )
        if texts:
            out[name] = texts[0]
    mine, yours = _values(a), _values(b)
    if mine is not None and yours is not None:
        allowed = {_key(v) for v in yours}
        out["enum"] = [v for v in mine if _key(v) in allowed]
    elif mine is not None or yours is not None:
        out["enum"] = mine if mine is not None else yours
    if out.get("enum") == []:
        return None
    _merge_objects(a, b, out)
    _merge_arrays(a, b, out)
    return out


def _json_kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    kinds: tuple[tuple[type, str], ...] = (
        (str, "string"),
        (int, "integer"),
        (float, "number"),
        (list, "array"),
        (dict, "object"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")


def never_valid(a: Flat, b: Flat, look: Callable[[Any], list[Flat]], depth: int = 4) -> bool:
    """Return whether it is certain that no text generated for `a` is valid under `b`.

    Parameters
    ----------
    a, b : dict
    look : callable
        Returns the flat schemas of a schema.
    depth : int
        How many levels of properties to compare.

    Returns
    -------
    bool
        False if this is not certain.
    """
    mine, yours = _values(a), _values(b)
    if mine is not None and yours is not None:
        numbers = any(isinstance(v, float) for v in (*mine, *yours))
        return not numbers and not {_key(v) for v in mine} & {_key(v) for v in yours}
    kinds_a = [_json_kind(v) for v in mine] if mine is not None else kinds_of(a)
    # without `type`, values of all types may be valid under b
    kinds_b = _listed(b["type"]) if "type" in b else list(KINDS)
    if yours is not None:
        kinds_b = [_json_kind(v) for v in yours]
    number = {"number", "integer"}
    if not set(kinds_a) & set(kinds_b) and not (number & set(kinds_a) and number & set(kinds_b)):
        return True
    if set(kinds_a) != {"object"} or mine is not None or depth == 0:
        return False
    open_a = a.get("additionalProperties", "properties" not in a and "required" not in a)
    have = {*a.get("properties", {}), *a.get("required", ())}
    if open_a is False and not set(b.get("required", ())) <= have:
        return True
    if b.get("additionalProperties") is False and not set(a.get("required", ())) <= set(
        b.get("properties", {})
    ):
        return True
    for name in a.get("required", ()):
        if name in a.get("properties", {}) and name in b.get("properties", {}):
            left, right = look(a["properties"][name]), look(b["properties"][name])
            if all(never_valid(x, y, look, depth - 1) for x in left for y in right):
                return True
    return False
