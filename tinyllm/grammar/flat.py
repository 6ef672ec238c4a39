"""JSON schemas without combinations: conditions that hold at once, and how two of them merge."""

from __future__ import annotations

import functools
import json
import marshal
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeAlias

from ..errors import UnsupportedError
from . import regex
from .document import MAPPING
from .expr import Expr
from .language import matches

__all__ = [
    "ALL",
    "NUMBERS",
    "TYPES",
    "Flat",
    "Limit",
    "Shape",
    "Tuple",
    "all_of",
    "canonical",
    "key_of",
    "kind_of",
    "merge",
    "nothing",
    "pattern_expr",
]

#: The kinds of values. "fraction" is a number that is not an integer.
ALL = frozenset("object array string integer fraction boolean null".split())
NUMBERS = frozenset(("integer", "fraction"))
#: The kinds of each type of JSON Schema.
TYPES = {kind: frozenset((kind,)) for kind in ALL - {"fraction"}} | {"number": NUMBERS}

#: A limit of a number, and whether the limit itself is excluded.
Limit: TypeAlias = tuple[Decimal, bool]


def key_of(schema: Any) -> bytes | str:
    """Return what is equal for schemas that are written alike."""
    try:
        return marshal.dumps(schema, 0)
    except ValueError:  # it has a mapping that is not a dict
        return json.dumps(schema)


def canonical(value: Any) -> str:
    """Return a text that is equal for equal JSON values: 1 and 1.0 are equal, 1 and true not."""
    return _encode(value if isinstance(value, str) else _plain(value))


_encode = json.JSONEncoder(sort_keys=True).encode


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, MAPPING) else value


def kind_of(value: Any, draft: int = 2020) -> str:
    """Return the kind of a JSON value; up to draft 4, 1.0 is not an integer."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "integer" if value.is_integer() and draft > 4 else "fraction"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def all_of(parts: Iterable[Any]) -> Any:
    """Return a schema of what is valid under all of some schemas."""
    schemas: list[Any] = []
    for part in parts:
        if part is False:
            return False
        if isinstance(part, MAPPING) and len(part) == 1 and "allOf" in part:
            schemas += part["allOf"]
        else:
            schemas.append(part)
    schemas = [schema for schema in schemas if schema is not True and schema != {}]
    # those that are written alike count once; most are not even equal, which is soon seen
    if len(schemas) > 4 or (len(schemas) > 1 and _some_equal(schemas)):
        schemas = list({key_of(schema): schema for schema in reversed(schemas)}.values())[::-1]
    return True if not schemas else schemas[0] if len(schemas) == 1 else {"allOf": schemas}


def _some_equal(schemas: list[Any]) -> bool:
    return any(a == b for i, a in enumerate(schemas) for b in schemas[i + 1 :])


_parsed = functools.lru_cache(maxsize=512)(regex.parse)


def pattern_expr(pattern: str, name: str = "the pattern") -> Expr:
    """Return the texts in which a pattern of JSON Schema is found; `name` is for messages."""
    try:
        return _parsed(pattern, True)
    except (ValueError, UnsupportedError):
        return regex.parse(pattern, True, name)


@functools.lru_cache(maxsize=16384)
def _found(pattern: str, text: str) -> bool:
    """Return whether a pattern is found in a text."""
    return matches(pattern_expr(pattern), text)


@dataclass(frozen=True)
class Shape:
    """What one schema says about the properties of an object.

    Attributes
    ----------
    properties, patterns : dict
        Schemas by name and by pattern.
    additional : schema
        For the names that neither of them has.
    listed : tuple of str, optional
        The names that an object in compact form may have on behalf of this schema. None: it says
        nothing about that.
    opened : bool
        Whether `additional` was written down.
    """

    properties: Mapping[str, Any] = field(default_factory=dict)
    patterns: Mapping[str, Any] = field(default_factory=dict)
    additional: Any = True
    listed: tuple[str, ...] | None = None
    opened: bool = False

    @functools.cached_property
    def denied(self) -> frozenset[str]:
        """The names of which no property may be there."""
        return frozenset(name for name, schema in self.properties.items() if schema is False)

    def schema(self, name: str) -> Any:
        """Return the schema for the property of a name."""
        if not self.patterns:
            return self.properties.get(name, self.additional)
        found = [self.properties[name]] if name in self.properties else []
        found += [s for p, s in self.patterns.items() if _found(p, name)]
        return all_of(found) if found else self.additional


@dataclass(frozen=True)
class Tuple:
    """What one schema says about the items of an array: the first ones, and those after them."""

    prefix: tuple[Any, ...] = ()
    rest: Any = True
    listed: bool = False
    opened: bool = False

    def schema(self, i: int) -> Any:
        """Return the schema for item i."""
        return self.prefix[i] if i < len(self.prefix) else self.rest


@dataclass(frozen=True, init=False)
class Flat:
    """Conditions that hold at once. Those of one kind of value say nothing about other kinds.

    An object holds only the conditions that it was given; it reads the others from the class.

    Attributes
    ----------
    kinds : frozenset
    typed : bool
        Whether a schema named the types.
    implied : frozenset
        The kinds that keywords speak of.
    values, excluded : list of JSON values
        The only values, or None; and values that are not allowed (no arrays or objects).
    low, high : Limit, optional
    multiples : tuple of (Decimal, bool)
        Of what a number is, or is not, a multiple.
    texts : tuple of (str, str, bool, str)
        "pattern" or "format", its text, whether it must hold or must not, and where it is written.
    contains : tuple of (schema, int, int or None)
        How many items are valid under a schema, at least and at most.
    some : tuple of (Shape, schema)
        A property that the shape does not name must be there, with a value valid under the schema.
    names : tuple of schemas
        For the names of properties.
    """

    kinds: frozenset[str] = ALL
    typed: bool = False
    implied: frozenset[str] = frozenset()
    values: tuple[Any, ...] | None = None
    excluded: tuple[Any, ...] = ()
    low: Limit | None = None
    high: Limit | None = None
    multiples: tuple[tuple[Decimal, bool], ...] = ()
    min_length: int = 0
    max_length: int | None = None
    texts: tuple[tuple[str, str, bool, str], ...] = ()
    tuples: tuple[Tuple, ...] = ()
    min_items: int = 0
    max_items: int | None = None
    contains: tuple[tuple[Any, int, int | None], ...] = ()
    unique: bool = False
    shapes: tuple[Shape, ...] = ()
    required: tuple[str, ...] = ()
    min_names: int = 0
    max_names: int | None = None
    names: tuple[Any, ...] = ()
    some: tuple[tuple[Shape, Any], ...] = ()

    def __init__(self, **conditions: Any) -> None:
        vars(self).update(conditions)

    def changed(self, **conditions: Any) -> Flat:
        """Return the same with some conditions replaced."""
        return Flat(**{**vars(self), **conditions})

    def property_schema(self, name: str) -> Any:
        """Return the schema for the property of a name."""
        if len(self.shapes) == 1:
            found = self.shapes[0].schema(name)
            return True if found == {} else found
        return all_of(shape.schema(name) for shape in self.shapes)

    def property_schemas(self, names: Iterable[str]) -> dict[str, Any]:
        """Return the schemas for the properties of some names."""
        found: dict[str, list[Any]] = {name: [] for name in names}
        for shape in self.shapes:
            if shape.patterns or shape.additional is not True:
                for name, parts in found.items():
                    parts.append(shape.schema(name))
                continue
            for name, schema in shape.properties.items():
                if name in found:
                    found[name].append(schema)
        return {name: all_of(parts) for name, parts in found.items()}

    def item_schema(self, i: int) -> Any:
        """Return the schema for item i."""
        return all_of(t.schema(i) for t in self.tuples)

    @property
    def prefix(self) -> int:
        """The number of items that have a schema of their own."""
        return max((len(t.prefix) for t in self.tuples), default=0)


def _smaller(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else min(a, b)


def _low(a: Limit | None, b: Limit | None) -> Limit | None:
    return b if a is None else a if b is None else max(a, b)


def _high(a: Limit | None, b: Limit | None) -> Limit | None:
    if a is None or b is None:
        return b if a is None else a
    return min(a, b, key=lambda limit: (limit[0], not limit[1]))


def _unite(a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*a, *(x for x in b if x not in a)) if a and b else a or b


def _common(a: tuple[Any, ...] | None, b: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    """Return the values that are in both lists; None is a list of all values."""
    if a is None or b is None:
        return b if a is None else a
    allowed = {canonical(v) for v in b}
    return tuple(v for v in a if canonical(v) in allowed)


#: How two conditions of the same name become one.
_MERGES: dict[str, Callable[[Any, Any], Any]] = {
    "kinds": operator.and_,
    **dict.fromkeys(("typed", "implied", "unique"), operator.or_),
    **dict.fromkeys(("min_length", "min_items", "min_names"), max),
    **dict.fromkeys(("max_length", "max_items", "max_names"), _smaller),
    **dict.fromkeys(
        ("multiples", "texts", "tuples", "contains", "shapes", "required", "names", "some"), _unite
    ),
    "values": _common,
    "excluded": operator.add,
    "low": _low,
    "high": _high,
}


def merge(a: Flat, b: Flat) -> Flat | None:
    """Return the conditions of two schemas at once.

    Parameters
    ----------
    a, b : Flat

    Returns
    -------
    Flat or None
        None if it is plain that no value is valid under both.
    """
    if a is _NOTHING or b is _NOTHING:
        return b if a is _NOTHING else a
    out = Flat(**vars(a))
    conditions = vars(out)
    for name, condition in vars(b).items():
        # a condition that one of them lacks adds nothing
        known = name in conditions
        conditions[name] = _MERGES[name](conditions[name], condition) if known else condition
    return None if out.values == () else _tidy(out)


_NOTHING = Flat()


def nothing() -> Flat:
    """Return no conditions."""
    return _NOTHING


def _tidy(flat: Flat) -> Flat | None:
    """Drop the kinds of values for which the conditions plainly contradict each other."""
    wrong = set()
    if flat.max_length is not None and flat.min_length > flat.max_length:
        wrong.add("string")
    if flat.max_items is not None and flat.min_items > flat.max_items:
        wrong.add("array")
    if flat.max_names is not None and max(flat.min_names, len(flat.required)) > flat.max_names:
        wrong.add("object")
    if flat.low is not None and flat.high is not None and flat.low[0] > flat.high[0]:
        wrong |= NUMBERS
    if flat.required and any(not shape.denied.isdisjoint(flat.required) for shape in flat.shapes):
        wrong.add("object")
    kinds = flat.kinds - wrong
    return None if not kinds else flat if not wrong else flat.changed(kinds=kinds)
