"""What an operation of a template may make: the methods, filters and operators, each with a check.

A check runs before its operation, and raises if the result would be too large or would take too
long. A method or filter that has no check here cannot be called. A check gets the arguments in a
list and may replace them: an iterator becomes a list, because an iterator has no size.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from .limits import ITEM, MAX_MEMORY, MAX_SIZE, Budget, text_size

__all__ = ["FILTERS", "METHODS", "check_compare", "check_operator", "listed"]

_SLOW = 500_000  # characters that Python code may read one by one
_VERY_SLOW = 20_000  # the same, where the time may grow with the square
_SORTED = 50_000  # items that may be sorted or grouped
_STEPS = 1_000_000_000  # of a loop in C, one or a few a nanosecond
_NAME = 1000  # characters of a name or a date format
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"

Args = list[Any]
Kwargs = dict[str, Any]
Check = Callable[[Budget, Args, Kwargs], None]


def _length(value: Any) -> int:
    return str.__len__(value) if isinstance(value, str) else 0


def _numbers(values: Any) -> list[int]:
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool)]


def _largest(values: Any) -> int:
    return max(map(abs, _numbers(values)), default=1)


def _argument(args: Args, kwargs: Kwargs, position: int, name: str) -> Any:
    return kwargs[name] if name in kwargs else args[position] if len(args) > position else None


def listed(budget: Budget, value: Any) -> Any:
    """Return an iterator as a list, and any other value as it is."""
    if not isinstance(value, Iterator):
        return value
    items = []
    for item in budget.iterate(value):
        items.append(item)
        budget.items(len(items))
    return items


def _iterable(budget: Budget, value: Any) -> tuple[Any, int]:
    """Return an iterable as a value that has a length, and the length."""
    value = listed(budget, value)
    if isinstance(value, str):
        return value, str.__len__(value)
    try:
        return value, len(value)
    except TypeError:
        return value, 0


# ---- methods ----


def _free(budget: Budget, args: Args, kwargs: Kwargs) -> None:
    """No check: the result is no larger than the value."""


def _grows(factor: int) -> Check:
    def check(budget: Budget, args: Args, kwargs: Kwargs) -> None:
        budget.characters(_length(args[0]), factor)

    return check


def _width(budget: Budget, args: Args, kwargs: Kwargs) -> None:
    budget.characters(_largest([*args[1:], *kwargs.values()]))


def _expandtabs(budget: Budget, args: Args, kwargs: Kwargs) -> None:
    size = _largest([8, *args[1:], *kwargs.values()])
    budget.characters(args[0].count("\t") + 1, size)
    budget.characters(len(args[0]) + args[0].count("\t") * size)


def _pairwise(budget: Budget, args: Args, kwargs: Kwargs) -> None:
    """Check a search that may compare each character with each of the argument."""
    for other in [*args[1:], *kwargs.values()]:
        budget.room("a search", _STEPS, "steps", _length(args[0]), _length(other))


def _replace(budget: Budget, args: Args, kwargs: Kwargs) -> None:
    text = str(args[0])
    old, new = args[1] if len(args) > 1 else "", args[2] if len(args) > 2 else ""
    if isinstance(old, str) and isinstance(new, str):
        times = text.count(old) if old else len(text) + 1
        budget.characters(len(text) + times * max(len(new) - len(old), 0))


def _pieces(budget: Budget, text: str, separator: Any) -> None:
    """Check the number of parts that a text is split into."""
    if len(text) * ITEM < MAX_SIZE:
        return
    if isinstance(separator, str) and separator:
        budget.items(text.count(separator) + 1)
    else:
        words = itertools.islice(re.finditer(r"\S+", text), MAX_MEMORY // ITEM + 1)
        budget.items(sum(1 for _ in words))


def _split(budget: Budget, args: Args, kwargs: Kwargs) -> None:
    _pieces(budget, args[0], _argument(args, kwargs, 1, "sep"))


def _rsplit(budget: Budget, args: Args, kwargs: Kwargs) -> None:
    _pairwise(budget, args, kwargs)
    _split(budget, args, kwargs)


def _splitlines(budget: Budget, args: Args, kwargs: Kwargs) -> None:
    if len(args[0]) * ITEM >= MAX_SIZE:
        budget.items(sum(map(args[0].count, _LINE_ENDS)) + 1)


def _written(items: Any) -> int:
    """Return a bound of the length of all items as text."""
    if not isinstance(items, list | tuple):
        return text_size(items)
    total = 0
    for item in items:
        total += text_size(item)
        if total > MAX_SIZE:
            break
    return total


def _join(budget: Budget, args: Args, kwargs: Kwargs) -> None:
    if len(args) > 1:
        args[1], number = _iterable(budget, args[1])
        budget.characters(_written(args[1]) + _length(args[0]) * number)


def _deep(budget: Budget, args: Args, kwargs: Kwargs) -> None:
    """Check a search for a value that may have items itself."""
    for value in args[1:]:
        if not isinstance(value, str):
            budget.room("a search", _STEPS, "steps", budget.text(value), len(args[0]))
        else:
            budget.room("a search", _STEPS, "steps", len(value), len(args[0]))


def _key(budget: Budget, args: Args, kwargs: Kwargs) -> None:
    if len(args) > 1 and isinstance(args[1], tuple):
        budget.text(args[1])  # its hash is computed from all its items


def _fields(budget: Budget, args: Args, kwargs: Kwargs) -> None:
    """Check ``str.format``; its formatter checks the widths and the output."""
    budget.room("a format", _SLOW, "characters", _length(args[0]))


_STR: dict[str, Check] = {
    **dict.fromkeys(
        "removeprefix removesuffix find index count startswith endswith partition isalnum isalpha "
        "isascii isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle "
        "isupper".split(),
        _free,
    ),
    **dict.fromkeys("upper lower title capitalize swapcase casefold".split(), _grows(3)),
    **dict.fromkeys("center ljust rjust zfill".split(), _width),
    **dict.fromkeys("strip lstrip rstrip rfind rindex rpartition".split(), _pairwise),
    "expandtabs": _expandtabs,
    "replace": _replace,
    "split": _split,
    "rsplit": _rsplit,
    "splitlines": _splitlines,
    "join": _join,
    "format": _fields,
    "format_map": _fields,
}
_SEQUENCE: dict[str, Check] = {"index": _deep, "count": _deep, "copy": _free}
_MAPPING: dict[str, Check] = {
    "get": _key,
    **dict.fromkeys("items keys values copy".split(), _free),
}

#: The methods that templates may call, by the type of their object.
METHODS: dict[type, dict[str, Check]] = {
    str: _STR,
    list: _SEQUENCE,
    tuple: _SEQUENCE,
    range: _SEQUENCE,
    dict: _MAPPING,
}


# ---- filters ----


def _text(growth: int, limit: int = MAX_SIZE) -> Check:
    """Return the check of a filter that turns a value into text and changes it."""

    def check(budget: Budget, args: Args, kwargs: Kwargs) -> None:
        budget.text(args[0], 1, limit)
        budget.text(args[0], growth)

    return check


def _number(budget: Budget, args: Args, kwargs: Kwargs) -> None:
    budget.room("a number", _NAME, "characters", _length(args[0]))


def _round(budget: Budget, args: Args, kwargs: Kwargs) -> None:
    budget.room("a number", 400, "digits", _largest([*args[1:], *kwargs.values()]))


def _trim(budget: Budget, args: Args, kwargs: Kwargs) -> None:
    for other in [*args[1:], *kwargs.values()]:
        budget.room("a search", _STEPS, "steps", budget.text(args[0]), _length(other))


def _filter_replace(budget: Budget, args: Args, kwargs: Kwargs) -> None:
    budget.text(args[0])
    values = [args[0], *args[1:], *[kwargs[k] for k in ("old", "new") if k in kwargs]]
    _replace(budget, values, {})


def _center(budget: Budget, args: Args, kwargs: Kwargs) -> None:
    budget.text(args[0])
    _width(budget, args, kwargs)


def _indent(budget: Budget, args: Args, kwargs: Kwargs) -> None:
    size = budget.text(args[0])
    lines = sum(map(str(args[0]).count, _LINE_ENDS)) + 1
    budget.items(lines)
    width = _argument(args, kwargs, 1, "width")
    budget.characters(size + lines * (_length(width) or _largest([width, 4])))


def _percent(budget: Budget, args: Args, kwargs: Kwargs) -> None:
    """Check ``format % values``: the widths and the sizes of the values."""
    template = str(args[0])
    budget.room("a format", _SLOW, "characters", len(template))
    values: Any = kwargs or args[1:]
    if len(args) == 2 and isinstance(args[1], tuple):
        values = args[1]
    elif len(args) == 2 and isinstance(args[1], Mapping):
        values = args[1]
    fields = template.count("%")
    numbers = re.findall(r"\d+", template)
    for digits in numbers:
        budget.room("a format", _NAME, "digits", len(digits))
    total = len(template) + sum(map(int, numbers))
    sizes = [text_size(v) for v in (values.values() if isinstance(values, Mapping) else values)]
    total += fields * max(sizes, default=0) if isinstance(values, Mapping) else sum(sizes)
    if "*" in template:
        total += template.count("*") * _largest(
            values.values() if isinstance(values, Mapping) else values
        )
    budget.characters(total)


def _json(budget: Budget, args: Args, kwargs: Kwargs) -> None:
    size = text_size(args[0:1])
    budget.characters(size, 3 if _argument(args, kwargs, 1, "ensure_ascii") else 1)
    separators = kwargs.get("separators") or (args[3] if len(args) > 3 else None)
    if separators is not None:
        budget.characters(size // ITEM + 1, text_size(separators))
    indent = _argument(args, kwargs, 2, "indent")
    if indent is not None:  # the encoder with indents is in Python
        depth, items = _shape(args[0])
        budget.room("a list", _SORTED, "items", items)
        budget.characters(items, depth * (_length(indent) or _largest([indent])) + 8)


def _shape(value: Any) -> tuple[int, int]:
    """Return the depth of nested values and the number of all items, up to a limit."""
    depth, items, level = 1, 0, [value]
    while level and items <= _SORTED:
        below: list[Any] = []
        for item in level:
            if isinstance(item, Mapping):
                below += item.values()
            elif isinstance(item, list | tuple):
                below += item
        depth, items, level = depth + 1, items + len(below) + 1, below
    return depth, items


def _sequence(limit: int, deep: bool) -> Check:
    """Return the check of a filter that goes through all items."""

    def check(budget: Budget, args: Args, kwargs: Kwargs) -> None:
        args[0], number = _iterable(budget, args[0])
        budget.room("a list", limit, "items", number)
        for value in [*args[1:], *kwargs.values()]:
            budget.room("a name", _NAME, "characters", _length(value))
        if deep:
            budget.text(args[0])

    return check


def _list(budget: Budget, args: Args, kwargs: Kwargs) -> None:
    args[0], number = _iterable(budget, args[0])
    budget.items(number)


def _filter_join(budget: Budget, args: Args, kwargs: Kwargs) -> None:
    args[0], number = _iterable(budget, args[0])
    budget.items(number)
    separator = _argument(args, kwargs, 1, "d")
    attribute = _argument(args, kwargs, 2, "attribute")
    budget.room("a name", _NAME, "characters", _length(attribute))
    size = text_size(args[0]) if attribute is not None else _written(args[0])
    budget.characters(size + number * text_size(separator or ""))


def _batch(budget: Budget, args: Args, kwargs: Kwargs) -> None:
    args[0], number = _iterable(budget, args[0])
    budget.items(number + _largest([*args[1:], *kwargs.values()]))


def _sum(budget: Budget, args: Args, kwargs: Kwargs) -> None:
    _sequence(_SORTED, True)(budget, args, kwargs)
    start = _argument(args, kwargs, 2, "start")
    if start is not None and not isinstance(start, int | float):  # each sum is a copy
        budget.room("a list", _STEPS, "steps", text_size(args[0]), len(args[0]))


def _attribute(budget: Budget, args: Args, kwargs: Kwargs) -> None:
    """Check a filter that takes the name of an attribute, and yields items one by one."""
    for value in [*args[1:2], *kwargs.values()]:
        budget.room("a name", _NAME, "characters", text_size(value))


#: The filters that templates may use.
FILTERS: dict[str, Check] = {
    **dict.fromkeys("abs count d default first items last length random reverse".split(), _free),
    **dict.fromkeys("upper lower capitalize".split(), _text(3)),
    **dict.fromkeys("string truncate safe".split(), _text(1)),
    **dict.fromkeys("e escape forceescape".split(), _text(6)),
    **dict.fromkeys("title urlencode wordcount".split(), _text(12, _SLOW)),
    **dict.fromkeys("striptags urlize wordwrap pprint xmlattr".split(), _text(12, _VERY_SLOW)),
    **dict.fromkeys("int float filesizeformat".split(), _number),
    **dict.fromkeys("sort unique groupby min max dictsort".split(), _sequence(_SORTED, True)),
    **dict.fromkeys("attr map select reject selectattr rejectattr".split(), _attribute),
    **dict.fromkeys("batch slice".split(), _batch),
    "round": _round,
    "trim": _trim,
    "replace": _filter_replace,
    "center": _center,
    "indent": _indent,
    "format": _percent,
    "tojson": _json,
    "list": _list,
    "join": _filter_join,
    "sum": _sum,
}


# ---- operators ----


def check_operator(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """Raise before an operator makes too large a value."""
    if operator == "+" and type(left) is str and type(right) is str:
        if len(left) + len(right) > MAX_SIZE:
            budget.characters(len(left) + len(right))
        return
    if isinstance(left, str) or isinstance(right, str):
        if operator == "*":
            budget.characters(max(_length(left), _length(right)), _largest([left, right]))
        elif operator == "%":
            _percent(budget, [left, right], {})
        else:
            budget.characters(text_size(left) + text_size(right))
            if hasattr(left, "__html__") or hasattr(right, "__html__"):  # the other is escaped
                budget.characters(text_size(left) + text_size(right), 6)
    elif isinstance(left, list | tuple) or isinstance(right, list | tuple):
        sizes = [len(v) if isinstance(v, list | tuple) else 0 for v in (left, right)]
        if operator == "*":
            budget.items(max(sizes), _largest([left, right]))
        else:
            budget.items(sum(sizes))
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        budget.room("an integer", 1000, "bits", left.bit_length(), right)


def check_compare(budget: Budget, left: Any, operator: str, right: Any) -> None:
    """Raise before a comparison takes too long."""
    if isinstance(left, str):
        if operator in ("in", "notin") and isinstance(right, list | tuple):
            budget.room("a search", _STEPS, "steps", len(left), len(right))
    elif isinstance(left, Collection):
        size = budget.text(left)
        if operator in ("in", "notin") and isinstance(right, Collection):
            budget.room("a search", _STEPS, "steps", size, len(right))
