"""A JSON schema as a document: its draft, and where references lead."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn
from urllib.parse import unquote, urldefrag, urljoin

from ..errors import UnsupportedError

__all__ = ["MAPPING", "Document", "pointer", "unexpected", "unsupported", "wrong"]

#: For isinstance: asking for a dict first is fast.
MAPPING = (dict, Mapping)
#: Keywords whose value is a schema, a list of schemas, or schemas by name.
_ONE = frozenset(
    "additionalProperties additionalItems items not if then else contains propertyNames "
    "unevaluatedProperties unevaluatedItems contentSchema".split()
)
_LISTS = frozenset("allOf anyOf oneOf prefixItems items".split())
_MAPS = frozenset(
    "properties patternProperties $defs definitions dependentSchemas dependencies".split()
)


def pointer(at: str, *keys: object) -> str:
    """Return the JSON pointer to something below a place."""
    for key in map(str, keys):
        at += "/" + (key.replace("~", "~0").replace("/", "~1") if "~" in key or "/" in key else key)
    return at


def wrong(at: str, what: str) -> NoReturn:
    """Raise the error of a malformed schema, or of one without a valid text."""
    raise ValueError(f"the JSON schema, {at}: {what}")


def unexpected(at: str, value: object, expected: str) -> NoReturn:
    """Raise the error of a wrong value."""
    raise ValueError(f"the JSON schema, {at} is {value!r}; expected {expected}")


def unsupported(at: str, what: str) -> NoReturn:
    """Raise the error of a keyword that a grammar cannot enforce."""
    raise UnsupportedError(f"the JSON schema, {at}: {what}")


def _children(schema: Mapping[str, Any]) -> Iterator[tuple[Any, tuple[object, ...]]]:
    """Yield the schemas directly below a schema, each with the way to it."""
    for key, value in schema.items():
        if key in _MAPS and isinstance(value, MAPPING):
            for name, inner in value.items():
                yield inner, (key, name)
        elif key in _LISTS and isinstance(value, list):
            for i, inner in enumerate(value):
                yield inner, (key, i)
        elif key in _ONE:
            yield value, (key,)


def _is_named(root: Any, keys: tuple[str, ...]) -> bool:
    """Return whether a schema in a document has a name, under one of some keywords."""
    waiting = [root]
    while waiting:
        at = waiting.pop()
        if isinstance(at, MAPPING):
            if any(isinstance(at.get(key), str | bool) for key in keys):
                return True
            waiting += [inner for inner, _ in _children(at) if isinstance(inner, MAPPING)]
    return False


class Document:
    """A schema with all its parts.

    Parameters
    ----------
    root : dict or bool
    text : str, optional
        The same as `json.dumps` writes it, which soon tells that no part has a name.

    Attributes
    ----------
    root : dict or bool
        The schema. If it names its parts ($id, $anchor), each $ref in it is a pointer from the
        root.
    draft : int
        4, 6, 7, 2019 or 2020, from ``$schema``; 2020 without it.
    """

    def __init__(self, root: Any, text: str | None = None) -> None:
        self.root = root
        named = root.get("$schema") if isinstance(root, MAPPING) else None
        found = re.search(r"draft(?:-0|/)(\d+)", named) if isinstance(named, str) else None
        self.draft = int(found[1]) if found else 2020
        self._id = "id" if self.draft == 4 else "$id"
        self._places: dict[str, str] = {}  # absolute URI -> pointer
        self._dynamic: dict[str, list[str]] = {}
        keys = (self._id, "$anchor", "$dynamicAnchor", "$recursiveAnchor")
        if (text is None or any(f'"{key}"' in text for key in keys)) and _is_named(root, keys):
            self._index(root, "", "#")
            self.root = self._rewritten(root, "")

    def _base(self, schema: Mapping[str, Any], base: str) -> str:
        """Return the URI that references in a schema are relative to."""
        name = schema.get(self._id)
        if not isinstance(name, str) or (self.draft <= 7 and "$ref" in schema):
            return base
        if name.startswith("#"):  # an anchor, up to draft 7
            return base
        return urldefrag(_join(base, name))[0]

    def _index(self, root: Any, base: str, at: str) -> None:
        waiting = [(root, base, at)]
        while waiting:
            schema, base, at = waiting.pop()
            if not isinstance(schema, MAPPING):
                continue
            inner = self._base(schema, base)
            if inner != base or at == "#":
                self._places.setdefault(inner, at)
            name = schema.get(self._id)
            if self.draft <= 7 and isinstance(name, str) and "#" in name:
                self._places.setdefault(_join(base, name), at)
            for key in ("$anchor", "$dynamicAnchor"):
                if isinstance(schema.get(key), str):
                    self._places.setdefault(f"{inner}#{schema[key]}", at)
                    if key == "$dynamicAnchor":
                        self._dynamic.setdefault(schema[key], []).append(at)
            if schema.get("$recursiveAnchor") is True:
                self._dynamic.setdefault("", []).append(at)
            waiting += [(child, inner, pointer(at, *way)) for child, way in _children(schema)]

    def _place(self, ref: str, base: str) -> str:
        """Return a reference as a pointer from the root, if what it names is in the document."""
        whole = _join(base, ref)
        uri, fragment = urldefrag(whole)
        if fragment and not fragment.startswith("/"):
            return self._places.get(whole, whole)
        return self._places[uri] + fragment if uri in self._places else whole

    def _rewritten(self, schema: Any, base: str) -> Any:
        if not isinstance(schema, MAPPING):
            return schema
        base = self._base(schema, base)
        out = dict(schema)
        for key in ("$ref", "$dynamicRef", "$recursiveRef"):
            ref = schema.get(key)
            if not isinstance(ref, str):
                continue
            name = urldefrag(ref)[1]
            place = self._place(ref, base)
            if key != "$ref" and len(self._dynamic.get(name, ())) > 1:
                # which one is meant depends on the way that led here
                if place in self._dynamic[name]:
                    continue
            out[key] = place
        for key, value in schema.items():
            if key in _MAPS and isinstance(value, MAPPING):
                out[key] = {name: self._rewritten(inner, base) for name, inner in value.items()}
            elif key in _LISTS and isinstance(value, list):
                out[key] = [self._rewritten(inner, base) for inner in value]
            elif key in _ONE:
                out[key] = self._rewritten(value, base)
        return out

    def resolve(self, ref: Any, at: str) -> tuple[Any, str]:
        """Return the schema that the $ref of a place leads to, and its pointer."""
        if not isinstance(ref, str):
            unexpected(pointer(at, "$ref"), ref, "a string")
        if not ref.startswith("#"):
            unsupported(
                f"{at}/$ref",
                f"{ref!r} is in another document; expected a reference that starts with '#'",
            )
        found = self.root
        path = unquote(ref[1:])
        if path and not path.startswith("/"):
            wrong(pointer(at, "$ref"), f"{ref!r} is not in the document; no such $anchor found")
        for part in path.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, MAPPING) and key in found:
                found = found[key]
            elif isinstance(found, list) and key.isdecimal() and int(key[:9]) < len(found):
                found = found[int(key)]
            else:
                wrong(pointer(at, "$ref"), f"{ref!r} is not in the document; no {key!r} found")
        return found, ref


def _join(base: str, ref: str) -> str:
    return base + ref if ref.startswith("#") else urljoin(base, ref) or ref
