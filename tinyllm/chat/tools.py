"""The tools of a conversation: JSON schemas of Python functions, for chat templates.

The schemas are those of ``get_json_schema`` of `transformers`, for every function that it accepts.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union

__all__ = ["plain_tool", "tool_schema"]

_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array",
               tuple: "array", dict: "object", type(None): "null"}  # fmt: skip
_SCALARS = (str, int, float, bool, type(None))


def plain_tool(tool: Any) -> Any:
    """Return the JSON schema of a tool, which is a schema itself or a function.

    Examples
    --------
    >>> plain_tool({"type": "function"})
    {'type': 'function'}
    """
    if isinstance(tool, Mapping):
        return tool
    if callable(tool):
        return tool_schema(tool)
    raise TypeError(f"tools contains {tool!r}; expected a JSON schema or a function")


def tool_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the JSON schema of a Python function, from its annotations and docstring.

    Parameters
    ----------
    function : callable
        The text before ``Args:`` in its docstring becomes the description. Entries
        ``name: ...`` or ``name (type): ...`` below ``Args:`` describe the parameters. They may
        take several lines, and may end in ``(choices: ["a", "b"])``. Without ``Args:``, lines
        ``name: ...`` anywhere describe the parameters, and the first paragraph the function.
        Parameters ``*args`` and ``**kwargs`` are left out.

    Returns
    -------
    dict

    Raises
    ------
    TypeError
        If a parameter has no annotation, or one that has no JSON schema.

    Examples
    --------
    >>> def add(a: int, b: int = 0) -> int:
    ...     '''Add two numbers.'''
    >>> tool_schema(add)["function"]["parameters"]["required"]
    ['a']
    """
    name = getattr(function, "__name__", "operation")
    hints = _hints(function)
    parameters = list(inspect.signature(function).parameters.values())
    if parameters and parameters[0].name in ("self", "cls") and "self" not in hints:
        del parameters[0]  # of a method that is not bound
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = [p for p in parameters if p.kind not in kinds]
    docs = _Docstring(inspect.getdoc(function) or "", [p.name for p in parameters])
    properties: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.name not in hints:
            raise TypeError(
                f"parameter {parameter.name!r} of the tool {name!r} has no type annotation"
            )
        try:
            schema = _type_schema(hints[parameter.name])
        except TypeError as error:
            raise TypeError(f"parameter {parameter.name!r} of the tool {name!r}: {error}") from None
        description = docs.parameters.get(parameter.name)
        if description is not None:
            choices = re.search(r"\(choices:\s*(.*?)\)\s*$", description, re.IGNORECASE)
            if choices:
                schema["enum"] = _choices(choices[1], parameter.name, name)
                description = description[: choices.start()].strip()
            schema["description"] = description
        properties[parameter.name] = schema
    schema = {"type": "object", "properties": properties}
    required = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    if required:
        schema["required"] = required
    described: dict[str, Any] = {
        "name": name,
        "description": docs.description,
        "parameters": schema,
    }
    if "return" in hints:
        with contextlib.suppress(TypeError):  # a model never writes what has no schema
            described["return"] = _type_schema(hints["return"])
            if docs.returns is not None:
                described["return"]["description"] = docs.returns
    return {"type": "function", "function": described}


def _hints(function: Any) -> dict[str, Any]:
    if isinstance(function, functools.partial):
        return _hints(function.func)
    is_plain = inspect.isroutine(function) or isinstance(function, type)
    return typing.get_type_hints(function if is_plain else type(function).__call__)


def _choices(text: str, parameter: str, name: str) -> list[Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise TypeError(
            f"parameter {parameter!r} of the tool {name!r} has the choices {text!r}; "
            "expected a JSON list"
        )
    return [c.strip() if isinstance(c, str) else c for c in found]


class _Docstring:
    """The parts of a docstring in Google's style, or of one with lines ``name: ...``."""

    def __init__(self, doc: str, names: Sequence[str]) -> None:
        doc = doc.strip()
        end = r"[\n\s]*(Returns:|Raises:|\Z)"
        entries = re.search(rf"(?:^|\n)\s*Args:\n(.*?){end}", doc, re.DOTALL)
        returns = re.search(r"\n\s*Returns:\n\s*(.*?)[\n\s]*(Raises:|\Z)", doc, re.DOTALL)
        self.returns = returns[1].strip() if returns else None
        self.parameters: dict[str, str] = {}
        main = re.search(rf"^(.*?)([\n\s]*Args:|{end})", doc, re.DOTALL)
        self.description = main[1].strip() if main else ""
        if entries:
            self._entries(entries[1])
            return
        for name in names:
            line = re.search(rf"^\s*{re.escape(name)}\s*:\s*(.+)$", doc, re.MULTILINE)
            if line:
                self.parameters[name] = line[1].strip()
        if self.parameters:
            self.description = " ".join(doc.split("\n\n")[0].split())

    def _entries(self, block: str) -> None:
        """Read the entries below ``Args:``; a line that is indented deeper continues one."""
        indent: str | None = None
        name = ""
        for line in block.split("\n"):
            start = re.match(r"([ \t]*)(\w+)(?:[ \t]*\([^()\n]*\))?:\s*(.*)", line)
            deeper = indent is not None and line[: len(indent) + 1].strip(" \t") == ""
            if start and not (deeper and start[1] != indent):
                indent, name = start[1], start[2]
                self.parameters[name] = start[3].strip()
            elif line.strip() and name:
                self.parameters[name] = f"{self.parameters[name]} {line.strip()}".strip()


def _type_schema(hint: Any) -> dict[str, Any]:
    """Return the JSON schema of a type hint; raise TypeError if it has none."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is None and isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _values_schema([member.value for member in hint], hint)
    if hint is Any:
        return {}
    if origin is Literal:
        return _values_schema(list(args), hint)
    if origin in (Union, types.UnionType):
        return _union_schema(args)
    if origin is list and args:
        return {"type": "array", "items": _type_schema(args[0])}
    if origin is tuple and args:
        if len(args) == 1 or ... in args:
            raise TypeError(f"its type is {hint}; expected list[...], which has any length")
        return {"type": "array", "prefixItems": [_type_schema(arg) for arg in args]}
    if origin is dict and args:
        return {"type": "object", "additionalProperties": _type_schema(args[1])}
    if isinstance(hint, type) and hint in _JSON_TYPES:
        return {"type": _JSON_TYPES[hint]}
    raise TypeError(
        f"its type is {hint!r}; expected str, int, float, bool, Any, an Enum, Literal, or list, "
        "tuple, dict or Union of these"
    )


def _union_schema(args: Sequence[Any]) -> dict[str, Any]:
    kept = [_type_schema(arg) for arg in args if arg is not type(None)]
    if len(kept) == 1:
        schema = kept[0]
    elif all(k.keys() == {"type"} and isinstance(k["type"], str) for k in kept):
        names = sorted({k["type"] for k in kept})
        schema = {"type": names[0] if len(names) == 1 else names}
    else:
        schema = {"anyOf": kept}
    return {**schema, "nullable": True} if type(None) in args else schema


def _values_schema(values: list[Any], hint: Any) -> dict[str, Any]:
    if not values or any(type(value) not in _SCALARS for value in values):
        raise TypeError(
            f"its type is {hint!r} with the values {values}; "
            "expected str, int, float, bool or None, and at least one"
        )
    names = list(dict.fromkeys(_JSON_TYPES[type(value)] for value in values))
    return {"type": names[0] if len(names) == 1 else names, "enum": values}
