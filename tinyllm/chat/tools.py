"""The tools of a conversation: JSON schemas of Python functions, for chat templates."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["plain_tool", "tool_schema"]

_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array",
               dict: "object", type(None): "null"}  # fmt: skip


def plain_tool(tool: Any) -> Any:
    """Return the JSON schema of a tool, which is a schema itself or a function."""
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
        The first paragraph of its docstring becomes the description. Lines ``name : ...`` or
        ``name: ...`` describe the parameters.

    Returns
    -------
    dict

    Raises
    ------
    TypeError
        If a parameter has no annotation.

    Examples
    --------
    >>> def add(a: int, b: int = 0) -> int:
    ...     '''Add two numbers.'''
    >>> tool_schema(add)["function"]["parameters"]["required"]
    ['a']
    """
    doc = inspect.getdoc(function) or ""
    hints = typing.get_type_hints(function)
    name = getattr(function, "__name__", type(function).__name__)
    properties: dict[str, Any] = {}
    required = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name not in hints:
            raise TypeError(
                f"parameter {parameter.name!r} of the tool {name!r} has no type annotation"
            )
        schema = _type_schema(hints[parameter.name])
        described = re.search(rf"^\s*{re.escape(parameter.name)}\s*:\s*(.+)$", doc, re.MULTILINE)
        if described:
            schema["description"] = described.group(1).strip()
        properties[parameter.name] = schema
        if parameter.default is inspect.Parameter.empty:
            required.append(parameter.name)
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": " ".join(doc.split("\n\n")[0].split()),
            "parameters": {"type": "object", "properties": properties, "required": required},
        },
    }


def _type_schema(hint: Any) -> dict[str, Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in _JSON_TYPES:
        return {"type": _JSON_TYPES[hint]}
    if origin is typing.Literal:
        return {"type": _JSON_TYPES.get(type(args[0]), "string"), "enum": list(args)}
    if origin in (typing.Union, types.UnionType):
        kept = [_type_schema(arg) for arg in args if arg is not type(None)]
        schema = kept[0] if len(kept) == 1 else {"anyOf": kept}
        return {**schema, "nullable": True} if type(None) in args else schema
    if origin in (list, tuple, set) and args:
        return {"type": "array", "items": _type_schema(args[0])}
    return {"type": _JSON_TYPES.get(origin, "object")}
